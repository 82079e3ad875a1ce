from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from diffgen.parameterizations import PARAMETERIZATIONS
from diffgen.processes import DDPM, EDM, PROCESSES, RectifiedFlow

U = 2.0**-53

SCALES = [(1.0, 0.002), (1.0, 80.0), (0.999, 0.01), (0.6, 0.8), (0.0064, 0.99998), (0.25, 0.75)]


@pytest.fixture(params=PARAMETERIZATIONS, ids=str)
def target(request):
    return PARAMETERIZATIONS[request.param]


def problem(alpha, sigma, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x0, epsilon = torch.randn(2, 5, 3, 2, generator=generator, dtype=dtype)
    return x0, epsilon, alpha * x0 + sigma * epsilon


def meaning(name, x0, epsilon, alpha, sigma):
    """What each target is, from the clean sample and the noise that made x_t."""
    return {
        "x0": x0,
        "epsilon": epsilon,
        "score": -epsilon / sigma,
        "v": alpha * epsilon - sigma * x0,
        "velocity": epsilon - x0,
    }[name]


@pytest.mark.parametrize(("alpha", "sigma"), SCALES)
def test_targets_are_what_made_the_noisy_point(target, alpha, sigma):
    x0, epsilon, x_t = problem(alpha, sigma)
    expected = meaning(target.name, x0, epsilon, alpha, sigma)
    # epsilon comes from x_t - alpha x0, two rounded terms, over sigma; score divides once more, and
    # v and velocity add terms of the size of x0.
    error = 4 * U * (x_t.abs() + alpha * x0.abs()) / sigma + 4 * U * (epsilon.abs() + x0.abs())
    error = error / sigma if target.name == "score" else error * max(1.0, alpha, sigma)
    value = target.from_posterior_mean(x0, x_t, alpha, sigma)
    assert bool(((value - expected).abs() <= error).all())


@pytest.mark.parametrize(("alpha", "sigma"), SCALES)
def test_posterior_mean_comes_back(target, alpha, sigma):
    x0, _, x_t = problem(alpha, sigma)
    value = target.from_posterior_mean(x0, x_t, alpha, sigma)
    back = target.to_posterior_mean(value, x_t, alpha, sigma)
    # What the first map rounds, (|x_t| + (alpha + sigma) |x0|) u, divided by what the second
    # divides by: alpha, or for v and velocity the larger alpha^2 + sigma^2, alpha + sigma.
    size = x_t.abs() + (alpha + sigma) * x0.abs()
    divisor = {"v": (alpha**2 + sigma**2) / max(alpha, sigma), "velocity": alpha + sigma}
    error = 16 * U * size / divisor.get(target.name, alpha)
    assert bool(((back - x0).abs() <= error).all())


@pytest.mark.parametrize("name", PROCESSES)
def test_round_trip_holds_under_every_process(target, name):
    process = PROCESSES[name]()
    t = process.times(5)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x0, _, _ = problem(1.0, 1.0)
    x_t = alpha.reshape(-1, 1, 1) * x0 + sigma.reshape(-1, 1, 1)
    value = target.from_posterior_mean(x0, x_t, alpha, sigma)
    back = target.to_posterior_mean(value, x_t, alpha, sigma)
    # As above, at the largest sigma/alpha of the processes, 1e3, and |x_t| / alpha under 1e4.
    torch.testing.assert_close(back, x0, rtol=0, atol=32 * U * 1e4)


def test_score_is_the_gradient_of_the_log_density():
    alpha, sigma, deviation = 0.8, 0.6, 1.7
    x_t = problem(alpha, sigma)[2]
    variance = (alpha * deviation) ** 2 + sigma**2  # of x_t, for data N(0, deviation^2)
    posterior_mean = alpha * deviation**2 / variance * x_t
    score = PARAMETERIZATIONS["score"].from_posterior_mean(posterior_mean, x_t, alpha, sigma)
    torch.testing.assert_close(score, -x_t / variance, rtol=64 * U, atol=0)


def test_velocity_is_the_time_derivative_of_flow_from_data_to_noise():
    process, t, step = RectifiedFlow(), 0.25, 0.5
    x0, epsilon, _ = problem(1.0, 1.0)

    def path(time):
        return process.alpha(time) * x0 + process.sigma(time) * epsilon

    velocity = PARAMETERIZATIONS["velocity"].from_posterior_mean(
        x0, path(t), process.alpha(t), process.sigma(t)
    )
    # A straight line: the difference quotient is exact but for rounding, over t and over step.
    torch.testing.assert_close(
        velocity, (path(t + step) - path(t)) / step, rtol=0, atol=16 * U * 4 / t
    )


def test_at_zero_noise_only_x0_is_determined(target):
    x0, _, _ = problem(1.0, 0.0)
    value = target.from_posterior_mean(x0, x0, 1.0, 0.0)
    assert torch.equal(value, x0) if target.name == "x0" else bool(value.isnan().all())
    # The way back needs no target: x_t / alpha.
    back = target.to_posterior_mean(torch.ones_like(x0), 0.5 * x0, 0.5, 0.0)
    expected = torch.ones_like(x0) if target.name == "x0" else x0
    assert torch.equal(back, expected)


def test_at_zero_signal_epsilon_and_score_do_not_hold_x0(target):
    x0, epsilon, _ = problem(0.0, 1.0)
    value = target.from_posterior_mean(x0, epsilon, 0.0, 1.0)
    expected = meaning(target.name, x0, epsilon, 0.0, 1.0)
    torch.testing.assert_close(value, expected, rtol=4 * U, atol=4 * U)
    back = target.to_posterior_mean(value, epsilon, 0.0, 1.0)
    if target.name in ("epsilon", "score"):
        assert bool(back.isnan().all())
    else:
        torch.testing.assert_close(back, x0, rtol=0, atol=16 * U * 4)


def test_a_singular_row_leaves_the_others_alone(target):
    x0, epsilon, _ = problem(1.0, 1.0)
    sigma = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    x_t = x0 + sigma.reshape(-1, 1, 1) * epsilon
    value = target.from_posterior_mean(x0, x_t, 1.0, sigma)
    alone = target.from_posterior_mean(x0[1:], x_t[1:], 1.0, 1.0)
    assert torch.equal(value[1:], alone)


@pytest.mark.parametrize("shape", [(5,), (5, 1, 1), (1, 5)])
def test_scales_are_per_sample_in_any_shape(target, shape):
    x0, _, x_t = problem(0.6, 0.8)
    alpha = torch.linspace(0.1, 0.9, 5)
    sigma = torch.linspace(0.9, 0.1, 5)
    value = target.from_posterior_mean(x0, x_t, alpha.reshape(shape), sigma.reshape(shape))
    for row in range(5):
        alone = target.from_posterior_mean(
            x0[row : row + 1], x_t[row : row + 1], alpha[row], sigma[row]
        )
        assert torch.equal(value[row], alone[0])


def test_result_has_the_type_of_the_noisy_point(target):
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        x0, _, x_t = (tensor.to(dtype) for tensor in problem(0.6, 0.8))
        assert target.from_posterior_mean(x0.double(), x_t, 0.6, 0.8).dtype == dtype
        assert target.to_posterior_mean(x0, x_t, 0.6, 0.8).dtype == dtype


def test_a_float64_mean_keeps_the_digits_that_small_noise_cancels():
    sigma = 0.002
    x_t = torch.linspace(-1, 1, 64).reshape(1, -1)
    mean = x_t.double() + sigma * torch.linspace(-2, 2, 64, dtype=torch.float64)
    epsilon = PARAMETERIZATIONS["epsilon"]
    value = epsilon.from_posterior_mean(mean, x_t, 1.0, sigma)
    expected = ((x_t.double() - mean) / sigma).float()
    assert torch.equal(value, expected)
    # In float32 the same quotient is off by far more than its rounding: the test can fail.
    assert float(((x_t - mean.float()) / sigma - expected).abs().max()) > 1e-6


def test_maps_are_differentiable(target):
    x0, _, x_t = problem(0.6, 0.8)
    inputs = (x0.requires_grad_(), x_t.requires_grad_(), torch.tensor(0.6), torch.tensor(0.8))
    assert torch.autograd.gradcheck(target.from_posterior_mean, inputs)
    assert torch.autograd.gradcheck(target.to_posterior_mean, inputs)


def test_v_is_minus_x0_in_pure_noise_and_epsilon_without():
    x0, epsilon, _ = problem(1.0, 1.0)
    v = PARAMETERIZATIONS["v"]
    assert torch.equal(v.from_posterior_mean(x0, epsilon, 0.0, 1.0), -x0)
    process = DDPM()
    alpha, sigma = process.alpha(0), process.sigma(0)
    near = v.from_posterior_mean(x0, alpha * x0 + sigma * epsilon, alpha, sigma)
    assert float((near - epsilon).abs().max()) < 2 * float(sigma) * float(x0.abs().max())


def test_edm_network_targets_agree_with_its_denoiser():
    sigma = EDM().sigma(3.0)
    x0, _, y = problem(1.0, 3.0)
    epsilon = PARAMETERIZATIONS["epsilon"].from_posterior_mean(x0, y, 1.0, sigma)
    assert torch.equal(epsilon, (y - x0) / 3.0)


@pytest.mark.parametrize(
    ("alpha", "sigma", "message"),
    [
        (1.0, -0.5, r"sigma must be in \[0, inf\], got -0.5"),
        (math.nan, 1.0, "alpha must be .* got nan"),
        (1.0, torch.ones(3), "sigma must have 1 or 5 elements, got 3"),
    ],
)
def test_bad_scales_are_refused(target, alpha, sigma, message):
    x0, _, x_t = problem(1.0, 1.0)
    with pytest.raises(ValueError, match=message):
        target.from_posterior_mean(x0, x_t, alpha, sigma)


def test_shapes_that_differ_are_refused(target):
    with pytest.raises(ValueError, match=rf"{target.name} and x_t must have one shape, got"):
        target.to_posterior_mean(torch.zeros(2, 3), torch.zeros(2, 4), 1.0, 1.0)


def test_targets_pickle_and_copy_as_entries_of_the_table(target):
    assert pickle.loads(pickle.dumps(target)) is target
    assert copy.deepcopy(target) is target


def test_maps_compile_without_a_graph_break(target):
    x0, _, x_t = problem(0.6, 0.8, torch.float32)
    compiled = torch.compile(target.from_posterior_mean, fullgraph=True, backend="eager")
    sigma = torch.full((5,), 0.8)
    expected = target.from_posterior_mean(x0, x_t, 0.6, sigma)
    assert torch.equal(compiled(x0, x_t, 0.6, sigma), expected)
