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

**Dropped** are rows whose logit is more than 36 + log N below the best: together under
:math:`e^{-36} = 2.3 \cdot 10^{-16}` of the mass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.backends.problem import Problem
from diffgen.backends.triton.float_query_kernels import prepare_queries
from diffgen.backends.triton.launching import launch
from diffgen.backends.triton.layout import FLAGS, NUMBERS, SCREEN_NUMBERS
from diffgen.backends.triton.segments import Segments

_TF32_UNIT = 2.0**-9 + 2.0**-19
"""What a product of float32 rows loses at most to the type of tensor cores."""


@dataclass(frozen=True, slots=True)
class Queries:
    """A batch on the device; queries that get no answer hold stand-ins.

    Attributes:
        x: ``(B, D)`` float64.
        piece: What the screen multiplies, ``(B, D)``, in the rows' type; None without a screen.
        numbers: ``(NUMBERS, B)`` float64.
        flags: ``(FLAGS, B)`` int64.
        screen: ``(SCREEN_NUMBERS, B)`` float64.
    """

    x: Tensor
    piece: Tensor | None
    numbers: Tensor
    flags: Tensor
    screen: Tensor


def prepare(
    problem: Problem, segments: Segments, mean_dtype: torch.dtype, options: dict[str, Any]
) -> Queries:
    """What the kernels need of the queries, without waiting for the device.

    Args:
        problem: Queries and floating-point rows, at least one of them eligible.
        segments: Of its rows.
        mean_dtype: float64 where the mean may be divided by sigma: then it is that much more
            precise.
        options: Of the launch.
    """
    batch, features = problem.query.shape
    storage, device = problem.data.dtype, problem.query.device
    x = torch.empty(batch, features, dtype=torch.float64, device=device)
    numbers = torch.empty(NUMBERS, batch, dtype=torch.float64, device=device)
    flags = torch.empty(FLAGS, batch, dtype=torch.int64, device=device)
    screen = torch.empty(SCREEN_NUMBERS, batch, dtype=torch.float64, device=device)
    piece = None if storage == torch.float64 else torch.empty_like(x, dtype=storage)
    precise = problem.query.dtype == torch.float64
    launch(
        prepare_queries,
        (batch,),
        problem.query,
        problem.sigma,
        problem.sigma if problem.alpha is None else problem.alpha,
        flags if problem.exclude is None else problem.exclude,
        segments.lengths,
        x,
        x if piece is None else piece,
        numbers,
        flags,
        screen,
        batch,
        features,
        problem.data.shape[0],
        segments.eligible,
        segments.count,
        ALLOWED=(1e-9 if precise else 1e-5) / 4,
        PIECE_UNIT=_TF32_UNIT if storage == torch.float32 else 0.0,
        HAS_ALPHA=problem.alpha is not None,
        HAS_EXCLUDE=problem.exclude is not None,
        SCORE=mean_dtype == torch.float64,
        SCREENED=piece is not None,
        **options,
    )
    return Queries(x, piece, numbers, flags, screen)
