"""Noised training sets: their points, the posterior over them, and the optimum for laws of gaps."""

from __future__ import annotations

import json
import math

import pytest
import torch

from diffgen import EmpiricalDenoiser, TrainingSet, as_denoiser, sample, schedules
from diffgen.generalization.copies.memorization import memorization_ratio
from diffgen.noised.counter_noise import standard_normal
from diffgen.noised.gaps import TabulatedGap
from diffgen.noised.posterior import Part, merged
from diffgen.noised.steps import DATA, step_between
from diffgen.noised.training_set import NoisedTrainingSet
from diffgen.objectives import ForwardTime
from diffgen.processes import DDPM, EDM, VE, RectifiedFlow

Z_LIMIT = 4.5
"""A z-score that one in 150,000 right results exceeds; the seeds are fixed."""

PROCESS = DDPM(torch.linspace(0.02, 0.5, 12))
PROMISE = 1e-9
"""Of the kernel, for float64 queries on float sets: relative to the size of the data."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(count=5, shape=(3,), seed=0):
    return torch.randn(count, *shape, generator=seeded(seed), dtype=torch.float64)


def queries(count=6, shape=(3,), seed=1):
    return 1.5 * points(count, shape, seed)


def make(training_set=None, copies=4, process=PROCESS, **options):
    training_set = TrainingSet(points()) if training_set is None else training_set
    return NoisedTrainingSet(training_set, copies, process, **options)


def everything(noised, s):
    """Rows, points ``(n M, D)`` and weights of all noised points of one time."""
    rows, x = (torch.cat(parts) for parts in zip(*noised.blocks(s), strict=True))
    weights = noised.training_set.log_weight_of(rows[:, 0]).exp()
    return rows, x.double().flatten(1), weights


# By hand: Gaussian densities over all points at once, no code of diffgen but the scales.


def log_kernels(noised, x_t, t, s):
    """``log N(x_t; alpha x_s^j, sigma^2)``, ``(B, n M)``."""
    _, x_s, _ = everything(noised, s)
    step = step_between(noised.process, torch.as_tensor(t), torch.as_tensor(s))
    squared = (x_t.flatten(1)[:, None] - step.alpha * x_s).square().sum(2)
    normalisation = x_s.shape[1] * (step.sigma.log() + 0.5 * math.log(2 * math.pi))
    return -squared / (2 * step.sigma.square()) - normalisation


def by_hand(noised, x_t, t, s):
    """Mean, log-density, entropy, effective sample size and trace."""
    _, x_s, weights = everything(noised, s)
    logs = log_kernels(noised, x_t, t, s) + (weights / weights.sum()).log()
    u = torch.softmax(logs, 1)
    mean = u @ x_s
    trace = (u * (x_s - mean[:, None]).square().sum(2)).sum(1)
    entropy = -torch.xlogy(u, u).sum(1)
    return mean, logs.logsumexp(1), entropy, 1 / u.square().sum(1), trace


# Points


def test_points_are_the_scaled_data_and_their_own_noise():
    noised = make(seed=5)
    rows = torch.tensor([[3, 1], [0, 2]])
    noise = standard_normal(5, 7, rows, 3)
    alpha, sigma = (float(scale(7).float()) for scale in (PROCESS.alpha, PROCESS.sigma))
    expected = alpha * noised.training_set[rows[:, 0]] + sigma * noise
    assert torch.equal(noised.points(rows, 7), expected)
    assert torch.equal(noised.points(rows, DATA), noised.training_set[rows[:, 0]])


@pytest.mark.parametrize("block_elements", [1, 7, 10_000])
def test_points_do_not_depend_on_blocks_or_order(block_elements):
    noised = make(block_elements=block_elements)
    parts = list(noised.blocks(4))
    assert max(x.numel() for _, x in parts) <= max(block_elements, 3)
    rows, x, _ = everything(noised, 4)
    assert torch.equal(rows, torch.cartesian_prod(torch.arange(5), torch.arange(4)))
    order = torch.randperm(20, generator=seeded())
    assert torch.equal(make().points(rows[order], 4), x[order])
    assert not torch.equal(make(seed=1).points(rows, 4), x)
    assert not torch.equal(make().points(rows, 5), x)


def test_points_have_the_law_of_the_process():
    noised = make(copies=2000)
    rows, x, _ = everything(noised, 6)
    residual = (x - PROCESS.alpha(6) * noised.training_set[rows[:, 0]]) / PROCESS.sigma(6)
    for values in (residual, residual.square() - 1, residual[:, 1:] * residual[:, :-1]):
        z = values.mean(0) / (values.std(0) / len(values) ** 0.5)
        assert float(z.abs().max()) < Z_LIMIT


def test_points_keep_the_type_and_shape_of_the_set():
    images = torch.randint(256, (4, 1, 2, 3), generator=seeded(), dtype=torch.uint8)
    noised = make(TrainingSet(images, flip=True))
    assert len(noised) == 8 * 4
    _, x = next(iter(noised.blocks(3)))
    assert x.shape == (32, 1, 2, 3) and x.dtype == torch.float32
    # A mirror image has noise of its own.
    alpha = float(PROCESS.alpha(3).float())
    noise = (x - alpha * noised.training_set[torch.arange(8).repeat_interleave(4)]).double()
    assert not torch.allclose(noise[:16].flip(-1), noise[16:], atol=1e-3)


def test_data_count_once():
    noised = make()
    rows, x, _ = everything(noised, DATA)
    assert torch.equal(x, noised.training_set[:]) and rows[:, 1].max() == 0


# The posterior


@pytest.mark.parametrize("block_elements", [1, 40, 10_000])
@pytest.mark.parametrize("s", [DATA, 0, 3, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_posterior_is_the_sum_over_all_points(s, weighted, block_elements):
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0]) if weighted else None
    noised = make(TrainingSet(points(), weights=weights), block_elements=block_elements)
    x_t = queries()
    found = noised.posterior(x_t, 9, s)
    expected = by_hand(noised, x_t, 9, s)
    for value, right in zip((found.mean, *found[2:]), expected, strict=True):
        torch.testing.assert_close(value, right, rtol=PROMISE, atol=10 * PROMISE)
    step = step_between(PROCESS, torch.tensor(9), torch.tensor(s))
    xi = (x_t - step.alpha * expected[0]) / step.sigma
    torch.testing.assert_close(found.last_noise, xi, rtol=PROMISE, atol=100 * PROMISE)
    assert torch.equal(
        noised.optimum(x_t.float(), 9, s), noised.optimum(x_t.float().double(), 9, s).float()
    )


def test_posterior_takes_times_of_each_query():
    noised, x_t = make(), queries()
    t = torch.tensor([5, 6, 7, 8, 9, 11])
    found = noised.posterior(x_t, t, 4)
    for row in range(6):
        one = noised.posterior(x_t[row : row + 1], int(t[row]), 4)
        for value, right in zip(found, one, strict=True):
            torch.testing.assert_close(value[row : row + 1], right, rtol=PROMISE, atol=PROMISE)


@pytest.mark.parametrize("process", [RectifiedFlow(), EDM(), VE(0.1, 5.0)], ids=str)
def test_posterior_in_continuous_time(process):
    noised = make(process=process)
    t, s = (0.75, 0.5) if process.time_range[1] <= 1 else (2.0, 0.5)
    found = noised.posterior(queries(), t, s)
    expected = by_hand(noised, queries(), t, s)
    torch.testing.assert_close(found.mean, expected[0], rtol=PROMISE, atol=10 * PROMISE)
    torch.testing.assert_close(found.log_density, expected[1], rtol=PROMISE, atol=10 * PROMISE)
    rows = torch.zeros(1, 2, dtype=torch.int64)
    assert not torch.equal(noised.points(rows, 0.5), noised.points(rows, 0.625))


def test_posterior_stays_within_the_class():
    labels = torch.tensor([0, 1, 0, 1, 1])
    noised = make(TrainingSet(points(), labels=labels))
    x_t = queries(4)
    found = noised.posterior(x_t, 9, 5, torch.tensor([0, 1, -1, 0]))
    rows, x_s, _ = everything(noised, 5)
    logs = log_kernels(noised, x_t, 9, 5)
    for row, label in enumerate((0, 1, -1, 0)):
        members = (labels[rows[:, 0]] == label) | (label == -1)
        of_class = logs[row, members]
        expected = torch.softmax(of_class, 0) @ x_s[members]
        torch.testing.assert_close(found.mean[row], expected, rtol=PROMISE, atol=10 * PROMISE)
        density = of_class.logsumexp(0) - math.log(int(members.sum()))
        torch.testing.assert_close(found.log_density[row], density, rtol=PROMISE, atol=PROMISE)


def test_posterior_over_the_data_is_that_of_the_denoiser():
    noised, x_t = make(), queries()
    network = EmpiricalDenoiser(noised.training_set).predictor(PROCESS, "epsilon")
    for t in (0, 5, 11):
        bound = 10 * PROMISE * (1 + x_t.abs().max()) / PROCESS.sigma(t)
        torch.testing.assert_close(
            noised.optimum(x_t, t, DATA), network(x_t, t), rtol=0, atol=float(bound)
        )


def test_query_that_is_not_finite_spoils_its_own_row_alone():
    x_t = queries()
    x_t[2, 1] = torch.nan
    for found in (make().optimum(x_t, 9, 4), make().predictor("uniform")(x_t, 9)):
        assert bool(found[2].isnan().all())
        assert bool(found[[0, 1, 3, 4, 5]].isfinite().all())


def test_empty_batch_has_an_empty_posterior():
    x_t = queries()[:0]
    assert make().optimum(x_t, 9, 4).shape == (0, 3)
    assert make().predictor()(x_t, 9).shape == (0, 3)


def test_merging_is_associative_and_that_of_the_whole():
    x, weights = points(9, (4,)), torch.rand(9, generator=seeded()).double()

    def part(rows):
        w = weights[rows] / weights[rows].sum()
        mean = w @ x[rows]
        trace = (w * (x[rows] - mean).square().sum(1)).sum()
        numbers = (weights[rows].sum().log(), -(w * w.log()).sum(), 1 / w.square().sum(), trace)
        return Part(mean[None], *(number[None] for number in numbers))

    a, b, c = part(slice(0, 2)), part(slice(2, 3)), part(slice(3, 9))
    whole = part(slice(None))
    for found in (merged(merged(a, b), c), merged(a, merged(c, b))):
        for value, right in zip(found, whole, strict=True):
            # A few roundings of sums of nine terms of size 1 to 10.
            torch.testing.assert_close(value, right, rtol=1e-14, atol=1e-14)


def test_progress_sees_every_block():
    seen = []

    def progress(work):
        seen.append(len(work))
        return work

    noised = make(block_elements=6)
    noised.posterior(queries(), 9, 4, progress=progress)
    noised.predictor("uniform", progress=progress)(queries(), 9)
    assert seen == [10, 10]  # blocks of two points; times s = -1, 0, ..., 8


# What the optimum is


def test_optimum_is_the_least_squares_estimate_of_the_last_noise():
    noised = make(copies=2)
    _, x_s, _ = everything(noised, 4)
    step = step_between(PROCESS, torch.tensor(6), torch.tensor(4))
    j = torch.randint(len(x_s), (40_000,), generator=seeded(2))
    noise = torch.randn(40_000, 3, generator=seeded(3), dtype=torch.float64)
    x_t = step.alpha * x_s[j] + step.sigma * noise
    residual = noise - noised.optimum(x_t, 6, 4)
    for phi in (torch.ones_like(x_t), x_t, torch.sin(3 * x_t)):
        values = residual * phi
        z = values.mean(0) / (values.std(0) / len(values) ** 0.5)
        assert float(z.abs().max()) < Z_LIMIT
    # The optimum over fresh noise is another one, and the same test tells them apart.
    fresh = EmpiricalDenoiser(noised.training_set).predictor(PROCESS, "epsilon")(x_t, 6)
    values = (noise - step.rho * fresh) * x_t
    z = values.mean(0) / (values.std(0) / len(values) ** 0.5)
    assert float(z.abs().max()) > Z_LIMIT


@pytest.mark.parametrize("copies", [100, 10_000])
def test_optimum_becomes_that_of_fresh_noise_as_copies_grow(copies):
    noised = make(TrainingSet(points(3, (2,))), copies=copies)
    x_t, t, s = queries(40, (2,)), 11, 5
    found = noised.posterior(x_t, t, s)
    step = step_between(PROCESS, torch.tensor(t), torch.tensor(s))
    exact = EmpiricalDenoiser(noised.training_set).predictor(PROCESS, "epsilon")(x_t, t)
    _, x_s, _ = everything(noised, s)
    u = torch.softmax(log_kernels(noised, x_t, t, s), 1)
    # The mean over n M draws of x_s, weighted by their own likelihood: its squared error is
    # sum u^2 |x_s - m|^2 to first order (less, as the points i are not drawn), falling as 1 / M.
    squared = (u.square() * (x_s - found.mean[:, None]).square().sum(2)).sum(1)
    spread = (step.alpha / step.sigma / step.rho) * squared.sqrt()
    z = (found.last_noise / step.rho - exact).norm(dim=1) / spread
    # |z|^2 is at most chi squared with 2 degrees on average; queries share their noised points.
    assert float(z.max()) < Z_LIMIT + 1
    assert float(z.square().mean()) > 0.02
    if copies == 100:
        more = make(noised.training_set, copies=10_000).posterior(x_t, t, s)
        errors = [(each.last_noise / step.rho - exact).norm() for each in (found, more)]
        assert float(errors[1]) < 0.3 * float(errors[0])  # a tenth, up to chance


def test_one_step_back_gives_a_noised_point_and_not_a_training_point():
    data = points(20, (64,))
    noised, process = make(TrainingSet(data), process=DDPM(), copies=3), DDPM()
    t = 400
    _, x_s, _ = everything(noised, t - 1)
    step = step_between(process, torch.tensor(t), torch.tensor(t - 1))
    noise = torch.randn(60, 64, generator=seeded(4), dtype=torch.float64)
    found = noised.posterior(step.alpha * x_s + step.sigma * noise, t, t - 1)
    # Noised points are some 10 apart, a hundred times the step: the one that x_t comes from has all
    # the weight, and the mean is that point to the kernel's promise.
    assert float((found.mean - x_s).abs().max()) < PROMISE * float(x_s.abs().max())
    # The points are their noise away from the data: |noise| is 8 +- 0.7.
    away = torch.cdist(found.mean, process.alpha(t - 1) * data).amin(1) / process.sigma(t - 1)
    assert float((away - 64**0.5).abs().max()) < Z_LIMIT * 0.5**0.5


@pytest.mark.parametrize("gap", ["previous", "uniform"])
def test_sampling_to_the_end_gives_training_points(gap):
    process = DDPM(torch.linspace(0.01, 0.7, 15))
    noised = make(TrainingSet(points(30, (16,)).float()), copies=2, process=process)
    denoiser = as_denoiser(noised.predictor(gap), process, nearest=True)
    levels = schedules.from_process(process, process.num_steps)
    x = sample(denoiser, (60, 16), levels, generator=seeded(5))
    assert memorization_ratio(x, noised.training_set, generator=seeded()).ratio == 1.0


# A law of gaps


LAWS = {
    "previous": "previous",
    "uniform": "uniform",
    "tabulated": TabulatedGap(lambda t: [0.5, *(float(s % 3) for s in range(t))]),
}


@pytest.mark.parametrize("weighting", ["unit", "noise", lambda t, s: 1 + t + s], ids=str)
@pytest.mark.parametrize("gap", LAWS)
def test_predictor_has_the_least_loss_of_the_whole_law(gap, weighting):
    noised, x_t, t = make(copies=2), queries(), 5
    network = noised.predictor(LAWS[gap], weighting)
    f = network(x_t, t).requires_grad_()
    law = ForwardTime(PROCESS, LAWS[gap]).gap.probabilities(t)
    # The loss at x_t up to its density: the sum over s, j of probability times squared error.
    loss, size = 0.0, 0.0
    for place, q in enumerate(law.tolist()):
        s = place + DATA
        if q == 0:
            continue
        step = step_between(PROCESS, torch.tensor(t), torch.tensor(s))
        lam = (
            {"unit": 1.0, "noise": float(step.rho) ** -2}.get(weighting)
            if isinstance(weighting, str)
            else weighting(t, s)
        )
        _, x_s, _ = everything(noised, s)
        mass = q * lam * log_kernels(noised, x_t, t, s).exp() / len(x_s)
        noise = (x_t[:, None] - step.alpha * x_s) / step.sigma  # (B, n M, D)
        squared = (step.rho * f[:, None] - noise).square().sum(2)
        loss = loss + (mass * squared).sum(1)
        size = size + (mass * step.rho.square()).sum(1).detach()
    (slope,) = torch.autograd.grad(loss.sum(), f)
    # Half the slope over the curvature is the distance from the least loss.
    distance = slope.abs() / (2 * size[:, None])
    assert float(distance.max()) < 1000 * PROMISE * (1 + float(f.detach().abs().max()))


def test_predictor_takes_times_of_each_query():
    noised, x_t = make(), queries()
    t = torch.tensor([0, 3, 3, 7, 9, 11])
    for gap in ("previous", "uniform"):
        network = noised.predictor(gap)
        found = network(x_t.float(), t)
        assert found.dtype == torch.float32
        for row in range(6):
            one = network(x_t[row : row + 1].float(), t[row])
            torch.testing.assert_close(found[row : row + 1], one)


def test_predictor_with_labels_is_that_of_the_class():
    labels = torch.tensor([0, 1, 0, 1, 1])
    both = make(TrainingSet(points(), labels=labels)).predictor("uniform")
    x_t, ones = queries(), torch.ones(6, dtype=torch.int64)
    assert not torch.allclose(both(x_t, 5, ones), both(x_t, 5))
    torch.testing.assert_close(both(x_t, 5, -ones), both(x_t, 5))


def test_predictor_from_the_data_alone_is_epsilon_of_the_set():
    noised, x_t = make(), queries()
    network = noised.predictor(TabulatedGap(lambda t: [1.0] + [0.0] * t))
    expected = EmpiricalDenoiser(noised.training_set).predictor(PROCESS, "epsilon")
    torch.testing.assert_close(network(x_t, 8), expected(x_t, 8), rtol=PROMISE, atol=100 * PROMISE)


def test_settings_and_repr_say_what_was_asked():
    noised = make(seed=3)
    assert json.loads(json.dumps(noised.settings))["copies"] == 4
    assert "copies=4" in repr(noised) and "uniform" in repr(noised.predictor("uniform"))


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NoisedTrainingSet(points(), 2, PROCESS), "must be a diffgen.TrainingSet"),
        (lambda: make(copies=0), r"copies must be in \[1, "),
        (lambda: make(seed=-1), r"seed must be in \[0, "),
        (lambda: make(block_elements=0), "block_elements must be in"),
        (lambda: make().optimum(queries(), 5, 5), "s must be before t, got s = 5 and t = 5"),
        (lambda: make().optimum(queries(), 5, 2.5), "s must be whole in discrete time, got 2.5"),
        (lambda: make().optimum(queries(), 5, -2), r"must be in \[0, 11\], got -2"),
        (lambda: make().optimum(queries(), 12, 2), r"t must be in \[0, 11\], got 12"),
        (lambda: make().optimum(torch.ones(2, 4), 5, 2), r"x must have shape \(B, 3\)"),
        (lambda: make().optimum(queries(), 5, 2, torch.zeros(6).long()), "set with labels"),
        (lambda: make(process=EDM()).predictor(), "needs a process in discrete time"),
        (lambda: make().predictor("often"), "gap must be one of previous, uniform"),
        (lambda: make().predictor(lambda t, g: t - 1), "gap must have probabilities here"),
        (lambda: make().predictor(weighting="snr"), "weighting must be one of unit, noise"),
        (lambda: make().predictor()(queries(), 2.5), "t must be whole .* got 2.5"),
        (lambda: make().points(torch.tensor([[9, 0]]), 3), "must be in"),
    ],
)
def test_bad_input_is_refused_with_what_was_needed(call, message):
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        call()


def test_class_without_points_is_refused():
    weights = torch.tensor([1.0, 0.0, 1.0])
    noised = make(TrainingSet(points(3), labels=torch.tensor([0, 1, 2]), weights=weights))
    with pytest.raises(ValueError, match="class_labels must name a class with points, got 1"):
        noised.optimum(queries(2), 5, 2, torch.tensor([0, 1]))
