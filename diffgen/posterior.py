"""The posterior over the training points given a noisy point, and what follows from it.

With ``x = x0 + sigma epsilon``, ``x0`` drawn from the training set with raw weights ``W_i``,

    l_i = log W_i - |x - x_i|^2 / (2 sigma^2)       w = softmax(l) over the eligible points
    mean        = sum_i w_i x_i                     logsumexp   = log sum_i exp(l_i)
    score       = (mean - x) / sigma^2              epsilon     = (x - mean) / sigma
    log_density = logsumexp - log sum_i W_i - D/2 log(2 pi sigma^2)
    entropy     = -sum_i w_i log w_i                effective_sample_size = 1 / sum_i w_i^2
    trace_covariance = sum_i w_i |x_i - mean|^2     top_weights = the w_i of the nearest points

Score, epsilon and log-density are made here, in float64, from the unrounded mean and logsumexp, so
that they are differentiable wherever those are and keep the digits that ``mean - x`` cancels.
"""

from __future__ import annotations

from math import inf, log, nan, pi
from typing import NamedTuple

import torch
from torch import Tensor

from diffgen.functional import Moments
from diffgen.training_set import TrainingSet

ENTROPY, EFFECTIVE_SAMPLE_SIZE, TRACE = range(3)
"""Columns of the functionals."""

TIE_SLACK = 1e-12
"""At ``sigma = 0`` squared distances this close (relative) are equal, as the backends have it."""

SIZE_SLACK = 1e-9
"""Relative difference of effective sample sizes above which they count different points."""

DOMINANT = 0.5
"""Share of the total weight above which leaving a point out is summed anew, not subtracted."""


class Posterior(NamedTuple):
    """The posterior over a training set, for each of B queries; one pass over the data makes it.

    ``mean``, ``score`` and ``epsilon`` have the shape and type of the query, rounded once; the
    rest is float64 (``top_indices``: int64). ``mean``, ``logsumexp``, ``log_density``, ``score``
    and ``epsilon`` are differentiable in x and sigma; asking the others for a gradient raises.
    A named tuple, so that ``torch.vmap`` and ``torch.compile`` take it as a result.

    Attributes:
        mean: Posterior mean of x0, ``(B, *S)``: the denoised point. At ``sigma = 0`` the weighted
            average of all nearest points.
        logsumexp: ``log sum_i exp(l_i)``, log weights included, ``(B,)``, nats. At ``sigma = 0``
            -inf, unless x coincides with training points.
        log_density: Log of the density of ``x0 + sigma epsilon`` at x, ``(B,)``, nats, x0 drawn
            from the eligible points (of the class, without the excluded one).
        entropy: Of the weights, ``(B,)``, nats; its exponential is a number of neighbours.
        effective_sample_size: ``1 / sum_i w_i^2``, ``(B,)``, between 1 and the number of points.
        trace_covariance: Trace of the posterior covariance of x0, ``(B,)``: the least mean squared
            error of any denoiser, in squared units of the data.
        score: ``grad_x log_density``, ``(B, *S)``; NaN at ``sigma = 0``.
        epsilon: Posterior mean of the standard normal noise, ``(B, *S)``; NaN at ``sigma = 0``.
        top_indices: Rows of the nearest points, ``(B, k)``, nearest first, ties by the lowest
            index; -1 where the query is not finite.
        top_weights: Their posterior weights, ``(B, k)``.
        top_distances: Their l2 distances (not squared) from x, ``(B, k)``.

    Source:
        Yi, Sun, Li, On the Generalization of Diffusion Model (2023), arXiv:2305.14712;
        Vincent, A connection between score matching and denoising autoencoders (2011), the score.
    """

    mean: Tensor
    logsumexp: Tensor
    log_density: Tensor
    entropy: Tensor
    effective_sample_size: Tensor
    trace_covariance: Tensor
    score: Tensor
    epsilon: Tensor
    top_indices: Tensor
    top_weights: Tensor
    top_distances: Tensor


def from_moments(
    training_set: TrainingSet,
    moments: Moments,
    x: Tensor,
    sigma: Tensor,
    labels: Tensor | None,
    exclude: Tensor | None,
) -> Posterior:
    """The fields of a posterior from the outputs of one pass.

    Args:
        training_set: The set.
        moments: With the mean in float64 and the functionals.
        x: Noisy points, ``(B, *S)``.
        sigma: ``(B,)`` float64.
        labels: Class of each query, -1 for the whole set, ``(B,)``; None for all -1.
        exclude: Point left out, -1 for none, ``(B,)``; None for all -1.

    Returns:
        The posterior.
    """
    batch, features = moments.mean.shape
    scale = positive_or_nan(sigma).reshape(batch, *[1] * (x.ndim - 1))
    mean = moments.mean.reshape(x.shape)
    epsilon = (x.to(torch.float64) - mean) / scale
    logsumexp = moments.logsumexp
    log_total = log_eligible_weight(training_set, labels, exclude, batch)
    log_density = logsumexp - log_total - features * (sigma.log() + 0.5 * log(2 * pi))
    return Posterior(
        mean=mean.to(x.dtype),
        logsumexp=logsumexp,
        # At sigma = 0 off the points the two infinities would give NaN where the density is 0.
        log_density=torch.where(logsumexp == -inf, logsumexp, log_density),
        entropy=moments.functionals[:, ENTROPY],
        effective_sample_size=moments.functionals[:, EFFECTIVE_SAMPLE_SIZE],
        trace_covariance=moments.functionals[:, TRACE],
        score=(-epsilon / scale).to(x.dtype),
        epsilon=epsilon.to(x.dtype),
        top_indices=moments.top_indices,
        top_weights=nearest_weights(training_set, moments, sigma),
        top_distances=moments.top_distances,
    )


def positive_or_nan(sigma: Tensor) -> Tensor:
    """A divisor: NaN in place of 0, so that what is not determined never looks like a number."""
    return torch.where(sigma == 0, nan, sigma)


def log_eligible_weight(
    training_set: TrainingSet, labels: Tensor | None, exclude: Tensor | None, batch: int
) -> Tensor:
    """Log of the total weight of the points that each query may use, ``(B,)`` float64.

    Args:
        training_set: The set.
        labels: Class of each query, -1 for the whole set, ``(B,)``; None for all -1.
        exclude: Point left out, -1 for none, ``(B,)``; None for all -1.
        batch: B.

    Returns:
        Float64, on the set's device.
    """
    device = training_set.device
    log_total = torch.full(
        (batch,), training_set.log_total_weight, dtype=torch.float64, device=device
    )
    class_log_weights = training_set.class_log_weights
    if labels is not None and class_log_weights is not None:
        of_class = class_log_weights.to(device)[labels.clamp(0, len(class_log_weights) - 1)]
        log_total = torch.where(labels >= 0, of_class, log_total)
    if exclude is None:
        return log_total
    point = exclude.clamp(0, len(training_set) - 1)
    member = exclude >= 0
    if labels is not None and training_set.labels is not None:
        own = training_set.labels.to(device)[point]
        member = member & ((labels < 0) | (labels == own))
    log_share = _log_weights(training_set, point) - log_total
    log_share = torch.where(member, log_share, -inf)
    without = log_total + torch.log1p(-log_share.exp())
    if training_set.view().log_weights is None or training_set.flip:
        return without
    return torch.where(log_share > log(DOMINANT), _log_rest(training_set, labels), without)


def _log_rest(training_set: TrainingSet, labels: Tensor | None) -> Tensor:
    """Log of the weight of all points but the heaviest, of the whole set or of each query's class.

    What is left where a point that holds most of the weight is left out: ``1 - share`` cancels
    there (with weights 1e13, 1, 1 it is off by a thousandth). Only the heaviest point can be that,
    and none of a set with equal weights or with mirror images.
    """
    log_weights = training_set.view().log_weights
    assert log_weights is not None
    whole = _log_rest_of_groups(log_weights, torch.zeros_like(log_weights, dtype=torch.int64), 1)
    of_point = training_set.labels
    if labels is None or of_point is None:
        return whole
    count = training_set.num_classes
    by_class = _log_rest_of_groups(log_weights, of_point.to(log_weights.device), count)
    return torch.where(labels >= 0, by_class[labels.clamp(0, count - 1)], whole)


def _log_rest_of_groups(log_weights: Tensor, groups: Tensor, count: int) -> Tensor:
    """Log of the summed weights of each group without those equal to its largest, ``(count,)``."""
    nothing = torch.full((count,), -inf, dtype=log_weights.dtype, device=log_weights.device)

    def largest(values: Tensor) -> Tensor:
        return nothing.scatter_reduce(0, groups, values, "amax")

    rest = torch.where(log_weights == largest(log_weights)[groups], -inf, log_weights)
    scale = largest(rest)  # -inf, and so NaN below, for a group of which nothing is left
    return scale + nothing.exp().scatter_add(0, groups, (rest - scale[groups]).exp()).log()


def _log_weights(training_set: TrainingSet, points: Tensor) -> Tensor:
    """Log weights of points, float64; without the look at values of ``log_weight_of``."""
    log_weights = training_set.view().log_weights
    if log_weights is None:
        return torch.zeros_like(points, dtype=torch.float64)
    return log_weights[points % training_set.num_stored]


def nearest_weights(training_set: TrainingSet, moments: Moments, sigma: Tensor) -> Tensor:
    """Posterior weights of the nearest points: ``exp(log W - d^2 / (2 sigma^2) - logsumexp)``.

    At ``sigma = 0`` all nearest points share the weight as their raw weights say.

    Args:
        training_set: The set.
        moments: With the functionals and the nearest points.
        sigma: ``(B,)`` float64.

    Returns:
        ``(B, k)`` float64; NaN for a query that is not finite, and for one with ``sigma = 0``,
        unequal weights, and more than k points at the smallest distance.
    """
    distances = moments.top_distances
    if distances.shape[-1] == 0:
        return distances
    log_weights = _log_weights(training_set, moments.top_indices.clamp(min=0))
    scaled = distances / sigma[:, None]
    weights = (log_weights - 0.5 * scaled.square() - moments.logsumexp[:, None]).exp()
    # A sigma so small that the logits overflow is as good as zero.
    limit = (sigma == 0) | (moments.logsumexp == -inf)
    return torch.where(limit[:, None], _shares(training_set, moments, log_weights), weights)


def _shares(training_set: TrainingSet, moments: Moments, log_weights: Tensor) -> Tensor:
    """The weights at ``sigma = 0``, ``(B, k)``: those of the equally near points, summing to 1."""
    squared = moments.top_distances.square()
    near = squared <= squared[:, :1] * (1 + TIE_SLACK)
    # Relative to the heaviest, so that no weight overflows.
    weights = torch.where(near, (log_weights - log_weights.amax(1, keepdim=True)).exp(), 0.0)
    size = moments.functionals[:, EFFECTIVE_SAMPLE_SIZE, None]
    if training_set.view().log_weights is None:
        total = size
    else:
        # Equally near points that are not among the k nearest show in the effective sample size.
        total = weights.sum(1, keepdim=True)
        seen = total.square() / weights.square().sum(1, keepdim=True)
        total = torch.where((seen - size).abs() <= SIZE_SLACK * size, total, nan)
    return weights / total
