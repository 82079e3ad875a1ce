"""Integer products of 8-bit rows with the digits of queries.

On integer tensor cores where there are some: exact, the same integers as the processor's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from diffgen.backends.triton.layout import (
    BY_DIFFERENCES,
    FINITE,
    PLANES,
    SIGMA_IS_ZERO,
)


@triton.jit
def row_ids(rows, begins, segment, place, HAS_ROWS: tl.constexpr):
    """Ids of the rows at these places of a segment, and which places have one.

    The ids of other places are not to be used.
    """
    position = tl.load(begins + segment) + place
    inside = position < tl.load(begins + segment + 1)
    if HAS_ROWS:
        return tl.load(rows + position, mask=inside, other=0), inside
    else:
        return position, inside


@triton.jit
def centred(bytes_):
    """Bytes less 128, as int8.

    No load fills what is masked with 128, which would be 0 here: for NVIDIA, Triton 3.8.0 fills
    words of 32 bits with the constant as a signed number, so that three of four bytes are 255.
    """
    return (bytes_ ^ 128).to(tl.int8, bitcast=True)


@triton.jit(do_not_specialize=["batch", "segment", "segments", "first_row"])
def products(
    data,
    digits,
    flags,
    rows,
    begins,
    out,
    batch,
    features,
    padded,
    segment,
    segments,
    first_row,
    HAS_ROWS: tl.constexpr,
    ANCHORS_ONLY: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    """out[plane B + b][slot] = sum_k (row[k] - 128) digit[plane][b][k], int32.

    ``data`` begins with row ``first_row``. Columns, plane by plane, are those of digits that screen
    or decide; blocks without one end at once.
    """
    slots = segments.to(tl.int64) * 1024
    tile = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    plane = column // batch
    query = column - plane * batch
    known = column < 5 * batch
    planes = tl.load(flags + PLANES * batch + query, mask=known, other=0)
    finite = tl.load(flags + FINITE * batch + query, mask=known, other=0)
    active = (plane < planes) & (finite != 0)
    if ANCHORS_ONLY:
        zero = tl.load(flags + SIGMA_IS_ZERO * batch + query, mask=known, other=0)
        anchored = tl.load(flags + BY_DIFFERENCES * batch + query, mask=known, other=0)
        active = active & (anchored != 0) & (zero == 0)
    slot = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    at = segment + (tile * BLOCK_ROWS) // 1024
    ids, inside = row_ids(rows, begins, at, slot % 1024, HAS_ROWS)
    if (tl.max(active.to(tl.int32), axis=0) == 0) | (tl.max(inside.to(tl.int32), axis=0) == 0):
        return
    # Offsets within a segment and a block of columns fit 32 bits: half the registers of 64.
    first_id = at * 1024
    within = (ids - first_id).to(tl.int32) * features
    row = data + (first_id - first_row) * features + within[:, None]
    first_column = tl.program_id(1).to(tl.int64) * BLOCK_COLUMNS
    digit = digits + first_column * padded + (tl.arange(0, BLOCK_COLUMNS) * padded)[:, None]
    sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.int32)
    for begin in range(0, features, BLOCK_FEATURES):
        k = begin + tl.arange(0, BLOCK_FEATURES)[None, :]
        # What stands for a feature past the last meets a digit of 0, and products of a slot without
        # a row are not read.
        stored = tl.load(row + k, mask=inside[:, None] & (k < features), other=0)
        factor = tl.load(digit + k, mask=active[:, None] & (k < padded), other=0)
        sums = tl.dot(centred(stored), tl.trans(factor), sums, out_dtype=tl.int32)
    to = out + column.to(tl.int64)[None, :] * slots + slot[:, None]
    # Slots without a row are written too: so a thread's four neighbours are one store.
    tl.store(to, sums, mask=active[None, :])
