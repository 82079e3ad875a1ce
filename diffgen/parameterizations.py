"""Prediction targets: the posterior mean of x0 in the forms that networks are trained to predict.

With ``x_t = alpha x0 + sigma epsilon`` each target is a map of x_t and the posterior mean
``E[x0 | x_t]``, affine in both, so that the best prediction of a target is the map of the best x0:

| target   | means                  | from the posterior mean m   | value back to m               |
|----------|------------------------|-----------------------------|-------------------------------|
| x0       | x0                     | m                           | value                         |
| epsilon  | epsilon                | e = (x_t - alpha m) / sigma | (x_t - sigma value) / alpha   |
| score    | grad log p_t(x_t)      | -e / sigma                  | (x_t + sigma^2 value) / alpha |
| v        | alpha epsilon-sigma x0 | alpha e - sigma m           | (alpha x_t - sigma value) / q |
| velocity | epsilon - x0           | e - m                       | (x_t - sigma value) / p       |

with ``q = alpha^2 + sigma^2`` (1 under DDPM) and ``p = alpha + sigma`` (1 under rectified flow).

``velocity`` is ``dx_t/dt`` of rectified flow with t = 0 at the data: it points from data to noise.
A library whose time runs from noise to data uses its negative. It is ``epsilon - x0`` under every
process, and the time derivative only under rectified flow.

Singular ends. At sigma = 0 the point says nothing about epsilon: every target but x0 is NaN; the
way back is ``x_t / alpha``. At alpha = 0 the point says nothing about x0: the way back from epsilon
and score is NaN, while x0, v and velocity still hold it.

Arithmetic is float64 and is rounded once, to the type of x_t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from diffgen.levels import Number, per_sample, within

_Map = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Parameterization:
    """One prediction target and its two maps.

    Example:
        >>> x_t, mean = torch.tensor([[1.0]]), torch.tensor([[0.5]])
        >>> epsilon = PARAMETERIZATIONS["epsilon"]
        >>> epsilon.from_posterior_mean(mean, x_t, alpha=1.0, sigma=2.0)
        tensor([[0.2500]])
        >>> epsilon.to_posterior_mean(torch.tensor([[0.25]]), x_t, alpha=1.0, sigma=2.0)
        tensor([[0.5000]])

    Source:
        Ho et al. (2020), equation 11 (epsilon); Vincent, A connection between score matching and
        denoising autoencoders (2011) (score); Salimans, Ho, Progressive distillation for fast
        sampling of diffusion models (2022), section 4 (v); Lipman et al. (2023) (velocity).
    """

    name: str
    _from_mean: _Map
    _to_mean: _Map

    def from_posterior_mean(
        self, posterior_mean: Tensor, x_t: Tensor, alpha: Number, sigma: Number
    ) -> Tensor:
        """The target's value where the posterior mean of x0 is given.

        Args:
            posterior_mean: ``(B, *S)``. In float64 it keeps the digits that ``x_t - alpha m``
                cancels at small sigma.
            x_t: Noisy points, ``(B, *S)``.
            alpha: Signal scale, at least 0: a number or 1 or B elements.
            sigma: Noise scale, at least 0: a number or 1 or B elements.

        Returns:
            ``(B, *S)`` in x_t's type. NaN at sigma = 0, for every target but x0.

        Raises:
            ValueError: Shapes differ; alpha or sigma negative or NaN.
        """
        return self._apply(self._from_mean, posterior_mean, x_t, alpha, sigma)

    def to_posterior_mean(
        self, prediction: Tensor, x_t: Tensor, alpha: Number, sigma: Number
    ) -> Tensor:
        """The posterior mean of x0 where the target's value, or a network's guess, is given.

        Args:
            prediction: ``(B, *S)``.
            x_t: Noisy points, ``(B, *S)``.
            alpha: Signal scale, at least 0: a number or 1 or B elements.
            sigma: Noise scale, at least 0: a number or 1 or B elements.

        Returns:
            ``(B, *S)`` in x_t's type. NaN at alpha = 0, for epsilon and score.

        Raises:
            ValueError: Shapes differ; alpha or sigma negative or NaN.
        """
        return self._apply(self._to_mean, prediction, x_t, alpha, sigma)

    def __reduce__(self) -> tuple[Callable[[str], Parameterization], tuple[str]]:
        """Pickle as a name in the table, whose functions have none of their own."""
        return _named, (self.name,)

    def _apply(
        self, apply: _Map, value: Tensor, x_t: Tensor, alpha: Number, sigma: Number
    ) -> Tensor:
        if value.shape != x_t.shape:
            raise ValueError(
                f"{self.name} and x_t must have one shape, "
                f"got {tuple(value.shape)} and {tuple(x_t.shape)}"
            )
        scales = [
            per_sample(within(scale, 0.0, inf, name), x_t, name)
            for scale, name in ((alpha, "alpha"), (sigma, "sigma"))
        ]
        return apply(value.to(torch.float64), x_t.to(torch.float64), *scales).to(x_t.dtype)


def _named(name: str) -> Parameterization:
    return PARAMETERIZATIONS[name]


def _or_nan(scale: Tensor) -> Tensor:
    """A divisor: NaN in place of 0, so that what is not determined never looks like a number."""
    return torch.where(scale == 0, torch.nan, scale)


PARAMETERIZATIONS: dict[str, Parameterization] = {
    entry.name: entry
    for entry in (
        Parameterization(
            "x0",
            lambda mean, x_t, alpha, sigma: mean,
            lambda value, x_t, alpha, sigma: value,
        ),
        Parameterization(
            "epsilon",
            lambda mean, x_t, alpha, sigma: (x_t - alpha * mean) / _or_nan(sigma),
            lambda value, x_t, alpha, sigma: (x_t - sigma * value) / _or_nan(alpha),
        ),
        Parameterization(
            "v",
            lambda mean, x_t, alpha, sigma: (
                alpha * ((x_t - alpha * mean) / _or_nan(sigma)) - sigma * mean
            ),
            lambda value, x_t, alpha, sigma: (
                (alpha * x_t - sigma * value) / _or_nan(alpha.square() + sigma.square())
            ),
        ),
        Parameterization(
            "score",
            lambda mean, x_t, alpha, sigma: (alpha * mean - x_t) / _or_nan(sigma) / sigma,
            lambda value, x_t, alpha, sigma: (x_t + sigma.square() * value) / _or_nan(alpha),
        ),
        Parameterization(
            "velocity",
            lambda mean, x_t, alpha, sigma: (x_t - alpha * mean) / _or_nan(sigma) - mean,
            lambda value, x_t, alpha, sigma: (x_t - sigma * value) / _or_nan(alpha + sigma),
        ),
    )
}
"""Every prediction target by its name."""
