r"""Two posteriors over different points become one, exactly.

With ``L_a, L_b`` the logsumexps of posteriors a and b, ``u = exp(L_a - L)``,
``v = exp(L_b - L)``:

    L = logaddexp(L_a, L_b)                   m = u m_a + v m_b
    entropy = u H_a + v H_b - u log u - v log v
    1 / effective sample size = u^2 / E_a + v^2 / E_b
    trace = u T_a + v T_b + u v |m_a - m_b|^2

The weights of the whole are ``u p_i`` and ``v q_i``, with ``p`` and ``q`` those of the parts; the
entropy and the sum of squares follow at once, and the trace from ``m_a - m = v (m_a - m_b)`` and
``m_b - m = u (m_b - m_a)``: the cross term is ``u v^2 + v u^2 = u v``.
"""

from __future__ import annotations

import torch
from torch import Tensor

TIE = 1e-12
"""Relative difference of two distances, or squared distances, that count as equal."""


def merge_functionals(
    first: Tensor, second: Tensor, u: Tensor, v: Tensor, spread: Tensor
) -> Tensor:
    """Entropy, effective sample size and trace of the whole.

    Args:
        first: Those of one part, ``(B, 3)``.
        second: Those of the other.
        u: Share of the first part in the total weight, ``(B,)``.
        v: Share of the second.
        spread: Squared distance between the means of the parts, ``(B,)``.

    Returns:
        ``(B, 3)``.

    Example:
        >>> half = torch.tensor([0.5])
        >>> single = torch.tensor([[0.0, 1.0, 0.0]])
        >>> merge_functionals(single, single, half, half, torch.tensor([4.0]))
        tensor([[0.6931, 2.0000, 1.0000]])
    """
    a, b = first.unbind(1), second.unbind(1)
    entropy = u * a[0] + v * b[0] + torch.special.entr(u) + torch.special.entr(v)
    effective_sample_size = 1 / (u.square() / a[1] + v.square() / b[1])
    trace = u * a[2] + v * b[2] + u * v * spread
    return torch.stack((entropy, effective_sample_size, trace), 1)
