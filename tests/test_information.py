"""Information about the index, collapse levels, and the PSNR of denoisers."""

from __future__ import annotations

import math

import pytest
import torch

from diffgen import EmpiricalDenoiser, TrainingSet
from diffgen.generalization.over_noise.collapse import collapse_level, speciation_level
from diffgen.generalization.over_noise.denoising_psnr import denoising_psnr
from diffgen.generalization.over_noise.information import index_information
from diffgen.generalization.over_noise.neighbors import effective_neighbors
from diffgen.generalization.statistics.standard_errors import (
    Z_LIMIT,
    agree,
    standard_error,
    z_score,
)
from diffgen.sampling import sample
from diffgen.schedules import exponential

pytestmark = pytest.mark.usefixtures("one_thread")

SIGMAS = [0.1, 0.3, 0.6, 1.0, 2.0, 8.0]


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rows(count: int, features: int = 5, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, features, generator=_seeded(seed))


@pytest.fixture
def denoiser() -> EmpiricalDenoiser:
    return EmpiricalDenoiser(TrainingSet(_rows(60)))


def test_derivative_of_the_information_is_half_the_error(denoiser):
    found = index_information(denoiser, SIGMAS, num_samples=1200, panels=8, generator=_seeded())
    assert found.identity_holds
    # The quadrature must not be what hides a difference.
    noise = standard_error(found.decrease - found.integral)
    assert (found.quadrature_error < noise).all()
    assert (found.z_score != 0).any()


def test_information_of_two_points_is_an_integral():
    # I = log 2 - E H(w), w = logistic(2 x / sigma^2), x | x0 = 1.
    sigma = 0.8
    x = torch.linspace(1 - 12 * sigma, 1 + 12 * sigma, 20_001, dtype=torch.float64)
    density = (-((x - 1) ** 2) / (2 * sigma**2)).exp() / (sigma * math.sqrt(2 * math.pi))
    log_w = torch.nn.functional.logsigmoid(torch.stack([2 * x, -2 * x]) / sigma**2)
    entropy = -(log_w.exp() * log_w).sum(0)
    want = math.log(2) - float(torch.trapezoid(density * entropy, x))
    denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
    found = index_information(denoiser, [sigma, 2.0], num_samples=20_000, generator=_seeded())
    error = standard_error(found.entropy[0])
    assert abs(float(found.information[0]) - want) < Z_LIMIT * float(error)
    low, high = found.interval
    assert low[0] < found.information[0] < high[0]


def test_every_level_sees_the_same_noise(denoiser):
    points = _rows(9, seed=2)
    found = index_information(
        denoiser, [0.5, 1.5], points=points, batch_size=5, generator=_seeded(4)
    )
    draws = _seeded(4)
    noise = torch.cat(
        [torch.randn(size, 5, generator=draws, dtype=torch.float64) for size in (5, 4)]
    )
    for k, sigma in enumerate((0.5, 1.5)):
        posterior = denoiser.posterior((points.double() + sigma * noise).float(), sigma)
        assert torch.equal(found.entropy[k], posterior.entropy)
        assert torch.equal(found.squared_error[k], posterior.trace_covariance)


def test_wrong_error_breaks_the_identity(denoiser, monkeypatch):
    right = denoiser.posterior

    def wrong(x, sigma):
        found = right(x, sigma)
        return found._replace(trace_covariance=1.2 * found.trace_covariance)

    monkeypatch.setattr(denoiser, "posterior", wrong)
    found = index_information(denoiser, SIGMAS, num_samples=1200, panels=8, generator=_seeded())
    assert not found.identity_holds


def test_information_goes_from_all_to_nothing(denoiser):
    found = index_information(denoiser, [1e4, 1e-3], num_samples=None, generator=_seeded())
    # At 1e-3 the noise is a thousandth of the distances; at 1e4 these are a thousandth of it.
    assert found.information.tolist() == pytest.approx([math.log(60), 0.0], abs=1e-6)
    assert found.neighbors.tolist() == pytest.approx([1.0, 60.0], rel=1e-5)
    assert found.effective_sample_size.mean(1).tolist() == pytest.approx([1.0, 60.0], rel=1e-5)
    assert found.sigmas.tolist() == [1e-3, 1e4]
    variance = float(_rows(60).double().var(0, correction=0).sum())
    assert float(found.mean_squared_error[1]) == pytest.approx(variance, rel=1e-5)


def test_information_of_a_weighted_set_starts_at_its_entropy():
    weights = torch.tensor([1.0, 3.0, 0.0])
    denoiser = EmpiricalDenoiser(TrainingSet(_rows(3), weights=weights))
    found = index_information(denoiser, [0.01, 0.7, 100.0], num_samples=3000, generator=_seeded())
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert found.prior_entropy == pytest.approx(entropy, rel=1e-12)
    assert float(found.information[0]) == pytest.approx(entropy, abs=1e-4)
    assert found.identity_holds


def test_simpson_error_estimate_is_above_the_error():
    # Over one interval, with the exact integrals of smooth functions.
    from diffgen.generalization.over_noise.information import _integrals, _refined

    levels = torch.tensor([0.5, 1.5], dtype=torch.float64)
    for power in (0.5, 1.0, 3.0):
        fine = _refined(levels, 8)
        error = (fine ** (2 + power))[:, None]  # the integrand over log sigma is sigma^power
        integral, coarse = _integrals(fine, error, 8)
        want = (1.5**power - 0.5**power) / power
        assert abs(float(integral) - want) < abs(float(integral - coarse))
        assert float(integral) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmas": [1.0]}, r"sigmas must be \(L,\) with L >= 2"),
        ({"sigmas": [1.0, -1.0]}, "sigmas must be positive and finite, got -1 at index 1"),
        ({"sigmas": [1.0, 1.0]}, "sigmas must all differ, got 1 twice"),
        ({"panels": 6}, "panels must be a positive multiple of 4, got 6"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_samples": 1}, "at least 2 samples for an interval, got 1"),
    ],
)
def test_bad_arguments_of_the_information_are_refused(denoiser, options, message):
    with pytest.raises(ValueError, match=message):
        index_information(denoiser, **{"sigmas": [1.0, 2.0], **options})


def test_collapse_level_is_that_of_the_weights():
    rows = _rows(30)
    denoiser = EmpiricalDenoiser(TrainingSet(rows))
    sigmas = exponential(40, 0.05, 5.0)[:-1]
    found = collapse_level(denoiser, sigmas, points=rows[:10], generator=_seeded(3))
    noise = torch.randn(10, 5, generator=_seeded(3), dtype=torch.float64)
    for row in range(10):
        x = (rows[row].double() + sigmas[:, None] * noise[row]).float().double()
        distances = (x[:, None] - rows.double()).square().sum(2)
        weights = (-distances / (2 * sigmas[:, None] ** 2)).softmax(1).amax(1)
        # The weights come from a logsumexp that is promised to 1e-3.
        assert (found.max_weight[:, row] - weights).abs().max() < 1e-3
        last = int((weights <= 0.9).nonzero().max())
        assert float(found.collapse_sigma[row]) == float(sigmas[last + 1])
    assert found.interval[0] <= found.median <= found.interval[1]
    assert (found.collapsed.diff() >= 0).all() and found.collapsed[-1] == 1


def test_collapse_is_for_good():
    # A path that is on a point, leaves it, and comes back, collapses at the return.
    denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
    states = torch.tensor([[1.0], [0.0], [1.0], [1.0]])[:, None].expand(4, 3, 1)
    found = collapse_level(denoiser, [0.4, 0.3, 0.2, 0.1], states=states)
    assert found.collapse_sigma.tolist() == [0.2] * 3
    assert found.settings["paths"] == "sampler"
    never = collapse_level(denoiser, [0.4, 0.3], states=torch.zeros(2, 3, 1))
    assert never.collapse_sigma.tolist() == [0.0] * 3 and never.median == 0


def test_copies_of_a_point_collapse_as_one():
    rows = torch.cat([torch.tensor([[5.0]] * 9), torch.tensor([[-5.0]])])
    found = collapse_level(
        EmpiricalDenoiser(TrainingSet(rows)), [0.2, 0.1], points=rows, generator=_seeded()
    )
    # 0.9 is exceeded by all nine together, and by none alone.
    assert found.max_weight.min() > 1 - 1e-6


def test_sampling_paths_of_the_optimum_collapse(denoiser):
    sigmas = exponential(30, 0.02, 50.0)
    states = sample(denoiser, (40, 5), sigmas, generator=_seeded(), trajectory=True)
    found = collapse_level(denoiser, sigmas[:-1], states=states[:-1])
    assert (found.collapse_sigma > 0).all()
    assert found.regimes[0] == "noise" and found.regimes[-1] == "collapsed"
    order = [("noise", "generalising", "collapsed").index(name) for name in found.regimes]
    assert order == sorted(order)


def test_speciation_is_the_largest_eigenvalue():
    rows = _rows(50) * torch.tensor([3.0, 1.0, 1.0, 0.5, 0.1])
    covariance = torch.cov(rows.double().T, correction=0)
    want = float(torch.linalg.eigvalsh(covariance)[-1].sqrt())
    # 100 iterations at a gap of about 9 end at the rounding of the float32 product.
    got = speciation_level(EmpiricalDenoiser(TrainingSet(rows)))
    assert got == pytest.approx(want, rel=1e-6)
    same = EmpiricalDenoiser(TrainingSet(torch.ones(4, 3)))
    assert speciation_level(same) == 0


def test_bad_arguments_of_the_collapse_are_refused(denoiser):
    rows = _rows(4)
    for options, message in (
        ({}, "one of points and states must be given, got none"),
        ({"points": rows, "states": rows[None]}, "one of points and states .* got both"),
        ({"points": rows[:1]}, "at least 2 paths are needed for an interval, got 1"),
        ({"states": torch.zeros(3, 4, 5)}, r"states must be at the 2 sigmas, got 3"),
        ({"points": rows, "share": 0.4}, r"share must be in \[0.5, 1\), got 0.4"),
        ({"points": rows, "num_bootstrap": 0}, "num_bootstrap must be at least 1, got 0"),
        ({"points": rows, "sigmas": [1.0, 2.0]}, "strictly decreasing"),
        ({"points": rows, "sigmas": []}, r"sigmas must be \(L,\) with L >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            collapse_level(denoiser, **{"sigmas": [2.0, 1.0], **options})
    weighted = EmpiricalDenoiser(TrainingSet(rows, weights=[1.0, 2.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="set with equal weights, got unequal ones"):
        collapse_level(weighted, [1.0], points=rows)
    with pytest.raises(ValueError, match="num_iterations must be at least 1, got 0"):
        speciation_level(denoiser, num_iterations=0)


def test_psnr_of_no_denoising_is_that_of_the_noise():
    points = torch.zeros(400, 50)
    found = denoising_psnr(
        lambda x, sigma: x, points, points, [0.1, 1.0], repeats=4, generator=_seeded()
    )
    assert found.input_psnr.tolist() == pytest.approx([10 * math.log10(400), 10 * math.log10(4)])
    # The mean of 10 log10 of chi^2_k / k, k = 200: digamma(k / 2) - log(k / 2), in dB.
    bias = 10 / math.log(10) * float(torch.digamma(torch.tensor(100.0)) - math.log(100))
    for values in (found.train, found.test):
        z = (values.mean(1) - found.input_psnr + bias) / standard_error(values)
        assert z.abs().max() < Z_LIMIT


def test_optimum_restores_its_set_better_than_other_points(denoiser):
    found = denoising_psnr(
        denoiser, _rows(60), _rows(60, seed=2), [0.05, 0.5, 50.0], generator=_seeded()
    )
    assert found.difference[0] > 100  # exact on the set
    assert found.difference[1] > 1 and found.difference_interval[0][1] > 0
    # At the largest noise it knows the mean of the set alone, for both.
    assert abs(found.difference[2]) < 2
    assert (found.train_interval[0] <= found.train.mean(1)).all()
    assert (found.test_interval[1] >= found.test.mean(1)).all()
    with pytest.raises(ValueError, match="peak must be positive, got 0"):
        denoising_psnr(denoiser, _rows(4), _rows(4), [1.0], peak=0.0)
    with pytest.raises(ValueError, match="network must return finite numbers"):
        denoising_psnr(lambda x, s: x * math.nan, _rows(4), _rows(4), [1.0])


def test_z_scores():
    values = torch.tensor([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert z_score(values).tolist() == [0.0, 0.0, math.inf]
    assert z_score(values[2], 4.0).item() == pytest.approx(1.0)
    assert not agree(z_score(values)) and agree(z_score(values[:2]))
    # Of standard normal numbers it is one.
    drawn = z_score(torch.randn(4000, 50, generator=_seeded(), dtype=torch.float64))
    assert abs(float(drawn.mean())) < Z_LIMIT / math.sqrt(4000)


def test_neighbors_count_both_ways(denoiser):
    found = effective_neighbors(denoiser, _rows(60), SIGMAS, generator=_seeded())
    want = torch.stack([entropy.exp().mean() for entropy in found.entropy])
    torch.testing.assert_close(found.mean_count, want, rtol=1e-12, atol=0)
    assert (found.mean_count >= found.count).all() and (found.mean_count > found.count).any()
