"""The problem a backend is handed: queries, noise levels and the rows they are compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Problem:
    """Queries against rows of a training set.

    Attributes:
        query: Noisy points, ``(B, D)``, float32 or float64, contiguous.
        sigma: Noise standard deviations, ``(B,)`` float64, zero or more.
        alpha: Signal scales, ``(B,)`` float64, zero or more; None for ones.
        exclude: Row id left out for each query, ``(B,)`` int64, -1 for none; or None.
        data: Stored rows, ``(N, D)``. A row means ``offset + scale * stored``.
        norms: ``|x_i - origin|^2``, ``(N,)`` float64, with ``origin`` of ``diffgen.set_view``.
        log_weights: ``(N,)`` float64 or None.
        rows: Ids of the eligible rows, ascending, ``(M,)`` int64; None for all rows.
        scale: See ``data``.
        offset: See ``data``.
        check_values: Whether a bad ``sigma`` or ``exclude`` raises ``ValueError``; otherwise it
            gives a NaN row.
    """

    query: Tensor
    sigma: Tensor
    alpha: Tensor | None
    exclude: Tensor | None
    data: Tensor
    norms: Tensor
    log_weights: Tensor | None
    rows: Tensor | None
    scale: float
    offset: float
    check_values: bool = True

    def take(self, queries: Tensor) -> Problem:
        """The problem of some of the queries, ``(n,)`` int64."""
        return replace(
            self,
            query=self.query[queries],
            sigma=self.sigma[queries],
            alpha=None if self.alpha is None else self.alpha[queries],
            exclude=None if self.exclude is None else self.exclude[queries],
        )


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Some rows of a set, in ascending order of their ids.

    Attributes:
        data: Stored rows, ``(n, D)``, contiguous. It may be a reused buffer.
        first: Id of the first row.
        ids: Ids of the rows, ``(n,)`` int64; None where they follow one another.
        norms: As in ``Problem``, of these rows, ``(n,)``.
        log_weights: Likewise, or None.
        spare: So many threads have better left to whoever brings the rows.
        file: Descriptor of an open file that has the rows, where ``data`` has none, ``(0, D)``;
            -1 where it has.
        offset: Byte of the first row in it.
    """

    data: Tensor
    first: int
    ids: Tensor | None
    norms: Tensor
    log_weights: Tensor | None
    spare: int = 0
    file: int = -1
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Extent:
    """What a result depends on beside the rows at hand.

    Attributes:
        count: Rows of the set.
        eligible: Of them, those that the queries may use.
        longest: Largest length of an eligible row about the origin.
        typical: Their root mean square length.
    """

    count: int
    eligible: int
    longest: float
    typical: float


class Demands(NamedTuple):
    """What one call wants of a backend beside mean and logsumexp, which every backend gives.

    Attributes:
        functionals: Entropy, effective sample size and trace of the covariance.
        top_k: So many nearest rows.
        covariance: The covariance product, in place of the moments.
    """

    functionals: bool = False
    top_k: int = 0
    covariance: bool = False


MEAN_ONLY = Demands()
"""The demands of a call that wants mean and logsumexp."""


@dataclass(frozen=True, slots=True)
class CovarianceInputs:
    """What the covariance product needs beside the problem.

    Attributes:
        mean: Posterior mean of the same problem, ``(B, D)`` float64.
        logsumexp: Its log-sum-exp, ``(B,)`` float64.
        v: Vectors to multiply, ``(B, D)`` float64.
        radial: Coefficient of the squared distance in the row coefficients, ``(B,)`` float64, or
            None for zeros.
    """

    mean: Tensor
    logsumexp: Tensor
    v: Tensor
    radial: Tensor | None
