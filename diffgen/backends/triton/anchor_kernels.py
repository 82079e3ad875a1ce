"""A nearest row for each query whose logits are decided by differences.

The others are measured against it: of the nearest rows the one with the lowest id.
"""

from __future__ import annotations

import triton
import triton.language as tl

from diffgen.backends.triton.arithmetic import _f64
from diffgen.backends.triton.layout import (
    ANCHOR,
    BY_DIFFERENCES,
    CONSTANT,
    EXCLUDE,
    FINITE,
    KAPPA,
    PLANES,
    ROW_SCALE,
    SIGMA_IS_ZERO,
)
from diffgen.backends.triton.product_kernels import row_ids
from diffgen.backends.triton.row_kernels import bounds_of, combined, distances, row_facts


@triton.jit
def _wanted(flags, b, batch):
    chosen = tl.load(flags + BY_DIFFERENCES * batch + b) != 0
    chosen = chosen & (tl.load(flags + SIGMA_IS_ZERO * batch + b) == 0)
    return chosen & (tl.load(flags + FINITE * batch + b) != 0)


@triton.jit(do_not_specialize=["batch", "features", "segment", "segments", "first_row"])
def nearest_in_segment(
    data,
    moved,
    planes_of,
    norms,
    log_weights,
    rows,
    begins,
    numbers,
    flags,
    candidates,
    best,
    best_ids,
    batch,
    features,
    segment,
    segments,
    first_row,
    HAS_ROWS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    """Least squared distance in a segment and the lowest id that has it: (W, B) each."""
    slots = segments.to(tl.int64) * 1024
    b = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64)
    if _wanted(flags, b, batch) == 0:
        return
    place = tl.arange(0, 1024)
    exclude = tl.load(flags + EXCLUDE * batch + b)
    ids, inside = row_ids(rows, begins, segment + at, place, HAS_ROWS)
    norm, log_weight = row_facts(ids, inside, norms, log_weights, exclude, HAS_WEIGHTS)
    counted = log_weight > float("-inf")
    planes = tl.load(flags + PLANES * batch + b)
    product = combined(
        planes_of + b * slots, at * 1024 + place, inside, planes, batch.to(tl.int64), slots
    )
    _, near, far = bounds_of(product, norm, numbers, b, batch, planes, features)
    limit = tl.min(tl.where(counted, far, float("inf")), axis=0) * _f64(1.0 + 2.0**-39)
    chosen = counted & ((near > limit) == 0)
    rank = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    tl.store(candidates + b * slots + at * 1024 + rank, place, mask=chosen)
    count = tl.sum(chosen.to(tl.int32), axis=0)
    tl.debug_barrier()
    scale = tl.load(numbers + ROW_SCALE * batch + b)
    least = _f64(float("inf"))
    least_id = tl.full((), 0, tl.int64)
    for first in range(0, count, 16):
        s = first + tl.arange(0, 16)
        valid = s < count
        chosen_place = tl.load(candidates + b * slots + at * 1024 + s, mask=valid, other=0)
        row_id, counts = row_ids(rows, begins, segment + at, chosen_place, HAS_ROWS)
        counts = counts & valid
        row = data + (row_id - first_row) * features
        square = distances(row, counts, moved + b * features, scale, features, 16)
        square = tl.where(counts, square, float("inf"))
        closest = tl.min(square, axis=0)
        lowest = tl.min(tl.where(square == closest, row_id, 0x7FFFFFFFFFFFFFFF), axis=0)
        # Candidates come in the order of their ids: of equals the first stays.
        least_id = tl.where(closest < least, lowest, least_id)
        least = tl.where(closest < least, closest, least)
    tl.store(best + at * batch + b, least)
    tl.store(best_ids + at * batch + b, least_id)


@triton.jit(do_not_specialize=["batch", "segments"])
def set_anchors(best, best_ids, least, numbers, flags, batch, segments):
    """Takes a wave's nearest rows into ``least`` (B,), and sets anchors and constants by them."""
    b = tl.program_id(0).to(tl.int64)
    if _wanted(flags, b, batch) == 0:
        return
    square = tl.load(least + b)
    anchor = tl.load(flags + ANCHOR * batch + b)
    for s in range(segments):
        its_square = tl.load(best + s * batch + b)
        its_anchor = tl.load(best_ids + s * batch + b)
        anchor = tl.where(its_square < square, its_anchor, anchor)
        square = tl.where(its_square < square, its_square, square)
    tl.store(least + b, square)
    tl.store(flags + ANCHOR * batch + b, anchor)
    kappa = tl.load(numbers + KAPPA * batch + b)
    # Nothing eligible: the constant is never read.
    tl.store(numbers + CONSTANT * batch + b, tl.where(square < float("inf"), kappa * square, 0.0))


@triton.jit(do_not_specialize=["batch", "count", "first_row"])
def take_anchors(data, anchors, flags, batch, features, count, first_row, BLOCK: tl.constexpr):
    """Copies the anchors that lie in a wave's rows to ``anchors`` (B, D)."""
    b = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(flags + ANCHOR * batch + b) - first_row
    if (_wanted(flags, b, batch) == 0) | (row < 0) | (row >= count):
        return
    stored = tl.load(data + row * features + k, mask=k < features, other=0)
    tl.store(anchors + b * features + k, stored, mask=k < features)
