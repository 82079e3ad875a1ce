r"""Queries against floating-point rows: what the kernels know of each, and what is certain of it.

With x the query, y a row, :math:`\kappa = 1 / 2 \sigma^2` and :math:`l = \log W - \kappa |x -
\alpha y|^2`, everything that decides is float64. Three bounds say what each step can leave out, all
one-sided; u stands for :math:`2^{-53}`, R for the longest row.

**Products** in float64 give :math:`|x - \alpha y|^2` within :math:`E = (D + 20) u (|x| + \alpha
R)^2`, whatever order they are summed in. Where :math:`\kappa E` is over a quarter of what is
promised, the query is *refined*: rows that can count get their logits by the excess over an
*anchor* a, a row that is nearest by products:

.. math::
    |x - \alpha y|^2 - |x - \alpha a|^2 = \alpha (a - y) \cdot (2 x - \alpha (a + y)),

in which nothing large cancels.

**The screen** multiplies rows, as they are stored, with one *piece* p of x in their own type
(float32: with its high bits, TF32) on tensor cores. By Cauchy and Schwarz the logit is off by at
most

.. math::
    2 \kappa \alpha (|x - p| + (D 2^{-22} + e) |p|) |y| + \kappa E,

where :math:`|x - p|` is measured; e is 0 for types whose products are exact in float32, and
:math:`2^{-9} + 2^{-19}` for TF32, where either factor may lose its last 13 bits to truncation; and
:math:`2^{-22}` is for an addition in float32 on tensor cores: they add a group of g products to the
accumulator, each of the g + 1 terms truncated to a unit of :math:`2^{-23}` of the largest
magnitude, and :math:`(g + 1) / g \le 2`.

**Dropped** are rows whose logit is more than ``MARGIN`` + log N below the best: together under
:math:`e^{-36} = 2.3 \cdot 10^{-16}` of the mass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from diffgen.backends.problem import Problem
from diffgen.backends.triton import layout

# What the screen knows of a query, rows of a float64 tensor (SCREEN_NUMBERS, B).
FACTOR = tl.constexpr(0)  # of a product with the piece, in nats
SLOPE = tl.constexpr(1)  # bound on the logit's error for each unit of the row's length, in nats
LEVEL = tl.constexpr(2)  # the rest of the bound, in nats
SCREEN_NUMBERS = 3

MARGIN = 36.0
"""Rows that many nats and log N below the best are dropped."""

_UNIT = 2.0**-53
_STEEPEST = 1e250
"""From here on sigma counts as zero: kappa times a squared distance would leave the range."""

_TIE_MARGIN = 1e-11
"""At sigma = 0, of (|x| + alpha R)^2: over ten times what makes squared distances equal."""

_PRODUCT_UNIT = 2.0**-22
_TF32_UNIT = 2.0**-9 + 2.0**-19
_SMALLEST = 2.0**-125
"""What a product of numbers below 1 can lose to underflow in float32, twice."""

_SLACK = 1.0 + 2.0**-10
"""Covers what the bounds themselves are rounded by, and the higher orders."""


@dataclass(frozen=True, slots=True)
class Queries:
    """A batch on the device; queries that get no answer hold stand-ins.

    Attributes:
        x: ``(B, D)`` float64.
        piece: What the screen multiplies, ``(B, D)``, in the rows' type; None without a screen.
        numbers: ``(NUMBERS, B)`` float64.
        flags: ``(FLAGS, B)`` int64.
        screen: ``(SCREEN_NUMBERS, B)`` float64.
        slack: Twice the bound on the error of a logit by products, ``(B,)`` float64, in nats.
    """

    x: Tensor
    piece: Tensor | None
    numbers: Tensor
    flags: Tensor
    screen: Tensor
    slack: Tensor


def prepare(problem: Problem, mean_dtype: torch.dtype) -> Queries:
    """What the kernels need of the queries, without waiting for the device.

    Args:
        problem: Queries and floating-point rows, at least one of them eligible.
        mean_dtype: float64 where the mean may be divided by sigma: then it is that much more
            precise.
    """
    batch, features = problem.query.shape
    x = problem.query.to(torch.float64)
    alpha = torch.ones_like(problem.sigma) if problem.alpha is None else problem.alpha
    square = x.square().sum(1)
    finite = square.isfinite() & (problem.sigma >= 0) & (alpha >= 0) & alpha.isfinite()
    exclude = torch.full_like(finite, -1, dtype=torch.int64)
    if problem.exclude is not None:
        count = problem.data.shape[0]
        finite &= (problem.exclude >= -1) & (problem.exclude < count)
        exclude = problem.exclude.where(finite, exclude)
    x = x.masked_fill(~finite[:, None], 0.0)
    square = square.where(finite, 0.0)
    alpha, sigma = alpha.where(finite, 1.0), problem.sigma.where(finite, 1.0)

    norms = problem.norms if problem.rows is None else problem.norms[problem.rows]
    reach = square.sqrt() + alpha * norms.amax().sqrt()
    error = (features + 20) * _UNIT * reach * reach
    kappa = 0.5 / (sigma * sigma)
    zero = ~(kappa < _STEEPEST)
    kappa = kappa.masked_fill(zero, 1.0)
    allowed = torch.full_like(sigma, (1e-9 if problem.query.dtype == torch.float64 else 1e-5) / 4)
    if mean_dtype == torch.float64:
        allowed *= (sigma / alpha).clamp(max=1.0)
    margin = torch.full_like(sigma, math.log(len(norms)) + MARGIN)

    numbers = torch.zeros(layout.NUMBERS, batch, dtype=torch.float64, device=x.device)
    numbers[layout.KAPPA.value] = kappa
    numbers[layout.CONSTANT.value] = (kappa * square).masked_fill(zero, 0.0)
    numbers[layout.MARGIN.value] = torch.where(zero, _TIE_MARGIN * reach * reach, margin)
    numbers[layout.ALPHA.value] = alpha
    flags = torch.zeros(layout.FLAGS, batch, dtype=torch.int64, device=x.device)
    flags[layout.FINITE.value] = finite
    flags[layout.SIGMA_IS_ZERO.value] = zero
    flags[layout.BY_DIFFERENCES.value] = zero | (kappa * error > allowed)
    flags[layout.EXCLUDE.value] = exclude
    piece, screen = _screen(problem.data.dtype, x, alpha, kappa, kappa * error)
    return Queries(x, piece, numbers, flags, screen, 2 * kappa * error)


def _screen(
    storage: torch.dtype, x: Tensor, alpha: Tensor, kappa: Tensor, error: Tensor
) -> tuple[Tensor | None, Tensor]:
    """The piece of the queries, scaled into the range of the type, and the bounds."""
    screen = torch.zeros(SCREEN_NUMBERS, len(x), dtype=torch.float64, device=x.device)
    if storage == torch.float64:
        return None, screen
    features = x.shape[1]
    largest = x.abs().amax(1)
    scale = largest.where(largest > 0, 1.0)
    piece = (x / scale[:, None]).to(storage)
    meant = piece.to(torch.float64) * scale[:, None]
    unit = features * _PRODUCT_UNIT + (_TF32_UNIT if storage == torch.float32 else 0.0)
    lost = (x - meant).square().sum(1).sqrt() + unit * meant.square().sum(1).sqrt()
    steepness = 2 * kappa * alpha
    screen[FACTOR.value] = steepness * scale
    screen[SLOPE.value] = _SLACK * steepness * lost
    screen[LEVEL.value] = error + steepness * scale * (features * _SMALLEST)
    return piece, screen
