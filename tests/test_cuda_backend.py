"""The ``cuda`` backend in Python: what it refuses, hands over, checks, and says when it fails.

The kernels are tested beside their source; here the CPU's module stands in for them, over the same
addresses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import problems
import pytest
import torch
from op_cases import all_apart, arguments, view_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from diffgen import ops
from diffgen.backends import cuda, native, native_cuda, reference, registry, values
from diffgen.backends.problem import MEAN_ONLY, Demands, Problem
from diffgen.errors import BackendError

TARGETS = "sm_80;sm_90;compute_90"
STREAM = 77
USUAL, LEAST = 4096, 1024

needs_core = pytest.mark.skipif(
    native.load_native() is None, reason=native.why_not_native() or "native core"
)


class StandIn:
    """The interface of ``diffgen._native_cuda`` over the CPU's module."""

    MOST_FEATURES = 1000

    def __init__(self, error: str | None = None, state: dict[str, Any] | None = None) -> None:
        self.error = error
        self.state = state or {"driver_version": 13000, "device_count": 1, "error": None}
        self.calls: list[tuple[int, int]] = []

    def targets(self) -> str:
        return TARGETS

    def device_state(self) -> dict[str, Any]:
        return self.state

    def Arguments(self, *parts: Any) -> Any:
        core = native.load_native()
        return parts if core is None else core.Arguments(*parts)

    def scratch_bytes(self, _: Any) -> int:
        return USUAL

    def smallest_scratch_bytes(self, _: Any) -> int:
        return LEAST

    def moments(
        self, problem: Any, mean: int, is_double: bool, mass: int, _: int, size: int, stream: int
    ) -> None:
        if self.error is not None:
            raise RuntimeError(self.error)
        self.calls.append((size, stream))
        core = native.load_native()
        assert core is not None
        core.moments(problem, mean, is_double, mass, 0, 0, 0, 0, "auto", 1, False, 0)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(cuda, "load_native_cuda", lambda: made)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    stream = SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    return made


def mixed(query: torch.dtype = torch.float32) -> Problem:
    return problems.PROBLEMS["mixed_sigma"](0, torch.uint8, query)


def on_device(**changes: Any) -> Problem:
    """A problem whose tensors say that they are on a GPU, and hold nothing."""
    with FakeTensorMode():
        parts: dict[str, Any] = {
            "query": torch.empty(3, 8, device="cuda"),
            "data": torch.empty(5, 8, device="cuda", dtype=torch.uint8),
        }
        parts |= {name: make() for name, make in changes.items()}
        return dataclasses.replace(mixed(), **parts)


def test_it_is_preferred_to_the_others() -> None:
    assert registry.get("cuda").priority > registry.get("cpu").priority > 0


def test_it_refuses_tensors_of_the_cpu() -> None:
    [reason] = cuda._refuses(mixed(), MEAN_ONLY)
    assert reason == "needs data and query on one CUDA device, got cpu and cpu"


def test_it_refuses_two_devices() -> None:
    problem = dataclasses.replace(on_device(), query=mixed().query)
    [reason] = cuda._refuses(problem, MEAN_ONLY)
    assert reason == "needs data and query on one CUDA device, got cuda:0 and cpu"


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, []),
        ({"query": lambda: torch.empty(3, 8, device="cuda", dtype=torch.float64)}, []),
        (
            {"query": lambda: torch.empty(3, 8, device="cuda", dtype=torch.float16)},
            ["needs a float32 or float64 query, got torch.float16"],
        ),
        (
            {"data": lambda: torch.empty(5, 8, device="cuda")},
            ["needs uint8 data, got torch.float32"],
        ),
        (
            {"data": lambda: torch.empty(8, 5, device="cuda", dtype=torch.uint8).T},
            ["needs contiguous rows, got strides (1, 5)"],
        ),
        (
            {"query": lambda: torch.empty(3, 1001, device="cuda")},
            ["needs at most 1000 features, got 1001"],
        ),
    ],
)
def test_what_it_refuses_has_a_reason(
    stand_in: StandIn, changes: dict[str, Any], reasons: list[str]
) -> None:
    assert cuda._refuses(on_device(**changes), MEAN_ONLY) == reasons


def test_it_refuses_what_it_does_not_give(stand_in: StandIn) -> None:
    asked = Demands(functionals=True, top_k=2, covariance=True)
    assert cuda._refuses(on_device(), asked) == [
        "gives no functionals",
        "gives no nearest rows",
        "gives no covariance product",
    ]
    with pytest.raises(BackendError, match=r"^backend 'cuda' gives no functionals$"):
        cuda.moments(mixed(), True, 0, torch.float32)
    with pytest.raises(BackendError, match="gives no covariance product"):
        registry.get("cuda").covariance_product(mixed(), None)


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        ((7, 5), "needs compute capability 8.0 or more, got 7.5"),
        ((8, 0), None),
        ((8, 9), None),
        ((9, 0), None),
        ((12, 0), None),  # by PTX
    ],
)
def test_it_runs_on_devices_that_it_is_compiled_for(
    stand_in: StandIn, capability: tuple[int, int], reason: str | None
) -> None:
    assert cuda._against_device(capability) == ([] if reason is None else [reason])


def test_it_refuses_a_device_that_it_is_not_compiled_for(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in, "targets", lambda: "sm_90;compute_90")
    assert cuda._against_device((8, 6)) == [
        "is compiled for sm_90, compute_90, got a device of capability 8.6"
    ]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"driver_version": 13000, "device_count": 1, "error": None}, None),
        ({"driver_version": 13000, "device_count": 0, "error": None}, "no CUDA device"),
        ({"driver_version": 0, "device_count": 0, "error": "E, 35"}, "no driver (E, 35)"),
        (
            {"driver_version": 12060, "device_count": 0, "error": "E, 35"},
            "driver for CUDA 12.6 (E, 35)",
        ),
    ],
)
def test_it_is_unavailable_without_a_device(
    monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], reason: str | None
) -> None:
    monkeypatch.setattr(cuda, "load_native_cuda", lambda: StandIn(state=state))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert cuda._unavailable.__wrapped__() == reason


def test_it_is_unavailable_under_a_torch_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "load_native_cuda", lambda: StandIn())
    monkeypatch.setattr(torch.version, "cuda", None)
    reason = f"torch {torch.__version__} is built without CUDA"
    assert cuda._unavailable.__wrapped__() == reason


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (None, "built without CUDA (no record of a build)"),
        ("CUDA part not built: nvcc not found", "built without CUDA (nvcc not found)"),
        ("CUDA part built by CUDA 13.0", "the CUDA part does not load: planted"),
    ],
)
def test_why_there_is_no_cuda_part(
    monkeypatch: pytest.MonkeyPatch, record: str | None, why: str
) -> None:
    monkeypatch.setattr(native_cuda, "_import", lambda: ImportError("planted"))
    monkeypatch.setattr(native_cuda, "cuda_build_record", lambda: record)
    assert native_cuda.load_native_cuda() is None
    assert native_cuda.why_not_native_cuda() == why


def test_a_named_backend_gives_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = dataclasses.replace(registry.get("cuda"), unavailable=lambda: "built without CUDA")
    monkeypatch.setitem(registry._BACKENDS, "cuda", backend)
    asked = arguments(view_of(7, 5, storage=torch.uint8), batch=3, backend="cuda")
    with pytest.raises(BackendError, match=r"'cuda'.*got cpu and cpu; built without CUDA$"):
        ops.MOMENTS(*asked)


def test_a_process_on_the_cpu_loads_nothing_of_cuda() -> None:
    code = (
        "import sys, torch, diffgen\n"
        "ts = diffgen.TrainingSet(torch.zeros(3, 2, dtype=torch.uint8))\n"
        "diffgen.EmpiricalDenoiser(ts)(torch.ones(1, 2), 1.0)\n"
        "assert 'diffgen._native_cuda' not in sys.modules\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@needs_core
@pytest.mark.parametrize("query", problems.QUERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["mixed_sigma", "weighted_class", "left_out", "signal_scales"])
def test_problem_is_handed_over_whole(
    stand_in: StandIn, name: str, query: torch.dtype, dtype: torch.dtype
) -> None:
    problem = problems.PROBLEMS[name](0, torch.uint8, query)
    got = cuda.moments(problem, False, 0, dtype)
    expected = registry.get("cpu").moments(problem, False, 0, dtype)
    assert stand_in.calls == [(USUAL, STREAM)]
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.contiguous().numpy().tobytes() == other.numpy().tobytes()


@needs_core
@pytest.mark.parametrize("name", ["mixed_sigma", "no_query"])
def test_no_two_outputs_share_a_storage(stand_in: StandIn, name: str) -> None:
    problem = problems.PROBLEMS[name](0, torch.uint8, torch.float32)
    for dtype in (torch.float32, torch.float64):
        assert all_apart(cuda.moments(problem, False, 0, dtype))


def test_no_query_needs_no_kernel(stand_in: StandIn) -> None:
    problem = problems.PROBLEMS["no_query"](0, torch.uint8, torch.float32)
    mean, logsumexp, *_ = cuda.moments(problem, False, 0, torch.float32)
    assert mean.shape == problem.query.shape and logsumexp.shape == (0,)
    assert stand_in.calls == []


def test_failure_of_cuda_is_a_backend_error(stand_in: StandIn) -> None:
    stand_in.error = "launching products: cudaErrorLaunchFailure, 719"
    with pytest.raises(BackendError, match=f"^backend 'cuda' failed: {stand_in.error}$"):
        cuda.moments(mixed(), False, 0, torch.float32)


def full(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Lets a device have so many bytes free."""
    empty = torch.empty

    def limited(size: Any, **options: Any) -> Tensor:
        if options.get("dtype") == torch.uint8 and size > free:
            raise torch.OutOfMemoryError("planted")
        return empty(size, **options)

    monkeypatch.setattr(torch, "empty", limited)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10 * free))


@needs_core
def test_less_scratch_does_where_memory_is_short(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, LEAST)
    cuda.moments(mixed(), False, 0, torch.float32)
    assert stand_in.calls == [(LEAST, STREAM)]


def test_scratch_that_does_not_fit_says_what_would(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, LEAST - 1)
    with pytest.raises(BackendError) as error:
        cuda.moments(mixed(), False, 0, torch.float32)
    assert str(error.value) == (
        "backend 'cuda' needs at least 1024 bytes of scratch for 9 queries, got 1023 bytes free "
        "on cpu: pass fewer queries at once"
    )


BAD = {
    "negative sigma": {"sigma": [1.0, 1.0, 1.0, -0.5, 1.0, 1.0]},
    "NaN sigma": {"sigma": [1.0, math.nan, 1.0, 1.0, 1.0, 1.0]},
    "exclude too large": {"exclude": [-1, -1, 40, -1, -1, -1]},
    "exclude too small": {"exclude": [-2, -1, -1, -1, -1, -1]},
    "both": {"sigma": [1.0, 1.0, 1.0, -0.5, 1.0, 1.0], "exclude": [-2, -1, -1, -1, -1, -1]},
    "nothing left of a class": {"rows": [3], "exclude": [-1, 2, 3, -1, -1, -1]},
    "nothing left of the weights": {
        "log_weights": [0.0] + [-math.inf] * 39,
        "exclude": [-1, 0, 3, -1, -1, -1],
    },
    "nothing has weight": {"log_weights": [-math.inf] * 40},
}


@pytest.mark.parametrize("bad", BAD)
def test_values_are_checked_in_the_words_of_the_cpu(bad: str) -> None:
    problem = problems.PROBLEMS["images_mid_noise"](0, torch.uint8, torch.float32)
    parts = {
        name: torch.tensor(
            numbers, dtype=torch.int64 if name in ("exclude", "rows") else torch.float64
        )
        for name, numbers in BAD[bad].items()
    }
    problem = dataclasses.replace(problem, **parts)
    with pytest.raises(ValueError) as expected:
        reference.moments(problem, False, 0, torch.float64)
    with pytest.raises(ValueError) as got:
        values.check_values(problem)
    assert str(got.value) == str(expected.value)


@pytest.mark.parametrize("name", [n for n in problems.PROBLEMS if n != "no_query"])
def test_good_values_pass_the_check(name: str) -> None:
    values.check_values(problems.PROBLEMS[name](0, torch.uint8, torch.float32))


def test_values_are_checked_where_that_is_asked(stand_in: StandIn) -> None:
    sigma = torch.full((9,), -1.0, dtype=torch.float64)
    problem = dataclasses.replace(mixed(), sigma=sigma)
    with pytest.raises(ValueError, match=r"^sigma must be .*got -1\.0 at index 0$"):
        cuda.moments(problem, False, 0, torch.float32)


@needs_core
def test_bad_value_is_a_nan_row_where_it_is_not_checked(stand_in: StandIn) -> None:
    sigma = torch.tensor([1.0, -1.0, 1.0]).double().repeat(3)
    problem = dataclasses.replace(mixed(), sigma=sigma, check_values=False)
    mean, logsumexp, *_ = cuda.moments(problem, False, 0, torch.float32)
    assert torch.equal(logsumexp.isnan(), sigma < 0)
    assert torch.equal(mean.isnan().all(1), sigma < 0)
