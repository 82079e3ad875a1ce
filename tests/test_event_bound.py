"""The event bound: kl of two probabilities, with a guaranteed low end."""

from __future__ import annotations

import math

import pytest
import torch

from diffgen import TrainingSet
from diffgen.generalization.bounds.closed_forms import gaussian_copier
from diffgen.generalization.bounds.event_bound import EVENTS, binary_kl, event_bound, kl_range

pytestmark = pytest.mark.usefixtures("one_thread")

# As in test_attribution.py: a copier of 10 points in 2 dimensions with noise 0.2.
KNOWN = 1.27605
TOY = (10, 2, 0.2)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _many_models(seed: int = 0, models: int = 64, count: int = 60):
    return gaussian_copier(models, *TOY, count, generator=_seeded(seed))


# P(A) with the own and with a fresh set, by plain sums over 100,000 sets, known to 0.0005.
SHARES = {"copy": (None, 0.4540, 0.1085), "near": (0.4, 0.9021, 0.3083)}


@pytest.mark.parametrize("event", EVENTS)
def test_bound_is_below_a_known_information(event: str) -> None:
    sets, samples = _many_models()
    found = event_bound(list(samples), list(sets), event=event, generator=_seeded())
    assert 0 < found.bound <= found.estimate <= found.interval[1]
    assert found.bound < KNOWN
    assert found.settings["fresh_sets"] == "the set of the next model"
    assert found.per_sample.shape == (64, 30 if event == "near" else 60, 2)


@pytest.mark.parametrize("event", EVENTS)
def test_shares_and_kl_are_the_known_ones(event: str) -> None:
    threshold, *known = SHARES[event]
    sets, samples = _many_models()
    found = event_bound(list(samples), list(sets), event=event, threshold=threshold)
    ends = (found.joint_interval, found.product_interval)
    for k, (share, (low, high)) in enumerate(zip((found.joint, found.product), ends, strict=True)):
        of_models = found.per_sample[:, :, k].double().mean(1)
        error = math.hypot(float(of_models.std()) / 8, 0.0005)
        assert abs(share - known[k]) < 4 * error
        assert low < share < high
        # 97.5% of a normal share with this error: 2.24 errors either way.
        assert 0.8 < (high - low) / (2 * 2.24 * error) < 1.3
    assert found.estimate == pytest.approx(binary_kl(found.joint, found.product), rel=1e-12)


def test_shares_are_counted_on_own_and_fresh_sets() -> None:
    own, fresh = torch.tensor([[0.0], [10.0]]), torch.tensor([[100.0], [103.0]])
    samples = torch.tensor([[0.1], [4.9], [9.9], [99.9]])
    found = event_bound(samples, own, fresh)
    assert found.per_sample[0].tolist() == [
        [True, False],
        [False, False],
        [True, False],
        [False, True],
    ]
    assert (found.joint, found.product) == (0.5, 0.25)
    assert found.estimate == pytest.approx(binary_kl(0.5, 0.25))
    assert found.bound == 0.0  # four samples say nothing
    near = event_bound(samples, own, fresh, event="near", threshold=5.0)
    assert (near.joint, near.product) == (0.75, 0.25)
    assert near.settings["threshold"] == 5.0 and not near.settings["threshold_fitted"]


def test_low_end_is_exceeded_as_rarely_as_it_says() -> None:
    # Given S and S' samples are independent: the low end must stay below the kl of the two true
    # probabilities, here of a coin that picks own or fresh points.
    own, fresh = torch.zeros(2, 1), torch.full((2, 1), 9.0)
    own[1], fresh[1] = 1.0, 10.0
    p, q = 0.7, 0.3  # the share of samples at own points is p, at fresh points q = 1 - p
    truth, above, repeats = binary_kl(p, q), 0, 100
    for seed in range(repeats):
        picked = torch.rand(50, generator=_seeded(seed)) < p
        samples = torch.where(picked[:, None], 0.01, 9.01)
        found = event_bound(samples, own, fresh)
        above += found.bound > truth
        assert found.estimate == pytest.approx(binary_kl(found.joint, found.product))
    # At most 5% may lie above; the two-sided rectangle gives much less.
    assert above / repeats <= 0.05


def test_estimate_of_a_certain_event_is_infinite_and_its_bound_is_not() -> None:
    points, fresh = torch.randn(2, 20, 8, generator=_seeded())
    samples = points.repeat(5, 1) + 1e-3
    found = event_bound(samples, points, fresh)
    assert (found.joint, found.product, found.estimate) == (1.0, 0.0, math.inf)
    # Each share of 100 has an interval at 97.5%, 1.25% beyond each end.
    end = 0.0125 ** (1 / 100)
    assert found.bound == pytest.approx(binary_kl(end, 1 - end), rel=1e-9)


def test_interval_over_models_is_wider_than_over_samples_alone() -> None:
    sets, samples = _many_models(models=8, count=200)
    grouped = event_bound(list(samples), list(sets), generator=_seeded())
    width = grouped.joint_interval[1] - grouped.joint_interval[0]
    total = 8 * 200
    alone = 2 * 2.24 * math.sqrt(grouped.joint * (1 - grouped.joint) / total)
    assert width > 1.5 * alone
    assert "over models" in grouped.settings["interval"]
    single = event_bound(samples[0], sets[0], sets[1])
    assert "given the one model" in single.settings["interval"]


def test_new_samples_give_no_bound() -> None:
    points, fresh, samples = torch.randn(3, 200, 8, generator=_seeded())
    for event in EVENTS:
        found = event_bound(samples, points, fresh, event=event, generator=_seeded())
        assert found.bound == 0.0 and found.interval[1] > 0


def test_kl_of_coins() -> None:
    assert binary_kl(0.3, 0.3) == 0.0 and binary_kl(0.0, 0.0) == 0.0
    assert binary_kl(0.9, 0.1) == pytest.approx(0.8 * math.log(9), rel=1e-14)
    assert binary_kl(0.0, 1.0) == math.inf
    grid = torch.linspace(0.01, 0.99, 25).tolist()
    for p_ends, q_ends in (
        ((0.2, 0.4), (0.5, 0.9)),
        ((0.6, 0.8), (0.1, 0.3)),
        ((0.1, 0.6), (0.5, 0.9)),
    ):
        low, high = kl_range(p_ends, q_ends)
        inside = [
            binary_kl(p, q)
            for p in grid
            for q in grid
            if p_ends[0] <= p <= p_ends[1] and q_ends[0] <= q <= q_ends[1]
        ]
        assert low <= min(inside) and max(inside) <= high


def test_bad_arguments_are_refused() -> None:
    points, fresh = torch.randn(2, 6, 3, generator=_seeded())
    with pytest.raises(ValueError, match="event must be one of copy, near, got 'far'"):
        event_bound(points, points, fresh, event="far")
    with pytest.raises(ValueError, match="fresh_sets must be given for a single model, got None"):
        event_bound(points, points)
    with pytest.raises(ValueError, match="got 6 shared rows: row 0 of training_set is row 0 of fr"):
        event_bound(points, points, TrainingSet(points))
    with pytest.raises(ValueError, match="as many points as the training sets, 6, got 5"):
        event_bound(points, points, fresh[:5])
    with pytest.raises(ValueError, match="fresh_sets must be 1, one a set, got 2"):
        event_bound(points, points, [fresh, fresh])
    with pytest.raises(ValueError, match=r"samples\[0\] must be at least 4, got 3"):
        event_bound(points[:3], points, fresh, event="near")
    with pytest.raises(ValueError, match="threshold must be positive, got 0"):
        event_bound(points, points, fresh, threshold=0.0)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 95"):
        event_bound(points, points, fresh, confidence=95)
