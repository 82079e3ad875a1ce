"""Blocks read ahead by a thread of their own, into two buffers in turn."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

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

    def clear(self) -> None:
        """Let the buffers go."""
        self._buffers = []


def fill(read: Read, piece: Piece, buffer: Tensor) -> Tensor:
    """Read a piece into a buffer; the rows, a view of it."""
    for place, first, count in runs_of(piece):
        read(buffer[place : place + count], first)
    return buffer[: piece.count]


class Pace:
    """Whether computing leaves the reader a core of its own.

    Where there are no more cores than threads that compute, the reader takes its time from them.
    If it is what all wait for, one thread less computes; the results are the same.

    Attributes:
        spare: So many threads are to be left out, 0 or 1.
    """

    def __init__(self, threads: int, cores: int) -> None:
        """Start by leaving one out, where the cores are that few."""
        self._contended = threads > 1 and cores <= threads
        self.spare = int(self._contended)

    def note(self, waited_s: float, used_s: float) -> None:
        """Take how long the last block was waited for, and how long it was used."""
        if not self._contended:
            return
        if self.spare and waited_s < IDLE * used_s:
            self.spare = 0
        elif not self.spare and waited_s > BUSY * used_s:
            self.spare = 1


IDLE = 0.05
"""Share of its use that a block may be waited for while the reader counts as ahead."""

BUSY = 0.25
"""Share of its use from which on it counts as behind."""


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_ahead(
    read: Read, pieces: Sequence[Piece], buffers: Buffers
) -> Generator[tuple[Piece, Tensor, int], None, None]:
    """Pieces with their rows, the next ones' read while one's are used.

    A block of rows is valid until the next is asked for. When the caller stops early, the read
    that is under way is waited for.

    Args:
        read: Reads consecutive rows; called by one thread at a time.
        pieces: What to read, in order.
        buffers: Where to.

    Yields:
        The piece, its rows ``(n, D)``, and how many threads to leave to the reader.

    Raises:
        DataError: As ``read`` raises it, when its piece is asked for.
    """
    if not pieces:
        return
    pair = buffers.of(max(piece.count for piece in pieces), min(2, len(pieces)))
    pace = Pace(torch.get_num_threads(), cores())
    reader = ThreadPoolExecutor(1, thread_name_prefix="diffgen-read")
    try:
        pending = deque(
            reader.submit(fill, read, piece, buffer)
            for piece, buffer in zip(pieces, pair, strict=False)
        )
        for turn, piece in enumerate(pieces):
            asked = time.perf_counter()
            block = pending.popleft().result()
            begun = time.perf_counter()
            yield piece, block, pace.spare
            pace.note(begun - asked, time.perf_counter() - begun)
            if turn + 2 < len(pieces):
                buffer = pair[turn % 2]
                pending.append(reader.submit(fill, read, pieces[turn + 2], buffer))
    finally:
        reader.shutdown(wait=True, cancel_futures=True)
