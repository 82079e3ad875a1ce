"""Samplers: from noise to data with any denoiser, one step function each and one loop.

The state is ``y = x_t / alpha_t``, a clean sample plus noise of standard deviation sigma, so that a
sampler needs no process: DDIM and DDPM of every process are the same steps in y. A step goes from
sigma_t down to sigma_s; with D the denoised state, ``r = sigma_s / sigma_t``, z fresh noise:

* ``ddim``: ``r y + (1 - r) D``. First order. With eta a part of the old noise gives way to
  ``eta sigma_s sqrt(1 - r^2) z``.
* ``ddpm``: ``r^2 y + (1 - r^2) D + sigma_s sqrt(1 - r^2) z``, a draw from q(y_s | y_t, x0 = D). It
  is ddim at eta = 1.
* ``euler``: ``y + (sigma_s - sigma_t) (y - D) / sigma_t``. First order; the numbers of ddim, in the
  form of a step along the probability flow ODE dy/dsigma = (y - D) / sigma.
* ``heun``: the slope of that ODE averaged over both ends of the step. Second order, two calls of
  the denoiser; Euler's step where sigma_s = 0.

Every step to sigma = 0 returns D itself: the last denoised state, exactly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from typing import Any, TypeAlias

import torch
from torch import Tensor

Denoiser: TypeAlias = Callable[..., Tensor]
"""``denoiser(x, sigma)`` or ``denoiser(x, sigma, class_labels)`` -> denoised, of x's shape."""


@dataclass(frozen=True)
class Step:
    """One step of a sampler, from the level sigma down to sigma_next.

    Attributes:
        x: The state, ``(B, *S)`` float64.
        sigma: Noise level of the state.
        sigma_next: Level to go to, smaller; may be 0.
        eta: Share of fresh noise, in ``[0, 1]``.
        denoise: The denoiser at one level: float64 state to float64 denoised state.
        noise: Draws standard normal noise, ``(B, *S)`` float64.
    """

    x: Tensor
    sigma: float
    sigma_next: float
    eta: float
    denoise: Callable[[Tensor, float], Tensor]
    noise: Callable[[], Tensor]


@dataclass(frozen=True)
class Sampler:
    """A sampler: its step function and whether it has a use for eta."""

    step: Callable[[Step], Tensor]
    takes_eta: bool = False


def _ddim(step: Step) -> Tensor:
    ratio = step.sigma_next / step.sigma
    denoised = step.denoise(step.x, step.sigma)
    fresh = step.eta * step.sigma_next * sqrt(1 - ratio**2)
    if fresh == 0:
        return torch.lerp(denoised, step.x, ratio)
    # What is kept of the old noise, so that the variances of old and fresh add to sigma_next^2.
    kept = ratio * sqrt(1 - step.eta**2 * (1 - ratio**2))
    return torch.lerp(denoised, step.x, kept) + fresh * step.noise()


def _ddpm(step: Step) -> Tensor:
    ratio = step.sigma_next / step.sigma
    mean = torch.lerp(step.denoise(step.x, step.sigma), step.x, ratio**2)
    fresh = step.sigma_next * sqrt(1 - ratio**2)
    return mean + fresh * step.noise() if fresh > 0 else mean


def _euler(step: Step) -> Tensor:
    denoised = step.denoise(step.x, step.sigma)
    if step.sigma_next == 0:
        return denoised
    return step.x + (step.sigma_next - step.sigma) * (step.x - denoised) / step.sigma


def _heun(step: Step) -> Tensor:
    denoised = step.denoise(step.x, step.sigma)
    if step.sigma_next == 0:
        return denoised
    change = step.sigma_next - step.sigma
    slope = (step.x - denoised) / step.sigma
    guess = step.x + change * slope
    slope_next = (guess - step.denoise(guess, step.sigma_next)) / step.sigma_next
    return step.x + change * 0.5 * (slope + slope_next)


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(_ddim, takes_eta=True),
    "ddpm": Sampler(_ddpm),
    "euler": Sampler(_euler),
    "heun": Sampler(_heun),
}
"""Every sampler by its name."""


def sample(
    denoiser: Denoiser,
    shape: Sequence[int],
    sigmas: Tensor | Sequence[float],
    *,
    sampler: str = "ddim",
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    x_init: Tensor | None = None,
    class_labels: Tensor | None = None,
    progress: bool = False,
    trajectory: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw samples by taking noise down a sequence of levels.

    The state is float64 throughout, as in EDM: a step is a small difference of large numbers. The
    denoiser sees it rounded once, to ``dtype``. float32 (the default) is what networks and the fast
    path of an empirical denoiser take; float64 makes the whole path exact to float64 rounding, and
    needs a denoiser that takes float64.

    No gradient is recorded, unless ``x_init`` requires one and gradients are enabled: then the
    samples are differentiable in it, and in whatever else the denoiser tracks.

    Args:
        denoiser: Any callable ``(x, sigma) -> denoised``; x is ``(B, *S)`` in ``dtype``, sigma a
            0-dim float64 tensor on x's device, positive (never 0). With class labels it is called
            as ``denoiser(x, sigma, class_labels)``.
        shape: Shape of the samples, ``(B, *S)``.
        sigmas: Noise levels, ``(n + 1,)``, strictly decreasing, in the units of the data; only the
            last may be 0. See `diffgen.schedules`.
        sampler: A name in `SAMPLERS`.
        eta: Share of fresh noise in each step of ``"ddim"``, in ``[0, 1]``: 0 is deterministic, 1
            is ``"ddpm"``. Other samplers refuse it.
        generator: Source of all the noise; the same state gives the same samples. Noise is drawn
            in float64 on the generator's device.
        x_init: Where to start, ``(B, *S)``: points with noise of level ``sigmas[0]`` in them (not
            unit noise). None draws ``sigmas[0]`` times standard normal noise.
        class_labels: What the denoiser takes as its third argument; a tensor of B rows.
        progress: Show a bar with the noise level, the number of calls of the denoiser and the mean
            square of an element of the denoised state.
        trajectory: Return the state at every level instead of the last alone.
        dtype: Type of what the denoiser is given and of what is returned; None is the type of
            ``x_init``, or float32 without one.
        device: Where to sample; None is the device of ``x_init``, of the generator, or the CPU.

    Returns:
        The state at ``sigmas[-1]``, ``(B, *S)`` in ``dtype``; with ``trajectory``
        ``(n + 1, B, *S)``, entry k at ``sigmas[k]``, from the start to the samples. Where
        ``sigmas[-1]`` is 0 the samples are the denoiser's last output.

    Raises:
        ValueError: An unknown sampler; levels that do not decrease, are negative or not finite;
            eta out of range or without use; shapes that do not fit; a type that is not floating
            point.
        TypeError: The denoiser returned something other than a tensor.
        ImportError: ``progress`` without tqdm installed.

    Example:
        >>> from diffgen import schedules
        >>> def denoiser(x, sigma):  # the exact one for standard normal data
        ...     return x / (1 + sigma**2)
        >>> generator = torch.Generator().manual_seed(0)
        >>> sigmas = schedules.karras(20)
        >>> x = sample(denoiser, (1000, 2), sigmas, sampler="heun", generator=generator)
        >>> round(float(x.std()), 1)
        1.0

    Source:
        Song, Meng, Ermon, Denoising diffusion implicit models (2021), equations 12, 16 (ddim, eta)
        and 13 (as an ODE); Ho et al. (2020), equation 7 (ddpm); Karras et al. (2022), algorithm 1
        (heun, float64 state).
    """
    shape = tuple(shape)
    levels = _levels(sigmas)
    chosen = _chosen(sampler, eta)
    if x_init is not None and tuple(x_init.shape) != shape:
        raise ValueError(f"x_init must have shape {shape}, got {tuple(x_init.shape)}")
    if isinstance(class_labels, Tensor) and class_labels.shape[:1] != shape[:1]:
        got = tuple(class_labels.shape)
        raise ValueError(f"class_labels must have {shape[0]} rows as shape has, got shape {got}")
    dtype = dtype or (torch.float32 if x_init is None else x_init.dtype)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, got {dtype}")
    device = _device(device, x_init, generator)

    def noise() -> Tensor:
        source = device if generator is None else generator.device
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device=source)
        return drawn.to(device)

    on_device = torch.tensor(levels, dtype=torch.float64, device=device)
    level_tensors = dict(zip(levels, on_device, strict=True))
    extra = () if class_labels is None else (class_labels,)
    bar = _Progress(len(levels) - 1, sampler) if progress else None

    def denoise(x: Tensor, sigma: float) -> Tensor:
        denoised = denoiser(x.to(dtype), level_tensors[sigma], *extra)
        if not isinstance(denoised, Tensor):
            raise TypeError(f"denoiser must return a tensor, got {type(denoised).__name__}")
        if denoised.shape != x.shape:
            got = tuple(denoised.shape)
            raise ValueError(f"denoiser must return the shape of x, {shape}, got {got}")
        if bar is not None:
            bar.called(sigma, denoised)
        return denoised.to(torch.float64)

    wants_gradient = x_init is not None and x_init.requires_grad and torch.is_grad_enabled()
    with torch.set_grad_enabled(wants_gradient), bar or contextlib.nullcontext():
        start = levels[0] * noise() if x_init is None else x_init.to(device)
        x = start.to(torch.float64)
        states = [x.to(dtype)]
        for sigma, sigma_next in pairwise(levels):
            x = chosen.step(Step(x, sigma, sigma_next, eta, denoise, noise))
            if trajectory:
                states.append(x.to(dtype))
            if bar is not None:
                bar.stepped()
        return torch.stack(states) if trajectory else x.to(dtype)


class _Progress:
    """A bar over the steps, with what a user wants to see while it runs."""

    def __init__(self, steps: int, sampler: str) -> None:
        from tqdm.auto import tqdm

        self._bar: Any = tqdm(total=steps, desc=sampler, unit="step")
        self._calls = 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def called(self, sigma: float, denoised: Tensor) -> None:
        """Note one call of the denoiser; the bar shows it when it next redraws."""
        self._calls += 1
        square = float(denoised.detach().square().mean())
        shown = {"sigma": f"{sigma:.3g}", "calls": self._calls, "mean_square": f"{square:.3g}"}
        self._bar.set_postfix(shown, refresh=False)

    def stepped(self) -> None:
        """Move the bar by a step."""
        self._bar.update()


def _levels(sigmas: Tensor | Sequence[float]) -> list[float]:
    """Noise levels as numbers, checked."""
    given = torch.as_tensor(sigmas, dtype=torch.float64).detach().cpu()
    if given.ndim != 1 or len(given) < 2:
        raise ValueError(f"sigmas must be (n + 1,) with n >= 1, got shape {tuple(given.shape)}")
    levels: list[float] = given.tolist()
    for index, sigma in enumerate(levels):
        if not 0 <= sigma < inf:
            raise ValueError(
                f"sigmas must be finite and at least 0, got {sigma:g} at index {index}"
            )
    for index, (sigma, sigma_next) in enumerate(pairwise(levels)):
        if not sigma > sigma_next:
            raise ValueError(
                f"sigmas must decrease strictly, got {sigma_next:g} after {sigma:g} "
                f"at index {index + 1}"
            )
    return levels


def _chosen(sampler: str, eta: float) -> Sampler:
    """The sampler of a name, where eta suits it."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta:g}")
    if eta != 0 and not SAMPLERS[sampler].takes_eta:
        raise ValueError(f"eta must be 0 for sampler {sampler!r}, got {eta:g}")
    return SAMPLERS[sampler]


def _device(
    device: torch.device | str | None, x_init: Tensor | None, generator: torch.Generator | None
) -> torch.device:
    if device is not None:
        return torch.device(device)
    if x_init is not None:
        return x_init.device
    return torch.device("cpu") if generator is None else generator.device
