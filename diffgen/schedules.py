"""Sequences of noise levels for samplers.

Each is a float64 tensor ``(n + 1,)`` on the CPU: n positive levels in decreasing order, then 0, as
EDM and k-diffusion have it. A sampler takes n steps through it and calls the denoiser at the n
positive levels, never at the last one. Levels are noise in ``y = x_t / alpha_t``, in the units of
the data. Leave the final 0 away with ``[:-1]`` to stop at the smallest level.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite, log

import torch
from torch import Tensor

from diffgen.processes import Process


def karras(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Levels equally spaced in ``sigma^(1/rho)``: dense at small noise, where paths bend.

    ``sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho``

    Args:
        n: Number of positive levels, at least 1; a single one is sigma_max.
        sigma_min: Smallest positive level, in the units of the data.
        sigma_max: Largest level.
        rho: Positive; 1 is equal spacing, infinity would be geometric.

    Returns:
        float64 ``(n + 1,)``, decreasing, the last one 0.

    Raises:
        ValueError: n < 1, rho not positive, or not ``0 < sigma_min < sigma_max < inf``.

    Example:
        >>> karras(3, sigma_min=1.0, sigma_max=9.0, rho=2.0)
        tensor([9., 4., 1., 0.], dtype=torch.float64)

    Source:
        Karras et al., Elucidating the design space of diffusion-based generative models (2022),
        equation 5.
    """
    if not (rho > 0 and isfinite(rho)):
        raise ValueError(f"rho must be positive and finite, got {rho:g}")
    return _spaced(
        n, sigma_min, sigma_max, lambda sigma: sigma ** (1 / rho), lambda spot: spot**rho
    )


def exponential(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Tensor:
    """Levels equally spaced in ``log sigma``: each is the same factor below the one before.

    Args:
        n: Number of positive levels, at least 1; a single one is sigma_max.
        sigma_min: Smallest positive level, in the units of the data.
        sigma_max: Largest level.

    Returns:
        float64 ``(n + 1,)``, decreasing, the last one 0.

    Raises:
        ValueError: n < 1, or not ``0 < sigma_min < sigma_max < inf``.

    Example:
        >>> exponential(3, 0.01, 1.0)
        tensor([1.0000, 0.1000, 0.0100, 0.0000], dtype=torch.float64)

    Source:
        Song et al. (2021), appendix C (the variance-exploding process in equal steps of time).
    """
    return _spaced(n, sigma_min, sigma_max, log, torch.exp)


def linear(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Tensor:
    """Levels equally spaced in sigma.

    Args:
        n: Number of positive levels, at least 1; a single one is sigma_max.
        sigma_min: Smallest positive level, in the units of the data.
        sigma_max: Largest level.

    Returns:
        float64 ``(n + 1,)``, decreasing, the last one 0.

    Raises:
        ValueError: n < 1, or not ``0 < sigma_min < sigma_max < inf``.

    Example:
        >>> linear(3, 1.0, 5.0)
        tensor([5., 3., 1., 0.], dtype=torch.float64)

    Source:
        Song, Meng, Ermon, Denoising diffusion implicit models (2021), section 4.3: in these
        coordinates the sampler is Euler's method in sigma.
    """
    return _spaced(n, sigma_min, sigma_max, float, lambda spot: spot)


def from_process(process: Process, n: int) -> Tensor:
    """The levels ``sigma_t / alpha_t`` of a process at n of its times, equally spaced in time.

    `Process.times` says which: DDPM takes whole times from T - 1 to 0 (n = T takes every step),
    the others spread over their ``sampling_range``.

    Args:
        process: The noising process.
        n: Number of positive levels, at least 1; at most the process's own number of steps.

    Returns:
        float64 ``(n + 1,)``, decreasing, the last one 0.

    Raises:
        ValueError: n < 1 or more than the process has; the process starts at pure noise (a ratio
            of infinity, which has no place in ``y = x_t / alpha_t``).

    Example:
        >>> from diffgen.processes import DDPM
        >>> from_process(DDPM(), 1000).shape
        torch.Size([1001])
    """
    sigmas = process.ratio(process.times(n))
    if not bool(sigmas.isfinite().all()):
        raise ValueError(
            "process must leave some signal at its last time (sigma_t/alpha_t finite), "
            f"got {float(sigmas.max()):g}"
        )
    return _with_zero(sigmas)


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "karras": karras,
    "exponential": exponential,
    "linear": linear,
}
"""The schedules that take ``(n, sigma_min, sigma_max)``, by name."""


def _spaced(
    n: int,
    sigma_min: float,
    sigma_max: float,
    spot: Callable[[float], float],
    sigma: Callable[[Tensor], Tensor],
) -> Tensor:
    """Levels equally spaced in ``spot(sigma)``, whose inverse is ``sigma(spot)``; then 0."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0 < sigma_min < sigma_max < inf:
        raise ValueError(
            "sigma_min and sigma_max must be finite with 0 < sigma_min < sigma_max, "
            f"got {sigma_min:g} and {sigma_max:g}"
        )
    sigmas = sigma(torch.linspace(spot(sigma_max), spot(sigma_min), n, dtype=torch.float64))
    # The ends as given, not as powers and logarithms round them.
    sigmas[-1] = sigma_min
    sigmas[0] = sigma_max
    return _with_zero(sigmas)


def _with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])
