"""C_T, AuthPct and calibrated distances."""

from __future__ import annotations

import math

import pytest
import torch

from diffgen import TrainingSet
from diffgen.generalization.copies.copying import (
    authenticity,
    calibrated_distance,
    data_copying,
    mann_whitney,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=_seeded(seed), dtype=torch.float64)


def test_rank_statistic_counts_pairs() -> None:
    x, y = torch.tensor([1.0, 2.0, 2.0, 7.0]), torch.tensor([2.0, 5.0, 0.5])
    _, probability = mann_whitney(x, y)
    pairs = (x[:, None] > y).double() + 0.5 * (x[:, None] == y)
    assert probability == pytest.approx(float(pairs.mean()), rel=1e-15)
    z, probability = mann_whitney(torch.ones(3), torch.ones(5))
    assert (z, probability) == (0.0, 0.5)


def test_rank_statistic_has_the_exact_variance_under_permutations() -> None:
    # All 252 ways to call 5 of 10 values, with ties, the first kind: mean 0 and variance 1.
    from itertools import combinations

    values = torch.tensor([1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    scores = []
    for chosen in combinations(range(10), 5):
        rest = [k for k in range(10) if k not in chosen]
        scores.append(mann_whitney(values[list(chosen)], values[rest])[0])
    found = torch.tensor(scores, dtype=torch.float64)
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-13)
    assert float(found.square().mean()) == pytest.approx(1.0, rel=1e-12)


def test_data_copying_is_standard_normal_for_new_samples() -> None:
    scores = []
    for seed in range(150):
        points, samples, held_out = _normal(3, 40, 3, seed=seed)
        scores.append(data_copying(samples, points, held_out).z)
    found = torch.tensor(scores, dtype=torch.float64)
    assert abs(float(found.mean())) < 4 / math.sqrt(150)
    assert abs(float(found.var()) - 1) < 4 * math.sqrt(2 / 150)


def test_data_copying_tells_copies_from_far_samples() -> None:
    points, held_out = _normal(2, 60, 3)
    copies = points + 1e-3 * _normal(60, 3, seed=1)
    copied = data_copying(copies, points, held_out)
    # No sample is farther than any held-out point: U = 0, z = -sqrt(3 m n / (m + n + 1)).
    assert copied.probability == 0.0
    assert copied.z == pytest.approx(-math.sqrt(3 * 3600 / 121), rel=1e-9)
    assert data_copying(points + 50, points, held_out).probability == 1.0
    pairs = copies[:, None] - points
    want = pairs.square().sum(2).amin(1).sqrt()
    torch.testing.assert_close(copied.distances, want, rtol=1e-12, atol=0)


def test_authentic_samples_are_farther_than_the_neighbour() -> None:
    points, samples = _normal(2, 50, 4)
    found = authenticity(samples, TrainingSet(points), batch_size=7)
    pairs = torch.cdist(samples, points, compute_mode="donot_use_mm_for_euclid_dist")
    within = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    within.fill_diagonal_(math.inf)
    nearest, index = pairs.min(1)
    want = nearest > within.min(1).values[index]
    assert torch.equal(found.authentic, want)
    assert found.percent == pytest.approx(100 * float(want.double().mean()))
    assert found.interval[0] < found.percent < found.interval[1]
    assert authenticity(points + 1e-6, points).percent == 0.0
    assert authenticity(points + 99, points).percent == 100.0


def test_repeated_training_points_make_every_other_sample_authentic() -> None:
    points = torch.tensor([[0.0], [0.0], [9.0]])
    assert authenticity(torch.tensor([[0.1]]), points).authentic.tolist() == [True]


def test_calibrated_distance_is_that_of_all_pairs() -> None:
    points, samples = _normal(2, 30, 4)
    found = calibrated_distance(samples, points, num_neighbors=6, generator=_seeded())
    pairs = torch.cdist(samples, points, compute_mode="donot_use_mm_for_euclid_dist")
    near = pairs.sort(1).values[:, :6]
    torch.testing.assert_close(found.values, near[:, 0] / (0.5 * near.mean(1)), rtol=1e-12, atol=0)
    assert found.interval[0] < found.mean < found.interval[1]
    copies = calibrated_distance(points + 1e-4, points, num_neighbors=6)
    assert float(copies.values.max()) < 1e-3


def test_copy_of_a_point_that_repeats_has_distance_zero() -> None:
    points = torch.zeros(3, 2)
    found = calibrated_distance(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), points, num_neighbors=3)
    assert found.values.tolist() == [0.0, 2.0]


def test_models_and_paths_are_taken(tmp_path) -> None:
    import numpy as np

    points, samples = _normal(2, 30, 4)
    np.save(tmp_path / "samples.npy", samples.numpy())
    for source in (tmp_path / "samples.npy", lambda count, generator: samples[:count]):
        found = authenticity(source, points, count=30)
        assert torch.equal(found.authentic, authenticity(samples, points).authentic)


def test_bad_arguments_are_refused() -> None:
    points, samples = _normal(2, 30, 4)
    with pytest.raises(ValueError, match="samples must be at least 8 for a z-score, got 7"):
        data_copying(samples[:7], points, samples)
    with pytest.raises(ValueError, match="held_out must be at least 8 for a z-score, got 2"):
        data_copying(samples, points, samples[:2])
    with pytest.raises(ValueError, match="row 0 of training_set is row 0 of held_out"):
        data_copying(samples, points, points)
    with pytest.raises(ValueError, match="training_set must have at least 2 points, got 1"):
        authenticity(samples, points[:1])
    with pytest.raises(ValueError, match=r"num_neighbors must be in \[2, 30\].*, got 50"):
        calibrated_distance(samples, points)
    with pytest.raises(ValueError, match="at least 2 samples for an interval, got 1"):
        calibrated_distance(samples[:1], points, num_neighbors=3)
