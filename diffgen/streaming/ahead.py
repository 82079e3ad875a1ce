"""Blocks read ahead by a thread of their own, into two buffers in turn."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from diffgen.streaming.plan import Piece, runs_of

Read = Callable[[Tensor, int], None]
"""``read(out, first)`` fills ``out (n, D)`` with rows ``first`` to ``first + n``."""


class Buffers:
    """Two blocks of memory that passes use in turn, made when they are first needed."""

    def __init__(self, features: int, dtype: torch.dtype) -> None:
        """Hold nothing yet."""
        self._features, self._dtype = features, dtype
        self._buffers: list[Tensor] = []

    def of(self, rows: int, number: int) -> list[Tensor]:
        """``number`` buffers of at least so many rows; those of the last call may be the same."""
        kept = [buffer for buffer in self._buffers if len(buffer) >= rows]
        while len(kept) < number:
            kept.append(torch.empty((rows, self._features), dtype=self._dtype))
        self._buffers = kept
        return kept[:number]


def fill(read: Read, piece: Piece, buffer: Tensor) -> Tensor:
    """Read a piece into a buffer; the rows, a view of it."""
    for place, first, count in runs_of(piece):
        read(buffer[place : place + count], first)
    return buffer[: piece.count]


def read_ahead(
    read: Read, pieces: Sequence[Piece], buffers: Buffers
) -> Generator[tuple[Piece, Tensor], None, None]:
    """Pieces with their rows, the next one's read while this one's are used.

    A block of rows is valid until the next is asked for. When the caller stops early, the read
    that is under way is waited for.

    Args:
        read: Reads consecutive rows; called by one thread at a time.
        pieces: What to read, in order.
        buffers: Where to.

    Raises:
        DataError: As ``read`` raises it, when its piece is asked for.
    """
    if not pieces:
        return
    rows = max(piece.count for piece in pieces)
    pair = buffers.of(rows, min(2, len(pieces)))
    with ThreadPoolExecutor(1, thread_name_prefix="diffgen-read") as reader:
        pending: Future[Tensor] = reader.submit(fill, read, pieces[0], pair[0])
        for turn, piece in enumerate(pieces):
            block = pending.result()
            if turn + 1 < len(pieces):
                other = pair[(turn + 1) % 2]
                pending = reader.submit(fill, read, pieces[turn + 1], other)
            yield piece, block
