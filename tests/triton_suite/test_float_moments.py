"""Moments on floating-point sets, against the float64 reference."""

from __future__ import annotations

import dataclasses
import math

import problems
import pytest
import torch
from placing import brought, placed
from torch import Tensor

from diffgen import accuracy
from diffgen.backends import reference
from diffgen.backends.problem import Problem
from diffgen.backends.triton import float_moments, layout
from diffgen.backends.triton.float_moments import FloatMoments

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

# Each problem with one storage and one query type: in the interpreter, which takes bfloat16 for
# integers and TF32 for float32, and as compiled.
INTERPRETED = [
    ("images_high_noise", F32, F32),
    ("mixed_sigma", F16, F32),
    ("random_rows", F32, F64),
    ("near_duplicates", F32, F64),
    ("bisectors", F16, F64),
    ("bisectors_of_near_duplicates", F32, F32),
    ("far_bisectors", F64, F64),
    ("far_queries", F32, F32),
    ("far_outlier", F16, F32),
    ("two_valued", F64, F32),
    ("constant", F32, F64),
    ("one_row", F16, F64),
    ("one_feature", F64, F32),
    ("no_query", F32, F32),
    ("weighted", F64, F64),
    ("weighted_class", F32, F32),
    ("left_out", F32, F64),
    ("signal_scales", F16, F32),
    ("shifted_data", F32, F64),
    ("coincident", F64, F64),
    ("bad_queries", F16, F32),
    ("sizes_3_7_33", F32, F64),
]
COMPILED = [
    ("images_low_noise", BF16, F32),
    ("mixed_sigma", F32, F64),
    ("near_duplicates", BF16, F64),
    ("bisectors", F32, F32),
    ("one_feature", BF16, F32),
    ("weighted_class", BF16, F64),
    ("left_out", F16, F32),
    ("signal_scales", BF16, F32),
    ("bad_queries", F64, F32),
    ("sizes_3_7_33", BF16, F32),
]


def named(cases: list[tuple[str, torch.dtype, torch.dtype]]) -> pytest.MarkDecorator:
    ids = [f"{name}-{storage}-{query}".replace("torch.", "") for name, storage, query in cases]
    return pytest.mark.parametrize(("name", "storage", "query"), cases, ids=ids)


def check(
    problem: Problem, device: torch.device, mean_dtype: torch.dtype = F64
) -> tuple[Tensor, ...]:
    """Moments, within the promise and the derived bounds, whichever is less."""
    want = reference.moments(problem, True, 0, F64)
    got = brought(float_moments.moments(placed(problem, device), True, mean_dtype))
    assert [part.dtype for part in got] == [mean_dtype, F64, F64]
    assert [part.shape for part in got] == [part.shape for part in want[:3]]
    units = accuracy.units_of_promise((*got, *want[3:]), want, problem)
    assert max(units.values()) <= 1, units
    limits = accuracy.derived_bounds(problem, want, 2.0**-53)
    rounding = 0.0 if mean_dtype == F64 else 2.0**-24
    for part, exact, limit in ((got[1], want[1], limits[0]), (got[0], want[0], limits[1])):
        known = exact.isfinite() & limit.isfinite()
        allowed = limit + rounding * exact.abs()
        assert ((part.double() - exact).abs() <= allowed)[known].all()
    return got


@pytest.mark.only("interpreter")
@named(INTERPRETED)
def test_moments_are_in_the_promise_and_the_derived_bound(
    device: torch.device, name: str, storage: torch.dtype, query: torch.dtype
) -> None:
    check(problems.PROBLEMS[name](0, storage, query), device)


@pytest.mark.only("ttsem", "gpu")
@named(COMPILED)
def test_moments_of_compiled_kernels_are_in_the_promise(
    device: torch.device, name: str, storage: torch.dtype, query: torch.dtype
) -> None:
    check(problems.PROBLEMS[name](0, storage, query), device)


@pytest.mark.only("gpu")
@pytest.mark.parametrize("query", problems.QUERY)
@pytest.mark.parametrize("storage", [F16, BF16, F32, F64])
@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_moments_of_every_problem_are_in_the_promise(
    device: torch.device, name: str, storage: torch.dtype, query: torch.dtype
) -> None:
    check(problems.PROBLEMS[name](0, storage, query), device)


def several_segments(storage: torch.dtype, subset: bool) -> Problem:
    """Two whole segments and a ragged one, at all noise levels."""
    count, features = 2 * layout.SEGMENT_ROWS + 37, 37
    data = problems.encode(problems.uniform(count, features, 3), storage, (-1.0, 1.0))
    sigma = (0.002, 0.3, 1.0, 20.0, 0.0, math.inf)
    rows = list(range(5, count, 3))
    return problems.from_stored(
        data,
        problems.noised(sigma, 6, 3),
        sigma,
        F32,
        rows=rows if subset else None,
        weights=[1.0 + i % 3 for i in range(count)] if subset else None,
        exclude=[5, 8, -1, 1100, -1, 2000] if subset else None,
    )


def test_products_that_are_too_coarse_do_not_decide(device: torch.device) -> None:
    # Half-way between rows near 10 a product is rounded by 6e-7 nats: 10 * 10 * 108 features at
    # 2^-53, over 2 sigma^2, against the 1e-9 promised.
    data = (10 + problems.natural(16, 6, 0)).float()
    check(problems.from_stored(data, problems.half_way, 0.002, F64), device)


def test_distances_that_rounding_tells_apart_are_equal_at_zero_noise(device: torch.device) -> None:
    row = problems.uniform(1, 300, 0).float()
    # The same values in other orders, so that their sum is rounded in other ways.
    orders = [torch.randperm(300, generator=problems.generator(seed)) for seed in range(8)]
    data = torch.cat([row[:, order] for order in orders])
    check(problems.from_stored(data, torch.zeros(1, 300), 0.0, F32), device)


def test_distances_within_the_tie_are_equal_at_zero_noise(device: torch.device) -> None:
    data = torch.tensor([[1.0], [-1.0 - 4e-13]], dtype=F64)
    check(problems.from_stored(data, torch.zeros(1, 1), 0.0, F64), device)


@pytest.mark.parametrize("mean_dtype", [F32, F64])
def test_mean_is_rounded_once(device: torch.device, mean_dtype: torch.dtype) -> None:
    check(problems.PROBLEMS["images_mid_noise"](1, F32, F32), device, mean_dtype)


@pytest.mark.parametrize("subset", [False, True])
def test_segments_in_several_waves_give_the_bits_of_one(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, subset: bool
) -> None:
    problem = several_segments(F32, subset)
    whole = check(problem, device)
    here = placed(problem, device)
    for name in ("LOGIT_BYTES", "MEAN_BYTES"):
        with monkeypatch.context() as smaller:
            smaller.setattr(float_moments, name, 1)
            parts = brought(float_moments.moments(here, True, F64))
        for one, other in zip(whole, parts, strict=True):
            assert torch.equal(one.view(torch.int64), other.view(torch.int64))


def true_logits(problem: Problem) -> Tensor:
    """Logits less kappa |x|^2, (B, N), of unweighted rows, by float64 products of few features."""
    x, y = problem.query.double(), problem.data.double()
    kappa = 0.5 / problem.sigma.square()
    return kappa[:, None] * (2 * x @ y.T - y.square().sum(1))


@pytest.mark.only("ttsem", "gpu")
@pytest.mark.parametrize("storage", [F16, BF16, F32])
def test_screen_bounds_the_logits(device: torch.device, storage: torch.dtype) -> None:
    data = problems.encode(problems.natural(150, 6, 2), storage, (-1.0, 1.0))
    sigma = (0.05, 0.5, 5.0)
    problem = problems.from_stored(data, problems.noised(sigma, 6, 2), sigma, F32)
    run = FloatMoments(placed(problem, device), F32)
    (wave,) = run.blocks.waves(1)
    lowers = run.screen(wave)
    uppers = run.logits.cpu().view(6, layout.SEGMENT_ROWS)
    assert (uppers[:, 150:] == -math.inf).all()
    exact = true_logits(problem)
    assert (uppers[:, :150] >= exact).all()
    assert (lowers.cpu().amax(0) <= exact.amax(1)).all()
    # What the piece loses is needed in the bound, and the bound is not wider than it must be: a
    # row's length and D are at most 12 and 108, a unit of bfloat16 is 2^-8.
    level = run.queries.screen.cpu()[2][:, None]
    slope = (uppers[:, :150] - exact).amax(1)
    assert (uppers[:, :150] - exact > 2 * level).any()
    kappa, length = 0.5 / problem.sigma.square(), problem.query.double().norm(dim=1)
    assert (slope <= 2 * 2 * kappa * length * 12 * (2.0**-8 + 108 * 2.0**-22)).all()


def test_rows_that_the_screen_leaves_out_are_not_multiplied(device: torch.device) -> None:
    data = problems.encode(problems.natural(600, 3, 4), F32, (-1.0, 1.0))
    problem = problems.from_stored(data, lambda values: values[:2] + 0.01, 0.05, F32)
    run = FloatMoments(placed(problem, device), F32)
    (wave,) = run.blocks.waves(1)
    run.form(wave)
    logits = run.logits.cpu().view(2, layout.SEGMENT_ROWS)[:, :600]
    formed = logits > -math.inf
    assert formed.any(1).all()
    assert not formed.all(1).any()
    exact = true_logits(problem)
    best = exact.amax(1, keepdim=True)
    assert (exact - best)[~formed].amax() < -(36.0 + math.log(600))
    torch.testing.assert_close(logits[formed], exact[formed], rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("rows", [[], [3, 9]])
def test_query_without_a_row_is_nan(device: torch.device, rows: list[int]) -> None:
    data = problems.uniform(12, 5, 0).float()
    problem = problems.from_stored(data, lambda y: y[:3].clone(), 0.3, F32, rows=rows)
    problem = dataclasses.replace(problem, exclude=torch.tensor([3, -1, -7]), check_values=False)
    if rows:
        weights = torch.full((12,), -math.inf, dtype=F64).index_fill_(0, torch.tensor([3]), 0.0)
        problem = dataclasses.replace(problem, log_weights=weights)
    got = brought(float_moments.moments(placed(problem, device), True, F32))
    nan = [True, not rows, True]
    assert [part.isnan().reshape(3, -1).all(1).tolist() for part in got] == [nan] * 3
    assert [part.isnan().reshape(3, -1).any(1).tolist() for part in got] == [nan] * 3
