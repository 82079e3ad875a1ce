"""Checks of values on the device where they are: what the CPU op checks as it reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from diffgen.backends.problem import Problem


def check_values(problem: Problem) -> None:
    """Raises for values that a backend can only answer by NaN; waits for the device.

    Args:
        problem: Queries and rows, all on one device.

    Raises:
        ValueError: For a negative or NaN ``sigma``, an ``exclude`` that is no row, or a query that
            is left without a row.
    """
    sigma_is_bad = ~(problem.sigma >= 0)
    outside = torch.zeros_like(sigma_is_bad)
    count = problem.data.shape[0]
    if problem.exclude is not None:
        outside = (problem.exclude < -1) | (problem.exclude >= count)
    left = eligible_rows(problem)
    if not bool((sigma_is_bad | outside | (left < 1)).any()):
        return
    if bool(sigma_is_bad.any()):
        at = _first(sigma_is_bad)
        got = f"got {problem.sigma[at].item()} at index {at}"
        raise ValueError(f"sigma must be zero or positive, {got}")
    if problem.exclude is not None and bool(outside.any()):
        at = _first(outside)
        got = f"got {int(problem.exclude[at])} at index {at}"
        raise ValueError(f"exclude must be -1 or a row id below {count}, {got}")
    raise ValueError(f"exclude leaves no training point for query {_first(left < 1)}")


def _first(marked: Tensor) -> int:
    return int(marked.nonzero()[0])


def eligible_rows(problem: Problem) -> Tensor:
    """How many rows each query may use, ``(B,)``; an ``exclude`` outside counts as none."""
    count, rows, exclude = problem.data.shape[0], problem.rows, problem.exclude
    eligible = torch.ones(count, dtype=torch.bool, device=problem.norms.device)
    if rows is not None:
        eligible = torch.zeros_like(eligible).index_fill_(0, rows, True)
    if problem.log_weights is not None:
        eligible &= problem.log_weights > -torch.inf
    left = eligible.sum().expand(problem.query.shape[0])
    if exclude is None:
        return left
    inside = (exclude >= 0) & (exclude < count)
    return left - (inside & eligible[exclude.clamp(0, count - 1)]).to(left.dtype)
