"""Fit of a conditional logit: which of K candidates a sample belongs to, from features of each.

    P(k | features) = softmax_k(w . f_k)        minimise  mean -log P(label) + |w|^2 / (2 s^2 M)

One vector of weights serves all candidates, so that what is fitted can tell candidates apart only
by their features. The loss is convex; Newton's method with halved steps finds its minimum. The
second term (a normal prior of scale s) keeps it finite where the samples are told apart without
error.

Source: McFadden, Conditional logit analysis of qualitative choice behavior (1974).
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

PRIOR_SCALE = 100.0
"""s, in units of a feature's standard deviation over candidates: wide enough to leave a fit alone
that the samples determine."""

_MOST_STEPS = 100

_CONVERGED = 1e-12
"""Decrease that Newton's step promises, in nats, below which the fit is done."""


def fit_conditional_logit(features: Tensor, labels: Tensor) -> Tensor:
    """Weights of the features that explain the labels best.

    Args:
        features: ``(M, K, F)``, finite, M >= 1.
        labels: The candidate of each sample, int64 ``(M,)`` in ``[0, K)``.

    Returns:
        ``(F,)`` float64; 0 for a feature on which no two candidates differ.

    Example:
        >>> features = torch.tensor([[[1.0], [0.0]]]).expand(4, 2, 1)  # in favour of candidate 0
        >>> weights = fit_conditional_logit(features, torch.tensor([0, 0, 1, 0]))
        >>> round(float(weights), 2)  # right in 3 of 4: log 3
        1.1
    """
    relative = features.to(torch.float64)
    relative = relative - relative.mean(1, keepdim=True)  # only differences of candidates count
    spread = relative.square().mean((0, 1)).sqrt()
    used = spread > 0
    scale = torch.where(used, spread, 1.0)
    scaled = torch.where(used, relative / scale, 0.0)
    weights = torch.zeros(scaled.shape[2], dtype=torch.float64, device=scaled.device)
    value = _loss(scaled, labels, weights)
    for _ in range(_MOST_STEPS):
        gradient, curvature = _derivatives(scaled, labels, weights)
        step = -torch.linalg.solve(curvature, gradient)
        decrease = -float(gradient @ step)
        if decrease < _CONVERGED:
            break
        length = 1.0
        # A quarter of the promised decrease: a convex loss gives it once the step is short enough.
        while _loss(scaled, labels, weights + length * step) > value - length * decrease / 4:
            length /= 2
            if length < torch.finfo(torch.float64).eps:
                return weights / scale * used
        weights = weights + length * step
        value = _loss(scaled, labels, weights)
    return weights / scale * used


def bound_terms(scores: Tensor, labels: Tensor) -> Tensor:
    """``log K + f_label - logsumexp_j f_j`` of each sample, ``(M,)`` nats.

    Args:
        scores: Of each candidate, ``(M, K)``.
        labels: The candidate that each sample belongs to, int64 ``(M,)``.

    Returns:
        Float64; at most log K, 0 on average without knowledge.

    Example:
        >>> bound_terms(torch.tensor([[0.0, 0.0], [50.0, 0.0]]), torch.tensor([0, 0]))
        tensor([0.0000, 0.6931], dtype=torch.float64)
    """
    scores = scores.to(torch.float64)
    own = scores.gather(1, labels[:, None])[:, 0]
    return log(scores.shape[1]) + own - scores.logsumexp(1)


def _loss(features: Tensor, labels: Tensor, weights: Tensor) -> float:
    prior = weights.square().sum() / (2 * PRIOR_SCALE**2 * len(features))
    return float(prior - bound_terms(features @ weights, labels).mean())


def _derivatives(features: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient ``(F,)`` and second derivatives ``(F, F)`` of the loss."""
    count, candidates, width = features.shape
    chances = (features @ weights).softmax(1)
    expected = torch.einsum("mk,mkf->mf", chances, features)
    own = features[torch.arange(count, device=labels.device), labels]
    prior = 1 / (PRIOR_SCALE**2 * count)
    gradient = (expected - own).mean(0) + prior * weights
    centred = (features - expected[:, None]) * chances.sqrt()[:, :, None]
    flat = centred.reshape(count * candidates, width)
    identity = torch.eye(width, dtype=torch.float64, device=features.device)
    return gradient, flat.mT @ flat / count + prior * identity
