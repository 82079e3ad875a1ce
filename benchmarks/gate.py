"""The gate: how far a result is from the definition, before anything is timed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.images import VALUE_RANGE

MEAN_PROMISE = 1e-5
"""Absolute error of the posterior mean that diffgen promises."""

LOGSUMEXP_PROMISE = 1e-3
"""Absolute error of the logsumexp, in nats, that diffgen promises ..."""

LOGSUMEXP_RELATIVE = 1e-6
"""... or this much of it, where that is larger."""

QUERIES = 3
"""Queries of a batch that are judged: the first ones."""

CHUNK_ROWS = 256
"""Rows that are decoded at a time: few, so that they stay in a cache."""


def reference(images: Tensor, query: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Posterior mean and logsumexp by float64 differences, over blocks of rows.

    Shares no code with diffgen. The 8-bit data are decoded in float64, the float32 query is taken
    as a real number.

    Args:
        images: ``(N, *S)``, uint8 or floating point.
        query: ``(B, *S)``.
        sigma: Noise standard deviation, positive.

    Returns:
        Mean ``(B, D)`` and logsumexp ``(B,)``, float64.

    Example:
        >>> data = torch.tensor([[[[0.0]]], [[[2.0]]]])
        >>> mean, logsumexp = reference(data, torch.tensor([[[[1.0]]]]), 1.0)
        >>> mean.item(), round(logsumexp.item(), 6)  # log(2 exp(-1/2))
        (1.0, 0.193147)
    """
    points = query.flatten(1).double()
    means, masses = [], []
    difference = points.new_empty(min(CHUNK_ROWS, len(images)), points.shape[1])
    for block in images.flatten(1).split(CHUNK_ROWS):
        rows = block.double()
        if images.dtype == torch.uint8:
            low, high = VALUE_RANGE
            rows = rows.mul_((high - low) / 255).add_(low)
        squared = rows.new_empty(len(points), len(rows))  # (B, n)
        for point, out in zip(points, squared, strict=True):
            # One buffer for all: memory that is asked for anew costs more than the arithmetic.
            torch.sub(point, rows, out=difference[: len(rows)])
            torch.sum(difference[: len(rows)].square_(), 1, out=out)
        logits = squared / (-2 * sigma**2)
        means.append(torch.softmax(logits, 1) @ rows)
        masses.append(torch.logsumexp(logits, 1))
    mass = torch.stack(masses)  # (blocks, B)
    weights = torch.softmax(mass, 0)
    mean = (weights[:, :, None] * torch.stack(means)).sum(0)
    return mean, torch.logsumexp(mass, 0)


def error_in_promises(
    mean: Tensor, logsumexp: Tensor | None, expected: tuple[Tensor, Tensor]
) -> float:
    """The worst error in units of what diffgen promises; 1 or less is in bounds.

    Args:
        mean: Posterior mean, ``(B, *S)``.
        logsumexp: ``(B,)``, or None when the method gives none.
        expected: Mean and logsumexp of ``reference``.

    Returns:
        The worse of the two errors over their promises; infinity for a NaN.
    """
    exact_mean, exact_logsumexp = expected
    errors = [(mean.flatten(1).double() - exact_mean).abs().max() / MEAN_PROMISE]
    if logsumexp is not None:
        allowed = (LOGSUMEXP_RELATIVE * exact_logsumexp.abs()).clamp(min=LOGSUMEXP_PROMISE)
        errors.append(((logsumexp.double() - exact_logsumexp).abs() / allowed).max())
    worst = float(torch.stack(errors).max())
    return math.inf if math.isnan(worst) else worst
