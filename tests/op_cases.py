"""Arguments of the two ops over small random sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffgen import ops
from diffgen.set_view import SetView, origin


def view_of(
    count: int,
    features: int,
    *,
    storage: torch.dtype = torch.float32,
    labels: Tensor | None = None,
    weights: bool = False,
    seed: int = 0,
) -> SetView:
    """A random set in [-1, 1]."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.rand(count, features, generator=rng, dtype=torch.float64) * 2 - 1
    scale, offset = (2 / 255, -1.0) if storage == torch.uint8 else (1.0, 0.0)
    data = ((values - offset) / scale).round() if storage == torch.uint8 else values
    data = data.to(storage)
    exact = offset + scale * data.double()
    order = offsets = None
    if labels is not None:
        order = labels.argsort(stable=True)
        offsets = torch.nn.functional.pad(labels.bincount().cumsum(0), (1, 0))
    return SetView(
        data,
        scale,
        offset,
        (exact - origin(storage, scale, offset)).square().sum(1),
        torch.rand(count, generator=rng, dtype=torch.float64).log() if weights else None,
        order,
        offsets,
    )


def arguments(
    view: SetView,
    *,
    batch: int,
    backend: str,
    classes: bool = False,
    exclude: bool = False,
    alpha: bool = False,
    functionals: bool = False,
    top_k: int = 0,
    dtype: torch.dtype = torch.float32,
    mean_dtype: torch.dtype = torch.float32,
    seed: int = 1,
) -> tuple[Any, ...]:
    """Arguments of the moments op."""
    rng = torch.Generator().manual_seed(seed)
    count, features = view.data.shape
    numbers = torch.arange(batch)
    return (
        torch.rand(batch, features, generator=rng, dtype=torch.float64).to(dtype),
        torch.rand(batch, generator=rng, dtype=torch.float64) + 0.5,
        torch.rand(batch, generator=rng, dtype=torch.float64) + 0.5 if alpha else None,
        numbers % 3 - (numbers == 1).long() * 2 if classes else None,
        numbers % count if exclude else None,
        view.data,
        view.norms,
        view.log_weights,
        view.order,
        view.class_offsets,
        view.scale,
        view.offset,
        functionals,
        top_k,
        mean_dtype,
        backend,
        True,
    )


def product_arguments(
    view: SetView, *, batch: int, backend: str, radial: bool = False, **options: Any
) -> tuple[Any, ...]:
    """Arguments of the covariance product op, with the mean and logsumexp of the same problem."""
    asked = arguments(view, batch=batch, backend=backend, mean_dtype=torch.float64, **options)
    mean, logsumexp, *_ = ops.MOMENTS(*asked)
    rng = torch.Generator().manual_seed(2)
    v = torch.rand(*mean.shape, generator=rng, dtype=torch.float64)
    radii = torch.rand(batch, generator=rng, dtype=torch.float64) if radial else None
    return (*asked[:12], mean, logsumexp, v, radii, backend, True)


def all_apart(outputs: Sequence[Tensor]) -> bool:
    """Whether no two tensors have one storage, which outputs of an op may not have, even empty."""
    return len({output.untyped_storage()._cdata for output in outputs}) == len(outputs)
