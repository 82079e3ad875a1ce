"""The promise as numbers, and the derived bounds."""

from __future__ import annotations

import dataclasses
import math

import problems
import pytest
import torch
from torch import Tensor

from diffgen import accuracy
from diffgen.backends import reference
from diffgen.backends.problem import CovarianceInputs, Problem
from diffgen.backends.registry import Moments


def solved(
    name: str = "images_mid_noise",
    storage: torch.dtype = torch.float32,
    query: torch.dtype = torch.float32,
) -> tuple[Problem, Moments]:
    problem = problems.PROBLEMS[name](0, storage, query)
    return problem, reference.moments(problem, True, 0, torch.float64)


def off_by(moments: Moments, index: int, at: tuple[int, ...], amount: float) -> Moments:
    parts = list(moments)
    parts[index] = parts[index].clone()
    parts[index][at] += amount
    return parts[0], parts[1], parts[2], parts[3], parts[4]


def test_exact_result_is_no_units_off() -> None:
    problem, want = solved()
    units = accuracy.units_of_promise(want, want, problem)
    assert set(units) == {"logsumexp", "mean", "score", *accuracy.FUNCTIONALS}
    assert accuracy.error_in_promises(want, want, problem) == 0


@pytest.mark.parametrize(
    ("quantity", "index", "at"),
    [
        ("mean", 0, (2, 5)),
        ("logsumexp", 1, (2,)),
        ("entropy", 2, (2, 0)),
        ("effective_sample_size", 2, (2, 1)),
        ("trace_covariance", 2, (2, 2)),
    ],
)
@pytest.mark.parametrize(("query", "scale"), [(torch.float32, 1.0), (torch.float64, None)])
def test_error_of_two_tolerances_is_two_units(
    quantity: str, index: int, at: tuple[int, ...], query: torch.dtype, scale: float | None
) -> None:
    problem, want = solved(query=query)
    value = float(want[index][at])
    if scale is not None:
        tolerance = {
            "mean": 1e-5,
            "logsumexp": max(1e-3, 1e-6 * abs(value)),
        }.get(quantity, 1e-3 * max(1.0, value))
    else:
        largest = float(problem.data.double().abs().max())
        tolerance = 1e-9 * (largest if quantity == "mean" else max(1.0, abs(value)))
    units = accuracy.units_of_promise(off_by(want, index, at, 2 * tolerance), want, problem)
    # The sum is rounded to 2^-53 of the value, against a tolerance of 1e-9 of it or more.
    assert units[quantity] == pytest.approx(2, rel=1e-5)


def test_score_is_measured_through_the_mean() -> None:
    problem, want = solved()
    sigma = float(problem.sigma[2])
    score = (want[0][2] - problem.query[2].double()) / sigma**2
    tolerance = 1e-5 * float(score[5].abs()) + 1e-5 / sigma
    wrong = off_by(want, 0, (2, 5), 3 * tolerance * sigma**2)
    assert accuracy.units_of_promise(wrong, want, problem)["score"] == pytest.approx(3, rel=1e-6)


def test_score_and_functionals_are_left_out_where_there_are_none() -> None:
    problem, want = solved()
    got = reference.moments(problem, False, 0, torch.float32)
    assert set(accuracy.units_of_promise(got, want, problem)) == {"logsumexp", "mean"}


def test_one_rounding_of_the_mean_is_allowed() -> None:
    problem, want = solved("shifted_data")
    got = (want[0].float(), *want[1:])
    assert accuracy.units_of_promise(got, want, problem)["mean"] < 1


def test_missing_nan_is_an_infinite_error() -> None:
    problem, want = solved("bad_queries")
    assert accuracy.error_in_promises(want, want, problem) == 0
    row = int(want[1].isnan().nonzero()[0])
    parts = list(want)
    parts[1] = want[1].clone()
    parts[1][row] = 0.0
    assert accuracy.units_of_promise(tuple(parts), want, problem)["logsumexp"] == math.inf
    parts[1] = want[1].clone()
    parts[1][(row + 1) % len(parts[1])] = math.nan
    assert accuracy.units_of_promise(tuple(parts), want, problem)["logsumexp"] == math.inf


def test_promise_depends_on_query_and_storage() -> None:
    for storage in problems.STORAGE:
        for query in problems.QUERY:
            problem = problems.PROBLEMS["random_rows"](0, storage, query)
            exact = query == torch.float64 and storage != torch.uint8
            relative = accuracy.promises(problem)["mean"].relative
            assert relative == (1e-9 if exact else 0.0)


def test_largest_magnitude_is_in_real_units() -> None:
    data = torch.tensor([[0, 255]], dtype=torch.uint8)
    problem = problems.from_stored(
        data, torch.zeros(1, 2), 1.0, torch.float32, value_range=(-3.0, 2.0)
    )
    assert accuracy.largest_magnitude(problem) == 3.0


def float32_moments(problem: Problem) -> tuple[Tensor, Tensor]:
    """What everybody writes: the expanded form in float32."""
    x, y = problem.query.float(), problem.data.float()
    squared = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.T
    logits = -squared / (2 * problem.sigma[:, None].float().square())
    return logits.softmax(1) @ y, logits.logsumexp(1)


@pytest.mark.parametrize("name", ["random_rows", "images_mid_noise", "images_high_noise"])
def test_derived_bound_covers_float32_and_is_not_slack(name: str) -> None:
    problem, want = solved(name)
    mean, logsumexp = float32_moments(problem)
    limits = accuracy.derived_bounds(problem, want, 2.0**-24)
    share = [
        ((logsumexp.double() - want[1]).abs() / limits[0]).max(),
        ((mean.double() - want[0]).abs() / limits[1]).max(),
    ]
    assert max(share) <= 1
    # Random roundings stay below the bound, but not by orders of magnitude.
    assert max(share) >= 1e-3


def test_float32_products_miss_the_promise_at_small_noise() -> None:
    problem, want = solved("bisectors")
    mean, logsumexp = float32_moments(problem)
    got = (mean.double(), logsumexp.double(), *want[2:])
    assert accuracy.error_in_promises(got, want, problem) > 10


def test_derived_bound_is_infinite_where_noise_is_zero() -> None:
    problem, want = solved("mixed_sigma")
    eta, bound = accuracy.derived_bounds(problem, want, 2.0**-53)
    zero = problem.sigma == 0
    assert bool(bound[zero].isinf().all())
    assert not bound[~zero].isinf().any()
    assert torch.equal(eta.isinf(), zero)


def test_covariance_tolerance_is_small_against_the_product() -> None:
    problem, want = solved("images_high_noise", query=torch.float64)
    v = torch.randn(want[0].shape, generator=problems.generator(0), dtype=torch.float64)
    inputs = CovarianceInputs(want[0], want[1], v, None)
    product, _ = reference.covariance_product(problem, inputs)
    limits, _ = accuracy.covariance_tolerance(problem, inputs, 2.0**-53)
    assert bool((limits.amax(1) <= 1e-9 * product.abs().amax(1)).all())
    wrong = dataclasses.replace(inputs, v=v * (1 + 1e-8))
    moved, _ = reference.covariance_product(problem, wrong)
    assert bool(((moved - product).abs().amax(1) > limits.amax(1)).all())
