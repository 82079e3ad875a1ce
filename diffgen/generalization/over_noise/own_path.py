"""The states of a network's own sampling path, at given times.

What a network meets when it samples is not what it was trained on: errors of earlier steps are in
the state. Measures at these states say what the network does where it matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen import schedules
from diffgen.generalization.over_noise.forward import AtTime, Draws, Grid, check_counts
from diffgen.network_output import prediction
from diffgen.predictor import as_denoiser
from diffgen.process_base import Process
from diffgen.sampling import sample


@dataclass(frozen=True)
class Paths:
    """Which paths are taken.

    Attributes:
        count: How many, at least 2.
        steps: Steps of the sampler, beside those to the times.
        sampler: Its name.
    """

    count: int
    steps: int
    sampler: str

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_counts(path_steps=self.steps)
        if self.count < 2:
            raise ValueError(f"num_paths must be at least 2 for an interval, got {self.count}")


def path_points(
    network: Callable[..., Any],
    process: Process,
    grid: Grid,
    target: str,
    paths: Paths,
    draws: Draws,
    *,
    like: Tensor,
) -> Iterator[AtTime]:
    """States at the times of the grid, of paths from pure noise to samples.

    The sampler takes its steps through the process, and stops at the times of the grid on the way;
    it begins at the noisiest of all.

    Args:
        network: ``(x_t, t) -> prediction``.
        process: Its process.
        grid: The times.
        target: What it predicts.
        paths: How many, and their sampler.
        draws: The noise, the batches; ``progress`` wraps the batches.
        like: Samples whose shape, type and device the paths have.

    Yields:
        One batch at one time, with ``x_t = alpha_t y`` for the state y.
    """

    def unwrapped(x_t: Tensor, t: Tensor) -> Tensor:
        return prediction(network, x_t, t)

    whole_times = not grid.times.is_floating_point()
    denoiser = as_denoiser(unwrapped, process, target, nearest=whole_times)
    steps = schedules.from_process(process, paths.steps)
    levels = torch.cat([steps, grid.ratio]).unique().flip(0)
    places = [int((levels == ratio).nonzero()[0]) for ratio in grid.ratio]
    batches: Iterable[Tensor] = torch.arange(paths.count).split(draws.batch_size)
    for rows in draws.progress(batches) if draws.progress else batches:
        states = sample(
            denoiser,
            (len(rows), *like.shape[1:]),
            levels,
            sampler=paths.sampler,
            generator=draws.generator,
            trajectory=True,
            dtype=like.dtype,
            device=like.device,
        )
        for index, place in enumerate(places):
            alpha, sigma = float(grid.alpha[index]), float(grid.sigma[index])
            x_t = (alpha * states[place].to(torch.float64)).to(like.dtype)
            t = grid.times[index].to(like.device).expand(len(rows))
            yield AtTime(index, rows, x_t, t, alpha, sigma)
