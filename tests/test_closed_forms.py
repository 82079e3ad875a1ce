"""Toy models with a known mutual information."""

from __future__ import annotations

import math

import pytest
import torch

from diffgen.generalization.bounds.closed_forms import (
    copier_information,
    copier_information_floor,
    gaussian_copier,
    mean_information,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Means over 10,000 sets of 100 samples, by plain float64 sums that share no code with diffgen's,
# and their standard errors.
KNOWN = {
    1.0: (0.27040, 0.00088),
    0.5: (2.16439, 0.00253),
    0.2: (8.42638, 0.00334),
    0.05: (19.37362, 0.00345),
}

# The values noted beside the paper, without their Monte-Carlo error; 19.35 is below the analytic
# floor of 19.371. All four are what the mean over some hundred sets may be off by.
NOTED = {1.0: 0.264, 0.5: 2.15, 0.2: 8.41, 0.05: 19.35}


@pytest.mark.parametrize("noise", KNOWN)
def test_copier_has_the_known_information(noise: float) -> None:
    found = copier_information(100, 8, noise, num_sets=300, generator=_seeded())
    value, error = KNOWN[noise]
    z = (found.value - value) / math.hypot(found.standard_error, error)
    assert abs(z) < 4
    assert found.standard_error < 0.03
    assert found.interval[0] < found.value < found.interval[1]
    of_hundred = float(found.per_set.std()) / math.sqrt(100)
    rounding = 0.005
    assert abs(value - NOTED[noise]) < 3 * of_hundred + rounding


def test_noted_value_of_a_near_copier_is_below_the_floor() -> None:
    floor = copier_information_floor(100, 8, 0.05)
    assert floor == pytest.approx(4 * math.log(401) - math.log(100), rel=1e-15)
    assert NOTED[0.05] < floor < KNOWN[0.05][0] + 4 * KNOWN[0.05][1]


def test_one_point_has_the_information_of_a_noisy_channel() -> None:
    found = copier_information(1, 3, 0.7, num_sets=500, samples_per_set=20, generator=_seeded())
    channel = 1.5 * math.log1p(1 / 0.49)
    assert copier_information_floor(1, 3, 0.7) == pytest.approx(channel, rel=1e-15)
    assert abs(found.value - channel) < 4 * found.standard_error


def test_linear_gaussian_case() -> None:
    assert mean_information(20, 1, 0.3) == pytest.approx(0.5 * math.log(14 / 9), rel=1e-15)
    assert round(mean_information(20, 1, 0.3), 4) == 0.2209
    # Correlation r of the mean and its noisy copy: I = -1/2 log(1 - r^2).
    sets = torch.randn(200_000, 5, generator=_seeded(), dtype=torch.float64).mean(1)
    noisy = sets + 0.6 * torch.randn(200_000, generator=_seeded(1), dtype=torch.float64)
    r = float(torch.corrcoef(torch.stack([sets, noisy]))[0, 1])
    # The standard error of r is (1 - r^2) / sqrt(M), and dI/dr = r / (1 - r^2).
    error = r / math.sqrt(200_000)
    assert abs(-0.5 * math.log1p(-(r**2)) - mean_information(5, 1, 0.6)) < 4 * error


def test_copies_are_of_their_own_set() -> None:
    sets, samples = gaussian_copier(3, 5, 2, 1e-9, 20, generator=_seeded())
    for points, drawn in zip(sets, samples, strict=True):
        nearest = (drawn[:, None] - points).abs().sum(2).amin(1)
        assert float(nearest.max()) < 1e-7
    again, _ = gaussian_copier(3, 5, 2, 1e-9, 20, generator=_seeded())
    assert torch.equal(sets, again)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="noise must be positive and finite, got 0"):
        copier_information(10, 2, 0.0)
    with pytest.raises(ValueError, match="num_points must be at least 1, got 0"):
        mean_information(0, 2, 0.1)
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        copier_information_floor(5, 0, 0.1)
    with pytest.raises(ValueError, match="num_sets must be at least 2 for a standard error, got 1"):
        copier_information(5, 2, 0.1, num_sets=1)
    with pytest.raises(ValueError, match="samples_per_set must be at least 1, got 0"):
        gaussian_copier(1, 2, 3, 0.1, 0)
