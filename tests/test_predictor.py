from __future__ import annotations

import copy
import pickle

import pytest
import torch
from exact import exact, images, noised
from torch import nn

from diffgen.compositions import hybrid
from diffgen.denoiser import EmpiricalDenoiser
from diffgen.parameterizations import PARAMETERIZATIONS
from diffgen.predictor import as_denoiser
from diffgen.processes import DDPM, EDM, VE, RectifiedFlow
from diffgen.sampling import sample
from diffgen.schedules import from_process
from diffgen.training_set import TrainingSet

PROCESSES = [DDPM(), DDPM("cosine", 50), VE(), EDM(), RectifiedFlow()]
TIMES = {"DDPM": 30, "VE": 0.6, "EDM": 0.7, "RectifiedFlow": 0.35}

# A posterior mean is right to 1e-5, or 1e-9 for float64 queries.
PROMISE = 1e-5
PROMISE_FLOAT64 = 1e-9


def denoiser_of(data: torch.Tensor, **options: object) -> EmpiricalDenoiser:
    return EmpiricalDenoiser(TrainingSet(data, **options))


def x_at(process, t, data: torch.Tensor, batch: int) -> torch.Tensor:
    """Points of the forward process, float64."""
    noise = noised(torch.zeros_like(data), 1.0, batch, seed=5).double()
    picked = data[torch.arange(batch) % len(data)].double()
    return process.alpha(t) * picked + process.sigma(t) * noise


def target_by_hand(target: str, mean, x_t, alpha: float, sigma: float) -> torch.Tensor:
    epsilon = (x_t - alpha * mean) / sigma
    return {
        "x0": mean,
        "epsilon": epsilon,
        "score": -epsilon / sigma,
        "v": alpha * epsilon - sigma * mean,
        "velocity": epsilon - mean,
    }[target]


def test_every_target_is_tested():
    assert set(PARAMETERIZATIONS) == {"x0", "epsilon", "score", "v", "velocity"}


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("target", list(PARAMETERIZATIONS))
def test_predictor_is_the_optimal_network(target, process):
    data = images(12)
    t = TIMES[type(process).__name__]
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    x_t = x_at(process, t, data, 3)
    mean = exact(x_t, data, sigma, alpha=alpha).mean
    expected = target_by_hand(target, mean, x_t, alpha, sigma)
    prediction = denoiser_of(data).predictor(process, target)(x_t, t)
    # Every target is affine in the mean; its slope is at most this.
    slope = max(1, (alpha + sigma) / sigma, alpha**2 / sigma + sigma, alpha / sigma**2)
    assert prediction.dtype == torch.float64
    torch.testing.assert_close(prediction, expected, rtol=1e-12, atol=2 * slope * PROMISE_FLOAT64)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("target", list(PARAMETERIZATIONS))
def test_as_denoiser_undoes_predictor(target, process):
    data, labels = images(12), torch.arange(12) % 2
    denoiser = denoiser_of(data, labels=labels)
    network = denoiser.predictor(process, target)
    round_trip = as_denoiser(network, process, target)
    x = noised(data, 0.4, 4).double()
    sigma = torch.tensor([0.2, 0.4, 1.0, 3.0], dtype=torch.float64)
    # The way to the target multiplies the error of the mean, the way back divides by the same.
    # What is left is the rounding of t: 1e-16 relative times the steepest slope of sigma / alpha.
    torch.testing.assert_close(
        round_trip(x, sigma, labels[:4]), denoiser(x, sigma, labels[:4]), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("t", [40, 40.0, torch.tensor(40), torch.tensor([40, 40, 40])])
def test_predictor_takes_times_of_any_kind(t):
    data = images(6)
    network = denoiser_of(data).predictor(DDPM())
    x_t = x_at(DDPM(), 40, data, 3).float()
    expected = network(x_t, torch.full((3, 1, 1, 1), 40.0))
    assert torch.equal(network(x_t, t), expected)


def test_predictor_takes_a_time_for_each_sample():
    data = images(6)
    process = DDPM()
    network = denoiser_of(data).predictor(process, "x0")
    x_t = x_at(process, 500, data, 3)
    times = [0, 500, 999]
    prediction = network(x_t, torch.tensor(times))
    for b, t in enumerate(times):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        expected = exact(x_t[b : b + 1], data, sigma, alpha=alpha).mean
        torch.testing.assert_close(prediction[b : b + 1], expected, rtol=0, atol=PROMISE_FLOAT64)


def test_predictor_at_pure_noise_uses_the_mean_of_the_set():
    data, weights = images(6), torch.arange(1.0, 7.0)
    denoiser = denoiser_of(data, weights=weights)
    average = (weights.double() @ data.double().flatten(1) / weights.sum()).reshape(3, 4, 4)
    x_t = noised(torch.zeros(1, 3, 4, 4), 1.0, 2)
    pure = DDPM(torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64))
    assert float(pure.alpha(2)) == 0.0
    for process, t in ((RectifiedFlow(), 1.0), (pure, 2)):
        for target, expected in (
            ("x0", average.expand(2, 3, 4, 4)),
            ("epsilon", x_t.double()),
            ("velocity", x_t.double() - average),
            ("v", -average.expand(2, 3, 4, 4)),
        ):
            prediction = denoiser.predictor(process, target)(x_t, t)
            # The promise and one rounding to float32 of values below 8.
            torch.testing.assert_close(prediction.double(), expected, rtol=0, atol=PROMISE + 2**-21)


def test_predictor_at_no_noise_has_no_epsilon():
    data = images(4)
    denoiser = denoiser_of(data)
    assert bool(denoiser.predictor(RectifiedFlow())(data, 0.0).isnan().all())
    x0 = denoiser.predictor(RectifiedFlow(), "x0")(data, 0.0)
    torch.testing.assert_close(x0, data, rtol=0, atol=PROMISE)


def test_predictor_passes_labels_and_exclude():
    data, labels = images(10), torch.arange(10) % 2
    network = denoiser_of(data, labels=labels).predictor(EDM(), "x0")
    x_t = noised(data, 0.5, 2)
    prediction = network(x_t, 0.5, torch.tensor([0, 1]), exclude=torch.tensor([0, -1]))
    keep = labels == 0
    keep[0] = False
    for b, members in enumerate((data[keep], data[labels == 1])):
        expected = exact(x_t[b : b + 1], members, 0.5).mean
        torch.testing.assert_close(prediction[b : b + 1].double(), expected, rtol=0, atol=PROMISE)


def test_predictor_is_differentiable_in_x_and_refuses_a_gradient_of_alpha():
    data = images(6, shape=(3,)).double()
    network = denoiser_of(data).predictor(RectifiedFlow(), "velocity")
    x_t = noised(data, 0.5, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x_t: network(x_t, 0.4), x_t, check_forward_ad=True)
    with pytest.raises(ValueError, match="alpha must not require a gradient"):
        network(x_t, torch.tensor(0.4, requires_grad=True))


@pytest.mark.parametrize(
    ("x_t", "t", "error"),
    [
        (torch.zeros(2, 3, 4, 4), -1, ValueError),
        (torch.zeros(2, 3, 4, 4), 1000, ValueError),
        (torch.zeros(2, 3, 4, 4), torch.tensor([1.0, torch.nan]), ValueError),
        (torch.zeros(2, 3, 4, 4), torch.tensor([1, 2, 3]), ValueError),
        (torch.zeros(2, 3, 4, 4), "7", TypeError),
        (torch.zeros(2, 3, 5, 4), 7, ValueError),
        (torch.zeros(()), 7, ValueError),
    ],
)
def test_predictor_refuses_bad_arguments(x_t, t, error):
    with pytest.raises(error):
        denoiser_of(images(3)).predictor(DDPM())(x_t, t)


def test_an_unknown_target_is_refused():
    denoiser = denoiser_of(images(3))
    message = "target must be one of .*epsilon.*, got 'eps'"
    with pytest.raises(ValueError, match=message):
        denoiser.predictor(DDPM(), "eps")
    with pytest.raises(ValueError, match=message):
        as_denoiser(denoiser, DDPM(), "eps")


def test_modules_copy_pickle_and_have_no_state_of_their_own():
    data = images(5)
    denoiser = denoiser_of(data)
    network = denoiser.predictor(DDPM(), "v")
    wrapped = as_denoiser(network, DDPM(), "v")
    x = noised(data, 0.5, 2)
    assert wrapped.state_dict() == {}
    assert copy.deepcopy(wrapped).network.denoiser.training_set is denoiser.training_set
    assert torch.equal(copy.deepcopy(wrapped)(x, 0.5), wrapped(x, 0.5))
    assert torch.equal(pickle.loads(pickle.dumps(wrapped))(x, 0.5), wrapped(x, 0.5))
    assert not wrapped.eval().network.denoiser.training
    assert "target='v'" in repr(wrapped)


class Recorder(nn.Module):
    """A network that keeps what it was called with and predicts zero."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=dtype))

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        self.args, self.kwargs = args, kwargs
        return self.weight * args[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_as_denoiser_calls_a_network_in_its_own_convention(dtype):
    network = Recorder(dtype)
    process = DDPM()
    x = noised(images(2), 3.0, 2).double()
    denoised = as_denoiser(network, process)(x, 3.0)
    x_t, t = network.args
    alpha = 10**-0.5  # 1 / sqrt(1 + 3^2)
    assert x_t.dtype == dtype and network.kwargs == {}
    assert t.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert t.shape == (2,)
    torch.testing.assert_close(x_t, (alpha * x).to(dtype))
    torch.testing.assert_close(process.ratio(t), torch.full((2,), 3.0).double(), rtol=1e-5, atol=0)
    # Without any predicted noise the denoised point is the point.
    assert denoised.dtype == torch.float64
    torch.testing.assert_close(denoised, x)
    as_denoiser(network, process)(x.float(), 3.0, torch.tensor([1, 0]), flag=True)
    assert network.kwargs["class_labels"].tolist() == [1, 0] and network.kwargs["flag"]


def test_as_denoiser_can_give_whole_times():
    network = Recorder(torch.float32)
    wrapped = as_denoiser(network, DDPM(), nearest=True)
    x = noised(images(2), 1.0, 2)
    wrapped(x, 1.0)
    # The step of the linear schedule whose alpha_bar is nearest to 1/2 in log ratio is 258.
    assert network.args[1].dtype == torch.int64
    assert network.args[1].tolist() == [258, 258]
    torch.testing.assert_close(wrapped.round_sigma([0.0, 1.0]), DDPM().ratio([0, 258]))


def test_as_denoiser_removes_the_noise_it_is_told_of_at_a_rounded_time():
    process = DDPM()
    x0, epsilon = images(1).double(), noised(torch.zeros(1, 3, 4, 4), 1.0, 1).double()
    wrapped = as_denoiser(lambda x_t, t: epsilon, process, nearest=True)
    # A network that knows the noise leaves the clean point, whatever its time was rounded to.
    torch.testing.assert_close(wrapped(x0 + 0.777 * epsilon, 0.777), x0)


def test_as_denoiser_states_and_enforces_its_range():
    process = DDPM()
    wrapped = as_denoiser(Recorder(torch.float32), process)
    assert (wrapped.sigma_min, wrapped.sigma_max) == process.ratio_range
    rounded = wrapped.round_sigma(torch.tensor([1e-4, 1.0, 1e4]))
    expected = torch.tensor([wrapped.sigma_min, 1.0, wrapped.sigma_max], dtype=torch.float64)
    torch.testing.assert_close(rounded, expected)
    with pytest.raises(ValueError, match="ratio"):
        wrapped(images(2), wrapped.sigma_min / 2)


def test_as_denoiser_refuses_an_output_of_another_shape():
    wrapped = as_denoiser(lambda x_t, t: torch.cat([x_t, x_t], 1), DDPM())
    with pytest.raises(ValueError, match="epsilon and x_t must have one shape"):
        wrapped(images(2), 1.0)


def test_networks_and_denoisers_compose_in_a_sampler():
    data = images(20)
    denoiser = denoiser_of(data)
    process = DDPM()
    network = as_denoiser(denoiser.predictor(process), process)
    sigmas = from_process(process, 10)
    generator = torch.Generator().manual_seed(0)
    x_init = sigmas[0] * torch.randn(4, 3, 4, 4, generator=generator, dtype=torch.float64)
    both = hybrid(denoiser, network, switch_sigma=1.0)
    samples = [sample(d, (4, 3, 4, 4), sigmas, x_init=x_init) for d in (denoiser, network, both)]
    # Each call agrees to 1e-8 (above); ten steps of a contraction to training points keep it.
    torch.testing.assert_close(samples[1], samples[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(samples[2], samples[0], rtol=0, atol=1e-6)
