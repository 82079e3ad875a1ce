"""Kernels of the covariance product: all in float64 differences, nothing that cancels.

A program of the first kernel takes some slots and some queries and leaves the coefficient of each
row; one of the second sums the rows of a segment by them; the last adds segments in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from diffgen.backends.triton.arithmetic import _f64, fixed_exp
from diffgen.backends.triton.layout import SEGMENT_ROWS

SEGMENT = tl.constexpr(SEGMENT_ROWS)

# Per-query numbers, rows of a float64 tensor (COVARIANCE_NUMBERS, B).
ALPHA = tl.constexpr(0)
INVERSE = tl.constexpr(1)  # 1 / 2 sigma^2
BASE = tl.constexpr(2)  # |x - alpha m|^2
LOGSUMEXP = tl.constexpr(3)
RADIAL = tl.constexpr(4)
SCALE = tl.constexpr(5)  # a row means offset + scale * stored; the same for all queries
OFFSET = tl.constexpr(6)
COVARIANCE_NUMBERS = 7

# Rows are kept down to a weight of e^-60. Where one row has nearly all the weight, the covariance
# is that of the next ones, and this far below sigma^-2 does not raise them to anything.
LEAST_LOGIT = tl.constexpr(-60.0)

# What each row leaves for each query, rows of a float64 tensor (ROW_TERMS, B, slots).
COEFFICIENT = tl.constexpr(0)
ALONG_TIMES_RHO = tl.constexpr(1)
RHO = tl.constexpr(2)
ROW_TERMS = 3


@triton.jit(do_not_specialize=["batch", "first_row", "first_segment", "slots"])
def covariance_rows(
    query,  # (B, D) float32 or float64
    mean,  # (B, D)
    v,  # (B, D)
    numbers,  # (COVARIANCE_NUMBERS, B)
    exclude,  # (B,)
    data,  # rows first_row, first_row + 1, ... (n, D)
    log_weights,  # (N,)
    rows,  # (M,)
    begins,  # (S + 1,)
    terms,  # (ROW_TERMS, B, slots)
    batch,
    features,
    first_row,
    first_segment,
    slots,
    HAS_EXCLUDE: tl.constexpr,
    HAS_LOG_WEIGHTS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Terms of rows: w (along + radial rho), w along rho and w rho; none where no row is."""
    first_slot = tl.program_id(0).to(tl.int64) * ROWS
    segment = first_segment + first_slot // SEGMENT
    end = tl.load(begins + segment + 1)
    first_position = tl.load(begins + segment) + first_slot % SEGMENT
    if first_position >= end:
        return
    position = first_position + tl.arange(0, ROWS)
    valid = position < end
    slot = first_slot + tl.arange(0, ROWS)
    b = tl.program_id(1).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    row = position
    if HAS_ROWS:
        row = tl.load(rows + position, mask=valid, other=0)
    asked = b < batch

    alpha = tl.load(numbers + ALPHA * batch + b, mask=asked, other=1.0)
    scale = tl.load(numbers + SCALE * batch)
    offset = tl.load(numbers + OFFSET * batch)
    rho = tl.full((QUERIES, ROWS, FEATURES), 0.0, tl.float64)
    along = tl.full((QUERIES, ROWS, FEATURES), 0.0, tl.float64)
    for begin in range(0, features, FEATURES):
        k = begin + tl.arange(0, FEATURES)
        inside = k < features
        at_query = b[:, None] * features + k[None, :]
        here = asked[:, None] & inside[None, :]
        x = tl.load(query + at_query, mask=here, other=0.0).to(tl.float64)
        m = tl.load(mean + at_query, mask=here, other=0.0)
        direction = tl.load(v + at_query, mask=here, other=0.0)
        at_row = (row - first_row)[:, None] * features + k[None, :]
        stored = tl.load(data + at_row, mask=valid[:, None] & inside[None, :], other=0)
        y = stored.to(tl.float64) * scale + offset
        apart = m[:, None, :] - y[None, :, :]
        both = y[None, :, :] + m[:, None, :]
        far = 2.0 * x[:, None, :] - alpha[:, None, None] * both
        rho += tl.where(here[:, None, :], apart * far, 0.0)
        along -= apart * direction[:, None, :]
    rho_sum = alpha[:, None] * tl.sum(rho, axis=2)
    along_sum = tl.sum(along, axis=2)

    inverse = tl.load(numbers + INVERSE * batch + b, mask=asked, other=0.0)
    base = tl.load(numbers + BASE * batch + b, mask=asked, other=0.0)
    logsumexp = tl.load(numbers + LOGSUMEXP * batch + b, mask=asked, other=0.0)
    radial = tl.load(numbers + RADIAL * batch + b, mask=asked, other=0.0)
    logit = -(rho_sum + base[:, None]) * inverse[:, None] - logsumexp[:, None]
    if HAS_LOG_WEIGHTS:
        logit += tl.load(log_weights + row, mask=valid, other=0.0)[None, :]
    counts = valid[None, :] & (logit >= _f64(LEAST_LOGIT))
    if HAS_EXCLUDE:
        counts = counts & (row[None, :] != tl.load(exclude + b, mask=asked, other=-1)[:, None])
    weight = tl.where(counts, fixed_exp(logit), 0.0)
    target = terms + b[:, None] * slots + slot[None, :]
    plane = batch * slots.to(tl.int64)
    here = asked[:, None]
    coefficient = weight * (along_sum + radial[:, None] * rho_sum)
    tl.store(target + COEFFICIENT * plane, coefficient, mask=here)
    tl.store(target + ALONG_TIMES_RHO * plane, weight * along_sum * rho_sum, mask=here)
    tl.store(target + RHO * plane, weight * rho_sum, mask=here)


@triton.jit(do_not_specialize=["batch", "first_row", "first_segment", "segments"])
def covariance_sums(
    mean,  # (B, D)
    numbers,  # (COVARIANCE_NUMBERS, B)
    data,  # rows first_row, first_row + 1, ... (n, D)
    rows,  # (M,)
    begins,  # (S + 1,)
    terms,  # (ROW_TERMS, B, slots)
    sums,  # (B, W, D + 2)
    batch,
    features,
    first_row,
    first_segment,
    segments,
    HAS_ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Sum over a segment of coefficient (row - mean): features 0 to D - 1 of its sums."""
    k = tl.program_id(0).to(tl.int64) * FEATURES + tl.arange(0, FEATURES)
    w = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    asked, inside = b < batch, k < features
    here = asked[:, None] & inside[None, :]
    m = tl.load(mean + b[:, None] * features + k[None, :], mask=here, other=0.0)
    scale = tl.load(numbers + SCALE * batch)
    offset = tl.load(numbers + OFFSET * batch)
    start = tl.load(begins + first_segment + w)
    count = (tl.load(begins + first_segment + w + 1) - start).to(tl.int32)
    total = tl.full((QUERIES, FEATURES), 0.0, tl.float64)
    for place in range(0, count, ROWS):
        r = place + tl.arange(0, ROWS)
        valid = r < count
        at_term = b[:, None] * (segments * SEGMENT) + (w * SEGMENT + r)[None, :]
        c = tl.load(terms + at_term, mask=asked[:, None] & valid[None, :], other=0.0)
        # Most rows weigh nothing at low noise.
        if tl.max(tl.max((c != 0.0).to(tl.int32), axis=1), axis=0) > 0:
            row = start + r
            if HAS_ROWS:
                row = tl.load(rows + row, mask=valid, other=0)
            at_row = (row - first_row)[:, None] * features + k[None, :]
            stored = tl.load(data + at_row, mask=valid[:, None] & inside[None, :], other=0)
            y = stored.to(tl.float64) * scale + offset
            total += tl.sum(c[:, :, None] * (y[None, :, :] - m[:, None, :]), axis=1)
    tl.store(sums + (b[:, None] * segments + w) * (features + 2) + k[None, :], total, mask=here)


@triton.jit(do_not_specialize=["batch", "features", "first_segment", "segments"])
def covariance_moments(
    begins,  # (S + 1,)
    terms,  # (ROW_TERMS, B, slots)
    sums,  # (B, W, D + 2)
    batch,
    features,
    first_segment,
    segments,
    ROWS: tl.constexpr,
):
    """Sums over a segment of w along rho and w rho: features D and D + 1 of its sums."""
    w, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    begin = tl.load(begins + first_segment + w)
    count = (tl.load(begins + first_segment + w + 1) - begin).to(tl.int32)
    place = tl.arange(0, ROWS)
    slots = segments.to(tl.int64) * SEGMENT
    source = terms + b * slots + w * SEGMENT + place
    target = sums + (b * segments + w) * (features + 2) + features
    plane = batch * slots
    first = tl.load(source + ALONG_TIMES_RHO * plane, mask=place < count, other=0.0)
    tl.store(target, tl.sum(first, axis=0))
    second = tl.load(source + RHO * plane, mask=place < count, other=0.0)
    tl.store(target + 1, tl.sum(second, axis=0))


@triton.jit(do_not_specialize=["width", "segments"])
def add_segments(sums, totals, width, segments, BLOCK: tl.constexpr):
    """Adds (B, W, width) to (B, width), segment by segment."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(1).to(tl.int64)
    inside = k < width
    total = tl.load(totals + b * width + k, mask=inside, other=0.0)
    for w in range(0, segments):
        total += tl.load(sums + (b * segments + w) * width + k, mask=inside, other=0.0)
    tl.store(totals + b * width + k, total, mask=inside)
