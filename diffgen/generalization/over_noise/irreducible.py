"""The irreducible loss: what the best network of a training set is left with at each time.

    L*(t) = E |y - y*|^2 = E |y|^2 - E |y*|^2 = c_t^2 E trace Cov(x0 | x_t)

with y the target, ``y* = E[y | x_t]`` the optimum and ``c_t`` the factor by which an error of the
posterior mean enters the target (1 for x0, ``alpha_t / sigma_t`` for epsilon). For epsilon the
second form is the paper's ``d - E |epsilon*|^2``. No network has a smaller training loss.

The three forms agree in expectation over noised training points. The last one takes the
expectation given x_t in closed form and so has the least Monte-Carlo error: it is the value. The
difference of the first two is a check of the optimum, of which a z-score is reported. Where the
posterior has all but collapsed, draws that tell the forms apart are rare and may all be missing, so
that the spread of the draws says too little: the variance is at least that of
``2 (y - y*).y*`` given x_t, ``4 c_t^2 y*' Cov(x0 | x_t) y*``, which the kernel gives exactly.

Source: Yi, Sun, Li, On the Generalization of Diffusion Model (2023), arXiv:2305.14712, the
empirical optimum; Xu, Tong, Jaakkola, Stable target field (2023), the trace over time. The three
forms are derived from the definition of a conditional mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization.over_noise.forward import (
    Draws,
    Noised,
    PerPoint,
    Wrapper,
    check_points,
    draw_points,
    error_scale,
    named_target,
    noised_points,
    squared_norm,
    time_grid,
)
from diffgen.generalization.statistics.bootstrap import bootstrap_interval
from diffgen.generalization.statistics.standard_errors import agree, standard_error, z_score
from diffgen.parameterizations import Parameterization
from diffgen.process_base import Process


@dataclass(frozen=True)
class IrreducibleLoss:
    """The least training loss at T times, from M noised training points; sums over D elements.

    Attributes:
        times: ``(T,)``, as the process has them.
        ratios: Noise levels ``sigma_t / alpha_t``, ``(T,)`` float64.
        conditional: ``c_t^2 trace Cov(x0 | x_t)`` of each point, ``(T, M)`` float64.
        squared_error: ``|y - y*|^2`` of each point, ``(T, M)`` float64.
        from_norms: ``E[|y|^2 | x0] - |y*|^2`` of each point, ``(T, M)`` float64.
        interval: Bootstrap interval of `mean` at each time: two ``(T,)``.
        z_score: Of the mean difference between ``squared_error`` and ``from_norms``, ``(T,)``;
            NaN for one point.
        settings: What determines the numbers beside the set.
    """

    times: Tensor
    ratios: Tensor
    conditional: Tensor
    squared_error: Tensor
    from_norms: Tensor
    interval: tuple[Tensor, Tensor]
    z_score: Tensor
    settings: dict[str, Any]

    @property
    def mean(self) -> Tensor:
        """L*(t) by the form of least variance, ``(T,)`` float64."""
        return self.conditional.mean(1)

    @property
    def standard_error(self) -> Tensor:
        """Of `mean`, ``(T,)`` float64; NaN for one point."""
        return standard_error(self.conditional)

    @property
    def agrees(self) -> bool:
        """Whether the two direct forms agree at every time: no z-score is beyond 4."""
        return agree(self.z_score)


def irreducible_loss(
    denoiser: EmpiricalDenoiser,
    process: Process,
    times: Any,
    *,
    target: str = "epsilon",
    points: Tensor | None = None,
    num_samples: int | None = 1000,
    repeats: int = 1,
    num_bootstrap: int = 1000,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: Wrapper | None = None,
) -> IrreducibleLoss:
    """The loss of the optimum on its own training set, at each time.

    Args:
        denoiser: Over the training set.
        process: The noising process.
        times: ``(T,)`` times of the process, each with some noise and some signal.
        target: What the loss is of, a name in ``PARAMETERIZATIONS``.
        points: Training points to noise, ``(M, *S)``; None draws them from the set. The forms
            agree for points that are drawn from it, by its weights.
        num_samples: Points to draw; None for every one, once.
        repeats: Noises drawn for each point.
        num_bootstrap: Resamples of the interval.
        generator: Source of points, noise and resamples, on the CPU; None is PyTorch's own.
        batch_size: Points in a pass over the data.
        progress: Wraps the pieces of work, as ``tqdm`` does.

    Returns:
        L*(t) in its three forms. Intervals and errors take the points as drawn anew each time;
        where the whole set is used they are a little too wide.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument out of range.
        BackendError: If no backend can run the problem.

    Example:
        >>> from diffgen import EmpiricalDenoiser, TrainingSet
        >>> from diffgen.processes import EDM
        >>> denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
        >>> found = irreducible_loss(denoiser, EDM(), [0.1, 100.0], target="x0")
        >>> found.mean.round(decimals=2)  # nothing, and the variance of the set
        tensor([0., 1.], dtype=torch.float64)
    """
    kind = named_target(target)
    grid = time_grid(process, times, finite=True)
    if points is None:
        points = draw_points(denoiser.training_set, num_samples, generator)
    check_points(points, "points")
    size = len(grid.times), len(points), repeats
    conditional, squared_error, from_norms = PerPoint(*size), PerPoint(*size), PerPoint(*size)
    variance = PerPoint(*size)
    draws = Draws(generator, batch_size, progress, repeats)
    with torch.no_grad():
        for batch in noised_points(points, grid, draws):
            # At the point x_t / alpha, rounded: another point than x_t by a rounding, and what is
            # taken from it is about itself.
            ratio = batch.sigma / batch.alpha
            y = (batch.x_t.to(torch.float64) / batch.alpha).to(batch.x_t.dtype)
            posterior = denoiser.posterior(y, ratio)
            mean = y.to(torch.float64) - ratio * posterior.epsilon.to(torch.float64)
            scale = error_scale(kind, batch.alpha, batch.sigma).to(mean.device)
            here = replace(batch, x_t=batch.alpha * y.to(torch.float64))
            optimum = here.value(kind, mean)
            conditional.add(batch, scale.square() * posterior.trace_covariance)
            squared_error.add(batch, squared_norm(optimum - here.value(kind, batch.x0)))
            from_norms.add(batch, _expected_norm(kind, batch) - squared_norm(optimum))
            product = denoiser.covariance_vector_product(y, ratio, optimum.to(y.dtype))
            spread = (optimum * product).flatten(1).sum(1).clamp(min=0)
            variance.add(batch, 4 * scale.square() * spread / repeats)
    low, high = bootstrap_interval(
        conditional.values.T, num_bootstrap=num_bootstrap, generator=generator
    )
    return IrreducibleLoss(
        times=grid.times,
        ratios=grid.ratio,
        conditional=conditional.values,
        squared_error=squared_error.values,
        from_norms=from_norms.values,
        interval=(low, high),
        z_score=z_score(squared_error.values - from_norms.values, variance.values.mean(1)),
        settings={
            "process": repr(process),
            "target": target,
            "unit": "sum over elements",
            "num_samples": len(points),
            "repeats": repeats,
            "num_points": len(denoiser.training_set),
            "num_bootstrap": num_bootstrap,
            "backend": denoiser.backend,
        },
    )


def _expected_norm(kind: Parameterization, batch: Noised) -> Tensor:
    """``E[|y|^2 | x0] = a^2 D + b^2 |x0|^2`` for a target ``y = a noise + b x0``, ``(B,)``."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    of_noise = kind.from_posterior_mean(zero, batch.sigma * one, batch.alpha, batch.sigma)
    of_x0 = kind.from_posterior_mean(one, batch.alpha * one, batch.alpha, batch.sigma)
    features = batch.x0[0].numel()
    norms = squared_norm(batch.x0)
    return float(of_noise) ** 2 * features + float(of_x0) ** 2 * norms
