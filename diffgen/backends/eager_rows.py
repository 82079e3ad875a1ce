r"""Queries, blocks of rows and their squared distances, as the eager backend computes them.

Rows are taken in blocks and decoded to float64; the posterior so far and that of the block merge
by an online softmax. Squared distances come from products in the expanded form,

.. math::
    \hat r_i = |x'|^2 + \alpha^2 |y'_i|^2 - 2 \alpha x' \cdot y'_i,
    \qquad |\hat r_i - r_i| \le E = \gamma (|x'| + \alpha |y'|)^2,

with primes for values about the origin of the norms and :math:`\gamma = (D + 20) 2^{-53}`, which
holds for any order of summation. A logit is then off by at most :math:`A = E / 2 \sigma^2`, and
errors of at most A in the logits move the mean by at most A times half the range of the data.

**Products select, differences decide.** Where A is too large for the promise, the rows that can
still matter (within :math:`2 A + \log N + 36` of the best, so that all others together hold less
than :math:`3 \cdot 10^{-16}` of the mass) are evaluated again as

.. math::
    r_i - r_a = \alpha (y_a - y_i) \cdot (2 x - \alpha (y_i + y_a)),

against the best row ``a`` so far. That form keeps full precision half-way between two rows, where
:math:`r_i` is large and the difference small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffgen.backends.problem import Problem
from diffgen.set_view import UINT8_SHIFT, origin

BLOCK_ELEMENTS = 2**21
"""Elements of a decoded block of rows, and of the logits of a block: 16 MiB of float64 each."""

PAIR_ELEMENTS = 2**19
"""Elements of the differences that are formed at once."""

_UNIT = 2.0**-53
_MARGIN = 36.0
_ZERO_SIGMA = 1e-150
"""Below this sigma its square underflows; it means zero."""


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries in float64 with what is constant over the blocks; bad ones hold stand-ins."""

    x: Tensor  # (B, D)
    alpha: Tensor  # (B,)
    sigma: Tensor  # (B,)
    exclude: Tensor | None  # (B,)
    bad: Tensor  # (B,) bool: the outputs are NaN
    zero: Tensor  # (B,) bool: the limit sigma = 0
    inverse: Tensor  # (B,) 1 / 2 sigma^2; 0 where zero
    centred: Tensor  # (B, D) x'
    squares: Tensor  # (B,) |x'|^2
    error: Tensor  # (B,) E
    refined: Tensor  # (B,) bool: differences decide
    margin: Tensor  # (B,) how far below the best logit a row can still matter


@dataclass(frozen=True, slots=True)
class Block:
    """Some of the rows: ``stored`` is the stored value less the shift, in float64."""

    ids: Tensor  # (n,)
    stored: Tensor  # (n, D)
    norms: Tensor  # (n,)
    log_weights: Tensor | None  # (n,)


def shift_of(problem: Problem) -> int:
    """What is subtracted from stored values, so that their products stay small."""
    return UINT8_SHIFT if problem.data.dtype == torch.uint8 else 0


def stored_rows(problem: Problem, pick: Tensor | slice) -> Tensor:
    """Stored values less the shift, in float64."""
    stored = problem.data[pick].to(torch.float64)
    return stored.sub_(UINT8_SHIFT) if problem.data.dtype == torch.uint8 else stored


def decode(problem: Problem, stored: Tensor) -> Tensor:
    """Values in real units, by the same two roundings everywhere, so that equal rows stay so."""
    if problem.data.dtype != torch.uint8:
        return stored
    return (stored + UINT8_SHIFT) * problem.scale + problem.offset


def _check(problem: Problem) -> Tensor:
    """Raises for bad values, or marks the queries that have them: (B,) bool."""
    bad = ~(problem.sigma >= 0)
    if problem.check_values and bool(bad.any()):
        at = int(bad.nonzero()[0])
        got = f"got {problem.sigma[at].item()} at index {at}"
        raise ValueError(f"sigma must be zero or positive, {got}")
    if problem.exclude is not None:
        count = problem.data.shape[0]
        outside = (problem.exclude < -1) | (problem.exclude >= count)
        if problem.check_values and bool(outside.any()):
            at = int(outside.nonzero()[0])
            got = f"got {int(problem.exclude[at])} at index {at}"
            raise ValueError(f"exclude must be -1 or a row id below {count}, {got}")
        bad = bad | outside
    return bad


def prepare(problem: Problem) -> Queries:
    """Queries in float64, the bound on their logits, and who needs differences."""
    bad = _check(problem)
    features = problem.query.shape[1]
    x = problem.query.to(torch.float64)
    alpha = torch.ones_like(problem.sigma) if problem.alpha is None else problem.alpha
    norm = torch.linalg.vector_norm(x, dim=1)
    bad = bad | ~(norm * norm).isfinite() | ~(alpha >= 0) | alpha.isinf()
    x = x.masked_fill(bad[:, None], 0.0)
    alpha = alpha.masked_fill(bad, 1.0)
    sigma = problem.sigma.masked_fill(bad, 1.0)
    exclude = None if problem.exclude is None else problem.exclude.masked_fill(bad, -1)

    middle = origin(problem.data.dtype, problem.scale, problem.offset)
    centred = x if middle == 0.0 else x - middle * alpha[:, None]
    squares = centred.square().sum(1)
    norms = problem.norms if problem.rows is None else problem.norms[problem.rows]
    largest = norms.amax().sqrt() if len(norms) else norms.new_zeros(())
    # |origin| sqrt(D) because x' itself is rounded.
    reach = squares.sqrt() + alpha * (largest + abs(middle) * math.sqrt(features))
    error = (features + 20) * _UNIT * reach * reach

    zero = sigma < _ZERO_SIGMA
    inverse = (0.5 / (sigma * sigma)).masked_fill(zero, 0.0)
    slack = error * inverse
    exact = problem.query.dtype == torch.float64 and problem.data.dtype != torch.uint8
    # The score is alpha / sigma^2 times the mean, and its promise grows as 1 / sigma.
    allowed = (1e-9 if exact else 1e-5) / 4 * (sigma / alpha).clamp(max=1.0)
    margin = 2 * slack + math.log(max(1, len(norms))) + _MARGIN
    refined = zero | (slack > allowed)
    return Queries(
        x, alpha, sigma, exclude, bad, zero, inverse, centred, squares, error, refined, margin
    )


def blocks(problem: Problem) -> Iterator[Block]:
    """The eligible rows in ascending order, a bounded number at a time."""
    batch, features = problem.query.shape
    count = problem.data.shape[0] if problem.rows is None else len(problem.rows)
    step = max(1, BLOCK_ELEMENTS // max(1, features, 2 * batch))
    for start in range(0, count, step):
        stop = min(start + step, count)
        if problem.rows is None:
            ids = torch.arange(start, stop, device=problem.data.device)
            pick: slice | Tensor = slice(start, stop)
        else:
            ids = pick = problem.rows[start:stop]
        log_weights = None if problem.log_weights is None else problem.log_weights[pick]
        yield Block(ids, stored_rows(problem, pick), problem.norms[pick], log_weights)


def squared_distances(problem: Problem, queries: Queries, block: Block) -> Tensor:
    """Squared distances by products, (B, n); infinite where a row is not eligible."""
    alpha = queries.alpha[:, None]
    squared = queries.centred @ block.stored.T
    squared *= -2 * problem.scale * alpha
    squared += queries.squares[:, None]
    squared.addcmul_(alpha * alpha, block.norms[None, :]).clamp_(min=0.0)
    if queries.exclude is not None:
        squared.masked_fill_(block.ids == queries.exclude[:, None], torch.inf)
    if block.log_weights is not None:
        squared.masked_fill_(block.log_weights == -torch.inf, torch.inf)
    return squared


def logits_of(queries: Queries, block: Block, squared: Tensor) -> Tensor:
    """Logits of squared distances, (B, n); -inf where a row is not eligible."""
    logits = squared * -queries.inverse[:, None]
    if block.log_weights is not None:
        logits += block.log_weights
    return logits.masked_fill_(squared == torch.inf, -torch.inf)


def pairs(mask: Tensor, features: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices (query, column) where the mask is set, a bounded number at a time."""
    query_ids, columns = mask.nonzero(as_tuple=True)
    step = max(1, PAIR_ELEMENTS // max(1, features))
    for start in range(0, len(query_ids), step):
        yield query_ids[start : start + step], columns[start : start + step]


def excess_of(x: Tensor, alpha: Tensor, rows: Tensor, anchor: Tensor) -> Tensor:
    """|x - alpha row|^2 - |x - alpha anchor|^2 without cancellation, (P,)."""
    middle = 2 * x - alpha[:, None] * (rows + anchor)
    return alpha * ((anchor - rows) * middle).sum(1)


def distance(queries: Queries, ids: Tensor, rows: Tensor) -> Tensor:
    """|x - alpha row|^2 by differences, (P,)."""
    return (queries.x[ids] - queries.alpha[ids, None] * rows).square().sum(1)
