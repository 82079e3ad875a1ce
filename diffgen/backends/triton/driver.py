"""The two ops by Triton kernels: which path a problem takes."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from diffgen.backends.problem import CovarianceInputs, Problem
from diffgen.backends.registry import Moments
from diffgen.backends.triton import bytes_moments, covariance, float_moments
from diffgen.backends.triton.blocks import on_device
from diffgen.backends.triton.nearest import nearest
from diffgen.backends.values import check_values


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def moments(problem: Problem, functionals: bool, top_k: int, mean_dtype: torch.dtype) -> Moments:
    """The moments op; see ``registry.Backend``.

    Raises:
        ValueError: For a bad value when the problem asks for the check, which waits for the GPU.
    """
    if problem.check_values and problem.query.shape[0] > 0:
        check_values(on_device(problem))
    with _on(problem.query.device):
        of_type = bytes_moments if problem.data.dtype == torch.uint8 else float_moments
        mean, logsumexp, fields = of_type.moments(problem, functionals, mean_dtype)
        if top_k > 0:
            return mean, logsumexp, fields, *nearest(problem, top_k)
        none = logsumexp.new_empty(logsumexp.shape[0], 0)
        return mean, logsumexp, fields, none.to(torch.int64), none


def covariance_product(problem: Problem, inputs: CovarianceInputs) -> tuple[Tensor, Tensor]:
    """The covariance product op; see ``registry.Backend``.

    Raises:
        ValueError: For a bad value when the problem asks for the check, which waits for the GPU.
    """
    if problem.check_values and problem.query.shape[0] > 0:
        check_values(on_device(problem))
    with _on(problem.query.device):
        return covariance.covariance_product(problem, inputs)
