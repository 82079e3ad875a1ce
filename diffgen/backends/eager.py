"""The two ops in plain PyTorch: any device with float64, any size of set, one pass over the rows.

How a result is kept right at every noise level is told in ``eager_rows``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffgen.backends.eager_merge import Nearest, RunningPosterior
from diffgen.backends.eager_rows import (
    Queries,
    blocks,
    decode,
    excess_of,
    logits_of,
    pairs,
    prepare,
    shift_of,
    squared_distances,
)
from diffgen.backends.problem import CovarianceInputs, Demands, Problem
from diffgen.backends.registry import Backend, Moments, register

STORAGE_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What the stored rows may be."""


def _check_top_k(problem: Problem, queries: Queries, top_k: int) -> None:
    """Raises where a query has fewer than k eligible rows."""
    count = problem.data.shape[0]
    eligible = torch.ones(count, dtype=torch.bool, device=problem.data.device)
    if problem.rows is not None:
        eligible = torch.zeros_like(eligible).index_fill_(0, problem.rows, True)
    if problem.log_weights is not None:
        eligible &= problem.log_weights > -torch.inf
    left = eligible.sum().expand(len(queries.x))
    if queries.exclude is not None:
        hit = eligible[queries.exclude.clamp(min=0)] & (queries.exclude >= 0)
        left = left - hit.to(torch.int64)
    few = left < top_k
    total = count if problem.rows is None else len(problem.rows)
    if bool(few.any()) and (problem.check_values or top_k > total):
        at = int(few.nonzero()[0])
        raise ValueError(
            f"top_k must be at most the number of eligible points, {int(left[at])} for query "
            f"{at}, got {top_k}"
        )


def moments(problem: Problem, functionals: bool, top_k: int, mean_dtype: torch.dtype) -> Moments:
    """The moments op.

    Args:
        problem: Queries and rows.
        functionals: Whether entropy, effective sample size and trace are asked for.
        top_k: How many nearest rows are asked for.
        mean_dtype: Type of the mean.

    Returns:
        Mean ``(B, D)``, logsumexp ``(B,)``, functionals ``(B, 3)`` or ``(B, 0)``, ids and
        distances of the nearest rows ``(B, k)``.

    Raises:
        ValueError: For a bad value when the problem asks for the check, or when ``top_k`` exceeds
            the eligible rows.
    """
    queries = prepare(problem)
    posterior = RunningPosterior(problem, queries, functionals)
    nearest = Nearest(problem, queries, top_k) if top_k else None
    for block in blocks(problem) if len(queries.x) else ():
        squared = squared_distances(problem, queries, block)
        posterior.add(block, squared)
        if nearest is not None:
            nearest.add(block, squared)
    mean, logsumexp, fields = posterior.finish()
    if nearest is not None:
        _check_top_k(problem, queries, top_k)
        return mean.to(mean_dtype), logsumexp, fields, *nearest.finish()
    none = logsumexp.new_empty(len(logsumexp), 0)
    return mean.to(mean_dtype), logsumexp, fields, none.to(torch.int64), none


def covariance_product(problem: Problem, inputs: CovarianceInputs) -> tuple[Tensor, Tensor]:
    """The covariance product op.

    Args:
        problem: Queries and rows, those of the moments.
        inputs: The moments, the vectors and the radial coefficients.

    Returns:
        Product ``(B, D)`` and moment ``(B, 2)``; NaN where sigma is 0, where weights relative to
        ``logsumexp`` are not defined.

    Raises:
        ValueError: For a bad value when the problem asks for the check.
    """
    queries = prepare(problem)
    mean, v = inputs.mean, inputs.v
    radial = torch.zeros_like(queries.sigma) if inputs.radial is None else inputs.radial
    base = (queries.x - queries.alpha[:, None] * mean).square().sum(1)
    shift = shift_of(problem) * problem.scale + problem.offset
    level = shift * v.sum(1) - (mean * v).sum(1)
    refine = bool(queries.refined.any())
    sums, total = torch.zeros_like(mean), torch.zeros_like(base)  # of coefficient * stored
    product = torch.zeros_like(mean)
    moment = mean.new_zeros(len(mean), 2)
    for block in blocks(problem) if len(mean) else ():
        squared = squared_distances(problem, queries, block)
        logits = logits_of(queries, block, squared) - inputs.logsumexp[:, None]
        decided = queries.refined & ~queries.zero
        matters = (logits >= -queries.margin[:, None]) & decided[:, None]
        weights = logits.masked_fill_(queries.refined[:, None], -torch.inf).exp_()
        rho = (squared - base[:, None]).masked_fill_(squared == torch.inf, 0.0)
        across = (v @ block.stored.T) * problem.scale + level[:, None]
        coefficient = weights * (across + radial[:, None] * rho)
        sums.addmm_(coefficient, block.stored)
        total += coefficient.sum(1)
        weights *= rho
        moment += torch.stack([(weights * across).sum(1), weights.sum(1)], 1)
        for ids, columns in pairs(matters, mean.shape[1]) if refine else ():
            rows = decode(problem, block.stored[columns])
            excess = excess_of(queries.x[ids], queries.alpha[ids], rows, mean[ids])
            logit = -(excess + base[ids]) * queries.inverse[ids] - inputs.logsumexp[ids]
            if block.log_weights is not None:
                logit += block.log_weights[columns]
            weight, centred = logit.exp(), rows - mean[ids]
            along = (centred * v[ids]).sum(1)
            pair = weight * (along + radial[ids] * excess)
            product.index_add_(0, ids, pair[:, None] * centred)
            weight *= excess
            moment.index_add_(0, ids, torch.stack([weight * along, weight], 1))
    product += problem.scale * sums + total[:, None] * (shift - mean)
    bad = (queries.bad | queries.zero)[:, None]
    return product.masked_fill_(bad, torch.nan), moment.masked_fill_(bad, torch.nan)


def _refuses(problem: Problem, _: Demands) -> list[str]:
    reasons = []
    if problem.data.dtype not in STORAGE_TYPES:
        reasons.append(f"needs uint8 or floating-point data, got {problem.data.dtype}")
    if problem.query.dtype not in (torch.float32, torch.float64):
        reasons.append(f"needs a float32 or float64 query, got {problem.query.dtype}")
    if problem.data.device != problem.query.device:
        reasons.append(
            f"needs data and query on one device, got {problem.data.device} and "
            f"{problem.query.device}"
        )
    if problem.data.device.type == "mps":
        reasons.append("needs a device with float64, got mps")
    return reasons


register(
    Backend(
        name="eager",
        priority=0,
        unavailable=lambda: None,
        refuses=_refuses,
        moments=moments,
        covariance_product=covariance_product,
        arithmetic="float64 products, differences where they decide",
    )
)
