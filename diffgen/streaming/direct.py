"""Blocks that are read by the threads that compute with them, straight from files.

Rows that go through a buffer cross the memory three times more: into it, and out of it again. A
thread that reads a tile of rows just before it computes with them has them in its own cache, which
the next tile is read into. What comes from a disk is asked for ahead, by a thread of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from diffgen.readers.random_access import Stretch
from diffgen.streaming.plan import SEGMENT_ROWS

PIECE_BYTES = 64 << 20
"""Bytes of a block, about: so far ahead the system is asked to read."""

FEWEST_SEGMENTS = 4
"""Segments of a block at least."""

SEGMENTS_OF_THREAD = 2
"""Segments of a block at least for each thread."""


@dataclass(frozen=True, slots=True)
class FilePiece:
    """Consecutive rows in a file.

    Attributes:
        first: Id of the first row.
        count: Number of rows.
        path: The file.
        offset: Byte of the first row.
    """

    first: int
    count: int
    path: str
    offset: int


def pieces_in_files(
    stretches: Sequence[Stretch], row_bytes: int, first: int, stop: int, threads: int = 1
) -> list[FilePiece] | None:
    """The rows from ``first`` to ``stop``, in whole segments, each in one file.

    Args:
        stretches: Where the rows of the set lie.
        row_bytes: Bytes of a row.
        first: Id of the first row.
        stop: Id after the last.
        threads: So many share a piece.

    Returns:
        The pieces; None where a segment lies in two files.

    Example:
        >>> parts = [Stretch("a", 128, 2048), Stretch("b", 128, 1000)]
        >>> [(piece.path, piece.first, piece.count) for piece in pieces_in_files(parts, 3, 0, 3048)]
        [('a', 0, 2048), ('b', 2048, 1000)]
    """
    fewest = max(FEWEST_SEGMENTS, SEGMENTS_OF_THREAD * threads)
    segments = max(fewest, PIECE_BYTES // (SEGMENT_ROWS * row_bytes))
    pieces = []
    begin = 0
    for stretch in stretches:
        end = begin + stretch.rows
        at = max(begin, first)
        last = min(end, stop)
        if at < last and last < stop and last % SEGMENT_ROWS:
            return None
        while at < last:
            reach = at + segments * SEGMENT_ROWS
            reach = min(last, reach - reach % SEGMENT_ROWS)
            offset = stretch.offset + (at - begin) * row_bytes
            pieces.append(FilePiece(at, reach - at, stretch.path, offset))
            at = reach
        begin = end
    return pieces


class OpenFiles:
    """The files of a pass: the one at hand, and the one that is asked for ahead."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._files: dict[str, int] = {}

    def open(self, path: str) -> int:
        """The descriptor of a file; those of earlier files are closed."""
        for other in [known for known in self._files if known != path]:
            os.close(self._files.pop(other))
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[path]

    def fetch(self, path: str, offset: int, count: int) -> None:
        """Ask the system to read bytes of a file, without waiting for them."""
        if not hasattr(os, "posix_fadvise"):
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, offset, count, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close them."""
        for descriptor in self._files.values():
            os.close(descriptor)
