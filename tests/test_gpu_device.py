"""The backends of GPUs on a real device: accuracy, bits, graphs, streams, memory.

``make gpu`` runs these. Without a GPU every one of them is skipped, and says so.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import problems
import pytest
import test_backends as suite
import torch
from op_cases import arguments, view_of
from test_integer_reproducibility import SIGMAS, near_rows, photographs, same_bits
from torch import Tensor

from diffgen import EmpiricalDenoiser, TrainingSet, accuracy, ops
from diffgen.backends import cuda, native, reference, registry
from diffgen.backends.problem import MEAN_ONLY, CovarianceInputs, Demands, Problem
from diffgen.backends.registry import Moments
from diffgen.errors import BackendError

DEVICE = torch.device("cuda", 0)
BACKENDS = [name for name in ("cuda", "triton") if name in registry.names()]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.usefixtures("one_thread"),
]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_demand = pytest.mark.parametrize("everything", [False, True], ids=["mean", "everything"])
each_problem = pytest.mark.parametrize("name", problems.PROBLEMS)
each_storage = pytest.mark.parametrize("storage", problems.STORAGE)


def on(problem: Problem, device: torch.device) -> Problem:
    """The problem with all its tensors there."""
    moved = {
        field.name: value.to(device)
        for field in dataclasses.fields(problem)
        if isinstance(value := getattr(problem, field.name), Tensor)
    }
    return dataclasses.replace(problem, **moved)


def usable(name: str, problem: Problem, demands: Demands) -> registry.Backend:
    """The backend, where it gives what is demanded on this machine."""
    backend = registry.get(name)
    reasons = registry.reasons_against(backend, problem, demands)
    if reasons:
        pytest.skip(f"{name}: {'; '.join(reasons)}")
    return backend


def solve(
    name: str, problem: Problem, demands: Demands, dtype: torch.dtype = torch.float64
) -> Moments:
    """What a backend gives on the device, brought to the CPU."""
    there = on(problem, DEVICE)
    run = usable(name, there, demands)
    got = run.moments(there, demands.functionals, demands.top_k, dtype)
    assert all(part.device == there.query.device for part in got)
    return tuple(part.cpu() for part in got)  # type: ignore[return-value]


def on_cpu(problem: Problem, dtype: torch.dtype, demands: Demands = MEAN_ONLY) -> Moments:
    """The same by the ``cpu`` backend, whose bits are the canon."""
    if native.load_native() is None:
        pytest.skip(native.why_not_native() or "native core")
    return registry.get("cpu").moments(problem, demands.functionals, demands.top_k, dtype)


def bits(moments: Sequence[Tensor]) -> list[Tensor]:
    """The outputs on the CPU, with one NaN for all: which one a processor makes is its own."""
    return [
        part.cpu().masked_fill(part.cpu().isnan(), math.nan) if part.is_floating_point()
        else part.cpu()
        for part in moments
    ]  # fmt: skip


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether all outputs agree bit for bit, the sign of zero included."""
    return same_bits(bits(first), bits(second))


@functools.cache
def expected(
    name: str, storage: torch.dtype, query: torch.dtype, functionals: bool, top_k: int
) -> Moments:
    problem = suite.problem_of(name, storage, query)
    return reference.moments(problem, functionals, top_k, torch.float64)


@each_backend
@each_demand
@each_problem
@each_storage
def test_moments_are_in_the_promise_and_the_derived_bound(
    backend: str, name: str, storage: torch.dtype, everything: bool
) -> None:
    for query in problems.QUERY:
        problem = suite.problem_of(name, storage, query)
        top_k = suite.nearest_asked(problem) if everything else 0
        got = solve(backend, problem, Demands(everything, top_k))
        want = expected(name, storage, query, everything, top_k)
        limits = suite.bounds(name, storage, query, suite.roundoff(backend, problem))
        suite.check(got, want, problem, limits)


@each_backend
@each_problem
@each_storage
def test_covariance_product_is_in_its_tolerance(
    backend: str, name: str, storage: torch.dtype
) -> None:
    for query in problems.QUERY:
        problem = suite.problem_of(name, storage, query)
        there = on(problem, DEVICE)
        run = usable(backend, there, Demands(covariance=True))
        mean, logsumexp, *_ = suite.expected(name, storage, query)
        v = torch.randn(mean.shape, generator=problems.generator(1), dtype=torch.float64)
        radial = torch.linspace(-1, 1, len(mean), dtype=torch.float64)
        inputs = CovarianceInputs(mean, logsumexp, v, radial)
        want = reference.covariance_product(problem, inputs)
        moved = CovarianceInputs(*(part.to(DEVICE) for part in (mean, logsumexp, v, radial)))
        got = tuple(part.cpu() for part in run.covariance_product(there, moved))
        unit = suite.roundoff(backend, problem)
        limits = accuracy.covariance_tolerance(problem, inputs, unit)
        suite.check_product(got, want, limits, problem)


@each_backend
@each_demand
@each_problem
def test_small_problems_have_the_bits_of_the_cpu(backend: str, name: str, everything: bool) -> None:
    for query in problems.QUERY:
        problem = suite.problem_of(name, torch.uint8, query)
        demands = Demands(everything, suite.nearest_asked(problem) if everything else 0)
        for dtype in (torch.float32, torch.float64):
            got = solve(backend, problem, demands, dtype)
            assert same(got, on_cpu(problem, dtype, demands)), (query, dtype)


LARGE = [
    (count, features, batch)
    for count in (1, 1023, 1024, 1025, 5000)
    for features in (1, 48, 100, 784, 3072)
    for batch in (1, 8, 9, 33, 130)
    if count * features <= 1025 * 3072
]


@each_backend
@pytest.mark.parametrize(("count", "features", "batch"), LARGE)
def test_large_problems_have_the_bits_of_the_cpu(
    backend: str, count: int, features: int, batch: int
) -> None:
    rows = photographs(count, features, 5)
    problem = problems.from_stored(rows, near_rows(batch, SIGMAS, 5), SIGMAS, torch.float32)
    for dtype in (torch.float32, torch.float64):
        got = solve(backend, problem, MEAN_ONLY, dtype)
        assert same(got, on_cpu(problem, dtype))


@each_backend
@each_demand
@pytest.mark.parametrize("features", [16, 48, 80, 96, 112, 144, 160, 176])
def test_what_lies_past_the_features_adds_nothing(
    backend: str, features: int, everything: bool
) -> None:
    # Multiples of 16, not of the blocks: rows are read in words, and whole words are masked.
    rows = photographs(1100, features, 8)
    problem = problems.from_stored(rows, near_rows(20, SIGMAS, 8), SIGMAS, torch.float32)
    demands = Demands(everything, 5 if everything else 0)
    for dtype in (torch.float32, torch.float64):
        got = solve(backend, problem, demands, dtype)
        assert same(got, on_cpu(problem, dtype, demands))


def test_bits_do_not_depend_on_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = photographs(5000, 256, 6)
    problem = problems.from_stored(rows, near_rows(20, SIGMAS, 6), SIGMAS, torch.float32)
    roomy = solve("cuda", problem, MEAN_ONLY)
    module = cuda.load_native_cuda()
    monkeypatch.setattr(module, "scratch_bytes", module.smallest_scratch_bytes)
    assert same(solve("cuda", problem, MEAN_ONLY), roomy)


def images(count: int, shape: tuple[int, ...] = (3, 16, 16), seed: int = 0) -> Tensor:
    rng = problems.generator(seed)
    return torch.randint(0, 256, (count, *shape), generator=rng, dtype=torch.uint8)


def op_arguments(backend: str, **options: object) -> tuple[object, ...]:
    """Arguments of the moments op on the device, without the check of values, which waits."""
    made = arguments(view_of(2100, 96, storage=torch.uint8), batch=6, backend=backend, **options)
    moved = [part.to(DEVICE) if isinstance(part, Tensor) else part for part in made]
    return (*moved[:-1], False)


@pytest.fixture
def accepted(backend: str) -> str:
    """The backend of a test, where it gives mean and logsumexp over 8-bit rows here."""
    usable(backend, on(suite.problem_of("random_rows", torch.uint8, torch.float32), DEVICE),
           MEAN_ONLY)  # fmt: skip
    return backend


@each_backend
def test_a_call_waits_for_nothing(accepted: str) -> None:
    asked = op_arguments(accepted, alpha=True, exclude=True)
    ops.MOMENTS(*asked)  # compiles, where it does
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.MOMENTS(*asked)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@each_backend
def test_a_captured_call_replays_with_new_queries(accepted: str) -> None:
    asked = op_arguments(accepted, alpha=True)
    query, sigma = asked[0], asked[1]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ops.MOMENTS(*asked)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.MOMENTS(*asked)
    for seed in range(3):
        rng = problems.generator(seed)
        query.copy_(torch.rand(query.shape, generator=rng))
        sigma.fill_(0.05 * 10**seed)
        graph.replay()
        torch.cuda.synchronize()
        fresh = ops.MOMENTS(*asked)
        torch.cuda.synchronize()
        assert same(captured, fresh)


@each_backend
def test_a_call_follows_its_stream(accepted: str) -> None:
    asked = op_arguments(accepted)
    query = asked[0]
    final = query.clone()
    want = ops.MOMENTS(*asked)
    torch.cuda.synchronize()
    query.fill_(1e6)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the right query comes late
        query.copy_(final, non_blocking=True)
        got = ops.MOMENTS(*asked)
        copies = [part.clone() for part in got]
    stream.synchronize()
    assert same(copies, want)


@each_backend
def test_many_streams_share_the_device(accepted: str) -> None:
    asked = op_arguments(accepted)
    want = [part.cpu() for part in ops.MOMENTS(*asked)]
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    results = []
    for _ in range(8):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(ops.MOMENTS(*asked))
    torch.cuda.synchronize()
    for got in results:
        assert same(got, want)


@each_backend
def test_a_call_runs_on_the_device_of_its_tensors(accepted: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    asked = op_arguments(accepted)
    other = [part.to("cuda:1") if isinstance(part, Tensor) else part for part in asked]
    want = [part.cpu() for part in ops.MOMENTS(*asked)]
    with torch.cuda.device(0):
        got = ops.MOMENTS(*other)
        assert torch.cuda.current_device() == 0
    assert all(part.device == torch.device("cuda", 1) for part in got)
    assert same(got, want)
    mixed = list(asked)
    mixed[5] = other[5]
    with pytest.raises(BackendError, match=r"cuda:1.*cuda:0|cuda:0.*cuda:1"):
        ops.MOMENTS(*mixed)


@each_backend
def test_queries_need_not_be_contiguous(accepted: str) -> None:
    asked = list(op_arguments(accepted, alpha=True))
    want = ops.MOMENTS(*asked)
    asked[0] = asked[0].t().contiguous().t()
    asked[1] = torch.stack([asked[1], -asked[1]], 1)[:, 0]
    assert not asked[0].is_contiguous() and not asked[1].is_contiguous()
    got = ops.MOMENTS(*asked)
    assert same(got, want)


@each_backend
@pytest.mark.parametrize("shift", [1, 4, 8])
@pytest.mark.parametrize("features", [96, 97])
def test_small_rows_need_not_be_aligned(backend: str, shift: int, features: int) -> None:
    rows = photographs(2100, features, 7)
    problem = problems.from_stored(rows, near_rows(6, SIGMAS, 7), SIGMAS, torch.float32)
    there = on(problem, DEVICE)
    run = usable(backend, there, MEAN_ONLY)
    room = torch.zeros(rows.numel() + 16, dtype=torch.uint8, device=DEVICE)
    shifted = room[shift : shift + rows.numel()].view(rows.shape)
    shifted.copy_(there.data)
    assert shifted.data_ptr() % 16 == shift
    want = run.moments(there, False, 0, torch.float64)
    got = run.moments(dataclasses.replace(there, data=shifted), False, 0, torch.float64)
    assert same(got, want)


@pytest.mark.parametrize("storage", problems.STORAGE)
def test_rows_may_stay_in_host_memory(storage: torch.dtype) -> None:
    problem = suite.problem_of("many_rows", storage, torch.float32)
    there = on(problem, DEVICE)
    streamed = dataclasses.replace(there, data=problem.data)
    run = usable("triton", streamed, MEAN_ONLY)
    got = run.moments(streamed, False, 0, torch.float64)
    assert same(got, run.moments(there, False, 0, torch.float64))


@each_backend
def test_more_than_two_billion_elements(accepted: str) -> None:
    features, needed = 3072, 2**31 + 2**22
    count = needed // features
    free, _ = torch.cuda.mem_get_info(DEVICE)
    if free < 1.5 * needed:
        pytest.skip(f"needs {1.5 * needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
    data = torch.zeros(count, features, dtype=torch.uint8, device=DEVICE)
    # Three rows that stand out; the last begins beyond 2^31.
    marked = torch.tensor([0, count // 2, count - 1], device=DEVICE)
    assert int(marked[2]) * features > 2**31
    values = torch.tensor([40, 120, 250], dtype=torch.uint8, device=DEVICE)
    data[marked] = values[:, None]
    stored = torch.zeros(count, dtype=torch.float64, device=DEVICE)
    stored[marked] = values.double()
    norms = features * ((stored - 128) / 255 * 2).square()
    query = (-1 + 2 / 255 * values.double())[:, None].expand(-1, features).float().contiguous()
    sigma = torch.full((3,), 0.1, dtype=torch.float64, device=DEVICE)
    problem = Problem(query, sigma, None, None, data, norms, None, None, 2 / 255, -1.0, False)
    mean, logsumexp, *_ = usable(accepted, problem, MEAN_ONLY).moments(
        problem, False, 0, torch.float32
    )
    # Every other row is thousands of nats away. A float32 query is off by 2^-24 in each feature.
    assert float((mean - query).abs().max()) <= 1e-5
    assert float(logsumexp.abs().max()) <= 1e-3


def test_scratch_that_does_not_fit_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, features = 8192, 64
    data = images(2048, (features,)).to(DEVICE)
    norms = ((data.double() - 128) / 255 * 2).square().sum(1)
    sigma = torch.ones(batch, dtype=torch.float64, device=DEVICE)
    query = torch.zeros(batch, features, device=DEVICE)
    problem = Problem(query, sigma, None, None, data, norms, None, None, 2 / 255, -1.0, False)
    run = usable("cuda", problem, MEAN_ONLY)
    want = run.moments(problem, False, 0, torch.float32)
    module = cuda.load_native_cuda()
    _, total = torch.cuda.mem_get_info(DEVICE)
    monkeypatch.setattr(module, "scratch_bytes", lambda call: 2 * total)
    assert same(run.moments(problem, False, 0, torch.float32), want)
    monkeypatch.setattr(module, "smallest_scratch_bytes", lambda call: 2 * total)
    needed = rf"needs at least {2 * total} bytes of scratch for 8192 queries"
    with pytest.raises(BackendError, match=needed):
        run.moments(problem, False, 0, torch.float32)


@each_backend
@pytest.mark.parametrize(("values", "message"), suite.BAD_VALUES)
def test_bad_value_raises_where_it_is_checked_and_is_nan_where_not(
    backend: str, values: dict[str, list[float]], message: str
) -> None:
    ((key, numbers),) = values.items()
    dtype = torch.float64 if key == "sigma" else torch.int64
    plain = suite.problem_of("images_mid_noise", torch.uint8, torch.float32)
    problem = on(suite.changed(plain, **{key: torch.tensor(numbers, dtype=dtype)}), DEVICE)
    run = usable(backend, problem, MEAN_ONLY)
    with pytest.raises(ValueError, match=message):
        run.moments(problem, False, 0, torch.float32)
    unchecked = dataclasses.replace(problem, check_values=False)
    mean, logsumexp, *_ = run.moments(unchecked, False, 0, torch.float64)
    bad = torch.tensor([not (n >= 0 if key == "sigma" else -1 <= n < 40) for n in numbers])
    assert torch.equal(mean.isnan().all(1).cpu(), bad)
    assert torch.equal(mean.isnan().any(1).cpu(), bad)
    assert torch.equal(logsumexp.isnan().cpu(), bad)


@each_backend
def test_query_without_a_row_is_nan(backend: str) -> None:
    problem = on(
        suite.changed(
            suite.problem_of("one_row", torch.uint8, torch.float32),
            exclude=torch.tensor([-1, -1, 0, -1]),
            check_values=False,
        ),
        DEVICE,
    )
    mean, logsumexp, *_ = usable(backend, problem, MEAN_ONLY).moments(
        problem, False, 0, torch.float32
    )
    assert mean.isnan().all(1).tolist() == [False, False, True, False]
    assert logsumexp.isnan().tolist() == [False, False, True, False]


@each_backend
def test_op_passes_opcheck(accepted: str) -> None:
    asked = op_arguments(accepted, alpha=True, exclude=True)
    torch.library.opcheck(ops.MOMENTS, asked, test_utils=("test_schema", "test_faketensor"))


def test_denoiser_on_a_gpu_gives_the_fields_of_the_cpu() -> None:
    data = images(300)
    here = EmpiricalDenoiser(TrainingSet(data))
    there = EmpiricalDenoiser(TrainingSet(data.to(DEVICE)))
    noise = torch.randn(5, 3, 16, 16, generator=problems.generator(1))
    x = data[:5].float() / 127.5 - 1 + 0.5 * noise
    for sigma in (0.05, 0.5, 5.0, 80.0):
        # Each within the promise of the definition: 1e-5 and one float32 rounding of the mean.
        gap = (there(x.to(DEVICE), sigma).cpu() - here(x, sigma)).abs().max()
        assert float(gap) <= 2e-5 + 2.0**-23
        found = there.posterior(x.to(DEVICE), sigma, top_k=2)
        want = here.posterior(x, sigma, top_k=2)
        assert torch.equal(found.top_indices.cpu(), want.top_indices)
        relative = (found.effective_sample_size.cpu() / want.effective_sample_size - 1).abs()
        assert float(relative.max()) <= 2e-3


def test_gradients_on_a_gpu_are_those_of_the_cpu() -> None:
    data, sigma = images(300), 5.0
    noise = torch.randn(5, 3, 16, 16, generator=problems.generator(1))
    x = data[:5].float() / 127.5 - 1 + sigma * noise
    gradients = []
    for device in (torch.device("cpu"), DEVICE):
        denoiser = EmpiricalDenoiser(TrainingSet(data.to(device)))
        query = x.to(device, copy=True).requires_grad_()
        (denoiser(query, sigma) * noise.to(device)).sum().backward()
        assert query.grad is not None
        gradients.append(query.grad.cpu().double().flatten(1))
    # Cov v / sigma^2, of which each may be off by its promise of trace |v| / sigma^2, and by one
    # rounding to float32.
    problem = suite.problem_of("random_rows", torch.uint8, torch.float32)
    rule = accuracy.promises(problem)["covariance_product"].relative
    trace = EmpiricalDenoiser(TrainingSet(data)).posterior(x, sigma).trace_covariance
    limit = 2 * (rule + 2.0**-24) * trace * noise.double().flatten(1).norm(dim=1) / sigma**2
    assert bool(((gradients[1] - gradients[0]).norm(dim=1) <= limit).all())


def test_every_query_of_a_large_batch_is_answered() -> None:
    # sigma = inf is the average of the rows, whatever the query.
    data = images(100, (24,)).to(DEVICE)
    norms = ((data.double() - 128) / 255 * 2).square().sum(1)
    batch = 3000
    sigma = torch.full((batch,), math.inf, dtype=torch.float64, device=DEVICE)
    query = torch.randn(batch, 24, device=DEVICE)
    problem = Problem(query, sigma, None, None, data, norms, None, None, 2 / 255, -1.0, False)
    mean = usable("cuda", problem, MEAN_ONLY).moments(problem, False, 0, torch.float64)[0]
    average = -1 + 2 / 255 * data.double().mean(0)
    assert float((mean - average).abs().max()) <= 1e-5
