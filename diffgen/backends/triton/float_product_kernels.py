"""Logits of floating-point rows by products: a screen on tensor cores, then float64.

The bounds are those of ``float_queries``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from diffgen.backends.triton.layout import (
    ALPHA,
    EXCLUDE,
    FACTOR,
    KAPPA,
    LEVEL,
    SEGMENT_ROWS,
    SIGMA_IS_ZERO,
    SLOPE,
)

_SEGMENT_ROWS = tl.constexpr(SEGMENT_ROWS)
# Products from here on may have left the range of float32 on the way.
_LARGEST = tl.constexpr(1e37)


@triton.jit
def tile_at(batch, ROWS: tl.constexpr, QUERIES: tl.constexpr):
    """The tile of rows, its slots and the queries of a program.

    Programs that follow each other share rows, so that these are read from memory once.
    """
    across = tl.cdiv(batch, QUERIES)
    tile = (tl.program_id(0) // across).to(tl.int64)
    b = (tl.program_id(0) % across).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    return tile, tile * ROWS + tl.arange(0, ROWS), b


@triton.jit
def rows_at(begins, rows, first_segment, slot, SUBSET: tl.constexpr):
    """Ids of the rows at slots of a wave, all of one segment, and whether there are any there."""
    segment = first_segment + tl.min(slot, axis=0) // _SEGMENT_ROWS
    position = tl.load(begins + segment) + slot % _SEGMENT_ROWS
    valid = position < tl.load(begins + segment + 1)
    if SUBSET:
        return tl.load(rows + position, mask=valid, other=0), valid
    return tl.where(valid, position, 0), valid


@triton.jit
def rows_of(begins, segment):
    """How many eligible rows a segment has."""
    return tl.load(begins + segment + 1) - tl.load(begins + segment)


@triton.jit
def eligible(log_weights, flags, ids, valid, b, inside, batch, WEIGHTED: tl.constexpr):
    """Which rows count for which queries, (rows, queries), and the log weights, (rows,)."""
    exclude = tl.load(flags + EXCLUDE * batch + b, mask=inside, other=-1)
    counts = valid[:, None] & inside[None, :] & (ids[:, None] != exclude[None, :])
    log_weight = tl.zeros(ids.shape, tl.float64)
    if WEIGHTED:
        log_weight = tl.load(log_weights + ids, mask=valid, other=-float("inf"))
        counts = counts & (log_weight[:, None] > -float("inf"))
    return counts, log_weight


@triton.jit
def assembled(product, factor, norm, log_weight, numbers, flags, b, inside, batch):
    """Logits less kappa |x|^2 of products, (rows, queries); at sigma = 0 without the weights."""
    kappa = tl.load(numbers + KAPPA * batch + b, mask=inside, other=0.0)
    alpha = tl.load(numbers + ALPHA * batch + b, mask=inside, other=0.0)
    zero = tl.load(flags + SIGMA_IS_ZERO * batch + b, mask=inside, other=1) != 0
    depth = (kappa * alpha * alpha)[None, :] * norm[:, None] - factor[None, :] * product
    return tl.where(zero[None, :], 0.0, log_weight[:, None]) - depth


@triton.jit(do_not_specialize=["batch", "slots", "first_segment", "first_row"])
def screen_rows(
    data,
    norms,
    log_weights,
    rows,
    begins,
    piece,
    numbers,
    flags,
    screen,
    uppers,
    lowers,
    batch,
    features,
    slots,
    first_segment,
    first_row,
    SUBSET: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Upper bounds of a wave's logits, and lower bounds of each tile's best.

    Args:
        data: Rows of the wave, ``(n, D)``, from row ``first_row`` of the set on.
        norms: ``(N,)`` float64, of the set.
        log_weights: ``(N,)`` float64, or anything where not ``WEIGHTED``.
        rows: Eligible ids ``(M,)`` int64, or anything where not ``SUBSET``.
        begins: ``(S + 1,)`` int64.
        piece: ``(B, D)``, the rows' type.
        numbers: ``(NUMBERS, B)`` float64.
        flags: ``(FLAGS, B)`` int64.
        screen: ``(SCREEN_NUMBERS, B)`` float64.
        uppers: ``(B, slots)`` float64, output; -inf where a row does not count.
        lowers: ``(slots / ROWS, B)`` float64, output.
        batch: B.
        features: D.
        slots: 1,024 for each segment of the wave.
        first_segment: The wave's first segment.
        first_row: The id of the first row of ``data``.
        SUBSET: Whether ``rows`` says which rows count.
        WEIGHTED: Whether there are log weights.
        PRECISION: Of products of float32 rows: ``"tf32"`` or ``"ieee"``.
        ROWS: Rows of a tile.
        QUERIES: Queries of a tile; the grid is the pairs of tiles.
        BLOCK: Features of a step.
    """
    stride = batch.to(tl.int64)
    tile, slot, b = tile_at(batch, ROWS, QUERIES)
    inside = b < batch
    ids, valid = rows_at(begins, rows, first_segment, slot, SUBSET)
    row = data + (ids - first_row)[:, None] * features
    total = tl.zeros((ROWS, QUERIES), tl.float32)
    # No step where the segment has no rows here.
    steps = tl.where(tl.sum(valid.to(tl.int32), axis=0) > 0, features, 0)
    for begin in range(0, steps, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        within = k < features
        z = tl.load(row + k[None, :], mask=valid[:, None] & within[None, :], other=0.0)
        p = piece + b[None, :] * features + k[:, None]
        p = tl.load(p, mask=inside[None, :] & within[:, None], other=0.0)
        total = tl.dot(z, p, total, input_precision=PRECISION)
    counts, log_weight = eligible(log_weights, flags, ids, valid, b, inside, stride, WEIGHTED)
    norm = tl.load(norms + ids, mask=valid, other=0.0)
    factor = tl.load(screen + FACTOR * stride + b, mask=inside, other=0.0)
    slope = tl.load(screen + SLOPE * stride + b, mask=inside, other=0.0)
    level = tl.load(screen + LEVEL * stride + b, mask=inside, other=0.0)
    # Not so for NaN either.
    trusted = (total > -_LARGEST) & (total < _LARGEST)
    product = tl.where(trusted, total, 0.0).to(tl.float64)
    logit = assembled(product, factor, norm, log_weight, numbers, flags, b, inside, stride)
    bound = slope[None, :] * tl.sqrt(norm)[:, None] + level[None, :]
    upper = tl.where(trusted, logit + bound, float("inf"))
    upper = tl.where(counts, upper, -float("inf"))
    lower = tl.where(counts & trusted, logit - bound, -float("inf"))
    tl.store(uppers + b[None, :] * slots + slot[:, None], upper, mask=inside[None, :])
    tl.store(lowers + tile * stride + b, tl.max(lower, 0), mask=inside)


@triton.jit(do_not_specialize=["batch", "steps", "slots", "first_segment", "first_row"])
def multiply_rows(
    data,
    norms,
    log_weights,
    rows,
    begins,
    x,
    numbers,
    flags,
    floors,
    logits,
    batch,
    features,
    steps,
    slots,
    first_segment,
    first_row,
    SCREENED: tl.constexpr,
    SUBSET: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Logits of a wave less kappa |x|^2, in float64; those of tiles that cannot count are -inf.

    Args:
        data: As those of ``screen_rows``, up to ``begins``, and from ``batch`` on.
        norms: See ``data``.
        log_weights: See ``data``.
        rows: See ``data``.
        begins: See ``data``.
        x: ``(B, D)`` float64.
        numbers: ``(NUMBERS, B)`` float64.
        flags: ``(FLAGS, B)`` int64.
        floors: ``(B,)`` float64, logits under which rows do not count; read where ``SCREENED``.
        logits: ``(B, slots)`` float64: upper bounds where ``SCREENED``, which the logits replace.
        batch: See ``data``.
        features: See ``data``.
        steps: D / BLOCK, rounded up.
        slots: See ``data``.
        first_segment: See ``data``.
        first_row: See ``data``.
        SCREENED: Whether ``logits`` holds upper bounds.
        SUBSET: See ``data``.
        WEIGHTED: See ``data``.
        ROWS: See ``data``.
        QUERIES: See ``data``.
        BLOCK: See ``data``.
    """
    stride = batch.to(tl.int64)
    _, slot, b = tile_at(batch, ROWS, QUERIES)
    inside = b < batch
    ids, valid = rows_at(begins, rows, first_segment, slot, SUBSET)
    at = logits + b[None, :] * slots + slot[:, None]
    logit = tl.full((ROWS, QUERIES), -float("inf"), tl.float64)
    wanted = tl.sum(valid.to(tl.int32), axis=0)
    if SCREENED:
        upper = tl.load(at, mask=inside[None, :], other=-float("inf"))
        floor = tl.load(floors + b, mask=inside, other=float("inf"))
        can_count = (upper >= floor[None, :]) & (upper > -float("inf"))
        wanted = tl.sum(tl.sum(can_count.to(tl.int32), axis=1), axis=0)
    if wanted > 0:
        row = data + (ids - first_row)[:, None] * features
        total = tl.zeros((ROWS, QUERIES), tl.float64)
        step = tl.arange(0, BLOCK)
        # Loaded a step ahead: Triton 3.8.0 cannot multiply in float64 what it sees loaded in 16
        # bits, and looks no further than the loop, which it unrolls if it knows of one step.
        z = tl.load(row + step[None, :], mask=valid[:, None] & (step < features)[None, :], other=0)
        for index in range(steps):
            k = index * BLOCK + step
            ahead = k + BLOCK
            within = valid[:, None] & (ahead < features)[None, :]
            next_z = tl.load(row + ahead[None, :], mask=within, other=0)
            p = x + b[None, :] * features + k[:, None]
            p = tl.load(p, mask=inside[None, :] & (k < features)[:, None], other=0.0)
            total = tl.dot(z.to(tl.float64), p, total, out_dtype=tl.float64)
            z = next_z
        counts, log_weight = eligible(log_weights, flags, ids, valid, b, inside, stride, WEIGHTED)
        norm = tl.load(norms + ids, mask=valid, other=0.0)
        kappa = tl.load(numbers + KAPPA * stride + b, mask=inside, other=0.0)
        factor = 2.0 * kappa * tl.load(numbers + ALPHA * stride + b, mask=inside, other=0.0)
        logit = assembled(total, factor, norm, log_weight, numbers, flags, b, inside, stride)
        logit = tl.where(counts, logit, -float("inf"))
    tl.store(at, logit, mask=inside[None, :])
