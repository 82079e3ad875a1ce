"""What the segments of a set's eligible rows are: where they begin, how long their rows are."""

from __future__ import annotations

import triton
import triton.language as tl

from diffgen.backends.triton.layout import SEGMENT_ROWS

_SEGMENT_ROWS = tl.constexpr(SEGMENT_ROWS)


@triton.jit
def _rows_below(rows, eligible, row_id, steps):
    """How many of the ascending ids are less than one."""
    low = row_id * 0
    high = low + eligible
    for _ in range(steps):
        middle = (low + high) // 2
        less = tl.load(rows + tl.minimum(middle, eligible - 1)) < row_id
        open_ = low < high
        low = tl.where(open_ & less, middle + 1, low)
        high = tl.where(open_ & ~less, middle, high)
    return low


@triton.jit(do_not_specialize=["count", "eligible", "segments", "steps"])
def measure_segments(
    norms,
    rows,
    begins,
    lengths,
    count,
    eligible,
    segments,
    steps,
    SUBSET: tl.constexpr,
):
    """Begins of the segments, and the largest and the sum of each one's squared lengths.

    Args:
        norms: ``(N,)`` float64, of the set.
        rows: Eligible ids ``(M,)`` int64, ascending, or anything where not ``SUBSET``.
        begins: ``(S + 1,)`` int64, output.
        lengths: ``(2, S)`` float64, output: 0 where a segment has no row.
        count: N.
        eligible: M.
        segments: S; the grid.
        steps: Halvings that leave one of M + 1 places; read where ``SUBSET``.
        SUBSET: Whether ``rows`` says which rows count.
    """
    s = tl.program_id(0).to(tl.int64)
    first = s * _SEGMENT_ROWS
    begin = first
    end = tl.minimum(first + _SEGMENT_ROWS, count)
    if SUBSET:
        begin = _rows_below(rows, eligible, first, steps)
        end = _rows_below(rows, eligible, first + _SEGMENT_ROWS, steps)
    tl.store(begins + s, begin)
    if s == segments - 1:
        tl.store(begins + segments, end)
    ids = begin + tl.arange(0, _SEGMENT_ROWS)
    valid = ids < end
    if SUBSET:
        ids = tl.load(rows + ids, mask=valid, other=0)
    norm = tl.load(norms + ids, mask=valid, other=0.0)
    tl.store(lengths + s, tl.max(norm, axis=0))
    tl.store(lengths + segments + s, tl.sum(norm, axis=0))


@triton.jit
def longest_of(lengths, segments):
    """The largest squared length of all segments."""
    lane = tl.arange(0, 128)
    longest = tl.zeros((128,), tl.float64)
    for first in range(0, segments, 128):
        s = first + lane
        norm = tl.load(lengths + s, mask=s < segments, other=0.0)
        longest = tl.where(norm > longest, norm, longest)
    return tl.max(longest, axis=0)


@triton.jit
def mean_of(lengths, segments, eligible):
    """The mean squared length of the eligible rows; 0 where there is none."""
    lane = tl.arange(0, 128)
    total = tl.zeros((128,), tl.float64)
    for first in range(0, segments, 128):
        s = first + lane
        total += tl.load(lengths + segments + s, mask=s < segments, other=0.0)
    rows = eligible.to(tl.float64)
    return tl.sum(total, axis=0) / tl.where(rows < 1.0, 1.0, rows)
