"""Toy models whose mutual information with their training set is known.

Data are standard normal in D dimensions, S holds n of them, z is standard normal noise.

* **Copier**: ``xhat = x_I + h z`` with I uniform. Given S its density is a kernel density estimate,
  over all S a normal one:

      I(xhat; S) = h(p_0 * N(0, h^2)) - E h(KDE_S) = E[log KDE_S(xhat) - log p(xhat)]

  where the expectation is a Monte-Carlo mean of diffgen's own log-density. Since a mixture of n
  parts has at most log n more entropy than a part, ``I >= D/2 log(1 + 1/h^2) - log n``, which is
  nearly met when h is small.

* **Mean**: ``xhat = mean(S) + h z``, jointly normal with S:

      I(xhat; S) = D/2 log(1 + 1 / (n h^2))                       0.2209 at D = 1, n h^2 = 1.8

Without noise (h = 0) both are infinite, as for every exact copier of continuous data.

Source: derived from Yi, Sun, Li (2023), arXiv:2305.14712, whose measure this is; Cover, Thomas,
Elements of information theory (2006), chapter 8, for the entropies.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log, log1p, pi, sqrt
from typing import Any

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.training_set import TrainingSet

_TWO_SIDED = 1.959963984540054
"""97.5% quantile of the standard normal."""


@dataclass(frozen=True)
class KnownInformation:
    """A mutual information found by a Monte-Carlo mean of an exact expression.

    Attributes:
        value: Nats.
        standard_error: Of the value, over independent training sets.
        interval: ``value -+ 1.96 standard errors``.
        per_set: The mean of each training set, ``(num_sets,)`` float64.
        settings: What determines the numbers.
    """

    value: float
    standard_error: float
    interval: tuple[float, float]
    per_set: Tensor
    settings: dict[str, Any]


def gaussian_copier(
    num_sets: int,
    num_points: int,
    features: int,
    noise: float,
    samples_per_set: int,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Training sets of standard normal points, and noisy copies drawn from each.

    Args:
        num_sets: K.
        num_points: n, in each set.
        features: D.
        noise: h, the standard deviation of what is added to a copy.
        samples_per_set: M.
        generator: Source of the draws; None is PyTorch's own.

    Returns:
        The sets ``(K, n, D)`` and the samples ``(K, M, D)``, float64.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> sets, samples = gaussian_copier(16, 10, 2, 0.2, 100)
        >>> sets.shape, samples.shape
        (torch.Size([16, 10, 2]), torch.Size([16, 100, 2]))
    """
    _check(num_points, features, noise)
    for name, count in (("num_sets", num_sets), ("samples_per_set", samples_per_set)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    sets = _normal((num_sets, num_points, features), generator)
    device = sets.device
    picked = torch.randint(
        num_points, (num_sets, samples_per_set), generator=generator, device=device
    )
    copies = sets.gather(1, picked[:, :, None].expand(-1, -1, features))
    return sets, copies + noise * _normal(tuple(copies.shape), generator)


def copier_information(
    num_points: int,
    features: int,
    noise: float,
    *,
    num_sets: int = 200,
    samples_per_set: int = 100,
    generator: torch.Generator | None = None,
) -> KnownInformation:
    """Information of a copier of standard normal data plus noise about its training set.

    Args:
        num_points: n, at least 1.
        features: D, at least 1.
        noise: h, positive.
        num_sets: Independent training sets of the mean, at least 2.
        samples_per_set: Samples drawn from each, at least 1.
        generator: Source of the draws; None is PyTorch's own.

    Returns:
        The value with its standard error.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> found = copier_information(1, 2, 1.0, generator=generator)  # D/2 log 2 = 0.693
        >>> abs(found.value - 0.6931) < 4 * found.standard_error
        True

    Source:
        Derived: entropies of a normal and of a kernel density estimate.
    """
    if num_sets < 2:
        raise ValueError(f"num_sets must be at least 2 for a standard error, got {num_sets}")
    sets, samples = gaussian_copier(
        num_sets, num_points, features, noise, samples_per_set, generator=generator
    )
    per_set = torch.stack(
        [
            _log_ratio(points, drawn, noise).mean()
            for points, drawn in zip(sets, samples, strict=True)
        ]
    ).cpu()
    value = float(per_set.mean())
    error = float(per_set.std()) / sqrt(num_sets)
    return KnownInformation(
        value=value,
        standard_error=error,
        interval=(value - _TWO_SIDED * error, value + _TWO_SIDED * error),
        per_set=per_set,
        settings={
            "num_points": num_points,
            "features": features,
            "noise": noise,
            "num_sets": num_sets,
            "samples_per_set": samples_per_set,
        },
    )


def copier_information_floor(num_points: int, features: int, noise: float) -> float:
    """What the information of the copier is at least: ``D/2 log(1 + 1/h^2) - log n``, or 0.

    Args:
        num_points: n, at least 1.
        features: D, at least 1.
        noise: h, positive.

    Returns:
        Nats. For n = 1 it is the information itself.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> round(copier_information_floor(100, 8, 0.05), 3)
        19.371
    """
    _check(num_points, features, noise)
    return max(0.0, features / 2 * log1p(1 / noise**2) - log(num_points))


def mean_information(num_points: int, features: int, noise: float) -> float:
    """Information of the noisy mean of a set of standard normal points about the set.

    Args:
        num_points: n, at least 1.
        features: D, at least 1.
        noise: h, positive.

    Returns:
        ``D/2 log(1 + 1 / (n h^2))``, nats.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> round(mean_information(20, 1, 0.3), 4)
        0.2209
    """
    _check(num_points, features, noise)
    return features / 2 * log1p(1 / (num_points * noise**2))


def _log_ratio(points: Tensor, samples: Tensor, noise: float) -> Tensor:
    """``log p(xhat | S) - log p(xhat)`` of each sample, ``(M,)``."""
    of_set = EmpiricalDenoiser(TrainingSet(points)).posterior(samples, noise).log_density
    variance = 1 + noise**2
    squared = samples.square().sum(1) / variance
    return of_set + 0.5 * squared + samples.shape[1] / 2 * log(2 * pi * variance)


def _normal(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    device = None if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=device)


def _check(num_points: int, features: int, noise: float) -> None:
    for name, count in (("num_points", num_points), ("features", features)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if not 0 < noise < inf:
        raise ValueError(f"noise must be positive and finite, got {noise:g}")
