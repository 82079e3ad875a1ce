"""The rows of a set, wave by wave, on the device of the queries.

A wave is some consecutive segments. Rows that lie on the device are handed out as views; rows in
host memory are copied into two buffers in turn, the next wave's while kernels read this one's.
What is computed from a wave does not depend on where its rows came from, nor on how many segments
make a wave: segments are merged from left to right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffgen.backends.problem import Problem
from diffgen.backends.triton.lanes import CopyLane, copy_lane
from diffgen.backends.triton.layout import SEGMENT_ROWS

STAGE_BYTES = 2**28
"""The most that one buffer of rows from host memory takes, if it holds more than one segment."""


@dataclass(frozen=True, slots=True)
class Wave:
    """Consecutive segments and the stored rows of their ids.

    Attributes:
        first: The first segment.
        segments: Their number, at least 1.
        data: Rows ``first_row`` to ``first_row + len(data)`` of the set, ``(n, D)``, contiguous,
            on the device. To be read before the next wave is asked for.
    """

    first: int
    segments: int
    data: Tensor

    @property
    def first_row(self) -> int:
        """The id of the first row of ``data``."""
        return self.first * SEGMENT_ROWS


def on_device(problem: Problem) -> Problem:
    """The problem with all but its rows where its queries are: 8 or 16 bytes a row are copied."""
    device = problem.query.device
    parts = (problem.norms, problem.log_weights, problem.rows)
    if all(part is None or part.device == device for part in parts):
        return problem

    def moved(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.to(device, non_blocking=True)

    norms = problem.norms.to(device, non_blocking=True)
    return replace(
        problem, norms=norms, log_weights=moved(problem.log_weights), rows=moved(problem.rows)
    )


def segments_of(problem: Problem) -> int:
    """How many segments the ids of a set make."""
    return -(-problem.data.shape[0] // SEGMENT_ROWS)


def begins_of(problem: Problem) -> Tensor:
    """Where each segment begins among the eligible rows, ``(S + 1,)`` int64, beside ``rows``."""
    count, segments = problem.data.shape[0], segments_of(problem)
    device = problem.query.device if problem.rows is None else problem.rows.device
    ids = torch.arange(segments + 1, dtype=torch.int64, device=device) * SEGMENT_ROWS
    return ids.clamp_(max=count) if problem.rows is None else torch.searchsorted(problem.rows, ids)


def segments_at_once(bytes_each: int, scratch: int, segments: int) -> int:
    """How many segments a wave takes: at least one, and all if their scratch fits.

    Args:
        bytes_each: Scratch of one segment.
        scratch: Scratch there is.
        segments: Segments of the set.
    """
    return max(1, min(segments, scratch // max(1, bytes_each)))


class Blocks:
    """The waves of one call; each pass over the rows is one ``waves``."""

    def __init__(self, problem: Problem, lane: CopyLane | None = None) -> None:
        """Takes the rows of a problem.

        Args:
            problem: ``data`` on the device of ``query``, or in host memory, best pinned.
            lane: What copies rows from host memory; None for the usual one, which copies nothing
                where the rows are on the device.
        """
        self.data = problem.data
        self.segments = segments_of(problem)
        resident = problem.data.device == problem.query.device
        self.lane = copy_lane(problem.query.device) if lane is None and not resident else lane

    def waves(self, segments: int) -> Iterator[Wave]:
        """All segments in order, so many at a time, or fewer if their rows are copied.

        Args:
            segments: The most that a wave may have, at least 1.
        """
        lane = self.lane
        if lane is None:
            for first in range(0, self.segments, segments):
                count = min(segments, self.segments - first)
                yield Wave(first, count, self._rows(first, count))
            return
        row_bytes = self.data.shape[1] * self.data.element_size()
        fitting = segments_at_once(SEGMENT_ROWS * row_bytes, STAGE_BYTES, self.segments)
        step = min(segments, fitting)
        starts = range(0, self.segments, step)
        rows = min(step * SEGMENT_ROWS, self.data.shape[0])
        lane.open((rows, self.data.shape[1]), self.data.dtype, min(2, len(starts)))
        for turn, first in enumerate(starts):
            if turn == 0:
                lane.fetch(0, self._rows(0, step))
            if turn + 1 < len(starts):
                lane.fetch((turn + 1) % 2, self._rows(starts[turn + 1], step))
            count = min(step, self.segments - first)
            yield Wave(first, count, lane.take(turn % 2))
            lane.release(turn % 2)

    def _rows(self, first: int, count: int) -> Tensor:
        return self.data[first * SEGMENT_ROWS : (first + count) * SEGMENT_ROWS]
