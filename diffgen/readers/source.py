"""The protocol between readers and the training set: a shape, a type, and blocks of rows.

A reader opens one format and answers with a ``Source``. Whoever needs the rows asks it for
consecutive blocks; ``assemble`` puts them into one tensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers.random_access import (
    Blocks,
    Fill,
    InOrder,
    Stretch,
    Stretches,
    blocks_of,
    fill_of,
)

Array: TypeAlias = NDArray[Any]

LabelRequest: TypeAlias = bool | str | None
"""Labels wanted of a file: None, those the format defines; True, required; False, none; or the
name of the member that holds them."""

STORED_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types in which a training set is kept."""

BLOCK_BYTES = 8 << 20
"""Bytes of the buffer through which rows are read."""

PROGRESS_DELAY_S = 2.0
"""A progress bar appears on what takes longer than this."""


def nowhere() -> None:
    """Say of no place that the rows lie there one after another."""


def nothing() -> None:
    """Close nothing: for sources that hold no file."""


@dataclass(frozen=True)
class Source:
    """The rows of an opened file.

    Attributes:
        path: Where the rows come from, for messages.
        shape: ``(N, *S)``, at least one row of at least one feature.
        dtype: One of ``STORED_TYPES``.
        blocks: ``blocks(rows)`` yields consecutive blocks ``(n, *S)`` with ``n <= rows``, from the
            first row to the last. A block may be a reused buffer: it is valid until the next one.
        labels: ``(N,)`` int64, or None.
        close: Lets go of the file.
        fill: Reads rows at any place, see ``Fill``; None takes them from ``blocks``, in order.
        check: ``DataError``, naming the file, when one of those that the rows come from is not any
            more the file that was opened: replaced, written to, or gone. It only asks the system.
        stretches: Where the rows lie, for those who read them without ``read``; see ``Stretches``.
        norms: What the file says of the lengths of its uint8 rows, ``sum_k (u_k - 128)^2``,
            ``(N,)`` int64; or None.
    """

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Blocks
    labels: Tensor | None = None
    close: Callable[[], None] = nothing
    fill: Fill | None = None
    check: Callable[[], None] = nothing
    norms: Tensor | None = None
    stretches: Stretches = nowhere

    def __post_init__(self) -> None:
        """Refuse a set without rows or features."""
        check_shape(self.path, self.shape)

    @cached_property
    def _fill(self) -> Fill:
        if self.fill is not None:
            return self.fill
        rows = rows_per_block(self.shape, self.dtype)
        return InOrder(self.path, self.blocks, rows, self.shape[0])

    def read(self, out: Tensor, first: int) -> None:
        """Read the rows ``first``, ``first + 1``, ... into a tensor.

        Nothing of the size of ``out`` is allocated. From formats that can be read in order only, a
        row before the last one read costs a pass over all that come before it. One thread at a
        time may read a source; after an error or an interrupt it can be read as before.

        Args:
            out: ``(n, *S)``, contiguous, on the CPU, of the type of the source.
            first: Number of the first row, ``0 <= first <= N - n``.

        Raises:
            ValueError: ``out`` does not fit, or the rows are not all there.
            DataError: A file is damaged, shrank or was replaced, with the file and the place.

        Example:
            >>> source = tensor_source(torch.arange(12.0).view(6, 2))
            >>> out = torch.empty(2, 2)
            >>> source.read(out, 3)
            >>> out.tolist()
            [[6.0, 7.0], [8.0, 9.0]]
        """
        if out.shape[1:] != self.shape[1:] or out.ndim == 0 or out.dtype != self.dtype:
            raise ValueError(
                f"out must have shape (n, {str(self.shape[1:])[1:-1].rstrip(',')}) and type "
                f"{type_name(self.dtype)}, got {tuple(out.shape)} and {type_name(out.dtype)}"
            )
        if not out.is_contiguous() or out.device.type != "cpu":
            raise ValueError(f"out must be contiguous and on the CPU, got {out.device}")
        if not 0 <= first <= self.shape[0] - len(out):
            raise ValueError(
                f"first must be in [0, {self.shape[0] - len(out)}] for {len(out)} of "
                f"{self.shape[0]} rows, got {first}"
            )
        if len(out) > 0:
            self._fill(out, first)

    def __enter__(self) -> Source:
        """Return the source itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()


def check_shape(where: str, shape: tuple[int, ...]) -> None:
    """Refuse a single number and an array without elements."""
    if not shape or prod(shape) == 0:
        raise DataError(f"{where}: must hold at least one row and one feature, got shape {shape}")


def type_name(dtype: torch.dtype) -> str:
    """Name of a type without the ``torch.`` in front."""
    return str(dtype).removeprefix("torch.")


def row_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of one row of a set of this shape."""
    return prod(shape[1:]) * dtype.itemsize


def rows_per_block(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """How many rows fill a buffer of ``BLOCK_BYTES``, at least one."""
    return max(1, BLOCK_BYTES // max(1, row_bytes(shape, dtype)))


def byte_view(block: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, writable, as bytes."""
    return block.reshape(-1).view(torch.uint8).numpy().data


def to_stored_type(dtype: np.dtype[Any]) -> torch.dtype | None:
    """The torch type that stores a numpy type, whatever its byte order; None when none does."""
    names = {type_name(kept): kept for kept in STORED_TYPES}
    return names.get(dtype.name)


class Progress:
    """A progress bar over rows that appears when the work turns out to take seconds.

    tqdm starts a thread with its first bar, so short work never makes one.
    """

    def __init__(self, total: int, what: str) -> None:
        """Start the clock.

        Args:
            total: Number of rows; 0 when unknown.
            what: Text beside the bar.
        """
        self._total = total
        self._what = what
        self._count = 0
        self._start = time.monotonic()
        self._bar: Any = None

    def update(self, rows: int) -> None:
        """Count rows that are done."""
        self._count += rows
        if self._bar is not None:
            self._bar.update(rows)
        elif time.monotonic() - self._start > PROGRESS_DELAY_S:
            from tqdm.auto import tqdm

            # A bar around this work says more, and a second one would need a line of its own.
            alone = not getattr(tqdm, "_instances", ())
            self._bar = tqdm(
                total=self._total or None,
                desc=self._what,
                unit="row",
                leave=False,
                disable=None if alone else True,
            )
            self._bar.update(self._count)

    def __enter__(self) -> Progress:
        """Return the bar itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def assemble(source: Source) -> Tensor:
    """Read a whole source into memory.

    The extra memory is one block, whatever N is.

    Args:
        source: An open source.

    Returns:
        Its rows, ``(N, *S)``, contiguous, on the CPU.

    Raises:
        DataError: A file is damaged or shrank, with the file and the place.
    """
    data = torch.empty(source.shape, dtype=source.dtype)
    start = 0
    with Progress(source.shape[0], f"reading {source.path}") as bar:
        for block in source.blocks(rows_per_block(source.shape, source.dtype)):
            data[start : start + len(block)] = block
            start += len(block)
            bar.update(len(block))
    if start != source.shape[0]:
        raise DataError(f"{source.path}: must hold {source.shape[0]} rows, got {start}")
    return data


def tensor_source(data: Tensor, labels: Tensor | None = None, path: str = "data") -> Source:
    """Rows that are already in memory, as a source.

    Args:
        data: ``(N, *S)``, one of ``STORED_TYPES``.
        labels: ``(N,)`` int64, or None.
        path: Name for messages.
    """

    def blocks(rows: int) -> Iterator[Tensor]:
        yield from data.split(rows)

    def fill(out: Tensor, first: int) -> None:
        out.copy_(data[first : first + len(out)])

    return Source(path, tuple(data.shape), data.dtype, blocks, labels, fill=fill)


def join(path: str, parts: Sequence[Source], labels: Tensor | None = None) -> Source:
    """Several sources of one sample shape and type, one behind the other, as one.

    Args:
        path: Name of the whole, for messages.
        parts: At least one; the new source closes them.
        labels: ``(N,)`` int64 for all rows, or None.
    """
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    fill = fill_of([part.shape[0] for part in parts], [part._fill for part in parts])

    def close() -> None:
        for part in parts:
            part.close()

    def check() -> None:
        for part in parts:
            part.check()

    def stretches() -> tuple[Stretch, ...] | None:
        found: list[Stretch] = []
        for part in parts:
            own = part.stretches()
            if own is None:
                return None
            found.extend(own)
        return tuple(found)

    blocks = blocks_of(fill, shape, parts[0].dtype)
    return Source(
        path,
        shape,
        parts[0].dtype,
        blocks,
        labels,
        close,
        fill,
        check,
        stretches=stretches,
    )
