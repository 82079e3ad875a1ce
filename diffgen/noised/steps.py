"""One Gaussian step from a time s to a later time t of a noising process.

In a process ``x_t = alpha_t x0 + sigma_t epsilon`` any two times s < t are one step apart,

    x_t = (alpha_t / alpha_s) x_s + rho sigma_t xi,     rho^2 = 1 - (ratio_s / ratio_t)^2,

with ``ratio = sigma / alpha`` and xi standard normal. For DDPM, with ``a = alpha_bar_t /
alpha_bar_s``, that is ``rho^2 = (1 - a) / (1 - alpha_bar_t)``.

In discrete time the times before t are ``0, ..., t - 1`` and the data themselves, ``DATA = -1``
(`DDPM` counts from 0, where x_0 already carries the first noise). In continuous time the data are
the first time of the process, where its noise is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from diffgen.process_base import Process
from diffgen.processes import DDPM

DATA = -1
"""The time of the data, before the first step of a process in discrete time."""

GapWeighting: TypeAlias = str | Callable[[Tensor, Tensor], Tensor]
"""``"unit"``, ``"noise"``, or ``(t, s) -> weight``, all ``(B,)``."""

GAP_WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "unit": torch.ones_like,
    "noise": lambda rho: 1 / rho.square(),
}
"""Weight ``lam`` of a gap by its rho, for each name."""


def scales_at(process: Process, s: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise scale at times that may be `DATA`.

    Args:
        process: The noising process.
        s: Any shape.

    Returns:
        ``alpha_s`` and ``sigma_s``, float64; 1 and 0 for the data.
    """
    if not isinstance(process, DDPM):
        return process.alpha(s), process.sigma(s)
    data = s == DATA
    whole = torch.where(data, 0, s)
    alpha, sigma = process.alpha(whole), process.sigma(whole)
    return torch.where(data, 1.0, alpha), torch.where(data, 0.0, sigma)


class Step(NamedTuple):
    """The step ``x_t = alpha x_s + sigma xi``, all float64.

    Attributes:
        alpha: ``alpha_t / alpha_s``.
        sigma: ``rho sigma_t``, positive.
        rho: The step's share of the noise of x_t, in (0, 1]; 1 where s is the data.
    """

    alpha: Tensor
    sigma: Tensor
    rho: Tensor


def step_between(process: Process, t: Tensor, s: Tensor) -> Step:
    """The step from s to t.

    Args:
        process: The noising process.
        t: Times, any shape.
        s: Earlier times, of a shape that broadcasts; `DATA` for the data in discrete time.

    Returns:
        The step, of the broadcast shape.

    Raises:
        ValueError: A time is out of the process's range.

    Example:
        >>> process = DDPM(torch.tensor([0.5, 0.5]))
        >>> step_between(process, torch.tensor([1, 1]), torch.tensor([0, -1])).rho.square()
        tensor([0.6667, 1.0000], dtype=torch.float64)
    """
    alpha, sigma = scales_at(process, s)
    share = sigma / alpha / process.ratio(t)
    # (1 - q)(1 + q), not 1 - q^2, which cancels where the step is short.
    rho = ((1 - share) * (1 + share)).sqrt()
    return Step(process.alpha(t) / alpha, rho * process.sigma(t), rho)


def check_gap_weighting(weighting: GapWeighting) -> None:
    """Checks a weighting before it is used.

    Raises:
        TypeError: Neither a name nor a callable.
        ValueError: No such name.
    """
    if isinstance(weighting, str):
        if weighting not in GAP_WEIGHTINGS:
            known = ", ".join(GAP_WEIGHTINGS)
            raise ValueError(f"weighting must be one of {known}, got {weighting!r}")
    elif not callable(weighting):
        raise TypeError(f"weighting must be a name or a callable, got {type(weighting).__name__}")


def gap_weights(weighting: GapWeighting, t: Tensor, s: Tensor, rho: Tensor) -> Tensor:
    """The weight lam(t, s).

    Args:
        weighting: A name, or a callable of t and s.
        t: Times, ``(B,)``.
        s: Earlier times, ``(B,)``.
        rho: The share of noise of these steps, ``(B,)`` float64.

    Returns:
        ``(B,)`` float64.

    Raises:
        ValueError: A callable gives another shape, or a weight that is negative, NaN or infinite
            (looked at on the CPU only).
    """
    if isinstance(weighting, str):
        return GAP_WEIGHTINGS[weighting](rho)
    weights = torch.as_tensor(weighting(t, s), dtype=torch.float64, device=rho.device)
    if weights.shape != rho.shape:
        need, got = tuple(rho.shape), tuple(weights.shape)
        raise ValueError(f"weighting must give shape {need}, got {got}")
    if weights.device.type == "cpu":
        bad = ~((weights >= 0) & weights.isfinite())
        if bool(bad.any()):
            value = float(weights[bad][0])
            raise ValueError(f"weighting must give finite weights of at least 0, got {value:g}")
    return weights
