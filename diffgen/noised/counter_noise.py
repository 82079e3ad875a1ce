"""Random numbers by their place: the noise of any element, without that of the elements before it.

`philox` is the counter-based generator Philox4x32-10: a bijection of 128-bit counters for each
64-bit key, whose outputs pass the statistical tests that generators are put to. What is drawn is a
function of key and counter alone, so that any block of noise can be made at any time, in any order
and of any size, and is the same.

`standard_normal` is the same *to the bit* on every machine and device: integers are exact, and the
map to a normal uses no function of a mathematics library, only IEEE operations that are rounded
correctly (+, -, *, /, sqrt in float64, each a separate operation, so that none are contracted) and
`torch.frexp`. It is the inverse of the normal distribution function at a 32-bit uniform number, by
the rational approximations of AS 241, right to about 1e-15 relative; their logarithm is a series.

The uniforms are ``(w + 1/2) / 2^32``: the normals take 2^32 values, symmetric about 0, at most 6.34
from it, and their distribution function is right to 2^-33 everywhere.

Source:
    Salmon, Moraes, Dror, Shaw, Parallel random numbers: as easy as 1, 2, 3 (2011), section 3.3
    (Philox); Wichura, Algorithm AS 241: the percentage points of the normal distribution (1988),
    routine PPND16.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Words: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""Four unsigned 32-bit words, in int64 tensors of one shape."""

WORD = 0xFFFFFFFF
"""The largest word."""

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

CHUNK = 1 << 16
"""Numbers made at a time: their intermediate values, about 40 bytes each, stay in the cache."""


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10: four random words for each counter.

    Args:
        counter: Four words, int64 in ``[0, 2^32)``, of shapes that broadcast.
        key: Two words.

    Returns:
        Four words of the broadcast shape.

    Example:
        >>> zero = torch.zeros(1, dtype=torch.int64)
        >>> [hex(int(word)) for word in philox((zero, zero, zero, zero), (0, 0))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']

    Source:
        Salmon et al. (2011), section 3.3.
    """
    a, b, c, d = torch.broadcast_tensors(*counter)
    first, second = key
    for _ in range(_ROUNDS):
        high, low = _product(a, _MULTIPLIERS[0])
        other_high, other_low = _product(c, _MULTIPLIERS[1])
        a, b = other_high.bitwise_xor_(b).bitwise_xor_(first), other_low
        c, d = high.bitwise_xor_(d).bitwise_xor_(second), low
        first, second = (first + _WEYL[0]) & WORD, (second + _WEYL[1]) & WORD
    return a, b, c, d


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low word of ``word * multiplier``.

    The product may need 64 bits, of which int64 has 63. With ``multiplier - 2^32`` in its place it
    is in range, the low word is the same, and the high one less by ``word``.
    """
    product = word * (multiplier - (1 << 32))
    return (product >> 32).add_(word), product.bitwise_and_(WORD)


def inverse_normal(probability: Tensor) -> Tensor:
    """The normal quantile: z with ``P(Z <= z) = probability``, the same bits on every machine.

    Args:
        probability: float64 in ``[2^-36, 1 - 2^-36]``, such that ``1 - probability`` is exact (as
            it is for multiples of 2^-53). AS 241 has a further approximation for what is outside.

    Returns:
        float64 of the same shape; antisymmetric about 1/2 to the bit.

    Example:
        >>> inverse_normal(torch.tensor([0.5, 0.975], dtype=torch.float64))
        tensor([0.0000, 1.9600], dtype=torch.float64)

    Source:
        Wichura (1988), routine PPND16.
    """
    offset = probability - 0.5
    square = 0.180625 - offset * offset
    z = offset * (_horner(square, _CENTRE[0]) / _horner(square, _CENTRE[1]))
    tail = offset.abs() > 0.425
    part = probability[tail]
    distance = (0.0 - _log(torch.minimum(part, 1 - part))).sqrt()
    near = distance - 1.6
    size = _horner(near, _TAIL[0]) / _horner(near, _TAIL[1])
    z[tail] = torch.where(part < 0.5, 0.0 - size, size)
    return z


def standard_normal(seed: int, step: int, rows: Tensor, features: int) -> Tensor:
    """Standard normal noise for rows of features, by seed, step, and the two numbers of a row.

    The key of the generator is the seed; its counter ``(element // 4, step, copy, point)``. One
    counter makes four elements.

    Args:
        seed: 64-bit, at least 0.
        step: Word, ``[0, 2^32)``.
        rows: Point and copy of each row, ``(R, 2)`` int64, words.
        features: Elements in a row.

    Returns:
        ``(R, features)`` float64 on the device of the rows. Takes 8 bytes an element, and `CHUNK`
        (at least one row) times about 40 bytes while it runs.

    Raises:
        ValueError: A number is out of its range (rows: looked at on the CPU only).

    Example:
        >>> rows = torch.tensor([[7, 0], [8, 0]])
        >>> noise = standard_normal(0, 3, rows, 5)
        >>> torch.equal(noise[1:], standard_normal(0, 3, rows[1:], 5))
        True
    """
    _check(seed, step, rows)
    out = torch.empty((len(rows), features), dtype=torch.float64, device=rows.device)
    blocks = torch.arange(-(-features // 4), dtype=torch.int64, device=rows.device)
    key = seed & WORD, seed >> 32
    at_once = max(1, CHUNK // max(features, 1))
    for start in range(0, len(rows), at_once):
        point, copy = rows[start : start + at_once, :, None].unbind(1)
        words = philox((blocks, torch.full_like(point, step), copy, point), key)
        numbers = torch.stack(words, -1).flatten(1)[:, :features]  # (r, features)
        out[start : start + at_once] = inverse_normal((numbers.double() + 0.5) * 2.0**-32)
    return out


def _check(seed: int, step: int, rows: Tensor) -> None:
    for name, value, bits in (("seed", seed, 64), ("step", step, 32)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name} must be in [0, 2^{bits}), got {value}")
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype != torch.int64:
        raise ValueError(f"rows must be (R, 2) int64, got {tuple(rows.shape)} {rows.dtype}")
    if rows.device.type == "cpu" and bool(((rows < 0) | (rows > WORD)).any()):
        raise ValueError("rows must hold words in [0, 2^32), got another number")


def _log(value: Tensor) -> Tensor:
    """Natural logarithm of float64 values in (0, 1/2], from exact and correctly rounded operations.

    ``value = m 2^e`` with m in ``[1/sqrt 2, sqrt 2)``, and ``log m = 2 artanh s``, ``s = (m - 1) /
    (m + 1)``, at most 0.172: the series to s^21 leaves out less than 1e-17 of it.
    """
    mantissa, exponent = torch.frexp(value)
    small = mantissa < 0.7071067811865476
    mantissa = torch.where(small, mantissa + mantissa, mantissa)
    power = exponent.double() - small.double()
    s = (mantissa - 1) / (mantissa + 1)
    series = _horner(s * s, _ARTANH)
    # log 2 in two parts, the first short enough that its product with the exponent is exact.
    return power * _LOG2_HIGH + (power * _LOG2_LOW + (s + s) * series)


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """A polynomial, the coefficient of the highest power first; each step is two rounded ones."""
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value.mul_(x).add_(coefficient)
    return value


_ARTANH = tuple(1 / (2 * k + 1) for k in range(10, -1, -1))
_LOG2_HIGH = float.fromhex("0x1.62e42fefap-1")
_LOG2_LOW = float.fromhex("0x1.cf79abc9e3b39p-40")

# Numerator and denominator of AS 241's approximations, the highest power first.
_CENTRE = (
    (
        2.5090809287301226727e3,
        3.3430575583588128105e4,
        6.7265770927008700853e4,
        4.5921953931549871457e4,
        1.3731693765509461125e4,
        1.9715909503065514427e3,
        1.3314166789178437745e2,
        3.3871328727963666080e0,
    ),
    (
        5.2264952788528545610e3,
        2.8729085735721942674e4,
        3.9307895800092710610e4,
        2.1213794301586595867e4,
        5.3941960214247511077e3,
        6.8718700749205790830e2,
        4.2313330701600911252e1,
        1.0,
    ),
)
_TAIL = (
    (
        7.74545014278341407640e-4,
        2.27238449892691845833e-2,
        2.41780725177450611770e-1,
        1.27045825245236838258e0,
        3.64784832476320460504e0,
        5.76949722146069140550e0,
        4.63033784615654529590e0,
        1.42343711074968357734e0,
    ),
    (
        1.05075007164441684324e-9,
        5.47593808499534494600e-4,
        1.51986665636164571966e-2,
        1.48103976427480074590e-1,
        6.89767334985100004550e-1,
        1.67638483018380384940e0,
        2.05319162663775882187e0,
        1.0,
    ),
)
