"""The training loss of a network at each time, on any points.

    loss(t) = E |y - network(x_t, t)|^2,    x_t = alpha_t x0 + sigma_t xi,  y the target

The sum runs over the D elements of a sample (the paper's norm), where training losses are usually
means over elements: divide by D to compare. Beside the irreducible loss of the same target it shows
how far a network is from its optimum; on test points, how it generalises.

Source: Yi, Sun, Li, On the Generalization of Diffusion Model (2023), arXiv:2305.14712.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.generalization.over_noise.forward import (
    Draws,
    PerPoint,
    Wrapper,
    check_finite,
    check_points,
    named_target,
    noised_points,
    squared_norm,
    time_grid,
)
from diffgen.generalization.statistics.bootstrap import bootstrap_interval
from diffgen.generalization.statistics.standard_errors import standard_error
from diffgen.network_output import prediction
from diffgen.process_base import Process


@dataclass(frozen=True)
class LossByTime:
    """The loss of a network on M points at T times; sums over the D elements.

    Attributes:
        times: ``(T,)``, as the process has them.
        ratios: Noise levels ``sigma_t / alpha_t``, ``(T,)`` float64.
        losses: Of each point, mean over its repeats, ``(T, M)`` float64.
        interval: Bootstrap interval of the mean over the points, at each time: two ``(T,)``.
            Points are the units; times share their points and noise.
        settings: What determines the numbers beside the network and the points.
    """

    times: Tensor
    ratios: Tensor
    losses: Tensor
    interval: tuple[Tensor, Tensor]
    settings: dict[str, Any]

    @property
    def mean(self) -> Tensor:
        """Mean over the points, ``(T,)`` float64."""
        return self.losses.mean(1)

    @property
    def standard_error(self) -> Tensor:
        """Of the mean, ``(T,)`` float64; NaN for one point."""
        return standard_error(self.losses)


def loss_by_time(
    network: Callable[..., Any],
    points: Tensor,
    process: Process,
    times: Any,
    *,
    target: str = "epsilon",
    repeats: int = 1,
    num_bootstrap: int = 1000,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: Wrapper | None = None,
) -> LossByTime:
    """Mean squared error of a network's prediction at each time.

    Two calls from the same generator state see the same points with the same noise.

    Args:
        network: ``(x_t, t) -> prediction``: x_t ``(B, *S)``, t ``(B,)``. A denoiser
            ``(x, sigma)`` is a network of ``EDM()`` with target ``"x0"``.
        points: Clean points, ``(M, *S)`` floating point; the network gets this type.
        process: The noising process.
        times: ``(T,)`` times of the process, each with some noise.
        target: What the network predicts, a name in ``PARAMETERIZATIONS``.
        repeats: Noises drawn for each point.
        num_bootstrap: Resamples of the interval.
        generator: Source of noise and resamples, on the CPU; None is PyTorch's own.
        batch_size: Points in a call of the network.
        progress: Wraps the pieces of work, as ``tqdm`` does.

    Returns:
        The loss at each time, with those of each point.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument out of range; an output of the network of another shape.

    Example:
        >>> from diffgen.processes import EDM
        >>> found = loss_by_time(lambda x, t: x, torch.zeros(500, 3), EDM(), [1.0], target="x0",
        ...     generator=torch.Generator().manual_seed(0))
        >>> round(float(found.mean))  # the noise is left: D sigma^2
        3
    """
    kind = named_target(target)
    check_points(points, "points")
    grid = time_grid(process, times, finite=False)
    losses = PerPoint(len(grid.times), len(points), repeats)
    draws = Draws(generator, batch_size, progress, repeats)
    with torch.no_grad():
        for batch in noised_points(points, grid, draws):
            predicted = prediction(network, batch.x_t, batch.t)
            check_finite(predicted, batch)
            losses.add(batch, squared_norm(predicted - batch.value(kind, batch.x0)))
    values = losses.values
    low, high = bootstrap_interval(values.T, num_bootstrap=num_bootstrap, generator=generator)
    return LossByTime(
        times=grid.times,
        ratios=grid.ratio,
        losses=values,
        interval=(low, high),
        settings={
            "process": repr(process),
            "target": target,
            "unit": "sum over elements",
            "num_points": len(points),
            "repeats": repeats,
            "num_bootstrap": num_bootstrap,
        },
    )
