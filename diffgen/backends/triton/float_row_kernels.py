"""Rows decided by float64 differences, their weights, and the state of each segment."""

from __future__ import annotations

import triton
import triton.language as tl

from diffgen.backends.triton.arithmetic import fixed_exp
from diffgen.backends.triton.float_product_kernels import rows_at, rows_of
from diffgen.backends.triton.layout import (
    ALPHA,
    BY_DIFFERENCES,
    KAPPA,
    LOGITS,
    MARGIN,
    MASS,
    NEAREST_SQUARE,
    NORMS,
    QUANTISED,
    REFERENCE,
    SEGMENT_ROWS,
    SIGMA_IS_ZERO,
    SQUARED_WEIGHTS,
    WEIGHTS,
)

_SEGMENT_ROWS = tl.constexpr(SEGMENT_ROWS)
# At sigma = 0 squared distances that close are equal.
_TIE = tl.constexpr(1.0 + 1e-12)


@triton.jit(do_not_specialize=["batch", "slots", "first_segment", "first_row"])
def decide_rows(
    data,
    log_weights,
    rows,
    begins,
    x,
    anchors,
    numbers,
    flags,
    floors,
    logits,
    batch,
    features,
    slots,
    first_segment,
    first_row,
    SUBSET: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Replaces the logits of refined queries; at sigma = 0 by the negative squared distance.

    Args:
        data: Rows of the wave, ``(n, D)``, from row ``first_row`` of the set on.
        log_weights: ``(N,)`` float64, or anything where not ``WEIGHTED``.
        rows: Eligible ids ``(M,)`` int64, or anything where not ``SUBSET``.
        begins: ``(S + 1,)`` int64.
        x: ``(B, D)`` float64.
        anchors: The values of a nearest row, ``(B, D)`` float64.
        numbers: ``(NUMBERS, B)`` float64.
        flags: ``(FLAGS, B)`` int64.
        floors: ``(B,)`` float64, logits by products under which rows do not count.
        logits: ``(B, slots)`` float64, by products; those of refined queries become relative to
            the anchor's, or -inf.
        batch: B.
        features: D.
        slots: 1,024 for each segment of the wave.
        first_segment: The wave's first segment.
        first_row: The id of the first row of ``data``.
        SUBSET: Whether ``rows`` says which rows count.
        WEIGHTED: Whether there are log weights.
        ROWS: Rows decided together; the grid is (query, segment).
        BLOCK: Features of a step.
    """
    stride = batch.to(tl.int64)
    b = tl.program_id(0).to(tl.int64)
    local = tl.program_id(1).to(tl.int64)
    if tl.load(flags + BY_DIFFERENCES * stride + b) == 0:
        return
    zero = tl.load(flags + SIGMA_IS_ZERO * stride + b) != 0
    floor = tl.load(floors + b)
    at = logits + b * slots + local * _SEGMENT_ROWS
    all_places = tl.arange(0, _SEGMENT_ROWS)
    seen = tl.load(at + all_places)
    far = (seen < floor) | (seen == -float("inf"))
    nothing = tl.full((_SEGMENT_ROWS,), -float("inf"), tl.float64)
    tl.store(at + all_places, nothing, mask=far)
    if tl.sum((~far).to(tl.int32), axis=0) == 0:
        return
    kappa = tl.load(numbers + KAPPA * stride + b)
    alpha = tl.load(numbers + ALPHA * stride + b)
    for group in range(0, rows_of(begins, first_segment + local), ROWS):
        place = group + tl.arange(0, ROWS)
        logit = tl.load(at + place)
        near = (logit >= floor) & (logit > -float("inf"))
        if tl.sum(near.to(tl.int32), axis=0) > 0:
            slot = local * _SEGMENT_ROWS + place
            ids, _ = rows_at(begins, rows, first_segment, slot, SUBSET)
            row = data + (ids - first_row)[:, None] * features
            terms = tl.zeros((ROWS, BLOCK), tl.float64)
            for begin in range(0, features, BLOCK):
                k = begin + tl.arange(0, BLOCK)
                within = k < features
                z = tl.load(row + k[None, :], mask=near[:, None] & within[None, :], other=0.0)
                z = z.to(tl.float64)
                point = tl.load(x + b * features + k, mask=within, other=0.0)[None, :]
                anchor = tl.load(anchors + b * features + k, mask=within, other=0.0)[None, :]
                gap = tl.where(zero, point - alpha * z, alpha * (anchor - z))
                across = tl.where(zero, gap, 2.0 * point - alpha * (anchor + z))
                terms += tl.where(within[None, :], gap * across, 0.0)
            excess = tl.sum(terms, axis=1)
            logit = -kappa * excess
            if WEIGHTED:
                log_weight = tl.load(log_weights + ids, mask=near, other=0.0)
                logit += tl.where(zero, 0.0, log_weight)
            tl.store(at + place, logit, mask=near)


@triton.jit(do_not_specialize=["batch", "slots", "segments", "first_segment"])
def weigh_rows(
    norms,
    log_weights,
    rows,
    begins,
    numbers,
    flags,
    logits,
    parts,
    batch,
    slots,
    segments,
    first_segment,
    SUBSET: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """Logits of a segment into weights relative to its best row, and their sums.

    Args:
        norms: ``(N,)`` float64, of the set.
        log_weights: ``(N,)`` float64, or anything where not ``WEIGHTED``.
        rows: Eligible ids ``(M,)`` int64, or anything where not ``SUBSET``.
        begins: ``(S + 1,)`` int64.
        numbers: ``(NUMBERS, B)`` float64.
        flags: ``(FLAGS, B)`` int64.
        logits: ``(B, slots)`` float64; become the weights, 0 where a row is dropped.
        parts: ``(8, W, B)`` float64, output: states of the segments.
        batch: B.
        slots: 1,024 for each segment of the wave.
        segments: W.
        first_segment: The wave's first segment.
        SUBSET: Whether ``rows`` says which rows count.
        WEIGHTED: Whether there are log weights.
    """
    stride = batch.to(tl.int64)
    plane = stride * segments
    b = tl.program_id(0).to(tl.int64)
    local = tl.program_id(1).to(tl.int64)
    zero = tl.load(flags + SIGMA_IS_ZERO * stride + b) != 0
    margin = tl.load(numbers + MARGIN * stride + b)
    slot = local * _SEGMENT_ROWS + tl.arange(0, _SEGMENT_ROWS)
    at = logits + b * slots + slot
    logit = tl.load(at)
    best = tl.max(logit, axis=0)
    empty = best == -float("inf")
    lowest = tl.where(zero, best * tl.full((), _TIE, tl.float64), best - margin)
    kept = (logit >= lowest) & (logit > -float("inf"))
    ids, valid = rows_at(begins, rows, first_segment, slot, SUBSET)
    if WEIGHTED:
        log_weight = tl.load(log_weights + ids, mask=valid & kept & zero, other=0.0)
        logit = tl.where(zero & kept, log_weight, logit)
    else:
        logit = tl.where(zero & kept, 0.0, logit)
    nearest = tl.where(zero & ~empty, -best, float("inf"))
    reference = tl.max(tl.where(kept, logit, -float("inf")), axis=0)
    depth = tl.where(kept, logit - reference, 0.0)
    weight = tl.where(kept, fixed_exp(depth), 0.0)
    norm = tl.load(norms + ids, mask=valid & kept, other=0.0)
    # Every value depends on all logits of the segment: none is overwritten before it was read.
    tl.store(at, weight)
    mass = tl.sum(weight, axis=0)
    part = parts + local * stride + b
    tl.store(part + REFERENCE * plane, reference)
    tl.store(part + NEAREST_SQUARE * plane, nearest)
    tl.store(part + QUANTISED * plane, mass)
    tl.store(part + MASS * plane, mass)
    tl.store(part + WEIGHTS * plane, mass)
    tl.store(part + SQUARED_WEIGHTS * plane, tl.sum(weight * weight, axis=0))
    tl.store(part + LOGITS * plane, tl.sum(weight * depth, axis=0))
    tl.store(part + NORMS * plane, tl.sum(weight * norm, axis=0))


@triton.jit
def weighted_rows(
    weights,
    counts,
    segment,
    group,
    count,
    data,
    rows,
    begins,
    first_segment,
    first_row,
    k,
    features,
    SUBSET: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Weights, (queries, rows), of some rows of a segment, and the rows that have any."""
    place = group + tl.arange(0, ROWS)
    slot = segment * _SEGMENT_ROWS + place
    there = counts[:, None] & (place < count)[None, :]
    weight = tl.load(weights + slot[None, :], mask=there, other=0.0)
    matters = tl.max(weight, axis=0) > 0.0
    position = tl.load(begins + first_segment + segment) + place
    if SUBSET:
        position = tl.load(rows + position, mask=matters, other=0)
    row = data + (position - first_row)[:, None] * features + k[None, :]
    return weight, tl.load(row, mask=matters[:, None] & (k < features)[None, :], other=0)


@triton.jit(do_not_specialize=["batch", "slots", "segments", "first", "first_segment", "first_row"])
def sum_rows(
    data,
    rows,
    begins,
    weights,
    factors,
    means,
    batch,
    features,
    slots,
    segments,
    first,
    first_segment,
    first_row,
    SUBSET: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of weighted rows over segments, in float64.

    Args:
        data: Rows of the wave, ``(n, D)``, from row ``first_row`` of the set on.
        rows: Eligible ids ``(M,)`` int64, or anything where not ``SUBSET``.
        begins: ``(S + 1,)`` int64.
        weights: ``(B, slots)`` float64.
        factors: ``(2, C, B)`` float64 of the C segments summed here.
        means: ``(B, C, D)`` float64, output; left as it is where the second factor is 0.
        batch: B.
        features: D.
        slots: 1,024 for each segment of the wave.
        segments: C.
        first: The first of the C segments, counted from the wave's.
        first_segment: The wave's first segment.
        first_row: The id of the first row of ``data``.
        SUBSET: Whether ``rows`` says which rows count.
        ROWS: Rows of a step.
        QUERIES: Queries of a tile; the grid is (tile of queries, block of features, segment).
        BLOCK: Features of a tile.
    """
    stride = batch.to(tl.int64)
    b = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    k = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    local = tl.program_id(2).to(tl.int64)
    fresh = tl.load(factors + stride * segments + local * stride + b, mask=b < batch, other=0.0)
    counts = fresh != 0.0
    if tl.sum(counts.to(tl.int32), axis=0) == 0:
        return
    total = tl.zeros((QUERIES, BLOCK), tl.float64)
    here = weights + b[:, None] * slots
    segment = first + local
    count = rows_of(begins, first_segment + segment)
    # A step ahead, as in multiply_rows.
    weight, z = weighted_rows(
        here, counts, segment, 0, count, data, rows, begins, first_segment, first_row, k, features,
        SUBSET, ROWS,
    )  # fmt: skip
    for group in range(0, count, ROWS):
        next_weight, next_z = weighted_rows(
            here, counts, segment, group + ROWS, count, data, rows, begins, first_segment,
            first_row, k, features, SUBSET, ROWS,
        )  # fmt: skip
        if tl.max(tl.max(weight, axis=1), axis=0) > 0.0:
            total = tl.dot(weight, z.to(tl.float64), total, out_dtype=tl.float64)
        weight = next_weight
        z = next_z
    at = means + (b[:, None] * segments + local) * features + k[None, :]
    tl.store(at, total, mask=counts[:, None] & (k < features)[None, :])
