"""Same-noise similarity, two disjoint sets, and sweeps over compositions."""

from __future__ import annotations

import json
import math

import pytest
import torch

from diffgen import EmpiricalDenoiser, TrainingSet
from diffgen.generalization.copies.novelty import novelty_sweep
from diffgen.generalization.copies.similarity import (
    SIMILARITIES,
    cosine,
    l2,
    psnr,
    same_noise_samples,
    same_noise_similarity,
)
from diffgen.generalization.copies.two_sets import two_sets_similarity
from diffgen.sampling import sample
from diffgen.schedules import exponential

pytestmark = pytest.mark.usefixtures("one_thread")

SIGMAS = exponential(20, 0.02, 20.0)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rows(count: int, features: int = 5, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, features, generator=_seeded(seed))


def _gaussian(scale: float = 1.0):
    """The optimum for normal data of a standard deviation: a model that memorises nothing."""
    return lambda x, sigma: x * scale**2 / (scale**2 + sigma**2)


def test_similarities_of_known_vectors():
    a, b = torch.tensor([[[3.0], [4.0]]]), torch.tensor([[[4.0], [3.0]]])
    assert cosine(a, b).item() == pytest.approx(24 / 25)
    assert l2(a, b).item() == pytest.approx(math.sqrt(2))
    assert psnr(a, b).item() == pytest.approx(10 * math.log10(4))
    assert cosine(a, 0 * b).item() == 0
    assert psnr(a, a).isfinite().all() and psnr(a, a).item() > 300


@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun"])
def test_samples_of_one_noise_are_reproduced_whatever_the_batches(sampler):
    models, noise = [_gaussian(), _gaussian(2.0)], _rows(9)
    one = same_noise_samples(models, noise, SIGMAS, sampler=sampler)
    two = same_noise_samples(models[1:], noise, SIGMAS, sampler=sampler, batch_size=4)
    assert one.shape == (2, 9, 5)
    want = sample(models[0], (9, 5), SIGMAS, sampler=sampler, x_init=float(SIGMAS[0]) * noise)
    assert torch.equal(one[0], want)
    # The denoiser works element by element, so that batches cannot show.
    assert torch.equal(one[1], two[0])


def test_equal_models_agree_and_different_noises_do_not():
    found = same_noise_similarity(
        [_gaussian()], [_gaussian()], SIGMAS, sample_shape=(5,), generator=_seeded()
    )
    means = found.means
    # Cosines of float32 samples in float64.
    assert means["across"] == pytest.approx(1.0, abs=1e-12)
    # Directions of independent normals: mean 0, variance 1/5 each, neighbours uncorrelated.
    assert abs(means["chance"]) < 4 * math.sqrt(1 / 5 / 256)
    assert set(found.intervals) == {"across", "chance"}
    assert found.intervals["chance"][0] < means["chance"] < found.intervals["chance"][1]


def test_seed_to_seed_is_the_yardstick():
    # Two kinds of models: within a kind samples differ by what a seed adds, across by more.
    noise = torch.randn(3, 64, 5, generator=_seeded(5))
    base = _rows(64)
    first = base + 0.1 * noise
    second = (base + 0.1 * noise.flip(0) + 0.5)[:2]
    found = same_noise_similarity(first, second, metric="l2", generator=_seeded())
    means = found.means
    assert means["across"] > 1.05 > 0.5 > means["within_first"]
    for name in ("across", "within_first", "within_second", "difference", "chance"):
        low, high = found.intervals[name]
        assert low <= means[name] <= high
    assert found.intervals["difference"][0] > 0
    # Pairs of different models, by hand.
    pairs = [l2(first[i], first[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert means["within_first"] == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-12)
    assert found.within_first.isnan().sum() == 3 * 64


def test_difference_is_nothing_for_kinds_that_do_not_differ():
    base = _rows(200, 8)
    drawn = base + torch.randn(10, 200, 8, generator=_seeded(7))
    found = same_noise_similarity(drawn[:5], drawn[5:], generator=_seeded())
    low, high = found.intervals["difference"]
    assert low < 0 < high
    # Models are resampled too: the interval is wider than that of the noises alone.
    alone = same_noise_similarity(drawn[:1], drawn[5:6], generator=_seeded())
    assert "difference" not in alone.intervals


def test_center_takes_away_what_all_images_share():
    samples = 10 + _rows(200)[None]
    raw = same_noise_similarity(samples, samples, generator=_seeded())
    centered = same_noise_similarity(
        samples, samples, center=torch.full((5,), 10.0), generator=_seeded()
    )
    assert raw.means["chance"] > 0.98
    assert abs(centered.means["chance"]) < 4 * math.sqrt(1 / 5 / 200)


def _sets(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    rows = _rows(2 * count)
    return rows[:count], rows[count:]


def test_copiers_agree_with_their_sets_and_not_with_each_other():
    a, b = _sets()
    models = [EmpiricalDenoiser(TrainingSet(rows)) for rows in (a, b)]
    found = two_sets_similarity(*models, *models, SIGMAS, metric="l2", generator=_seeded())
    means = found.means
    # A sample ends on a training point up to the weight of the others at the lowest level.
    assert means["own_set"] < 1e-3
    assert means["other_set"] > 0.5 and means["same_noise"] > 0.5
    assert found.intervals["own_less_other"][1] < 0 < found.intervals["same_less_own"][0]
    assert found.nearest.shape == (2, 256) and found.settings["num_points"] == [40, 40]


def test_models_of_the_distribution_agree_with_each_other():
    a, b = _sets()
    found = two_sets_similarity(
        _gaussian(), _gaussian(), a, TrainingSet(b), SIGMAS, metric="l2", generator=_seeded()
    )
    assert found.means["same_noise"] == 0
    assert found.intervals["same_less_own"][1] < 0
    # Neither set is nearer than the other by more than the sets' own chance.
    assert abs(found.means["own_less_other"]) < 0.2


def test_nearest_points_are_those_of_all_pairs():
    a, b = _sets()
    samples = _rows(20, seed=3), _rows(20, seed=4)
    found = two_sets_similarity(*samples, a, b, metric="l2", batch_size=6)
    for k, (own, other) in enumerate(((a, b), (b, a))):
        to_own, to_other = (torch.cdist(samples[k].double(), r.double()) for r in (own, other))
        assert torch.equal(found.nearest[k], to_own.argmin(1))
        # Sums of 5 squares in float64.
        torch.testing.assert_close(found.own_set[k], to_own.amin(1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.other_set[k], to_other.amin(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.same_noise, l2(*samples), rtol=1e-12, atol=0)
    center = torch.full((5,), 0.3)
    angles = two_sets_similarity(*samples, a, b, metric="cosine", center=center)
    nearest = cosine(samples[1] - center, b[angles.nearest[1]] - center)
    torch.testing.assert_close(angles.own_set[1], nearest, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        angles.chance, cosine(samples[0] - center, samples[1].roll(1, 0) - center)
    )


def test_sets_that_share_rows_are_refused():
    a, b = _sets()
    shared = torch.cat([b, a[3:4]])
    with pytest.raises(ValueError, match="row 3 of first_set is row 40 of second_set"):
        two_sets_similarity(_gaussian(), _gaussian(), a, shared, SIGMAS)


def test_sweep_ends_at_the_network_and_the_optimum():
    rows = _rows(40)
    optimum = EmpiricalDenoiser(TrainingSet(rows))
    found = novelty_sweep(
        _gaussian(),
        optimum,
        SIGMAS,
        switch_sigmas=[0.0, 0.5, 1e3],
        weights=[0.0, 0.5, 1.0],
        num_samples=64,
        generator=_seeded(),
    )
    row = {(one.kind, one.value): one for one in found.rows}
    assert found.optimum.memorization.ratio == 1.0
    assert found.network.memorization.ratio < 0.5
    for name in (("optimum_first", 0.0), ("network_first", 1e3), ("mixture", 0.0)):
        assert (row[name].distance_to_optimum == 0).all(), name
    for name in (("optimum_first", 1e3), ("network_first", 0.0), ("mixture", 1.0)):
        assert (row[name].distance_to_network == 0).all(), name
    # The optimum has the last word from 0.5 on, which is below half of what parts the points.
    assert row["network_first", 0.5].memorization.ratio > 0.8
    between = row["mixture", 0.5]
    assert (between.distance_to_network > 0).all() and (between.distance_to_optimum > 0).all()
    low, high = between.network_interval
    assert low < float(between.distance_to_network.mean()) < high
    table = found.table()
    assert [entry["kind"] for entry in table][:2] == ["network", "optimum"]
    assert len(table) == 2 + 6 + 3
    json.dumps(table, allow_nan=False)


@pytest.mark.parametrize("sampler", ["ddpm", "heun"])
def test_sweep_gives_every_composition_the_same_noise(sampler):
    # Two names of one model are one sample, also where the sampler draws noise of its own.
    optimum = EmpiricalDenoiser(TrainingSet(_rows(20)))
    found = novelty_sweep(
        optimum,
        optimum,
        SIGMAS,
        switch_sigmas=[1.0],
        num_samples=12,
        batch_size=5,
        sampler=sampler,
        generator=_seeded(),
    )
    assert all((row.distance_to_network == 0).all() for row in found.rows)
    assert found.network.memorization.ratio == 1.0


def test_bad_arguments_are_refused():
    a, b = _sets()
    for call, message in (
        (lambda: same_noise_samples([], a, SIGMAS), "models must be at least 1, got none"),
        (
            lambda: same_noise_samples([_gaussian()], a, SIGMAS, sampler="ddpm"),
            r"sampler must be deterministic \(ddim, euler, heun\), got 'ddpm'",
        ),
        (
            lambda: same_noise_similarity(a[None], b[None, :, :3]),
            r"of one noise, got \(1, 40, 5\) and \(1, 40, 3\)",
        ),
        (lambda: same_noise_similarity(a[None, :1], b[None, :1]), "at least 2 for an interval"),
        (lambda: same_noise_similarity([_gaussian()], a[None]), "sigmas and sample_shape must"),
        (lambda: same_noise_similarity(a[None], b[None], metric="dot"), "metric must be one of"),
        (
            lambda: same_noise_similarity(a[None], b[None], num_bootstrap=0),
            "num_bootstrap must be at least 1, got 0",
        ),
        (
            lambda: same_noise_similarity(a[None], b[None], center=torch.zeros(2)),
            r"center must have shape \(5,\), got \(2,\)",
        ),
        (lambda: two_sets_similarity(a, b, a, b, metric="dot"), "metric must be one of"),
        (lambda: two_sets_similarity(a, b[:3], a, b), r"samples must be \(M, 5\) of one noise"),
        (lambda: two_sets_similarity(_gaussian(), b, a, b), "sigmas must be given for models"),
        (lambda: two_sets_similarity(a, b, a, b[:, :2]), r"second_set must have samples of shape"),
        (
            lambda: novelty_sweep(
                _gaussian(), EmpiricalDenoiser(TrainingSet(a)), SIGMAS, num_samples=1
            ),
            "num_samples must be at least 2 for an interval, got 1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert set(SIMILARITIES) == {"cosine", "l2", "psnr"}
