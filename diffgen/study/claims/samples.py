"""Samples and how near they stand to training points: what several stages do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffgen import schedules
from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization import memorization_ratio
from diffgen.processes import DDPM
from diffgen.sampling import sample
from diffgen.study.context import Context
from diffgen.study.plain import pack_images

SHOWN = 8
"""Samples that a picture shows: the first ones, not chosen."""

Denoiser = Callable[..., Tensor]


def draw(
    context: Context,
    denoiser: Denoiser,
    noise: Tensor,
    *,
    steps: int,
    sampler: str = "ddim",
    purpose: str = "sampler",
    process: DDPM | None = None,
) -> Tensor:
    """Samples from unit noise ``(M, *S)``, at levels equally spaced in the process's time."""
    sigmas = schedules.from_process(process or context.process, steps)
    return sample(
        denoiser,
        tuple(noise.shape),
        sigmas,
        sampler=sampler,
        x_init=sigmas[0] * noise,
        generator=context.generator(purpose),
        dtype=torch.float32,
    )


def clipped(context: Context, denoiser: Denoiser) -> Denoiser:
    """A network's denoiser with what it returns clipped to the range of the data.

    As samplers of DDPM usually do: an error of the predicted noise counts sigma / alpha times in
    the denoised sample, a hundred times at the first levels. The optimum needs none.
    """
    low, high = context.data.limits

    def call(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(x, sigma).clamp(low, high)

    return call


class ClippedNetwork:
    """`clipped` in the form of a network: ``(x_t, t) -> epsilon``."""

    def __init__(
        self, network: Callable[..., Tensor], process: DDPM, limits: tuple[float, float]
    ) -> None:
        """Keep the network."""
        self._network, self._process, self._limits = network, process, limits

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that the clipped sample leaves in x_t."""
        each = (-1, *[1] * (x_t.ndim - 1))
        alpha = self._process.alpha(t).to(x_t.dtype).reshape(each)
        sigma = self._process.sigma(t).to(x_t.dtype).reshape(each)
        denoised = (x_t - sigma * self._network(x_t, t)) / alpha
        return (x_t - alpha * denoised.clamp(*self._limits)) / sigma


def distances(samples: Tensor, denoiser: EmpiricalDenoiser) -> dict[str, Any]:
    """d1, d2 and the row of the nearest training point, for each sample.

    Intervals are left to the answers, which take them from these values.
    """
    # One resample: the interval of this call is not used.
    found = memorization_ratio(samples, denoiser, num_bootstrap=1)
    return {
        "d1": found.distances[:, 0],
        "d2": found.distances[:, 1],
        "nearest": found.indices[:, 0],
    }


def pictures(context: Context, samples: Tensor, denoiser: EmpiricalDenoiser) -> dict[str, Any]:
    """The first samples and, for each, its nearest training points, for a figure.

    Returns:
        Packed images: ``samples`` ``(SHOWN, *S)`` and ``neighbors`` ``(SHOWN, k, *S)``.
    """
    shown = samples[:SHOWN]
    top_k = min(3, len(denoiser.training_set))
    nearest = denoiser.posterior(shown, 1.0, top_k=top_k).top_indices
    neighbors = denoiser.training_set[nearest.flatten()].unflatten(0, tuple(nearest.shape))
    limits = context.data.limits
    return {
        "samples": pack_images(shown, limits),
        "neighbors": pack_images(neighbors, limits),
    }
