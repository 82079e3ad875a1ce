"""The usual objective: predict the noise in ``x_t = alpha_t x0 + sigma_t epsilon``, or its like.

Every target of ``PARAMETERIZATIONS`` is affine in ``(x0, x_t)``; where x0 is known it is the target
of that sample, and its expectation given x_t the optimum. So one objective covers DDPM (epsilon),
x0 and v prediction, score matching, EDM (x0 with the ``"edm"`` weighting) and flow matching
(velocity under `RectifiedFlow`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffgen.objectives.regression import (
    Objective,
    Regression,
    checked_points,
    normal,
    parameterization,
)
from diffgen.objectives.time_laws import Times, draw_times, time_law
from diffgen.objectives.weightings import Weighting, check_weighting, weights_of
from diffgen.process_base import Process


class Noised(NamedTuple):
    """Training points with noise.

    Attributes:
        x_t: ``(B, *S)``, in x0's type.
        exact: The same before it was rounded, float64.
        t: ``(B,)``, as the network gets it.
        alpha: ``(B,)`` float64.
        sigma: ``(B,)`` float64.
    """

    x_t: Tensor
    exact: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor


class NoisePrediction(Objective):
    """Regress on the noise in the sample, or on another target of ``PARAMETERIZATIONS``.

    ``loss = E w(t) |network(x_t, t) - target|^2``, x_t = alpha_t x0 + sigma_t epsilon``

    Its optimum over a finite training set is ``EmpiricalDenoiser.predictor(process, target)``.

    Args:
        process: The noising process.
        target: What the network predicts: ``"epsilon"``, ``"x0"``, ``"v"``, ``"score"`` or
            ``"velocity"``.
        times: Law of the times: ``"uniform"``, ``"lognormal"``, ``"logit_normal"``, or a callable
            ``(process, count, generator, device) -> times``; see `diffgen.objectives.time_laws`.
            None is ``"lognormal"`` under `EDM` and ``"uniform"`` elsewhere.
        weighting: Weight over noise levels: ``"unit"``, ``"epsilon"``, ``"edm"``, ``"min_snr"``, or
            a callable ``t -> weight``; see `diffgen.objectives.weightings`.

    Raises:
        TypeError: times or weighting is neither a name nor a callable.
        ValueError: No such target, times or weighting; or times that the process cannot have.

    Example:
        >>> from diffgen.processes import DDPM
        >>> objective = NoisePrediction(DDPM())
        >>> generator = torch.Generator().manual_seed(0)
        >>> loss = objective(lambda x_t, t: 0 * x_t, torch.zeros(1000, 12), generator)
        >>> round(float(loss), 1)  # a network that says 0 is off by the noise, of variance 1
        1.0

    Source:
        Ho, Jain, Abbeel, Denoising diffusion probabilistic models (2020), equation 14; the other
        targets as in `diffgen.parameterizations`.
    """

    def __init__(
        self,
        process: Process,
        target: str = "epsilon",
        *,
        times: Times | None = None,
        weighting: Weighting = "unit",
    ) -> None:
        """Check the choices; see the class."""
        self._parameterization = parameterization(target)
        check_weighting(weighting)
        self.process = process
        self.target = target
        self.times = time_law(times, process)
        self.weighting = weighting

    def draw(
        self,
        x0: Tensor,
        generator: torch.Generator | None = None,
        *,
        class_labels: Tensor | None = None,
    ) -> Regression:
        """The draws of one training step; arguments and errors as in ``__call__``."""
        noised = self.noise(x0, generator)
        return self.regression(noised, x0.to(torch.float64))

    def noise(self, x0: Tensor, generator: torch.Generator | None = None) -> Noised:
        """Draw a time and noise for each training point: the first half of `draw`.

        Args:
            x0: Training points, ``(B, *S)``.
            generator: Source of the draws.
        """
        checked_points(x0)
        t = draw_times(self.times, self.process, x0, generator)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        each = (-1, *[1] * (x0.ndim - 1))
        exact = alpha.reshape(each) * x0 + sigma.reshape(each) * normal(x0, generator)
        return Noised(exact.to(x0.dtype), exact, t, alpha, sigma)

    def regression(self, noised: Noised, mean: Tensor, x_t: Tensor | None = None) -> Regression:
        """The regression on the target that a value in the place of x0 gives.

        Args:
            noised: What `noise` drew.
            mean: The training points themselves, or an expectation of them given x_t,
                ``(B, *S)`` float64.
            x_t: The noisy points that the mean belongs to, float64; None for those before rounding.
        """
        t, alpha, sigma = noised.t, noised.alpha, noised.sigma
        x_t = noised.exact if x_t is None else x_t
        kind = noised.x_t.dtype
        target = self._parameterization.from_posterior_mean(mean, x_t, alpha, sigma)
        weight = weights_of(self.weighting, self._parameterization, t, alpha, sigma)
        return Regression(
            noised.x_t, t, target.to(kind), torch.ones_like(weight, dtype=kind), weight.to(kind)
        )

    def settings(self) -> dict[str, Any]:
        """What determines the objective beside the draws, as numbers and words."""
        return {
            "objective": type(self).__name__,
            "process": repr(self.process),
            "target": self.target,
            "times": described(self.times),
            "weighting": described(self.weighting),
        }


def described(choice: Any) -> str:
    """A name for a choice: its own, that of a function, or its repr."""
    if isinstance(choice, str):
        return choice
    return str(getattr(choice, "__qualname__", None) or repr(choice))
