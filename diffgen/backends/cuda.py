"""The CUDA kernels of ``csrc/cuda``: mean and logsumexp over 8-bit sets, with the CPU's bits.

The sums are integers, in the canonical order of ``docs/numerics-integers.md``, so that a GPU
returns what the ``cpu`` backend returns, bit for bit. Work is put on the current stream and
nothing waits for it: a call can be captured in a CUDA graph. ``docs/gpu.md`` says where that was
tested.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from diffgen.backends.native_arguments import arguments
from diffgen.backends.native_cuda import load_native_cuda, why_no_device, why_not_native_cuda
from diffgen.backends.problem import MEAN_ONLY, CovarianceInputs, Demands, Problem
from diffgen.backends.registry import Backend, Moments, register
from diffgen.backends.values import check_values
from diffgen.errors import BackendError

OLDEST = (8, 0)
"""The least compute capability: products of 8-bit integers in tensor cores, asynchronous copies."""

_PLACE = "needs data and query on one CUDA device"
_ON_CPU = f"{_PLACE}, got cpu and cpu"


@cache
def _unavailable() -> str | None:
    native = load_native_cuda()
    if native is None:
        return why_not_native_cuda()
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return why_no_device(native)


def _refuses(problem: Problem, demands: Demands) -> list[str]:
    query, data = problem.query, problem.data
    if query.is_cpu and data.is_cpu:
        return [_ON_CPU]  # at once: every problem on the CPU comes by here
    if not (data.is_cuda and query.is_cuda and data.device == query.device):
        return [f"{_PLACE}, got {data.device} and {query.device}"]
    reasons = _against_device(torch.cuda.get_device_capability(query.device))
    if data.dtype != torch.uint8:
        reasons.append(f"needs uint8 data, got {data.dtype}")
    elif not data.is_contiguous():
        reasons.append(f"needs contiguous rows, got strides {data.stride()}")
    if query.dtype not in (torch.float32, torch.float64):
        reasons.append(f"needs a float32 or float64 query, got {query.dtype}")
    native = load_native_cuda()
    if native is not None and query.shape[1] > native.MOST_FEATURES:
        reasons.append(f"needs at most {native.MOST_FEATURES} features, got {query.shape[1]}")
    return reasons + _not_given(demands)


def _not_given(demands: Demands) -> list[str]:
    wanted = {
        "functionals": demands.functionals,
        "nearest rows": demands.top_k > 0,
        "covariance product": demands.covariance,
    }
    return [f"gives no {name}" for name, asked in wanted.items() if asked]


def _against_device(capability: tuple[int, int]) -> list[str]:
    if capability < OLDEST:
        return [f"needs compute capability {_dotted(OLDEST)} or more, got {_dotted(capability)}"]
    native = load_native_cuda()
    if native is None or runs_on(capability, native.targets().split(";")):
        return []
    built = native.targets().replace(";", ", ")
    return [f"is compiled for {built}, got a device of capability {_dotted(capability)}"]


def runs_on(capability: tuple[int, int], targets: list[str]) -> bool:
    """Whether a device can run what was compiled.

    Machine code runs on later devices of its generation, PTX on every later device.

    Args:
        capability: Of the device, such as ``(9, 0)``.
        targets: Such as ``["sm_80", "sm_90", "compute_90"]``.

    Example:
        >>> runs_on((8, 6), ["sm_80"]), runs_on((9, 0), ["sm_80"])
        (True, False)
    """
    for target in targets:
        kind, _, number = target.partition("_")
        built = divmod(int(number), 10)
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _scratch(native: ModuleType, call: object, like: Tensor) -> Tensor:
    """Memory of the device for one call, the least that does where the usual does not fit."""
    least = native.smallest_scratch_bytes(call)
    for size in (native.scratch_bytes(call), least):
        try:
            return torch.empty(size, dtype=torch.uint8, device=like.device)
        except torch.OutOfMemoryError:
            continue
    free, _ = torch.cuda.mem_get_info(like.device)
    raise BackendError(
        f"backend 'cuda' needs at least {least} bytes of scratch for {len(like)} queries, got "
        f"{free} bytes free on {like.device}: pass fewer queries at once"
    )


def moments(problem: Problem, functionals: bool, top_k: int, mean_dtype: torch.dtype) -> Moments:
    """The moments op on a GPU.

    Args:
        problem: Queries and rows on one CUDA device.
        functionals: Must be False.
        top_k: Must be 0.
        mean_dtype: float32 or float64.

    Returns:
        Mean ``(B, D)`` and logsumexp ``(B,)``, in the bits of the ``cpu`` backend; nothing of the
        others. A bad value gives a NaN row.

    Raises:
        ValueError: For a bad value when the problem asks for the check, which waits for the GPU.
        BackendError: If not even the smallest scratch fits, or CUDA fails.
    """
    missing = _not_given(MEAN_ONLY._replace(functionals=functionals, top_k=top_k))
    if missing:
        raise BackendError(f"backend 'cuda' {'; '.join(missing)}")
    native = load_native_cuda()
    assert native is not None  # `unavailable` has said so
    query = problem.query
    batch = query.shape[0]
    mean = torch.empty(query.shape, dtype=mean_dtype, device=query.device)
    logsumexp = torch.empty((batch,), dtype=torch.float64, device=query.device)
    # Three tensors: an op may not return one as two of its outputs.
    fields, distances = (logsumexp.new_empty((batch, 0)) for _ in range(2))
    indices = torch.empty((batch, 0), dtype=torch.int64, device=query.device)
    outputs = mean, logsumexp, fields, indices, distances
    if batch == 0:
        return outputs
    if problem.check_values:
        check_values(problem)
    mean_is_double = mean_dtype == torch.float64
    call = arguments(native, problem)
    with torch.cuda.device(query.device):
        scratch = _scratch(native, call, query)
        try:
            native.moments(
                call,
                mean.data_ptr(),
                mean_is_double,
                logsumexp.data_ptr(),
                scratch.data_ptr(),
                scratch.numel(),
                torch.cuda.current_stream(query.device).cuda_stream,
            )
        except RuntimeError as error:
            raise BackendError(f"backend 'cuda' failed: {error}") from error
    return outputs


def _covariance_product(_: Problem, __: CovarianceInputs) -> tuple[Tensor, Tensor]:
    raise BackendError("backend 'cuda' gives no covariance product")


register(
    Backend(
        name="cuda",
        priority=30,
        unavailable=_unavailable,
        refuses=_refuses,
        moments=moments,
        covariance_product=_covariance_product,
        arithmetic="the integers of the cpu backend, in its order: its bits",
    )
)
