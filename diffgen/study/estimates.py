"""Numbers with their intervals, from raw values, as texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from diffgen.generalization.statistics.bootstrap import bootstrap_interval
from diffgen.generalization.statistics.proportions import (
    clopper_pearson,
    grouped_interval,
    incomplete_beta,
)
from diffgen.generalization.statistics.standard_errors import z_score

THRESHOLD = 1 / 3
"""A sample is memorised where d1/d2 is below this."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval.

    Attributes:
        value: The number.
        low: Lower end.
        high: Upper end.

    Example:
        >>> print(Estimate(0.5, 0.41, 0.59))
        0.500 (0.410 to 0.590)
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """The number with its interval."""
        return f"{number(self.value)} ({number(self.low)} to {number(self.high)})"

    @property
    def interval(self) -> str:
        """The interval alone."""
        return f"{number(self.low)} to {number(self.high)}"


def number(value: float) -> str:
    """A number with about four significant digits.

    Example:
        >>> number(0.0), number(1.0), number(0.01234), number(123.456), number(1e-7)
        ('0.000', '1.000', '0.012', '123.5', '1.0e-07')
    """
    size = abs(value)
    if size != 0 and size < 5e-4:
        return f"{value:.1e}"
    if size < 10:
        return f"{value:.3f}"
    return f"{value:,.1f}" if size < 1e4 else f"{value:,.0f}"


def share(hits: Sequence[bool], groups: Sequence[int] | None = None) -> Estimate:
    """A share of trials, with the interval of Clopper and Pearson.

    It covers the true share with 95% or more at any number of trials, also where all agree, where
    a bootstrap has no width.

    Args:
        hits: Whether each trial succeeded.
        groups: The model that each trial is of, as many trials for each; then the trials of a model
            count as alike as they turn out to be.

    Example:
        >>> print(share([True] * 256))
        1.000 (0.986 to 1.000)
    """
    value = sum(hits) / len(hits)
    if groups is None:
        return Estimate(value, *clopper_pearson(sum(hits), len(hits)))
    of_group: dict[int, list[bool]] = {}
    for hit, group in zip(hits, groups, strict=True):
        of_group.setdefault(group, []).append(hit)
    means = [sum(found) / len(found) for found in of_group.values()]
    return Estimate(value, *grouped_interval(means, len(hits) // len(means)))


def mean(values: Sequence[float], groups: Sequence[int] | None = None) -> Estimate:
    """A mean with its percentile bootstrap interval.

    Args:
        values: One for each sample, at least 2.
        groups: The model that each sample is of; then models are resampled, and samples in them.

    Example:
        >>> print(mean([1.0, 2.0, 3.0, 4.0] * 25))
        2.500 (2.290 to 2.720)
    """
    given = torch.tensor(values, dtype=torch.float64)
    low, high = bootstrap_interval(
        given,
        groups=None if groups is None else torch.tensor(groups),
        # Its own source with one seed: who computes it again gets the same interval.
        generator=torch.Generator().manual_seed(0),
    )
    return Estimate(float(given.mean()), float(low), float(high))


def over_seeds(values: Sequence[float]) -> Estimate:
    """A mean over few independent runs, with Student's interval.

    A bootstrap of a handful of values is too narrow. Values that all agree give no width, which
    says nothing about other runs.

    Args:
        values: One for each seed, at least 2.

    Example:
        >>> print(over_seeds([1.0, 2.0, 3.0]))  # 2 -+ 4.303 / sqrt(3)
        2.000 (-0.484 to 4.484)

    Source:
        Student, The probable error of a mean (1908).
    """
    given = torch.tensor(values, dtype=torch.float64)
    center = float(given.mean())
    half = student_quantile(len(values) - 1) * float(given.std()) / len(values) ** 0.5
    return Estimate(center, center - half, center + half)


def student_quantile(degrees: int, probability: float = 0.975) -> float:
    """Where the distribution function of Student's t reaches a probability above 1/2.

    Example:
        >>> round(student_quantile(3), 3), round(student_quantile(1000), 3)
        (3.182, 1.962)

    Source:
        Abramowitz, Stegun, Handbook of mathematical functions (1964), 26.7.1.
    """
    low, high = 0.0, 1.0
    # With u = degrees / (degrees + t^2): P(T > t) = I_u(degrees / 2, 1 / 2) / 2.
    while low < (middle := (low + high) / 2) < high:
        tail = incomplete_beta(degrees / 2, 0.5, middle) / 2
        low, high = (middle, high) if tail < 1 - probability else (low, middle)
    return float((degrees / low - degrees) ** 0.5)


def interpolated(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """A curve's value at a point within its range, linear between its points.

    Args:
        x: Places, in any order, all different.
        y: Values there.
        at: A place between the smallest and the largest.

    Raises:
        ValueError: If it is outside.

    Example:
        >>> interpolated([1.0, 0.0, 2.0], [10.0, 0.0, 10.0], 0.5)
        5.0
    """
    points = sorted(zip(x, y, strict=True))
    if not points[0][0] <= at <= points[-1][0]:
        raise ValueError(f"at must be in [{points[0][0]:g}, {points[-1][0]:g}], got {at:g}")
    for (left, low), (right, high) in pairwise(points):
        if at <= right:
            return low + (high - low) * (at - left) / (right - left)
    return points[-1][1]


def largest_z(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    other_errors: Sequence[float] | None = None,
) -> float:
    """The largest z-score, over times, of the mean difference of paired values ``(T, M)``.

    Args:
        first: One side.
        second: The other.
        other_errors: Of each time, a difference that is not of the draws and counts as none.

    Example:
        >>> largest_z([[1.0, 2.0, 4.0]], [[1.0, 2.0, 4.0]])
        0.0
    """
    pair = [torch.tensor(side, dtype=torch.float64) for side in (first, second)]
    difference = pair[0] - pair[1]
    mean = difference.mean(1)
    allowed = torch.zeros_like(mean)
    if other_errors is not None:
        allowed = torch.tensor(other_errors, dtype=torch.float64)
    # What is left of the mean beyond the other error, in place of the mean.
    beyond = (mean.abs() - allowed).clamp(min=0)
    return float(z_score(difference - mean[:, None] + beyond[:, None]).max())


def memorised(d1: Sequence[float], d2: Sequence[float]) -> list[bool]:
    """Which samples count as memorised: ``d1 / d2 < 1/3``."""
    return [near < THRESHOLD * second for near, second in zip(d1, d2, strict=True)]
