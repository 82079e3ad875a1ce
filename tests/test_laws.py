"""Laws that every posterior obeys, on drawn problems, for every backend that `auto` may choose."""

from __future__ import annotations

import dataclasses
import math

import cpu_backends
import problems
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffgen import accuracy
from diffgen.backends import registry
from diffgen.backends.problem import Problem
from diffgen.backends.registry import Moments

BACKENDS = ["reference", *(n for n in cpu_backends.NAMES if registry.get(n).priority >= 0)]
EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**31)
noise = st.floats(-3, 2).map(lambda power: 10.0**power)


@st.composite
def drawn(draw: st.DrawFn, least_rows: int = 1) -> Problem:
    """A float64 problem with weights; queries are near rows, between them or anywhere."""
    count, features, batch = draw(st.integers(least_rows, 12)), draw(sizes), draw(sizes)
    seed, sigma = draw(seeds), draw(noise)
    data = problems.uniform(count, features, seed)
    weights = problems.uniform(count, 1, seed + 1)[:, 0] + 1.01
    pick = torch.arange(batch) % count
    between = (data[pick] + data[(pick * 5 + 1) % count]) / 2
    spread = problems.uniform(batch, features, seed + 2)
    query = between + draw(st.sampled_from([0.0, 1.0, 10.0])) * sigma * spread
    return problems.from_stored(data, query, sigma, torch.float64, weights=weights)


def solve(backend: str, problem: Problem) -> Moments:
    reasons = registry.reasons_against(registry.get(backend), problem)
    if reasons:
        pytest.skip("; ".join(reasons))
    return registry.get(backend).moments(problem, True, 1, torch.float64)


def rebuilt(problem: Problem, data: Tensor, query: Tensor, sigma: Tensor, pick: Tensor) -> Problem:
    """The problem with other values and the weights of the rows ``pick``."""
    assert problem.log_weights is not None
    return dataclasses.replace(
        problem,
        data=data.contiguous(),
        query=query.contiguous(),
        sigma=sigma,
        norms=data.square().sum(1),
        log_weights=problem.log_weights[pick],
    )


def wobble(problem: Problem) -> Tensor:
    """How far a logit may be off, (B, 1): rounding of the inputs, of the sums, and the promise.

    Moving a problem rounds its values to u of themselves, which changes a logit by
    |x - y| u max|.| sqrt(D) / sigma^2. The promise of float64 is 1e-9.
    """
    largest = max(float(problem.data.abs().max()), float(problem.query.abs().max()))
    features = problem.data.shape[1]
    moved = 2.0**-52 * features * (2 * largest) ** 2 / problem.sigma.square()
    return (16 * moved + 2e-9)[:, None]


def assert_same(
    got: Moments,
    want: Moments,
    slack: Tensor,
    *,
    shift: float = 0.0,
    size: float = 1.0,
    add: float = 0.0,
) -> None:
    """Asserts that the mean is ``size mean + shift`` and logsumexp is larger by ``add``."""
    half_range = max(1.0, float(want[0].abs().max()))
    limit = size * half_range * torch.expm1(4 * slack) + 2.0**-50 * (abs(shift) + size)
    assert bool(((got[0] - (size * want[0] + shift)).abs() <= limit).all())
    limit = slack[:, 0] * (1 + 0 * want[1]) + 1e-9 * want[1].abs()
    assert bool(((got[1] - (want[1] + add)).abs() <= limit).all())


@EACH_BACKEND
@given(problem=drawn(), by=st.floats(-3, 3))
def test_translation_moves_the_mean(backend: str, problem: Problem, by: float) -> None:
    every = torch.arange(len(problem.data))
    moved = rebuilt(problem, problem.data + by, problem.query + by, problem.sigma, every)
    assert_same(
        solve(backend, moved),
        solve(backend, problem),
        wobble(moved) + wobble(problem),
        shift=by,
    )


@EACH_BACKEND
@given(problem=drawn(), power=st.integers(-6, 6))
def test_scaling_scales_the_mean(backend: str, problem: Problem, power: int) -> None:
    size = 2.0**power
    every = torch.arange(len(problem.data))
    scaled = rebuilt(
        problem, problem.data * size, problem.query * size, problem.sigma * size, every
    )
    assert_same(solve(backend, scaled), solve(backend, problem), wobble(problem), size=size)


@EACH_BACKEND
@given(problem=drawn(), seed=seeds)
def test_orthogonal_map_turns_the_mean(backend: str, problem: Problem, seed: int) -> None:
    features = problem.data.shape[1]
    turn = torch.linalg.qr(problems.uniform(features, features, seed)).Q
    every = torch.arange(len(problem.data))
    turned = rebuilt(problem, problem.data @ turn, problem.query @ turn, problem.sigma, every)
    mean, *rest = solve(backend, problem)
    want = (mean @ turn, rest[0], rest[1], rest[2], rest[3])
    assert_same(solve(backend, turned), want, 2 * features * wobble(turned))


@EACH_BACKEND
@given(problem=drawn(), seed=seeds)
def test_order_of_the_data_does_not_matter(backend: str, problem: Problem, seed: int) -> None:
    pick = torch.randperm(len(problem.data), generator=problems.generator(seed))
    shuffled = rebuilt(problem, problem.data[pick], problem.query, problem.sigma, pick)
    assert_same(solve(backend, shuffled), solve(backend, problem), wobble(problem))


@EACH_BACKEND
@given(problem=drawn())
def test_doubling_the_data_adds_log_two(backend: str, problem: Problem) -> None:
    pick = torch.arange(len(problem.data)).repeat(2)
    doubled = rebuilt(problem, problem.data[pick], problem.query, problem.sigma, pick)
    got, want = solve(backend, doubled), solve(backend, problem)
    assert_same(got, want, wobble(problem), add=math.log(2))
    # Entropy and effective sample size: every weight is halved and there are two of each.
    slack = 40 * wobble(problem)[:, 0]
    assert bool(((got[2][:, 0] - want[2][:, 0] - math.log(2)).abs() <= slack).all())
    assert bool(((got[2][:, 1] / want[2][:, 1] - 2).abs() <= slack).all())


@EACH_BACKEND
@given(problem=drawn())
def test_mean_is_in_the_convex_hull(backend: str, problem: Problem) -> None:
    mean, _, fields, *_ = solve(backend, problem)
    rounding = 64 * 2.0**-53
    assert bool((mean <= problem.data.amax(0) + rounding).all())
    assert bool((mean >= problem.data.amin(0) - rounding).all())
    directions = problems.uniform(problem.data.shape[1], 5, 0)
    ends = problem.data @ directions
    assert bool((mean @ directions <= ends.amax(0) + 12 * rounding).all())
    assert bool((fields[:, 0] >= -rounding).all())
    assert bool((fields[:, 0] <= math.log(len(problem.data)) + 1e-9).all())
    assert bool((fields[:, 1] >= 1 - rounding).all())
    assert bool((fields[:, 1] <= len(problem.data) * (1 + 1e-9)).all())
    assert bool((fields[:, 2] >= 0).all())


@EACH_BACKEND
@given(problem=drawn())
def test_small_noise_gives_the_nearest_row(backend: str, problem: Problem) -> None:
    tiny = torch.full_like(problem.sigma, 1e-6)
    squared = (problem.query[:, None] - problem.data).square().sum(2).sort(1).values
    # A gap of 1e-9 is 500 nats at this sigma.
    clear = torch.ones(len(squared), dtype=torch.bool)
    if squared.shape[1] > 1:
        clear = squared[:, 1] - squared[:, 0] > 1e-9
    for sigma in (tiny, torch.zeros_like(tiny)):
        mean, _, _, ids, distances = solve(backend, dataclasses.replace(problem, sigma=sigma))
        nearest = problem.data[ids[:, 0]]
        assert bool(((mean - nearest).abs() <= 2.0**-50)[clear].all())
        assert torch.allclose(distances[:, 0].square(), squared[:, 0], rtol=1e-12, atol=1e-15)


@EACH_BACKEND
@given(problem=drawn())
def test_infinite_noise_gives_the_weighted_average(backend: str, problem: Problem) -> None:
    assert problem.log_weights is not None
    weights = problem.log_weights.exp()
    average = weights @ problem.data / weights.sum()
    for sigma in (1e9, math.inf):
        mean, logsumexp, *_ = solve(
            backend, dataclasses.replace(problem, sigma=torch.full_like(problem.sigma, sigma))
        )
        # Squared distances below 1e8 over 2e18 move logits by less than 1e-10.
        assert bool(((mean - average).abs() <= 1e-9).all())
        assert bool(((logsumexp - weights.sum().log()).abs() <= 1e-9).all())


@EACH_BACKEND
@given(problem=drawn(least_rows=2), cut=st.integers(1, 11))
def test_two_parts_merge_to_the_whole(backend: str, problem: Problem, cut: int) -> None:
    count = len(problem.data)
    cut = min(cut, count - 1)
    first = solve(backend, dataclasses.replace(problem, rows=torch.arange(cut)))
    second = solve(backend, dataclasses.replace(problem, rows=torch.arange(cut, count)))
    logsumexp = torch.logaddexp(first[1], second[1])
    left, right = ((part[1] - logsumexp).exp()[:, None] for part in (first, second))
    merged = (left * first[0] + right * second[0], logsumexp, *first[2:])
    # Absolute logsumexps are subtracted here, each rounded to 2^-53 of itself.
    slack = wobble(problem) + 8 * 2.0**-53 * (first[1].abs() + second[1].abs())[:, None]
    slack = slack + 1e-9 * (first[1].abs() + second[1].abs())[:, None]
    assert_same(solve(backend, problem), merged, slack)


@EACH_BACKEND
@given(problem=drawn(), seed=seeds)
def test_score_is_the_slope_of_the_log_density(backend: str, problem: Problem, seed: int) -> None:
    sigma = problem.sigma.clamp(min=0.05)
    problem = dataclasses.replace(problem, sigma=sigma)
    direction = problems.uniform(*problem.query.shape, seed)
    direction = direction / direction.norm(dim=1, keepdim=True).clamp(min=1e-3)
    step = 1e-3 * sigma[:, None]
    sides = [
        solve(backend, dataclasses.replace(problem, query=problem.query + sign * step * direction))
        for sign in (1, -1)
    ]
    slope = (sides[0][1] - sides[1][1]) / (2 * step[:, 0])
    mean = solve(backend, problem)[0]
    score = (mean - problem.query) / sigma[:, None].square()
    got = (score * direction).sum(1)
    # Central differences: h^2 / 6 times the third derivative, which is at most 2 (R / sigma^2)^3
    # for a posterior over a range R, along a unit vector; rounding of logsumexp over h.
    reach = 2 * math.sqrt(problem.data.shape[1])
    cubic = step[:, 0].square() / 6 * 2 * (reach / sigma.square()) ** 3
    rounding = accuracy.FLOAT64_PROMISES["logsumexp"].tolerance(sides[0][1]) / step[:, 0]
    assert bool(((slope - got).abs() <= cubic + rounding + 1e-9 * score.norm(dim=1)).all())
