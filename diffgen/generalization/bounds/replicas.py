"""Samples of models beside the sets they were trained on: the input of information bounds."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization.samples import Points, Samples, as_denoiser_over, as_samples


def as_sets(
    sets: Sequence[Points] | Tensor, name: str = "training_sets"
) -> list[EmpiricalDenoiser]:
    """Sets of equal size and shape, as denoisers.

    Args:
        sets: Sets, or a tensor ``(K, n, *S)``.
        name: What messages call them.

    Returns:
        K denoisers.

    Raises:
        ValueError: If the sets differ in size or shape.

    Example:
        >>> len(as_sets(torch.zeros(3, 5, 2)))
        3
    """
    denoisers = [as_denoiser_over(one, name) for one in sets]
    first = denoisers[0].training_set if denoisers else None
    for index, denoiser in enumerate(denoisers):
        found = denoiser.training_set
        assert first is not None
        if (len(found), found.sample_shape) != (len(first), first.sample_shape):
            raise ValueError(
                f"{name} must all have {len(first)} points of shape {first.sample_shape}, got "
                f"{len(found)} of shape {found.sample_shape} in set {index}"
            )
    return denoisers


def as_replicas(
    samples: Sequence[Samples] | Tensor,
    sample_shape: tuple[int, ...],
    *,
    expected: int,
    least: int,
    count: int | None = None,
    sigma_min: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Samples of K models in one tensor, with the noise that makes their information finite.

    Args:
        samples: For each model a tensor, path or function; or a tensor ``(K, M, *S)``.
        sample_shape: S.
        expected: K.
        least: Smallest M that the caller can use.
        count: Samples of each model; see `as_samples`.
        sigma_min: Standard deviation of normal noise added to the samples, at least 0.
        generator: Source of the noise, and of what models draw.

    Returns:
        ``(K, M, *S)``.

    Raises:
        ValueError: Another number of models, too few samples, unequal numbers of them, or an
            argument out of range.

    Example:
        >>> as_replicas(torch.zeros(2, 6, 3), (3,), expected=2, least=4).shape
        torch.Size([2, 6, 3])
    """
    if not 0 <= sigma_min < inf:
        raise ValueError(f"sigma_min must be at least 0 and finite, got {sigma_min:g}")
    if len(samples) != expected:
        raise ValueError(f"samples must be of {expected} models, one a set, got {len(samples)}")
    found = [
        as_samples(of_model, sample_shape, count=count, generator=generator, name=f"samples[{k}]")
        for k, of_model in enumerate(samples)
    ]
    for k, of_model in enumerate(found):
        if len(of_model) < least:
            raise ValueError(f"samples[{k}] must be at least {least}, got {len(of_model)}")
        if len(of_model) != len(found[0]):
            raise ValueError(
                f"samples must be as many for each model, got {len(found[0])} of model 0 and "
                f"{len(of_model)} of model {k}"
            )
    stacked = torch.stack(found)
    if sigma_min == 0:
        return stacked
    device = stacked.device if generator is None else generator.device
    noise = torch.randn(stacked.shape, generator=generator, dtype=torch.float64, device=device)
    return (stacked.double() + sigma_min * noise.to(stacked.device)).to(stacked.dtype)


def halves(samples: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Two random halves of each model's samples: one to fit on, one to judge with.

    Args:
        samples: ``(K, M, *S)``, M >= 2.
        generator: Source of the split, on the CPU.

    Returns:
        ``(K, M // 2, *S)`` and ``(K, M - M // 2, *S)``.

    Example:
        >>> [len(half[0]) for half in halves(torch.zeros(2, 5, 3), None)]
        [2, 3]
    """
    middle = samples.shape[1] // 2
    orders = [torch.randperm(samples.shape[1], generator=generator) for _ in samples]
    mixed = torch.stack(
        [
            of_model[order.to(samples.device)]
            for of_model, order in zip(samples, orders, strict=True)
        ]
    )
    return mixed[:, :middle], mixed[:, middle:]
