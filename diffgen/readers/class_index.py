"""Labels and weights of a training set: checks, and the index that lets a class be read alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from diffgen.readers.source import Array

ArrayLike: TypeAlias = Tensor | Array | Sequence[Any]

MAX_CLASSES = 1 << 24
"""Labels are class numbers that index a table; larger ones are ids of something else."""


def to_labels(labels: ArrayLike, count: int) -> Tensor:
    """Check labels.

    Args:
        labels: Integers, ``(N,)``, in ``[0, MAX_CLASSES)``.
        count: N.

    Returns:
        ``(N,)`` int64 on the CPU, a copy.

    Raises:
        TypeError: They are not integers.
        ValueError: Wrong shape or range.
    """
    values = _to_tensor("labels", labels, count)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {values.dtype}")
    values = values.to(torch.int64, copy=True)
    bad = ((values < 0) | (values >= MAX_CLASSES)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"labels must be in [0, {MAX_CLASSES}), got {int(values[row])} at index {row}"
        )
    return values


def to_log_weights(weights: ArrayLike, count: int) -> Tensor:
    """Check raw weights and take their logarithms.

    Args:
        weights: Numbers, ``(N,)``, finite, zero or more, at least one positive.
        count: N.

    Returns:
        ``(N,)`` float64 on the CPU; ``-inf`` for a weight of zero.

    Raises:
        ValueError: Wrong shape, or a value out of range.
    """
    values = _to_tensor("weights", weights, count).to(torch.float64)
    bad = (~values.isfinite() | (values < 0)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"weights must be finite and zero or more, got {values[row].item()} at index {row}"
        )
    if not (values > 0).any():
        raise ValueError("weights must have a positive sum, got zeros only")
    return values.log()


def _to_tensor(name: str, values: ArrayLike, count: int) -> Tensor:
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
    else:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} must be numbers, got {array.dtype}")
        kept = np.dtype(np.int64) if array.dtype.kind == "u" else array.dtype.newbyteorder("=")
        tensor = torch.from_numpy(np.array(array, dtype=kept))
    if tensor.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), got {tuple(tensor.shape)}")
    return tensor


def sort_by_class(
    labels: Tensor, log_weights: Tensor | None, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Ids of the rows of each class, and where each class starts.

    Args:
        labels: ``(N,)`` int64.
        log_weights: ``(N,)`` float64, or None; rows of weight zero are left out.
        num_classes: C.

    Returns:
        Order ``(M,)`` int64, ascending in each class, and offsets ``(C + 1,)`` int64.

    Example:
        >>> order, offsets = sort_by_class(torch.tensor([1, 0, 1]), None, 2)
        >>> order.tolist(), offsets.tolist()
        ([1, 0, 2], [0, 1, 3])
    """
    rows = torch.arange(len(labels))
    if log_weights is not None:
        rows = rows[log_weights > -inf]
    kept = labels[rows]
    order = rows[kept.argsort(stable=True)]
    offsets = torch.zeros(num_classes + 1, dtype=torch.int64)
    torch.cumsum(kept.bincount(minlength=num_classes), 0, out=offsets[1:])
    return order, offsets


def log_totals(
    groups: Tensor, log_weights: Tensor | None, num_groups: int, copies: int = 1
) -> Tensor:
    """Logarithm of the total weight of each group of rows.

    Args:
        groups: Group of each row, ``(N,)`` int64.
        log_weights: ``(N,)`` float64, or None for weights of one.
        num_groups: C.
        copies: How often each row counts.

    Returns:
        ``(C,)`` float64; ``-inf`` for a group without weight. Weights near the ends of float64's
        range neither overflow nor vanish.
    """
    if log_weights is None:
        return groups.bincount(minlength=num_groups).to(torch.float64).mul_(copies).log_()
    top = torch.full((num_groups,), -inf, dtype=torch.float64)
    top.scatter_reduce_(0, groups, log_weights, "amax")
    shift = top.masked_fill(top == -inf, 0.0)
    sums = torch.zeros_like(shift).index_add_(0, groups, (log_weights - shift[groups]).exp_())
    return sums.log_().add_(shift).add_(log(copies))
