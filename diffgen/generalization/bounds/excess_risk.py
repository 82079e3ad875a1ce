"""Excess risk, split exactly into optimisation, generalisation and sampling of the sets.

The risk of a generator is its squared kernel distance (MMD) to the population. With S the training
set, S' fresh points, ``U`` the mean of a kernel over pairs of different points of one set and ``m``
over pairs of two sets,

    MMD_u^2(gen, S') = U_gen - 2 m(gen, S') + U_S'          excess risk; KID_test of features
    MMD_u^2(gen, S)  = U_gen - 2 m(gen, S)  + U_S           optimisation; KID_train
    2 (m(gen, S) - m(gen, S'))                              generalisation
    U_S' - U_S                                              sampling

    excess risk = optimisation + generalisation + sampling

for every kernel and all sets, as an identity of the estimates. Over draws of the sets the last term
has mean 0 and the second is ``2 (E_joint k - E_product k)``; for ``0 <= k <= B`` that mean is at
most ``2 B sqrt(I(xhat; S) / 2n)``. So what the risk exceeds the fit to the training set by is what
the samples say about their set.

Intervals resample the generated and the fresh points, not the training set: they are conditional on
it. U-statistics are resampled to first order (by the mean of a point's kernel to the others).

Source: Gretton et al., A kernel two-sample test (2012), lemma 6 (MMD_u); Binkowski et al. (2018),
arXiv:1801.01401 (KID). The split is derived, in the terms of Yi, Sun, Li (2023), arXiv:2305.14712.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.generalization.bounds.kernels import (
    make_kernel,
    mean_kernel,
    mean_kernel_to_others,
)
from diffgen.generalization.disjoint import check_disjoint
from diffgen.generalization.samples import Points, Samples, as_denoiser_over, as_samples
from diffgen.generalization.statistics.bootstrap import (
    CONFIDENCE,
    NUM_BOOTSTRAP,
    bootstrap_means,
    percentile_interval,
)
from diffgen.training_set import TrainingSet

Features = Callable[[Tensor], Tensor]
"""From a batch of samples ``(B, *S)`` to features ``(B, F)``."""

_LEAST = 2
"""Points that a mean over pairs of different ones needs."""

_MOST_POINTS = 1000
"""Points whose distances make the default bandwidth."""


@dataclass(frozen=True)
class ExcessRisk:
    """The risk of a generator and its parts: squared MMD, in units of the kernel.

    ``excess_risk = optimisation + generalisation + sampling`` to rounding.

    Attributes:
        excess_risk: ``MMD_u^2(gen, fresh)``: KID on test data, where features and kernel are KID's.
        optimisation: ``MMD_u^2(gen, training set)``: KID on training data.
        generalisation: ``2 (m(gen, training set) - m(gen, fresh))``.
        sampling: ``U_fresh - U_train``: what the two sets differ by themselves.
        intervals: Bootstrap interval of each of the first three, by name.
        per_sample: Whose mean the generalisation is, ``(M,)`` float64.
        settings: What determines the numbers.
    """

    excess_risk: float
    optimisation: float
    generalisation: float
    sampling: float
    intervals: dict[str, tuple[float, float]]
    per_sample: Tensor
    settings: dict[str, Any]


def excess_risk(
    samples: Samples,
    training_set: Points,
    fresh_set: Points,
    *,
    kernel: str = "rbf",
    bandwidth: float | None = None,
    features: Features | None = None,
    count: int | None = None,
    num_bootstrap: int = NUM_BOOTSTRAP,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> ExcessRisk:
    """The kernel distance of samples to the population, and what it consists of.

    Args:
        samples: Of one model: a tensor ``(M, *S)``, a path or a function that draws them; M >= 2.
        training_set: What the model was trained on, n >= 2 points.
        fresh_set: Points of the population that are not in the training set, at least 2; as many
            as the training set for terms of equal noise.
        kernel: A name in `KERNELS`: ``"rbf"``, or ``"polynomial"`` for KID.
        bandwidth: Of ``rbf``, in the units of the features; None for the median distance between
            points of the training set (of the first 1,000).
        features: Applied to all points before the kernel, in batches; None compares the values.
            KID takes those of an image network, which the caller supplies.
        count: Samples; needed where a function draws them.
        num_bootstrap: Resamples of the intervals.
        generator: Source of random choices, on the CPU.
        batch_size: Points in a call of ``features``.

    Returns:
        The risk and its parts.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Fewer than 2 points of a kind; sets that share rows; features of another form;
            an unknown kernel.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> points, fresh, other = torch.randn(3, 200, 4, generator=generator)
        >>> found = excess_risk(points + 0.1 * other, points, fresh, generator=generator)
        >>> parts = found.optimisation + found.generalisation + found.sampling
        >>> abs(found.excess_risk - parts) < 1e-14
        True

    Source:
        Gretton et al. (2012), lemma 6.
    """
    own = as_denoiser_over(training_set).training_set
    fresh = as_denoiser_over(fresh_set, "fresh_set").training_set
    check_disjoint([own, fresh], ("training_set", "fresh_set"))
    drawn = as_samples(samples, own.sample_shape, count=count, generator=generator)
    points: dict[str, Tensor | TrainingSet] = {
        "samples": drawn,
        "training_set": own,
        "fresh_set": fresh,
    }
    for name, given in points.items():
        if len(given) < _LEAST:
            raise ValueError(f"{name} must be at least {_LEAST} for pairs, got {len(given)}")
    x, train, test = (
        _features(given, features, batch_size, name) for name, given in points.items()
    )
    if kernel == "rbf" and bandwidth is None:
        bandwidth = _median_distance(train)
    chosen = make_kernel(kernel, bandwidth)
    to_train, to_test = mean_kernel(x, train, chosen), mean_kernel(x, test, chosen)
    within = mean_kernel_to_others(x, chosen)
    of_train = float(mean_kernel_to_others(train, chosen).mean())
    of_test = mean_kernel_to_others(test, chosen)
    generalisation = 2 * (to_train - to_test)  # (M,)
    parts = {
        "excess_risk": float(within.mean() - 2 * to_test.mean() + of_test.mean()),
        "optimisation": float(within.mean() - 2 * to_train.mean()) + of_train,
        "generalisation": float(generalisation.mean()),
    }
    # How a part moves with the share of each generated, and of each fresh point. A point is in
    # U twice, as the first and as the second of a pair.
    from_samples = torch.stack([2 * (within - to_test), 2 * (within - to_train), generalisation], 1)
    to_samples = mean_kernel(test, x, chosen)
    still = torch.zeros_like(to_samples)
    from_fresh = torch.stack([2 * (of_test - to_samples), still, -2 * to_samples], 1)
    moves = sum(
        bootstrap_means(values, num_bootstrap=num_bootstrap, generator=generator)
        - values.mean(0).cpu()
        for values in (from_samples, from_fresh)
    )
    centre = torch.tensor(list(parts.values()), dtype=torch.float64)
    low, high = percentile_interval(centre + moves)
    ends = zip(low.tolist(), high.tolist(), strict=True)
    return ExcessRisk(
        **parts,
        sampling=float(of_test.mean()) - of_train,
        intervals=dict(zip(parts, ends, strict=True)),
        per_sample=generalisation.cpu(),
        settings={
            "kernel": kernel,
            "bandwidth": chosen.bandwidth,
            "features": "the values" if features is None else "given",
            "num_features": x.shape[1],
            "num_samples": len(x),
            "num_points": len(train),
            "num_fresh": len(test),
            "num_bootstrap": num_bootstrap,
            "confidence": CONFIDENCE,
            "interval": "over generated and fresh points, given the training set",
        },
    )


def _features(
    points: Tensor | TrainingSet, features: Features | None, batch_size: int, name: str
) -> Tensor:
    """Features of all points, ``(N, F)`` float64."""
    if features is None:
        return points[:].flatten(1).to(torch.float64)
    found = []
    for start in range(0, len(points), batch_size):
        batch = points[start : start + batch_size]
        with torch.no_grad():
            of_batch = features(batch)
        if not isinstance(of_batch, Tensor) or of_batch.shape[:1] != batch.shape[:1]:
            got = getattr(of_batch, "shape", type(of_batch).__name__)
            raise ValueError(f"features must return ({len(batch)}, F), got {got}")
        found.append(of_batch.flatten(1).to(torch.float64))
    values = torch.cat(found)
    bad = ~values.isfinite().all(1)
    if bad.any():
        at = int(bad.nonzero()[0])
        raise ValueError(f"features must be finite, got row {at} of {name}, which is not")
    return values


def _median_distance(points: Tensor) -> float:
    """Median distance between different points, of the first 1,000."""
    distances = torch.nn.functional.pdist(points[:_MOST_POINTS])
    found = float(distances.median())
    if found == 0:
        raise ValueError("bandwidth must be given where most training points are equal, got None")
    return found
