"""Which rows matter to a query, and their logits.

Operation by operation ``csrc/u8/row_rules.h``; what is dropped is what the processor's kernels are
sure to drop, however many digits screen.
"""

from __future__ import annotations

import triton
import triton.language as tl

from diffgen.backends.triton.arithmetic import _f64, larger, sum_steps
from diffgen.backends.triton.layout import (
    ALPHA,
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
)
from diffgen.backends.triton.product_kernels import centred, row_ids


@triton.jit
def combined(planes_of, slot, inside, planes, stride, slots):
    """Products of the first so many digits."""
    product = tl.load(planes_of + slot, mask=inside, other=0).to(tl.int64)
    for p in range(1, planes):
        part = tl.load(planes_of + p * stride * slots + slot, mask=inside, other=0)
        product = product * 256 + part.to(tl.int64)
    return product


@triton.jit
def bounds_of(product, norm, numbers, b, batch, planes, features):
    """Squared distances to the query's first digits, and bounds below and above those to it."""
    place = numbers + (planes - 1) * batch + b
    step = tl.load(place + STEP * batch)
    lost = tl.load(place + LOST * batch)
    square = tl.load(place + SQUARES * batch)
    alpha = tl.load(numbers + ALPHA * batch + b)
    reach = tl.load(numbers + REACH * batch + b)
    factor = 2.0 * tl.load(numbers + ROW_SCALE * batch + b) * step
    wide = features.to(tl.float64)
    rounding = (_f64(2.0**-49) + _f64(2.0**-56) * wide) * reach * reach
    distance = (square + (alpha * alpha) * norm) - factor * product.to(tl.float64)
    least = distance - rounding
    least = tl.where(least < 0.0, 0.0, least)
    length = tl.sqrt(least) - lost
    length = tl.where(length < 0.0, 0.0, length)
    far = tl.sqrt(tl.where(distance < 0.0, 0.0, distance) + 2.0 * rounding) + lost
    return distance, length * length, far * far


@triton.jit
def row_facts(ids, inside, norms, log_weights, exclude, HAS_WEIGHTS: tl.constexpr):
    """Squared lengths and log weights of rows; -inf for those that do not count."""
    norm = tl.load(norms + ids, mask=inside, other=0.0)
    log_weight = norm * 0.0
    if HAS_WEIGHTS:
        log_weight = tl.load(log_weights + ids, mask=inside, other=0.0)
    counts = inside & (ids != exclude)
    return norm, tl.where(counts, log_weight, float("-inf"))


@triton.jit(do_not_specialize=["batch", "features", "segment", "segments"])
def screen(
    planes_of,
    norms,
    log_weights,
    rows,
    begins,
    numbers,
    flags,
    logits,
    candidates,
    counts,
    batch,
    features,
    segment,
    segments,
    HAS_ROWS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    TILES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """Logits of a segment's rows where its digits decide; else places whose rows can matter.

    Writes ``logits`` (B, slots), -inf where a row does not count or is not decided, places to
    decide (B, slots) and their number (W, B).
    """
    slots = segments.to(tl.int64) * 1024
    b = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64)
    place = tl.arange(0, 1024)
    slot = at * 1024 + place
    out = b * slots + slot
    finite = tl.load(flags + FINITE * batch + b)
    ids, inside = row_ids(rows, begins, segment + at, place, HAS_ROWS)
    if (finite == 0) | (tl.max(inside.to(tl.int32), axis=0) == 0):
        tl.store(logits + out, tl.full((1024,), float("-inf"), tl.float64))
        tl.store(counts + at * batch + b, 0)
        return
    exclude = tl.load(flags + EXCLUDE * batch + b)
    norm, log_weight = row_facts(ids, inside, norms, log_weights, exclude, HAS_WEIGHTS)
    digits = tl.load(flags + DIGITS * batch + b)
    planes = tl.load(flags + PLANES * batch + b)
    by_differences = tl.load(flags + BY_DIFFERENCES * batch + b)
    product = combined(planes_of + b * slots, slot, inside, planes, batch.to(tl.int64), slots)
    if (by_differences == 0) & (planes == digits):
        norm_factor = tl.load(numbers + NORM_FACTOR * batch + b)
        product_factor = tl.load(numbers + PRODUCT_FACTOR * batch + b)
        logit = log_weight - (norm_factor * norm - product_factor * product.to(tl.float64))
        tl.store(logits + out, logit)
        tl.store(counts + at * batch + b, 0)
    else:
        _, near, far = bounds_of(product, norm, numbers, b, batch, planes, features)
        kappa = tl.load(numbers + KAPPA * batch + b)
        constant = tl.load(numbers + CONSTANT * batch + b)
        sigma_is_zero = tl.load(flags + SIGMA_IS_ZERO * batch + b)
        counted = log_weight > float("-inf")
        # At sigma = 0 a row's logit is less its squared distance.
        base = tl.where(sigma_is_zero != 0, 0.0, log_weight + constant)
        base = tl.where(counted, base, float("-inf"))
        upper = tl.reshape(base - kappa * near, (TILES, TILE_ROWS))
        lower = tl.reshape(base - kappa * far, (TILES, TILE_ROWS))
        possible = tl.max(upper, axis=1)
        sure = tl.max(lower, axis=1)
        wide = features.to(tl.float64)
        rounding = _f64(2.0**-46) + _f64(2.0**-58) * wide
        size = tl.where(sure > float("-inf"), tl.abs(sure) + tl.abs(possible), 0.0)
        slack = _f64(1.6e-5) + 2.0 * rounding * (size + tl.abs(constant))
        cut = tl.load(numbers + CUT * batch + b)
        margin = tl.load(numbers + MARGIN * batch + b)
        floor = tl.where(sigma_is_zero != 0, sure * _f64(1.0 + 1e-11), sure - cut - slack)
        run = tl.associative_scan(sure, 0, larger)
        out_of_reach = (sigma_is_zero == 0) & (possible < run - margin - slack)
        # Written so that a NaN bound lets the row through.
        matters = (upper < floor[:, None]) == 0
        matters = matters & (out_of_reach[:, None] == 0)
        chosen = tl.reshape(matters, (1024,)) & counted
        rank = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
        tl.store(candidates + b * slots + at * 1024 + rank, place, mask=chosen)
        tl.store(counts + at * batch + b, tl.sum(chosen.to(tl.int32), axis=0))
        tl.store(logits + out, tl.full((1024,), float("-inf"), tl.float64))


@triton.jit
def _steps_of(features):
    """Steps of 32 lanes that a chain of 512 takes for what is left of a row."""
    return (tl.minimum(features, 512) + 31) // 32


@triton.jit
def distances(row, ids_ok, x, scale, features, ROWS: tl.constexpr):
    """|x - scale (row - 128)|^2 of some rows, in the fixed order of 32 lanes."""
    total = tl.zeros((ROWS,), tl.float64)
    lane = tl.arange(0, 32)[None, :]
    for begin in range(0, features, 512):
        sums = tl.zeros((ROWS, 32), tl.float64)
        for step in range(_steps_of(features - begin)):
            k = begin + step * 32 + lane
            ok = k < features
            here = tl.load(x + k, mask=ok, other=0.0)
            stored = tl.load(row[:, None] + k, mask=ids_ok[:, None] & ok, other=0)
            # Selected, for a load must not be filled with 128: see centred.
            gap = here - scale * tl.where(ok, centred(stored), 0).to(tl.float64)
            sums += gap * gap
        total += sum_steps(sums, ROWS)
    return total


@triton.jit
def excesses(row, ids_ok, anchor, x, scale, features, ROWS: tl.constexpr):
    """How much farther than the anchor some rows are, in the fixed order of 32 lanes."""
    total = tl.zeros((ROWS,), tl.float64)
    lane = tl.arange(0, 32)[None, :]
    for begin in range(0, features, 512):
        sums = tl.zeros((ROWS, 32), tl.float64)
        for step in range(_steps_of(features - begin)):
            k = begin + step * 32 + lane
            ok = k < features
            here = tl.load(x + k, mask=ok, other=0.0)
            # Past the features both are 0, and so is what they are apart.
            near = tl.load(anchor + k, mask=ok, other=0).to(tl.int32)
            stored = tl.load(row[:, None] + k, mask=ids_ok[:, None] & ok, other=0).to(tl.int32)
            apart = near - stored
            both = near + stored - 256
            far = 2.0 * here - scale * both.to(tl.float64)
            term = (scale * apart.to(tl.float64)) * far
            sums += term
        total += sum_steps(sums, ROWS)
    return total


@triton.jit(do_not_specialize=["batch", "segment", "segments", "first_row"])
def refine(
    data,
    anchors,
    digits_of,
    moved,
    norms,
    log_weights,
    rows,
    begins,
    numbers,
    flags,
    logits,
    candidates,
    counts,
    batch,
    features,
    padded,
    segment,
    segments,
    first_row,
    HAS_ROWS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    """Logits of the rows that a screen left, sixteen at a time."""
    slots = segments.to(tl.int64) * 1024
    b = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64)
    count = tl.load(counts + at * batch + b)
    scale = tl.load(numbers + ROW_SCALE * batch + b)
    kappa = tl.load(numbers + KAPPA * batch + b)
    by_differences = tl.load(flags + BY_DIFFERENCES * batch + b)
    sigma_is_zero = tl.load(flags + SIGMA_IS_ZERO * batch + b)
    exclude = tl.load(flags + EXCLUDE * batch + b)
    digits = tl.load(flags + DIGITS * batch + b)
    x = moved + b * features
    for first in range(0, count, 16):
        s = first + tl.arange(0, 16)
        valid = s < count
        place = tl.load(candidates + b * slots + at * 1024 + s, mask=valid, other=0)
        ids, inside = row_ids(rows, begins, segment + at, place, HAS_ROWS)
        inside = inside & valid
        norm, log_weight = row_facts(ids, inside, norms, log_weights, exclude, HAS_WEIGHTS)
        row = data + (ids - first_row) * features
        if sigma_is_zero != 0:
            distance = distances(row, inside, x, scale, features, 16)
            alpha = tl.load(numbers + ALPHA * batch + b)
            square = tl.load(numbers + SQUARE * batch + b)
            lengths = square + alpha * alpha * norm
            logit = -tl.where(distance <= _f64(2.0**-98) * lengths, 0.0, distance)
        elif by_differences != 0:
            excess = excesses(row, inside, anchors + b * features, x, scale, features, 16)
            logit = log_weight - kappa * excess
        else:
            plane = tl.arange(0, 16)
            digit = digits_of + ((plane.to(tl.int64) * batch + b) * padded)[:, None]
            sums = tl.zeros((16, 16), tl.int32)
            for begin in range(0, features, BLOCK_FEATURES):
                k = begin + tl.arange(0, BLOCK_FEATURES)[None, :]
                # As in products.
                stored = tl.load(row[:, None] + k, mask=inside[:, None] & (k < features), other=0)
                used = (plane < digits)[:, None] & (k < padded)
                factor = tl.load(digit + k, mask=used, other=0)
                sums = tl.dot(factor, tl.trans(centred(stored)), sums, out_dtype=tl.int32)
            power = tl.where(plane < digits, 8 * (digits - 1 - plane), 0).to(tl.int64)
            product = tl.sum(sums.to(tl.int64) << power[:, None], axis=0)
            norm_factor = tl.load(numbers + NORM_FACTOR * batch + b)
            product_factor = tl.load(numbers + PRODUCT_FACTOR * batch + b)
            logit = log_weight - (norm_factor * norm - product_factor * product.to(tl.float64))
        tl.store(logits + b * slots + at * 1024 + place, logit, mask=inside)
