"""Which rows are weighted together, and their weights: the units of a segment.

The rules are those of ``csrc/u8/posterior_rules.h`` and ``csrc/cpu/u8/worker_weights.cpp``. With G
dense tiles in a segment, unit 2 g holds what the sparse tiles between the dense ones g - 1 and g
leave, unit 2 g + 1 is dense tile g.
"""

from __future__ import annotations

import triton
import triton.language as tl

from diffgen.backends.triton.arithmetic import (
    _f64,
    fixed_exp,
    fixed_round,
    larger,
    sum_32_lanes,
)
from diffgen.backends.triton.layout import (
    CUT,
    EXCLUDE,
    FINITE,
    LOGITS,
    MARGIN,
    MASS,
    NEAREST_SQUARE,
    NORMS,
    QUANTISED,
    REFERENCE,
    SIGMA_IS_ZERO,
    SQUARED_WEIGHTS,
    TOLERANCE,
    WEIGHTS,
)
from diffgen.backends.triton.product_kernels import row_ids
from diffgen.backends.triton.row_kernels import row_facts


@triton.jit
def _weight_digits(rows, mass, tolerance):
    """Digits that the weights of a unit of so many rows have."""
    count = rows.to(tl.float64)
    allowed = tolerance * mass
    three = count * _f64(2.0**-16 * (1.0 / 127.0)) <= allowed
    four = count * _f64(2.0**-24 * (1.0 / 127.0)) <= allowed
    return tl.where(three, 3, tl.where(four, 4, 5))


@triton.jit
def _units_in_one(digits):
    """Units of weights of so many digits in 1."""
    large = tl.where(digits == 4, _f64(127.0 * 2.0**24), _f64(127.0 * 2.0**32))
    return tl.where(digits == 3, _f64(127.0 * 2.0**16), large)


@triton.jit
def _step(digits):
    large = tl.where(digits == 4, _f64(2.0**-24 * (1.0 / 127.0)), _f64(2.0**-32 * (1.0 / 127.0)))
    return tl.where(digits == 3, _f64(2.0**-16 * (1.0 / 127.0)), large)


@triton.jit(do_not_specialize=["batch", "segment", "segments"])
def weigh(
    logits,
    norms,
    log_weights,
    rows,
    begins,
    numbers,
    flags,
    planes_of,
    weights,
    kept,
    kept_counts,
    tile_units,
    parts,
    steps,
    batch,
    segment,
    segments,
    HAS_ROWS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    FUNCTIONALS: tl.constexpr,
    TILES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """The units of a segment for a query: weights, their digits and their sums.

    Writes digits of weights (5, B, slots) int8, the lowest first; places of kept rows (B, slots) in
    order and their number (W, TILES, B); the unit of each tile (W, TILES, B), -1 for none; states
    (8, 2 TILES + 1, W, B) and sizes of a quantised weight (2 TILES + 1, W, B).
    """
    slots = segments.to(tl.int64) * 1024
    b = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64)
    place = tl.arange(0, 1024)
    tile = tl.arange(0, TILES)
    unit_count: tl.constexpr = 2 * TILES + 1
    stride = segments.to(tl.int64) * batch
    lane = at * batch + b
    plane = unit_count * stride
    out = b * slots + at * 1024
    in_segment = tl.load(begins + segment + at + 1) - tl.load(begins + segment + at)
    finite = tl.load(flags + FINITE * batch + b)
    zero = tl.load(flags + SIGMA_IS_ZERO * batch + b) != 0
    cut = tl.load(numbers + CUT * batch + b)
    margin = tl.load(numbers + MARGIN * batch + b)
    tolerance = tl.load(numbers + TOLERANCE * batch + b)
    logit = tl.load(logits + out + place)
    logit = tl.where(finite != 0, logit, float("-inf"))
    square = tl.full((TILES,), float("inf"), tl.float64)
    if zero:
        # Logits are less squared distances: of each tile its nearest rows count, by their weights.
        exclude = tl.load(flags + EXCLUDE * batch + b)
        ids, inside = row_ids(rows, begins, segment + at, place, HAS_ROWS)
        _, log_weight = row_facts(ids, inside, norms, log_weights, exclude, HAS_WEIGHTS)
        distance = tl.reshape(logit, (TILES, TILE_ROWS))
        nearest = tl.max(distance, axis=1)
        limit = nearest * _f64(1.0 + 1e-12)
        among = (distance >= limit[:, None]) & (distance > float("-inf"))
        logit = tl.where(tl.reshape(among, (1024,)), log_weight, float("-inf"))
        square = -nearest
    logit = tl.reshape(logit, (TILES, TILE_ROWS))
    best = tl.max(logit, axis=1)
    run = tl.associative_scan(best, 0, larger)
    nothing = (best == float("-inf")) | ((zero == 0) & (best < run - margin))
    keep = (logit >= (best - cut)[:, None]) & (nothing[:, None] == 0)
    count = tl.sum(keep.to(tl.int32), axis=1)
    present = tl.minimum(tl.maximum(in_segment - tile * TILE_ROWS, 0), TILE_ROWS)
    dense = (count > 0) & (zero | (count * 4 >= present))
    sparse = (count > 0) & (dense == 0)
    group = tl.cumsum(dense.to(tl.int32), axis=0) - dense.to(tl.int32)
    groups = tl.sum(dense.to(tl.int32), axis=0) + 1
    reference = best
    for g in range(groups):
        mine = sparse & (group == g)
        top = tl.max(tl.where(mine, best, float("-inf")), axis=0)
        reference = tl.where(mine, top, reference)
    keep = keep & (logit >= (reference - cut)[:, None])
    count = tl.sum(keep.to(tl.int32), axis=1)
    difference = tl.where(keep, logit - reference[:, None], 0.0)
    weight = tl.where(keep, fixed_exp(difference), 0.0)
    whole_mass = tl.sum(fixed_round(weight * _f64(2.0**46)), axis=1)
    mass = whole_mass.to(tl.float64) * _f64(2.0**-46)
    digits = _weight_digits(count, mass, tolerance)
    for g in range(groups):
        mine = sparse & (group == g)
        rows_of = tl.sum(tl.where(mine, count, 0), axis=0)
        all_mass = tl.sum(tl.where(mine, whole_mass, 0), axis=0)
        joint = all_mass.to(tl.float64) * _f64(2.0**-46)
        mass = tl.where(mine, joint, mass)
        digits = tl.where(mine, _weight_digits(rows_of, joint, tolerance), digits)
    z = fixed_round(weight * _units_in_one(digits)[:, None])
    whole = tl.sum(z, axis=1)
    for g in range(groups):
        mine = sparse & (group == g)
        joint = tl.sum(tl.where(mine, whole, 0), axis=0)
        whole = tl.where(mine, joint, whole)
    step = _step(digits)

    # Tiles of a group write the same numbers to their unit: the first of them does.
    unit = tl.where(count > 0, tl.where(dense, 2 * group + 1, 2 * group), -1)
    tl.store(tile_units + (at * TILES + tile) * batch + b, unit)
    tl.store(kept_counts + (at * TILES + tile) * batch + b, count)
    for g in range(groups):
        to = parts + (2 * g) * stride + lane
        mine = sparse & (group == g)
        any_mine = tl.max(mine.to(tl.int32), axis=0) != 0
        top = tl.max(tl.where(mine, reference, float("-inf")), axis=0)
        joint = tl.max(tl.where(mine, mass, 0.0), axis=0)
        size = tl.max(tl.where(mine, step, 0.0), axis=0)
        total = tl.max(tl.where(mine, whole, 0), axis=0)
        tl.store(to + REFERENCE * plane, tl.where(any_mine, top, float("-inf")))
        tl.store(to + NEAREST_SQUARE * plane, _f64(float("inf")))
        tl.store(to + MASS * plane, joint)
        tl.store(to + QUANTISED * plane, total.to(tl.float64) * size)
        tl.store(steps + (2 * g) * stride + lane, size)
    to = parts + (2 * group + 1).to(tl.int64) * stride + lane
    tl.store(to + REFERENCE * plane, best, mask=dense)
    tl.store(to + NEAREST_SQUARE * plane, square, mask=dense)
    tl.store(to + MASS * plane, mass, mask=dense)
    tl.store(to + QUANTISED * plane, whole.to(tl.float64) * step, mask=dense)
    tl.store(steps + (2 * group + 1).to(tl.int64) * stride + lane, step, mask=dense)
    # Units that there are none of: an odd one for each tile that is not dense, from the last on.
    spare = tl.cumsum((dense == 0).to(tl.int32), axis=0)
    odd = 2 * (TILES - spare) + 1
    none = tl.full((TILES,), float("-inf"), tl.float64)
    to = parts + odd.to(tl.int64) * stride + lane + REFERENCE * plane
    tl.store(to, none, mask=dense == 0)
    tl.store(to + stride, none, mask=dense == 0)

    flat = tl.reshape(keep, (1024,))
    rank = tl.cumsum(flat.to(tl.int32), axis=0) - 1
    tl.store(kept + out + rank, place, mask=flat)
    z = tl.reshape(z, (1024,))
    digit_plane = batch.to(tl.int64) * slots
    for low in tl.static_range(5):
        digit = z.to(tl.int8)
        tl.store(planes_of + low * digit_plane + out + place, digit)
        z = (z - digit) >> 8
    if FUNCTIONALS:
        tl.store(weights + out + place, tl.reshape(weight, (1024,)))
        tl.store(logits + out + place, tl.reshape(difference, (1024,)))


@triton.jit(do_not_specialize=["batch", "segment", "segments"])
def functional_sums(
    differences,
    weights,
    norms,
    rows,
    begins,
    tile_units,
    parts,
    batch,
    segment,
    segments,
    HAS_ROWS: tl.constexpr,
    TILES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """A unit's sums for the functionals, in 32 lanes by a row's place in the segment."""
    slots = segments.to(tl.int64) * 1024
    b = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, 32)
    out = b * slots + at * 1024
    stride = segments.to(tl.int64) * batch
    plane = (2 * TILES + 1) * stride
    tiles = tl.arange(0, TILES)
    units = tl.load(tile_units + (at * TILES + tiles) * batch + b)
    last = tl.max(units, axis=0)
    for unit in range(last + 1):
        if tl.max((units == unit).to(tl.int32), axis=0) != 0:
            sums = tl.zeros((32,), tl.float64)
            squares, logits, lengths = sums, sums, sums
            for step in range(32):
                place = step * 32 + lane
                theirs = tl.load(tile_units + (at * TILES + place // TILE_ROWS) * batch + b)
                mine = theirs == unit
                ids, inside = row_ids(rows, begins, segment + at, place, HAS_ROWS)
                weight = tl.load(weights + out + place, mask=mine & inside, other=0.0)
                difference = tl.load(differences + out + place, mask=mine & inside, other=0.0)
                norm = tl.load(norms + ids, mask=mine & inside, other=0.0)
                sums += weight
                squares += weight * weight
                logits += weight * difference
                lengths += weight * norm
            to = parts + unit * stride + at * batch + b
            tl.store(to + WEIGHTS * plane, _total(sums))
            tl.store(to + SQUARED_WEIGHTS * plane, _total(squares))
            tl.store(to + LOGITS * plane, _total(logits))
            tl.store(to + NORMS * plane, _total(lengths))


@triton.jit
def _total(lanes):
    return tl.sum(sum_32_lanes(tl.reshape(lanes, (1, 32)), 1), axis=0)
