"""The forward-time objective: estimate the noise of the last step into x_t, not all since x0.

A noisy point is reached in two steps, from x0 to x_s and from x_s to x_t:

    x_s = alpha_s x0 + sigma_s e1,   x_t = (alpha_t / alpha_s) x_s + rho sigma_t e2

with rho as in `diffgen.noised.steps`. For every s < t

    E[e2 | x_t] = rho E[epsilon | x_t] = -rho sigma_t grad log p_t(x_t)                   (Tweedie)
    E|rho f(x_t) - e2|^2 = rho^2 E|f(x_t) - epsilon|^2 + (1 - rho^2) D             (any function f)

so that ``rho network(x_t, t)`` regressed on e2 has the optimum of noise prediction, whatever the
law q(s | t) and the weights are; only the variance of its gradient differs. The constant of the
second line is the part of e2 that is independent of ``(x0, x_t)``: noise in the target, which in
the scale of epsilon has the variance ``1 / rho^2 - 1``. Under DDPM's linear schedule that is 26 to
100 for the previous point (t from 50 to 1,000); uniform gaps make it 15 to 216 times less.

That holds where the noise is drawn anew at each step. Over finitely many noised points x_s the
optimum is another: `diffgen.noised.training_set`.

Source:
    Yi, Sun, Li, On the Generalization of Diffusion Model (2023), arXiv:2305.14712, as summarised
    second-hand: forward in time, by Tweedie's formula, with randomised gaps. The identities above
    are derived here; the law of the gap and the weights, left open there, are options.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffgen.noised.gaps import Gap, gap_law
from diffgen.noised.steps import (
    GapWeighting,
    check_gap_weighting,
    gap_weights,
    scales_at,
    step_between,
)
from diffgen.objectives.noise_prediction import described
from diffgen.objectives.regression import Objective, Regression, checked_points, normal
from diffgen.objectives.time_laws import Times, draw_times, time_law
from diffgen.process_base import Process


class ForwardTime(Objective):
    """Regress ``rho network(x_t, t)`` on the noise of the last step, from x_s to x_t.

    ``loss = E lam(t, s) |rho_{t,s} network(x_t, t) - e2|^2``, with t from the law of times and s
    from q(s | t). The network predicts epsilon, as with `NoisePrediction`.

    Args:
        process: The noising process. `DDPM` has the data at s = -1, one before its first step.
        gap: The law q(s | t): ``"previous"`` (s = t - 1; discrete time only), ``"uniform"`` (every
            earlier time, the data among them), a law of `diffgen.noised.gaps`, or a callable
            ``(t, generator) -> s``.
        weighting: ``"unit"`` (lam = 1), ``"noise"`` (lam = 1 / rho^2, the weight of plain noise
            prediction: e2 / rho is as large as the gap is small), or a callable ``(t, s) -> lam``.
            In continuous time 1 / rho^2 has no expectation under the uniform gap.
        times: Law of the times t, as for `NoisePrediction`.

    Raises:
        TypeError: An option has the wrong type.
        ValueError: An unknown name, or a law that the process cannot have.

    Example:
        >>> from diffgen.processes import DDPM
        >>> objective = ForwardTime(DDPM(), gap="uniform")
        >>> generator = torch.Generator().manual_seed(0)
        >>> loss = objective(lambda x_t, t: 0 * x_t, torch.zeros(1000, 12), generator)
        >>> round(float(loss), 1)
        1.0

    Source:
        The module docstring says what is the paper's and what is derived.
    """

    target = "epsilon"

    def __init__(
        self,
        process: Process,
        gap: Gap = "previous",
        weighting: GapWeighting = "unit",
        *,
        times: Times | None = None,
    ) -> None:
        """Check the choices; see the class."""
        check_gap_weighting(weighting)
        self.process = process
        self.gap = gap_law(gap, process)
        self.weighting = weighting
        self.times = time_law(times, process)

    def draw(
        self,
        x0: Tensor,
        generator: torch.Generator | None = None,
        *,
        class_labels: Tensor | None = None,
    ) -> Regression:
        """The draws of one training step; arguments and errors as in ``__call__``."""
        checked_points(x0)
        t = draw_times(self.times, self.process, x0, generator)
        s = self.gap.draw(self.process, t, generator)
        alpha_s, sigma_s = scales_at(self.process, s)
        step = step_between(self.process, t, s)
        each = (-1, *[1] * (x0.ndim - 1))
        x_s = alpha_s.reshape(each) * x0 + sigma_s.reshape(each) * normal(x0, generator)
        last = normal(x0, generator)
        x_t = step.alpha.reshape(each) * x_s + step.sigma.reshape(each) * last
        weight = gap_weights(self.weighting, t, s, step.rho)
        kind = x0.dtype
        return Regression(x_t.to(kind), t, last, step.rho.to(kind), weight.to(kind))

    def settings(self) -> dict[str, Any]:
        """What determines the objective beside the draws, as numbers and words."""
        return {
            "objective": type(self).__name__,
            "process": repr(self.process),
            "target": self.target,
            "gap": repr(self.gap),
            "times": described(self.times),
            "weighting": described(self.weighting),
        }
