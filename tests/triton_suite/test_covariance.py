"""The covariance product of Triton against the reference, and what it does not depend on."""

from __future__ import annotations

import dataclasses

import placing
import problems
import pytest
import torch
from torch import Tensor

from diffgen import accuracy
from diffgen.backends import reference
from diffgen.backends.problem import CovarianceInputs, Problem
from diffgen.backends.triton import blocks, covariance, driver, lanes
from diffgen.backends.triton.configs import Config
from diffgen.backends.triton.difference_configs import CONFIGS

ROUNDOFF = 2.0**-53
"""All arithmetic is float64, whatever the types of query and rows."""

NAMES = (
    "images_low_noise", "mixed_sigma", "near_duplicates", "far_bisectors", "one_row",
    "one_feature", "weighted_class", "left_out", "signal_scales", "bad_queries", "no_query",
)  # fmt: skip
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def inputs_of(problem: Problem, radial: bool = True) -> CovarianceInputs:
    mean, logsumexp, *_ = reference.moments(problem, False, 0, torch.float64)
    v = torch.randn(mean.shape, generator=problems.generator(1), dtype=torch.float64)
    radii = torch.linspace(-1, 1, len(mean), dtype=torch.float64)
    return CovarianceInputs(mean, logsumexp, v, radii if radial else None)


def run(problem: Problem, inputs: CovarianceInputs, device: torch.device) -> tuple[Tensor, ...]:
    there = placing.placed(problem, device), placing.placed(inputs, device)
    return placing.brought(covariance.covariance_product(*there))


def check(problem: Problem, inputs: CovarianceInputs, got: tuple[Tensor, ...]) -> None:
    want = reference.covariance_product(problem, inputs)
    limits = accuracy.covariance_tolerance(problem, inputs, ROUNDOFF)
    noisy = problem.sigma > 0
    for part, exact, limit in zip(got, want, limits, strict=True):
        assert part.dtype == torch.float64
        assert torch.equal(part[noisy].isnan(), exact[noisy].isnan())
        assert bool(part[~noisy].isnan().all())
        known = exact.isfinite() & limit.isfinite()
        worst = ((part - exact).abs() / limit)[known]
        assert worst.numel() == 0 or worst.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_products_of_8_bit_rows_are_in_their_tolerance(name: str, device: torch.device) -> None:
    problem = problems.PROBLEMS[name](0, torch.uint8, torch.float32)
    inputs = inputs_of(problem)
    check(problem, inputs, run(problem, inputs, device))


@pytest.mark.parametrize("storage", FLOATS)
@pytest.mark.parametrize("name", ["weighted", "shifted_data"])
def test_products_of_float_rows_are_in_their_tolerance(
    name: str, storage: torch.dtype, device: torch.device
) -> None:
    problem = problems.PROBLEMS[name](0, storage, torch.float64)
    inputs = inputs_of(problem, radial=name == "weighted")
    check(problem, inputs, run(problem, inputs, device))


def some_segments(subset: bool) -> Problem:
    """Two or four segments and a part of one; a class leaves one of them empty."""
    count = 4200 if subset else 2100
    data = problems.encode(problems.uniform(count, 5, 0), torch.uint8, (-1.0, 1.0))
    make = problems.noised((0.2, 1.0), 3, 0)
    rows = [i for i in range(count) if i % 7 == 0 and not 1024 <= i < 2048] if subset else None
    return problems.from_stored(data, make, (0.2, 1.0), torch.float32, rows=rows)


@pytest.mark.parametrize("subset", [False, True])
def test_neither_waves_nor_where_rows_lie_change_a_bit(
    subset: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = some_segments(subset)
    for name, queries in (("covariance_rows", 2), ("covariance_sums", 4)):
        blocks_of = {"QUERIES": queries, "ROWS": 128, "FEATURES": 8}
        monkeypatch.setitem(CONFIGS, name, {"": Config(blocks_of)})
    inputs = inputs_of(problem)
    whole = run(problem, inputs, device)
    check(problem, inputs, whole)
    bytes_each = 8 * 3 * (3 * 1024 + 5 + 2)
    monkeypatch.setattr(covariance, "SCRATCH_BYTES", 2 * bytes_each)
    monkeypatch.setattr(covariance, "MOST_QUERIES", 2)
    monkeypatch.setattr(covariance, "Blocks", lambda p: blocks.Blocks(p, lanes.InOrder(device)))
    parts = run(problem, inputs, device)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_nothing_waits_for_the_device(device: torch.device) -> None:
    problem = problems.PROBLEMS["weighted_class"](0, torch.uint8, torch.float32)
    inputs = placing.placed(inputs_of(problem), device)
    unchecked = dataclasses.replace(placing.placed(problem, device), check_values=False)
    with placing.NoWaiting():
        covariance.covariance_product(unchecked, inputs)
        with pytest.raises(AssertionError, match="_local_scalar_dense waits for the device"):
            bool(inputs.mean.isnan().any())


def test_bad_values_raise_or_are_rows_of_nan(device: torch.device) -> None:
    problem = problems.PROBLEMS["left_out"](0, torch.float32, torch.float32)
    inputs = inputs_of(problem)
    sigma, exclude = problem.sigma.clone(), problem.exclude.clone()
    sigma[1], exclude[5] = -0.5, 40
    bad = dataclasses.replace(problem, sigma=sigma, exclude=exclude)
    there = placing.placed(bad, device), placing.placed(inputs, device)
    with pytest.raises(ValueError, match=r"sigma must be .*got -0\.5 at index 1"):
        driver.covariance_product(*there)
    unchecked = dataclasses.replace(bad, check_values=False)
    got = run(unchecked, inputs, device)
    want = reference.covariance_product(problem, inputs)
    for part, exact in zip(got, want, strict=True):
        expected = exact.isnan().any(1) | (problem.sigma == 0)
        expected[[1, 5]] = True
        assert torch.equal(part.isnan().all(1), expected)
        assert torch.equal(part.isnan().any(1), expected)
