"""Event bound: information from how much likelier an event is with the own set than with a fresh.

For any event A of a sample and a set, by the data-processing inequality,

    I(xhat; S) >= kl(P(A(xhat, S)) || P(A(xhat, S'))),   kl(p || q) of two coins

with S the set that the model of xhat was trained on, and S' another set of the same size without a
row of S. It needs one model; many give an interval that covers other models.

| event      | A(xhat, S)                                                        | threshold     |
|------------|-------------------------------------------------------------------|---------------|
| `copy`     | nearest distance / second nearest (of another value) < threshold  | 1/3, fixed    |
| `near`     | nearest distance < threshold                                      | fitted        |

A fitted threshold is the best one for half of the samples; the bound is evaluated on the others.

The guarantee. ``estimate`` puts the observed shares into kl: it is biased upwards and no bound. The
interval takes a Clopper-Pearson interval of each of the two probabilities, each at half of the
allowed error, and the least and largest kl over the rectangle: its low end is a lower bound of
``I(xhat; S)`` with at least the confidence where samples are independent. Samples of one model are
so only given its set: with one model the interval is conditional on S and S'. With K models the
number of trials is the effective one of grouped samples.

Source: Cover, Thomas, Elements of information theory (2006), theorem 2.8.1 (data processing);
Clopper, Pearson (1934); the use here is derived, for the measure of Yi, Sun, Li (2023),
arXiv:2305.14712.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Any

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization.bounds.pairs import Pairs, make_pairs
from diffgen.generalization.copies.memorization import THRESHOLD, Memorization, memorization_ratio
from diffgen.generalization.samples import Points, Samples
from diffgen.generalization.statistics.bootstrap import CONFIDENCE
from diffgen.generalization.statistics.proportions import grouped_interval


@dataclass(frozen=True)
class Event:
    """An event of a sample and a set: a statistic below a threshold.

    Attributes:
        statistic: From the distances of samples to a set, ``(M,)`` float64.
        threshold: The usual one; None where it is fitted.
    """

    statistic: Callable[[Memorization], Tensor]
    threshold: float | None


EVENTS: dict[str, Event] = {
    "copy": Event(lambda found: found.distance_ratios, THRESHOLD),
    "near": Event(lambda found: found.distances[:, 0], None),
}
"""Every event by its name."""


@dataclass(frozen=True)
class EventBound:
    """A lower bound on information from the probabilities of one event.

    Attributes:
        estimate: ``kl`` of the observed shares, nats; biased upwards, infinite where the event
            never happens with fresh sets.
        interval: Least and largest kl over the intervals of both probabilities. The low end is the
            lower bound; the high end bounds the kl, not the information.
        joint: Share of samples with the event for their own set.
        joint_interval: Its interval.
        product: Share of samples with the event for a fresh set.
        product_interval: Its interval.
        per_sample: The event for the own and the fresh set, ``(K, M', 2)`` bool.
        settings: What determines the numbers.
    """

    estimate: float
    interval: tuple[float, float]
    joint: float
    joint_interval: tuple[float, float]
    product: float
    product_interval: tuple[float, float]
    per_sample: Tensor
    settings: dict[str, Any]

    @property
    def bound(self) -> float:
        """The lower bound on the information: the low end of the interval, nats."""
        return self.interval[0]


def event_bound(
    samples: Samples | Sequence[Samples],
    training_sets: Points | Sequence[Points],
    fresh_sets: Points | Sequence[Points] | None = None,
    *,
    event: str = "copy",
    threshold: float | None = None,
    confidence: float = CONFIDENCE,
    count: int | None = None,
    sigma_min: float = 0.0,
    generator: torch.Generator | None = None,
) -> EventBound:
    """Lower bound on the information between samples and training set, from one event.

    Args:
        samples: Samples of a model: a tensor ``(M, *S)``, a path or a function that draws them; or
            a list of them, one for each of K models.
        training_sets: The set of the model, or a list of K; two different points at least in each.
        fresh_sets: A set for each that shares no row with it, of the same size. None: with K >= 2
            models, the set of the next one.
        event: A name in `EVENTS`.
        threshold: Of the event; None for the usual one, or the best for half of the samples.
        confidence: Of the lower bound, between 0 and 1.
        count: Samples of each model; needed where functions draw them.
        sigma_min: Standard deviation of normal noise added to the samples, as for
            `set_attribution`.
        generator: Source of random choices, on the CPU.

    Returns:
        The bound, and the probabilities that it is made of.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An unknown event; sets that share rows or differ in size; no samples, or fewer
            than 4 of a model where the threshold is fitted.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> points, fresh = torch.randn(2, 50, 8, generator=generator)
        >>> found = event_bound(points.repeat(2, 1) + 0.01, points, fresh)
        >>> found.joint, found.product, 2 < found.bound < found.estimate
        (1.0, 0.0, True)
    """
    if event not in EVENTS:
        raise ValueError(f"event must be one of {', '.join(EVENTS)}, got {event!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence:g}")
    chosen = EVENTS[event]
    limit = chosen.threshold if threshold is None else threshold
    if limit is not None and not limit > 0:
        raise ValueError(f"threshold must be positive, got {limit:g}")
    pairs = make_pairs(
        samples,
        training_sets,
        fresh_sets,
        least=4 if limit is None else 1,
        count=count,
        sigma_min=sigma_min,
        generator=generator,
    )
    fitted = limit is None
    if limit is None:
        fit, pairs = pairs.halves(generator)
        limit = _best_threshold(*_statistics(fit, chosen))
    own, fresh = (values < limit for values in _statistics(pairs, chosen))  # (K, M')
    # Two probabilities, each two-sided at half the error: all four ends hold together.
    each = 1 - (1 - confidence) / 2
    ends = [
        grouped_interval(happened.double().mean(1).tolist(), happened.shape[1], each)
        for happened in (own, fresh)
    ]
    joint, product = float(own.double().mean()), float(fresh.double().mean())
    return EventBound(
        estimate=binary_kl(joint, product),
        interval=kl_range(*ends),
        joint=joint,
        joint_interval=ends[0],
        product=product,
        product_interval=ends[1],
        per_sample=torch.stack([own, fresh], 2),
        settings={
            "event": event,
            "threshold": limit,
            "threshold_fitted": fitted,
            "confidence": confidence,
            "num_evaluated": own.shape[1],
            **pairs.settings,
            "interval": (
                "over models and samples: Clopper-Pearson with the effective number of trials"
                if len(own) > 1
                else "over samples, given the one model and both sets: Clopper-Pearson"
            ),
        },
    )


def binary_kl(p: float, q: float) -> float:
    """Kullback-Leibler divergence of two coins, ``p log(p/q) + (1-p) log((1-p)/(1-q))``.

    Args:
        p: In ``[0, 1]``.
        q: In ``[0, 1]``.

    Returns:
        Nats, at least 0; infinite where q rules out what p allows.

    Example:
        >>> binary_kl(0.5, 0.5), round(binary_kl(1.0, 0.25), 4), binary_kl(0.5, 0.0)
        (0.0, 1.3863, inf)
    """
    total = 0.0
    for a, b in ((p, q), (1 - p, 1 - q)):
        if a > 0:
            total += a * log(a / b) if b > 0 else inf
    return max(total, 0.0)


def kl_range(
    p_interval: tuple[float, float], q_interval: tuple[float, float]
) -> tuple[float, float]:
    """Least and largest ``kl(p || q)`` for p and q in two intervals.

    kl is convex with its zeros at p = q: the least is 0 where the intervals meet and lies at the
    corner where they are closest otherwise; the largest lies at a corner.

    Args:
        p_interval: Low and high end of p.
        q_interval: Low and high end of q.

    Returns:
        Nats.

    Example:
        >>> low, high = kl_range((0.5, 1.0), (0.1, 0.25))
        >>> round(low, 4), round(high, 4)  # kl(0.5 || 0.25), kl(1 || 0.1)
        (0.1438, 2.3026)
    """
    corners = [binary_kl(p, q) for p in p_interval for q in q_interval]
    meet = p_interval[0] <= q_interval[1] and q_interval[0] <= p_interval[1]
    return 0.0 if meet else min(corners), max(corners)


def _statistics(pairs: Pairs, event: Event) -> tuple[Tensor, Tensor]:
    """The event's statistic for the own and the fresh sets, ``(K, M)`` each."""

    def against(sets: Sequence[EmpiricalDenoiser]) -> Tensor:
        found = [
            event.statistic(memorization_ratio(x, one, num_bootstrap=1))
            for x, one in zip(pairs.samples, sets, strict=True)
        ]
        return torch.stack(found)

    return against(pairs.own), against(pairs.fresh)


def _best_threshold(own: Tensor, fresh: Tensor) -> float:
    """The threshold with the largest kl, half a trial added to every count."""
    own, fresh = own.flatten().sort().values, fresh.flatten().sort().values
    # Below a threshold halfway to the next value lies every value up to here.
    candidates = torch.cat([own, fresh]).unique()
    candidates = torch.cat([(candidates[1:] + candidates[:-1]) / 2, candidates[-1:] * 2 + 1])
    shares = [
        (torch.searchsorted(values, candidates).double() + 0.5) / (len(values) + 1)
        for values in (own, fresh)
    ]
    divergences = [binary_kl(p, q) for p, q in zip(*(s.tolist() for s in shares), strict=True)]
    return float(candidates[divergences.index(max(divergences))])
