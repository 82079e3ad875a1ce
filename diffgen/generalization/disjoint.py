"""Whether training sets share rows: what bounds on the information between sets rest on.

A row is known by a hash of its values, read as float32, so that sets in other storage types are
compared by what they hold. Rows that repeat within one set are no overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from diffgen.training_set import TrainingSet

_BLOCK_ELEMENTS = 1 << 22
"""Values decoded at once: 16 MiB."""

_SHOWN = 5
"""Overlaps that a message lists."""


class Overlap(NamedTuple):
    """One row that two sets hold.

    Attributes:
        first_set: Index of the earlier set.
        first_row: Its row, the lowest with these values.
        second_set: Index of the later set.
        second_row: Its row.
    """

    first_set: int
    first_row: int
    second_set: int
    second_row: int


def row_hashes(rows: TrainingSet | Tensor) -> list[bytes]:
    """A hash of the values of each row; mirror images of a set with flips count as rows.

    Args:
        rows: A set, or a tensor ``(N, *S)``.

    Returns:
        N hashes of 16 bytes. Two rows that differ share one with probability 2^-128.

    Example:
        >>> a, b = row_hashes(torch.tensor([[0.0], [1.0]]))
        >>> [a, b] == row_hashes(torch.tensor([[-0.0], [1.0]], dtype=torch.float64)), a == b
        (True, False)
    """
    return list(_hashes(rows))


def overlaps(sets: Sequence[TrainingSet | Tensor]) -> list[Overlap]:
    """The rows that a set shares with an earlier one.

    Args:
        sets: Sets or tensors of rows.

    Returns:
        One entry for each such row, in order; empty where the sets are disjoint.

    Example:
        >>> overlaps([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.0]])])
        [Overlap(first_set=0, first_row=1, second_set=1, second_row=1)]
    """
    seen: dict[bytes, tuple[int, int]] = {}
    found = []
    for index, rows in enumerate(sets):
        for row, key in enumerate(_hashes(rows)):
            first = seen.setdefault(key, (index, row))
            if first[0] != index:
                found.append(Overlap(*first, index, row))
    return found


def check_disjoint(
    sets: Sequence[TrainingSet | Tensor], names: Sequence[str] | None = None
) -> None:
    """Refuse sets that share rows.

    Args:
        sets: Sets or tensors of rows.
        names: What messages call them; None for ``set 0``, ``set 1``, ...

    Raises:
        ValueError: If a row is in two sets; it lists the first rows.

    Example:
        >>> check_disjoint([torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0]])])
        Traceback (most recent call last):
            ...
        ValueError: the sets must be disjoint, got 1 shared row: row 1 of set 0 is row 0 of set 1
    """
    found = overlaps(sets)
    if not found:
        return
    called = names or [f"set {index}" for index in range(len(sets))]
    listed = ", ".join(
        f"row {o.first_row} of {called[o.first_set]} is row {o.second_row} of "
        f"{called[o.second_set]}"
        for o in found[:_SHOWN]
    )
    rows = "row" if len(found) == 1 else "rows"
    more = ", ..." if len(found) > _SHOWN else ""
    raise ValueError(f"the sets must be disjoint, got {len(found)} shared {rows}: {listed}{more}")


def _hashes(rows: TrainingSet | Tensor) -> Iterator[bytes]:
    shape = rows.sample_shape if isinstance(rows, TrainingSet) else rows.shape[1:]
    step = max(1, _BLOCK_ELEMENTS // max(1, torch.Size(shape).numel()))
    for start in range(0, len(rows), step):
        block = rows[start : start + step].detach().to("cpu", torch.float32)
        # Adding 0 turns -0 into 0, which is the same value in other bytes.
        for row in (block.flatten(1) + 0.0).numpy():
            yield blake2b(row.tobytes(), digest_size=16).digest()
