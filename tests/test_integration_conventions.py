"""The denoiser inside loops written the way other libraries call their networks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from exact import exact, images, noised
from torch import distributed, nn

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.processes import DDPM, RectifiedFlow
from diffgen.training_set import TrainingSet

DATA = images(24)
LABELS = torch.arange(24) % 3


@pytest.fixture
def denoiser() -> EmpiricalDenoiser:
    return EmpiricalDenoiser(TrainingSet(DATA, labels=LABELS)).eval()


def edm_sample(net, latents, class_labels=None, steps=12, sigma_min=0.002, sigma_max=80.0, rho=7):
    """Heun's method as EDM runs it: float64 state, 0-dim float64 levels, output cast back."""
    sigma_min, sigma_max = max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max)
    index = torch.arange(steps, dtype=torch.float64, device=latents.device)
    root = sigma_max ** (1 / rho) + index / (steps - 1) * (
        sigma_min ** (1 / rho) - sigma_max ** (1 / rho)
    )
    levels = torch.cat([net.round_sigma(root**rho), torch.zeros_like(root[:1])])
    x_next = latents.to(torch.float64) * levels[0]
    for i in range(steps):
        x, now, then = x_next, levels[i], levels[i + 1]
        slope = (x - net(x, now, class_labels).to(torch.float64)) / now
        x_next = x + (then - now) * slope
        if i < steps - 1:
            again = (x_next - net(x_next, then, class_labels).to(torch.float64)) / then
            x_next = x + (then - now) * (0.5 * slope + 0.5 * again)
    return x_next


def nearest_distance(samples: torch.Tensor, points: torch.Tensor) -> float:
    """Largest distance of a sample from its nearest point."""
    distances = torch.cdist(samples.double().flatten(1), points.double().flatten(1))
    return float(distances.min(1).values.max())


# At sigma = 0.002 the last step returns D itself, and the points are 3 apart: D is the nearest
# point to e^(-1e6), and every float error is below the promise, 1e-5 a value, 7e-5 in 48 of them.
ON_A_POINT = 1e-4


def test_edm_sampler_with_one_hot_labels(denoiser):
    generator = torch.Generator().manual_seed(0)
    shape = (6, denoiser.img_channels, denoiser.img_resolution, denoiser.img_resolution)
    latents = torch.randn(shape, generator=generator)
    classes = torch.arange(6) % denoiser.label_dim
    one_hot = torch.eye(denoiser.label_dim)[classes]
    samples = edm_sample(denoiser, latents, one_hot)
    for label in range(3):
        chosen = samples[classes == label]
        assert nearest_distance(chosen, DATA[label == LABELS]) < ON_A_POINT
        assert nearest_distance(chosen, DATA[label != LABELS]) > 1
    free = edm_sample(denoiser, latents, torch.zeros(6, 3))
    assert nearest_distance(free, DATA) < ON_A_POINT
    torch.testing.assert_close(edm_sample(denoiser, latents, None), free)


def test_edm_float32_wrapper(denoiser):
    # EDM's networks cast x to float32 and sigma to float32 (B, 1, 1, 1) before they use them.
    x = noised(DATA, 0.5, 4).to(torch.float64)
    sigma = torch.tensor(0.5, dtype=torch.float64)
    wide = denoiser(x, sigma, None, force_fp32=True)
    narrow = denoiser(x.float(), sigma.to(torch.float32).reshape(-1, 1, 1, 1))
    assert wide.dtype == torch.float64 and narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1e-5)


def test_edm_loss(denoiser):
    generator = torch.Generator().manual_seed(0)
    y = DATA[:8]
    sigma = (torch.randn(8, 1, 1, 1, generator=generator) * 1.2 - 1.2).exp()
    noise = torch.randn(y.shape, generator=generator) * sigma
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    labels = torch.eye(3)[LABELS[:8]]
    denoised = denoiser(y + noise, sigma, labels, augment_labels=torch.zeros(8, 9))
    loss = weight * (denoised - y) ** 2
    assert loss.shape == y.shape and bool(loss.isfinite().all())


def test_guidance_between_two_denoisers(denoiser):
    # EDM2: a guiding network called with the same arguments, in float32.
    x, t = noised(DATA, 0.5, 3), torch.tensor(0.5)
    labels = torch.eye(3)
    guided = denoiser(x, t).lerp(denoiser(x, t, labels), 1.5)
    assert guided.dtype == torch.float32 and guided.shape == x.shape


def test_k_diffusion_sampler(denoiser):
    # Levels (n,) float32 ending in 0; the model is called with sigma * x.new_ones([B]).
    def to_d(x, sigma, denoised):
        return (x - denoised) / sigma.reshape(-1, 1, 1, 1)

    sigmas = torch.cat([torch.logspace(math.log10(80), math.log10(0.002), 20), torch.zeros(1)])
    extra_args = {"class_labels": LABELS[:4]}
    x = noised(torch.zeros(1, 3, 4, 4), float(sigmas[0]), 4)
    s_in = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        denoised = denoiser(x, sigmas[i] * s_in, **extra_args)
        x = x + to_d(x, sigmas[i] * s_in, denoised) * (sigmas[i + 1] - sigmas[i])
    assert nearest_distance(x, DATA) < ON_A_POINT


def test_k_diffusion_log_likelihood(denoiser):
    # It estimates the divergence of (x - D) / sigma by Hutchinson, through autograd.
    x = noised(DATA, 0.8, 3)
    v = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    sigma = x.new_full([3], 0.8)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        slope = (x - denoiser(x, sigma)) / sigma.reshape(-1, 1, 1, 1)
        gradient = torch.autograd.grad((slope * v).sum(), x)[0]
    estimate = (v * gradient).flatten(1).sum(1)
    covariance = exact(x.detach(), DATA, float(sigma[0])).covariance
    flat = v.double().flatten(1)
    jacobian = (flat[:, None] @ covariance @ flat[..., None])[:, 0, 0] / float(sigma[0]) ** 2
    expected = (48 - jacobian) / float(sigma[0])
    torch.testing.assert_close(estimate.double(), expected, rtol=1e-4, atol=1e-3)


def test_ddpm_ancestral_sampling_with_integer_times(denoiser):
    process = DDPM()
    model = denoiser.predictor(process, "epsilon")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 3, 4, 4, generator=generator)
    betas, alpha_bar = process.betas, process.alpha_bar
    for step in reversed(range(0, 1000, 1)):
        if step % 25 and step > 50:  # respaced: the noise of a jump is that of its ends
            continue
        t = torch.full((3,), step, dtype=torch.int64)
        epsilon = model(x, t)
        last = step - 25 if step > 50 else step - 1
        previous = alpha_bar[last] if last >= 0 else torch.ones((), dtype=torch.float64)
        x0 = (x - (1 - alpha_bar[step]).sqrt() * epsilon) / alpha_bar[step].sqrt()
        beta = 1 - alpha_bar[step] / previous
        mean = (previous.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - previous) * x) / (
            1 - alpha_bar[step]
        )
        noise = torch.randn(x.shape, generator=generator)
        x = (mean + (beta * (1 - previous) / (1 - alpha_bar[step])).sqrt() * noise).float()
    assert betas.shape == (1000,)
    assert nearest_distance(x, DATA) < ON_A_POINT


def test_a_scheduler_that_takes_epsilon_or_sample_or_v(denoiser):
    # The three prediction types of one DDIM step must give the same state.
    process = DDPM()
    alpha_bar = process.alpha_bar.float()
    x, t, last = noised(torch.zeros(1, 3, 4, 4), 1.0, 3), 500, 480
    alpha, sigma = alpha_bar[t].sqrt(), (1 - alpha_bar[t]).sqrt()
    states = []
    for target, prediction_type in (
        ("epsilon", "epsilon"),
        ("x0", "sample"),
        ("v", "v_prediction"),
    ):
        output = denoiser.predictor(process, target)(x, t)
        if prediction_type == "epsilon":
            sample, epsilon = (x - sigma * output) / alpha, output
        elif prediction_type == "sample":
            sample, epsilon = output, (x - alpha * output) / sigma
        else:
            sample, epsilon = alpha * x - sigma * output, alpha * output + sigma * x
        states.append(alpha_bar[last].sqrt() * sample + (1 - alpha_bar[last]).sqrt() * epsilon)
    # float32 arithmetic of the scheduler: a few units of 6e-8 times values below 10, / alpha.
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(states[2], states[0], rtol=0, atol=2e-5)


def test_flow_matching_ode_by_keyword_with_reversed_time(denoiser):
    # Meta's flow_matching: t = 0 is noise, t = 1 data; velocity_model(x=x, t=t), t 0-dim.
    process = RectifiedFlow()
    network = denoiser.predictor(process, "velocity")

    def velocity_model(x, t, **extras):
        return -network(x, 1 - t, **extras)

    x = noised(torch.zeros(1, 3, 4, 4), 1.0, 4)
    grid = torch.linspace(0, 1, 60)
    for now, then in pairwise(grid):
        x = x + (then - now) * velocity_model(x=x, t=now, class_labels=LABELS[:4])
    # Euler's last step from t goes to x + (1 - t) v = D(x), all but one-hot at sigma = 1 / 59.
    assert nearest_distance(x, DATA) < 1e-3


def test_ddp_leaves_the_training_set_alone(denoiser, tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        student = nn.Conv2d(3, 3, 1)

        class Distillation(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.student, self.teacher = student, denoiser

            def forward(self, x, sigma):
                return (self.student(x) - self.teacher(x, sigma)).square().mean()

        model = nn.parallel.DistributedDataParallel(Distillation())
        assert list(model.module.buffers()) == []
        assert set(model.state_dict()) == {"module.student.weight", "module.student.bias"}
        model(noised(DATA, 0.5, 4), 0.5).backward()
        assert student.weight.grad is not None
        # The last to let go of the group must not be its reducer: that ends the group's threads
        # without giving up the interpreter's lock, which they may wait for.
        del model
    finally:
        distributed.destroy_process_group()
