"""Noising processes: the signal and noise scales of ``x_t = alpha_t x0 + sigma_t epsilon``.

| name             | time                         | alpha_t           | sigma_t                   |
|------------------|------------------------------|-------------------|---------------------------|
| `ddpm`           | 0, 1, ..., T - 1 (whole)     | sqrt(alpha_bar_t) | sqrt(1 - alpha_bar_t)     |
| `ve`             | 0 to 1                       | 1                 | geometric, min to max     |
| `edm`            | 0 (the data) to infinity     | 1                 | t                         |
| `rectified_flow` | 0 (the data) to 1 (noise)    | 1 - t             | t                         |

All of them meet in the ratio ``sigma_t / alpha_t``, the noise level of ``y = x_t / alpha_t``: it is
the ``sigma`` that a denoiser takes, and `Process.t_from_ratio` finds the time again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, log, pi

import torch
from torch import Tensor

from diffgen.process_base import Process

__all__ = ["DDPM", "EDM", "PROCESSES", "VE", "Process", "RectifiedFlow"]


class DDPM(Process):
    """Denoising diffusion in T steps, which keeps the variance: ``alpha_t^2 + sigma_t^2 = 1``.

    ``alpha_t = sqrt(alpha_bar_t)``, ``alpha_bar_t = prod_{s <= t} (1 - beta_s)``; t is 0-based as
    in diffusers, so that t = 0 already carries the first noise. Between two steps the logarithm of
    ``sigma_t / alpha_t`` is linear in t (before a last step of pure noise, where that logarithm is
    infinite, ``alpha_t / sigma_t`` is).

    ``"linear"`` runs from 1e-4 to 0.02 whatever the number of steps is, as in diffusers: it reaches
    pure noise in about 1,000 steps, and far fewer need betas of their own. ``"cosine"`` is capped
    at beta = 0.999.

    Args:
        betas: ``"linear"``, ``"cosine"``, or the betas themselves, ``(T,)``, each in (0, 1); the
            last may be 1.
        num_steps: T, at least 2. Betas that are given bring their own number.

    Attributes:
        betas: float64 ``(T,)``.
        alpha_bar: float64 ``(T,)``.
        num_steps: T.

    Raises:
        ValueError: Betas out of range, an unknown name, fewer than two steps.

    Example:
        >>> process = DDPM()
        >>> float(process.ratio(999))  # doctest: +ELLIPSIS
        157.40...
        >>> process.t_from_ratio(1.0, nearest=True)
        tensor(258)

    Source:
        Ho, Jain, Abbeel, Denoising diffusion probabilistic models (2020), equation 4 and section 4
        (linear); Nichol, Dhariwal, Improved denoising diffusion probabilistic models (2021),
        equation 17 (cosine).
    """

    def __init__(self, betas: str | Tensor = "linear", num_steps: int = 1000) -> None:
        """Compute the tables; see the class."""
        self.betas = _betas(betas, num_steps)
        self.num_steps = len(self.betas)
        self._schedule = betas if isinstance(betas, str) else f"<{self.num_steps} betas>"
        # Through logarithms, so that 1 - alpha_bar keeps its digits where alpha_bar is near 1.
        log_alpha_bar = torch.log1p(-self.betas).cumsum(0)
        self.alpha_bar = log_alpha_bar.exp()
        self._alphas = (0.5 * log_alpha_bar).exp()
        self._sigmas = (-torch.expm1(log_alpha_bar)).sqrt()
        self._ratios = self._sigmas / self._alphas
        self._ratio_range = (float(self._ratios[0]), float(self._ratios[-1]))
        self.time_range = self.sampling_range = (0.0, self.num_steps - 1.0)

    def __repr__(self) -> str:
        """The call that made the process."""
        return f"DDPM(betas={self._schedule!r}, num_steps={self.num_steps})"

    @property
    def ratio_range(self) -> tuple[float, float]:
        """The ratios of t = 0 and t = T - 1."""
        return self._ratio_range

    def times(self, n: int) -> Tensor:
        """The n whole times from T - 1 to 0, as equally spaced as rounding allows.

        Raises:
            ValueError: n is not between 1 and T.
        """
        if n > self.num_steps:
            raise ValueError(f"n must be at most num_steps = {self.num_steps}, got {n}")
        return super().times(n).round()

    def _alpha(self, t: Tensor) -> Tensor:
        # alpha = 1 / sqrt(1 + ratio^2): right between the steps, rounded once more than the table.
        return self._at(t, self._alphas, lambda ratio: 1 / (1 + ratio.square()).sqrt())

    def _sigma(self, t: Tensor) -> Tensor:
        return self._at(t, self._sigmas, lambda ratio: 1 / (1 + ratio.square().reciprocal()).sqrt())

    def _ratio(self, t: Tensor) -> Tensor:
        return self._at(t, self._ratios, lambda ratio: ratio)

    def _at(self, t: Tensor, table: Tensor, between: Callable[[Tensor], Tensor]) -> Tensor:
        """The table at whole times; a function of the interpolated ratio between them."""
        # A NaN (a bad time on an accelerator) must not become an index.
        whole = t.detach().nan_to_num(0.0).floor().long()
        part = t - whole
        low, high = self._ratios_around(whole)
        ratio = torch.where(high.isinf(), low / (1 - part), low * (high / low) ** part)
        return torch.where(part == 0, table.to(t.device)[whole], between(ratio))

    def _ratios_around(self, whole: Tensor) -> tuple[Tensor, Tensor]:
        ratios = self._ratios.to(whole.device)
        return ratios[whole], ratios[(whole + 1).clamp(max=self.num_steps - 1)]

    def _t_from_ratio(self, ratio: Tensor) -> Tensor:
        ratios = self._ratios.to(ratio.device)
        below = torch.searchsorted(ratios, ratio.detach().contiguous(), right=True) - 1
        whole = below.clamp(0, self.num_steps - 2)
        low, high = self._ratios_around(whole)
        part = torch.where(high.isinf(), 1 - low / ratio, (ratio / low).log() / (high / low).log())
        return whole + part.clamp(0, 1)

    def _nearest(self, t: Tensor) -> Tensor:
        return t.round().long()


@dataclass(frozen=True)
class VE(Process):
    """Variance-exploding process: ``alpha_t = 1``, ``sigma_t = sigma_min (sigma_max/sigma_min)^t``.

    Args:
        sigma_min: Noise at t = 0, in the units of the data; positive.
        sigma_max: Noise at t = 1; larger than sigma_min.

    Raises:
        ValueError: Not ``0 < sigma_min < sigma_max < inf``.

    Example:
        >>> VE(0.01, 100.0).sigma(0.5)
        tensor(1., dtype=torch.float64)

    Source:
        Song et al., Score-based generative modeling through stochastic differential equations
        (2021), appendix C; the variance that data at t = 0 start with is part of sigma_t.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    time_range = sampling_range = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Check the range of noise."""
        if not (0 < self.sigma_min < self.sigma_max and isfinite(self.sigma_max)):
            raise ValueError(
                "sigma_min and sigma_max must be finite with 0 < sigma_min < sigma_max, "
                f"got {self.sigma_min:g} and {self.sigma_max:g}"
            )

    @property
    def ratio_range(self) -> tuple[float, float]:
        """From sigma_min to sigma_max."""
        return self.sigma_min, self.sigma_max

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.where(t.isnan(), t, 1.0)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min ** (1 - t) * self.sigma_max**t

    def _ratio(self, t: Tensor) -> Tensor:
        return self._sigma(t)

    def _t_from_ratio(self, ratio: Tensor) -> Tensor:
        return ((ratio / self.sigma_min).log() / log(self.sigma_max / self.sigma_min)).clamp(0, 1)


@dataclass(frozen=True)
class EDM(Process):
    """Noise itself as the time: ``alpha_t = 1``, ``sigma_t = t``, t = 0 is the data.

    `times` run between 0.002 and 80, the range that the paper samples from; `schedules.karras`
    places them better.

    Example:
        >>> EDM().sigma(2)
        tensor(2., dtype=torch.float64)

    Source:
        Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative
        models (2022), table 1.
    """

    time_range = (0.0, inf)
    sampling_range = (0.002, 80.0)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Every noise level."""
        return 0.0, inf

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.where(t.isnan(), t, 1.0)

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _ratio(self, t: Tensor) -> Tensor:
        return t.clone()

    def _t_from_ratio(self, ratio: Tensor) -> Tensor:
        return ratio


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """Straight lines from data (t = 0) to noise (t = 1): ``alpha_t = 1 - t``, ``sigma_t = t``.

    Its velocity ``dx_t/dt = epsilon - x0`` points from data to noise. Libraries that run time from
    noise to data have ``t' = 1 - t`` and the opposite velocity. At t = 1 nothing of the data is
    left (ratio infinite), so `times` start at t = 0.999: noise level 999.

    Example:
        >>> RectifiedFlow().ratio(0.75)
        tensor(3., dtype=torch.float64)

    Source:
        Lipman et al., Flow matching for generative modeling (2023); Liu, Gong, Liu, Flow straight
        and fast (2023), equation 1; both with time reversed.
    """

    time_range = (0.0, 1.0)
    sampling_range = (0.001, 0.999)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Every noise level."""
        return 0.0, inf

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _ratio(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def _t_from_ratio(self, ratio: Tensor) -> Tensor:
        # Not ratio / (1 + ratio), which is NaN at infinity.
        return 1 / (1 + 1 / ratio)


PROCESSES: dict[str, type[Process]] = {
    "ddpm": DDPM,
    "ve": VE,
    "edm": EDM,
    "rectified_flow": RectifiedFlow,
}
"""Every process by its name; each can be made without an argument."""


def _betas(betas: str | Tensor, num_steps: int) -> Tensor:
    """The betas of a named schedule, or the given ones after their checks; float64."""
    if not isinstance(betas, str):
        given = torch.as_tensor(betas, dtype=torch.float64).detach().cpu().clone()
        if given.ndim != 1 or len(given) < 2:
            raise ValueError(f"betas must be (T,) with T >= 2, got shape {tuple(given.shape)}")
        if num_steps not in (1000, len(given)):
            raise ValueError(f"num_steps must be {len(given)} as betas has, got {num_steps}")
        good = (given > 0) & (given < 1)
        good[-1] |= given[-1] == 1
        if not bool(good.all()):
            index = int((~good).nonzero()[0])
            got = float(given[index])
            raise ValueError(f"betas must be in (0, 1), the last at most 1, got {got:g} at {index}")
        return given
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2, got {num_steps}")
    if betas == "linear":
        return torch.linspace(1e-4, 0.02, num_steps, dtype=torch.float64)
    if betas == "cosine":
        steps = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        level = ((steps + 0.008) / 1.008 * (pi / 2)).cos().square()
        return (1 - level[1:] / level[:-1]).clamp(max=0.999)
    raise ValueError(f"betas must be 'linear', 'cosine' or a tensor, got {betas!r}")
