"""Exact intervals of proportions: Clopper-Pearson, through the incomplete beta function.

k of m independent trials succeed with an unknown probability p. The interval takes every p under
which neither as many nor as few successes have a probability below ``(1 - c) / 2``:

    low  = quantile of Beta(k, m - k + 1) at (1 - c) / 2          0 where k = 0
    high = quantile of Beta(k + 1, m - k) at (1 + c) / 2          1 where k = m

It covers p with probability at least c for every m and p, however small: with k = m it still has
a width. k and m need not be whole, which is what an effective number of trials asks for.

Source: Clopper, Pearson, The use of confidence or fiducial limits illustrated in the case of the
binomial (1934); Korn, Graubard, Confidence intervals for proportions with small expected number of
positive counts estimated from survey data (1998), for grouped trials.
"""

from __future__ import annotations

from math import exp, fsum, inf, lgamma, log, log1p

_TINY = 1e-300
"""Stands in for a vanishing denominator of the continued fraction."""

_CONVERGED = 1e-16
"""Relative change below which the continued fraction is done: half a float64 epsilon."""


def clopper_pearson(
    successes: float, trials: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Conservative interval of a probability from independent trials.

    Args:
        successes: How many succeeded, in ``[0, trials]``.
        trials: How many there were, positive.
        confidence: Coverage, between 0 and 1.

    Returns:
        Low and high end, in ``[0, 1]``; the coverage is at least the confidence.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> low, high = clopper_pearson(0, 100)
        >>> low, round(high, 4)  # 1 - 0.025 ** (1 / 100)
        (0.0, 0.0362)

    Source:
        Clopper, Pearson (1934).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence:g}")
    if not (0 < trials < inf and 0 <= successes <= trials):
        raise ValueError(f"successes must be in [0, trials], got {successes:g} of {trials:g}")
    tail = (1 - confidence) / 2
    failures = trials - successes
    low = 0.0 if successes == 0 else _quantile(tail, successes, failures + 1)
    high = 1.0 if failures == 0 else 1 - _quantile(tail, failures, successes + 1)
    return low, high


def grouped_interval(
    group_means: list[float], group_size: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of a probability from trials that come in groups which may be alike.

    Clopper-Pearson with the effective number of independent trials: ``p (1 - p)`` over the
    variance of the mean of the groups, at least the number of groups (all trials of a group say
    the same) and at most the number of trials (groups do not matter). One group says nothing about
    others: then the interval is that of its own trials.

    Args:
        group_means: Share of successes of each group, in ``[0, 1]``.
        group_size: Trials in each group, at least 1.
        confidence: Coverage, between 0 and 1.

    Returns:
        Low and high end.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> together = grouped_interval([1.0, 0.0] * 8, 50)  # as 16 trials
        >>> alone = grouped_interval([0.5] * 16, 50)  # as 800 trials
        >>> [round(end, 3) for end in (*together, *alone)]
        [0.247, 0.753, 0.465, 0.535]

    Source:
        Korn, Graubard (1998), without their correction for the degrees of freedom.
    """
    groups = len(group_means)
    if groups == 0 or group_size < 1:
        raise ValueError(f"there must be trials, got {groups} groups of {group_size}")
    p = fsum(group_means) / groups
    total = groups * group_size
    effective = float(total)
    if groups > 1:
        spread = fsum((mean - p) ** 2 for mean in group_means) / (groups - 1) / groups
        # No group differs where all or none succeed: that many groups are known to agree, no more.
        certain = p in (0.0, 1.0)
        independent = groups if certain else p * (1 - p) / spread if spread > 0 else total
        effective = float(min(total, max(groups, independent)))
    return clopper_pearson(p * effective, effective, confidence)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function ``I_x(a, b)``: the distribution function of Beta(a, b).

    Args:
        a: First shape, positive.
        b: Second shape, positive.
        x: Where, in ``[0, 1]``.

    Returns:
        The probability below x.

    Example:
        >>> round(incomplete_beta(2, 3, 0.5), 12)  # 11 / 16
        0.6875

    Source:
        Abramowitz, Stegun, Handbook of mathematical functions (1964), 26.5.8 (the fraction).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - incomplete_beta(b, a, 1 - x)
    log_front = lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)
    return exp(log_front) / (a * _fraction(a, b, x))


def _fraction(a: float, b: float, x: float) -> float:
    """Continued fraction ``1 + d_1 / (1 + d_2 / (1 + ...))`` by the modified Lentz method."""
    value, ratio_c, ratio_d = 1.0, 1.0, 0.0
    # Converges in about sqrt(max(a, b)) terms; the limit covers shapes up to 1e8.
    for term in range(1, 20_000):
        half = term // 2
        if term % 2:
            factor = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            factor = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        ratio_d = 1 / _nonzero(1 + factor * ratio_d)
        ratio_c = _nonzero(1 + factor / ratio_c)
        value *= ratio_c * ratio_d
        if abs(ratio_c * ratio_d - 1) < _CONVERGED:
            break
    return value


def _nonzero(value: float) -> float:
    return value if value != 0 else _TINY


def _quantile(probability: float, a: float, b: float) -> float:
    """Where ``I_x(a, b)`` is the probability, by bisection to the last digit."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if incomplete_beta(a, b, middle) < probability else (low, middle)
    return low
