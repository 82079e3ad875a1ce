"""Percentile bootstrap of means, over samples and over groups of samples.

    resample s of R:   groups g_1..g_G drawn with replacement, then in each its samples likewise
    statistic of s:    mean of the values that were drawn
    interval:          the (1 - c) / 2 and (1 + c) / 2 quantiles of the R statistics

Samples of one trained model are alike: what varies between models is seen only when the models are
resampled. With groups (a model each) both are, so that the interval covers other models and other
samples of theirs; without groups it covers other samples of the same model.

Source: Efron, Bootstrap methods: another look at the jackknife (1979); Davison, Hinkley, Bootstrap
methods and their application (1997), section 3.8 (two stages).
"""

from __future__ import annotations

import torch
from torch import Tensor

CONFIDENCE = 0.95
"""Coverage of intervals, unless another is asked for."""

NUM_BOOTSTRAP = 1000
"""Resamples of an interval, unless another number is asked for."""

_MOST_DRAWS = 1 << 22
"""Draws held at once: 32 MiB of indices and as much of counts."""


def bootstrap_interval(
    values: Tensor,
    *,
    num_bootstrap: int = NUM_BOOTSTRAP,
    confidence: float = CONFIDENCE,
    groups: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Percentile interval of the mean of values over samples.

    Where all values agree it has no width; what other samples could show is then bounded by
    other means (the rule of three, `diffgen.generalization.statistics.proportions`).

    Args:
        values: ``(M,)``, or ``(M, T)`` for T quantities of the same samples; M >= 2, finite.
        num_bootstrap: Resamples, at least 1.
        confidence: Coverage, between 0 and 1.
        groups: Which group each sample belongs to, int ``(M,)``: at least two groups. None: the
            samples are independent.
        generator: Source of the resamples, on the CPU; None is PyTorch's own.

    Returns:
        Low and high end: 0-dim for ``(M,)``, else ``(T,)``; float64, on the CPU.

    Raises:
        ValueError: Too few values or groups for an interval, values that are not finite, or an
            argument out of range.

    Example:
        >>> values = torch.arange(100, dtype=torch.float64)
        >>> generator = torch.Generator().manual_seed(0)
        >>> low, high = bootstrap_interval(values, generator=generator)
        >>> round(float(low)), round(float(high))  # 49.5 -+ 1.96 * 29 / sqrt(100)
        (44, 55)

    Source:
        Efron (1979).
    """
    means = bootstrap_means(values, num_bootstrap=num_bootstrap, groups=groups, generator=generator)
    return percentile_interval(means, confidence)


def bootstrap_means(
    values: Tensor,
    *,
    num_bootstrap: int = NUM_BOOTSTRAP,
    groups: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The resampled means themselves, to combine with those of other samples.

    Args:
        values: As for `bootstrap_interval`.
        num_bootstrap: Resamples, at least 1.
        groups: As for `bootstrap_interval`.
        generator: As for `bootstrap_interval`.

    Returns:
        ``(num_bootstrap,)`` or ``(num_bootstrap, T)``, float64, on the CPU.

    Raises:
        ValueError: As for `bootstrap_interval`.

    Example:
        >>> bootstrap_means(torch.ones(5), num_bootstrap=3)
        tensor([1., 1., 1.], dtype=torch.float64)
    """
    values = _checked(values)
    if num_bootstrap < 1:
        raise ValueError(f"num_bootstrap must be at least 1, got {num_bootstrap}")
    members = _members(groups, len(values))
    rows = values.reshape(len(values), -1)
    means = []
    step = max(1, _MOST_DRAWS // len(values))
    for start in range(0, num_bootstrap, step):
        count = min(step, num_bootstrap - start)
        drawn = _counts(members, len(values), count, generator)  # (count, M)
        means.append(drawn @ rows / drawn.sum(1, keepdim=True))
    return torch.cat(means).reshape(num_bootstrap, *values.shape[1:])


def percentile_interval(
    statistics: Tensor, confidence: float = CONFIDENCE
) -> tuple[Tensor, Tensor]:
    """The middle part of resampled statistics.

    Args:
        statistics: ``(R,)`` or ``(R, T)``.
        confidence: Which part, between 0 and 1.

    Returns:
        Low and high end, of the shape of one statistic, float64.

    Raises:
        ValueError: If the confidence is not between 0 and 1.

    Example:
        >>> low, high = percentile_interval(torch.arange(101.0), 0.9)
        >>> round(float(low)), round(float(high))
        (5, 95)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence:g}")
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = statistics.to(torch.float64).quantile(tails, dim=0)
    return low, high


def _checked(values: Tensor) -> Tensor:
    if values.ndim not in (1, 2):
        raise ValueError(f"values must be (M,) or (M, T), got {tuple(values.shape)}")
    if len(values) < 2:
        raise ValueError(f"values must be of at least 2 samples for an interval, got {len(values)}")
    values = values.detach().to("cpu", torch.float64)
    bad = ~values.reshape(len(values), -1).isfinite().all(1)
    if bad.any():
        at = int(bad.nonzero()[0])
        raise ValueError(f"values must be finite, got sample {at}, which is not")
    return values


def _members(groups: Tensor | None, count: int) -> list[Tensor] | None:
    """Indices of the samples of each group; None where each sample stands for itself."""
    if groups is None:
        return None
    if tuple(groups.shape) != (count,):
        raise ValueError(f"groups must have shape ({count},), got {tuple(groups.shape)}")
    of_sample = groups.detach().cpu()
    found = [(of_sample == group).nonzero()[:, 0] for group in of_sample.unique()]
    if len(found) < 2:
        raise ValueError(f"groups must be at least 2 for an interval, got {len(found)}")
    return found


def _counts(
    members: list[Tensor] | None, size: int, count: int, generator: torch.Generator | None
) -> Tensor:
    """How often each sample is drawn in each resample, ``(count, M)`` float64."""
    counts = torch.zeros(count, size, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    if members is None:
        drawn = torch.randint(size, (count, size), generator=generator)
        return counts.scatter_add_(1, drawn, one.expand_as(drawn))
    picked = torch.randint(len(members), (count, len(members)), generator=generator)
    for group, of_group in enumerate(members):
        # A group that is picked r times gives r independent resamples of its samples.
        times = (picked == group).sum(1)  # (count,)
        for turn in range(int(times.max())):
            rows = (times > turn).nonzero()[:, 0]
            shape = (len(rows), len(of_group))
            drawn = of_group[torch.randint(len(of_group), shape, generator=generator)]
            counts.index_put_((rows[:, None], drawn), one, accumulate=True)
    return counts
