"""The C++ kernels of ``csrc/cpu``: one backend for the best instruction set, one for each level.

Source: ``docs/numerics.md`` derives the bounds that they keep.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import ModuleType

import torch
from torch import Tensor

from diffgen.backends.cpu_pass import blockwise
from diffgen.backends.native import load_native, why_not_native
from diffgen.backends.native_arguments import STORAGE, address, arguments
from diffgen.backends.problem import CovarianceInputs, Demands, Problem
from diffgen.backends.registry import Backend, Moments, register

_LEVELS = ("portable", "avx2", "avxvnni", "avx512", "avx512vnni")


@cache
def _unavailable(isa: str) -> str | None:
    native = load_native()
    if native is None:
        return why_not_native()
    states: dict[str, str] = native.instruction_sets()
    if isa == "auto":
        return None if "" in states.values() else "no instruction set of this build can run here"
    return states.get(isa, f"this build has no {isa}") or None


def _refuses(problem: Problem, _: Demands) -> list[str]:
    reasons = []
    if not (problem.data.is_cpu and problem.query.is_cpu):
        reasons.append(f"needs CPU tensors, got {problem.data.device} and {problem.query.device}")
    if problem.data.dtype not in STORAGE:
        reasons.append(f"has no kernel for data of type {problem.data.dtype}")
    if problem.query.dtype not in (torch.float32, torch.float64):
        reasons.append(f"needs a float32 or float64 query, got {problem.query.dtype}")
    return reasons


def _native() -> ModuleType:
    native = load_native()
    assert native is not None  # `unavailable` has said so
    return native


def moments(
    isa: str,
    problem: Problem,
    functionals: bool,
    top_k: int,
    mean_dtype: torch.dtype,
    *,
    screening_digits: int = 0,
) -> Moments:
    """The moments op on one instruction set; see ``registry.Backend``.

    Args:
        isa: A level of ``csrc/cpu/isa_list.h``, or ``"auto"`` for the best that runs here.
        problem: As the op has it.
        functionals: As the op has it.
        top_k: As the op has it.
        mean_dtype: As the op has it.
        screening_digits: Leading digits of a query that screen uint8 rows, 1 to 5; 0 chooses them.
            A matter of speed: the result does not depend on it, bit for bit.
    """
    native = _native()
    batch, features = problem.query.shape
    mean = torch.empty((batch, features), dtype=mean_dtype)
    logsumexp = torch.empty((batch,), dtype=torch.float64)
    fields = torch.empty((batch, 3 if functionals else 0), dtype=torch.float64)
    indices = torch.empty((batch, top_k), dtype=torch.int64)
    distances = torch.empty((batch, top_k), dtype=torch.float64)
    native.moments(
        arguments(native, problem),
        mean.data_ptr(),
        mean_dtype == torch.float64,
        logsumexp.data_ptr(),
        fields.data_ptr() if functionals else 0,
        top_k,
        indices.data_ptr(),
        distances.data_ptr(),
        isa,
        torch.get_num_threads(),
        problem.check_values,
        screening_digits,
    )
    return mean, logsumexp, fields, indices, distances


def _covariance_product(
    isa: str, problem: Problem, inputs: CovarianceInputs
) -> tuple[Tensor, Tensor]:
    native = _native()
    product = torch.empty(problem.query.shape, dtype=torch.float64)
    moment = torch.empty((problem.query.shape[0], 2), dtype=torch.float64)
    native.covariance_product(
        arguments(native, problem),
        inputs.mean.data_ptr(),
        inputs.logsumexp.data_ptr(),
        inputs.v.data_ptr(),
        address(inputs.radial),
        product.data_ptr(),
        moment.data_ptr(),
        isa,
        torch.get_num_threads(),
        problem.check_values,
    )
    return product, moment


def _register(name: str, isa: str, priority: int) -> None:
    unavailable: Callable[[], str | None] = partial(_unavailable, isa)
    register(
        Backend(
            name=name,
            priority=priority,
            unavailable=unavailable,
            refuses=_refuses,
            moments=partial(moments, isa),
            covariance_product=partial(_covariance_product, isa),
            arithmetic="float32 products with a bound, float64 differences where it decides",
            blockwise=blockwise(isa),
        )
    )


_register("cpu", "auto", 10)
for _level in _LEVELS:
    _register(f"cpu:{_level}", _level, -1)
