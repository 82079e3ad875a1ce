"""Rows at any place: of formats that have it, of those that are read in order only, of several."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers.descriptors import Descriptor

Fill: TypeAlias = Callable[[Tensor, int], None]
"""``fill(out, first)`` puts the rows from ``first`` on into ``out``, ``(n, *S)``: contiguous, on
the CPU, of the stored type, with ``0 <= first`` and ``first + n <= N``."""

Blocks: TypeAlias = Callable[[int], Iterator[Tensor]]
"""``blocks(rows)`` yields consecutive blocks of at most so many rows; each is valid until the
next."""


def blocks_of(fill: Fill, shape: tuple[int, ...], dtype: torch.dtype) -> Blocks:
    """Consecutive blocks of rows that can be read at any place.

    Args:
        fill: Reads rows.
        shape: ``(N, *S)``.
        dtype: Stored type.

    Returns:
        Blocks that share one buffer.
    """

    def blocks(rows: int) -> Iterator[Tensor]:
        total = shape[0]
        buffer = torch.empty((min(rows, total), *shape[1:]), dtype=dtype)
        for start in range(0, total, rows):
            block = buffer[: min(rows, total - start)]
            fill(block, start)
            yield block

    return blocks


class Stretch(NamedTuple):
    """Rows that lie one after another in a file, as they are stored.

    Attributes:
        file: The file.
        offset: Byte of the first row.
        rows: Number of rows.
    """

    file: Descriptor
    offset: int
    rows: int


Stretches: TypeAlias = Callable[[], "tuple[Stretch, ...] | None"]
"""Where all rows lie, in order; None where they do not lie so, or are not verified yet."""


class InOrder:
    """Random access to rows that can be read in order only, such as deflated ones.

    The place reached is kept: rows behind it are reached by reading on, and rows before it by
    reading from the first again. So a pass in order costs what it costs, and a step back as much
    as all the rows before it. At the last row the buffer is let go of.
    """

    def __init__(self, path: str, blocks: Blocks, rows: int, total: int) -> None:
        """Read nothing yet.

        Args:
            path: Where the rows come from, for messages.
            blocks: Yields the rows in order.
            rows: Rows in a block.
            total: Number of rows, N.
        """
        self._path = path
        self._blocks = blocks
        self._rows = rows
        self._total = total
        self._restart()

    def _restart(self) -> None:
        self._iterator: Iterator[Tensor] | None = None
        self._block: Tensor | None = None
        self._start = 0
        self._end = 0

    def __call__(self, out: Tensor, first: int) -> None:
        """See ``Fill``."""
        try:
            self._read(out, first)
        except BaseException:
            # Whatever stopped it, Ctrl-C included, the place reached is not known any more.
            self._restart()
            raise

    def _read(self, out: Tensor, first: int) -> None:
        if first < self._start:
            self._restart()
        done = 0
        while done < len(out):
            row = first + done
            while self._block is None or row >= self._end:
                self._advance()
            count = min(len(out) - done, self._end - row)
            start = row - self._start
            out[done : done + count] = self._block[start : start + count]
            done += count
        if first + done == self._total and self._iterator is not None:
            # What stands behind the last row, such as a checksum, is read and compared.
            for _ in self._iterator:
                pass
            self._restart()

    def _advance(self) -> None:
        if self._iterator is None:
            self._iterator = self._blocks(self._rows)
        block = next(self._iterator, None)
        if block is None:
            raise DataError(f"{self._path}: must hold {self._total} rows, got {self._end}")
        self._block = block
        self._start, self._end = self._end, self._end + len(block)


class Digest(Protocol):
    """A running hash or checksum, as those of ``hashlib``."""

    @property
    def name(self) -> str:
        """What it is called."""

    def update(self, content: memoryview, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """The value over all bytes so far."""


class FirstPass:
    """Verifies a digest of rows while they are read in order for the first time.

    Nothing is read twice: a read is hashed when it continues what is hashed already, from the
    first row on. A read elsewhere is not hashed, and rows that were verified are not hashed again.
    """

    def __init__(
        self, where: str, rows: int, row_bytes: int, start: Callable[[], Digest], expected: str
    ) -> None:
        """Nothing is read yet.

        Args:
            where: What the rows are, for messages.
            rows: Number of rows.
            row_bytes: Bytes of a row.
            start: A new digest, over what stands before the first row.
            expected: Hexadecimal value over all rows.
        """
        self._where = where
        self._rows = rows
        self._row_bytes = row_bytes
        self._start = start
        self._expected = expected
        self._digest: Digest | None = None
        self._next = 0
        self._verified = False

    @property
    def verified(self) -> bool:
        """Whether all rows have been read and are those that were written."""
        return self._verified

    def __call__(self, first: int, content: memoryview) -> None:
        """Take in the bytes of the rows from ``first`` on, as they are in the file.

        Raises:
            DataError: They are the last, and the bytes are not those that were written.
        """
        if self._verified or first not in (0, self._next):
            return
        digest = self._start() if first == 0 or self._digest is None else self._digest
        # An interrupt while it hashes leaves no digest, rather than one over who knows what.
        self._digest, self._next = None, 0
        digest.update(content)
        end = first + len(content) // self._row_bytes
        if end < self._rows:
            self._digest, self._next = digest, end
        else:
            got = digest.hexdigest()
            if got != self._expected:
                raise DataError(f"{self._where}: {digest.name} must be {self._expected}, got {got}")
            self._verified = True


def fill_of(counts: Sequence[int], fills: Sequence[Fill]) -> Fill:
    """Random access to several sets of rows, one behind the other.

    Args:
        counts: Number of rows of each, positive.
        fills: Reads rows of each.

    Example:
        >>> import torch
        >>> parts = torch.arange(3), torch.arange(3, 8)
        >>> def reader(part):
        ...     return lambda out, first: out.copy_(part[first : first + len(out)])
        >>> out = torch.empty(4, dtype=torch.int64)
        >>> fill_of([3, 5], [reader(part) for part in parts])(out, 1)
        >>> out.tolist()
        [1, 2, 3, 4]
    """
    starts = list(accumulate(counts, initial=0))

    def fill(out: Tensor, first: int) -> None:
        part = bisect_right(starts, first) - 1
        done = 0
        while done < len(out):
            row = first + done - starts[part]
            count = min(len(out) - done, counts[part] - row)
            fills[part](out[done : done + count], row)
            done += count
            part += 1

    return fill
