"""The table of what is timed; a new operation is one entry of ``OPERATIONS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor


def _levels(first: float, last: float, count: int) -> tuple[float, ...]:
    """Noise levels, evenly spaced in their logarithm."""
    ends = torch.tensor([first, last], dtype=torch.float64).log()
    return tuple(torch.linspace(ends[0], ends[1], count, dtype=torch.float64).exp().tolist())


SWEEP_SIGMAS = _levels(0.02, 80, 16)
"""Noise levels of the sweep."""

LOW_SIGMAS = _levels(0.02, 0.99, 16)
"""Those of the sweep below 1, where few points count."""

STEPS = 18
"""Steps of the trajectory, EDM's: 80 down to 0.002 with rho = 7, then 0, by Heun's method."""


class Methods(Protocol):
    """What a contender can do once it has seen the data; see ``contenders.Prepared``."""

    denoise: Callable[[Tensor, float], Tensor]
    posterior: Callable[[Tensor, float], object] | None
    sweep: Callable[[Tensor, tuple[float, ...]], Tensor]


@dataclass(frozen=True)
class Operation:
    """What is timed, and the least work that it takes.

    Attributes:
        call: ``(methods, query, sigma)`` to the call that is timed.
        reads: Passes over the data.
        products: ``(B, D)``-by-``N`` products, each 2 B N D operations.
        calls: Calls of the denoiser in it; the limit for slow contenders is for one.
        gives_mean: Whether the call returns the posterior mean at sigma.
    """

    call: Callable[[Methods, Tensor, float], Callable[[], object]]
    reads: int
    products: int
    calls: int = 1
    gives_mean: bool = False


def edm_levels() -> tuple[float, ...]:
    """The noise levels of the trajectory, the last 0 left out."""
    ends = 80 ** (1 / 7), 0.002 ** (1 / 7)
    return tuple((ends[0] + i / (STEPS - 1) * (ends[1] - ends[0])) ** 7 for i in range(STEPS))


def heun(denoise: Callable[[Tensor, float], Tensor], x: Tensor) -> Tensor:
    """EDM's deterministic sampler from noise level 80: 2 calls a step, 1 in the last.

    Source:
        Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models (2022),
        algorithm 1.
    """
    levels = (*edm_levels(), 0.0)
    for sigma, below in pairwise(levels):
        slope = (x - denoise(x, sigma)) / sigma
        step = x + (below - sigma) * slope
        if below > 0:
            slope = (slope + (step - denoise(step, below)) / below) / 2
            step = x + (below - sigma) * slope
        x = step
    return x


def _denoise(methods: Methods, query: Tensor, sigma: float) -> Callable[[], object]:
    return lambda: methods.denoise(query, sigma)


def _backward(methods: Methods, query: Tensor, sigma: float) -> Callable[[], object]:
    leaf = query.clone().requires_grad_()
    cotangent = torch.randn(query.shape, generator=torch.Generator().manual_seed(0))
    return lambda: torch.autograd.grad(methods.denoise(leaf, sigma), leaf, cotangent)


def _posterior(methods: Methods, query: Tensor, sigma: float) -> Callable[[], object]:
    posterior = methods.posterior
    if posterior is None:
        raise NotImplementedError("gives the mean only")
    return lambda: posterior(query, sigma)


def _sweep(sigmas: tuple[float, ...]) -> Callable[[Methods, Tensor, float], Callable[[], object]]:
    return lambda methods, query, sigma: lambda: methods.sweep(query, sigmas)


def _calls(methods: Methods, query: Tensor, sigma: float) -> Callable[[], object]:
    return lambda: [methods.denoise(query, level) for level in SWEEP_SIGMAS]


def _trajectory(methods: Methods, query: Tensor, sigma: float) -> Callable[[], object]:
    return lambda: heun(methods.denoise, query)


_LEVELS = len(SWEEP_SIGMAS)
_EVALUATIONS = 2 * STEPS - 1

OPERATIONS: dict[str, Operation] = {
    "denoise": Operation(_denoise, reads=1, products=2, gives_mean=True),
    # Forward, then logits, (y - m).v and the weighted sum over again.
    "backward": Operation(_backward, reads=2, products=5),
    "posterior": Operation(_posterior, reads=1, products=2),
    # The levels share the distances; each has a weighted sum of its own.
    "sweep": Operation(_sweep(SWEEP_SIGMAS), reads=1, products=1 + _LEVELS, calls=_LEVELS),
    "sweep-below1": Operation(_sweep(LOW_SIGMAS), reads=1, products=1 + _LEVELS, calls=_LEVELS),
    "calls": Operation(_calls, reads=_LEVELS, products=2 * _LEVELS, calls=_LEVELS),
    "trajectory": Operation(
        _trajectory, reads=_EVALUATIONS, products=2 * _EVALUATIONS, calls=_EVALUATIONS
    ),
}
