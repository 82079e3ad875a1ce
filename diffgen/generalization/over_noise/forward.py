"""Points noised by a process at a list of times, in batches, with one noise for all times.

The measures over time share these draws: the noise of a point is the same at every time, scaled, so
that curves over time are smooth, and for every network that is measured from the same generator
state, so that differences between networks carry no noise of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.parameterizations import PARAMETERIZATIONS, Parameterization
from diffgen.process_base import Process
from diffgen.training_set import TrainingSet

Wrapper = Callable[[Iterable[Any]], Iterable[Any]]
"""Passes the pieces of work through, as ``tqdm`` does."""


@dataclass(frozen=True)
class Draws:
    """How points are noised.

    Attributes:
        generator: Source of the noise.
        batch_size: Points in a batch.
        progress: Wraps the pieces of work, or None.
        repeats: Draws of the noise for each point.
    """

    generator: torch.Generator | None
    batch_size: int
    progress: Wrapper | None
    repeats: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_counts(repeats=self.repeats, batch_size=self.batch_size)


@dataclass(frozen=True)
class Grid:
    """Times of a process, with its scales there.

    Attributes:
        times: ``(T,)``, as a network of the process takes them: int64 where the process has whole
            times, float32 elsewhere.
        alpha: Signal scale, ``(T,)`` float64.
        sigma: Noise scale, ``(T,)`` float64, positive.
        ratio: ``sigma / alpha``, ``(T,)`` float64; infinite where alpha is 0.
    """

    times: Tensor
    alpha: Tensor
    sigma: Tensor
    ratio: Tensor


@dataclass(frozen=True)
class AtTime:
    """A batch of noisy points at one time.

    Attributes:
        index: Place of the time in the grid.
        rows: Places of the points, ``(B,)`` int64.
        x_t: Noisy points, ``(B, *S)``, in the type that the network gets.
        t: The time for a network, ``(B,)``.
        alpha: Signal scale.
        sigma: Noise scale.
    """

    index: int
    rows: Tensor
    x_t: Tensor
    t: Tensor
    alpha: float
    sigma: float

    def value(self, kind: Parameterization, mean: Tensor) -> Tensor:
        """What a target is where the posterior mean is ``mean``, ``(B, *S)`` float64."""
        x_t = self.x_t.to(torch.float64)
        return kind.from_posterior_mean(mean.to(torch.float64), x_t, self.alpha, self.sigma)


@dataclass(frozen=True)
class Noised(AtTime):
    """A batch of points that were noised: ``x_t = alpha x0 + sigma noise``, rounded to x0's type.

    ``value(kind, x0)`` is the regression target, of the noise that the rounded x_t has in it.

    Attributes:
        x0: The points, ``(B, *S)``.
    """

    x0: Tensor


def time_grid(process: Process, times: Any, *, finite: bool) -> Grid:
    """Times of a process, checked.

    Args:
        process: The noising process.
        times: ``(T,)`` numbers in the convention of the process, T >= 1.
        finite: Whether every time must keep some of the signal.

    Raises:
        ValueError: No times; a time out of range, between those that the process has, without
            noise, or (with ``finite``) without signal.
    """
    given = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
    if given.ndim != 1 or len(given) == 0:
        raise ValueError(f"times must be (T,) with T >= 1, got shape {tuple(given.shape)}")
    grid = Grid(given, process.alpha(given), process.sigma(given), process.ratio(given))
    for bad, need in (
        (grid.sigma <= 0, "carry noise (sigma_t > 0)"),
        (grid.ratio.isinf() & finite, "leave some signal (alpha_t > 0)"),
    ):
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            raise ValueError(f"times must {need}, got {float(given[at]):g} at index {at}")
    whole = process.t_from_ratio(grid.ratio, nearest=True)
    if whole.is_floating_point():
        return Grid(given.to(torch.float32), grid.alpha, grid.sigma, grid.ratio)
    if not bool((given == given.round()).all()):
        at = int((given != given.round()).nonzero()[0])
        raise ValueError(
            f"times must be whole numbers for {process!r}, got {float(given[at]):g} at index {at}"
        )
    return Grid(given.to(torch.int64), grid.alpha, grid.sigma, grid.ratio)


def named_target(target: str, name: str = "target") -> Parameterization:
    """The prediction target of a name.

    Raises:
        ValueError: There is none.
    """
    if target not in PARAMETERIZATIONS:
        known = ", ".join(PARAMETERIZATIONS)
        raise ValueError(f"{name} must be one of {known}, got {target!r}")
    return PARAMETERIZATIONS[target]


def error_scale(kind: Parameterization, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """By what an error of the posterior mean is multiplied in a target, at a fixed noisy point.

    Targets are affine in the mean, so this is the value of the target at ``mean = 1, x_t = 0``:
    1 for x0, ``-alpha / sigma`` for epsilon, and so on. Shape of alpha, float64.
    """
    scale = torch.as_tensor(alpha, dtype=torch.float64).reshape(-1)
    noise = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1)
    one = torch.ones_like(scale)
    value = kind.from_posterior_mean(one, torch.zeros_like(one), scale, noise)
    return value.reshape(torch.as_tensor(alpha).shape)


def draw_points(
    training_set: TrainingSet, num_samples: int | None, generator: torch.Generator | None
) -> Tensor:
    """Points of a training set, as its weights say, ``(M, *S)``.

    Args:
        training_set: The set.
        num_samples: M; None for every point of a set with equal weights.
        generator: On the CPU.

    Returns:
        Without weights: different points in random order, up to the size of the set, and again
        from the start beyond it. With weights: drawn with replacement.
    """
    count = len(training_set)
    size = count if num_samples is None else num_samples
    if size < 1:
        raise ValueError(f"num_samples must be at least 1, got {size}")
    log_weights = training_set.log_weight_of(torch.arange(count))
    if bool((log_weights == log_weights[0]).all()):
        rounds = [torch.randperm(count, generator=generator) for _ in range(-(-size // count))]
        return training_set[torch.cat(rounds)[:size]]
    # Inverse transform, since torch.multinomial takes no more than 2^24 points.
    cumulative = (log_weights - log_weights.max()).exp().cumsum(0)
    uniform = torch.rand(size, generator=generator, dtype=torch.float64) * cumulative[-1]
    drawn = torch.searchsorted(cumulative, uniform, right=True)
    return training_set[drawn.clamp(max=count - 1)]


def check_points(points: Tensor, name: str) -> None:
    """Checks that points are a floating-point tensor ``(M, *S)`` of finite numbers, M >= 1.

    Raises:
        TypeError: Not a floating-point tensor.
        ValueError: None, or one that is not finite.
    """
    if not isinstance(points, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(points).__name__}")
    if not points.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {points.dtype}")
    if points.ndim < 2 or points.numel() == 0:
        raise ValueError(f"{name} must be (M, *S) with M >= 1, got {tuple(points.shape)}")
    bad = ~points.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise ValueError(f"{name} must be finite, got point {at}, which is not")


def check_counts(**counts: int) -> None:
    """Checks that numbers of things are at least 1.

    Raises:
        ValueError: One is not.
    """
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def unit_noise(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Standard normal noise, float64, drawn where the generator is (the CPU without one)."""
    source = torch.device("cpu") if generator is None else generator.device
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device=source)
    return drawn.to(like.device)


def noised_points(points: Tensor, grid: Grid, draws: Draws) -> Iterator[Noised]:
    """Every point, ``repeats`` times with noise of its own, at every time.

    Args:
        points: ``(M, *S)`` floating point.
        grid: The times.
        draws: The noise, the batches; ``progress`` wraps batches times times.

    Yields:
        One batch at one time; all times of a batch after each other.
    """
    batches = torch.arange(len(points)).repeat(draws.repeats).split(draws.batch_size)
    work: Iterable[tuple[int, int]] = [
        (batch, index) for batch in range(len(batches)) for index in range(len(grid.times))
    ]
    for batch, index in draws.progress(work) if draws.progress else work:
        if index == 0:
            rows = batches[batch]
            x0 = points[rows.to(points.device)]
            noise = unit_noise(tuple(x0.shape), draws.generator, points)
        alpha, sigma = float(grid.alpha[index]), float(grid.sigma[index])
        x_t = (alpha * x0.to(torch.float64) + sigma * noise).to(points.dtype)
        t = grid.times[index].to(points.device).expand(len(x0))
        yield Noised(index, rows, x_t, t, alpha, sigma, x0)


class PerPoint:
    """Means over the repeats of values of points at times, filled in batch by batch.

    Attributes:
        values: ``(T, M)`` float64, on the CPU.
    """

    def __init__(self, num_times: int, num_points: int, repeats: int) -> None:
        """Start at zero."""
        self.values = torch.zeros(num_times, num_points, dtype=torch.float64)
        self._repeats = repeats

    def add(self, batch: AtTime, values: Tensor) -> None:
        """Add the values ``(B,)`` of a batch."""
        self.values[batch.index].index_add_(0, batch.rows, values.detach().cpu() / self._repeats)


def check_finite(predicted: Tensor, batch: AtTime) -> None:
    """Checks that what a network predicts is finite.

    Raises:
        ValueError: It is not.
    """
    if not bool(predicted.isfinite().all()):
        time = float(batch.t[0])
        raise ValueError(f"network must return finite numbers, got one that is not at t = {time:g}")


def squared_norm(difference: Tensor) -> Tensor:
    """Sum of the squares of the elements of each sample, ``(B,)`` float64."""
    return difference.to(torch.float64).flatten(1).square().sum(1)
