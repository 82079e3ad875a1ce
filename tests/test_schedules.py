from __future__ import annotations

import math

import pytest
import torch

from diffgen import schedules
from diffgen.processes import DDPM, PROCESSES, VE, RectifiedFlow

U = 2.0**-53


@pytest.fixture(params=schedules.SCHEDULES, ids=str)
def schedule(request):
    return schedules.SCHEDULES[request.param]


@pytest.mark.parametrize("n", [1, 2, 3, 18, 1000])
def test_levels_decrease_from_sigma_max_over_sigma_min_to_zero(schedule, n):
    sigmas = schedule(n, sigma_min=0.03, sigma_max=7.0)
    assert sigmas.shape == (n + 1,) and sigmas.dtype == torch.float64
    assert sigmas[0] == 7.0 and sigmas[-1] == 0.0
    assert n == 1 or sigmas[-2] == 0.03
    assert bool((sigmas.diff() < 0).all())


def test_levels_default_to_the_range_of_edm(schedule):
    sigmas = schedule(10)
    assert sigmas[0] == 80.0 and sigmas[-2] == 0.002


def test_karras_is_its_formula():
    n, low, high, rho = 18, 0.002, 80.0, 7.0
    expected = [
        (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(n)
    ]
    # The 7th power turns the few roundings of its base into 7 times as many.
    expected = torch.tensor([*expected, 0.0], dtype=torch.float64)
    torch.testing.assert_close(schedules.karras(n), expected, rtol=7 * 16 * U, atol=0)


def test_karras_runs_from_linear_to_exponential_in_rho():
    linear = schedules.linear(10)
    torch.testing.assert_close(schedules.karras(10, rho=1.0), linear, rtol=1e-12, atol=0)
    # sigma^(1/rho) is 1 + log(sigma)/rho up to (log sigma / rho)^2 / 2, at most 2e-11 here, which
    # the power makes rho times larger.
    near = schedules.karras(10, rho=1e6)
    torch.testing.assert_close(near, schedules.exponential(10), rtol=1e-4, atol=0)
    assert not torch.allclose(schedules.karras(10), schedules.exponential(10), rtol=1e-2)


def test_exponential_levels_have_one_factor():
    sigmas = schedules.exponential(9)[:-1]
    factor = (0.002 / 80.0) ** (1 / 8)
    torch.testing.assert_close(
        sigmas[1:] / sigmas[:-1], torch.full((8,), factor, dtype=torch.float64), rtol=1e-13, atol=0
    )


def test_linear_levels_have_one_difference():
    difference = schedules.linear(9, 1.0, 9.0)[:-1].diff()
    assert torch.equal(difference, -torch.ones(8, dtype=torch.float64))


def test_levels_of_ddpm_are_all_its_ratios():
    process = DDPM()
    sigmas = schedules.from_process(process, 1000)
    assert torch.equal(sigmas[:-1], process.ratio(torch.arange(999, -1, -1)))
    assert sigmas[-1] == 0
    alpha_bar = process.alpha_bar.flip(0)
    expected = ((1 - alpha_bar) / alpha_bar).sqrt()
    # 1 - alpha_bar loses up to four digits where alpha_bar is 0.9999.
    torch.testing.assert_close(sigmas[:-1], expected, rtol=1e4 * U, atol=0)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("n", [1, 2, 10, 137])
def test_levels_of_every_process_decrease_to_zero(name, n):
    process = PROCESSES[name]()
    sigmas = schedules.from_process(process, n)
    assert sigmas.shape == (n + 1,) and sigmas.dtype == torch.float64
    assert bool((sigmas.diff() < 0).all()) and sigmas[-1] == 0
    assert sigmas[0] == process.ratio(process.sampling_range[1])
    assert n == 1 or sigmas[-2] == process.ratio(process.sampling_range[0])


def test_levels_of_ve_are_the_exponential_ones():
    torch.testing.assert_close(
        schedules.from_process(VE(0.01, 50.0), 12),
        schedules.exponential(12, 0.01, 50.0),
        rtol=1e-13,
        atol=0,
    )


def test_levels_of_flow_start_short_of_pure_noise():
    assert float(schedules.from_process(RectifiedFlow(), 5)[0]) == pytest.approx(999.0, rel=1e-12)


def test_a_process_of_pure_noise_has_no_first_level():
    process = DDPM(torch.tensor([0.1, 0.5, 1.0]))
    with pytest.raises(ValueError, match="must leave some signal at its last time"):
        schedules.from_process(process, 3)


@pytest.mark.parametrize(
    ("n", "ends"),
    [
        (0, (0.1, 1.0)),
        (-3, (0.1, 1.0)),
        (5, (0.0, 1.0)),
        (5, (-1.0, 1.0)),
        (5, (2.0, 1.0)),
        (5, (1.0, 1.0)),
        (5, (1.0, math.inf)),
        (5, (math.nan, 1.0)),
    ],
)
def test_bad_counts_and_ends_are_refused(schedule, n, ends):
    with pytest.raises(ValueError, match="got"):
        schedule(n, *ends)


@pytest.mark.parametrize("rho", [0.0, -7.0, math.inf, math.nan])
def test_karras_refuses_a_bad_rho(rho):
    with pytest.raises(ValueError, match="rho must be positive and finite, got"):
        schedules.karras(5, rho=rho)
