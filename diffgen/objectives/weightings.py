"""Weights of a training loss over noise levels, the same whatever the network predicts.

A weight is stated for the error of the posterior mean. The mean is affine in what the network
predicts, ``slope value + ...``, so an error of the prediction weighs ``slope^2`` times as much:

| name        | weight of the squared error of x0   | makes the loss                     |
|-------------|-------------------------------------|------------------------------------|
| `"unit"`    | ``1 / slope^2``                     | the plain regression on the target |
| `"epsilon"` | ``snr``                             | that of DDPM, whatever the target  |
| `"edm"`     | ``(ratio^2 + 1/4) / (ratio / 2)^2`` | that of EDM with sigma_data = 0.5  |
| `"min_snr"` | ``min(snr, 5)``                     | that of Min-SNR-5                  |

with ``ratio = sigma_t / alpha_t`` and ``snr = 1 / ratio^2``.

Source:
    Ho et al. (2020), equation 14 (epsilon); Karras et al. (2022), table 1 (edm); Hang et al.,
    Efficient diffusion training via Min-SNR weighting strategy (2023), section 3.4 (min_snr).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from diffgen.parameterizations import Parameterization

Weighting: TypeAlias = str | Callable[[Tensor], Tensor]
"""A name, or ``t (B,) -> weight (B,)`` of the squared error of the prediction."""

SIGMA_DATA = 0.5
"""Standard deviation of the data that EDM assumes."""

SNR_CLIP = 5.0
"""Signal-to-noise ratio at which Min-SNR clips."""

WEIGHTINGS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "unit": None,
    "epsilon": lambda ratio: 1 / ratio.square(),
    "edm": lambda ratio: (ratio.square() + SIGMA_DATA**2) / (ratio * SIGMA_DATA).square(),
    "min_snr": lambda ratio: (1 / ratio.square()).clamp(max=SNR_CLIP),
}
"""Weight of the squared error of the posterior mean by ``sigma_t / alpha_t``, for each name."""


def check_weighting(weighting: Weighting) -> None:
    """Checks a weighting before anything is drawn.

    Raises:
        TypeError: Neither a name nor a callable.
        ValueError: No such name.
    """
    if isinstance(weighting, str):
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    elif not callable(weighting):
        raise TypeError(f"weighting must be a name or a callable, got {type(weighting).__name__}")


def weights_of(
    weighting: Weighting, target: Parameterization, t: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """The weight of the squared error of a prediction.

    Args:
        weighting: A name, or a callable of t.
        target: What is predicted.
        t: Times, ``(B,)``.
        alpha: Signal scales, ``(B,)`` float64.
        sigma: Noise scales, ``(B,)`` float64.

    Returns:
        ``(B,)`` float64.

    Raises:
        ValueError: A weight is negative, NaN or infinite (looked at on the CPU only), or a
            callable gives another shape.

    Example:
        >>> from diffgen.parameterizations import PARAMETERIZATIONS
        >>> alpha, sigma = torch.full((2, 1), 0.5, dtype=torch.float64)
        >>> weights_of("edm", PARAMETERIZATIONS["epsilon"], torch.zeros(1), alpha, sigma)
        tensor([5.], dtype=torch.float64)
    """
    if isinstance(weighting, str):
        of_mean = WEIGHTINGS[weighting]
        weights = torch.ones_like(sigma)
        if of_mean is not None:
            weights = of_mean(sigma / alpha) * slope(target, alpha, sigma).square()
    else:
        weights = torch.as_tensor(weighting(t), dtype=torch.float64, device=sigma.device)
        if weights.shape != t.shape:
            need, got = tuple(t.shape), tuple(weights.shape)
            raise ValueError(f"weighting must give shape {need}, got {got}")
    if weights.device.type == "cpu":
        bad = ~((weights >= 0) & weights.isfinite())
        if bool(bad.any()):
            index = int(bad.nonzero()[0])
            raise ValueError(
                "weighting must give finite weights of at least 0, got "
                f"{float(weights[index]):g} at t = {float(t[index]):g} for target {target.name!r}"
            )
    return weights


def slope(target: Parameterization, alpha: Tensor, sigma: Tensor) -> Tensor:
    """How much the posterior mean changes with the prediction: ``d mean / d value``.

    Args:
        target: What is predicted.
        alpha: ``(B,)`` float64.
        sigma: ``(B,)`` float64.

    Returns:
        ``(B,)`` float64; NaN where the prediction says nothing about the mean.

    Example:
        >>> from diffgen.parameterizations import PARAMETERIZATIONS
        >>> alpha, sigma = torch.tensor([0.6]).double(), torch.tensor([0.8]).double()
        >>> slope(PARAMETERIZATIONS["v"], alpha, sigma)
        tensor([-0.8000], dtype=torch.float64)
    """
    # The map is affine in the value, and has no constant part where x_t = 0.
    one = torch.ones_like(sigma)[:, None]
    return target.to_posterior_mean(one, torch.zeros_like(one), alpha, sigma)[:, 0]
