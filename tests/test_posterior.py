from __future__ import annotations

import math
import pickle

import pytest
import torch
from exact import exact, images, noised

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.posterior import Posterior
from diffgen.training_set import TrainingSet

SIGMAS = (0.002, 0.05, 0.5, 2.0, 80.0)


def denoiser_of(data: torch.Tensor, **options: object) -> EmpiricalDenoiser:
    return EmpiricalDenoiser(TrainingSet(data, **options))


def assert_within(
    actual: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor | float
) -> None:
    error = (actual.double() - expected.double()).abs()
    assert bool((error <= bound).all()), float((error / bound).max())


def assert_promise(posterior: Posterior, expected: object, sigma: float) -> None:
    """The table of promises for float32 queries, with the rounding of float32 fields added."""
    unit = torch.finfo(torch.float32).eps / 2
    nats = (1e-6 * expected.logsumexp.abs()).clamp(min=1e-3)
    assert_within(posterior.mean, expected.mean, 1e-5)
    assert_within(posterior.logsumexp, expected.logsumexp, nats)
    assert_within(posterior.log_density, expected.log_density, nats)
    assert_within(
        posterior.score, expected.score, (1e-5 + unit) * expected.score.abs() + 1e-5 / sigma
    )
    # The noise is sigma times the score.
    assert_within(
        posterior.epsilon, expected.epsilon, (1e-5 + unit) * expected.epsilon.abs() + 1e-5
    )
    for name in ("entropy", "effective_sample_size", "trace_covariance"):
        value = getattr(expected, name)
        assert_within(getattr(posterior, name), value, 1e-3 * value.clamp(min=1))


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_fields_keep_the_promise(flip, weighted, sigma):
    data = images(16)
    weights = torch.linspace(0, 3, 16, dtype=torch.float64) if weighted else None
    everything = torch.cat([data, data.flip(-1)]) if flip else data
    all_weights = torch.cat([weights, weights]) if weighted and flip else weights
    x = noised(everything, sigma, 5)
    posterior = denoiser_of(data, weights=weights, flip=flip).posterior(x, sigma, top_k=3)
    expected = exact(x, everything, sigma, weights=all_weights)
    assert_promise(posterior, expected, sigma)
    eligible = expected.distances.clone()
    if weighted:
        eligible[:, all_weights == 0] = torch.inf
    distances, indices = eligible.sort(dim=1)
    assert torch.equal(posterior.top_indices, indices[:, :3])
    torch.testing.assert_close(posterior.top_distances, distances[:, :3], rtol=1e-12, atol=0)
    weights_there = expected.weights.gather(1, posterior.top_indices)
    # The logarithm of a weight is off by at most what logsumexp is: see assert_promise.
    log_error = (1e-6 * expected.logsumexp.abs()).clamp(min=1e-3)[:, None]
    assert_within(posterior.top_weights, weights_there, weights_there * log_error.expm1() + 1e-300)


def test_fields_have_the_types_of_the_contract():
    data = images(6)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        posterior = denoiser_of(data).posterior(images(2).to(dtype), 0.5, top_k=2)
        for name, value in posterior._asdict().items():
            like_x = name in ("mean", "score", "epsilon")
            own = torch.int64 if name == "top_indices" else torch.float64
            assert value.dtype == (dtype if like_x else own), name
            shape = (2, 3, 4, 4) if like_x else (2, 2) if name.startswith("top") else (2,)
            assert value.shape == shape, name
    assert isinstance(pickle.loads(pickle.dumps(posterior)), Posterior)


def test_mean_is_what_the_denoiser_returns():
    data = images(9)
    denoiser = denoiser_of(data)
    x = noised(data, 0.4, 3)
    # Both are within the promise of the same number.
    assert_within(denoiser.posterior(x, 0.4).mean, denoiser(x, 0.4), 2e-5)


def test_score_keeps_the_digits_that_the_difference_cancels():
    # One point: score = (y - x) / sigma^2 exactly, with y - x = 2^-20, below the resolution that a
    # mean rounded to float32 near 1 leaves for the score: 6e-8 / 2^-20 is 6 per cent.
    y = torch.tensor([[1.0 / 3.0]], dtype=torch.float64)
    x = torch.tensor([[1.0 / 3.0]], dtype=torch.float32)
    posterior = denoiser_of(y).posterior(x, 0.002)
    expected = (y - x.double()) / 0.002**2
    assert float(expected.abs()) > 1e-3
    assert_within(posterior.score, expected, 1e-6 * expected.abs())


def test_log_density_integrates_to_one():
    data = torch.tensor([[-1.0], [0.3], [1.0]])
    denoiser = denoiser_of(
        data,
        weights=torch.tensor([1.0, 2.0, 5.0]),
        labels=torch.tensor([0, 1, 0]),
    )
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
    ones = torch.ones(len(grid), dtype=torch.int64)
    for options in (
        {},
        {"class_labels": 0 * ones},
        {"exclude": 2 * ones},
        {"class_labels": 0 * ones, "exclude": 2 * ones},
        {"class_labels": 0 * ones, "exclude": ones},
        {"class_labels": -ones},
    ):
        density = denoiser.posterior(grid, 0.5, **options).log_density.exp()
        # The trapezoid rule on a smooth function that vanishes at both ends: exact to rounding.
        assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1, abs=1e-9), options


def test_log_density_leaves_out_a_point_that_holds_nearly_all_the_weight():
    data = images(5)
    weights = torch.tensor([1.0, 2.0, 1e30, 3.0, 4e20], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1, 2])
    denoiser = denoiser_of(data, weights=weights, labels=labels)
    x = noised(data, 0.5, 6)
    exclude = torch.tensor([2, 2, 2, 0, 4, 3])
    classes = torch.tensor([-1, 0, 1, -1, -1, 1])
    posterior = denoiser.posterior(x, 0.5, classes, exclude=exclude)
    compiled = torch.compile(denoiser.posterior, fullgraph=True, backend="aot_eager")
    log_density = compiled(x, 0.5, classes, exclude=exclude).log_density
    torch.testing.assert_close(log_density, posterior.log_density)
    for b in range(6):
        keep = torch.arange(5) != exclude[b]
        keep &= (classes[b] < 0) | (labels == classes[b])
        expected = exact(x[b : b + 1], data[keep], 0.5, weights=weights[keep])
        assert_within(posterior.log_density[b : b + 1], expected.log_density, 1e-3)


def test_log_density_leaves_out_a_heavy_point_of_an_unlabelled_set():
    data, weights = images(3), torch.tensor([1.0, 1e30, 2.0], dtype=torch.float64)
    x = noised(data, 0.5, 2)
    posterior = denoiser_of(data, weights=weights).posterior(x, 0.5, exclude=torch.tensor([1, 1]))
    keep = torch.tensor([0, 2])
    expected = exact(x, data[keep], 0.5, weights=weights[keep])
    assert_within(posterior.log_density, expected.log_density, 1e-3)


def test_log_density_counts_flips_and_multiplicities():
    data = images(6)
    counts = torch.tensor([1, 3, 1, 2, 1, 1])
    x = noised(data, 0.5, 3)
    posterior = denoiser_of(data, weights=counts.double(), flip=True).posterior(x, 0.5)
    repeated = data.repeat_interleave(counts, 0)
    expected = exact(x, torch.cat([repeated, repeated.flip(-1)]), 0.5)
    assert_within(posterior.logsumexp, expected.logsumexp, 1e-3)
    assert_within(posterior.log_density, expected.log_density, 1e-3)


@pytest.mark.parametrize("flip", [False, True])
def test_exclude_of_a_point_outside_of_the_class_changes_nothing(flip):
    data, labels = images(8), torch.arange(8) % 2
    denoiser = denoiser_of(data, labels=labels, flip=flip)
    x = noised(data, 0.5, 3)
    classes = torch.tensor([0, 1, 0])
    outside = torch.tensor([1, 2, 15 if flip else 7])
    plain = denoiser.posterior(x, 0.5, classes)
    excluded = denoiser.posterior(x, 0.5, classes, exclude=outside)
    for name in ("logsumexp", "log_density"):
        assert_within(getattr(excluded, name), getattr(plain, name), 1e-3)


def test_zero_weight_points_are_no_neighbours():
    data = torch.tensor([[0.0], [1.0], [2.0]])
    denoiser = denoiser_of(data, weights=torch.tensor([0.0, 1.0, 1.0]))
    posterior = denoiser.posterior(torch.zeros(1, 1), 1.0, top_k=2)
    assert posterior.top_indices.tolist() == [[1, 2]]
    assert posterior.top_weights.sum().item() == pytest.approx(1)
    with pytest.raises(ValueError, match="top_k"):
        denoiser.posterior(torch.zeros(1, 1), 1.0, top_k=3)


@pytest.mark.parametrize("flip", [False, True])
def test_all_the_top_weights_sum_to_one(flip):
    data = images(7)
    denoiser = denoiser_of(data, flip=flip, weights=torch.linspace(1, 2, 7))
    count = 14 if flip else 7
    posterior = denoiser.posterior(noised(data, 1.0, 3), 1.5, top_k=count)
    assert_within(posterior.top_weights.sum(1), torch.ones(3), 1e-3)
    assert torch.equal(posterior.top_indices.sort(1).values, torch.arange(count).expand(3, count))


def test_top_k_is_refused_out_of_range():
    denoiser = denoiser_of(images(4), labels=torch.tensor([0, 0, 0, 1]))
    x = images(2)
    for bad, error in ((5, ValueError), (-1, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match="top_k"):
            denoiser.posterior(x, 0.5, top_k=bad)
    with pytest.raises(ValueError, match="top_k"):
        denoiser.posterior(x, 0.5, torch.tensor([0, 1]), top_k=2)


def test_sigma_zero_is_the_limit():
    data = torch.tensor([[-1.0], [1.0], [4.0]])
    weights = torch.tensor([1.0, 3.0, 1.0])
    x = torch.tensor([[0.0], [1.0], [3.0]])
    posterior = denoiser_of(data, weights=weights).posterior(x, 0.0, top_k=2)
    assert posterior.mean.flatten().tolist() == [0.5, 1.0, 4.0]
    assert posterior.logsumexp.tolist() == pytest.approx([-math.inf, math.log(3), -math.inf])
    assert posterior.log_density.tolist() == [-math.inf, math.inf, -math.inf]
    assert bool(posterior.score.isnan().all()) and bool(posterior.epsilon.isnan().all())
    assert posterior.top_indices.tolist() == [[0, 1], [1, 0], [2, 1]]
    assert posterior.top_weights.tolist() == [[0.25, 0.75], [1.0, 0.0], [1.0, 0.0]]
    # Shares 1/4 and 3/4: entropy, 1 / (1/16 + 9/16), variance of -1 and 1 about 1/2.
    entropy = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert posterior.entropy.tolist() == pytest.approx([entropy, 0, 0])
    assert posterior.effective_sample_size.tolist() == pytest.approx([1.6, 1, 1])
    assert posterior.trace_covariance.tolist() == pytest.approx([0.75, 0, 0])


def test_top_weights_at_sigma_zero_know_of_ties_beyond_k():
    data = torch.tensor([[-1.0], [1.0], [1.0], [-1.0]])
    x = torch.zeros(1, 1)
    equal = denoiser_of(data).posterior(x, 0.0, top_k=2)
    assert equal.top_weights.tolist() == [[0.25, 0.25]]
    weighted = denoiser_of(data, weights=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert bool(weighted.posterior(x, 0.0, top_k=2).top_weights.isnan().all())
    assert_within(
        weighted.posterior(x, 0.0, top_k=4).top_weights,
        torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64),
        1e-12,
    )


def test_a_sigma_whose_logits_overflow_is_as_good_as_zero():
    data = torch.tensor([[-1.0], [1.0], [4.0]])
    posterior = denoiser_of(data, weights=torch.tensor([1.0, 3.0, 1.0])).posterior(
        torch.tensor([[0.5]]), 1e-200, top_k=2
    )
    assert posterior.mean.item() == 1.0
    assert posterior.log_density.item() == -math.inf
    assert posterior.top_weights.tolist() == [[1.0, 0.0]]


def test_infinite_sigma_is_the_prior():
    data, weights = images(4), torch.tensor([1.0, 1.0, 2.0, 4.0])
    posterior = denoiser_of(data, weights=weights).posterior(images(2), torch.inf, top_k=4)
    assert_within(posterior.logsumexp, torch.full((2,), math.log(8)), 1e-3)
    assert posterior.log_density.tolist() == [-math.inf, -math.inf]
    assert_within(
        posterior.top_weights.gather(1, posterior.top_indices.argsort(1)),
        (weights / 8).expand(2, 4),
        1e-3,
    )
    assert bool((posterior.score == 0).all()) and bool((posterior.epsilon == 0).all())


def test_a_query_that_is_not_finite_spoils_its_own_row_alone():
    data = images(6)
    x = noised(data, 0.5, 3)
    clean = denoiser_of(data).posterior(x, 0.5, top_k=2)
    x[1, 0, 0, 0] = torch.nan
    for sigma in (0.5, torch.tensor([0.5, 0.0, 0.5])):
        spoilt = denoiser_of(data).posterior(x, sigma, top_k=2)
        for name, value in spoilt._asdict().items():
            bad = value[1] == -1 if name == "top_indices" else value[1].isnan()
            assert bool(bad.all()), name
            rest = torch.tensor([0, 2])
            torch.testing.assert_close(value[rest], getattr(clean, name)[rest])


def test_the_gradient_of_log_density_is_the_score():
    data = images(10, shape=(2, 3)).double()
    labels = torch.arange(10) % 2
    denoiser = denoiser_of(data, labels=labels)
    x = noised(data, 0.5, 4).double().requires_grad_()
    sigma = torch.tensor([0.3, 0.5, 1.0, 4.0], dtype=torch.float64)
    posterior = denoiser.posterior(x, sigma, labels[:4], exclude=torch.tensor([0, 3, -1, 1]))
    (gradient,) = torch.autograd.grad(posterior.log_density.sum(), x)
    torch.testing.assert_close(gradient, posterior.score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["mean", "logsumexp", "log_density", "score", "epsilon"])
def test_field_is_differentiable_in_x_and_sigma(name):
    data = images(5, shape=(3,)).double()
    denoiser = denoiser_of(data)
    x = noised(data, 0.7, 2).double().requires_grad_()
    sigma = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, sigma: getattr(denoiser.posterior(x, sigma, top_k=2), name),
        (x, sigma),
        check_forward_ad=True,
    )


@pytest.mark.parametrize(
    "name",
    ["entropy", "effective_sample_size", "trace_covariance", "top_weights", "top_distances"],
)
def test_field_without_a_derivative_raises_when_one_is_asked(name):
    data = images(5)
    posterior = denoiser_of(data).posterior(images(2).requires_grad_(), 0.5, top_k=2)
    loss = posterior.mean.sum() + getattr(posterior, name).sum()
    with pytest.raises(RuntimeError, match="derivative"):
        loss.backward()


def test_posterior_runs_under_vmap_and_compile():
    data = images(6, shape=(4,)).double()
    denoiser = denoiser_of(data)
    x = noised(data, 0.5, 3).double()
    expected = denoiser.posterior(x, 0.5, top_k=2)
    rows = torch.vmap(lambda row: denoiser.posterior(row[None], 0.5, top_k=2))(x)
    compiled = torch.compile(denoiser.posterior, fullgraph=True, backend="aot_eager")
    for name, value in expected._asdict().items():
        torch.testing.assert_close(getattr(rows, name)[:, 0], value)
        torch.testing.assert_close(getattr(compiled(x, 0.5, top_k=2), name), value)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(x, 0.5).log_density.sum(), x)
    torch.testing.assert_close(gradient, expected.score, rtol=1e-9, atol=1e-9)
