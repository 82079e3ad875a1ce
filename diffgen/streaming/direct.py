"""Blocks that are read by the threads that compute with them, straight from files.

Rows that go through a buffer cross the memory three times more: into it, and out of it again. A
thread that reads a tile of rows just before it computes with them has them in its own cache, which
the next tile is read into. What comes from a disk is asked for ahead, by a thread of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from diffgen.readers.descriptors import Descriptor
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
        file: The file.
        offset: Byte of the first row.
    """

    first: int
    count: int
    file: Descriptor
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
        >>> import sys
        >>> file = Descriptor(sys.executable)  # any two files
        >>> parts = [Stretch(file, 128, 2048), Stretch(file, 128, 1000)]
        >>> [(piece.first, piece.count) for piece in pieces_in_files(parts, 3, 0, 3048)]
        [(0, 2048), (2048, 1000)]
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
            pieces.append(FilePiece(at, reach - at, stretch.file, offset))
            at = reach
        begin = end
    return pieces


def fetch_ahead(piece: FilePiece, row_bytes: int) -> None:
    """Ask the system to read the rows of a piece, without waiting for them."""
    if hasattr(os, "posix_fadvise"):
        with piece.file.held() as number:
            size = piece.count * row_bytes
            os.posix_fadvise(number, piece.offset, size, os.POSIX_FADV_WILLNEED)
