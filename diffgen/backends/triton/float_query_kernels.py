"""Queries against floating-point rows: their numbers, floors and anchors.

The bounds are those of ``float_queries``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from diffgen.backends.triton.arithmetic import _f64, fixed_log
from diffgen.backends.triton.layout import (
    ALPHA,
    BEST,
    BY_DIFFERENCES,
    CONSTANT,
    EXCLUDE,
    FACTOR,
    FINITE,
    KAPPA,
    LEVEL,
    LOWER,
    MARGIN,
    SEGMENT_ROWS,
    SIGMA_IS_ZERO,
    SLACK,
    SLOPE,
)
from diffgen.backends.triton.set_kernels import longest_of

_SEGMENT_ROWS = tl.constexpr(SEGMENT_ROWS)

# Rows that many nats and log N below the best are dropped.
_MARGIN = tl.constexpr(36.0)
_UNIT = tl.constexpr(2.0**-53)
# From here on sigma counts as zero: kappa times a squared distance would leave the range.
_STEEPEST = tl.constexpr(1e250)
# At sigma = 0, of (|x| + alpha R)^2: over ten times what makes squared distances equal.
_TIE_MARGIN = tl.constexpr(1e-11)
_PRODUCT_UNIT = tl.constexpr(2.0**-22)
# What a product of numbers below 1 can lose to underflow in float32, twice.
_SMALLEST = tl.constexpr(2.0**-125)
# Covers what the bounds themselves are rounded by, and the higher orders.
_SLACK = tl.constexpr(1.0 + 2.0**-10)


@triton.jit(do_not_specialize=["batch", "count", "eligible", "segments"])
def prepare_queries(
    query,
    sigma,
    alpha,
    exclude,
    lengths,
    x,
    piece,
    numbers,
    flags,
    screen,
    batch,
    features,
    count,
    eligible,
    segments,
    ALLOWED: tl.constexpr,
    PIECE_UNIT: tl.constexpr,
    HAS_ALPHA: tl.constexpr,
    HAS_EXCLUDE: tl.constexpr,
    SCORE: tl.constexpr,
    SCREENED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the kernels need of each query; one that gets no answer holds stand-ins.

    Args:
        query: ``(B, D)`` float32 or float64.
        sigma: ``(B,)`` float64.
        alpha: ``(B,)`` float64, or anything where not ``HAS_ALPHA``.
        exclude: ``(B,)`` int64, or anything where not ``HAS_EXCLUDE``.
        lengths: ``(2, S)`` float64 of ``measure_segments``.
        x: ``(B, D)`` float64, output.
        piece: ``(B, D)``, the rows' type, output; anything where not ``SCREENED``.
        numbers: ``(NUMBERS, B)`` float64, output.
        flags: ``(FLAGS, B)`` int64, output.
        screen: ``(SCREEN_NUMBERS, B)`` float64, output.
        batch: B; the grid.
        features: D.
        count: Rows of the set.
        eligible: How many of them are eligible, at least one.
        segments: S.
        ALLOWED: The error of a logit that needs no differences, in nats.
        PIECE_UNIT: What the type of the piece adds to the error of a product, relative to it.
        HAS_ALPHA: Whether there is a signal scale.
        HAS_EXCLUDE: Whether there are rows left out.
        SCORE: Whether the mean may be divided by sigma.
        SCREENED: Whether there is a piece.
        BLOCK: Features of a step.
    """
    b = tl.program_id(0).to(tl.int64)
    stride = batch.to(tl.int64)
    lane = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float64)
    largest = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, features, BLOCK):
        k = begin + lane
        value = tl.load(query + b * features + k, mask=k < features, other=0.0).to(tl.float64)
        squares += value * value
        size = tl.abs(value)
        largest = tl.where(size > largest, size, largest)
    square = tl.sum(squares, axis=0)
    noise = tl.load(sigma + b)
    scale_of = _f64(1.0)
    if HAS_ALPHA:
        scale_of = tl.load(alpha + b)
    finite = (square < float("inf")) & (noise >= 0.0)
    finite = finite & (scale_of >= 0.0) & (scale_of < float("inf"))
    left_out = tl.full((), -1, tl.int64)
    if HAS_EXCLUDE:
        given = tl.load(exclude + b)
        finite = finite & (given >= -1) & (given < count)
        left_out = tl.where(finite, given, left_out)
    square = tl.where(finite, square, 0.0)
    scale_of = tl.where(finite, scale_of, 1.0)
    noise = tl.where(finite, noise, 1.0)

    reach = tl.sqrt(square) + scale_of * tl.sqrt(longest_of(lengths, segments))
    wide = (b * 0 + features).to(tl.float64)  # features may be a constant 1
    kappa = 0.5 / (noise * noise)
    zero = (kappa < _f64(_STEEPEST)) == 0
    kappa = tl.where(zero, 1.0, kappa)
    error = kappa * ((wide + 20.0) * _f64(_UNIT) * reach * reach)
    allowed = _f64(ALLOWED)
    if SCORE:
        ratio = noise / scale_of
        allowed = allowed * tl.where(ratio > 1.0, 1.0, ratio)
    margin = fixed_log(eligible.to(tl.float64)) + _f64(_MARGIN)
    margin = tl.where(zero, _f64(_TIE_MARGIN) * reach * reach, margin)
    by_differences = zero | (error > allowed)
    tl.store(numbers + KAPPA * stride + b, kappa)
    tl.store(numbers + CONSTANT * stride + b, tl.where(zero, 0.0, kappa * square))
    tl.store(numbers + MARGIN * stride + b, margin)
    tl.store(numbers + ALPHA * stride + b, scale_of)
    tl.store(flags + FINITE * stride + b, finite.to(tl.int64))
    tl.store(flags + SIGMA_IS_ZERO * stride + b, zero.to(tl.int64))
    tl.store(flags + BY_DIFFERENCES * stride + b, by_differences.to(tl.int64))
    tl.store(flags + EXCLUDE * stride + b, left_out)
    tl.store(screen + SLACK * stride + b, 2.0 * error)
    tl.store(screen + LOWER * stride + b, _f64(-float("inf")))
    tl.store(screen + BEST * stride + b, _f64(-float("inf")))

    top = tl.max(largest, axis=0)
    scale = tl.where(finite & (top > 0.0), top, 1.0)
    losses = tl.zeros((BLOCK,), tl.float64)
    kept = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, features, BLOCK):
        k = begin + lane
        value = tl.load(query + b * features + k, mask=k < features, other=0.0).to(tl.float64)
        value = tl.where(finite, value, 0.0)
        tl.store(x + b * features + k, value, mask=k < features)
        if SCREENED:
            # By way of float32, which every device rounds to the types of 16 bits.
            part = (value / scale).to(tl.float32).to(piece.dtype.element_ty)
            tl.store(piece + b * features + k, part, mask=k < features)
            meant = part.to(tl.float32).to(tl.float64) * scale
            losses += (value - meant) * (value - meant)
            kept += meant * meant
    if SCREENED:
        unit = wide * _f64(_PRODUCT_UNIT) + _f64(PIECE_UNIT)
        lost = tl.sqrt(tl.sum(losses, axis=0)) + unit * tl.sqrt(tl.sum(kept, axis=0))
        steepness = 2.0 * kappa * scale_of
        level = error + steepness * scale * (wide * _f64(_SMALLEST))
        tl.store(screen + FACTOR * stride + b, steepness * scale)
        tl.store(screen + SLOPE * stride + b, _f64(_SLACK) * steepness * lost)
        tl.store(screen + LEVEL * stride + b, level)


@triton.jit(do_not_specialize=["batch", "tiles"])
def raise_floors(
    lowers, numbers, screen, floors, batch, tiles, TILES: tl.constexpr, LANES: tl.constexpr
):
    """Takes a wave's lower bounds into the best ones, and sets the floors that follow.

    Args:
        lowers: ``(T, B)`` float64 of ``screen_rows``.
        numbers: ``(NUMBERS, B)`` float64.
        screen: ``(SCREEN_NUMBERS, B)`` float64, of which ``LOWER`` is raised.
        floors: ``(B,)`` float64, output: logits under which rows do not count.
        batch: B.
        tiles: T.
        TILES: Tiles of a step.
        LANES: Queries of a program.
    """
    b = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = b < batch
    stride = batch.to(tl.int64)
    so_far = tl.load(screen + LOWER * stride + b, mask=inside, other=0.0)
    margin = tl.load(numbers + MARGIN * stride + b, mask=inside, other=0.0)
    found = tl.full((TILES, LANES), -float("inf"), tl.float64)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES).to(tl.int64)
        there = (tile < tiles)[:, None] & inside[None, :]
        at = lowers + tile[:, None] * stride + b[None, :]
        lower = tl.load(at, mask=there, other=-float("inf"))
        found = tl.where(lower > found, lower, found)
    best = tl.max(found, axis=0)
    best = tl.where(best > so_far, best, so_far)
    tl.store(screen + LOWER * stride + b, best, mask=inside)
    tl.store(floors + b, best - margin, mask=inside)


@triton.jit(do_not_specialize=["batch", "slots", "segments"])
def best_of_segments(logits, tops, places, batch, slots, segments):
    """The best logit of each segment of a wave, and the first place that has it.

    Args:
        logits: ``(B, slots)`` float64.
        tops: ``(B, W)`` float64, output.
        places: ``(B, W)`` int64, output.
        batch: B; the grid is (query, segment).
        slots: 1,024 for each segment.
        segments: W.
    """
    b = tl.program_id(0).to(tl.int64)
    local = tl.program_id(1).to(tl.int64)
    place = tl.arange(0, _SEGMENT_ROWS)
    logit = tl.load(logits + b * slots + local * _SEGMENT_ROWS + place)
    top = tl.max(logit, axis=0)
    first = tl.min(tl.where(logit == top, place, _SEGMENT_ROWS - 1), axis=0)
    tl.store(tops + b * segments + local, top)
    tl.store(places + b * segments + local, first.to(tl.int64))


@triton.jit(do_not_specialize=["batch", "segments", "first_segment", "first_row"])
def choose_anchors(
    data,
    rows,
    begins,
    x,
    tops,
    places,
    numbers,
    flags,
    screen,
    anchors,
    floors,
    batch,
    features,
    segments,
    first_segment,
    first_row,
    SUBSET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The best logit by products so far, the values of that row, and what refers to them.

    Args:
        data: Rows of the wave, ``(n, D)``, from row ``first_row`` of the set on.
        rows: Eligible ids ``(M,)`` int64, or anything where not ``SUBSET``.
        begins: ``(S + 1,)`` int64.
        x: ``(B, D)`` float64.
        tops: ``(B, W)`` float64 of ``best_of_segments``.
        places: ``(B, W)`` int64, likewise.
        numbers: ``(NUMBERS, B)`` float64, of which a refined query's ``CONSTANT`` becomes that of
            the anchor.
        flags: ``(FLAGS, B)`` int64.
        screen: ``(SCREEN_NUMBERS, B)`` float64, of which ``BEST`` is raised.
        anchors: ``(B, D)`` float64: written where the wave has a better row than those before.
        floors: ``(B,)`` float64, output: logits by products under which rows do not count.
        batch: B; the grid.
        features: D.
        segments: W.
        first_segment: The wave's first segment.
        first_row: The id of the first row of ``data``.
        SUBSET: Whether ``rows`` says which rows count.
        BLOCK: Features of a step.
    """
    b = tl.program_id(0).to(tl.int64)
    stride = batch.to(tl.int64)
    before = tl.load(screen + BEST * stride + b)
    best = before
    segment = b * 0
    lane = tl.arange(0, 128).to(tl.int64)
    for first in range(0, segments, 128):
        s = first + lane
        top = tl.load(tops + b * segments + s, mask=s < segments, other=-float("inf"))
        highest = tl.max(top, axis=0)
        where = tl.min(tl.where(top == highest, s, first + 127), axis=0)
        segment = tl.where(highest > best, where, segment)
        best = tl.where(highest > best, highest, best)
    better = tl.where(best > before, 1, 0) > 0
    # Of equal logits the first row stays; where none is better, none is read.
    place = tl.load(places + b * segments + segment)
    row = tl.load(begins + first_segment + segment) + place
    if SUBSET:
        row = tl.load(rows + row, mask=better, other=0)
    row = data + (row - first_row) * features
    known = ~better & (before > -float("inf"))
    alpha = tl.load(numbers + ALPHA * stride + b)
    terms = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, features, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        within = k < features
        here = b * features + k
        fresh = tl.load(row + k, mask=within & better, other=0.0).to(tl.float64)
        old = tl.load(anchors + here, mask=within & known, other=0.0)
        anchor = tl.where(better, fresh, old)
        gap = tl.load(x + here, mask=within, other=0.0) - alpha * anchor
        terms += gap * gap
        tl.store(anchors + here, anchor, mask=within & better)
    kappa = tl.load(numbers + KAPPA * stride + b)
    zero = tl.load(flags + SIGMA_IS_ZERO * stride + b) != 0
    refined = tl.load(flags + BY_DIFFERENCES * stride + b) != 0
    apart = tl.where(zero, 0.0, kappa * tl.sum(terms, axis=0))
    tl.store(numbers + CONSTANT * stride + b, apart, mask=refined)
    tl.store(screen + BEST * stride + b, best)
    margin = tl.load(numbers + MARGIN * stride + b)
    slack = tl.load(screen + SLACK * stride + b)
    tl.store(floors + b, best - (margin + slack))
