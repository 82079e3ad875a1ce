"""Distances between queries and rows, in the order of operations of the 8-bit engine."""

from __future__ import annotations

import triton
import triton.language as tl

from diffgen.backends.triton.arithmetic import sum_steps
from diffgen.backends.triton.layout import SEGMENT_ROWS

SEGMENT = tl.constexpr(SEGMENT_ROWS)


@triton.jit(do_not_specialize=["batch", "first_row", "first_segment", "slots"])
def nearest_distances(
    moved,  # (B, D) queries less alpha times the origin
    row_scale,  # (B,) alpha times the size of a stored unit
    exclude,  # (B,)
    data,  # rows first_row, first_row + 1, ... (n, D)
    log_weights,  # (N,)
    rows,  # (M,)
    begins,  # (S + 1,)
    squared,  # (B, slots)
    batch,
    features,
    first_row,
    first_segment,
    slots,
    SHIFT: tl.constexpr,
    HAS_EXCLUDE: tl.constexpr,
    HAS_LOG_WEIGHTS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """|x - scale (row - shift)|^2 of each query and row; infinite where a row is not eligible.

    Sums over features as ``sum_of`` of ``csrc/cpu/u8/real_loops.inl``: 32 lanes, chains of 512.
    """
    first_slot = tl.program_id(0).to(tl.int64) * ROWS
    b = tl.program_id(1).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    asked = b < batch
    target = squared + b[:, None] * slots + (first_slot + tl.arange(0, ROWS))[None, :]
    segment = first_segment + first_slot // SEGMENT
    end = tl.load(begins + segment + 1)
    first_position = tl.load(begins + segment) + first_slot % SEGMENT
    if first_position >= end:
        nothing = tl.full((QUERIES, ROWS), float("inf"), tl.float64)
        tl.store(target, nothing, mask=asked[:, None])
        return
    position = first_position + tl.arange(0, ROWS)
    valid = position < end
    row = position
    if HAS_ROWS:
        row = tl.load(rows + position, mask=valid, other=0)
    scale = tl.load(row_scale + b, mask=asked, other=0.0)[:, None, None]
    total = tl.full((QUERIES * ROWS,), 0.0, tl.float64)
    for begin in range(0, features, 512):
        sums = tl.full((QUERIES, ROWS, 32), 0.0, tl.float64)
        steps = (tl.minimum(features - begin, 512) + 31) // 32
        for step in range(0, steps):
            k = begin + step * 32 + tl.arange(0, 32)
            inside = k < features
            x = tl.load(
                moved + b[:, None] * features + k[None, :],
                mask=asked[:, None] & inside[None, :],
                other=0.0,
            )
            stored = tl.load(
                data + (row - first_row)[:, None] * features + k[None, :],
                mask=valid[:, None] & inside[None, :],
                other=0,
            )
            # Selected, for a load must not be filled with 128: see centred of product_kernels.
            z = tl.where(inside[None, :], stored.to(tl.float64) - SHIFT, 0.0)
            gap = x[:, None, :] - scale * z[None, :, :]
            sums += gap * gap
        total += sum_steps(tl.reshape(sums, (QUERIES * ROWS, 32)), QUERIES * ROWS)
    counts = valid[None, :] & asked[:, None]
    if HAS_LOG_WEIGHTS:
        weight = tl.load(log_weights + row, mask=valid, other=0.0)
        counts = counts & (weight > float("-inf"))[None, :]
    if HAS_EXCLUDE:
        counts = counts & (row[None, :] != tl.load(exclude + b, mask=asked, other=-1)[:, None])
    result = tl.where(counts, tl.reshape(total, (QUERIES, ROWS)), float("inf"))
    tl.store(target, result, mask=asked[:, None])


@triton.jit(do_not_specialize=["count"])
def nearest_roots(squared, ids, count, BLOCK: tl.constexpr):
    """Squared distances (count,) to distances; NaN, and -1 for the id, where there is no row.

    The root of float64 is rounded correctly here, which that of PyTorch on a processor is not.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    distance = tl.load(squared + at, mask=inside, other=0.0)
    found = distance < float("inf")
    tl.store(squared + at, tl.where(found, tl.sqrt(distance), float("nan")), mask=inside)
    tl.store(ids + at, -1, mask=inside & (found == 0))
