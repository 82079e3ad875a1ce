"""The memorisation ratio: the share of samples that stand next to one single training point.

With d1 and d2 the l2 distances from a sample to the nearest and the second nearest training point,

    memorised: d1 / d2 < threshold (1/3)        ratio = share of the samples that are

A copy has d1 near 0 and d2 the distance to another image; a new image is about as far from its
nearest neighbours as these are from each other, and has d1 / d2 near 1.

Identical training points are one point here: otherwise a copy of an image that the set holds twice
has d1 = d2, or 0 / 0 when it is exact, and would not count. In a set with ``flip=True`` the mirror
images are training points of their own.

The distances come from the same pass as the posterior, refined in float64; no matrix of samples by
training points is made.

Source: Yoon, Choi, Kwon, Ryu, Diffusion probabilistic models generalize when they fail to memorize
(2023); Gu et al., On memorization in diffusion models (2023), arXiv:2310.02664; the interval as in
Bonnaire et al., Why diffusion models don't memorize (2025), arXiv:2505.17638.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization.samples import Samples, as_samples
from diffgen.training_set import TrainingSet

THRESHOLD = 1 / 3
"""Ratio of the two distances under which a sample counts as memorised."""

CONFIDENCE = 0.95
"""Coverage of the bootstrap interval."""

_TIE = 1 + 1e-9
"""Distances this close may belong to identical training points, whose rows are then compared."""

Wrapper = Callable[[Iterable[Tensor]], Iterable[Tensor]]
"""Passes the batches of samples through, as ``tqdm`` does."""


@dataclass(frozen=True)
class Memorization:
    """A memorisation ratio, with what it was made from.

    Attributes:
        ratio: Share of the samples with ``d1 / d2 < threshold``, in ``[0, 1]``.
        interval: Percentile bootstrap interval of the ratio. Where all samples agree it has no
            width; then ``3 / len(distance_ratios)`` bounds the share of the others at 95%.
        distance_ratios: ``d1 / d2``, ``(M,)`` float64, between 0 and 1.
        distances: d1 and d2, ``(M, 2)`` float64, in the units of the data.
        indices: The training points that they lead to, ``(M, 2)`` int64.
        settings: What determines the numbers beside the samples and the set.
    """

    ratio: float
    interval: tuple[float, float]
    distance_ratios: Tensor
    distances: Tensor
    indices: Tensor
    settings: dict[str, Any]


def memorization_ratio(
    samples: Samples,
    training_set: TrainingSet | EmpiricalDenoiser,
    *,
    threshold: float = THRESHOLD,
    count: int | None = None,
    num_bootstrap: int = 1000,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: Wrapper | None = None,
) -> Memorization:
    """Share of samples whose nearest training point is much nearer than the second nearest.

    Args:
        samples: ``(M, *S)`` floating point, in the units of the data, M >= 1; or a path to them, or
            a function that draws them (`diffgen.generalization.samples`).
        training_set: The training set, or a denoiser over it (whose backend then measures the
            distances). At least two of its points must differ.
        threshold: What counts as memorised: ``d1 / d2`` below this; in ``(0, 1]``.
        count: Samples; needed where a function draws them.
        num_bootstrap: Resamples of the interval, at least 1.
        generator: Source of the resamples, on the CPU; None is PyTorch's own.
        batch_size: Samples in a pass over the data.
        progress: Wraps the batches, as ``tqdm`` does.

    Returns:
        The ratio, its 95% bootstrap interval, and the distances of every sample.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If samples are none, not finite or of another shape; if a number is out of its
            range; if the set has no two different points.
        BackendError: If no backend can run the problem.

    Example:
        >>> from diffgen import TrainingSet
        >>> data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> samples = torch.tensor([[0.0, 0.01], [0.5, 0.5]])  # a copy, and something between
        >>> result = memorization_ratio(samples, TrainingSet(data))
        >>> result.ratio, result.indices[0].tolist()
        (0.5, [0, 2])

    Source:
        Gu et al. (2023), arXiv:2310.02664, section 2: the ratio and its threshold.
    """
    denoiser = _denoiser(training_set)
    points = denoiser.training_set
    if len(points) < 2:
        raise ValueError(f"training_set must have at least 2 points, got {len(points)}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold:g}")
    for name, value in (("num_bootstrap", num_bootstrap), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    drawn = as_samples(samples, count=count, generator=generator)
    batches: Iterable[Tensor] = drawn.split(batch_size)
    with torch.no_grad():
        found = [_two_nearest(denoiser, x) for x in (progress(batches) if progress else batches)]
    distances = torch.cat([of_batch for of_batch, _ in found]).cpu()
    indices = torch.cat([of_batch for _, of_batch in found]).cpu()
    distance_ratios = distances[:, 0] / distances[:, 1]
    ratio = float((distance_ratios < threshold).double().mean())
    return Memorization(
        ratio=ratio,
        interval=_interval(ratio, len(drawn), num_bootstrap, generator),
        distance_ratios=distance_ratios,
        distances=distances,
        indices=indices,
        settings={
            "threshold": threshold,
            "num_bootstrap": num_bootstrap,
            "confidence": CONFIDENCE,
            "num_samples": len(drawn),
            "num_points": len(points),
            "flip": points.flip,
            "identical_points": "count once",
            "backend": denoiser.backend,
        },
    )


def _denoiser(training_set: TrainingSet | EmpiricalDenoiser) -> EmpiricalDenoiser:
    if isinstance(training_set, EmpiricalDenoiser):
        return training_set
    if isinstance(training_set, TrainingSet):
        return EmpiricalDenoiser(training_set)
    got = type(training_set).__name__
    raise TypeError(f"training_set must be a TrainingSet or an EmpiricalDenoiser, got {got}")


def _two_nearest(denoiser: EmpiricalDenoiser, x: Tensor) -> tuple[Tensor, Tensor]:
    """Distances and ids of the nearest point and of the nearest one that differs from it."""
    distances, ids = _nearest(denoiser, x, 2)
    tied = (distances[:, 1] <= distances[:, 0] * _TIE).nonzero()[:, 0]
    count = len(denoiser.training_set)
    width = 2
    while len(tied) > 0:
        more_distances, more_ids = _nearest(denoiser, x[tied], width)
        rank = _first_different(denoiser.training_set, more_ids)  # `width` where there is none
        known = rank < width
        rows, rank = tied[known], rank[known, None]
        distances[rows, 1] = more_distances[known].gather(1, rank)[:, 0]
        ids[rows, 1] = more_ids[known].gather(1, rank)[:, 0]
        tied = tied[~known]
        if len(tied) > 0 and width == count:
            raise ValueError(
                f"training_set must have two points that differ, got {count} identical ones"
            )
        width = min(2 * width, count)
    return distances, ids


def _nearest(denoiser: EmpiricalDenoiser, x: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    # The distances do not depend on the noise level, so any will do; at 1 no weight vanishes that
    # the other outputs of the pass would have to be refined for.
    posterior = denoiser.posterior(x, 1.0, top_k=top_k)
    return posterior.top_distances, posterior.top_indices


def _first_different(points: TrainingSet, ids: Tensor) -> Tensor:
    """Rank, for each row of ids ``(b, k)``, of the first point unlike the first; k for none."""
    values = points[ids.reshape(-1)].reshape(*ids.shape, -1)
    different = (values != values[:, :1]).any(2)  # (b, k)
    return torch.where(different.any(1), different.to(torch.uint8).argmax(1), ids.shape[1])


def _interval(
    ratio: float, count: int, num_bootstrap: int, generator: torch.Generator | None
) -> tuple[float, float]:
    # Resampling M zeros and ones with replacement and averaging is a binomial draw over M.
    counts = torch.full((num_bootstrap,), float(count), dtype=torch.float64)
    draws = torch.binomial(counts, torch.full_like(counts, ratio), generator=generator) / count
    tails = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = draws.quantile(tails).tolist()
    return low, high
