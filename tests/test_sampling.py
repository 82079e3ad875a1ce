from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from diffgen import schedules
from diffgen.denoiser import EmpiricalDenoiser
from diffgen.processes import DDPM
from diffgen.sampling import SAMPLERS, Step, sample
from diffgen.training_set import TrainingSet

U = 2.0**-53
DETERMINISTIC = ["ddim", "euler", "heun"]
MEAN, DEVIATION = 0.7, 1.3


def gaussian(x, sigma):
    """The exact denoiser of data N(MEAN, DEVIATION^2)."""
    return MEAN + DEVIATION**2 / (DEVIATION**2 + sigma**2) * (x - MEAN)


def gaussian_flow(x, sigma, sigma_end):
    """Where the probability flow ODE of that data takes x from sigma to sigma_end.

    dy/dsigma = sigma (y - mean) / (deviation^2 + sigma^2), so y - mean grows as the root of the
    total variance.
    """
    scale = math.sqrt((DEVIATION**2 + sigma_end**2) / (DEVIATION**2 + sigma**2))
    return MEAN + scale * (x - MEAN)


def training_points(n=20, features=6):
    return torch.randn(n, features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def empirical(data):
    """The empirical-optimal denoiser by its definition: float64, differences, full matrix."""

    def denoiser(x, sigma):
        square = (x.double()[:, None] - data[None]).square().sum(-1)  # (B, N)
        return ((-square / (2 * sigma**2)).softmax(1) @ data).to(x.dtype)

    return denoiser


def native_empirical(data):
    """The package's own denoiser over the same points."""
    return EmpiricalDenoiser(TrainingSet(data))


@pytest.fixture(params=[empirical, native_empirical], ids=["definition", "package"])
def make_denoiser(request):
    return request.param


def start(shape, sigma, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return sigma * torch.randn(shape, generator=generator, dtype=torch.float64)


def unused(*_):
    raise AssertionError("must not be called")


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("euler", 1), ("heun", 2)])
@pytest.mark.parametrize(
    "spacing", [schedules.karras, lambda n, *ends: schedules.exponential(n, *ends)], ids=["k", "e"]
)
def test_sampler_converges_with_its_order(sampler, order, spacing):
    x_init = start((16,), 10.0)
    exact = gaussian_flow(x_init, 10.0, 0.05)

    def error(n):
        sigmas = spacing(n + 1, 0.05, 10.0)[:-1]  # n steps that stop before 0
        x = sample(gaussian, (16,), sigmas, sampler=sampler, x_init=x_init)
        return float((x - exact).abs().max())

    # error(n) = c n^-order (1 + O(1/n)): doubling n from 200 shows the order to a few hundredths.
    measured = math.log2(error(200) / error(400))
    assert measured == pytest.approx(order, abs=0.1)
    assert error(400) < 0.1


def test_ddim_is_exact_in_one_step_where_paths_are_straight():
    # One training point: the path is a line in (sigma, y), whatever the step.
    point = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    x_init = start((1, 2), 50.0)
    x = sample(lambda x, sigma: point, (1, 2), [50.0, 2.0], x_init=x_init)
    expected = point + 2.0 / 50.0 * (x_init - point)
    torch.testing.assert_close(x, expected, rtol=0, atol=4 * U * 50)


def test_euler_takes_the_steps_of_ddim():
    sigmas = schedules.karras(30)
    x_init = start((8, 6), 80.0)
    denoiser = empirical(training_points())
    paths = [
        sample(denoiser, (8, 6), sigmas, sampler=name, x_init=x_init, trajectory=True)
        for name in ("ddim", "euler")
    ]
    # The state starts near 80 * 3 and each of 30 steps rounds it a few times; the denoiser turns
    # a difference h of states into at most h |x_i - x_j|^2 / sigma^2, large only where the weights
    # are undecided, at sigma of the order of the distances.
    torch.testing.assert_close(paths[0], paths[1], rtol=0, atol=1e-9)
    assert not torch.equal(paths[0][1:-1], paths[1][1:-1])


def test_heun_ends_with_a_step_of_euler():
    x_init = start((5,), 3.0)
    by_heun = sample(gaussian, (5,), [3.0, 0.0], sampler="heun", x_init=x_init)
    assert torch.equal(by_heun, gaussian(x_init, torch.tensor(3.0, dtype=torch.float64)))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_denoiser_is_never_called_at_zero_and_as_often_as_the_order_needs(sampler):
    seen = []

    def denoiser(x, sigma):
        seen.append(float(sigma))
        assert sigma.ndim == 0 and sigma.dtype == torch.float64 and x.dtype == torch.float32
        return gaussian(x, sigma)

    sigmas = schedules.karras(7)
    sample(denoiser, (2, 3), sigmas, sampler=sampler)
    levels = sigmas[:-1].tolist()
    expected = levels
    if sampler == "heun":
        expected = [levels[0]] + [level for level in levels[1:] for _ in range(2)]
    assert seen == expected


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_are_the_last_denoised_state_exactly(sampler, dtype, make_denoiser):
    # x_0 = D(y_1; sigma_1): the step to 0 returns what the denoiser said, to the bit.
    said = []
    denoiser = make_denoiser(training_points())

    def listening(x, sigma):
        said.append(denoiser(x, sigma))
        return said[-1]

    generator = torch.Generator().manual_seed(0)
    x = sample(
        listening, (4, 6), schedules.karras(10), sampler=sampler, generator=generator, dtype=dtype
    )
    assert x.dtype == dtype
    assert torch.equal(x, said[-1])


def test_samples_are_the_denoised_state_before(make_denoiser):
    denoiser = make_denoiser(training_points())
    sigmas = schedules.karras(10)
    path = sample(denoiser, (4, 6), sigmas, x_init=start((4, 6), 80.0), trajectory=True)
    # In float64 the path holds the very states that the denoiser saw.
    assert torch.equal(path[-1], denoiser(path[-2], sigmas[-2]))


def test_ddim_unrolls_into_noise_and_training_points(make_denoiser):
    # y_k = (sigma_k / sigma_0) y_0 + sigma_k sum_{j<k} (1/sigma_{j+1} - 1/sigma_j) D(y_j; sigma_j)
    data = training_points()
    denoiser = make_denoiser(data)
    sigmas = schedules.karras(25, sigma_min=0.01)
    path = sample(denoiser, (4, 6), sigmas, x_init=start((4, 6), 80.0), trajectory=True)
    denoised = torch.stack(
        [denoiser(y, sigma) for y, sigma in zip(path[:-1], sigmas[:-1], strict=True)]
    )
    levels = sigmas[:-1]
    for k in range(len(levels)):
        shares = levels[k] * (1 / levels[1 : k + 1] - 1 / levels[:k])  # conic: all positive
        assert bool((shares > 0).all())
        unrolled = levels[k] / levels[0] * path[0]
        unrolled = unrolled + torch.einsum("j,jbd->bd", shares, denoised[:k])
        # Both sides round each of k terms a few times, every term at most |y_0| or max |x_i|.
        size = levels[k] / levels[0] * path[0].abs().max() + data.abs().max()
        torch.testing.assert_close(path[k], unrolled, rtol=0, atol=float(8 * (k + 1) * U * size))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_of_the_optimum_memorises(sampler, make_denoiser):
    data = training_points(n=40, features=16)
    denoiser = make_denoiser(data)
    generator = torch.Generator().manual_seed(0)
    x = sample(denoiser, (64, 16), schedules.karras(20), sampler=sampler, generator=generator)
    nearest = torch.cdist(x.double(), data).sort(1).values
    ratio = nearest[:, 0] / nearest[:, 1]
    assert bool((ratio < 1 / 3).all())
    # At sigma = 0.002 only a query within a few sigma^2 of a bisector is undecided; the rest are
    # training points to the rounding of float32.
    assert float((nearest[:, 0] < 1e-5).double().mean()) > 0.95
    reached = torch.cdist(x.double(), data).argmin(1).unique()
    assert len(reached) > 10


def step_of(sampler, x, sigma, sigma_next, denoised, noise, eta=0.0):
    return SAMPLERS[sampler].step(
        Step(x, sigma, sigma_next, eta, lambda *_: denoised, lambda: noise)
    )


@pytest.mark.parametrize("t", [1, 2, 10, 500, 999])
def test_ddpm_step_is_the_posterior_of_the_chain(t):
    # q(x_{t-1} | x_t, x_0) of Ho et al. (2020), equations 6 and 7, in x coordinates.
    process = DDPM()
    alpha_bar, alpha_bar_before = process.alpha_bar[t], process.alpha_bar[t - 1]
    beta = process.betas[t]
    x0, noise, x_t = torch.randn(
        3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(t)
    )
    mean = (
        alpha_bar_before.sqrt() * beta / (1 - alpha_bar) * x0
        + (1 - beta).sqrt() * (1 - alpha_bar_before) / (1 - alpha_bar) * x_t
    )
    variance = (1 - alpha_bar_before) / (1 - alpha_bar) * beta
    expected = mean + variance.sqrt() * noise
    ratios = [float(process.ratio(time)) for time in (t, t - 1)]
    y = step_of("ddpm", x_t / process.alpha(t), *ratios, x0, noise)
    # 1 - alpha_bar loses the digits of alpha_bar near 1, up to 1e4 u; the samplers' form does not.
    torch.testing.assert_close(y * process.alpha(t - 1), expected, rtol=0, atol=4e4 * U)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("times", [(999, 979), (500, 100), (20, 0)])
def test_ddim_step_is_the_formula_of_the_paper(eta, times):
    # Song, Meng, Ermon (2021), equations 12 and 16, in x coordinates, with skipped steps.
    process = DDPM()
    t, s = times
    alpha_bar, alpha_bar_next = process.alpha_bar[t], process.alpha_bar[s]
    x0, noise, x_t = torch.randn(
        3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(t)
    )
    epsilon = (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
    spread = (
        eta
        * ((1 - alpha_bar_next) / (1 - alpha_bar)).sqrt()
        * (1 - alpha_bar / alpha_bar_next).sqrt()
    )
    expected = (
        alpha_bar_next.sqrt() * x0
        + (1 - alpha_bar_next - spread**2).sqrt() * epsilon
        + spread * noise
    )
    ratios = [float(process.ratio(time)) for time in times]
    y = step_of("ddim", x_t / process.alpha(t), *ratios, x0, noise, eta)
    # As above; the root of 1 - alpha_bar - spread^2 cancels once more.
    torch.testing.assert_close(y * process.alpha(s), expected, rtol=0, atol=1e6 * U)


def test_ddim_at_eta_one_takes_the_step_of_ddpm():
    x0, noise, x = torch.randn(3, 4, 5, dtype=torch.float64)
    for sigma, sigma_next in ((80.0, 60.0), (1.0, 0.01), (0.5, 0.0)):
        by_ddim = step_of("ddim", x, sigma, sigma_next, x0, noise, eta=1.0)
        by_ddpm = step_of("ddpm", x, sigma, sigma_next, x0, noise)
        torch.testing.assert_close(by_ddim, by_ddpm, rtol=0, atol=32 * U)


def chain_moments(sigmas, eta):
    """Mean and variance that a sampler's chain has at the end, on the Gaussian data.

    There a step is linear, y - mean -> change (y - mean) + spread z; the start is N(0, sigma_0^2).
    """
    bias, variance = -MEAN, float(sigmas[0]) ** 2
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        spread = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        kept = math.sqrt(sigma_next**2 - spread**2) / sigma
        shrink = DEVIATION**2 / (DEVIATION**2 + sigma**2)
        change = kept + (1 - kept) * shrink
        bias, variance = change * bias, change**2 * variance + spread**2
    return MEAN + bias, variance


@pytest.mark.parametrize(
    ("sampler", "eta"), [("ddpm", 0.0), ("ddim", 1.0), ("ddim", 0.5), ("ddim", 0.0)]
)
def test_stochastic_samplers_have_the_mean_and_variance_of_their_chain(sampler, eta):
    sigmas = schedules.karras(60, 0.01, 40.0)
    count = 40_000
    mean, variance = chain_moments(sigmas, 1.0 if sampler == "ddpm" else eta)
    x = sample(
        gaussian,
        (count,),
        sigmas,
        sampler=sampler,
        eta=eta,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )
    # Five standard errors: deviation / sqrt(n) of the mean, variance sqrt(2 / n) of the variance.
    assert float(x.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / count))
    assert float(x.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / count))


def test_ancestral_sampling_reaches_the_data_as_its_steps_shrink():
    # 2,000 steps: the chain is within 0.5% of the data's variance (first order: 13% at 60), and
    # 20,000 samples show it to 5 sqrt(2 / n) = 5%. Of the mean that the start lacks, (s / 40)^2 is
    # still lacking at the end, 0.1%.
    sigmas = schedules.karras(2000, 0.01, 40.0)
    assert chain_moments(sigmas, 1.0)[1] == pytest.approx(DEVIATION**2, rel=5e-3)
    x = sample(
        gaussian,
        (20_000,),
        sigmas,
        sampler="ddpm",
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )
    assert float(x.var()) == pytest.approx(DEVIATION**2, rel=0.05)
    assert float(x.mean()) == pytest.approx(MEAN, abs=5 * DEVIATION / math.sqrt(20_000))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_generator_gives_the_same_samples(sampler):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return sample(gaussian, (3, 2), schedules.karras(5), sampler=sampler, generator=generator)

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_no_noise_is_drawn_that_is_not_used():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    x_init = start((2,), 5.0)
    for sampler in DETERMINISTIC:
        sample(gaussian, (2,), [5.0, 1.0, 0.0], sampler=sampler, generator=generator, x_init=x_init)
    sample(gaussian, (2,), [5.0, 0.0], sampler="ddpm", generator=generator, x_init=x_init)
    assert torch.equal(generator.get_state(), before)


def test_start_is_noise_of_the_first_level_or_what_is_given():
    generator = torch.Generator().manual_seed(3)
    path = sample(
        gaussian, (4, 2), [20.0, 1.0], generator=generator, trajectory=True, dtype=torch.float64
    )
    assert torch.equal(path[0], start((4, 2), 20.0, seed=3))
    x_init = start((4, 2), 20.0, seed=4)
    given = sample(gaussian, (4, 2), [20.0, 1.0], x_init=x_init, trajectory=True)
    assert torch.equal(given[0], x_init)


def test_trajectory_holds_the_state_at_every_level():
    sigmas = schedules.karras(6)
    x_init = start((3, 2), 80.0)
    path = sample(gaussian, (3, 2), sigmas, x_init=x_init, trajectory=True)
    assert path.shape == (7, 3, 2)
    for k in range(1, 7):
        alone = sample(gaussian, (3, 2), sigmas[: k + 1], x_init=x_init)
        assert torch.equal(path[k], alone)


def test_state_is_float64_behind_a_float32_denoiser():
    # The paths differ by what the denoiser rounds, not by a float32 state: with the same float32
    # answers as the denoiser gives to the rounded state, float64 arithmetic is reproduced.
    sigmas = schedules.karras(50)
    y = start((200,), 80.0)
    x = sample(gaussian, (200,), sigmas, x_init=y, dtype=torch.float32)
    for sigma, sigma_next in pairwise(sigmas):
        denoised = gaussian(y.float(), sigma).double()
        y = torch.lerp(denoised, y, float(sigma_next) / float(sigma))
    assert torch.equal(x, y.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_denoiser_sees_and_the_caller_gets_one_type(dtype):
    def denoiser(x, sigma):
        assert x.dtype == dtype
        return gaussian(x, sigma)

    x_init = start((4, 2), 5.0)
    assert sample(denoiser, (4, 2), [5.0, 1.0, 0.0], dtype=dtype).dtype == dtype
    assert sample(denoiser, (4, 2), [5.0, 1.0], x_init=x_init.to(dtype)).dtype == dtype
    path = sample(denoiser, (4, 2), [5.0, 1.0], x_init=x_init, dtype=dtype, trajectory=True)
    assert path.dtype == dtype


def test_class_labels_are_passed_on_only_where_given():
    def unconditional(x, sigma):
        return gaussian(x, sigma)

    def conditional(x, sigma, class_labels):
        return class_labels[:, None].to(x.dtype).expand_as(x)

    sample(unconditional, (3, 2), [5.0, 0.0])
    labels = torch.tensor([2, 0, 1])
    x = sample(conditional, (3, 2), [5.0, 1.0, 0.0], class_labels=labels)
    assert x[:, 0].tolist() == [2.0, 0.0, 1.0]
    with pytest.raises(TypeError):
        sample(unconditional, (3, 2), [5.0, 0.0], class_labels=labels)


def test_no_gradient_is_recorded_unless_the_start_asks():
    weight = torch.tensor(2.0, requires_grad=True)

    def denoiser(x, sigma):
        return weight * gaussian(x, sigma)

    assert not sample(denoiser, (2,), [5.0, 1.0, 0.0]).requires_grad
    x_init = start((2,), 5.0)
    assert not sample(denoiser, (2,), [5.0, 1.0, 0.0], x_init=x_init).requires_grad
    x_init.requires_grad_()
    with torch.no_grad():
        assert not sample(denoiser, (2,), [5.0, 1.0], x_init=x_init).requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_samples_are_differentiable_in_the_start(sampler):
    x_init = start((3,), 5.0).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: sample(gaussian, (3,), [5.0, 1.0, 0.3], sampler=sampler, x_init=x), x_init
    )


def test_progress_shows_level_calls_and_size(capsys):
    sample(gaussian, (2,), [5.0, 1.0, 0.0], sampler="heun", progress=True)
    shown = capsys.readouterr().err
    assert "heun: 100%" in shown and "2/2" in shown
    assert "sigma=1" in shown and "calls=3" in shown and "mean_square=" in shown


def test_progress_changes_no_number():
    x_init = start((2,), 5.0)
    plain = sample(gaussian, (2,), [5.0, 1.0, 0.0], x_init=x_init)
    assert torch.equal(plain, sample(gaussian, (2,), [5.0, 1.0, 0.0], x_init=x_init, progress=True))


def test_an_empty_batch_has_an_empty_result():
    assert sample(gaussian, (0, 3), [5.0, 1.0, 0.0]).shape == (0, 3)
    path = sample(gaussian, (0, 3), [5.0, 1.0, 0.0], sampler="ddpm", trajectory=True)
    assert path.shape == (3, 0, 3)


@pytest.mark.parametrize("sigmas", [[5.0, 1.0], (5, 1), torch.tensor([5.0, 1.0])])
def test_levels_may_be_a_list_or_a_tensor(sigmas):
    x_init = start((2,), 5.0)
    expected = sample(gaussian, (2,), schedules.linear(2, 1.0, 5.0)[:-1], x_init=x_init)
    assert torch.equal(sample(gaussian, (2,), sigmas, x_init=x_init), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigmas": [1.0]}, r"sigmas must be \(n \+ 1,\) with n >= 1, got shape \(1,\)"),
        ({"sigmas": torch.ones(2, 2)}, r"got shape \(2, 2\)"),
        ({"sigmas": [1.0, 2.0]}, "sigmas must decrease strictly, got 2 after 1 at index 1"),
        ({"sigmas": [2.0, 1.0, 1.0]}, "sigmas must decrease strictly, got 1 after 1 at index 2"),
        ({"sigmas": [1.0, -1.0]}, "sigmas must be finite and at least 0, got -1 at index 1"),
        ({"sigmas": [math.inf, 1.0]}, "got inf at index 0"),
        ({"sigmas": [1.0, math.nan]}, "got nan at index 1"),
        ({"sampler": "dpm"}, "sampler must be one of ddim, ddpm, euler, heun, got 'dpm'"),
        ({"eta": -0.1}, r"eta must be in \[0, 1\], got -0.1"),
        ({"eta": math.nan}, r"eta must be in \[0, 1\], got nan"),
        ({"eta": 0.5, "sampler": "heun"}, "eta must be 0 for sampler 'heun', got 0.5"),
        ({"eta": 1.0, "sampler": "ddpm"}, "eta must be 0 for sampler 'ddpm', got 1"),
        ({"x_init": torch.zeros(3, 2)}, r"x_init must have shape \(2, 3\), got \(3, 2\)"),
        ({"class_labels": torch.zeros(3)}, "class_labels must have 2 rows as shape has, got shape"),
        ({"dtype": torch.int64}, "dtype must be floating point, got torch.int64"),
        ({"x_init": torch.zeros(2, 3).long()}, "dtype must be floating point, got torch.int64"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(unused, (2, 3), **{"sigmas": [5.0, 1.0, 0.0], **arguments})


def test_a_denoiser_that_returns_something_else_is_named():
    with pytest.raises(TypeError, match="denoiser must return a tensor, got tuple"):
        sample(lambda x, sigma: (x,), (2, 3), [5.0, 0.0])
    with pytest.raises(ValueError, match=r"denoiser must return the shape of x, \(2, 3\), got"):
        sample(lambda x, sigma: x[:1], (2, 3), [5.0, 0.0])
