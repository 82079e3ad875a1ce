"""How the rows of a set are cut into blocks.

8-bit rows are cut at the borders of the canonical segments of 1,024 ids, which the bits of a
result depend on. Blocks are some segments, so that several threads have work and starting a block
costs little beside it, and few enough that two of them are a small part of the memory of a pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SEGMENT_ROWS = 1024
"""Ids of a canonical segment."""

BLOCK_BYTES = 24 << 20
"""Bytes of a block, about."""

MOST_SEGMENT_BYTES = 40 << 20
"""Segments larger than this are not kept whole: two buffers of them would be most of the memory
that a pass may take."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows that are read together.

    Attributes:
        first: Id of the first row.
        count: Number of rows.
        ids: Their ids, ``(count,)`` int64, ascending; None where they follow one another.
    """

    first: int
    count: int
    ids: Tensor | None = None


def rows_of_block(row_bytes: int) -> int:
    """How many rows a block has: whole segments, unless a segment is too large."""
    segment = SEGMENT_ROWS * row_bytes
    if segment <= MOST_SEGMENT_BYTES:
        return max(1, BLOCK_BYTES // segment) * SEGMENT_ROWS
    return max(1, BLOCK_BYTES // row_bytes)


def whole_segments(row_bytes: int) -> bool:
    """Whether blocks are whole segments."""
    return SEGMENT_ROWS * row_bytes <= MOST_SEGMENT_BYTES


def pieces_of_range(first: int, stop: int, rows: int) -> list[Piece]:
    """All ids from ``first`` to ``stop``, so many at a time; a segment is cut only where it must.

    Example:
        >>> [(piece.first, piece.count) for piece in pieces_of_range(0, 5000, 2048)]
        [(0, 2048), (2048, 2048), (4096, 904)]
    """
    pieces = []
    at = first
    while at < stop:
        end = at + rows
        if rows >= SEGMENT_ROWS:
            end -= end % SEGMENT_ROWS
        pieces.append(Piece(at, min(end, stop) - at))
        at = min(end, stop)
    return pieces


def pieces_of_ids(ids: Tensor, rows: int) -> list[Piece]:
    """Some ids, ascending, at most ``rows`` at a time; a segment is cut only where it must.

    Args:
        ids: ``(n,)`` int64, on the CPU.
        rows: The most rows of a piece.

    Example:
        >>> pieces = pieces_of_ids(torch.tensor([3, 1000, 1024, 5000]), 1024)
        >>> [piece.ids.tolist() for piece in pieces]
        [[3, 1000, 1024, 5000]]
    """
    if rows < SEGMENT_ROWS:
        parts = list(ids.split(rows))
    else:
        segments = ids.div(SEGMENT_ROWS, rounding_mode="floor")
        sizes = torch.unique_consecutive(segments, return_counts=True)[1].tolist()
        lengths: list[int] = []
        room = 0
        for size in sizes:
            if size <= room:
                lengths[-1] += size
                room -= size
            else:
                lengths.append(size)
                room = rows - size
        parts = list(ids.split(lengths))
    return [Piece(int(part[0]), len(part), part) for part in parts]


def pieces_of_segments(pieces: list[Piece], wanted: Tensor) -> list[Piece]:
    """What of these pieces lies in some segments.

    Args:
        pieces: Made of whole segments.
        wanted: Whether each segment of the set is, ``(segments,)`` bool, on the CPU.
    """
    left = []
    for piece in pieces:
        ids = piece.ids
        if ids is None:
            ids = torch.arange(piece.first, piece.first + piece.count)
        chosen = ids[wanted[ids.div(SEGMENT_ROWS, rounding_mode="floor")]]
        if len(chosen) == piece.count:
            left.append(piece)
        elif len(chosen):
            left.append(Piece(int(chosen[0]), len(chosen), chosen))
    return left


def runs_of(piece: Piece) -> list[tuple[int, int, int]]:
    """The consecutive ids in a piece: place in it, first id, number.

    Example:
        >>> runs_of(Piece(4, 3, torch.tensor([4, 5, 9])))
        [(0, 4, 2), (2, 9, 1)]
    """
    if piece.ids is None:
        return [(0, piece.first, piece.count)]
    starts = torch.cat((torch.tensor([0]), (piece.ids.diff() != 1).nonzero()[:, 0] + 1))
    lengths = torch.cat((starts, torch.tensor([piece.count]))).diff()
    return list(zip(starts.tolist(), piece.ids[starts].tolist(), lengths.tolist(), strict=True))
