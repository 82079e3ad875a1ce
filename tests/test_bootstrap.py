"""Bootstrap intervals, exact intervals of proportions, and what measures take as samples."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

from diffgen import EmpiricalDenoiser, TrainingSet
from diffgen.generalization.disjoint import check_disjoint, overlaps
from diffgen.generalization.samples import as_denoiser_over, as_samples
from diffgen.generalization.statistics.bootstrap import (
    bootstrap_interval,
    bootstrap_means,
    percentile_interval,
)
from diffgen.generalization.statistics.proportions import (
    clopper_pearson,
    grouped_interval,
    incomplete_beta,
)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _z(value: float, mean: float, standard_error: float) -> float:
    return abs(value - mean) / standard_error


def test_means_of_resamples_have_the_variance_of_a_mean() -> None:
    values = torch.randn(60, 3, generator=_seeded(), dtype=torch.float64)
    means = bootstrap_means(values, num_bootstrap=4000, generator=_seeded(1))
    # Given the values a resampled mean has variance v / M, v their variance with divisor M.
    expected = values.var(0, unbiased=False) / 60
    for k in range(3):
        assert _z(means[:, k].mean(), values[:, k].mean(), (expected[k] / 4000).sqrt()) < 5
        # The variance of R nearly normal draws is known to a relative sqrt(2 / R).
        assert _z(means[:, k].var(), expected[k], expected[k] * math.sqrt(2 / 4000)) < 5


def test_groups_add_what_varies_between_them() -> None:
    # 10 groups of 40: level g, spread 1 in each. Resampling in two stages gives the variance
    # v_between / G + v_within / (G m), both with divisors of the resampled law.
    groups = torch.arange(10).repeat_interleave(40)
    values = 3 * torch.randn(10, generator=_seeded(), dtype=torch.float64)[groups]
    values += torch.randn(400, generator=_seeded(1), dtype=torch.float64)
    means = bootstrap_means(values, num_bootstrap=4000, groups=groups, generator=_seeded(2))
    table = values.reshape(10, 40)
    between, within = table.mean(1).var(unbiased=False), table.var(1, unbiased=False).mean()
    expected = between / 10 + within / 400
    # The kurtosis of a mean of 10 groups stays below that of a normal by a few tenths.
    assert _z(means.var(), expected, expected * math.sqrt(2 / 4000)) < 5
    alone = bootstrap_interval(values, generator=_seeded(3))
    together = bootstrap_interval(values, groups=groups, generator=_seeded(3))
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])


def test_unequal_groups_are_means_over_samples() -> None:
    groups = torch.tensor([0, 1, 1, 1])
    means = bootstrap_means(
        torch.tensor([0.0, 4.0, 4.0, 4.0]), groups=groups, num_bootstrap=500, generator=_seeded()
    )
    # Two picks of two groups: sizes (1, 1), (1, 3), (3, 3).
    assert set(means.tolist()) == {0.0, 3.0, 4.0}


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    hits, repeats = 0, 400
    for repeat in range(repeats):
        values = torch.randn(200, generator=_seeded(repeat), dtype=torch.float64)
        low, high = bootstrap_interval(values, num_bootstrap=400, generator=_seeded(repeat + 1000))
        hits += bool(low <= 0 <= high)
    # Percentiles of 400 resamples of 200 values fall short of 95% by less than 1%.
    assert _z(hits / repeats, 0.95, math.sqrt(0.95 * 0.05 / repeats)) < 4


def test_shapes_and_seeds() -> None:
    values = torch.rand(20, 3)
    low, high = bootstrap_interval(values, generator=_seeded())
    again = bootstrap_interval(values, generator=_seeded())
    assert low.shape == high.shape == (3,) and torch.equal(again[0], low)
    low, high = bootstrap_interval(values[:, 0], generator=_seeded())
    assert low.shape == () and low.dtype == torch.float64
    low, high = bootstrap_interval(torch.full((5,), 2.0))
    assert float(low) == float(high) == 2.0


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples for an interval, got 1"):
        bootstrap_interval(torch.zeros(1))
    with pytest.raises(ValueError, match="values must be finite, got sample 1, which is not"):
        bootstrap_interval(torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match=r"values must be \(M,\) or \(M, T\)"):
        bootstrap_interval(torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match="groups must be at least 2 for an interval, got 1"):
        bootstrap_interval(torch.zeros(3), groups=torch.zeros(3))
    with pytest.raises(ValueError, match=r"groups must have shape \(3,\), got \(2,\)"):
        bootstrap_interval(torch.zeros(3), groups=torch.zeros(2))
    with pytest.raises(ValueError, match="num_bootstrap must be at least 1, got 0"):
        bootstrap_interval(torch.zeros(3), num_bootstrap=0)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 95"):
        percentile_interval(torch.zeros(3), 95)


@pytest.mark.parametrize(
    ("a", "b", "x"),
    [(0.5, 0.5, 0.3), (2, 3, 0.5), (1, 400, 0.01), (37.5, 12.25, 0.7), (300, 300, 0.51)],
)
def test_incomplete_beta_is_that_of_60_digits(a: float, b: float, x: float) -> None:
    with mpmath.workdps(60):
        want = float(mpmath.betainc(a, b, 0, x, regularized=True))
    # lgamma(a + b) of size s is known to s eps, and three of them are combined.
    size = math.lgamma(a + b)
    assert incomplete_beta(a, b, x) == pytest.approx(want, rel=4 * (size + 10) * 2.3e-16)
    assert incomplete_beta(a, b, 0.0) == 0.0 and incomplete_beta(a, b, 1.0) == 1.0


def test_incomplete_beta_of_large_equal_shapes_is_a_half_in_the_middle() -> None:
    size = math.lgamma(2e5)
    assert incomplete_beta(1e5, 1e5, 0.5) == pytest.approx(0.5, rel=4 * size * 2.3e-16)


@pytest.mark.parametrize(("trials", "p"), [(5, 0.3), (40, 0.05), (40, 0.5)])
def test_clopper_pearson_covers_at_least_as_it_says(trials: int, p: float) -> None:
    coverage = 0.0
    for k in range(trials + 1):
        low, high = clopper_pearson(k, trials, 0.9)
        chance = math.comb(trials, k) * p**k * (1 - p) ** (trials - k)
        coverage += chance * (low <= p <= high)
    assert coverage >= 0.9


def test_clopper_pearson_inverts_binomial_tails() -> None:
    low, high = clopper_pearson(7, 20)
    upper = sum(math.comb(20, k) * low**k * (1 - low) ** (20 - k) for k in range(7, 21))
    lower = sum(math.comb(20, k) * high**k * (1 - high) ** (20 - k) for k in range(8))
    assert upper == pytest.approx(0.025, rel=1e-12) and lower == pytest.approx(0.025, rel=1e-12)
    assert clopper_pearson(20, 20)[1] == 1.0
    with pytest.raises(ValueError, match=r"successes must be in \[0, trials\], got 3 of 2"):
        clopper_pearson(3, 2)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 1"):
        clopper_pearson(1, 2, 1.0)


def test_grouped_interval_counts_what_is_independent() -> None:
    whole = clopper_pearson(400, 800)
    assert grouped_interval([0.5] * 16, 50) == whole  # no group differs: 800 trials
    assert grouped_interval([0.0, 1.0] * 8, 50) == pytest.approx(clopper_pearson(8, 16))
    assert grouped_interval([1.0] * 16, 50) == clopper_pearson(16, 16)  # agreement of 16 models
    assert grouped_interval([0.5], 800) == whole  # one model: its samples alone
    low, high = grouped_interval([0.4, 0.6] * 8, 50)
    assert low < whole[0] and high > whole[1]
    with pytest.raises(ValueError, match="there must be trials, got 0 groups of 5"):
        grouped_interval([], 5)


def test_samples_come_from_files_models_and_tensors(tmp_path) -> None:
    want = torch.rand(6, 4, generator=_seeded())
    np.save(tmp_path / "x.npy", want.numpy())
    np.savez(tmp_path / "x.npz", x=want.numpy())
    for source in (want, tmp_path / "x.npy", str(tmp_path / "x.npz")):
        assert torch.equal(as_samples(source, (4,)), want)
        assert torch.equal(as_samples(source, (4,), count=2), want[:2])
    model = as_samples(
        lambda count, g: torch.rand(count, 4, generator=g), count=6, generator=_seeded()
    )
    assert torch.equal(model, want)


def test_a_folder_of_images_is_read_as_sets_are(tmp_path) -> None:
    from PIL import Image

    pixels = torch.randint(256, (3, 8, 8), generator=_seeded(), dtype=torch.uint8)
    for k, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(tmp_path / f"{k}.png")
    found = as_samples(tmp_path)
    assert torch.equal(found, TrainingSet(pixels[:, None])[:])


def test_bad_samples_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="count must be given where samples come from a model"):
        as_samples(lambda count, generator: torch.zeros(count, 2))
    with pytest.raises(TypeError, match="samples must be a tensor where a model draws them, got"):
        as_samples(lambda count, generator: None, count=3)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="must be a tensor, a path or a model, got int"):
        as_samples(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"samples must have shape \(M, 3\), got \(2, 2\)"):
        as_samples(torch.zeros(2, 2), (3,))
    with pytest.raises(ValueError, match=r"samples must be floating point, got torch\.int64"):
        as_samples(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="samples must be finite, got sample 1"):
        as_samples(torch.tensor([[0.0], [math.inf]]))
    with pytest.raises(ValueError, match=r"samples must be \(M, \*S\) with M >= 1, got \(\)"):
        as_samples(torch.tensor(1.0))
    with pytest.raises(FileNotFoundError):
        as_samples(tmp_path / "none.npy")
    with pytest.raises(TypeError, match=r"training_set must be a TrainingSet, an Emp.* got int"):
        as_denoiser_over(3)  # type: ignore[arg-type]


def test_sets_and_denoisers_stand_for_themselves() -> None:
    denoiser = EmpiricalDenoiser(TrainingSet(torch.eye(3)), backend="reference")
    assert as_denoiser_over(denoiser) is denoiser
    assert as_denoiser_over(denoiser.training_set).training_set is denoiser.training_set
    assert torch.equal(as_denoiser_over(torch.eye(3)).training_set[:], torch.eye(3))


def test_overlap_is_found_across_storage_types() -> None:
    pixels = torch.randint(256, (5, 3), generator=_seeded(), dtype=torch.uint8)
    stored = TrainingSet(pixels)
    floats = torch.cat([torch.zeros(1, 3), stored[[3]]])
    assert [tuple(o) for o in overlaps([stored, floats.double()])] == [(0, 3, 1, 1)]
    assert overlaps([stored, floats[:1]]) == []
    assert overlaps([torch.zeros(2, 3), torch.ones(1, 3)]) == []  # repeats within a set
    with pytest.raises(ValueError, match="got 1 shared row: row 3 of train is row 1 of test"):
        check_disjoint([stored, floats], ("train", "test"))
    with pytest.raises(ValueError, match=r"got 7 shared rows: row 0 of set 0 .*, \.\.\.$"):
        check_disjoint([torch.zeros(1, 2), torch.zeros(7, 2)])


def test_mirror_images_are_rows() -> None:
    image = torch.tensor([[[[10, 200]]]], dtype=torch.uint8)
    mirrored = TrainingSet(image.flip(-1))
    assert overlaps([TrainingSet(image), mirrored]) == []
    assert len(overlaps([TrainingSet(image, flip=True), mirrored])) == 1
