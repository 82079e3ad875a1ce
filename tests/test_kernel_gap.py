"""The kernel gap bound, and the means of kernels that it is made of."""

from __future__ import annotations

import math

import pytest
import torch

from diffgen import EmpiricalDenoiser, TrainingSet
from diffgen.generalization.bounds import kernels
from diffgen.generalization.bounds.closed_forms import copier_information, gaussian_copier
from diffgen.generalization.bounds.kernel_gap import kernel_gap_bound
from diffgen.generalization.bounds.kernels import make_kernel, mean_kernel, mean_kernel_to_others

pytestmark = pytest.mark.usefixtures("one_thread")


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mean_of_the_gaussian_kernel_is_the_posterior_s_sum() -> None:
    points, x = torch.randn(2, 40, 5, generator=_seeded(), dtype=torch.float64)
    found = mean_kernel(x, points, make_kernel("rbf", 0.8))
    want = EmpiricalDenoiser(TrainingSet(points)).posterior(x, 0.8).logsumexp.exp() / 40
    # Squared distances up to 60 in expanded form, over 2 * 0.64: 60 / 1.28 * 8 float64 roundings.
    torch.testing.assert_close(found, want, rtol=400 * 2.3e-16, atol=0)


@pytest.mark.parametrize("name", ["rbf", "polynomial"])
def test_means_are_those_of_all_pairs(name: str, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "_BLOCK_PAIRS", 30)  # several blocks, the last one shorter
    x, y = (torch.randn(n, 3, generator=_seeded(n), dtype=torch.float64) for n in (11, 7))
    kernel = make_kernel(name, 1.5 if name == "rbf" else None)

    def k(a, b):
        if name == "rbf":
            return (-(a[:, None] - b).square().sum(2) / 4.5).exp()
        return ((a[:, None] * b).sum(2) / 3 + 1) ** 3

    torch.testing.assert_close(mean_kernel(x, y, kernel), k(x, y).mean(1), rtol=1e-13, atol=1e-13)
    others = (k(x, x).sum(1) - k(x, x).diagonal()) / 10
    torch.testing.assert_close(mean_kernel_to_others(x, kernel), others, rtol=1e-13, atol=1e-13)


def test_gap_of_copies_is_the_share_of_their_point() -> None:
    # Far apart points: the kernel is 1 to the copied point and 0 to all others, so gap = 1 / n,
    # and the bound 2 n / n^2 is below the information log n of the index.
    n = 5
    points, fresh = (100.0 * torch.arange(n)[:, None] + shift for shift in (0.0, 50.0))
    samples = points.repeat(8, 1)
    found = kernel_gap_bound(samples, points, fresh, bandwidth=1.0)
    assert found.gap == pytest.approx(1 / n, rel=1e-12)
    assert found.bound == pytest.approx(2 / n, rel=1e-12)
    assert found.interval == pytest.approx((2 / n, 2 / n), rel=1e-12)
    assert found.estimate < math.log(n)


def test_bound_is_below_a_known_information_and_above_nothing() -> None:
    # Three points with noise 0.3 in 4 dimensions: a kernel sees something.
    sets, samples = gaussian_copier(64, 3, 4, 0.3, 20, generator=_seeded())
    known = copier_information(3, 4, 0.3, generator=_seeded(1))
    found = kernel_gap_bound(list(samples), list(sets), generator=_seeded(2))
    assert 0.1 < found.bound < found.estimate < found.interval[1] < known.value
    low, high = found.gap_interval
    assert low < found.gap < high
    assert found.estimate == pytest.approx(2 * 3 * found.gap**2, rel=1e-12)
    assert found.settings["bandwidth_fitted"] and "models" in found.settings["interval"]
    assert found.per_sample.shape == (64, 10)


def test_new_samples_give_no_bound() -> None:
    points, fresh, samples = torch.randn(3, 300, 4, generator=_seeded())
    found = kernel_gap_bound(samples, points, fresh, bandwidth=0.5, generator=_seeded())
    # Given both sets the gap is not 0, but of the size of two means over 300 points.
    assert abs(found.gap) < 4 * math.sqrt(2 / 300)
    assert found.interval[0] >= 0


def test_gap_on_either_side_of_zero_has_bound_zero() -> None:
    points, fresh = torch.tensor([[0.0], [0.5]]), torch.tensor([[1.0], [1.5]])
    samples = torch.tensor([[0.25], [1.25]] * 10)
    found = kernel_gap_bound(samples, points, fresh, bandwidth=0.3, generator=_seeded())
    assert found.gap == pytest.approx(0.0, abs=1e-6)
    assert found.interval[0] == 0.0 < found.interval[1]


def test_bad_arguments_are_refused() -> None:
    points, fresh = torch.randn(2, 6, 3, generator=_seeded())
    with pytest.raises(ValueError, match=r"samples\[0\] must be at least 4, got 3"):
        kernel_gap_bound(points[:3], points, fresh)
    with pytest.raises(ValueError, match="bandwidth must be positive and finite, got 0"):
        kernel_gap_bound(points, points, fresh, bandwidth=0.0)
    with pytest.raises(ValueError, match="kernel must be one of rbf, polynomial, got 'linear'"):
        make_kernel("linear")
    with pytest.raises(ValueError, match="bandwidth must be None for the polynomial kernel, got 1"):
        make_kernel("polynomial", 1.0)
