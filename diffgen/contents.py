"""Everything a training set knows: checked, on one device, and none of it computed on demand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from diffgen.readers.class_index import (
    ArrayLike,
    log_totals,
    sort_by_class,
    to_labels,
    to_log_weights,
)
from diffgen.readers.origin import Origin
from diffgen.readers.rows import squared_norms
from diffgen.readers.source import type_name

Index: TypeAlias = ArrayLike | slice | range


class DefaultRange(tuple[float, float]):
    """The value range nobody asked for: allowed beside floats, which have none."""


DEFAULT_RANGE = DefaultRange((-1.0, 1.0))


@dataclass(frozen=True, eq=False)
class Contents:
    """Rows and what belongs to them.

    Attributes:
        data: Stored rows, ``(N, *S)``, contiguous.
        norms: See ``SetView``.
        labels: ``(N,)`` int64, or None.
        log_weights: See ``SetView``.
        order: See ``SetView``.
        class_offsets: See ``SetView``.
        num_classes: C; 0 without labels.
        value_range: Values of a stored 0 and 255; None for floats.
        flip: Whether the mirror images belong to the set.
        origin: Where the rows came from, or None.
    """

    data: Tensor
    norms: Tensor
    labels: Tensor | None
    log_weights: Tensor | None
    order: Tensor | None
    class_offsets: Tensor | None
    num_classes: int
    value_range: tuple[float, float] | None
    flip: bool
    origin: Origin | None

    @property
    def affine(self) -> tuple[float, float]:
        """Size of one stored unit, and the value of a stored zero."""
        return affine(self.value_range)

    @property
    def rows_on_host(self) -> bool:
        """Whether the rows stayed in host memory when the set was moved."""
        return self.data.device != self.norms.device

    def with_norms(self) -> Contents:
        """The same with the norms of the data as it is now; ``DataError`` for NaN in a row."""
        where = "data" if self.origin is None else self.origin.path
        norms = squared_norms(self.data.reshape(len(self.data), -1), self.affine[0], where)
        return replace(self, norms=norms)

    def to(self, device: torch.device | str | int, rows_on_host: bool = False) -> Contents:
        """The same on another device, but for the rows if these are to stay in host memory."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return replace(
            self,
            data=_on_host(self.data, device) if rows_on_host else self.data.to(device),
            norms=self.norms.to(device),
            labels=move(self.labels),
            log_weights=move(self.log_weights),
            order=move(self.order),
        )

    def take(self, rows: Tensor) -> Contents:
        """Some of the rows, copied, under the same classes.

        Args:
            rows: Ids, int64, on the CPU, at least one.

        Raises:
            ValueError: All of them have weight zero.
        """
        here = rows.to(self.data.device)
        log_weights = None if self.log_weights is None else self.log_weights[here]
        if log_weights is not None and not (log_weights > -inf).any():
            raise ValueError("indices must name a row with a positive weight, got none")
        labels = None if self.labels is None else self.labels[here]
        order, offsets = _index(labels, log_weights, self.num_classes)
        return replace(
            self,
            data=self.data[here],
            norms=self.norms[here],
            labels=labels,
            log_weights=log_weights,
            order=order,
            class_offsets=offsets,
            origin=None if self.origin is None else self.origin.take(rows),
        )

    def class_log_weights(self) -> Tensor:
        """Logarithm of the total weight of each class, ``(max(C, 1),)`` float64, on the CPU.

        Without labels all rows are one class. Mirror images are counted.
        """
        if self.labels is None:
            labels = torch.zeros(len(self.data), dtype=torch.int64)
        else:
            labels = self.labels.cpu()
        weights = None if self.log_weights is None else self.log_weights.cpu()
        return log_totals(labels, weights, max(self.num_classes, 1), 2 if self.flip else 1)


def _on_host(data: Tensor, device: torch.device | str | int) -> Tensor:
    """Rows in host memory, pinned for a GPU, which then copies them without the processor."""
    data = data.cpu()
    on_gpu = torch.empty(0, device=device).is_cuda
    return data.pin_memory() if on_gpu and not data.is_pinned() else data


def build(
    data: Tensor,
    labels: ArrayLike | None,
    weights: ArrayLike | None,
    value_range: tuple[float, float],
    flip: bool,
    origin: Origin | None,
) -> Contents:
    """Check the arguments of a new set and compute what goes with its rows.

    Args:
        data: ``(N, *S)``, contiguous, one of the stored types.
        labels: ``(N,)`` integers, or None.
        weights: ``(N,)`` raw weights, or None.
        value_range: ``(lo, hi)``; ``DEFAULT_RANGE`` for floats.
        flip: Whether the mirror images belong to the set.
        origin: Where the rows came from, or None.

    Raises:
        TypeError: Labels that are no integers.
        ValueError: A wrong shape or a value out of range.
        DataError: NaN or an infinity in a row.
    """
    count = len(data)
    if flip and data.ndim < 3:
        raise ValueError(f"flip needs samples of shape (..., H, W), got {tuple(data.shape[1:])}")
    kept_range = _to_range(data.dtype, value_range)
    numbers = None if labels is None else to_labels(labels, count)
    log_weights = None if weights is None else to_log_weights(weights, count)
    num_classes = 0 if numbers is None else int(numbers.max()) + 1
    order, offsets = _index(numbers, log_weights, num_classes)
    contents = Contents(
        data=data,
        norms=torch.empty(0, device=data.device),
        labels=numbers,
        log_weights=log_weights,
        order=order,
        class_offsets=offsets,
        num_classes=num_classes,
        value_range=kept_range,
        flip=bool(flip),
        origin=origin,
    )
    return contents.with_norms().to(data.device)


def affine(value_range: tuple[float, float] | None) -> tuple[float, float]:
    """Size of one stored unit, and the value of a stored zero.

    Example:
        >>> affine((-1.0, 1.0))
        (0.00784313725490196, -1.0)
    """
    if value_range is None:
        return 1.0, 0.0
    low, high = value_range
    return (high - low) / 255.0, low


def to_rows(index: int | Index, count: int) -> Tensor:
    """Row ids of whatever names rows.

    Args:
        index: A number, a slice, a mask ``(count,)`` or integers of any shape; negative ones count
            from the end.
        count: Number of rows.

    Returns:
        Ids in ``[0, count)``, int64 on the CPU, of the shape of integers.

    Raises:
        IndexError: Out of range.
        TypeError: Not integers.

    Example:
        >>> to_rows(slice(None, None, -2), 5)
        tensor([4, 2, 0])
    """
    if isinstance(index, slice):
        return torch.tensor(range(count)[index], dtype=torch.int64)
    values = torch.as_tensor(index if isinstance(index, Tensor) else np.asarray(index)).cpu()
    if values.dtype == torch.bool:
        if values.shape != (count,):
            raise IndexError(f"a mask must have shape ({count},), got {tuple(values.shape)}")
        return values.nonzero()[:, 0]
    if values.numel() > 0 and (values.is_floating_point() or values.is_complex()):
        raise TypeError(f"indices must be integers, got {values.dtype}")
    rows = values.to(torch.int64)
    bad = rows[(rows < -count) | (rows >= count)]
    if len(bad):
        raise IndexError(f"indices must be in [{-count}, {count}), got {int(bad[0])}")
    return torch.where(rows < 0, rows + count, rows)


def _index(
    labels: Tensor | None, log_weights: Tensor | None, num_classes: int
) -> tuple[Tensor | None, Tensor | None]:
    if labels is None:
        return None, None
    weights = None if log_weights is None else log_weights.cpu()
    order, offsets = sort_by_class(labels.cpu(), weights, num_classes)
    return order.to(labels.device), offsets


NARROWEST, WIDEST = 1e-100, 1e100
"""Widths of a value range whose squared distances float64 can hold."""


def _to_range(dtype: torch.dtype, value_range: tuple[float, float]) -> tuple[float, float] | None:
    if dtype != torch.uint8:
        if not isinstance(value_range, DefaultRange):
            raise ValueError(
                f"value_range must be left out for {type_name(dtype)} data, which means itself, "
                f"got {value_range}"
            )
        return None
    # Adding zero makes -0.0 the same range as 0.0, in the digest too.
    low, high = (float(bound) + 0.0 for bound in value_range)
    if not (isfinite(low) and isfinite(high) and low < high):
        raise ValueError(f"value_range must be finite (lo, hi) with lo < hi, got {value_range}")
    if not NARROWEST <= high - low <= WIDEST:
        raise ValueError(f"value_range must be {NARROWEST:g} to {WIDEST:g} wide, got {value_range}")
    return low, high
