"""Statistics of copying that the field reports, all from the nearest training points.

* **C_T**: are generated points closer to the training set than held-out points are? With L the
  distance to the nearest training point, ``U`` counts pairs with ``L(generated) > L(held out)``;

      C_T = (U - m n / 2) / sqrt(m n (m + n + 1) / 12)

  is standard normal when both come from one law; far below 0 is copying. One cell holds all points
  here; the original also averages it over cells of a clustering.

* **AuthPct**: a sample is authentic if it is farther from its nearest training point x* than x* is
  from its own nearest other training point; the percentage of those.

* **Calibrated distance**: the distance to the nearest training point over half of the mean distance
  to the m nearest ones. Well below 1 for an image that is extracted: nothing else is as near.

Source: Meehan, Chaudhuri, Dasgupta, A non-parametric test to detect data-copying in generative
models (2020), arXiv:2004.05675; Alaa et al., How faithful is your synthetic data? (2022),
arXiv:2102.08921; Carlini et al., Extracting training data from diffusion models (2023),
arXiv:2301.13188, section 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization.disjoint import check_disjoint
from diffgen.generalization.samples import Points, Samples, as_denoiser_over, as_samples
from diffgen.generalization.statistics.bootstrap import (
    CONFIDENCE,
    NUM_BOOTSTRAP,
    bootstrap_interval,
)
from diffgen.generalization.statistics.proportions import clopper_pearson

NUM_NEIGHBORS = 50
"""Neighbours of the calibrated distance, as Carlini et al. have it."""

_SCALE = 0.5
"""Factor of their mean distance, likewise."""

_LEAST = 8
"""Points of each kind from which a rank statistic is near enough to normal."""


@dataclass(frozen=True)
class DataCopying:
    """The test of data-copying, C_T.

    Attributes:
        z: C_T: standard normal when samples and held-out points follow one law, negative when the
            samples are closer to the training set.
        probability: Share of pairs in which the sample is farther from the training set than the
            held-out point, ties half; 0.5 when they follow one law.
        distances: To the nearest training point, of the samples, ``(M,)`` float64.
        held_out_distances: Of the held-out points, ``(N,)`` float64.
        settings: What determines the numbers.
    """

    z: float
    probability: float
    distances: Tensor
    held_out_distances: Tensor
    settings: dict[str, Any]


@dataclass(frozen=True)
class Authenticity:
    """The share of authentic samples, AuthPct.

    Attributes:
        percent: Of the samples, in ``[0, 100]``.
        interval: Clopper-Pearson interval of the percentage.
        authentic: Of each sample, ``(M,)`` bool.
        settings: What determines the numbers.
    """

    percent: float
    interval: tuple[float, float]
    authentic: Tensor
    settings: dict[str, Any]


@dataclass(frozen=True)
class CalibratedDistance:
    """Distances to the nearest training point, relative to those to its neighbours.

    Attributes:
        mean: Over the samples.
        interval: Bootstrap interval of the mean.
        values: Of each sample, ``(M,)`` float64: from 0 for a copy to 2, where all neighbours are
            equally near.
        settings: What determines the numbers.
    """

    mean: float
    interval: tuple[float, float]
    values: Tensor
    settings: dict[str, Any]


def data_copying(
    samples: Samples,
    training_set: Points,
    held_out: Samples,
    *,
    count: int | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> DataCopying:
    """C_T: a z-score of how much closer samples are to the training set than held-out points.

    Args:
        samples: A tensor ``(M, *S)``, a path, or a function that draws them; M >= 8.
        training_set: The training set.
        held_out: Points of the same law that are not in the training set, at least 8.
        count: Samples; needed where a function draws them.
        generator: Passed to such a function.
        batch_size: Samples in a pass over the data.

    Returns:
        The score, and the distances that it ranks.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Fewer than 8 points of a kind, another shape, or held-out points that are in the
            training set.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> points, held_out = torch.randn(2, 100, 4, generator=generator)
        >>> data_copying(points + 0.01, points, held_out).z < -10
        True

    Source:
        Meehan, Chaudhuri, Dasgupta (2020), section 3.
    """
    denoiser = as_denoiser_over(training_set)
    shape = denoiser.training_set.sample_shape
    drawn = as_samples(samples, shape, count=count, generator=generator)
    others = as_samples(held_out, shape, name="held_out")
    for name, given in (("samples", drawn), ("held_out", others)):
        if len(given) < _LEAST:
            raise ValueError(f"{name} must be at least {_LEAST} for a z-score, got {len(given)}")
    check_disjoint([denoiser.training_set, others], ("training_set", "held_out"))
    of_samples, of_others = (_nearest(denoiser, x, 1, batch_size)[0][:, 0] for x in (drawn, others))
    z, probability = mann_whitney(of_samples, of_others)
    return DataCopying(
        z=z,
        probability=probability,
        distances=of_samples,
        held_out_distances=of_others,
        settings={
            "num_samples": len(drawn),
            "num_held_out": len(others),
            "num_points": len(denoiser.training_set),
            "cells": 1,
        },
    )


def authenticity(
    samples: Samples,
    training_set: Points,
    *,
    count: int | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> Authenticity:
    """AuthPct: percentage of samples farther from a training point than its own neighbour is.

    Args:
        samples: A tensor ``(M, *S)``, a path, or a function that draws them.
        training_set: The training set, at least 2 points.
        count: Samples; needed where a function draws them.
        generator: Passed to such a function.
        batch_size: Samples in a pass over the data.

    Returns:
        The percentage, with its interval over samples.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A training set of one point, or samples of another shape.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [5.0]])
        >>> authenticity(torch.tensor([[0.1], [3.0]]), points).authentic
        tensor([False,  True])

    Source:
        Alaa et al. (2022), section 3.
    """
    denoiser = as_denoiser_over(training_set)
    size = len(denoiser.training_set)
    if size < 2:
        raise ValueError(f"training_set must have at least 2 points, got {size}")
    drawn = as_samples(
        samples, denoiser.training_set.sample_shape, count=count, generator=generator
    )
    distances, indices = _nearest(denoiser, drawn, 1, batch_size)
    hit, place = indices[:, 0].unique(return_inverse=True)
    own = _to_others(denoiser, hit, batch_size)[place]
    authentic = distances[:, 0] > own
    share = float(authentic.double().mean())
    low, high = clopper_pearson(int(authentic.sum()), len(drawn), CONFIDENCE)
    return Authenticity(
        percent=100 * share,
        interval=(100 * low, 100 * high),
        authentic=authentic,
        settings={"num_samples": len(drawn), "num_points": size, "confidence": CONFIDENCE},
    )


def calibrated_distance(
    samples: Samples,
    training_set: Points,
    *,
    num_neighbors: int = NUM_NEIGHBORS,
    count: int | None = None,
    num_bootstrap: int = NUM_BOOTSTRAP,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> CalibratedDistance:
    """Distance to the nearest training point over half the mean distance to the m nearest.

    Args:
        samples: A tensor ``(M, *S)``, a path, or a function that draws them; M >= 2.
        training_set: The training set, at least m points.
        num_neighbors: m, at least 2; the nearest is one of them.
        count: Samples; needed where a function draws them.
        num_bootstrap: Resamples of the interval.
        generator: Source of random choices, on the CPU.
        batch_size: Samples in a pass over the data.

    Returns:
        The value of each sample, and their mean.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A training set of fewer than m points, or samples of another shape.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [5.0]])
        >>> calibrated_distance(torch.tensor([[0.0], [0.5]]), points, num_neighbors=2).values
        tensor([0., 2.], dtype=torch.float64)

    Source:
        Carlini et al. (2023), section 5.1, with m = 50 and the factor 0.5.
    """
    denoiser = as_denoiser_over(training_set)
    size = len(denoiser.training_set)
    if not 2 <= num_neighbors <= size:
        raise ValueError(
            f"num_neighbors must be in [2, {size}], the points of the training set, "
            f"got {num_neighbors}"
        )
    drawn = as_samples(
        samples, denoiser.training_set.sample_shape, count=count, generator=generator
    )
    distances, _ = _nearest(denoiser, drawn, num_neighbors, batch_size)
    around = distances.mean(1)
    # A copy of a point that the set holds m times has all distances 0: it is one.
    values = torch.where(around > 0, distances[:, 0] / (_SCALE * around), 0.0)
    low, high = bootstrap_interval(values, num_bootstrap=num_bootstrap, generator=generator)
    return CalibratedDistance(
        mean=float(values.mean()),
        interval=(float(low), float(high)),
        values=values,
        settings={
            "num_neighbors": num_neighbors,
            "factor": _SCALE,
            "num_samples": len(drawn),
            "num_points": size,
            "num_bootstrap": num_bootstrap,
            "confidence": CONFIDENCE,
        },
    )


def mann_whitney(x: Tensor, y: Tensor) -> tuple[float, float]:
    """How often a value of x exceeds one of y: as a z-score, and as a probability.

    Args:
        x: ``(M,)``.
        y: ``(N,)``.

    Returns:
        The z-score (0 when all values are equal), with the variance for ties; and the share of
        pairs with ``x > y``, ties half.

    Example:
        >>> z, probability = mann_whitney(torch.arange(10.0), torch.arange(10.0) + 100)
        >>> round(z, 4), probability
        (-3.7796, 0.0)

    Source:
        Mann, Whitney, On a test of whether one of two random variables is stochastically larger
        than the other (1947).
    """
    m, n = len(x), len(y)
    _, place, counts = torch.cat([x, y]).unique(return_inverse=True, return_counts=True)
    counts = counts.to(torch.float64)
    ranks = counts.cumsum(0) - (counts - 1) / 2  # the mean rank of equal values
    u = float(ranks[place[:m]].sum()) - m * (m + 1) / 2
    total = m + n
    ties = float((counts**3 - counts).sum()) / (total * (total - 1))
    variance = m * n / 12 * (total + 1 - ties)
    z = (u - m * n / 2) / sqrt(variance) if variance > 0 else 0.0
    return z, u / (m * n)


def _nearest(
    denoiser: EmpiricalDenoiser, x: Tensor, top_k: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Distances to the nearest training points and their ids, ``(M, top_k)``."""
    with torch.no_grad():
        # Distances do not depend on the noise level.
        found = [denoiser.posterior(part, 1.0, top_k=top_k) for part in x.split(batch_size)]
    distances = torch.cat([one.top_distances for one in found]).cpu()
    return distances, torch.cat([one.top_indices for one in found]).cpu()


def _to_others(denoiser: EmpiricalDenoiser, rows: Tensor, batch_size: int) -> Tensor:
    """Distance from training points to the nearest other one, ``(R,)``."""
    found = []
    for part in rows.split(batch_size):
        with torch.no_grad():
            points = denoiser.training_set[part]
            exclude = part.to(points.device)
            found.append(denoiser.posterior(points, 1.0, exclude=exclude, top_k=1).top_distances)
    return torch.cat(found)[:, 0].cpu()
