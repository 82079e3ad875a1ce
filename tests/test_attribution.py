"""Set attribution: bounds below a known information, controls at chance."""

from __future__ import annotations

import math

import pytest
import torch

from diffgen import EmpiricalDenoiser, TrainingSet
from diffgen.generalization.bounds.attribution import set_attribution
from diffgen.generalization.bounds.closed_forms import gaussian_copier
from diffgen.generalization.bounds.comparisons import Comparisons
from diffgen.generalization.bounds.conditional_logit import (
    PRIOR_SCALE,
    bound_terms,
    fit_conditional_logit,
)
from diffgen.generalization.bounds.critics import CRITICS

pytestmark = pytest.mark.usefixtures("one_thread")

# A copier of n = 10 points in 2 dimensions with noise 0.2: mean of 100,000 sets, plain float64
# sums. The paper's note has 1.273 for a setting that it does not give; this one is near it.
KNOWN, KNOWN_ERROR = 1.27605, 0.00087
TOY = (10, 2, 0.2)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def repeats():
    """Six draws of 16 sets, judged by every critic."""
    found = {name: [] for name in CRITICS}
    for seed in range(6):
        generator = _seeded(seed)
        sets, samples = gaussian_copier(16, *TOY, 60, generator=generator)
        for name in CRITICS:
            found[name].append(
                set_attribution(samples, sets, critic=name, num_bootstrap=200, generator=generator)
            )
    return found


@pytest.mark.parametrize("critic", CRITICS)
def test_bound_is_most_of_a_known_information_and_no_more(critic: str, repeats) -> None:
    bounds = torch.tensor([one.bound for one in repeats[critic]], dtype=torch.float64)
    mean, error = float(bounds.mean()), float(bounds.std()) / math.sqrt(len(bounds))
    # Sets are drawn anew in each repeat, so that their spread is the error of the mean.
    assert mean + 3 * error > 0.75 * KNOWN
    assert mean - 3 * error < KNOWN
    assert error < 0.06
    for one in repeats[critic]:
        assert one.bound <= one.ceiling == math.log(16)
        assert one.interval[0] < one.bound < one.interval[1]
        assert one.per_sample.shape == (16, 30)
        for value, of in (
            (one.bound, one.per_sample),
            (one.accuracy, one.right),
            (one.control, one.control_per_sample),
            (one.control_accuracy, one.control_right),
        ):
            assert of.shape == (16, 30)
            assert value == pytest.approx(float(of.mean()), rel=1e-12)


@pytest.mark.parametrize("critic", CRITICS)
def test_interval_has_the_width_of_the_spread_between_repeats(critic: str, repeats) -> None:
    spread = torch.tensor([one.bound for one in repeats[critic]]).std()
    widths = torch.tensor([one.interval[1] - one.interval[0] for one in repeats[critic]])
    # The spread of 6 repeats is known to a factor of 1 / sqrt(10): three of them either way, and
    # the two stages count the spread within models twice at most (a factor sqrt 2).
    assert 0.3 < float(widths.mean() / (3.92 * spread)) < 1.95 * math.sqrt(2) * 1.3


@pytest.mark.parametrize("critic", CRITICS)
def test_control_is_at_chance(critic: str, repeats) -> None:
    for one in repeats[critic]:
        assert one.chance == 1 / 16
        # Correct by chance among 480: a binomial share.
        assert abs(one.control_accuracy - 1 / 16) < 4.5 * math.sqrt(15 / 256 / 480)
        # A fit to labels that say nothing gains F / 2M nats on its own half, and loses about as
        # much on the other: 10 / 960 for the largest critic, and sixfold of that for its tail.
        assert abs(one.control) < 0.06
        assert one.accuracy - one.control_accuracy > 0.2


def test_samples_of_other_data_say_nothing() -> None:
    sets, _ = gaussian_copier(8, *TOY, 1, generator=_seeded())
    fresh = torch.randn(8, 200, 2, generator=_seeded(1), dtype=torch.float64)
    for critic in CRITICS:
        found = set_attribution(fresh, sets, critic=critic, generator=_seeded(2))
        assert abs(found.accuracy - 1 / 8) < 4.5 * math.sqrt(7 / 64 / 800)
        assert found.bound < 0.06
        assert found.interval[0] <= 0.01


def test_exact_copies_reach_the_ceiling_and_noise_lowers_it() -> None:
    sets, samples = gaussian_copier(8, 10, 4, 1e-12, 40, generator=_seeded())
    for critic in CRITICS:
        exact = set_attribution(samples, sets, critic=critic, generator=_seeded())
        assert exact.accuracy == 1.0
        assert 0.98 * math.log(8) < exact.bound <= math.log(8)
        noisy = set_attribution(samples, sets, critic=critic, sigma_min=1.0, generator=_seeded())
        assert noisy.settings["sigma_min"] == 1.0
        assert noisy.bound < 0.6 * exact.bound


def test_fit_and_evaluation_do_not_share_samples() -> None:
    sets, samples = gaussian_copier(4, *TOY, 11, generator=_seeded())
    found = set_attribution(samples, sets, generator=_seeded())
    assert (found.settings["num_fit"], found.settings["num_evaluated"]) == (5, 6)
    again = set_attribution(samples, sets, generator=_seeded())
    assert torch.equal(again.per_sample, found.per_sample) and again.interval == found.interval


def test_models_sets_and_lists_are_taken_alike() -> None:
    sets, samples = gaussian_copier(3, *TOY, 8, generator=_seeded())
    want = set_attribution(samples, sets, generator=_seeded())
    denoisers = [EmpiricalDenoiser(TrainingSet(one)) for one in sets]
    models = [lambda count, generator, k=k: samples[k, :count] for k in range(3)]
    found = set_attribution(models, denoisers, count=8, generator=_seeded())
    assert torch.equal(found.per_sample, want.per_sample)


def test_comparisons_are_those_of_all_pairs() -> None:
    sets, samples = gaussian_copier(3, *TOY, 7, generator=_seeded())
    x = samples.flatten(0, 1)
    compared = Comparisons(x, [EmpiricalDenoiser(TrainingSet(one)) for one in sets], batch_size=4)
    squared = (x[:, None, None] - sets).square().sum(3)  # (21, 3, 10)
    # Float64 sums of 2 squares and of 10 exponentials: some roundings.
    torch.testing.assert_close(compared.distances, squared.amin(2).sqrt(), rtol=1e-14, atol=1e-15)
    want = (-squared / 0.18).logsumexp(2) - math.log(10) - math.log(2 * math.pi * 0.09)
    torch.testing.assert_close(compared.log_density(0.3), want, rtol=1e-12, atol=1e-12)


def test_scales_of_exact_copies_are_positive() -> None:
    sets, _ = gaussian_copier(3, *TOY, 1, generator=_seeded())
    denoisers = [EmpiricalDenoiser(TrainingSet(one)) for one in sets]
    scales = Comparisons(sets.flatten(0, 1), denoisers).scales(4)
    assert scales == sorted(scales) and scales[0] > 0


def test_conditional_logit_finds_the_minimum() -> None:
    features = torch.randn(200, 5, 3, generator=_seeded(), dtype=torch.float64)
    truth = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    labels = torch.multinomial((features @ truth).softmax(1), 1, generator=_seeded(1))[:, 0]
    weights = fit_conditional_logit(features, labels).requires_grad_()
    loss = -bound_terms(features @ weights, labels).mean()
    loss.backward()
    # The prior pulls by |w| / (s^2 M) = 2 / (1e4 * 200) at scale 1; Newton leaves sqrt(1e-12).
    assert float(weights.grad.abs().max()) < 3e-6
    assert float((weights.detach() - truth).abs().max()) < 1.0
    assert not fit_conditional_logit(torch.ones(4, 2, 1), torch.tensor([0, 1, 0, 1])).any()


def test_separable_samples_leave_the_fit_finite() -> None:
    features = torch.zeros(50, 2, 1)
    features[:, 0] = 1
    w = float(fit_conditional_logit(features, torch.zeros(50, dtype=torch.int64)))
    # log(1 + exp(-w)) + (w / 2)^2 / (2 s^2 M): the weight of a feature of standard deviation 1/2.
    # Its derivative is 0; what Newton leaves, 1e-12 nats at a curvature of 6e-6, moves w by 6e-4.
    assert 1 / (1 + math.exp(w)) == pytest.approx(w / 4 / (PRIOR_SCALE**2 * 50), rel=1e-3)


def test_bad_arguments_are_refused() -> None:
    sets, samples = gaussian_copier(3, *TOY, 8, generator=_seeded())
    with pytest.raises(ValueError, match="critic must be one of nearest, log_density, trained"):
        set_attribution(samples, sets, critic="best")
    with pytest.raises(ValueError, match="training_sets must be at least 2, got 1"):
        set_attribution(samples[:1], sets[:1])
    with pytest.raises(ValueError, match=r"samples\[0\] must be at least 4, got 3"):
        set_attribution(samples[:, :3], sets)
    with pytest.raises(ValueError, match="samples must be of 3 models, one a set, got 2"):
        set_attribution(samples[:2], sets)
    with pytest.raises(ValueError, match="as many for each model, got 8 of model 0 and 7 of mod"):
        set_attribution([samples[0], samples[1, :7], samples[2]], sets)
    with pytest.raises(ValueError, match=r"training_sets must all have 10 points .* in set 2"):
        set_attribution(samples, [sets[0], sets[1], sets[2, :9]])
    shared = sets.clone()
    shared[2, 4] = shared[0, 7]
    with pytest.raises(ValueError, match="row 7 of set 0 is row 4 of set 2"):
        set_attribution(samples, shared)
    with pytest.raises(ValueError, match="sigma_min must be at least 0 and finite, got -1"):
        set_attribution(samples, sets, sigma_min=-1.0)
    with pytest.raises(ValueError, match=r"samples\[0\] must have shape \(M, 2\), got \(8, 1\)"):
        set_attribution(samples[:, :, :1], sets)
