"""Queries of the 8-bit engine: fixed point, the digits that decide, and what may be dropped.

Operation by operation ``csrc/u8/query_rules.h``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from diffgen.backends.triton.arithmetic import _f64, fixed_log, fixed_round, sum_lanes
from diffgen.backends.triton.layout import (
    ALPHA,
    ANCHOR,
    BY_DIFFERENCES,
    CONSTANT,
    CUT,
    DIGITS,
    EXCLUDE,
    FINITE,
    KAPPA,
    LOST,
    MARGIN,
    NORM_FACTOR,
    PLANES,
    PRODUCT_FACTOR,
    REACH,
    ROW_SCALE,
    SIGMA_IS_ZERO,
    SQUARE,
    SQUARES,
    STEP,
    TOLERANCE,
)
from diffgen.backends.triton.set_kernels import longest_of, mean_of

# Sums that a query's split leaves for each chain of features: |x|^2, then for each number of digits
# what they lose, then what they stand for.
SPLIT_SUMS = 11


@triton.jit
def move(
    query,
    alpha,
    moved,
    units,
    features,
    ORIGIN: tl.constexpr,
    HAS_ALPHA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Queries less alpha times the origin, (B, D), and the units of its fixed point in 1, (B,)."""
    b = tl.program_id(0).to(tl.int64)
    shift = _f64(ORIGIN)
    if HAS_ALPHA:
        shift = tl.load(alpha + b) * shift
    largest = tl.full((BLOCK,), 0.0, tl.float64)
    for begin in range(0, features, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        x = tl.load(query + b * features + k, mask=k < features, other=0.0).to(tl.float64) - shift
        x = tl.where(k < features, x, 0.0)
        tl.store(moved + b * features + k, x, mask=k < features)
        size = tl.abs(x)
        largest = tl.where(size > largest, size, largest)
    top = tl.max(largest, axis=0)
    unit = tl.where(top > _f64(1e-250), _f64(127.0 * 2.0**32) / top, _f64(1.0))
    tl.store(units + b, unit)


@triton.jit(do_not_specialize=["batch"])
def split(moved, units, digits, sums, batch, features, padded):
    """Digits of a chain of 512 features, (5, B, padded), and their sums, eight lanes each."""
    b = tl.program_id(0).to(tl.int64)
    chain = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, 8)
    unit = tl.load(units + b)
    step = 1.0 / unit
    none = tl.zeros((8,), tl.float64)
    lost0, lost1, lost2, lost3, lost4 = none, none, none, none, none
    square0, square1, square2, square3, square4 = none, none, none, none, none
    square = none
    plane = batch.to(tl.int64) * padded
    out = digits + b * padded
    for at in range(64):
        k = chain * 512 + at * 8 + lane
        x = tl.load(moved + b * features + k, mask=k < features, other=0.0)
        square += x * x
        z = fixed_round(x * unit)
        lost4, square4 = _leave(x, z, step, lost4, square4)
        d4 = z.to(tl.int8)
        z = (z - d4) >> 8
        lost3, square3 = _leave(x, z, step * 256.0, lost3, square3)
        d3 = z.to(tl.int8)
        z = (z - d3) >> 8
        lost2, square2 = _leave(x, z, step * 65536.0, lost2, square2)
        d2 = z.to(tl.int8)
        z = (z - d2) >> 8
        lost1, square1 = _leave(x, z, step * 16777216.0, lost1, square1)
        d1 = z.to(tl.int8)
        z = (z - d1) >> 8
        lost0, square0 = _leave(x, z, step * 4294967296.0, lost0, square0)
        d0 = z.to(tl.int8)
        inside = k < padded
        tl.store(out + k, d0, mask=inside)
        tl.store(out + plane + k, d1, mask=inside)
        tl.store(out + 2 * plane + k, d2, mask=inside)
        tl.store(out + 3 * plane + k, d3, mask=inside)
        tl.store(out + 4 * plane + k, d4, mask=inside)
    to = sums + chain * 11 * batch + b
    tl.store(to, _total(square))
    tl.store(to + batch, _total(lost0))
    tl.store(to + 2 * batch, _total(lost1))
    tl.store(to + 3 * batch, _total(lost2))
    tl.store(to + 4 * batch, _total(lost3))
    tl.store(to + 5 * batch, _total(lost4))
    tl.store(to + 6 * batch, _total(square0))
    tl.store(to + 7 * batch, _total(square1))
    tl.store(to + 8 * batch, _total(square2))
    tl.store(to + 9 * batch, _total(square3))
    tl.store(to + 10 * batch, _total(square4))


@triton.jit
def _leave(x, z, power, lost, square):
    """What some digits leave out of x, and what they stand for, added to their sums."""
    kept = z.to(tl.float64) * power
    gap = x - kept
    return lost + gap * gap, square + kept * kept


@triton.jit
def _total(lanes):
    return tl.sum(sum_lanes(tl.reshape(lanes, (1, 8)), 1), axis=0)


@triton.jit(
    do_not_specialize=[
        "batch",
        "chains",
        "features",
        "count",
        "eligible",
        "segments",
        "most_digits",
    ]
)
def decide(
    numbers,
    flags,
    sums,
    units,
    sigma,
    alpha,
    exclude,
    lengths,
    closest,
    batch,
    chains,
    features,
    count,
    eligible,
    segments,
    most_digits,
    ORIGIN: tl.constexpr,
    SCALE: tl.constexpr,
    HAS_ALPHA: tl.constexpr,
    HAS_EXCLUDE: tl.constexpr,
    FUNCTIONALS: tl.constexpr,
    SCORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All numbers and flags of the queries, their anchors being no row yet, ``closest`` infinite.

    ``lengths``, (2, S), holds each segment's largest and summed squared lengths of eligible rows.
    """
    b = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = b < batch
    square = _chain_sum(sums, b, 0, batch, chains, here)
    noise = tl.load(sigma + b, mask=here, other=1.0)
    scale_of = tl.full((BLOCK,), 1.0, tl.float64)
    if HAS_ALPHA:
        scale_of = tl.load(alpha + b, mask=here, other=1.0)
    left_out = tl.full((BLOCK,), -1, tl.int64)
    if HAS_EXCLUDE:
        left_out = tl.load(exclude + b, mask=here, other=-1)
    longest = tl.sqrt(longest_of(lengths, segments))
    reach = tl.sqrt(square) + scale_of * longest
    shift = scale_of * _f64(ORIGIN)
    wide = features.to(tl.float64)
    moved = tl.abs(shift) * tl.sqrt(wide)
    row_scale = scale_of * _f64(SCALE)
    kappa = 0.5 / (noise * noise)
    zero = (noise >= 0.0) & ((kappa < _f64(1e250)) == 0)
    kappa = tl.where(zero, 1.0, kappa)
    finite = (square < float("inf")) & (noise >= 0.0) & (scale_of >= 0.0)
    finite = finite & (scale_of < float("inf")) & (left_out >= -1) & (left_out < count)
    strictness = tl.full((BLOCK,), 1.0, tl.float64)
    if SCORE:
        ratio = noise / scale_of
        strictness = tl.where(ratio > 1.0, 1.0, ratio)
    cut = _f64(33.0) if FUNCTIONALS or SCORE else _f64(22.5)
    base = _f64(17.0)
    tolerance = _f64(2e-6) * strictness
    if FUNCTIONALS:
        base = _f64(24.0)
        tolerance = tolerance * 0.0
    rows = eligible.to(tl.float64)
    least = tl.where(strictness < _f64(1e-6), _f64(1e-6), strictness)
    margin = base + fixed_log(tl.where(rows < 1.0, 1.0, rows)) - fixed_log(least)
    slope = 2.0 * kappa * scale_of * longest
    allowed = _f64(7e-6) * strictness
    unit = tl.load(units + b, mask=here, other=1.0)
    digits = tl.full((BLOCK,), 3, tl.int64)
    typical = scale_of * tl.sqrt(mean_of(lengths, segments, eligible))
    distance = tl.sqrt(square + typical * typical)
    planes = tl.full((BLOCK,), 5, tl.int64)
    deciding_step = unit
    kept = tl.full((BLOCK,), 1, tl.int1)
    size = 1.0 / unit
    for p in tl.static_range(4, -1, -1):  # so that the fewest digits have the last word
        lost = _chain_sum(sums, b, 1 + p, batch, chains, here)
        lost = _f64(1.0 + 2.0**-20) * tl.sqrt(lost) + _f64(2.0**-50) * (reach + moved)
        tl.store(numbers + (STEP + p) * batch + b, size, mask=here)
        tl.store(numbers + (LOST + p) * batch + b, lost, mask=here)
        squares = _chain_sum(sums, b, 6 + p, batch, chains, here)
        tl.store(numbers + (SQUARES + p) * batch + b, squares, mask=here)
        fits = slope * lost <= allowed
        if p >= 2:
            # The rule: the first of 3, 4, ... digits whose bound fits, else as many as there are.
            chosen = ((p + 1 == most_digits) | fits) & (p + 1 <= most_digits)
            digits = tl.where(chosen, p + 1, digits)
            kept = tl.where(chosen, fits, kept)
            deciding_step = tl.where(chosen, size, deciding_step)
        planes = tl.where(4.0 * kappa * distance * lost < 10.0, p + 1, planes)
        size = size * 256.0
    by_differences = zero | (kept == 0)
    planes = tl.where(planes < digits, planes, digits)
    planes = tl.where(zero, 1, planes)
    tl.store(numbers + KAPPA * batch + b, kappa, mask=here)
    constant = tl.where(by_differences, 0.0, kappa * square)
    tl.store(numbers + CONSTANT * batch + b, constant, mask=here)
    tl.store(numbers + MARGIN * batch + b, margin, mask=here)
    tl.store(numbers + CUT * batch + b, tl.zeros((BLOCK,), tl.float64) + cut, mask=here)
    tl.store(numbers + TOLERANCE * batch + b, tolerance, mask=here)
    tl.store(numbers + NORM_FACTOR * batch + b, kappa * (scale_of * scale_of), mask=here)
    product_factor = 2.0 * kappa * row_scale * deciding_step
    tl.store(numbers + PRODUCT_FACTOR * batch + b, product_factor, mask=here)
    tl.store(numbers + ALPHA * batch + b, scale_of, mask=here)
    tl.store(numbers + ROW_SCALE * batch + b, row_scale, mask=here)
    tl.store(numbers + SQUARE * batch + b, square, mask=here)
    tl.store(numbers + REACH * batch + b, reach, mask=here)
    tl.store(flags + FINITE * batch + b, finite.to(tl.int64), mask=here)
    tl.store(flags + SIGMA_IS_ZERO * batch + b, zero.to(tl.int64), mask=here)
    tl.store(flags + BY_DIFFERENCES * batch + b, by_differences.to(tl.int64), mask=here)
    tl.store(flags + EXCLUDE * batch + b, left_out, mask=here)
    tl.store(flags + DIGITS * batch + b, digits, mask=here)
    tl.store(flags + PLANES * batch + b, planes, mask=here)
    tl.store(flags + ANCHOR * batch + b, tl.zeros((BLOCK,), tl.int64), mask=here)
    tl.store(closest + b, tl.full((BLOCK,), float("inf"), tl.float64), mask=here)


@triton.jit
def _chain_sum(sums, b, field, batch, chains, here):
    """A sum over all chains, in their order."""
    total = b.to(tl.float64) * 0.0
    for chain in range(chains):
        total += tl.load(sums + (chain * 11 + field) * batch + b, mask=here, other=0.0)
    return total
