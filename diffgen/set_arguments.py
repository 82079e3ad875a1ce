"""Arguments of a training set that need no rows: indices and the value range."""

from __future__ import annotations

from math import isfinite
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from diffgen.readers.class_index import ArrayLike
from diffgen.readers.source import type_name

Index: TypeAlias = ArrayLike | slice | range


class DefaultRange(tuple[float, float]):
    """The value range nobody asked for: allowed beside floats, which have none."""


DEFAULT_RANGE = DefaultRange((-1.0, 1.0))


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


NARROWEST, WIDEST = 1e-100, 1e100
"""Widths of a value range whose squared distances float64 can hold."""


def to_range(dtype: torch.dtype, value_range: tuple[float, float]) -> tuple[float, float] | None:
    """The value range of a set; None for floats.

    Raises:
        ValueError: A range that is not finite, empty, or given for floats.
    """
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
