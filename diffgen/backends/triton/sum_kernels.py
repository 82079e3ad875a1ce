"""Weighted sums of 8-bit rows, folded unit by unit into the mean of a segment.

They are sums of integers, in any order. Two kernels share the segments: one multiplies whole tiles
for a block of queries, the other picks the rows that one query keeps. The same integers come out;
which is taken follows from the numbers of kept rows alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from diffgen.backends.triton.product_kernels import centred, row_ids


@triton.jit
def _takes_whole_tiles(
    kept_counts, fresh, at, query, known, in_segment, batch, TILES: tl.constexpr
):
    """Whether a block of queries keeps as many rows of a segment, in all, as the segment has."""
    total = 0
    for tile in range(TILES):
        count = tl.load(kept_counts + (at * TILES + tile) * batch + query, mask=known, other=0)
        total += tl.sum(tl.where(fresh != 0.0, count, 0), axis=0)
    return total >= in_segment


@triton.jit
def _folded(state, whole, old, fresh):
    """Sums of a unit in the mean: not read where ``old`` is 0, unchanged where ``fresh`` is."""
    new = whole.to(tl.float64) * fresh
    joined = state * old + new
    return tl.where(fresh == 0.0, state, tl.where(old == 0.0, new, joined))


@triton.jit
def _factors_of(factors, steps, unit, lane, stride, plane, mask):
    """What a unit's fold multiplies with: the mean so far, and the unit's integers."""
    at = unit.to(tl.int64) * stride + lane
    old = tl.load(factors + at, mask=mask, other=1.0)
    fresh = tl.load(factors + plane + at, mask=mask, other=0.0)
    step = tl.load(steps + at, mask=mask & (fresh != 0.0), other=0.0)
    return old, fresh * step


@triton.jit(do_not_specialize=["batch", "segment", "segments", "first_row"])
def sum_whole_tiles(
    data,
    rows,
    begins,
    planes_of,
    kept_counts,
    tile_units,
    factors,
    steps,
    segment_factors,
    means,
    batch,
    features,
    segment,
    segments,
    first_row,
    HAS_ROWS: tl.constexpr,
    PLANES: tl.constexpr,
    TILES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    """Means of a segment (B, W, D) for a block of queries, from whole tiles."""
    slots = segments.to(tl.int64) * 1024
    k = tl.program_id(0) * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
    at = tl.program_id(1).to(tl.int64)
    query = tl.program_id(2).to(tl.int64) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    known = query < batch
    stride = segments.to(tl.int64) * batch
    lane = at * batch + query
    plane = (2 * TILES + 1) * stride
    fresh = tl.load(segment_factors + stride + lane, mask=known, other=0.0)
    in_segment = tl.load(begins + segment + at + 1) - tl.load(begins + segment + at)
    whole_tiles = _takes_whole_tiles(kept_counts, fresh, at, query, known, in_segment, batch, TILES)
    if (tl.max((fresh != 0.0).to(tl.int32), axis=0) == 0) | (whole_tiles == 0):
        return
    known = known & (fresh != 0.0)
    state = tl.zeros((BLOCK_QUERIES, BLOCK_FEATURES), tl.float64)
    pending = tl.zeros((BLOCK_QUERIES, BLOCK_FEATURES), tl.int64)
    dense_tiles = tl.zeros((BLOCK_QUERIES,), tl.int32)
    digit_plane = batch.to(tl.int64) * slots
    digits = planes_of + query[:, None] * slots + at * 1024
    for tile in range(TILES):
        unit = tl.load(tile_units + (at * TILES + tile) * batch + query, mask=known, other=-1)
        if tl.max(unit, axis=0) >= 0:
            whole = tl.zeros((BLOCK_QUERIES, BLOCK_FEATURES), tl.int64)
            for begin in range(0, TILE_ROWS, BLOCK_ROWS):
                r = begin + tl.arange(0, BLOCK_ROWS)
                in_tile = r < TILE_ROWS
                place = tile * TILE_ROWS + r
                ids, inside = row_ids(rows, begins, segment + at, place, HAS_ROWS)
                inside = inside & in_tile
                stored = tl.load(
                    data + ((ids - first_row) * features)[:, None] + k[None, :],
                    mask=inside[:, None] & (k < features)[None, :],
                    other=0,
                )
                # Rows that are not there meet digits of 0, and features past the last are not
                # stored. The select is for Triton 3.8.0, which else reads the tile twice.
                stored = tl.where((k < features)[None, :], centred(stored), 0)
                used = known[:, None] & inside[None, :]
                for low in tl.static_range(PLANES):
                    digit = tl.load(digits + low * digit_plane + place[None, :], mask=used, other=0)
                    part = tl.dot(digit, stored, out_dtype=tl.int32)
                    whole += part.to(tl.int64) << (8 * low)
            dense = (unit >= 0) & (unit % 2 == 1)
            old, scale = _factors_of(factors, steps, unit - 1, lane, stride, plane, dense)
            state = _folded(state, pending, old[:, None], scale[:, None])
            pending = tl.where(dense[:, None], 0, pending)
            old, scale = _factors_of(factors, steps, unit, lane, stride, plane, dense)
            state = _folded(state, whole, old[:, None], scale[:, None])
            sparse = (unit >= 0) & (dense == 0)
            pending += tl.where(sparse[:, None], whole, 0)
            dense_tiles += dense.to(tl.int32)
    old, scale = _factors_of(factors, steps, 2 * dense_tiles, lane, stride, plane, known)
    state = _folded(state, pending, old[:, None], scale[:, None])
    to = means + ((query * segments + at) * features)[:, None] + k[None, :]
    tl.store(to, state, mask=known[:, None] & (k < features)[None, :])


@triton.jit(do_not_specialize=["batch", "segment", "segments", "first_row"])
def sum_kept_rows(
    data,
    rows,
    begins,
    planes_of,
    kept,
    kept_counts,
    tile_units,
    factors,
    steps,
    segment_factors,
    means,
    batch,
    features,
    segment,
    segments,
    first_row,
    HAS_ROWS: tl.constexpr,
    PLANES: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    """The same for one query, from the rows that it keeps, sixteen at a time."""
    slots = segments.to(tl.int64) * 1024
    k = tl.program_id(0) * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
    at = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    block = b // BLOCK_QUERIES * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    known = block < batch
    stride = segments.to(tl.int64) * batch
    lane = at * batch + b
    plane = (2 * TILES + 1) * stride
    of_block = tl.load(segment_factors + stride + at * batch + block, mask=known, other=0.0)
    in_segment = tl.load(begins + segment + at + 1) - tl.load(begins + segment + at)
    whole_tiles = _takes_whole_tiles(
        kept_counts, of_block, at, block, known, in_segment, batch, TILES
    )
    if (tl.load(segment_factors + stride + lane) == 0.0) | whole_tiles:
        return
    state = tl.zeros((BLOCK_FEATURES,), tl.float64)
    pending = tl.zeros((BLOCK_FEATURES,), tl.int64)
    dense_tiles = 0
    first = 0
    digit_plane = batch.to(tl.int64) * slots
    out = b * slots + at * 1024
    for tile in range(TILES):
        count = tl.load(kept_counts + (at * TILES + tile) * batch + b)
        unit = tl.load(tile_units + (at * TILES + tile) * batch + b)
        whole = tl.zeros((BLOCK_FEATURES,), tl.int64)
        for begin in range(0, count, 16):
            r = begin + tl.arange(0, 16)
            valid = r < count
            place = tl.load(kept + out + first + r, mask=valid, other=0)
            ids, inside = row_ids(rows, begins, segment + at, place, HAS_ROWS)
            inside = inside & valid
            z = tl.zeros((16,), tl.int64)
            for low in tl.static_range(PLANES):
                digit = tl.load(planes_of + low * digit_plane + out + place, mask=inside, other=0)
                z += digit.to(tl.int64) << (8 * low)
            stored = tl.load(
                data + ((ids - first_row) * features)[:, None] + k[None, :],
                mask=inside[:, None] & (k < features)[None, :],
                other=0,
            )
            # A place without a row has a digit of 0.
            whole += tl.sum(z[:, None] * centred(stored).to(tl.int64), axis=0)
        first += count
        if unit >= 0:
            if unit % 2 == 1:
                old, scale = _factors_of(factors, steps, unit - 1, lane, stride, plane, True)
                state = _folded(state, pending, old, scale)
                pending = tl.zeros((BLOCK_FEATURES,), tl.int64)
                old, scale = _factors_of(factors, steps, unit, lane, stride, plane, True)
                state = _folded(state, whole, old, scale)
                dense_tiles += 1
            else:
                pending += whole
    old, scale = _factors_of(factors, steps, 2 * dense_tiles, lane, stride, plane, True)
    state = _folded(state, pending, old, scale)
    to = means + (b * segments + at) * features + k
    tl.store(to, state, mask=k < features)
