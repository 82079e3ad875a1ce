"""The memorisation ratio and the number of neighbours."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffgen import EmpiricalDenoiser, TrainingSet
from diffgen.generalization import effective_neighbors, memorization_ratio


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _points(count: int = 50, features: int = 6) -> torch.Tensor:
    return torch.randn(count, features, generator=_seeded(1))


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_distances_and_ids_are_those_of_all_pairs(batch_size: int) -> None:
    data, samples = _points(), torch.randn(20, 6, generator=_seeded(2))
    found = memorization_ratio(samples, TrainingSet(data), batch_size=batch_size)
    pairs = (samples.double()[:, None] - data.double()).square().sum(2).sqrt()
    want, ids = pairs.topk(2, dim=1, largest=False)
    assert torch.equal(found.indices, ids)
    # Both are float64 sums of 6 squares: a few roundings of relative size 2^-53.
    torch.testing.assert_close(found.distances, want, rtol=1e-14, atol=0)
    torch.testing.assert_close(found.distance_ratios, want[:, 0] / want[:, 1], rtol=1e-13, atol=0)


def test_threshold_splits_the_samples() -> None:
    # d1 = t and d2 = 1 - t on the segment between two points: t / (1 - t) < 1/3 up to t = 1/4.
    data = torch.tensor([[0.0], [1.0]])
    samples = torch.tensor([[0.1], [0.24], [0.26], [0.5]], dtype=torch.float64)
    assert memorization_ratio(samples, TrainingSet(data)).ratio == 0.5
    assert memorization_ratio(samples, TrainingSet(data), threshold=0.2).ratio == 0.25


def test_copies_are_memorized_and_far_points_are_not() -> None:
    data = _points()
    assert memorization_ratio(data + 1e-4, TrainingSet(data)).ratio == 1.0
    assert memorization_ratio(data, TrainingSet(data)).ratio == 1.0  # d1 = 0
    # From far away all points are at about one distance.
    assert memorization_ratio(data + 1e4, TrainingSet(data)).ratio == 0.0


@pytest.mark.parametrize("offset", [0.0, 1e-3])
def test_identical_training_points_count_once(offset: float) -> None:
    # Point 0 is held five times; the nearest one that differs is row 7.
    data = torch.tensor([[0.0], [5.0], [0.0], [0.0], [9.0], [0.0], [0.0], [1.0]])
    found = memorization_ratio(torch.tensor([[-offset]]), TrainingSet(data))
    assert found.ratio == 1.0
    assert found.indices.tolist() == [[0, 7]]
    assert found.distances[0, 1].item() == pytest.approx(1.0 + offset, rel=1e-6)


def test_equidistant_points_that_differ_are_two() -> None:
    data = torch.tensor([[-1.0], [1.0], [4.0]])
    found = memorization_ratio(torch.tensor([[0.0]]), TrainingSet(data))
    assert found.indices.tolist() == [[0, 1]]
    assert found.distance_ratios.tolist() == [1.0]


def test_mirror_images_are_training_points() -> None:
    data = torch.tensor([[[[10, 200, 30]]], [[[90, 90, 240]]]], dtype=torch.uint8)
    training_set = TrainingSet(data, flip=True)
    mirrored = TrainingSet(data)[torch.arange(2)].flip(-1)
    found = memorization_ratio(mirrored, training_set)
    assert found.ratio == 1.0
    assert found.indices[:, 0].tolist() == [2, 3]
    assert found.settings["flip"] and found.settings["num_points"] == 4


def test_interval_is_the_binomial_one() -> None:
    # 30 of 100 memorised: the resampled ratio is Binomial(100, 0.3) / 100, whose 2.5% and 97.5%
    # quantiles are 0.21 and 0.39; with 20,000 resamples they are found within one count.
    data = torch.tensor([[0.0], [1.0]])
    samples = torch.tensor([[0.01]] * 30 + [[0.5]] * 70)
    found = memorization_ratio(
        samples, TrainingSet(data), num_bootstrap=20_000, generator=_seeded()
    )
    assert found.ratio == pytest.approx(0.3)
    assert found.interval == pytest.approx((0.21, 0.39), abs=0.011)
    again = memorization_ratio(
        samples, TrainingSet(data), num_bootstrap=20_000, generator=_seeded()
    )
    assert again.interval == found.interval


def test_denoiser_stands_for_its_set_and_names_its_backend() -> None:
    data, samples = _points(), torch.randn(9, 6, generator=_seeded(2))
    denoiser = EmpiricalDenoiser(TrainingSet(data), backend="reference")
    found = memorization_ratio(samples, denoiser)
    assert found.settings["backend"] == "reference"
    assert torch.equal(found.indices, memorization_ratio(samples, TrainingSet(data)).indices)


def test_bad_arguments_are_refused() -> None:
    data = _points()
    training_set = TrainingSet(data)
    with pytest.raises(ValueError, match=r"samples must be finite, got sample 1, which is not"):
        memorization_ratio(torch.tensor([[0.0], [math.nan]]), TrainingSet(data[:, :1]))
    with pytest.raises(ValueError, match=r"samples must be \(M, \*S\) with M >= 1"):
        memorization_ratio(data[:0], training_set)
    with pytest.raises(ValueError, match=r"must have shape \(B, 6\), got \(50, 3\)"):
        memorization_ratio(data[:, :3], training_set)
    with pytest.raises(ValueError, match="at least 2 points, got 1"):
        memorization_ratio(data, TrainingSet(data[:1]))
    with pytest.raises(ValueError, match="two points that differ, got 3 identical ones"):
        memorization_ratio(data[:2], TrainingSet(data[[4, 4, 4]]))
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\], got 0"):
        memorization_ratio(data, training_set, threshold=0.0)
    with pytest.raises(ValueError, match="num_bootstrap must be at least 1, got 0"):
        memorization_ratio(data, training_set, num_bootstrap=0)
    with pytest.raises(TypeError, match="TrainingSet or an EmpiricalDenoiser, got Tensor"):
        memorization_ratio(data, data)  # type: ignore[arg-type]


def test_neighbors_go_from_one_to_all() -> None:
    data = _points()
    denoiser = EmpiricalDenoiser(TrainingSet(data))
    found = effective_neighbors(denoiser, data, [1e-3, 1e4], generator=_seeded())
    # At 1e-3 the noise is a thousandth of the distances; at 1e4 these are a thousandth of it, and
    # the entropy is below log N by their squared ratio.
    assert found.count[0].item() == pytest.approx(1.0, abs=1e-6)
    assert found.count[1].item() == pytest.approx(50.0, rel=1e-5)
    assert found.effective_sample_size[1].mean().item() == pytest.approx(50.0, rel=1e-5)
    assert found.information.tolist() == pytest.approx([math.log(50), 0.0], abs=1e-5)


def test_neighbors_are_those_of_the_weights() -> None:
    data, sigma = _points(), 0.8
    denoiser = EmpiricalDenoiser(TrainingSet(data))
    found = effective_neighbors(denoiser, data[:5], [sigma], generator=_seeded(3))
    noise = torch.randn(5, 6, generator=_seeded(3), dtype=torch.float64)
    x = (data[:5].double() + sigma * noise).float().double()
    w = (-(x[:, None] - data.double()).square().sum(2) / (2 * sigma**2)).softmax(1)
    # The promise of the entropy and of the effective sample size: 1e-3.
    torch.testing.assert_close(found.entropy[0], -(w * w.log()).sum(1), rtol=1e-3, atol=1e-3)
    want = 1 / w.square().sum(1)
    torch.testing.assert_close(found.effective_sample_size[0], want, rtol=1e-3, atol=1e-3)


def test_neighbors_refuse_bad_levels() -> None:
    denoiser = EmpiricalDenoiser(TrainingSet(_points()))
    with pytest.raises(ValueError, match="sigmas must be positive, got 0 at index 1"):
        effective_neighbors(denoiser, _points(), [1.0, 0.0])
    with pytest.raises(ValueError, match=r"sigmas must be \(L,\) with L >= 1"):
        effective_neighbors(denoiser, _points(), [])
    with pytest.raises(ValueError, match="with M >= 1"):
        effective_neighbors(denoiser, _points()[:0], [1.0])


def test_samples_may_be_a_file_or_a_model(tmp_path: Path) -> None:
    data = _points()
    np.save(tmp_path / "samples.npy", (data + 1e-4).numpy())
    training_set = TrainingSet(data)
    assert memorization_ratio(tmp_path / "samples.npy", training_set).ratio == 1.0
    found = memorization_ratio(lambda count, generator: data[:count], training_set, count=7)
    assert found.ratio == 1.0 and found.settings["num_samples"] == 7
