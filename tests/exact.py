"""The posterior over a training set by its definition, for tests of what is built on the ops."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor


def exact(
    x: Tensor,
    data: Tensor,
    sigma: float,
    *,
    weights: Tensor | None = None,
    alpha: float = 1.0,
) -> SimpleNamespace:
    """Float64, differences, full matrix; sigma > 0. ``data (N, *S)`` in real units."""
    shape = x.shape
    points = data.reshape(len(data), -1).double()
    queries = x.reshape(len(x), points.shape[1]).double()
    raw = torch.ones(len(points)).double() if weights is None else weights.double()
    distances = (queries[:, None] - alpha * points).norm(dim=2)  # (B, N)
    logits = raw.log() - 0.5 * (distances / sigma).square()
    logsumexp = logits.logsumexp(1)
    w = (logits - logsumexp[:, None]).exp()
    mean = w @ points
    centred = points - mean[:, None]  # (B, N, D)
    covariance = (w[..., None] * centred).mT @ centred
    log_total = raw.log().logsumexp(0)
    return SimpleNamespace(
        weights=w,
        distances=distances,
        mean=mean.reshape(shape),
        logsumexp=logsumexp,
        log_density=logsumexp
        - log_total
        - 0.5 * points.shape[1] * math.log(2 * math.pi * sigma**2),
        entropy=torch.special.entr(w).sum(1),
        effective_sample_size=1 / w.square().sum(1),
        covariance=covariance,
        trace_covariance=covariance.diagonal(dim1=1, dim2=2).sum(1),
        score=((mean - queries) / sigma**2).reshape(shape),
        epsilon=((queries - mean) / sigma).reshape(shape),
    )


def images(count: int, seed: int = 0, shape: tuple[int, ...] = (3, 4, 4)) -> Tensor:
    """Points in [-1, 1], float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *shape, generator=generator) * 2 - 1


def noised(data: Tensor, sigma: float, batch: int, seed: int = 1) -> Tensor:
    """Noisy points of a set, ``(B, *S)`` float32."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, *data.shape[1:], generator=generator)
    return data[torch.arange(batch) % len(data)].float() + sigma * noise
