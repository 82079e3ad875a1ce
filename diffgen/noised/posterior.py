r"""Posteriors over parts of a set, merged: exactly, in any order.

With ``L_a, L_b`` the logsumexps of parts a and b, ``u = exp(L_a - L)`` and ``v = exp(L_b - L)``,

    L = logaddexp(L_a, L_b)                   m = u m_a + v m_b
    entropy = u H_a + v H_b - u log u - v log v
    1 / effective sample size = u^2 / E_a + v^2 / E_b
    trace = u T_a + v T_b + u v |m_a - m_b|^2
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """The posterior of B queries over part of a set; all float64.

    Attributes:
        mean: Posterior mean, ``(B, D)``.
        logsumexp: Log of the sum of the exponentials of the logits, ``(B,)``, nats.
        entropy: Of the weights, ``(B,)``, nats.
        effective_sample_size: ``1 / sum w^2``, ``(B,)``.
        trace_covariance: ``(B,)``.
    """

    mean: Tensor
    logsumexp: Tensor
    entropy: Tensor
    effective_sample_size: Tensor
    trace_covariance: Tensor


class NoisedPosterior(NamedTuple):
    """The posterior over the noised points of one time s, for each of B noisy points; float64.

    Attributes:
        mean: ``m_s(x_t)``, ``(B, *S)``: a combination of noised points, in the scale of x_s.
        last_noise: ``xi*(x_t)``, ``(B, *S)``: the expected noise of the step from s to t.
        log_density: ``log p_s(x_t)``, ``(B,)``, nats.
        entropy: Of the weights u, ``(B,)``, nats.
        effective_sample_size: ``1 / sum u^2``, ``(B,)``.
        trace_covariance: Trace of the covariance of x_s under u, ``(B,)``.
    """

    mean: Tensor
    last_noise: Tensor
    log_density: Tensor
    entropy: Tensor
    effective_sample_size: Tensor
    trace_covariance: Tensor


def merged(a: Part, b: Part) -> Part:
    """The posterior over both parts.

    Example:
        >>> zero, one = torch.zeros(1).double(), torch.ones(1).double()
        >>> a, b = (Part(m * one[:, None], zero, zero, one, zero) for m in (-1, 1))
        >>> both = merged(a, b)  # two single points of equal weight, at -1 and 1
        >>> both.mean.item(), both.effective_sample_size.item(), both.trace_covariance.item()
        (0.0, 2.0, 1.0)
    """
    logsumexp = torch.logaddexp(a.logsumexp, b.logsumexp)
    u, v = (a.logsumexp - logsumexp).exp(), (b.logsumexp - logsumexp).exp()
    between = (a.mean - b.mean).square().sum(1)
    return Part(
        mean=u[:, None] * a.mean + v[:, None] * b.mean,
        logsumexp=logsumexp,
        entropy=u * a.entropy + v * b.entropy - torch.xlogy(u, u) - torch.xlogy(v, v),
        effective_sample_size=1
        / (u.square() / a.effective_sample_size + v.square() / b.effective_sample_size),
        trace_covariance=u * a.trace_covariance + v * b.trace_covariance + u * v * between,
    )
