"""Kernel gap bound: information from how much closer samples are to their set than to a fresh one.

With a kernel ``0 <= k <= B`` and n points in a set,

    gap = E k(xhat, x_i) - E k(xhat, x'_i)          own set minus fresh set, means over the points
    I(xhat; S) >= 2 n (gap / B)^2

since k is sub-Gaussian with parameter B/2 under the product law. It is weak, and needs neither many
models nor a classifier. ``gap`` is half of the generalisation term of the excess risk
(`diffgen.generalization.bounds.excess_risk`).

The bandwidth of ``rbf`` is the one of 16 that gives the largest gap on half of the samples; the
bound is evaluated on the others. ``estimate`` puts the mean gap into the formula: it is biased
upwards. ``interval`` puts in the ends of the gap's bootstrap interval, over samples, and models
where there are several; its low end is the lower bound.

Source: Xu, Raginsky, Information-theoretic analysis of generalization capability of learning
algorithms (2017), lemma 1; for the measure of Yi, Sun, Li (2023), arXiv:2305.14712 (derived).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.generalization.bounds.comparisons import Comparisons
from diffgen.generalization.bounds.kernels import Kernel, make_kernel, mean_kernel
from diffgen.generalization.bounds.pairs import Pairs, make_pairs
from diffgen.generalization.samples import Points, Samples
from diffgen.generalization.statistics.bootstrap import (
    CONFIDENCE,
    NUM_BOOTSTRAP,
    bootstrap_interval,
)

LEAST_SAMPLES = 4
"""Samples needed of each model: two to choose the bandwidth, two for an interval."""

_NUM_BANDWIDTHS = 16


@dataclass(frozen=True)
class KernelGap:
    """A lower bound on information from the gap of a kernel.

    Attributes:
        gap: Mean kernel to the own set minus that to a fresh one, in ``[-1, 1]``.
        gap_interval: Its bootstrap interval.
        estimate: ``2 n gap^2``, nats; biased upwards.
        interval: ``2 n gap^2`` at the smallest and the largest gap in size of the interval.
        per_sample: Whose mean the gap is, ``(K, M')`` float64.
        settings: What determines the numbers.
    """

    gap: float
    gap_interval: tuple[float, float]
    estimate: float
    interval: tuple[float, float]
    per_sample: Tensor
    settings: dict[str, Any]

    @property
    def bound(self) -> float:
        """The lower bound on the information: the low end of the interval, nats."""
        return self.interval[0]


def kernel_gap_bound(
    samples: Samples | Sequence[Samples],
    training_sets: Points | Sequence[Points],
    fresh_sets: Points | Sequence[Points] | None = None,
    *,
    bandwidth: float | None = None,
    count: int | None = None,
    sigma_min: float = 0.0,
    num_bootstrap: int = NUM_BOOTSTRAP,
    generator: torch.Generator | None = None,
) -> KernelGap:
    """Lower bound on the information between samples and training set, from a kernel.

    Args:
        samples: Samples of a model, or a list of them for K models; see `event_bound`.
        training_sets: The set of the model, or K.
        fresh_sets: A set for each that shares no row with it, of the same size. None: with K >= 2
            models, the set of the next one.
        bandwidth: Of ``exp(-|x - y|^2 / (2 bandwidth^2))``; None for the best on half of the
            samples.
        count: Samples of each model; needed where functions draw them.
        sigma_min: Standard deviation of normal noise added to the samples.
        num_bootstrap: Resamples of the interval.
        generator: Source of random choices, on the CPU.

    Returns:
        The bound, with the gap that it is made of.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Sets that share rows or differ in size; fewer than 4 samples of a model; a
            number out of range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> points, fresh = torch.randn(2, 4, 8, generator=generator)
        >>> samples = points.repeat(50, 1)
        >>> found = kernel_gap_bound(samples, points, fresh, generator=generator)
        >>> found.interval[0] <= found.estimate <= found.interval[1], found.bound > 0.2
        (True, True)

    Source:
        Xu, Raginsky (2017), lemma 1.
    """
    pairs = make_pairs(
        samples,
        training_sets,
        fresh_sets,
        least=LEAST_SAMPLES,
        count=count,
        sigma_min=sigma_min,
        generator=generator,
    )
    fitted = bandwidth is None
    if bandwidth is None:
        fit, pairs = pairs.halves(generator)
        bandwidth = _best_bandwidth(fit)
    kernel = make_kernel("rbf", bandwidth)
    values = _gaps(pairs, kernel)
    models, count_of_each = values.shape
    groups = torch.arange(models).repeat_interleave(count_of_each) if models > 1 else None
    ends = bootstrap_interval(
        values.flatten(), num_bootstrap=num_bootstrap, groups=groups, generator=generator
    )
    low, high = (float(end) for end in ends)
    factor = 2 * pairs.settings["num_points"] / kernel.largest**2
    smallest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    gap = float(values.mean())
    return KernelGap(
        gap=gap,
        gap_interval=(low, high),
        estimate=factor * gap**2,
        interval=(factor * smallest**2, factor * max(abs(low), abs(high)) ** 2),
        per_sample=values,
        settings={
            "kernel": "rbf",
            "bandwidth": bandwidth,
            "bandwidth_fitted": fitted,
            "num_evaluated": count_of_each,
            **pairs.settings,
            "num_bootstrap": num_bootstrap,
            "confidence": CONFIDENCE,
            "interval": (
                "over models and samples" if models > 1 else "over samples, given model and sets"
            ),
        },
    )


def _gaps(pairs: Pairs, kernel: Kernel) -> Tensor:
    """Mean kernel to the own set minus that to the fresh one, of each sample, ``(K, M)``."""
    rows = []
    for samples, own, fresh in zip(pairs.samples, pairs.own, pairs.fresh, strict=True):
        near, far = (
            mean_kernel(samples.flatten(1), one.training_set[:].flatten(1), kernel)
            for one in (own, fresh)
        )
        rows.append((near - far).cpu())
    return torch.stack(rows)


def _best_bandwidth(fit: Pairs) -> float:
    compared = [
        Comparisons(x, [own, fresh])
        for x, own, fresh in zip(fit.samples, fit.own, fit.fresh, strict=True)
    ]
    middle = [one.scales(_NUM_BANDWIDTHS) for one in compared]
    candidates = torch.tensor(middle, dtype=torch.float64).log().mean(0).exp().tolist()
    gaps = [float(_gaps(fit, make_kernel("rbf", width)).mean()) for width in candidates]
    return float(candidates[gaps.index(max(gaps))])
