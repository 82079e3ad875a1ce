"""Objectives: their draws, their optimum, the identities between them, and what they refuse."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from diffgen import EmpiricalDenoiser, TrainingSet
from diffgen.network_output import prediction, unwrapped
from diffgen.noised.gaps import GAP_LAWS, TabulatedGap, gap_law
from diffgen.noised.steps import DATA, scales_at, step_between
from diffgen.objectives import ClosedFormTarget, ForwardTime, NoisePrediction, Regression
from diffgen.objectives.time_laws import TIME_LAWS, LogNormalRatio
from diffgen.objectives.weightings import WEIGHTINGS
from diffgen.parameterizations import PARAMETERIZATIONS
from diffgen.processes import DDPM, EDM, PROCESSES, VE, RectifiedFlow

Z_LIMIT = 4.5
"""A z-score that one in 150,000 right results exceeds; the seeds are fixed."""

U = torch.finfo(torch.float64).eps / 2
SHAPE = (3,)
SHORT = DDPM(torch.linspace(0.02, 0.5, 12))
"""A process in few steps."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(count=5, seed=0):
    return torch.randn(count, *SHAPE, generator=seeded(seed), dtype=torch.float64)


DATA_SET = TrainingSet(points())
DENOISER = EmpiricalDenoiser(DATA_SET)


def sources(count, seed=1):
    """Training points drawn with replacement."""
    return DATA_SET[torch.randint(len(DATA_SET), (count,), generator=seeded(seed))]


def z_score(values):
    """Of the mean of independent values whose expectation is 0; the largest over columns."""
    values = values.reshape(len(values), -1)
    spread = values.std(0) / len(values) ** 0.5
    return float((values.mean(0) / spread).abs().max())


def features(x_t):
    """Functions of x_t, ``(B, *S, 3)``, to test orthogonality with."""
    return torch.stack([torch.ones_like(x_t), x_t, torch.sin(3 * x_t)], -1)


# Exact posteriors by hand: no code of diffgen but the scales.


def posterior_weights(x_t, alpha, sigma):
    squared = (x_t[:, None] - alpha[:, None, None] * DATA_SET[:][None]).square().sum(2)
    return torch.softmax(-squared / (2 * sigma[:, None].square()), 1)


def target_of(name, x0, noise, alpha, sigma):
    alpha, sigma = alpha.reshape(-1, *[1] * (x0.ndim - 1)), sigma.reshape(-1, *[1] * (x0.ndim - 1))
    return {
        "x0": x0,
        "epsilon": noise,
        "v": alpha * noise - sigma * x0,
        "score": -noise / sigma,
        "velocity": noise - x0,
    }[name]


def mean_and_trace(name, x_t, alpha, sigma):
    """Mean and trace of the covariance of a target given x_t, by the sum over all points."""
    w = posterior_weights(x_t, alpha, sigma)
    every = DATA_SET[:].expand(len(x_t), -1, -1)  # (B, n, D)
    noise = (x_t[:, None] - alpha[:, None, None] * every) / sigma[:, None, None]
    targets = target_of(name, every, noise, alpha, sigma)
    mean = (w[..., None] * targets).sum(1)
    return mean, (w * (targets - mean[:, None]).square().sum(2)).sum(1)


# Noise prediction


@pytest.mark.parametrize("target", PARAMETERIZATIONS)
@pytest.mark.parametrize("process", PROCESSES)
def test_noise_prediction_draws_the_target_of_its_own_sample(process, target):
    process, x0 = PROCESSES[process](), sources(64)
    drawn = NoisePrediction(process, target).draw(x0, seeded())
    alpha, sigma = process.alpha(drawn.t), process.sigma(drawn.t)
    noise = (drawn.x_t - alpha[:, None] * x0) / sigma[:, None]
    expected = target_of(target, x0, noise, alpha, sigma)
    # Forming x_t and taking it apart round a few times, the noise by |x_t| / sigma.
    scale = (drawn.x_t.abs() + alpha[:, None] * x0.abs()) / sigma[:, None]
    rate = {"score": 1 / sigma, "v": alpha, "x0": 0 * alpha}.get(target, torch.ones_like(alpha))
    bound = 16 * U * (rate[:, None] * scale + expected.abs() + x0.abs() + noise.abs())
    assert bool(((drawn.target - expected).abs() <= bound).all())
    assert torch.equal(drawn.scale, torch.ones(64, dtype=torch.float64))


@pytest.mark.parametrize("target", PARAMETERIZATIONS)
@pytest.mark.parametrize("process", PROCESSES)
def test_optimum_has_the_irreducible_loss_and_no_gradient(process, target):
    process = PROCESSES[process]()
    objective = NoisePrediction(process, target)
    drawn = objective.draw(sources(4000), seeded(2))
    alpha, sigma = process.alpha(drawn.t), process.sigma(drawn.t)
    _, trace = mean_and_trace(target, drawn.x_t, alpha, sigma)
    optimum = DENOISER.predictor(process, target)(drawn.x_t, drawn.t)
    # Divided by a function of t, so that no noise level drowns the others.
    size = sigma / alpha if target in ("x0", "v") else torch.ones_like(sigma)
    size = 1 / sigma if target == "score" else size
    scale = (1 + size + alpha / sigma) if target == "velocity" else size.clamp(min=1e-3)
    excess = 3 * drawn.losses(optimum) - trace
    assert z_score(excess / scale.square()) < Z_LIMIT
    # The derivative of the loss along any function of x_t.
    slope = (optimum - drawn.target)[..., None] * features(drawn.x_t)
    assert z_score(slope / scale[:, None, None]) < Z_LIMIT


def test_excess_loss_of_another_network_is_its_distance_from_the_optimum():
    process = DDPM()
    drawn = NoisePrediction(process).draw(sources(20000), seeded(3))
    optimum = DENOISER.predictor(process, "epsilon")(drawn.x_t, drawn.t)
    network = 0.8 * drawn.x_t + 0.1
    gap = (network - optimum).square().mean(1)
    excess = drawn.losses(network) - drawn.losses(optimum)
    assert z_score(excess - gap) < Z_LIMIT
    assert z_score(excess) > 2 * Z_LIMIT


def test_loss_is_the_mean_of_the_losses_of_its_draws():
    objective, x0 = NoisePrediction(EDM(), "x0", weighting="edm"), sources(16).float()
    layer = torch.nn.Linear(3, 3)
    loss = objective(lambda x_t, t: layer(x_t), x0, seeded(4))
    drawn = objective.draw(x0, seeded(4))
    by_hand = drawn.weight * (layer(drawn.x_t) - drawn.target).square().mean(1)
    torch.testing.assert_close(loss, by_hand.mean())
    loss.backward()
    assert float(layer.weight.grad.abs().min()) > 0
    assert loss.ndim == 0 and loss.dtype == torch.float32


@pytest.mark.parametrize("weighting", [name for name in WEIGHTINGS if name != "unit"])
@pytest.mark.parametrize("process", PROCESSES)
def test_weighted_loss_does_not_depend_on_the_target(process, weighting):
    process = PROCESSES[process]()
    # Levels near 1, where no map between targets loses more than a digit.
    times = lambda process, count, generator, device: LogNormalRatio(0.0, 0.3)(  # noqa: E731
        process, count, generator, device
    )
    losses = []
    for target in PARAMETERIZATIONS:
        drawn = NoisePrediction(process, target, times=times, weighting=weighting).draw(
            sources(50), seeded(5)
        )
        losses.append(drawn.losses(DENOISER.predictor(process, target)(drawn.x_t, drawn.t)))
    for other in losses[1:]:
        # The posterior mean is promised to 1e-9 relative; errors of the optimum are O(1).
        torch.testing.assert_close(other, losses[0], rtol=1e-7, atol=1e-9)


def test_weightings_are_those_of_their_papers():
    process = SHORT
    t = torch.arange(12)
    ratio, snr = process.ratio(t), process.ratio(t).pow(-2)
    times = lambda *_: t  # noqa: E731

    def weight(target, weighting):
        objective = NoisePrediction(process, target, times=times, weighting=weighting)
        return objective.draw(sources(12), seeded()).weight

    expected = {
        ("epsilon", "unit"): torch.ones_like(snr),
        ("epsilon", "epsilon"): torch.ones_like(snr),
        ("x0", "epsilon"): snr,
        ("epsilon", "min_snr"): snr.clamp(max=5) / snr,
        ("x0", "min_snr"): snr.clamp(max=5),
        ("v", "min_snr"): snr.clamp(max=5) / (snr + 1),
        ("x0", "edm"): (ratio**2 + 0.25) / (0.5 * ratio) ** 2,
    }
    for (target, weighting), value in expected.items():
        # A dozen roundings, of terms of one sign.
        torch.testing.assert_close(weight(target, weighting), value, rtol=24 * U, atol=0)
    doubled = NoisePrediction(process, times=times, weighting=lambda t: 2.0 * t)
    assert torch.equal(doubled.draw(sources(12), seeded()).weight, 2.0 * t.double())


# Times


def test_uniform_times_are_those_of_the_process():
    t = NoisePrediction(SHORT).draw(sources(12000), seeded()).t
    assert t.dtype == torch.int64
    counts = t.bincount(minlength=12).double()
    assert len(counts) == 12
    assert float(((counts - 1000) / (1000 * 11 / 12) ** 0.5).abs().max()) < Z_LIMIT
    for process in (RectifiedFlow(), VE()):
        t = NoisePrediction(process).draw(sources(12000).float(), seeded()).t
        assert t.dtype == torch.float32 and float(t.min()) > 0 and float(t.max()) < 1
        assert z_score(t.double() - 0.5) < Z_LIMIT
        assert z_score((t.double() - 0.5).square() - 1 / 12) < Z_LIMIT


@pytest.mark.parametrize("word", [0.0, 1 - 2**-53])
def test_uniform_times_in_continuous_time_keep_off_the_ends(monkeypatch, word):
    monkeypatch.setattr(
        torch, "rand", lambda *size, **_: torch.full(size, word, dtype=torch.float64)
    )
    objective = NoisePrediction(RectifiedFlow(), "velocity", weighting="edm")
    drawn = objective.draw(sources(2).float(), None)
    assert 0 < float(drawn.t[0]) < 1
    assert all(bool(value.isfinite().all()) for value in (drawn.target, drawn.weight, drawn.x_t))


def test_noise_level_laws_have_their_moments():
    level = NoisePrediction(EDM()).draw(sources(20000), seeded()).t.log()
    assert z_score(level + 1.2) < Z_LIMIT and z_score((level + 1.2).square() - 1.44) < Z_LIMIT
    t = NoisePrediction(RectifiedFlow(), times="logit_normal").draw(sources(20000), seeded()).t
    logit = t.logit()
    assert z_score(logit) < Z_LIMIT and z_score(logit.square() - 1) < Z_LIMIT
    t = NoisePrediction(DDPM(), times="lognormal").draw(sources(20000), seeded()).t
    assert t.dtype == torch.int64
    # Whole steps: the share below a level is that of the normal, to half a step's change.
    below = (t <= 258).double()  # ratio 1.0 at t = 258.2
    assert z_score(below - torch.special.ndtr(torch.tensor(1.0))) < Z_LIMIT + 2


@pytest.mark.parametrize(
    "objective",
    [
        NoisePrediction(DDPM()),
        NoisePrediction(EDM(), "x0", weighting="edm"),
        ForwardTime(DDPM(), "uniform"),
        ClosedFormTarget(RectifiedFlow(), target="velocity"),
    ],
    ids=lambda objective: type(objective).__name__,
)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_same_seed_gives_the_same_draws(objective, kind):
    x0 = sources(8).to(kind)
    one, two, other = (objective.draw(x0, seeded(seed)) for seed in (1, 1, 2))
    for name in ("x_t", "t", "target", "scale", "weight"):
        assert torch.equal(getattr(one, name), getattr(two, name))
        assert len(getattr(one, name)) == 8
        if name != "t":
            assert getattr(one, name).dtype == kind
    assert not torch.equal(one.x_t, other.x_t)
    assert not one.target.requires_grad
    json.dumps(objective.settings())


def test_regression_takes_an_ensemble_and_half_precision():
    drawn = NoisePrediction(DDPM()).draw(sources(4).float(), seeded())
    stacked = torch.stack([drawn.x_t, 2 * drawn.x_t])
    both = torch.func.vmap(drawn.losses)(stacked)
    assert torch.equal(both[1], drawn.losses(2 * drawn.x_t))
    assert drawn.losses(drawn.x_t.bfloat16()).dtype == torch.float32


# Forward time


GAPS = [
    (SHORT, "previous"),
    (SHORT, "uniform"),
    (SHORT, TabulatedGap(lambda t: torch.arange(1, t + 2))),
    (SHORT, lambda t, generator: torch.full_like(t, DATA)),
    (RectifiedFlow(), "uniform"),
    (VE(0.1, 5.0), "uniform"),
    (EDM(), lambda t, generator: t / 2),
]


@pytest.mark.parametrize(("process", "gap"), GAPS, ids=str)
def test_last_noise_is_rho_times_the_noise_by_tweedie(process, gap):
    objective = ForwardTime(process, gap)
    drawn = objective.draw(sources(30000), seeded(6))
    optimum = DENOISER.predictor(process, "epsilon")(drawn.x_t, drawn.t)
    residual = drawn.target - drawn.scale[:, None] * optimum
    slope = residual[..., None] * features(drawn.x_t)
    assert z_score(slope) < Z_LIMIT
    # The scale matters: with a wrong one the same test sees it.
    wrong = (drawn.target - 0.9 * drawn.scale[:, None] * optimum)[..., None] * features(drawn.x_t)
    assert z_score(wrong) > Z_LIMIT


@pytest.mark.parametrize("process", [SHORT, DDPM(), DDPM("cosine"), RectifiedFlow(), VE()], ids=str)
def test_tweedie_holds_exactly_in_the_joint_mixture(process):
    # Given the point i, (e2, x_t) is Gaussian with covariance sigma of the step, so that
    # E[e2 | x_t, i] = step.sigma (x_t - alpha_t x_i) / Var, summed over the posterior of i.
    t = process.times(7)[:-1]
    t = t.long() if isinstance(process, DDPM) else t
    x_t = 2 * torch.randn(6, *SHAPE, generator=seeded(7), dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    for s in (t - 1, t // 2, 0 * t - 1) if isinstance(process, DDPM) else (t / 2, 0.99 * t):
        step = step_between(process, t, s)
        variance = (step.alpha * scales_at(process, s)[1]).square() + step.sigma.square()
        torch.testing.assert_close(variance, sigma.square(), rtol=32 * U, atol=0)
        w = posterior_weights(x_t, alpha, sigma)
        offsets = x_t - alpha[:, None] * (w @ DATA_SET[:])
        expected = (step.sigma / variance)[:, None] * offsets
        optimum = DENOISER.predictor(process, "epsilon")(x_t, t)
        # The promise for float64 queries, 1e-9 relative to the terms of the difference.
        bound = 1e-9 * (x_t.abs() + alpha[:, None] * DATA_SET[:].abs().amax()) / sigma[:, None]
        assert bool(((step.rho[:, None] * optimum - expected).abs() <= bound).all())


@pytest.mark.parametrize(("process", "gap"), GAPS, ids=str)
def test_loss_of_any_function_is_that_of_noise_prediction_up_to_a_constant(process, gap):
    x0 = sources(20000)
    drawn = ForwardTime(process, gap).draw(x0, seeded(8))
    alpha, sigma = process.alpha(drawn.t), process.sigma(drawn.t)
    noise = (drawn.x_t - alpha[:, None] * x0) / sigma[:, None]
    network = torch.tanh(drawn.x_t) + 0.3
    usual = (network - noise).square().mean(1)
    rho2 = drawn.scale.square()
    assert z_score(drawn.losses(network) - rho2 * usual - (1 - rho2)) < Z_LIMIT


@pytest.mark.parametrize("gap", ["previous", "uniform"])
def test_rest_of_the_last_noise_is_independent_of_point_and_noise(gap):
    x0 = sources(20000)
    drawn = ForwardTime(SHORT, gap).draw(x0, seeded(9))
    noise = (drawn.x_t - SHORT.alpha(drawn.t)[:, None] * x0) / SHORT.sigma(drawn.t)[:, None]
    rho = drawn.scale[:, None]
    partial = drawn.scale < 1 - 1e-9  # from the data there is no rest
    zeta = ((drawn.target - rho * noise) / (1 - rho.square()).sqrt())[partial]
    x0, noise, x_t = x0[partial], noise[partial], drawn.x_t[partial]
    assert z_score(zeta) < Z_LIMIT and z_score(zeta.square() - 1) < Z_LIMIT
    for other in (x0, noise, x_t, rho[partial].expand_as(x0)):
        for a in (zeta, zeta.square() - 1):
            for b in (other, other.square() - other.square().mean(0)):
                assert z_score(a * b) < Z_LIMIT


def test_forward_time_weights_are_one_or_that_of_the_noise():
    x0 = sources(50)
    for weighting, weight in (
        ("unit", lambda rho: torch.ones_like(rho)),
        ("noise", lambda rho: rho.pow(-2)),
    ):
        drawn = ForwardTime(SHORT, "uniform", weighting).draw(x0, seeded())
        torch.testing.assert_close(drawn.weight, weight(drawn.scale), rtol=8 * U, atol=0)
    drawn = ForwardTime(SHORT, "previous", lambda t, s: t - s + 1).draw(x0, seeded())
    assert torch.equal(drawn.weight, torch.full_like(drawn.weight, 2))


def test_previous_gap_is_the_step_of_beta():
    t = torch.arange(1, 12)
    step = step_between(SHORT, t, t - 1)
    # 1 - alpha_bar_t / alpha_bar_s, through logarithms and ratios: some twenty roundings of
    # numbers of size 1, beside a beta of at least 0.02.
    torch.testing.assert_close(step.sigma.square(), SHORT.betas[1:], rtol=40 * U / 0.02, atol=0)
    drawn = ForwardTime(SHORT).draw(sources(100), seeded())
    rho2 = SHORT.betas[drawn.t] / (1 - SHORT.alpha_bar[drawn.t])
    torch.testing.assert_close(drawn.scale.square(), rho2, rtol=80 * U / 0.02, atol=0)


def test_uniform_gaps_cut_the_noise_of_the_target():
    process = DDPM()
    noise = {}
    for gap in ("previous", "uniform"):
        of_time = []
        for t in range(49, 1000):  # 50 to 1,000 where counting starts at 1
            s = torch.arange(DATA, t)
            excess = step_between(process, torch.full_like(s, t), s).rho.pow(-2) - 1
            of_time.append(GAP_LAWS[gap].probabilities(t) @ excess)
        noise[gap] = torch.stack(of_time)
    # The figures of the module's docstring, to their last digit.
    assert [round(float(noise["previous"].min())), round(float(noise["previous"].max()))] == [
        26,
        100,
    ]
    cut = noise["previous"] / noise["uniform"]
    assert [round(float(cut.min())), round(float(cut.max()))] == [15, 216]


@pytest.mark.parametrize(
    "law", [*GAP_LAWS.values(), TabulatedGap(lambda t: [2.0] + [1.0] * t)], ids=repr
)
def test_gap_laws_draw_with_their_probabilities(law):
    t = torch.full((20000,), 5)
    s = law.draw(SHORT, t, seeded())
    probabilities = law.probabilities(5)
    counts = (s - DATA).bincount(minlength=6).double() / len(s)
    assert len(counts) == 6 and bool((counts[probabilities == 0] == 0).all())
    spread = (probabilities * (1 - probabilities) / len(s)).sqrt().clamp(min=1e-12)
    assert float(((counts - probabilities) / spread).abs().max()) < Z_LIMIT


@pytest.mark.parametrize("word", [0.0, 0.5, 1 - 2**-53])
def test_tabulated_gap_never_draws_what_has_no_weight(monkeypatch, word):
    monkeypatch.setattr(
        torch, "rand", lambda size, **_: torch.full(size, word, dtype=torch.float64)
    )
    law = TabulatedGap(lambda t: [0.0, 1.0, 0.0, 1.0, 0.0])
    s = law.draw(SHORT, torch.full((1,), 4), None)
    assert int(s) in (0, 2)


def test_uniform_gap_in_continuous_time_is_uniform_before_t():
    t = torch.full((20000,), 0.5, dtype=torch.float64)
    s = gap_law("uniform", RectifiedFlow()).draw(RectifiedFlow(), t, seeded())
    assert float(s.min()) >= 0 and float(s.max()) < 0.5
    assert z_score(s / 0.5 - 0.5) < Z_LIMIT


# Closed-form target


@pytest.mark.parametrize("target", PARAMETERIZATIONS)
@pytest.mark.parametrize("process", PROCESSES)
def test_closed_form_over_the_set_is_the_posterior_mean(process, target):
    process = PROCESSES[process]()
    usual = NoisePrediction(process, target).draw(sources(64), seeded(10))
    drawn = ClosedFormTarget(process, DENOISER, target).draw(sources(64), seeded(10))
    assert torch.equal(drawn.x_t, usual.x_t)  # the same draws, only the target differs
    alpha, sigma = process.alpha(drawn.t), process.sigma(drawn.t)
    expected, _ = mean_and_trace(target, drawn.x_t, alpha, sigma)
    # 1e-9 of the mean, times how much the target moves with it.
    rate = (1 + alpha / sigma) * (1 + (1 / sigma if target == "score" else 0 * sigma))
    bound = 1e-9 * rate[:, None] * (1 + drawn.x_t.abs() + DATA_SET[:].abs().amax())
    assert bool(((drawn.target - expected).abs() <= bound).all())


def gradients(drawn, network):
    """Derivative of each loss along functions of x_t."""
    return (network - drawn.target)[..., None] * features(drawn.x_t)


@pytest.mark.parametrize("over", ["set", "batch", "batch and more"])
def test_closed_form_has_the_gradient_of_noise_prediction_with_less_variance(over):
    process = SHORT
    closed = ClosedFormTarget(process, DENOISER if over == "set" else None)
    both = []
    for seed in range(300):
        x0 = sources(8, seed=1000 + seed)
        extra = {"reference": sources(8, seed=5000 + seed)} if over == "batch and more" else {}
        pair = (
            NoisePrediction(process).draw(x0, seeded(seed)),
            closed.draw(x0, seeded(seed), **extra),
        )
        both.append(torch.stack([gradients(each, 0.5 * each.x_t).mean(0) for each in pair]))
    usual, conditional = torch.stack(both).flatten(2).unbind(1)
    assert z_score(usual - conditional) < Z_LIMIT
    squares = [(each - each.mean(0)).square().sum(1) for each in (usual, conditional)]
    less = squares[0] - squares[1]
    assert float(less.mean()) > 0 and z_score(less) > Z_LIMIT


def test_reference_batch_without_the_source_is_biased():
    process, biased, right = SHORT, [], []
    for seed in range(200):
        x0 = sources(4, seed=1000 + seed)
        usual = NoisePrediction(process).draw(x0, seeded(seed))
        alpha, sigma = process.alpha(usual.t), process.sigma(usual.t)
        batch = EmpiricalDenoiser(TrainingSet(x0))
        for kept, exclude in ((right, None), (biased, torch.arange(4))):
            mean = batch.posterior_mean(usual.x_t, alpha, sigma, exclude=exclude)
            epsilon = (usual.x_t - alpha[:, None] * mean) / sigma[:, None]
            difference = (usual.target - epsilon)[..., None] * features(usual.x_t)
            kept.append(difference.mean(0))
    assert z_score(torch.stack(right)) < Z_LIMIT
    assert z_score(torch.stack(biased)) > Z_LIMIT


def test_closed_form_stays_within_the_class():
    labels = torch.tensor([0, 1, 0, 1, -1])
    x0 = DATA_SET[:]
    drawn = ClosedFormTarget(SHORT, target="x0").draw(x0, seeded(), class_labels=labels)
    alpha, sigma = SHORT.alpha(drawn.t), SHORT.sigma(drawn.t)
    for row, label in enumerate(labels.tolist()):
        members = x0 if label == -1 else x0[labels == label]
        offsets = drawn.x_t[row] - alpha[row] * members
        w = torch.softmax(-offsets.square().sum(1) / (2 * sigma[row].square()), 0)
        torch.testing.assert_close(drawn.target[row], w @ members, rtol=1e-9, atol=1e-9)
    more = {"reference": 2 * x0, "reference_labels": torch.tensor([0, 1, 1, -1, -1])}
    drawn = ClosedFormTarget(SHORT, target="x0").draw(x0, seeded(), class_labels=labels, **more)
    members = torch.cat([x0[[0, 2]], 2 * x0[:1]])
    offsets = drawn.x_t[0] - alpha[0] * members
    w = torch.softmax(-offsets.square().sum(1) / (2 * sigma[0].square()), 0)
    torch.testing.assert_close(drawn.target[0], w @ members, rtol=1e-9, atol=1e-9)
    none = torch.full((5,), -1)
    unlabelled = ClosedFormTarget(SHORT).draw(x0, seeded(), class_labels=none)
    assert torch.equal(unlabelled.target, ClosedFormTarget(SHORT).draw(x0, seeded()).target)


def test_labels_reach_the_network():
    seen = []

    def network(x_t, t, class_labels):
        seen.append(class_labels)
        return x_t

    labels = torch.tensor([0, 1])
    for objective in (NoisePrediction(DDPM()), ForwardTime(DDPM()), ClosedFormTarget(DDPM())):
        objective(network, sources(2), seeded(), class_labels=labels)
    assert len(seen) == 3 and all(given is labels for given in seen)


@pytest.mark.parametrize("target", PARAMETERIZATIONS)
@pytest.mark.parametrize("process", PROCESSES)
def test_target_variance_is_the_trace_of_the_targets_covariance(process, target):
    process = PROCESSES[process]()
    t = 0.3 if process.time_range[1] <= 1 else 2
    objective = ClosedFormTarget(process, DENOISER, target)
    found = objective.target_variance(sources(32), t, seeded(11))
    alpha, sigma = process.alpha(t).expand(32), process.sigma(t).expand(32)
    noise = torch.randn(32, *SHAPE, generator=seeded(11), dtype=torch.float64)
    x_t = alpha[:, None] * sources(32) + sigma[:, None] * noise
    _, trace = mean_and_trace(target, x_t, alpha, sigma)
    torch.testing.assert_close(found, trace, rtol=1e-8, atol=1e-12)


def test_target_variance_of_noise_is_the_irreducible_loss():
    x0 = sources(5000)
    found = ClosedFormTarget(SHORT, DENOISER).target_variance(x0, 4, seeded(12))
    noise = torch.randn(x0.shape, generator=seeded(12), dtype=torch.float64)
    x_t = SHORT.alpha(4) * x0 + SHORT.sigma(4) * noise
    optimum = DENOISER.predictor(SHORT, "epsilon")(x_t, 4)
    assert z_score(found - (3 - optimum.square().sum(1))) < Z_LIMIT
    # Over a batch, which says more than the set: less is left to the single sample.
    batches = [ClosedFormTarget(SHORT).target_variance(x0[i : i + 4], 4) for i in range(0, 400, 4)]
    assert float(torch.cat(batches).mean()) < float(found.mean())


def test_target_variance_at_pure_noise_is_that_of_the_set():
    ends = DDPM(torch.tensor([0.1, 1.0]))
    spread = DATA_SET[:].var(0, unbiased=False).sum()
    for target, expected in (("x0", spread), ("epsilon", 0 * spread), ("v", spread)):
        found = ClosedFormTarget(ends, DENOISER, target).target_variance(sources(2), 1)
        torch.testing.assert_close(found, expected.expand(2), rtol=1e-9, atol=0)


# Networks' outputs


def test_predictions_are_unwrapped_and_their_shape_checked():
    x, t = torch.ones(2, 3), torch.zeros(2)
    for wrapped in (x, (x, 1), [x], SimpleNamespace(sample=x)):
        assert prediction(lambda x_t, t, wrapped=wrapped: wrapped, x, t) is x
    with pytest.raises(ValueError, match=r"shape of x_t, \(2, 3\), got \(2, 6\)"):
        prediction(lambda x_t, t: torch.ones(2, 6), x, t)
    for bad in (None, (), {"sample": x}, SimpleNamespace(sample=None), ("x", x)):
        with pytest.raises(TypeError, match="network must return a tensor"):
            unwrapped(bad)


# Bad input


def no_time(t, generator):
    return t


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoisePrediction(DDPM(), "noise"), "target must be one of .*, got 'noise'"),
        (lambda: NoisePrediction(DDPM(), times="often"), "times must be one of"),
        (lambda: NoisePrediction(EDM(), times="uniform"), "needs a process with a last time"),
        (lambda: NoisePrediction(DDPM(), weighting="snr"), "weighting must be one of"),
        (lambda: NoisePrediction(DDPM(), weighting=3), "weighting must be a name or a callable"),
        (lambda: NoisePrediction(DDPM(), times=3), "times must be a name or a callable"),
        (lambda: ForwardTime(DDPM(), "random"), "gap must be one of previous, uniform"),
        (lambda: ForwardTime(DDPM(), 3), "gap must be a name, a law or a callable"),
        (lambda: ForwardTime(EDM(), "previous"), "needs a process in discrete time"),
        (lambda: ForwardTime(EDM(), TabulatedGap(lambda t: [1])), "process in discrete time"),
        (lambda: ForwardTime(DDPM(), weighting="snr"), "weighting must be one of unit, noise"),
        (lambda: ForwardTime(DDPM(), weighting=1), "weighting must be a name or a callable"),
        (lambda: ClosedFormTarget(DDPM(), DATA_SET), "denoiser must be an EmpiricalDenoiser"),
        (lambda: LogNormalRatio(0.0, 0.0), "std positive"),
    ],
)
def test_bad_choices_are_refused_when_made(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda x0: NoisePrediction(DDPM()).draw(x0.half()), "x0 must be a float32 or float64"),
        (lambda x0: NoisePrediction(DDPM()).draw(x0[0]), r"x0 must be \(B, \*S\)"),
        (lambda x0: NoisePrediction(DDPM()).draw(x0[:0]), r"x0 must be \(B, \*S\)"),
        (
            lambda x0: NoisePrediction(DDPM(), times=lambda *_: torch.ones(3)).draw(x0),
            r"times must give shape \(5,\), got \(3,\)",
        ),
        (
            lambda x0: NoisePrediction(DDPM(), times=lambda *_: torch.full((5,), 1000)).draw(x0),
            r"t must be in \[0, 999\], got 1000",
        ),
        (
            lambda x0: NoisePrediction(DDPM(), weighting=lambda t: -t.double() - 1).draw(x0),
            "weighting must give finite weights of at least 0, got -",
        ),
        (
            lambda x0: NoisePrediction(DDPM(), weighting=lambda t: 1.0).draw(x0),
            "weighting must give shape",
        ),
        (
            lambda x0: NoisePrediction(
                DDPM(torch.tensor([0.1, 1.0])),
                weighting="edm",
                times=lambda *_: torch.ones(5).long(),
            ).draw(x0),
            "weighting must give finite weights .* at t = 1 for target 'epsilon'",
        ),
        (lambda x0: ForwardTime(DDPM(), no_time).draw(x0), r"gap must give times in \[-1, t\)"),
        (
            lambda x0: ForwardTime(DDPM(), lambda t, g: t - 2 - t).draw(x0),
            r"gap must give times in \[-1, t\), got -2",
        ),
        (lambda x0: ForwardTime(DDPM(), lambda t, g: t / 2).draw(x0), "gap must give integers"),
        (lambda x0: ForwardTime(DDPM(), lambda t, g: t[:2]).draw(x0), "gap must give shape"),
        (
            lambda x0: ForwardTime(DDPM(), TabulatedGap(lambda t: [1.0])).draw(x0),
            r"weights\(\d+\) must be",
        ),
        (
            lambda x0: ForwardTime(DDPM(), TabulatedGap(lambda t: [0.0] * (t + 1))).draw(x0),
            r"weights\(\d+\) must be >= 0 with a positive",
        ),
        (
            lambda x0: ForwardTime(DDPM(), weighting=lambda t, s: -1.0 * t - 1).draw(x0),
            "weighting must give finite weights",
        ),
        (
            lambda x0: ClosedFormTarget(DDPM(), DENOISER).draw(x0, reference=x0),
            "reference must be None beside a denoiser",
        ),
        (
            lambda x0: ClosedFormTarget(DDPM()).draw(x0, reference=torch.ones(2, 4)),
            r"reference must have samples of shape \(3,\), got \(4,\)",
        ),
        (
            lambda x0: ClosedFormTarget(DDPM()).draw(
                x0, class_labels=torch.zeros(5).long(), reference=x0
            ),
            "must be given together",
        ),
        (
            lambda x0: NoisePrediction(DDPM())(lambda x_t, t: x_t[:, :2], x0),
            r"network must return the shape of x_t, \(5, 3\), got \(5, 2\)",
        ),
        (
            lambda x0: NoisePrediction(DDPM()).draw(x0).losses(x0[:2]),
            "prediction must have the shape of the target",
        ),
    ],
)
def test_bad_draws_are_refused_with_what_was_needed(draw, message):
    with pytest.raises((ValueError, TypeError), match=message):
        draw(points())


def test_every_named_law_serves_every_process_that_can_have_it():
    for process in PROCESSES.values():
        for name in TIME_LAWS:
            if (process, name) != (EDM, "uniform"):
                drawn = NoisePrediction(process(), times=name).draw(sources(4), seeded())
                assert isinstance(drawn, Regression) and bool(drawn.target.isfinite().all())
