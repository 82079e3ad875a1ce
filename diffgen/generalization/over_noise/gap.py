"""The gap between a network and the optimum of its training set, over time.

    gap(t) = E |p - y*|^2,    p = network(x_t, t),  y* = E[y | x_t] over the training set

at x_t made from training points, from test points, and on the network's own sampling path. The sum
runs over the D elements of a sample.

At noised *training* points the gap is the excess of the training loss over the irreducible loss,

    E |p - y*|^2 = E |p - y|^2 - E |y* - y|^2

for any network, since ``E[y - y* | x_t] = 0``: the difference of both sides for one draw,
``2 (p - y*).(y* - y)``, has mean zero given x_t and variance ``4 c_t^2 e' Cov(x0 | x_t) e`` with
``e = p - y*``, which the kernel gives exactly. Their sum over the draws is thus a z-score that rare
draws cannot upset. At test points nothing makes both sides equal, and both are reported.

Source: Yi, Sun, Li, On the Generalization of Diffusion Model (2023), arXiv:2305.14712 (the
difference to the optimum); Niedoba et al., Towards a mechanistic explanation of diffusion model
generalization (2024), arXiv:2411.19339 (over the three kinds of points). The identity is derived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization.over_noise.forward import (
    AtTime,
    Draws,
    Grid,
    Noised,
    PerPoint,
    Wrapper,
    check_finite,
    check_points,
    draw_points,
    error_scale,
    named_target,
    noised_points,
    squared_norm,
    time_grid,
)
from diffgen.generalization.over_noise.own_path import Paths, path_points
from diffgen.generalization.statistics.bootstrap import bootstrap_interval
from diffgen.generalization.statistics.standard_errors import agree, standard_error
from diffgen.network_output import prediction
from diffgen.parameterizations import Parameterization
from diffgen.process_base import Process

_ROUNDING = 2.0**-24
"""Relative error up to which the posterior mean is taken as exact: one rounding to float32."""


@dataclass(frozen=True)
class GapCurve:
    """The gap at one kind of points; sums over the D elements.

    Attributes:
        gap: ``|p - y*|^2`` of each point, mean over its repeats, ``(T, M)`` float64.
        loss: ``|p - y|^2`` of each point, ``(T, M)``; None on the sampling path, which has no y.
        optimum_loss: ``|y* - y|^2`` of each point, ``(T, M)``; None on the sampling path.
        interval: Bootstrap interval of `mean` over the points (or paths): two ``(T,)``.
    """

    gap: Tensor
    loss: Tensor | None
    optimum_loss: Tensor | None
    interval: tuple[Tensor, Tensor]

    @property
    def mean(self) -> Tensor:
        """Mean gap, ``(T,)`` float64."""
        return self.gap.mean(1)

    @property
    def standard_error(self) -> Tensor:
        """Of `mean`, ``(T,)`` float64."""
        return standard_error(self.gap)

    @property
    def excess(self) -> Tensor | None:
        """Loss above that of the optimum on the same draws, of each point, ``(T, M)``."""
        if self.loss is None or self.optimum_loss is None:
            return None
        return self.loss - self.optimum_loss

    def scaled(self, factor: Tensor) -> GapCurve:
        """The same gap in other units, ``factor`` (T,) times as large."""
        low, high = self.interval
        column = factor[:, None]
        return GapCurve(
            gap=self.gap * column,
            loss=None if self.loss is None else self.loss * column,
            optimum_loss=None if self.optimum_loss is None else self.optimum_loss * column,
            interval=(low * factor, high * factor),
        )


@dataclass(frozen=True)
class DenoiserGap:
    """The gap of a network at T times, and the check of its identity.

    Attributes:
        times: ``(T,)``, as the process has them.
        alpha: Signal scales, ``(T,)`` float64.
        sigma: Noise scales, ``(T,)`` float64.
        target: The unit: what p and y are.
        train: At noised training points.
        test: At noised test points, where some were given.
        path: On the network's own sampling path, where asked for.
        identity_z: Z-score of ``gap - excess loss`` at training points, ``(T,)``, with the exact
            variance given x_t.
        settings: What determines the numbers beside network and sets.
    """

    times: Tensor
    alpha: Tensor
    sigma: Tensor
    target: str
    train: GapCurve
    test: GapCurve | None
    path: GapCurve | None
    identity_z: Tensor
    settings: dict[str, Any]

    @property
    def ratios(self) -> Tensor:
        """Noise levels ``sigma_t / alpha_t``, ``(T,)``."""
        return self.sigma / self.alpha

    @property
    def identity_holds(self) -> bool:
        """Whether gap = excess training loss at every time: no z-score is beyond 4."""
        return agree(self.identity_z)

    def in_units_of(self, target: str) -> DenoiserGap:
        """The same gap stated for another target: ``"x0"`` is EDM's ``E |D_theta - D*|^2``.

        At a fixed x_t every target is affine in the posterior mean, so that the gap changes by a
        factor that depends on t alone, exactly.

        Args:
            target: A name in ``PARAMETERIZATIONS``.

        Raises:
            ValueError: There is no such target.
        """
        old = error_scale(named_target(self.target), self.alpha, self.sigma)
        factor = (error_scale(named_target(target), self.alpha, self.sigma) / old).square()
        return replace(
            self,
            target=target,
            train=self.train.scaled(factor),
            test=None if self.test is None else self.test.scaled(factor),
            path=None if self.path is None else self.path.scaled(factor),
            settings={**self.settings, "target": target},
        )


def denoiser_gap(
    network: Callable[..., Any],
    denoiser: EmpiricalDenoiser,
    process: Process,
    times: Any,
    *,
    target: str = "epsilon",
    points: Tensor | None = None,
    test_points: Tensor | None = None,
    num_samples: int | None = 500,
    num_paths: int = 0,
    path_steps: int = 50,
    sampler: str = "ddim",
    repeats: int = 1,
    num_bootstrap: int = 1000,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: Wrapper | None = None,
) -> DenoiserGap:
    """Mean squared distance of a network from the optimum of its training set, at each time.

    Two calls from the same generator state see the same noise at the same points.

    Args:
        network: ``(x_t, t) -> prediction``: x_t ``(B, *S)``, t ``(B,)``. A denoiser
            ``(x, sigma)`` is a network of ``EDM()`` with target ``"x0"``.
        denoiser: The optimum: over the set that the network was trained on.
        process: The noising process of the network.
        times: ``(T,)`` times of the process, each with some noise and some signal.
        target: What the network predicts, a name in ``PARAMETERIZATIONS``.
        points: Training points to noise, ``(M, *S)``; None draws them from the set, by its
            weights. The identity holds for points that are drawn from it.
        test_points: Points that the network has not seen, ``(M', *S)``, or None.
        num_samples: Training points to draw; None for every one, once.
        num_paths: Samples drawn from the network, whose paths are measured; 0 for none, else at
            least 2.
        path_steps: Steps of the sampler, beside those to the times.
        sampler: Name of the sampler of the paths.
        repeats: Noises drawn for each point.
        num_bootstrap: Resamples of the intervals.
        generator: Source of points, noise and resamples, on the CPU; None is PyTorch's own.
        batch_size: Points in a call of the network and a pass over the data.
        progress: Wraps the pieces of work, as ``tqdm`` does.

    Returns:
        The gap at each kind of points, in the unit of the target, with that of each point.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument out of range; fewer than two points of a kind; an output of the
            network of another shape.
        BackendError: If no backend can run the problem.

    Example:
        >>> from diffgen import EmpiricalDenoiser, TrainingSet
        >>> from diffgen.processes import EDM
        >>> denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
        >>> gap = denoiser_gap(lambda x, t: x * 0, denoiser, EDM(), [0.01], target="x0")
        >>> round(float(gap.train.mean), 4)  # the optimum has found the point, at 1 from 0
        1.0
    """
    kind = named_target(target)
    grid = time_grid(process, times, finite=True)
    if points is None:
        points = draw_points(denoiser.training_set, num_samples, generator)
    check_points(points, "points")
    if test_points is not None:
        check_points(test_points, "test_points")
    if num_paths < 0:
        raise ValueError(f"num_paths must be at least 0, got {num_paths}")
    measure = _Measure(network, denoiser, process, kind, grid, num_bootstrap, generator)
    draws = Draws(generator, batch_size, progress, repeats)
    train, identity_z = measure.noised(points, draws)
    test = None if test_points is None else measure.noised(test_points, draws)[0]
    path = None
    if num_paths:
        paths = Paths(num_paths, path_steps, sampler)
        states = path_points(network, process, grid, target, paths, draws, like=points)
        path = measure.path(states, num_paths)
    return DenoiserGap(
        times=grid.times,
        alpha=grid.alpha,
        sigma=grid.sigma,
        target=target,
        train=train,
        test=test,
        path=path,
        identity_z=identity_z,
        settings={
            "process": repr(process),
            "target": target,
            "unit": "sum over elements",
            "num_samples": len(points),
            "num_test_samples": 0 if test_points is None else len(test_points),
            "num_paths": num_paths,
            "path_steps": path_steps,
            "sampler": sampler,
            "repeats": repeats,
            "num_points": len(denoiser.training_set),
            "num_bootstrap": num_bootstrap,
            "backend": denoiser.backend,
        },
    )


@dataclass(frozen=True)
class _Measure:
    """What all kinds of points share."""

    network: Callable[..., Any]
    denoiser: EmpiricalDenoiser
    process: Process
    kind: Parameterization
    grid: Grid
    num_bootstrap: int
    generator: torch.Generator | None

    def noised(self, points: Tensor, draws: Draws) -> tuple[GapCurve, Tensor]:
        """The gap at noised points, and the z-score of its identity (for training points)."""
        size = len(self.grid.times), len(points), draws.repeats
        gap, loss, optimum_loss = PerPoint(*size), PerPoint(*size), PerPoint(*size)
        total, variance, rounding = torch.zeros(3, len(self.grid.times), dtype=torch.float64)
        with torch.no_grad():
            for batch in noised_points(points, self.grid, draws):
                error, mean = self._error(batch)
                scale = float(error_scale(self.kind, batch.alpha, batch.sigma))
                left = scale * (mean - batch.x0.to(torch.float64))  # y* - y
                gap.add(batch, squared_norm(error))
                loss.add(batch, squared_norm(error + left))
                optimum_loss.add(batch, squared_norm(left))
                inner = (error * left).flatten(1).sum(1)
                total[batch.index] -= 2 * float(inner.sum())
                variance[batch.index] += 4 * scale**2 * self._spread(batch, error)
                sizes = squared_norm(error) * squared_norm(mean)
                rounding[batch.index] += 2 * abs(scale) * _ROUNDING * float(sizes.sqrt().sum())
        deviation = (variance + rounding.square()).sqrt()
        z = torch.where((total == 0) & (deviation == 0), 0.0, total / deviation)
        return self._curve(gap, loss.values, optimum_loss.values), z

    def path(self, states: Iterable[AtTime], num_paths: int) -> GapCurve:
        """The gap at states of a sampling path."""
        gap = PerPoint(len(self.grid.times), num_paths, 1)
        with torch.no_grad():
            for batch in states:
                gap.add(batch, squared_norm(self._error(batch)[0]))
        return self._curve(gap, None, None)

    def _error(self, batch: AtTime) -> tuple[Tensor, Tensor]:
        """``p - y*`` and the posterior mean, ``(B, *S)`` float64."""
        mean = self.denoiser.posterior_mean(batch.x_t, batch.alpha, batch.sigma)
        predicted = prediction(self.network, batch.x_t, batch.t)
        check_finite(predicted, batch)
        return predicted.to(torch.float64) - batch.value(self.kind, mean), mean

    def _spread(self, batch: Noised, error: Tensor) -> float:
        """``sum_b e' Cov(x0 | x_t) e``."""
        y = (batch.x_t.to(torch.float64) / batch.alpha).to(batch.x_t.dtype)
        ratio = batch.sigma / batch.alpha
        product = self.denoiser.covariance_vector_product(y, ratio, error.to(y.dtype))
        return float((error * product).sum())

    def _curve(self, gap: PerPoint, loss: Tensor | None, optimum_loss: Tensor | None) -> GapCurve:
        interval = bootstrap_interval(
            gap.values.T, num_bootstrap=self.num_bootstrap, generator=self.generator
        )
        return GapCurve(gap.values, loss, optimum_loss, interval)
