"""How long a backend takes for a sample of the rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import torch
from torch import Tensor

from diffgen.backends.passes import PassOptions
from diffgen.backends.problem import Extent, Problem
from diffgen.backends.registry import Backend
from diffgen.cost.counts import CallCost, parts_of
from diffgen.cost.estimate import Timing, overlap_of
from diffgen.cost.reading import Sample
from diffgen.stores import placeholder
from diffgen.streaming.opening import selected
from diffgen.streaming.place import FilePlace, MemoryPlace, Place
from diffgen.streaming.plan import SEGMENT_ROWS, Piece, whole_segments
from diffgen.streaming.store import StreamedStore

MOST_QUERIES = 64
"""More queries are timed as so many, and in proportion."""

FIRST_ROWS = 64
ENOUGH_S = 0.15
"""The first try takes so many rows; then as many as take so long."""

Run = Callable[[int], float]
"""From a number of rows to the seconds of a pass over as many of the sample."""


class BlocksInMemory(MemoryPlace):
    """Rows in memory that come in the blocks in which they would come from a file."""

    def _all_pieces(self) -> list[Piece]:
        return Place._all_pieces(self)


def queries_of(sample: Sample, number: int, sigma: float, generator: torch.Generator) -> Tensor:
    """Rows of the sample with noise, ``(number, D)`` float32."""
    at = torch.linspace(0, len(sample.data) - 1, number, dtype=torch.float64).long()
    scale, offset = sample.affine
    points = sample.data[at].double() * scale + offset
    noise = torch.randn(points.shape, generator=generator, dtype=torch.float64)
    return (points + sigma * noise).float()


def problem_of(
    data: Tensor,
    norms: Tensor,
    affine: tuple[float, float],
    query: Tensor,
    sigma: float,
    device: torch.device | str = "cpu",
) -> Problem:
    """Some rows as a whole set in the memory of a device."""
    return Problem(
        query=query.to(device),
        sigma=torch.full((len(query),), sigma, dtype=torch.float64, device=device),
        alpha=None,
        exclude=None,
        data=data.to(device),
        norms=norms.to(device),
        log_weights=None,
        rows=None,
        scale=affine[0],
        offset=affine[1],
        check_values=False,
    )


def time_in_memory(backend: Backend, problem: Problem) -> Timing:
    """The time of a backend over rows that are in memory.

    Args:
        backend: One that accepts the problem.
        problem: The sample.
    """

    def run(rows: int) -> float:
        some = replace(problem, data=problem.data[:rows], norms=problem.norms[:rows])
        start = time.perf_counter()
        backend.moments(some, False, 0, torch.float32)[0].cpu()  # to have waited for a GPU
        return time.perf_counter() - start

    rows, fixed_s, compute_s = measure(run, len(problem.data))
    return Timing(rows, len(problem.query), fixed_s, compute_s)


def time_streamed(backend: Backend, sample: Sample, problem: Problem, count: int) -> Timing:
    """The time of a backend over rows that stay in their file.

    Args:
        backend: One that accepts the problem.
        sample: The rows.
        problem: The sample.
        count: Rows of the set, N.
    """
    scale = sample.affine[0]

    def over(place: Place, rows: int) -> float:
        data = placeholder((rows, place.features), place.dtype)
        some = replace(problem, data=data, norms=placeholder((rows,), torch.float64))
        start = time.perf_counter()
        StreamedStore(place).moments(some, False, 0, torch.float32, backend.name)
        return time.perf_counter() - start

    def run(rows: int) -> float:
        data, norms = problem.data[:rows], problem.norms[:rows]
        return over(BlocksInMemory(data, norms, rows, 0, scale, None), rows)

    by_segments = _goes_by_segments(backend, problem)
    each = torch.get_num_threads() * SEGMENT_ROWS if by_segments else 1
    rows, fixed_s, compute_s = measure(run, len(problem.data), each)
    direct = _read_by_threads(sample, rows) if by_segments else None
    place = direct or FilePlace(selected(sample.source, sample.ids[:rows]), scale, None)
    timed = place.stop - place.first
    _ = place.norms
    start = time.perf_counter()
    place.read_through(lambda data: None, "reading")
    read_s = time.perf_counter() - start
    together_s = over(place, timed) - fixed_s
    blocks = None if direct else parts_of(timed, place.block_rows)
    overlap = overlap_of(together_s, read_s, compute_s * timed / rows, blocks)
    second = needs_second_pass(backend, problem, count)
    return Timing(rows, len(problem.query), fixed_s, compute_s, overlap, second)


def _read_by_threads(sample: Sample, rows: int) -> FilePlace | None:
    """About so many rows in their file, where the threads that compute read them; else None.

    They follow one another, as in a pass. The first row of the set is left out: see
    ``reading.places``.
    """
    if rows < SEGMENT_ROWS:
        return None
    place = FilePlace(replace(sample.source, norms=None), sample.affine[0], None, (1, rows))
    return None if place.in_files() is None else place


def measure(run: Run, most: int, each: int = 1) -> tuple[int, float, float]:
    """Time a pass over as many rows as take long enough.

    Args:
        run: Runs a pass.
        most: Rows that there are.
        each: They are a multiple of it, where there are so many.

    Returns:
        Rows, seconds of a pass over one row, and seconds of them beyond that.

    Example:
        >>> rows, fixed_s, rest_s = measure(lambda rows: 0.5 + rows / 1000, 10_000)
        >>> rows, round(fixed_s, 3), round(rest_s, 3)
        (153, 0.501, 0.152)
    """
    run(1)  # the first call of all prepares more than the others
    fixed = min(run(1), run(1))
    if most == 1:
        return most, 0.0, fixed
    most = most // each * each or most
    rows = min(most, -(-FIRST_ROWS // each) * each)
    seconds = run(rows) - fixed
    while rows < most and seconds < ENOUGH_S / 2:
        growth = min(max(ENOUGH_S / max(seconds, 1e-9), 2.0), 16.0)
        rows = min(most, math.ceil(rows / each * growth) * each)
        seconds = run(rows) - fixed
    if seconds < 2 * ENOUGH_S:
        seconds = min(seconds, run(rows) - fixed)
    return rows, fixed, max(seconds, 0.0)


def needs_second_pass(backend: Backend, problem: Problem, count: int) -> bool:
    """Whether queries are decided by differences from the nearest row of a set in a file.

    Args:
        backend: One that accepts the problem.
        problem: A sample, taken as typical.
        count: Rows of the set, N.
    """
    if not _goes_by_segments(backend, problem) or len(problem.query) == 0:
        return False
    assert backend.blockwise is not None
    longest, typical = sqrt(float(problem.norms.max())), sqrt(float(problem.norms.mean()))
    extent = Extent(count, count, longest, typical)
    options = PassOptions(False, 0, torch.float32)
    return bool(backend.blockwise.undecided(problem, extent, options).any())


def _goes_by_segments(backend: Backend, problem: Problem) -> bool:
    """Whether threads have segments each, with the bits of one call."""
    features = problem.query.shape[1]
    exact = problem.data.dtype == torch.uint8 and whole_segments(features)
    return exact and backend.blockwise is not None


def queries_timed(cost: CallCost) -> int:
    """How many queries are timed for a call."""
    return max(1, min(cost.queries, cost.queries_of_pass, MOST_QUERIES))
