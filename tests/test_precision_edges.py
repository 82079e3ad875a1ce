"""Corners of the promise that random data never visit, on every backend."""

from __future__ import annotations

import math

import cpu_backends
import pytest
import torch
from torch import Tensor

from diffgen import EmpiricalDenoiser, TrainingSet
from diffgen.backends import reference, registry
from diffgen.backends.problem import Problem

BACKENDS = [name for name in cpu_backends.NAMES if name != "reference"]
EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


def problem_of(data: Tensor, query: Tensor, sigma: float) -> Problem:
    return Problem(
        query=query,
        sigma=torch.full((len(query),), sigma, dtype=torch.float64),
        alpha=None,
        exclude=None,
        data=data,
        norms=data.double().square().sum(1),
        log_weights=None,
        rows=None,
        scale=1.0,
        offset=0.0,
    )


def run(backend: str, problem: Problem, functionals: bool = False):
    chosen = registry.get(backend)
    reasons = registry.reasons_against(chosen, problem)
    if reasons:
        pytest.skip("; ".join(reasons))
    return chosen.moments(problem, functionals, 0, torch.float64)


@EACH_BACKEND
@pytest.mark.parametrize(("dtype", "promise"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_roundings_that_all_go_one_way_stay_in_the_promise(backend, dtype, promise):
    # Constant images -1 and 1 and a constant query c: every term of a sum is the same. The mean is
    # tanh(D c / sigma^2).
    features, sigma = 12_288, 0.002
    data = torch.stack([-torch.ones(features), torch.ones(features)])
    levels = torch.linspace(-2.5e-10, 2.5e-10, 21, dtype=torch.float64).to(dtype)
    query = levels[:, None].expand(-1, features).contiguous()
    mean = run(backend, problem_of(data, query, sigma))[0]
    want = torch.tanh(levels.double() * features / sigma**2)
    assert (mean - want[:, None]).abs().max() < promise


@EACH_BACKEND
def test_trace_counts_a_light_row_at_the_far_corner(backend):
    # A weight of e^-17 on a row that differs by the whole range in each of 12,288 features.
    features = 12_288
    data = torch.stack([-torch.ones(features), torch.ones(features)])
    # x = c constant: the far logit is below the near one by 2 D |c| / sigma^2 = 17.
    sigma = 80.0
    query = torch.full((1, features), -17 * sigma**2 / (2 * features))
    problem = problem_of(data, query, sigma)
    got = run(backend, problem, functionals=True)[2][0, 2]
    want = reference.moments(problem, True, 0, torch.float64)[2][0, 2]
    assert 1e-3 < want < 1
    assert (got - want).abs() < 1e-3


@EACH_BACKEND
@pytest.mark.parametrize("value", [1e19, 1e37, 1e40])
def test_rows_beyond_float32_take_no_other_row_along(backend, value):
    far = torch.full((1, 3), value, dtype=torch.float64)
    data = torch.cat([torch.tensor([[0.5, 0.5, 0.5], [-0.5, 0.5, 0.0]]).double(), far])
    problem = problem_of(data, torch.full((2, 3), 100.0), 50.0)
    mean, logsumexp, *_ = run(backend, problem)
    want, want_logsumexp, *_ = reference.moments(problem, False, 0, torch.float64)
    assert (mean - want).abs().max() < 1e-5
    assert (logsumexp - want_logsumexp).abs().max() < 1e-3


@EACH_BACKEND
@pytest.mark.parametrize("sigma", [1e-154, 1e-130, 1e-100])
def test_vanishing_noise_gives_the_nearest_point(backend, sigma):
    data = torch.tensor([[1.0, 1.0], [-1.0, 0.5]])
    mean = run(backend, problem_of(data, torch.tensor([[0.9, 0.9]]), sigma))[0]
    assert mean.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("count", [2, 8, 40])
def test_score_of_near_duplicates_is_in_its_promise(count):
    """The score is the gap to the mean over sigma^2: at 0.002 the mean must be that much better."""
    features, sigma = 300, 0.002
    generator = torch.Generator().manual_seed(count)
    base = torch.rand(1, features, generator=generator) * 2 - 1
    data = base + 1e-4 * torch.randn(count, features, generator=generator)
    x = data[:1] + sigma * torch.randn(4, features, generator=generator)
    problem = problem_of(data, x, sigma)
    want = reference.moments(problem, False, 0, torch.float64)[0]
    score = (want - x.double()) / sigma**2
    denoiser = EmpiricalDenoiser(TrainingSet(data))
    got = (denoiser.posterior_mean(x, 1.0, sigma) - x.double()) / sigma**2
    assert bool(((got - score).abs() <= 1e-5 * score.abs() + 1e-5 / sigma).all())
    assert math.isfinite(float(got.sum()))
