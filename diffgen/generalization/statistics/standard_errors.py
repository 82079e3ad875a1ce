"""Standard errors and z-scores of means over independent samples."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

Z_LIMIT = 4.0
"""A z-score beyond which two estimates of one number do not agree: 6 in 100,000 by chance."""


def standard_error(values: Tensor) -> Tensor:
    """Standard error of the mean along the last axis; NaN for one value.

    Example:
        >>> standard_error(torch.tensor([0.0, 2.0, 0.0, 2.0]))
        tensor(0.5774)
    """
    return values.std(-1) / sqrt(values.shape[-1])


def z_score(differences: Tensor, least_variance: float | Tensor = 0.0) -> Tensor:
    """Mean over its standard error, along the last axis; NaN for one value, 0 where all are 0.

    Args:
        differences: ``(..., M)``.
        least_variance: What is known of the variance of a difference from elsewhere, ``(...)``: the
            spread of the differences counts where it is larger.

    Returns:
        ``(...)``.

    Example:
        >>> z_score(torch.tensor([-1.0, 1.0, 3.0, 1.0]))
        tensor(1.2247)
    """
    mean = differences.mean(-1)
    variance = differences.var(-1).clamp(min=torch.as_tensor(least_variance, dtype=mean.dtype))
    error = (variance / differences.shape[-1]).sqrt()
    return torch.where((error == 0) & (mean == 0), 0.0, mean / error)


def agree(z_scores: Tensor) -> bool:
    """Whether no z-score is beyond the limit; NaN says nothing.

    Example:
        >>> agree(torch.tensor([-3.9, 1.0])), agree(torch.tensor([0.0, 4.1]))
        (True, False)
    """
    return not bool((z_scores.abs() > Z_LIMIT).any())
