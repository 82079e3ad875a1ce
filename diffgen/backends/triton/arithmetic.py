"""Exponential, logarithm, rounding and sums as fixed sequences of float64 operations.

Operation by operation those of ``csrc/fixed_math.h`` and ``csrc/u8/layout.h``: launched without
contraction, the same bits on every device.
"""

from __future__ import annotations

import triton
import triton.language as tl

_ROUND = tl.constexpr(6755399441055744.0)  # 1.5 2^52


@triton.jit
def _f64(value: tl.constexpr):
    """A constant that keeps all its bits."""
    return tl.full((), value, tl.float64)


@triton.jit
def fixed_exp(x):
    """exp(x) for float64 x in [-700, 700], beyond that at the nearer end."""
    bounded = tl.where(x < -700.0, -700.0, x)
    bounded = tl.where(bounded > 700.0, 700.0, bounded)
    shifted = bounded * 1.4426950408889634074 + _ROUND
    n = shifted - _ROUND
    f = (bounded - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
    p = f * 0.0 + 1.0 / 6227020800.0
    p = p * f + 1.0 / 479001600.0
    p = p * f + 1.0 / 39916800.0
    p = p * f + 1.0 / 3628800.0
    p = p * f + 1.0 / 362880.0
    p = p * f + 1.0 / 40320.0
    p = p * f + 1.0 / 5040.0
    p = p * f + 1.0 / 720.0
    p = p * f + 1.0 / 120.0
    p = p * f + 1.0 / 24.0
    p = p * f + 1.0 / 6.0
    p = p * f + 0.5
    p = p * f + 1.0
    p = p * f + 1.0
    bits = (shifted.to(tl.int64, bitcast=True) + 1023) << 52
    return p * bits.to(tl.float64, bitcast=True)


@triton.jit
def fixed_log(x):
    """log(x) for normal float64 x > 0."""
    bits = x.to(tl.int64, bitcast=True)
    exponent = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = (bits - (exponent << 52)).to(tl.float64, bitcast=True)
    s = (m - 1.0) / (m + 1.0)
    t = s * s
    p = t * 0.0 + 1.0 / 21.0
    p = p * t + 1.0 / 19.0
    p = p * t + 1.0 / 17.0
    p = p * t + 1.0 / 15.0
    p = p * t + 1.0 / 13.0
    p = p * t + 1.0 / 11.0
    p = p * t + 1.0 / 9.0
    p = p * t + 1.0 / 7.0
    p = p * t + 1.0 / 5.0
    p = p * t + 1.0 / 3.0
    p = p * t
    log_m = 2.0 * s + 2.0 * s * p
    return exponent.to(tl.float64) * 6.93147180559945286227e-01 + log_m


@triton.jit
def fixed_round(x):
    """The whole number nearest to float64 x of magnitude below 2^51, ties to even, as int64."""
    shifted = x + _ROUND
    return shifted.to(tl.int64, bitcast=True) - 0x4338000000000000


@triton.jit
def halve(x, ROWS: tl.constexpr, LANES: tl.constexpr):
    """(ROWS, LANES) to (ROWS, LANES / 2): lane i and lane i + LANES / 2 are added."""
    return tl.sum(tl.reshape(x, (ROWS, 2, LANES // 2)), axis=1)


@triton.jit
def sum_lanes(x, ROWS: tl.constexpr):
    """(ROWS, 8) to (ROWS,): ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7))."""
    return tl.sum(halve(halve(x, ROWS, 8), ROWS, 4), axis=1)


@triton.jit
def sum_32_lanes(x, ROWS: tl.constexpr):
    """(ROWS, 32) to (ROWS,): halved five times."""
    return sum_lanes(halve(halve(x, ROWS, 32), ROWS, 16), ROWS)


@triton.jit
def sum_steps(x, ROWS: tl.constexpr):
    """(ROWS, 32) to (ROWS,): lanes i, 8 + i, 16 + i, 24 + i as two pairs, then the tree of 8."""
    pairs = tl.sum(tl.reshape(x, (ROWS, 2, 2, 8)), axis=2)
    return sum_lanes(tl.sum(pairs, axis=1), ROWS)


@triton.jit
def larger(a, b):
    """The larger of two: for scans, where NaN does not occur."""
    return tl.where(a > b, a, b)
