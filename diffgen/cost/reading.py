"""A sample of the rows of a file, and how fast they come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffgen.readers.packed import META_FILE
from diffgen.readers.rows import squared_norms
from diffgen.readers.source import Source, row_bytes
from diffgen.streaming.place import FilePlace
from diffgen.streaming.plan import SEGMENT_ROWS

SAMPLE_BYTES = 256 << 20
SAMPLE_S = 1.0
"""Reading stops at the first of the two."""

KEPT_BYTES = 64 << 20
"""The most of the sample that stays in memory, for timing."""

PIECE_BYTES = 4 << 20
"""Bytes of one read."""

FIRST_PASS_BYTES = 32 << 20
FIRST_PASS_S = 0.5
"""Rows from the first on that are measured as the first pass does; about the first of the two."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Reading:
    """How fast the rows of a file come.

    Attributes:
        nbytes: Bytes that were read.
        bytes_s: Bytes a second, as the system has the file now.
        again_bytes_s: The same of the same bytes, read a second time: from the page cache, where
            the system keeps files.
        first_pass_bytes_s: Bytes a second of the first pass, which measures the rows and checks
            what the file says of them.
    """

    nbytes: int
    bytes_s: float
    again_bytes_s: float
    first_pass_bytes_s: float


@dataclass(frozen=True)
class Sample:
    """Some rows of a set.

    Attributes:
        source: The whole set, open.
        ids: Ids of the rows, ascending, ``(n,)`` int64.
        data: Stored rows, ``(n, D)``.
        norms: Theirs; see ``SetView``.
        affine: Size of one stored unit, and the value of a stored zero.
        reading: How fast they came.
    """

    source: Source
    ids: Tensor
    data: Tensor
    norms: Tensor
    affine: tuple[float, float]
    reading: Reading


def take_sample(
    source: Source,
    affine: tuple[float, float],
    generator: torch.Generator,
    clock: Clock = time.perf_counter,
) -> Sample:
    """Read a sample: at most ``SAMPLE_BYTES``, for about ``SAMPLE_S`` seconds, twice.

    Args:
        source: An open set.
        affine: Size of one stored unit, and the value of a stored zero.
        generator: Source of the order in which the places are visited.
        clock: Tells seconds.

    Raises:
        DataError: A file is damaged, or there is NaN in a row that was read.
    """
    source.check()
    width = row_bytes(source.shape, source.dtype)
    runs = places(source.shape[0], width, can_jump(source))
    if len(runs) > 1:
        runs = [runs[i] for i in torch.randperm(len(runs), generator=generator).tolist()]
    pieces = [piece for run in runs for piece in _cut(run, max(1, PIECE_BYTES // width))]
    buffer = torch.empty((max(count for _, count in pieces), *source.shape[1:]), dtype=source.dtype)
    kept: list[tuple[int, Tensor]] = []

    def keep(first: int, rows: Tensor) -> None:
        if not kept or sum(part.nbytes for _, part in kept) + rows.nbytes <= KEPT_BYTES:
            kept.append((first, rows.clone()))

    number, bytes_s = _read(source, pieces, buffer, clock, keep)
    _, again = _read(source, pieces[:number], buffer, clock, lambda first, rows: None)
    nbytes = sum(count for _, count in pieces[:number]) * width
    kept.sort(key=lambda part: part[0])
    data = torch.cat([rows.reshape(len(rows), -1) for _, rows in kept])
    reading = Reading(nbytes, bytes_s, again, _first_pass(source, affine[0], bytes_s, clock))
    return Sample(
        source=source,
        ids=torch.cat([torch.arange(first, first + len(rows)) for first, rows in kept]),
        data=data,
        norms=squared_norms(data, affine[0], source.path),
        affine=affine,
        reading=reading,
    )


def can_jump(source: Source) -> bool:
    """Whether rows at any place are as near as the first: not behind others that are compressed.

    Of a folder of files that is not known; it is taken as one where they are not.
    """
    packed = os.path.isfile(os.path.join(source.path, META_FILE))
    return source.fill is not None and (packed or not os.path.isdir(source.path))


def places(count: int, width: int, jump: bool) -> list[tuple[int, int]]:
    """Runs of rows to read, first row and number: spread evenly, or from the first row on.

    A run leaves out the first row of its segment. That may be the first row of a shard, with which
    a pass begins to compute the shard's checksum; but a later pass does not.

    Args:
        count: Rows of the set.
        width: Bytes of a row.
        jump: Whether to spread them.

    Example:
        >>> places(10_000, 100_000, jump=True)
        [(1, 1023), (8193, 1023)]
        >>> places(10_000, 100_000, jump=False)
        [(0, 2684)]
    """
    wanted = min(count, max(1, SAMPLE_BYTES // width))
    segments = count // SEGMENT_ROWS
    if not jump or segments == 0:
        return [(0, wanted)]
    length = min(wanted, SEGMENT_ROWS - 1)
    number = min(max(1, wanted // length), segments)
    first = torch.linspace(0, segments - 1, number, dtype=torch.float64).long()
    return [(at * SEGMENT_ROWS + 1, length) for at in first.tolist()]


def _cut(run: tuple[int, int], most: int) -> list[tuple[int, int]]:
    first, count = run
    return [(at, min(most, first + count - at)) for at in range(first, first + count, most)]


def _read(
    source: Source,
    pieces: list[tuple[int, int]],
    buffer: Tensor,
    clock: Clock,
    take: Callable[[int, Tensor], None],
) -> tuple[int, float]:
    """Number of pieces read, and bytes a second."""
    nbytes, seconds, number = 0, 0.0, 0
    for first, count in pieces:
        rows = buffer[:count]
        start = clock()
        source.read(rows, first)
        seconds += clock() - start
        nbytes += rows.nbytes
        number += 1
        take(first, rows)
        if seconds > SAMPLE_S:
            break
    return number, nbytes / max(seconds, 1e-9)


def _first_pass(source: Source, scale: float, bytes_s: float, clock: Clock) -> float:
    """Bytes a second of the first pass, over the first rows."""
    width = row_bytes(source.shape, source.dtype)
    wanted = int(min(FIRST_PASS_BYTES, bytes_s * FIRST_PASS_S)) // width
    rows = min(source.shape[0], max(1, wanted))
    # Norms that the file brings are compared with the rows, which takes as long.
    place = FilePlace(replace(source, norms=None), scale, None, (0, rows))
    start = clock()
    _ = place.norms
    return rows * width / max(clock() - start, 1e-9)
