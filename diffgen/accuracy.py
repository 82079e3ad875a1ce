r"""How accurate results are promised to be, and how far a result is from a reference.

The promise holds against a float64 reference by differences that takes the query and the exact
data as real numbers, for data in [-1, 1]; other data scale the tolerance of the mean by their
largest magnitude. A *unit* of the promise is the tolerance: a result is in it when its worst error
is at most one unit.

Beside the promise stands a bound derived from the arithmetic. With u its unit roundoff, s the
largest :math:`|x|^2 + \alpha^2 |y|^2` and l the log-sum-exp,

.. math::
    \eta = (8 + \sqrt D) u (s / 2 \sigma^2 + |l| + 1), \qquad |\Delta l| \le \eta, \qquad
    |\Delta m| \le (e^{2 \eta} - 1) E_w |y - m| + (8 + \sqrt N) u \max |y| .

A logit that is off by at most :math:`\eta` changes a weight by a factor within
:math:`e^{\pm 2 \eta}` after normalisation, and :math:`\sum_i w_i (y_i - m) = 0` leaves the spread
about the mean as the only thing that such a factor acts on. The last term is the rounding of the
weighted sum. Roundings of a sum of n terms add up like a random walk, to :math:`\sqrt n u`; 8 is
for the few steps around the sums, in a result and in what it is compared with.

Source: N. J. Higham and T. Mary, "A New Approach to Probabilistic Rounding Error Analysis", SIAM
Journal on Scientific Computing 41 (2019), for the square roots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffgen.backends.problem import CovarianceInputs, Problem
from diffgen.backends.registry import Moments

FUNCTIONALS = ("entropy", "effective_sample_size", "trace_covariance")
"""The columns of the functionals that the moments op returns."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A tolerance: the larger of ``absolute`` and ``relative`` times the value."""

    absolute: float
    relative: float

    def tolerance(self, value: Tensor) -> Tensor:
        """The tolerance for values, of their shape.

        Example:
            >>> Promise(1e-3, 1e-6).tolerance(torch.tensor([1.0, 1e4], dtype=torch.float64))
            tensor([0.0010, 0.0100], dtype=torch.float64)
        """
        return (self.relative * value.abs()).clamp(min=self.absolute)


PROMISES = {
    "logsumexp": Promise(1e-3, 1e-6),
    "mean": Promise(1e-5, 0.0),
    "score": Promise(1e-5, 1e-5),
    **dict.fromkeys(FUNCTIONALS, Promise(1e-3, 1e-3)),
    "covariance_product": Promise(0.0, 1e-3),
}
"""What is promised. The score adds its two parts, the absolute one over sigma. The covariance
product is relative to the same sum taken over magnitudes, because its weights are taken relative
to a log-sum-exp that is itself promised to 1e-3."""

FLOAT64_PROMISES = {
    "mean": Promise(0.0, 1e-9),
    **dict.fromkeys(("logsumexp", "score", *FUNCTIONALS), Promise(1e-9, 1e-9)),
    "covariance_product": Promise(0.0, 1e-6),
}
"""What is promised for float64 queries on floating-point sets. The mean is relative to the largest
magnitude in the data, the log-sum-exp and the functionals to the larger of themselves and 1."""


def promises(problem: Problem) -> dict[str, Promise]:
    """The promises that hold for a problem, by quantity."""
    exact = problem.query.dtype == torch.float64 and problem.data.dtype.is_floating_point
    return FLOAT64_PROMISES if exact else PROMISES


def largest_magnitude(problem: Problem) -> float:
    """The largest magnitude of a value in the data, in real units."""
    if problem.data.numel() == 0:
        return 0.0
    low, high = (float(end) for end in torch.aminmax(problem.data.flatten()))
    ends = (problem.offset + problem.scale * low, problem.offset + problem.scale * high)
    return max(map(abs, ends))


def _worst(error: Tensor, tolerance: Tensor, result: Tensor, reference: Tensor) -> float:
    """Largest error over tolerance; infinite where NaNs or infinities do not agree."""
    if result.numel() == 0:
        return 0.0
    special = ~reference.isfinite()
    agree = (result == reference) | (result.isnan() & reference.isnan())
    units = torch.where(special, torch.where(agree, 0.0, torch.inf), error / tolerance)
    units = torch.where(~special & (error == 0), 0.0, units)
    return float(torch.where(units.isnan(), torch.inf, units).amax())


def mean_tolerance(problem: Problem) -> float:
    """The tolerance of the mean before it is rounded to its type."""
    rule = promises(problem)["mean"]
    largest = largest_magnitude(problem)
    return max(rule.absolute * max(1.0, largest), rule.relative * largest)


def units_of_promise(moments: Moments, reference: Moments, problem: Problem) -> dict[str, float]:
    """The worst error of each quantity in units of its promise.

    Args:
        moments: Outputs of the moments op.
        reference: What they should be; its mean is float64.
        problem: The problem that both solve.

    Returns:
        Errors by quantity, at most 1 where the promise is kept and infinite where NaNs or
        infinities are in different places. The score is there for a float64 mean, functionals
        where both have them.
    """
    rules = promises(problem)
    mean, expected = moments[0].double(), reference[0].double()
    tolerance = torch.full_like(expected, mean_tolerance(problem))
    if moments[0].dtype != torch.float64:
        tolerance += expected.abs() * torch.finfo(moments[0].dtype).eps / 2
    units = {
        "logsumexp": _worst(
            (moments[1] - reference[1]).abs(),
            rules["logsumexp"].tolerance(reference[1]),
            moments[1],
            reference[1],
        ),
        "mean": _worst((mean - expected).abs(), tolerance, mean, expected),
    }
    if moments[0].dtype == torch.float64:
        units["score"] = _score_units(mean, expected, problem)
    if moments[2].shape == reference[2].shape:
        for name, got, want in zip(FUNCTIONALS, moments[2].T, reference[2].T, strict=False):
            units[name] = _worst((got - want).abs(), rules[name].tolerance(want), got, want)
    return units


def _score_units(mean: Tensor, expected: Tensor, problem: Problem) -> float:
    """The error of (alpha mean - x) / sigma^2, as an error of the mean."""
    rule = promises(problem)["score"]
    alpha = torch.ones_like(problem.sigma) if problem.alpha is None else problem.alpha
    alpha, sigma = alpha[:, None], problem.sigma[:, None]
    defined = ((sigma > 0) & (sigma < torch.inf)).expand_as(expected)
    residual = (problem.query.double() - alpha * expected).abs()
    scale = max(1.0, largest_magnitude(problem))
    tolerance = rule.relative * residual + rule.absolute * sigma * scale
    # x - alpha m is itself rounded.
    tolerance = tolerance + torch.finfo(torch.float64).eps * problem.query.double().abs()
    error = (alpha * (mean - expected)).abs()
    return _worst(error[defined], tolerance[defined], mean[defined], expected[defined])


def error_in_promises(moments: Moments, reference: Moments, problem: Problem) -> float:
    """The worst error of all quantities in units of their promises; see ``units_of_promise``."""
    return max(units_of_promise(moments, reference, problem).values())


def _weights(problem: Problem, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Eligible rows of one query in real units, their squared distances and their weights."""
    count = problem.data.shape[0]
    ids = torch.arange(count) if problem.rows is None else problem.rows
    rows = problem.offset + problem.scale * problem.data[ids].double()
    prior = torch.zeros(count).double() if problem.log_weights is None else problem.log_weights
    prior = prior[ids]
    if problem.exclude is not None:
        prior = prior.masked_fill(ids == problem.exclude[index], -torch.inf)
    alpha = 1.0 if problem.alpha is None else float(problem.alpha[index])
    sigma = float(problem.sigma[index])
    kept = prior > -torch.inf
    rows, prior = rows[kept], prior[kept]
    squared = (problem.query[index].double() - alpha * rows).square().sum(1)
    if sigma == 0:
        logits = prior.masked_fill(squared > squared.min() * (1 + 1e-12), -torch.inf)
    else:
        logits = prior - (squared - squared.min()) / sigma / sigma / 2
    return rows, squared, logits.softmax(0)


def logit_bound(problem: Problem, logsumexp: Tensor, unit: float) -> Tensor:
    """The bound eta on the error of a logit, ``(B,)``; see the module."""
    count = problem.data.shape[0]
    ids = torch.arange(count) if problem.rows is None else problem.rows
    rows = problem.offset + problem.scale * problem.data[ids].double()
    largest = rows.square().sum(1).amax()
    alpha = torch.ones_like(problem.sigma) if problem.alpha is None else problem.alpha
    reach = problem.query.double().square().sum(1) + alpha * alpha * largest
    sigma = problem.sigma
    steps = 8 + math.sqrt(rows.shape[1])
    eta = steps * unit * (reach / sigma / sigma / 2 + logsumexp.abs() + 1)
    return torch.where(eta.isnan(), torch.inf, eta)


def derived_bounds(problem: Problem, reference: Moments, unit: float) -> tuple[Tensor, Tensor]:
    """The derived bounds on logsumexp and mean; see the module.

    Args:
        problem: The problem, small: rows are decoded whole.
        reference: Its moments.
        unit: Unit roundoff of the arithmetic.

    Returns:
        Bounds ``(B,)`` and ``(B, D)``, infinite where sigma is 0 or the query not finite.
    """
    eta = logit_bound(problem, reference[1], unit)
    bound = torch.full(reference[0].shape, torch.inf, dtype=torch.float64)
    rounding = (8 + math.sqrt(len(problem.data))) * unit * largest_magnitude(problem)
    for index in range(len(eta)):
        if eta[index] < torch.inf:
            rows, _, weights = _weights(problem, index)
            mean = reference[0][index].double()
            spread = weights @ (rows - mean).abs()
            bound[index] = torch.expm1(2 * eta[index]) * spread + rounding
    return eta, bound


def covariance_tolerance(
    problem: Problem, inputs: CovarianceInputs, unit: float
) -> tuple[Tensor, Tensor]:
    r"""The tolerance of the covariance product and of its moment.

    An error of at most :math:`\eta` in each logit multiplies each weight by a factor within
    :math:`e^{\pm 2 \eta}` (once for the logit, once for the log-sum-exp that it is taken relative
    to); :math:`y_i - m` and :math:`\rho_i` are off by some :math:`\delta_y` and
    :math:`\delta_\rho` of rounding, all that is left where the weight is on equal rows; and rows
    that together hold less than :math:`\mu = 128 u` of the weight may be missing. With
    :math:`C_i = |y_i - m| |v| + |c \rho_i|`, norms standing for the rounding of the product, the
    result is off by at most

    .. math::
        (e^{2 \eta} - 1) \sum_i w_i C_i |y_i - m|
        + \sum_i w_i [(C_i + \delta_C) (|y_i - m| + \delta_y) - C_i |y_i - m|]
        + \mu \max_i C_i |y_i - m| .

    Args:
        problem: The problem, small: rows are decoded whole.
        inputs: The further inputs of the op.
        unit: Unit roundoff of the arithmetic.

    Returns:
        Tolerances ``(B, D)`` and ``(B, 2)``, with the first factor capped by the promise; NaN
        where the op returns NaN.
    """
    eta = logit_bound(problem, inputs.logsumexp, unit)
    cap = promises(problem)["covariance_product"].relative
    factors = (torch.expm1(2 * eta) + 8 * unit).clamp(max=cap)
    product = torch.full(inputs.mean.shape, torch.nan, dtype=torch.float64)
    moment = torch.full((len(eta), 2), torch.nan, dtype=torch.float64)
    root = math.sqrt(problem.data.shape[1])
    mass = 128 * unit
    for index in range(len(eta)):
        if not bool(eta[index] < torch.inf):
            continue
        rows, squared, weights = _weights(problem, index)
        alpha = 1.0 if problem.alpha is None else float(problem.alpha[index])
        query, mean = problem.query[index].double(), inputs.mean[index]
        radial = 0.0 if inputs.radial is None else float(inputs.radial[index].abs())
        base = (query - alpha * mean).square().sum()
        vector = inputs.v[index].norm()
        centred, rho = (rows - mean).abs(), (squared - base).abs()
        across = centred.norm(dim=1) * vector
        size = across + radial * rho
        # The rounding of decoded rows, and that of the two squared distances, expanded.
        shift = 8 * unit * (rows.abs().amax() + abs(problem.offset))
        reach = query.square().sum() + alpha * alpha * rows.square().sum(1)
        bend = 2 * (8 + root) * unit * reach + 2 * alpha * shift * root * (
            squared.sqrt() + base.sqrt()
        )
        more = shift * root * vector + radial * bend
        factor = factors[index]
        product[index] = (weights * ((1 + factor) * size + more)) @ (centred + shift)
        product[index] -= (weights * size) @ centred
        product[index] += mass * (size[:, None] * centred).amax(0)
        moment[index, 0] = (weights * ((1 + factor) * across + more)) @ (rho + bend)
        moment[index, 0] += mass * (across * rho).amax() - (weights * across) @ rho
        moment[index, 1] = weights @ (factor * rho + bend) + mass * rho.amax()
    return product, moment
