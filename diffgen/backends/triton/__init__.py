"""The Triton kernels: both ops on a GPU, for every type of set.

What they promise: over 8-bit sets mean, logsumexp, functionals and nearest rows are the ``cpu``
backend's, bit for bit; over floating-point sets they are within the promise of
``docs/numerics.md``, the same bits for the same call. Covariance products are within the promise.
Nothing waits for the device: a call can be captured in a CUDA graph. ``docs/gpu.md`` says where
that was tested.

Importing this package does not import Triton; the first call does.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from diffgen.backends.problem import CovarianceInputs, Demands, Problem
from diffgen.backends.registry import Backend, Moments, register

STORAGE_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What the stored rows may be."""

OLDEST = (3, 8)
"""The least version of Triton: the kernels were compiled by no earlier one."""

MOST_FEATURES = 131_071
"""Of uint8 rows: sums of so many products of bytes stay within an int32."""


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "") == "1"


@cache
def _missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    version = importlib.metadata.version("triton")
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        return f"needs triton {'.'.join(map(str, OLDEST))} or later, got {version}"
    return None


def _unavailable() -> str | None:
    if _missing() is None and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    return _missing()


def _not_interpreted() -> str | None:
    if _missing() is None and not _interpreted():
        return "needs TRITON_INTERPRET=1 in the environment"
    return _missing()


def _refuses_type(problem: Problem) -> list[str]:
    query, data = problem.query, problem.data
    reasons = []
    if data.dtype not in STORAGE_TYPES:
        reasons.append(f"needs uint8 or floating-point data, got {data.dtype}")
    if data.dtype == torch.uint8 and query.shape[1] > MOST_FEATURES:
        reasons.append(f"needs at most {MOST_FEATURES} features, got {query.shape[1]}")
    if query.dtype not in (torch.float32, torch.float64):
        reasons.append(f"needs a float32 or float64 query, got {query.dtype}")
    if not data.is_contiguous():
        reasons.append(f"needs contiguous rows, got strides {data.stride()}")
    return reasons


def _refuses(problem: Problem, _: Demands) -> list[str]:
    if not problem.query.is_cuda:
        return [f"needs a query on a GPU, got {problem.query.device}"]
    if problem.data.is_cuda and problem.data.device != problem.query.device:
        return [
            f"needs data and query on one device, or data in host memory, got "
            f"{problem.data.device} and {problem.query.device}"
        ]
    return _refuses_type(problem)


def _refuses_interpreted(problem: Problem, _: Demands) -> list[str]:
    if not (problem.query.is_cpu and problem.data.is_cpu):
        return [f"needs CPU tensors, got {problem.data.device} and {problem.query.device}"]
    return _refuses_type(problem)


def moments(problem: Problem, functionals: bool, top_k: int, mean_dtype: torch.dtype) -> Moments:
    """The moments op; see ``registry.Backend``."""
    from diffgen.backends.triton import driver

    return driver.moments(problem, functionals, top_k, mean_dtype)


def covariance_product(problem: Problem, inputs: CovarianceInputs) -> tuple[Tensor, Tensor]:
    """The covariance product op; see ``registry.Backend``."""
    from diffgen.backends.triton import driver

    return driver.covariance_product(problem, inputs)


_ARITHMETIC = "integers over 8-bit sets: the cpu backend's bits; products with a bound over others"

register(
    Backend(
        name="triton",
        priority=20,
        unavailable=_unavailable,
        refuses=_refuses,
        moments=moments,
        covariance_product=covariance_product,
        arithmetic=_ARITHMETIC,
    )
)
register(
    Backend(
        name="triton:interpreted",
        priority=-1,
        unavailable=_not_interpreted,
        refuses=_refuses_interpreted,
        moments=moments,
        covariance_product=covariance_product,
        arithmetic=_ARITHMETIC,
    )
)
