"""Critics: how well a sample goes with a training set, ``f(xhat, S)``.

| name          | f(xhat, S)                                           | fitted           |
|---------------|------------------------------------------------------|------------------|
| `nearest`     | -(distance to the nearest point of S) / tau          | tau              |
| `log_density` | log KDE_S(xhat) at a noise level sigma               | sigma, one of 16 |
| `trained`     | weights . (that distance, its square, log-densities) | 10 weights       |

A critic is fitted on samples of its own and then applied to others. It is the same function of a
sample and a set for all sets: nothing in it belongs to one set alone.

Source: van den Oord, Li, Vinyals, Representation learning with contrastive predictive coding
(2018), arXiv:1807.03748.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from diffgen.generalization.bounds.comparisons import Comparisons
from diffgen.generalization.bounds.conditional_logit import bound_terms, fit_conditional_logit

_NUM_LEVELS = 16
"""Noise levels that `log_density` chooses among."""

_NUM_TRAINED_LEVELS = 8
"""Noise levels whose log-densities `trained` combines."""


@dataclass(frozen=True)
class FittedCritic:
    """A critic with its numbers.

    Attributes:
        scores: ``f`` of every sample and set of a comparison, ``(M, K)`` float64.
        parameters: What was fitted.
    """

    scores: Callable[[Comparisons], Tensor]
    parameters: dict[str, Any]


Critic = Callable[[Comparisons, Tensor], FittedCritic]
"""Fits a critic: comparisons of samples with all sets, and the set of each sample, ``(M,)``."""


def _nearest(fit: Comparisons, labels: Tensor) -> FittedCritic:
    weight = float(fit_conditional_logit(-fit.distances[:, :, None], labels))
    # A negative weight would say that models avoid their own set; 0 is the best of the others.
    weight = max(weight, 0.0)
    tau = 1 / weight if weight > 0 else inf
    return FittedCritic(lambda seen: -weight * seen.distances, {"tau": tau})


def _log_density(fit: Comparisons, labels: Tensor) -> FittedCritic:
    # At infinite noise all sets look alike: the score of a critic that knows nothing.
    best, level = 0.0, inf
    for sigma in fit.scales(_NUM_LEVELS):
        bound = float(bound_terms(fit.log_density(sigma), labels).mean())
        if bound > best:
            best, level = bound, sigma
    if level == inf:
        return FittedCritic(lambda seen: torch.zeros_like(seen.distances), {"sigma": inf})
    return FittedCritic(lambda seen: seen.log_density(level), {"sigma": level})


def _trained(fit: Comparisons, labels: Tensor) -> FittedCritic:
    levels = fit.scales(_NUM_TRAINED_LEVELS)

    def features(seen: Comparisons) -> Tensor:
        nearest = [-seen.distances, -seen.distances.square()]
        return torch.stack([*nearest, *(seen.log_density(sigma) for sigma in levels)], 2)

    weights = fit_conditional_logit(features(fit), labels)
    return FittedCritic(
        lambda seen: features(seen) @ weights,
        {"sigmas": levels, "weights": weights.tolist()},
    )


CRITICS: dict[str, Critic] = {
    "nearest": _nearest,
    "log_density": _log_density,
    "trained": _trained,
}
"""Every critic by its name."""
