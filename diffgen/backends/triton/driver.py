"""The two ops by Triton kernels: which path a problem takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from diffgen.backends.problem import CovarianceInputs, Problem
from diffgen.backends.registry import Moments
from diffgen.backends.triton import bytes_moments, covariance, float_moments
from diffgen.backends.triton.blocks import on_device
from diffgen.backends.triton.nearest import nearest
from diffgen.backends.values import check_values

MOST_QUERIES = 32_768
"""Queries of one round of launches: a grid has at most 65,535 places along its later axes."""


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _parts(problem: Problem) -> Iterator[tuple[slice, Problem]]:
    """The problem, by as many queries at a time as a grid has room for."""
    batch = problem.query.shape[0]
    if batch <= MOST_QUERIES:
        yield slice(None), problem
        return
    for first in range(0, batch, MOST_QUERIES):
        part = slice(first, first + MOST_QUERIES)
        yield (
            part,
            replace(
                problem,
                query=problem.query[part],
                sigma=problem.sigma[part],
                alpha=None if problem.alpha is None else problem.alpha[part],
                exclude=None if problem.exclude is None else problem.exclude[part],
            ),
        )


def moments(problem: Problem, functionals: bool, top_k: int, mean_dtype: torch.dtype) -> Moments:
    """The moments op; see ``registry.Backend``.

    Raises:
        ValueError: For a bad value when the problem asks for the check, which waits for the GPU.
    """
    if problem.check_values and problem.query.shape[0] > 0:
        check_values(on_device(problem))
    with _on(problem.query.device):
        found = [_moments(part, functionals, top_k, mean_dtype) for _, part in _parts(problem)]
    if len(found) == 1:
        return found[0]
    mean, logsumexp, fields, indices, distances = map(torch.cat, zip(*found, strict=True))
    return mean, logsumexp, fields, indices, distances


def _moments(problem: Problem, functionals: bool, top_k: int, mean_dtype: torch.dtype) -> Moments:
    of_type = bytes_moments if problem.data.dtype == torch.uint8 else float_moments
    mean, logsumexp, fields = of_type.moments(problem, functionals, mean_dtype)
    if top_k > 0:
        return mean, logsumexp, fields, *nearest(problem, top_k)
    none = logsumexp.new_empty(logsumexp.shape[0], 0)
    return mean, logsumexp, fields, torch.empty_like(none, dtype=torch.int64), none


def covariance_product(problem: Problem, inputs: CovarianceInputs) -> tuple[Tensor, Tensor]:
    """The covariance product op; see ``registry.Backend``.

    Raises:
        ValueError: For a bad value when the problem asks for the check, which waits for the GPU.
    """
    if problem.check_values and problem.query.shape[0] > 0:
        check_values(on_device(problem))
    with _on(problem.query.device):
        return covariance.covariance_product(problem, inputs)
