r"""The definition of the two ops: float64, by differences, the full matrix.

With :math:`y_i` the rows in real units, :math:`r_i = |x - \alpha y_i|^2` and :math:`p_i` the log
weights,

.. math::
    l_i = p_i - r_i / 2 \sigma^2, \qquad w = \mathrm{softmax}(l), \qquad m = \sum_i w_i y_i .

Weights depend on differences of the :math:`l_i` only, so they are taken against the nearest row
``n`` as :math:`r_i - r_n = \alpha (y_n - y_i) \cdot (2 x - \alpha (y_i + y_n))`: half-way between
two rows, where :math:`r_i / 2 \sigma^2` itself can be :math:`10^8` and its rounding visible, this
form loses nothing.

It shares no code with the backends that it checks, and only tests name it.

Source: Yi, Sun and Li (2023), "On the Generalization of Diffusion Model", arXiv:2305.14712.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffgen.backends.problem import CovarianceInputs, Demands, Problem
from diffgen.backends.registry import Backend, Moments, register

_ELEMENTS = 2**23
"""Elements of a (b, M, D) intermediate: four of them at once stay below 256 MiB."""

_TIE = 1 + 1e-12
"""At sigma = 0 squared distances within this factor of the smallest are equal."""


def _rows(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, values in real units and log weights of the eligible rows."""
    count = problem.data.shape[0]
    ids = torch.arange(count) if problem.rows is None else problem.rows
    weights = problem.log_weights
    log_weights = torch.zeros(len(ids)).double() if weights is None else weights[ids]
    return ids, problem.offset + problem.scale * problem.data[ids].double(), log_weights


def _chunks(problem: Problem, row_count: int) -> list[Tensor]:
    """Indices of the queries, in parts whose (b, M, D) intermediates stay bounded."""
    batch, features = problem.query.shape
    return list(torch.split(torch.arange(batch), max(1, _ELEMENTS // max(1, row_count * features))))


def _checked(problem: Problem) -> Tensor:
    """Raises for bad values, or marks the queries that have them: (B,) bool."""
    sigma, exclude = problem.sigma, problem.exclude
    bad = ~(sigma >= 0)
    if problem.check_values and bad.any():
        at = int(bad.nonzero()[0])
        raise ValueError(f"sigma must be zero or positive, got {sigma[at].item()} at index {at}")
    if exclude is not None:
        count = problem.data.shape[0]
        outside = (exclude < -1) | (exclude >= count)
        if problem.check_values and outside.any():
            at = int(outside.nonzero()[0])
            got = f"got {int(exclude[at])} at index {at}"
            raise ValueError(f"exclude must be -1 or a row id below {count}, {got}")
        bad = bad | outside
    return bad | ~problem.query.isfinite().all(1)


def _query(problem: Problem, part: Tensor, ids: Tensor, log_weights: Tensor) -> list[Tensor]:
    """x, alpha and sigma, shaped (b, D), (b, 1), (b, 1), and the log weights, (b, M)."""
    alpha = torch.ones_like(problem.sigma) if problem.alpha is None else problem.alpha
    prior = log_weights.expand(len(part), -1)
    if problem.exclude is not None:
        prior = prior.masked_fill(ids == problem.exclude[part, None], -torch.inf)
    return [problem.query[part].double(), alpha[part, None], problem.sigma[part, None], prior]


def moments(problem: Problem, functionals: bool, top_k: int, mean_dtype: torch.dtype) -> Moments:
    """The moments op, by its definition."""
    bad = _checked(problem)
    ids, y, log_weights = _rows(problem)
    batch, features = problem.query.shape
    mean = torch.empty(batch, features, dtype=torch.float64)
    logsumexp = torch.empty(batch, dtype=torch.float64)
    fields = torch.empty(batch, 3 if functionals else 0, dtype=torch.float64)
    top_ids = torch.empty(batch, top_k, dtype=torch.int64)
    top_distances = torch.empty(batch, top_k, dtype=torch.float64)
    for part in _chunks(problem, len(ids)):
        x, alpha, sigma, prior = _query(problem, part, ids, log_weights)
        possible = (prior > -torch.inf).sum(1)
        bad[part] |= possible == 0
        if problem.check_values and (possible == 0).any():
            at = int(part[possible == 0][0])
            raise ValueError(f"exclude leaves no training point for query {at}")
        few = possible < top_k
        if few.any() and (problem.check_values or top_k > len(ids)):
            at = int(few.nonzero()[0])
            raise ValueError(
                f"top_k must be at most the number of eligible points, {int(possible[at])} for "
                f"query {int(part[at])}, got {top_k}"
            )
        r = (x[:, None] - alpha[..., None] * y).square().sum(2)  # (b, M)
        r = r.masked_fill(prior == -torch.inf, torch.inf)
        least_r, nearest = r.min(1, keepdim=True)
        n = y[nearest]  # (b, 1, D)
        excess = alpha * ((n - y) * (2 * x[:, None] - alpha[..., None] * (y + n))).sum(2)
        tied = prior.masked_fill(r > least_r * _TIE, -torch.inf)  # the limit sigma = 0
        logits = torch.where(sigma > 0, prior - excess / sigma / sigma / 2, tied)
        w = logits.softmax(1)
        depth = torch.where((sigma == 0) & (least_r == 0), 0, least_r / sigma / sigma / 2)
        mean[part] = w @ y
        logsumexp[part] = logits.logsumexp(1) - depth[:, 0]
        if functionals:
            trace = (w * (y - mean[part][:, None]).square().sum(2)).sum(1)
            fields[part] = torch.stack([torch.special.entr(w).sum(1), 1 / (w * w).sum(1), trace], 1)
        distances, order = r.sort(dim=1, stable=True)
        there = (distances < torch.inf)[:, :top_k]
        top_ids[part] = ids[order[:, :top_k]].where(there, -1)
        top_distances[part] = distances[:, :top_k].sqrt().where(there, torch.nan)
    mean[bad], logsumexp[bad], fields[bad] = torch.nan, torch.nan, torch.nan
    top_ids[bad], top_distances[bad] = -1, torch.nan
    return mean.to(mean_dtype), logsumexp, fields, top_ids, top_distances


def covariance_product(problem: Problem, inputs: CovarianceInputs) -> tuple[Tensor, Tensor]:
    """The covariance product op, by its definition."""
    bad = _checked(problem) | (problem.sigma == 0)
    ids, y, log_weights = _rows(problem)
    product = torch.empty(problem.query.shape, dtype=torch.float64)
    moment = torch.empty(len(problem.query), 2, dtype=torch.float64)
    radial = torch.zeros_like(problem.sigma) if inputs.radial is None else inputs.radial
    for part in _chunks(problem, len(ids)):
        x, alpha, sigma, prior = _query(problem, part, ids, log_weights)
        m = inputs.mean[part]
        centred = y - m[:, None]  # (b, M, D)
        across = (centred @ inputs.v[part][..., None])[..., 0]  # (b, M)
        rho = -alpha * (centred * (2 * x[:, None] - alpha[..., None] * (y + m[:, None]))).sum(2)
        r = rho + (x - alpha * m).square().sum(1, keepdim=True)
        w = (prior - r / sigma / sigma / 2 - inputs.logsumexp[part, None]).exp()
        coefficient = w * (across + radial[part, None] * rho)
        product[part] = (coefficient[..., None] * centred).sum(1)
        moment[part] = torch.stack([(w * across * rho).sum(1), (w * rho).sum(1)], 1)
    product[bad], moment[bad] = torch.nan, torch.nan
    return product, moment


def _refuses(problem: Problem, _: Demands) -> list[str]:
    device = problem.data.device.type
    return [] if device == "cpu" else [f"needs CPU tensors, got {device}"]


register(
    Backend(
        name="reference",
        priority=-1,
        unavailable=lambda: None,
        refuses=_refuses,
        moments=moments,
        covariance_product=covariance_product,
        arithmetic="float64, differences, full matrix",
    )
)
