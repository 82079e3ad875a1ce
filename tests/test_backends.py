"""Every backend against the reference: all problems, storage types and quantities."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from pathlib import Path

import cpu_backends
import problems
import pytest
import torch
from torch import Tensor

from diffgen import accuracy
from diffgen.backends import eager, eager_rows, reference, registry
from diffgen.backends.problem import MEAN_ONLY, CovarianceInputs, Problem
from diffgen.backends.registry import Moments

BACKENDS = [name for name in cpu_backends.NAMES if name != "reference"]
CASES = [
    pytest.param(name, storage, query, id=f"{name}-{storage}-{query}".replace("torch.", ""))
    for name in problems.PROBLEMS
    for storage in problems.STORAGE
    for query in problems.QUERY
]
EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
pytestmark = pytest.mark.usefixtures("one_thread")

EACH_CASE = pytest.mark.parametrize(("name", "storage", "query"), CASES)


@functools.cache
def problem_of(name: str, storage: torch.dtype, query: torch.dtype) -> Problem:
    return problems.PROBLEMS[name](0, storage, query)


def nearest_asked(problem: Problem) -> int:
    """Up to three nearest rows, as many as every query has."""
    rows = torch.arange(len(problem.data)) if problem.rows is None else problem.rows
    if problem.log_weights is not None:
        rows = rows[problem.log_weights[rows] > -math.inf]
    return min(3, len(rows) - (problem.exclude is not None))


@functools.cache
def expected(name: str, storage: torch.dtype, query: torch.dtype) -> Moments:
    problem = problem_of(name, storage, query)
    return reference.moments(problem, True, nearest_asked(problem), torch.float64)


@functools.cache
def bounds(
    name: str, storage: torch.dtype, query: torch.dtype, unit: float
) -> tuple[Tensor, Tensor]:
    problem = problem_of(name, storage, query)
    return accuracy.derived_bounds(problem, expected(name, storage, query), unit)


def roundoff(backend: str, problem: Problem) -> float:
    """Unit roundoff of the least exact step that a backend may take."""
    exact = problem.query.dtype == torch.float64 and problem.data.dtype.is_floating_point
    return 2.0**-53 if backend == "eager" or exact else 2.0**-24


def usable(name: str, problem: Problem) -> registry.Backend:
    backend = registry.get(name)
    reasons = registry.reasons_against(backend, problem)
    if reasons:
        pytest.skip(f"{name}: {'; '.join(reasons)}")
    return backend


def in_bounds(got: Moments, want: Moments, limits: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Worst errors of log-sum-exp and mean in units of the derived bounds."""
    units = {}
    for quantity, index, limit in (("logsumexp", 1, limits[0]), ("mean", 0, limits[1])):
        known = want[index].isfinite() & limit.isfinite()
        error = (got[index].double() - want[index]).abs()[known]
        allowed = limit[known]
        over = torch.where(error == 0, 0.0, error / allowed)
        units[quantity] = float(over.max()) if len(over) else 0.0
    return units


def check(got: Moments, want: Moments, problem: Problem, limits: tuple[Tensor, Tensor]) -> None:
    """Asserts that moments are within the promise and the derived bounds, whichever is less."""
    units = accuracy.units_of_promise(got, want, problem)
    assert max(units.values()) <= 1, units
    derived = in_bounds(got, want, limits)
    assert max(derived.values()) <= 1, derived
    check_nearest(got, want, problem)


def check_nearest(got: Moments, want: Moments, problem: Problem) -> None:
    """Asserts that distances agree to float64 rounding, and ids where distances differ."""
    ids, distances = got[3], got[4]
    assert ids.shape == want[3].shape
    assert ids.dtype == torch.int64
    assert torch.equal(ids < 0, want[3] < 0)
    assert torch.equal(distances.isnan(), want[4].isnan())
    known = want[3] >= 0
    if not known.any():
        return
    # D products add up to relative (D / 2 + 2) u of the root; x and alpha y round to u of
    # themselves beforehand.
    features = problem.query.shape[1]
    reach = problem.query.double().norm(dim=1) + accuracy.largest_magnitude(problem) * math.sqrt(
        features
    )
    slack = 2.0**-52 * (4 * reach[:, None] + features * want[4])
    assert bool(((distances - want[4]).abs() <= slack)[known].all())
    rows = problems.decode(problem.data[ids.clamp(min=0)], problem.scale, problem.offset)
    alpha = torch.ones_like(problem.sigma) if problem.alpha is None else problem.alpha
    here = (problem.query.double()[:, None] - alpha[:, None, None] * rows).norm(dim=2)
    assert bool(((here - want[4]).abs() <= 2 * slack)[known].all())
    for row in ids[known.all(1)].tolist():
        assert len(set(row)) == len(row)


@EACH_BACKEND
@EACH_CASE
def test_moments_are_in_the_promise_and_the_derived_bound(
    backend: str, name: str, storage: torch.dtype, query: torch.dtype
) -> None:
    problem = problem_of(name, storage, query)
    run = usable(backend, problem)
    want = expected(name, storage, query)
    got = run.moments(problem, True, nearest_asked(problem), torch.float64)
    limits = bounds(name, storage, query, roundoff(backend, problem))
    check(got, want, problem, limits)


@EACH_BACKEND
@EACH_CASE
def test_covariance_product_is_in_its_tolerance(
    backend: str, name: str, storage: torch.dtype, query: torch.dtype
) -> None:
    problem = problem_of(name, storage, query)
    run = usable(backend, problem)
    mean, logsumexp, *_ = expected(name, storage, query)
    v = torch.randn(mean.shape, generator=problems.generator(1), dtype=torch.float64)
    radial = torch.linspace(-1, 1, len(mean), dtype=torch.float64)
    inputs = CovarianceInputs(mean, logsumexp, v, radial)
    want = reference.covariance_product(problem, inputs)
    limits = accuracy.covariance_tolerance(problem, inputs, roundoff(backend, problem))
    check_product(run.covariance_product(problem, inputs), want, limits, problem)


def check_product(
    got: tuple[Tensor, Tensor],
    want: tuple[Tensor, Tensor],
    limits: tuple[Tensor, Tensor],
    problem: Problem,
) -> None:
    """Asserts that a covariance product and its moment are within tolerances."""
    # At sigma = 0 the weights are not defined by logsumexp, and nothing is promised.
    noisy = problem.sigma > 0
    for part, exact, limit in zip(got, want, limits, strict=True):
        assert part.dtype == torch.float64
        assert torch.equal(part[noisy].isnan(), exact[noisy].isnan())
        known = exact.isfinite() & limit.isfinite()
        worst = ((part - exact).abs() / limit)[known]
        assert worst.numel() == 0 or worst.max() <= 1


@EACH_BACKEND
@pytest.mark.parametrize("name", ["images_low_noise", "images_mid_noise", "weighted_class"])
def test_covariance_product_without_a_radial_part(backend: str, name: str) -> None:
    case = (name, torch.uint8, torch.float32)
    problem = problem_of(*case)
    run = usable(backend, problem)
    mean, logsumexp, *_ = expected(*case)
    v = torch.randn(mean.shape, generator=problems.generator(2), dtype=torch.float64)
    inputs = CovarianceInputs(mean, logsumexp, v, None)
    want = reference.covariance_product(problem, inputs)
    limits = accuracy.covariance_tolerance(problem, inputs, roundoff(backend, problem))
    check_product(run.covariance_product(problem, inputs), want, limits, problem)


@EACH_BACKEND
@pytest.mark.parametrize("storage", problems.STORAGE)
def test_float32_mean_is_rounded_once(backend: str, storage: torch.dtype) -> None:
    problem = problem_of("images_mid_noise", storage, torch.float32)
    run = usable(backend, problem)
    want = expected("images_mid_noise", storage, torch.float32)
    got = run.moments(problem, False, 0, torch.float32)
    assert got[0].dtype == torch.float32
    assert accuracy.units_of_promise(got, want, problem)["mean"] <= 1


@EACH_BACKEND
@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("name", ["many_rows", "many_rows_of_a_class", "no_query", "one_row"])
def test_threads_share_the_rows(backend: str, threads: int, name: str) -> None:
    for case in ((name, torch.uint8, torch.float32), (name, torch.float32, torch.float64)):
        problem, want = problem_of(*case), expected(*case)
        run = usable(backend, problem)
        torch.set_num_threads(threads)
        got = run.moments(problem, True, nearest_asked(problem), torch.float64)
        check(got, want, problem, bounds(*case, roundoff(backend, problem)))


@EACH_BACKEND
def test_outputs_have_the_shapes_and_types_of_the_op(backend: str) -> None:
    for name in ("random_rows", "no_query"):
        problem = problem_of(name, torch.float32, torch.float32)
        run = usable(backend, problem)
        batch, features = problem.query.shape
        for functionals in (False, True):
            for top_k in (0, 2):
                for dtype in (torch.float32, torch.float64):
                    got = run.moments(problem, functionals, top_k, dtype)
                    shapes = [tuple(part.shape) for part in got]
                    assert shapes == [
                        (batch, features),
                        (batch,),
                        (batch, 3 if functionals else 0),
                        (batch, top_k),
                        (batch, top_k),
                    ]
                    assert [part.dtype for part in got] == [
                        dtype,
                        torch.float64,
                        torch.float64,
                        torch.int64,
                        torch.float64,
                    ]


@EACH_BACKEND
@pytest.mark.parametrize("storage", problems.STORAGE)
def test_bad_query_is_nan_in_its_own_row_only(backend: str, storage: torch.dtype) -> None:
    problem = problem_of("bad_queries", storage, torch.float32)
    got = usable(backend, problem).moments(problem, True, 2, torch.float64)
    bad = ~problem.query.isfinite().all(1)
    assert bad.any()
    for part in (got[0], got[1], got[2], got[4]):
        assert bool(part[bad].isnan().all())
        assert not part[~bad].isnan().any()
    assert bool((got[3][bad] == -1).all())
    assert bool((got[3][~bad] >= 0).all())


def changed(problem: Problem, **parts: object) -> Problem:
    return dataclasses.replace(problem, **parts)


def plain() -> Problem:
    return problem_of("images_mid_noise", torch.float32, torch.float32)


BAD_VALUES = [
    ({"sigma": [1.0, 1.0, 1.0, -0.5, 1.0, 1.0]}, r"^sigma must be .*got -0\.5 at index 3$"),
    ({"sigma": [1.0, math.nan, 1.0, 1.0, 1.0, 1.0]}, r"^sigma must be .*got nan at index 1$"),
    ({"exclude": [-1, -1, 40, -1, -1, -1]}, r"^exclude must be .*40.*got 40 at index 2$"),
    ({"exclude": [-2, -1, -1, -1, -1, -1]}, r"^exclude must be .*got -2 at index 0$"),
]


@EACH_BACKEND
@pytest.mark.parametrize(("values", "message"), BAD_VALUES)
def test_bad_value_raises_where_it_is_checked(
    backend: str, values: dict[str, list[float]], message: str
) -> None:
    ((key, numbers),) = values.items()
    dtype = torch.float64 if key == "sigma" else torch.int64
    problem = changed(plain(), **{key: torch.tensor(numbers, dtype=dtype)})
    run = usable(backend, problem)
    with pytest.raises(ValueError, match=message):
        run.moments(problem, False, 0, torch.float32)
    mean, logsumexp, *_ = reference.moments(plain(), False, 0, torch.float64)
    with pytest.raises(ValueError, match=message):
        run.covariance_product(problem, CovarianceInputs(mean, logsumexp, mean, None))


@EACH_BACKEND
@pytest.mark.parametrize(("values", "message"), BAD_VALUES)
def test_bad_value_is_a_nan_row_where_it_is_not_checked(
    backend: str, values: dict[str, list[float]], message: str
) -> None:
    ((key, numbers),) = values.items()
    dtype = torch.float64 if key == "sigma" else torch.int64
    problem = changed(plain(), **{key: torch.tensor(numbers, dtype=dtype)}, check_values=False)
    mean, logsumexp, *_ = usable(backend, problem).moments(problem, False, 0, torch.float64)
    bad = torch.tensor([not (n >= 0 if key == "sigma" else -1 <= n < 40) for n in numbers])
    assert torch.equal(mean.isnan().all(1), bad)
    assert torch.equal(mean.isnan().any(1), bad)
    assert torch.equal(logsumexp.isnan(), bad)


@EACH_BACKEND
def test_exclude_that_leaves_nothing_raises(backend: str) -> None:
    problem = changed(
        problem_of("one_row", torch.float32, torch.float32),
        exclude=torch.tensor([-1, -1, 0, -1]),
    )
    run = usable(backend, problem)
    with pytest.raises(ValueError, match=r"^exclude leaves no training point for query 2$"):
        run.moments(problem, False, 0, torch.float32)
    mean = run.moments(changed(problem, check_values=False), False, 0, torch.float32)[0]
    assert mean.isnan().all(1).tolist() == [False, False, True, False]


@EACH_BACKEND
@pytest.mark.parametrize(
    ("parts", "top_k"),
    [
        ({}, 41),
        ({"rows": torch.tensor([3, 9])}, 3),
        (
            {
                "log_weights": torch.full((40,), -math.inf)
                .double()
                .index_fill(0, torch.tensor([5]), 0)
            },
            2,
        ),
        ({"exclude": torch.tensor([-1, -1, 4, -1, -1, -1])}, 40),
    ],
    ids=["all", "class", "weights", "exclude"],
)
def test_more_nearest_rows_than_eligible_is_refused(
    backend: str, parts: dict[str, Tensor], top_k: int
) -> None:
    problem = changed(plain(), **parts)
    with pytest.raises(ValueError, match=rf"top_k.*got {top_k}"):
        usable(backend, problem).moments(problem, False, top_k, torch.float32)


@EACH_BACKEND
@pytest.mark.parametrize("storage", problems.STORAGE)
def test_equal_distances_go_to_the_lowest_id(backend: str, storage: torch.dtype) -> None:
    rows = problems.encode(problems.uniform(3, 40, 0), storage, (-1.0, 1.0))
    problem = problems.from_stored(
        rows[[2, 0, 1, 0, 1, 0, 2, 1]], rows[:2].double(), (0.1, 1.0), torch.float32
    )
    if storage == torch.uint8:
        near = problems.decode(rows[:2], problem.scale, problem.offset)
        problem = changed(problem, query=near.float())
    ids = usable(backend, problem).moments(problem, False, 3, torch.float64)[3]
    assert ids.tolist() == [[1, 3, 5], [2, 4, 7]]


@pytest.mark.parametrize("name", problems.PROBLEMS)
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float64])
def test_eager_blocks_of_any_size_give_the_same(
    monkeypatch: pytest.MonkeyPatch, name: str, storage: torch.dtype
) -> None:
    case = (name, storage, torch.float64)
    problem = problem_of(*case)
    batch, features = problem.query.shape
    rows, pairs = (3, 3 * batch + 1) if len(problem.data) < 100 else (170, 10_000)
    monkeypatch.setattr(eager_rows, "BLOCK_ELEMENTS", rows * max(features, 2 * batch))
    monkeypatch.setattr(eager_rows, "PAIR_ELEMENTS", pairs * features)
    got = eager.moments(problem, True, nearest_asked(problem), torch.float64)
    check(got, expected(*case), problem, bounds(*case, 2.0**-53))


def test_planted_error_of_two_bounds_is_found() -> None:
    case = ("images_mid_noise", torch.float32, torch.float32)
    problem, want = problem_of(*case), expected(*case)
    limits = bounds(*case, 2.0**-53)
    check(want, want, problem, limits)
    parts = list(want)
    for index, limit in ((0, limits[1]), (1, limits[0])):
        wrong = parts.copy()
        wrong[index] = want[index].clone()
        wrong[index][0] += 2 * limit[0]
        with pytest.raises(AssertionError):
            check(tuple(wrong), want, problem, limits)
    slack = torch.full_like(limits[0], math.inf), torch.full_like(limits[1], math.inf)
    for index, column in ((0, 2), (1, None), (2, 0), (2, 1), (2, 2)):
        wrong = parts.copy()
        wrong[index] = want[index].clone()
        at = (1,) if column is None else (1, column)
        tolerance = {0: 1e-5, 1: 1e-3, 2: 1e-3 * max(1.0, float(want[index][at]))}[index]
        wrong[index][at] += 2 * tolerance
        with pytest.raises(AssertionError):
            check(tuple(wrong), want, problem, slack)


def test_backends_that_should_run_here_do() -> None:
    expected_names = {"eager"}
    if importlib.util.find_spec("diffgen._native"):
        flags = set()
        info = Path("/proc/cpuinfo")
        for line in info.read_text().splitlines() if info.exists() else ():
            if line.startswith("flags"):
                flags = set(line.partition(":")[2].split())
                break
        expected_names |= {"cpu", "cpu:portable"}
        if flags >= {"avx2", "fma", "f16c"}:
            expected_names.add("cpu:avx2")
        if flags >= {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c"}:
            expected_names.add("cpu:avx512")
    assert expected_names <= set(registry.names())
    for name in sorted(expected_names):
        backend = registry.get(name)
        assert backend.unavailable() is None
        for case in CASES:
            problem = problem_of(*case.values)
            assert registry.reasons_against(backend, problem) == [], (name, case.id)


def test_reference_is_never_chosen() -> None:
    assert registry.get("reference").priority < 0
    assert registry.choose(plain(), "auto").name != "reference"


def test_eager_refuses_what_it_cannot_read() -> None:
    problem = changed(plain(), data=torch.zeros(40, 108, dtype=torch.int32))
    reasons = registry.get("eager").refuses(problem, MEAN_ONLY)
    assert reasons == ["needs uint8 or floating-point data, got torch.int32"]
