"""Loss over time, the irreducible loss, and the gap of a network to its optimum."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from diffgen import EmpiricalDenoiser, TrainingSet, as_denoiser
from diffgen.generalization.over_noise.forward import (
    Draws,
    draw_points,
    error_scale,
    noised_points,
    time_grid,
)
from diffgen.generalization.over_noise.gap import denoiser_gap
from diffgen.generalization.over_noise.gap_table import gap_table
from diffgen.generalization.over_noise.irreducible import irreducible_loss
from diffgen.generalization.over_noise.loss_by_time import loss_by_time
from diffgen.generalization.statistics.bootstrap import bootstrap_interval
from diffgen.generalization.statistics.standard_errors import Z_LIMIT, standard_error
from diffgen.parameterizations import PARAMETERIZATIONS
from diffgen.processes import DDPM, EDM, RectifiedFlow
from diffgen.sampling import sample
from diffgen.schedules import from_process

pytestmark = pytest.mark.usefixtures("one_thread")

TIMES = {DDPM: [20, 150, 400, 800], EDM: [0.05, 0.5, 2.0], RectifiedFlow: [0.1, 0.5, 0.9]}


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rows(count: int, features: int = 5, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, features, generator=_seeded(seed))


@pytest.fixture
def denoiser() -> EmpiricalDenoiser:
    return EmpiricalDenoiser(TrainingSet(_rows(60)))


def _crooked(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.7 * torch.tanh(x_t + 0.2) + 0.1


@pytest.mark.parametrize("target", list(PARAMETERIZATIONS))
@pytest.mark.parametrize("process", [DDPM(), EDM(), RectifiedFlow()], ids=repr)
def test_three_forms_of_the_irreducible_loss_agree(denoiser, process, target):
    found = irreducible_loss(
        denoiser,
        process,
        TIMES[type(process)],
        target=target,
        num_samples=2000,
        generator=_seeded(),
    )
    assert found.agrees and found.z_score.isfinite().all()
    for one in (found.squared_error, found.from_norms):
        z = (one - found.conditional).mean(1) / standard_error(one - found.conditional)
        assert z.abs().max() < Z_LIMIT
    assert found.settings["target"] == target


def test_irreducible_loss_of_two_points_is_an_integral():
    # For -1 and 1 the posterior mean is tanh(x / sigma^2), and L* = E (1 - tanh^2) over x | x0 = 1.
    denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
    sigma = 0.8
    x = torch.linspace(1 - 12 * sigma, 1 + 12 * sigma, 20_001, dtype=torch.float64)
    density = (-((x - 1) ** 2) / (2 * sigma**2)).exp() / (sigma * math.sqrt(2 * math.pi))
    want = torch.trapezoid(density * (1 - (x / sigma**2).tanh() ** 2), x)
    found = irreducible_loss(
        denoiser, EDM(), [sigma], target="x0", num_samples=20_000, generator=_seeded()
    )
    z = (found.mean - want) / found.standard_error
    assert abs(float(z)) < Z_LIMIT
    assert found.interval[0] < found.mean < found.interval[1]


def test_irreducible_loss_of_weighted_set_draws_by_weight():
    # With almost all weight on one point nothing is left to guess; with equal weights much is.
    rows = torch.tensor([[-1.0], [1.0]])
    light, heavy = (
        irreducible_loss(
            EmpiricalDenoiser(TrainingSet(rows, weights=weights)),
            EDM(),
            [1.0],
            target="x0",
            num_samples=4000,
            generator=_seeded(),
        )
        for weights in ([1.0, 1.0], [1.0, 1e9])
    )
    assert heavy.agrees and light.agrees
    assert heavy.mean < 1e-4 < light.mean


def test_wrong_optimum_is_noticed(denoiser, monkeypatch):
    right = denoiser.posterior
    monkeypatch.setattr(denoiser, "posterior", lambda x, sigma: right(x, 1.5 * sigma))
    found = irreducible_loss(
        denoiser, EDM(), [0.3, 0.6, 1.2], num_samples=2000, generator=_seeded()
    )
    assert not found.agrees


@pytest.mark.parametrize("target", list(PARAMETERIZATIONS))
@pytest.mark.parametrize("process", [DDPM(), EDM(), RectifiedFlow()], ids=repr)
def test_gap_is_the_excess_loss_on_training_points(denoiser, process, target):
    found = denoiser_gap(
        _crooked,
        denoiser,
        process,
        TIMES[type(process)],
        target=target,
        num_samples=600,
        generator=_seeded(),
    )
    assert found.identity_holds and found.identity_z.isfinite().all()
    difference = found.train.gap - found.train.excess
    assert (difference.mean(1) / standard_error(difference)).abs().max() < Z_LIMIT
    assert (found.train.mean > 0).all()


def test_identity_does_not_hold_on_test_points(denoiser):
    # Points that the optimum does not know pull away from it: noticed as soon as they are passed
    # for training points.
    found = denoiser_gap(
        _crooked,
        denoiser,
        EDM(),
        [0.3, 0.6],
        target="x0",
        points=_rows(600, seed=2),
        test_points=_rows(600, seed=2),
        generator=_seeded(),
    )
    assert not found.identity_holds
    assert (found.test.gap - found.test.excess).mean(1).abs().min() > 0.1


def test_identity_has_the_spread_it_says(denoiser):
    # Over seeds the z-score is standard normal: of 60 its mean square is 1 with a standard error
    # of sqrt(2 / 60) for Gaussian tails.
    z = [
        denoiser_gap(
            _crooked,
            denoiser,
            EDM(),
            [0.7],
            target="x0",
            num_samples=60,
            num_bootstrap=1,
            generator=_seeded(seed),
        ).identity_z
        for seed in range(60)
    ]
    assert abs(float(torch.cat(z).square().mean()) - 1) < Z_LIMIT * math.sqrt(2 / 60)


def test_optimum_has_no_gap(denoiser):
    process = DDPM()
    found = denoiser_gap(
        denoiser.predictor(process),
        denoiser,
        process,
        TIMES[DDPM],
        test_points=_rows(20, seed=2),
        num_paths=8,
        path_steps=10,
        generator=_seeded(),
    )
    # The prediction is y* rounded to float32, of 5 elements below 100 in size.
    limit = 5 * (100 * 2.0**-24) ** 2
    for curve in (found.train, found.test, found.path):
        assert curve.gap.max() <= limit
    assert found.identity_holds
    assert found.times.tolist() == TIMES[DDPM]


def test_known_gap_is_found(denoiser):
    process = DDPM()
    optimum = denoiser.predictor(process)
    found = denoiser_gap(
        lambda x_t, t: optimum(x_t, t) + 0.5,
        denoiser,
        process,
        TIMES[DDPM],
        test_points=_rows(20, seed=2),
        num_paths=8,
        path_steps=10,
        generator=_seeded(),
    )
    # 5 elements that are 1/2 off; each prediction, below 100, was rounded to float32 twice.
    for curve in (found.train, found.test, found.path):
        assert (curve.gap - 1.25).abs().max() < 5 * 2 * 0.5 * 2 * 100 * 2.0**-24
    low, high = found.train.interval
    assert (high - low).max() < 1e-4 and (low - 1.25).abs().max() < 1e-4


def test_gap_changes_units_exactly(denoiser):
    # The same network measured through its x0, and through its epsilon in x0's units.
    process = RectifiedFlow()
    kind = PARAMETERIZATIONS["velocity"]

    def as_x0(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return kind.to_posterior_mean(_crooked(x_t, t).double(), x_t.double(), alpha, sigma)

    times = TIMES[RectifiedFlow]
    options = {"test_points": _rows(30, seed=2), "num_paths": 6, "path_steps": 5}
    velocity = denoiser_gap(
        _crooked, denoiser, process, times, target="velocity", generator=_seeded(), **options
    )
    x0 = denoiser_gap(as_x0, denoiser, process, times, target="x0", generator=_seeded(), **options)
    moved = velocity.in_units_of("x0")
    assert moved.target == "x0" and moved.settings["target"] == "x0"
    for name in ("train", "test"):
        one, other = getattr(moved, name), getattr(x0, name)
        # Times and predictions are float32: a few roundings of numbers below 100.
        torch.testing.assert_close(one.gap, other.gap, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.loss, other.loss, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.path.gap, x0.path.gap, rtol=1e-3, atol=1e-3)
    back = moved.in_units_of("velocity")
    torch.testing.assert_close(back.train.gap, velocity.train.gap, rtol=1e-14, atol=0)


def test_error_scale_is_the_slope_of_the_target():
    for kind in PARAMETERIZATIONS.values():
        x_t, mean = torch.randn(2, 4, dtype=torch.float64, generator=_seeded())
        moved = kind.from_posterior_mean(mean[:, None] + 1, x_t[:, None], 0.6, 0.8)
        slope = moved - kind.from_posterior_mean(mean[:, None], x_t[:, None], 0.6, 0.8)
        want = error_scale(kind, 0.6, 0.8)
        # Differences of float64 numbers of order 1.
        assert (slope - want).abs().max() < 64 * torch.finfo(torch.float64).eps


def test_path_is_that_of_the_sampler(denoiser):
    process = DDPM()
    seen = {}

    def network(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return denoiser.predictor(process)(x_t, t) + 0.1

    def recording(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.dtype == torch.int64 and t.shape == x_t.shape[:1]
        if len(x_t) == 4:
            seen[int(t[0])] = x_t.clone()
        return network(x_t, t)

    steps = 10
    t = int(process.times(steps)[4])
    denoiser_gap(
        recording,
        denoiser,
        process,
        [t],
        num_samples=2,
        num_paths=4,
        path_steps=steps,
        generator=_seeded(3),
    )
    draws = _seeded(3)
    draw_points(denoiser.training_set, 2, draws)
    torch.randn(2, 5, generator=draws, dtype=torch.float64)
    # The gap at training points draws the resamples of its interval before the paths begin.
    levels = from_process(process, steps)
    bootstrap_interval(torch.zeros(2, 1), generator=draws)
    states = sample(
        as_denoiser(network, process, nearest=True),
        (4, 5),
        levels,
        generator=draws,
        trajectory=True,
    )
    want = process.alpha(t) * states[4].double()
    assert torch.equal(seen[t], want.float())


def test_loss_by_time_is_the_squared_error():
    points = _rows(7)
    found = loss_by_time(_crooked, points, DDPM(), [100, 900], repeats=2, generator=_seeded())
    grid = time_grid(DDPM(), [100, 900], finite=True)
    want = torch.zeros(2, 7, dtype=torch.float64)
    for batch in noised_points(points, grid, Draws(_seeded(), 256, None, 2)):
        noise = (batch.x_t.double() - batch.alpha * batch.x0.double()) / batch.sigma
        squares = (_crooked(batch.x_t, batch.t).double() - noise).square().sum(1)
        want[batch.index] += squares.reshape(2, 7).mean(0)
    torch.testing.assert_close(found.losses, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.mean, want.mean(1), rtol=1e-12, atol=0)
    assert found.times.dtype == torch.int64 and (found.interval[0] < found.mean).all()


def test_losses_of_the_gap_are_those_of_the_network_and_of_the_optimum(denoiser):
    points, process = _rows(40, seed=2), DDPM()
    found = denoiser_gap(
        _crooked, denoiser, process, TIMES[DDPM], points=points, repeats=2, generator=_seeded()
    )
    for network, values in (
        (_crooked, found.train.loss),
        (denoiser.predictor(process), found.train.optimum_loss),
    ):
        want = loss_by_time(
            network, points, process, TIMES[DDPM], repeats=2, generator=_seeded()
        ).losses
        # The optimum as a network is rounded to float32, from elements below 100.
        torch.testing.assert_close(values, want, rtol=1e-5, atol=1e-6)


def test_noise_is_one_for_all_times_and_seeds_repeat():
    points = _rows(4)
    grid = time_grid(EDM(), [1.0, 2.0], finite=True)
    one, two = noised_points(points, grid, Draws(_seeded(), 256, None))
    # x_t is rounded to float32.
    torch.testing.assert_close(2 * (one.x_t - points), two.x_t - points, rtol=0, atol=1e-5)
    losses = [
        loss_by_time(_crooked, points, EDM(), [1.0], generator=_seeded(5)).losses for _ in range(2)
    ]
    assert torch.equal(*losses)


def test_small_batches_reach_every_point():
    small = denoiser_gap(
        _crooked,
        EmpiricalDenoiser(TrainingSet(_rows(30))),
        EDM(),
        [0.7],
        num_samples=None,
        batch_size=7,
        num_paths=5,
        test_points=_rows(9, seed=4),
        generator=_seeded(),
    )
    assert small.train.gap.shape == (1, 30) and small.path.gap.shape == (1, 5)
    assert (small.train.gap > 0).all() and (small.path.gap > 0).all()


@pytest.mark.parametrize(
    "wrap", [lambda y: SimpleNamespace(sample=y), lambda y: (y,)], ids=["sample", "tuple"]
)
def test_outputs_of_diffusers_are_unwrapped(denoiser, wrap):
    options = {"num_paths": 4, "path_steps": 4}
    plain, wrapped = (
        denoiser_gap(network, denoiser, DDPM(), [300], generator=_seeded(), **options)
        for network in (_crooked, lambda x_t, t: wrap(_crooked(x_t, t)))
    )
    assert torch.equal(plain.train.gap, wrapped.train.gap)
    assert torch.equal(plain.path.gap, wrapped.path.gap)


def test_table_measures_all_networks_on_the_same_draws(denoiser):
    optimum = denoiser.predictor(DDPM())
    networks = [
        (step, lambda x_t, t, off=off: optimum(x_t, t) + off)
        for step, off in ((10, 1.0), (20, 0.5), (30, 0.5))
    ]
    rows = gap_table(
        iter(networks), denoiser, DDPM(), [100, 500], test_points=_rows(9, seed=2), num_samples=20
    )
    assert [row.label for row in rows] == [10, 20, 30]
    assert rows[0].mean["train"] == pytest.approx(5.0, rel=1e-4)
    assert rows[1].mean["test"] == pytest.approx(1.25, rel=1e-4)
    assert torch.equal(rows[1].gap.train.loss, rows[2].gap.train.loss)
    assert set(rows[0].as_dict()) >= {"label", "train_gap", "test_interval", "identity_holds"}
    small = EmpiricalDenoiser(TrainingSet(_rows(5)))
    of_size = gap_table(
        [(5, _crooked), (60, _crooked)],
        {5: small, 60: denoiser}.__getitem__,
        DDPM(),
        [100],
        num_samples=5,
    )
    assert [row.num_points for row in of_size] == [5, 60]


def test_draws_follow_the_set():
    rows = torch.arange(10.0)[:, None]
    drawn = draw_points(TrainingSet(rows), None, _seeded())
    assert torch.equal(drawn.sort(0).values, rows)
    twice = draw_points(TrainingSet(rows), 25, _seeded())
    assert torch.bincount(twice[:, 0].long()).tolist().count(3) == 5
    weights = [0.0] * 9 + [2.0]
    only = draw_points(TrainingSet(rows, weights=weights), 50, _seeded())
    assert (only == 9).all()
    third = draw_points(TrainingSet(rows[:2], weights=[1.0, 2.0]), 9000, _seeded())
    share, error = float((third == 0).double().mean()), math.sqrt(2 / 9 / 9000)
    assert abs(share - 1 / 3) < Z_LIMIT * error


@pytest.mark.parametrize("measure", [irreducible_loss, denoiser_gap, loss_by_time])
def test_bad_arguments_are_refused(denoiser, measure):
    def call(process=None, times=(100,), **options):
        process = process or DDPM()
        if measure is irreducible_loss:
            return measure(denoiser, process, times, **options)
        if measure is denoiser_gap:
            return measure(_crooked, denoiser, process, times, **options)
        points = options.pop("points", _rows(4))
        return measure(_crooked, points, process, times, **options)

    for options, message in (
        ({"times": []}, r"times must be \(T,\) with T >= 1, got shape \(0,\)"),
        ({"times": [1.5]}, r"times must be whole numbers for DDPM.*got 1.5 at index 0"),
        ({"times": [1000]}, r"t must be in \[0, 999\], got 1000"),
        ({"process": EDM(), "times": [1.0, 0.0]}, "carry noise .*got 0 at index 1"),
        ({"target": "noise"}, "target must be one of x0, epsilon.*got 'noise'"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"points": _rows(1)}, "at least 2 samples for an interval, got 1"),
        ({"points": _rows(0)}, r"points must be \(M, \*S\) with M >= 1"),
        ({"points": torch.tensor([[0.0] * 5, [math.nan] * 5])}, "must be finite, got point 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**options)
    with pytest.raises(TypeError, match=r"points must be floating point, got torch.int64"):
        call(points=torch.zeros(3, 5, dtype=torch.int64))
    if measure is not loss_by_time:
        with pytest.raises(ValueError, match=r"leave some signal .*got 1 at index 0"):
            call(process=RectifiedFlow(), times=[1.0])
        with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
            call(num_samples=0)
        with pytest.raises(ValueError, match=r"x.* must have shape \(B, 5\)"):
            call(points=_rows(4, features=3))


def test_bad_networks_are_refused(denoiser):
    with pytest.raises(ValueError, match=r"must return the shape of x_t, \(\d+, 5\), got"):
        denoiser_gap(lambda x_t, t: x_t[:, :2], denoiser, DDPM(), [5])
    with pytest.raises(ValueError, match="finite numbers, got one that is not at t = 5"):
        denoiser_gap(lambda x_t, t: x_t / 0, denoiser, DDPM(), [5])
    with pytest.raises(ValueError, match=r"finite numbers, got one that is not at t = 0\.5"):
        loss_by_time(lambda x_t, t: x_t * math.nan, _rows(4), EDM(), [0.5])
    with pytest.raises(ValueError, match="num_paths must be at least 2 for an interval, got 1"):
        denoiser_gap(_crooked, denoiser, DDPM(), [5], num_paths=1)
    with pytest.raises(ValueError, match="num_paths must be at least 0, got -1"):
        denoiser_gap(_crooked, denoiser, DDPM(), [5], num_paths=-1)
    with pytest.raises(ValueError, match="path_steps must be at least 1, got 0"):
        denoiser_gap(_crooked, denoiser, DDPM(), [5], num_paths=2, path_steps=0)
    with pytest.raises(ValueError, match="at least one pair"):
        gap_table([], denoiser, DDPM(), [5])


def test_loss_at_pure_noise_needs_no_optimum():
    found = loss_by_time(lambda x, t: x, _rows(50), RectifiedFlow(), [1.0], generator=_seeded())
    # x_1 is the noise itself, rounded to float32.
    assert found.mean < 1e-12


def test_progress_sees_all_pieces(denoiser):
    seen = []

    def progress(work):
        for piece in work:
            seen.append(piece)
            yield piece

    irreducible_loss(denoiser, EDM(), [1.0, 2.0], num_samples=50, batch_size=20, progress=progress)
    assert len(seen) == 3 * 2
