"""Two models of two disjoint sets: do they agree with each other, or each with its set?

Of one noise, a model of the first set makes a, a model of the second makes b. For each

    same noise:      similarity(a, b)
    own set:         similarity(a, nearest point of the first set), and of b in the second
    other set:       similarity(a, nearest point of the second set), and of b in the first

Copiers are nearest to their sets and do not agree: own set > same noise, own set > other set.
Models that have learnt the distribution agree with each other more than with any training point.

For a deterministic sampler with the noise z, ``I(sample; set) <= I(sample; set | z)``, which is
zero where all sets give the same sample for the same z: that is what this experiment looks at. It
is no bound on the information.

Source: Kadkhodaie, Guth, Simoncelli, Mallat (2024), figure 2; Yi, Sun, Li (2023), arXiv:2305.14712
(information between samples and set; the inequality is derived).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization.copies.similarity import SIMILARITIES, same_noise_samples
from diffgen.generalization.disjoint import check_disjoint
from diffgen.generalization.over_noise.forward import Wrapper, unit_noise
from diffgen.generalization.samples import Points, as_denoiser_over
from diffgen.generalization.statistics.bootstrap import (
    CONFIDENCE,
    NUM_BOOTSTRAP,
    bootstrap_interval,
)
from diffgen.sampling import Denoiser


@dataclass(frozen=True)
class TwoSets:
    """Similarities of the samples of two models over M noises.

    Attributes:
        same_noise: Of both samples of a noise, ``(M,)`` float64.
        own_set: Of the samples with the nearest points of their own sets, ``(2, M)`` float64.
        other_set: The same with the sets of the other model, ``(2, M)`` float64.
        chance: Of samples of different noises, ``(M,)`` float64.
        nearest: The nearest points in the own sets, ``(2, M)`` int64.
        intervals: Bootstrap intervals over noises of the means, by name: ``same_noise``,
            ``own_set``, ``other_set``, ``chance``, ``same_less_own``, ``own_less_other``. They
            cover other noises, not other models or sets.
        settings: What determines the numbers beside models and sets.
    """

    same_noise: Tensor
    own_set: Tensor
    other_set: Tensor
    chance: Tensor
    nearest: Tensor
    intervals: dict[str, tuple[float, float]]
    settings: dict[str, Any]

    @property
    def means(self) -> dict[str, float]:
        """The means that `intervals` are of, by the same names."""
        return {name: float(values.mean()) for name, values in _columns(self).items()}


def two_sets_similarity(
    first: Denoiser | Tensor,
    second: Denoiser | Tensor,
    first_set: Points,
    second_set: Points,
    sigmas: Tensor | Sequence[float] | None = None,
    *,
    num_samples: int = 256,
    metric: str = "cosine",
    center: Tensor | None = None,
    sampler: str = "ddim",
    num_bootstrap: int = NUM_BOOTSTRAP,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: Wrapper | None = None,
) -> TwoSets:
    """Compare two models of disjoint sets with each other and with the sets.

    Args:
        first: The model of the first set: a denoiser ``(x, sigma) -> denoised``, or its samples
            ``(M, *S)``.
        second: The model of the second set, or its samples of the same noise ``(M, *S)``.
        first_set: Training points of the first model: a set, a denoiser over it, or rows.
        second_set: Those of the second; no row may be in both.
        sigmas: Noise levels of the sampler; needed for models.
        num_samples: M, at least 2, for models.
        metric: A name in `SIMILARITIES`. Nearest points are those of smallest l2 distance whatever
            the metric is; ``"l2"`` is a distance, small where samples are similar.
        center: What is subtracted from every sample and point, of their shape.
        sampler: A deterministic one.
        num_bootstrap: Resamples of the intervals.
        generator: Source of noise and resamples, on the CPU; None is PyTorch's own.
        batch_size: Samples drawn, and compared with a set, at a time.
        progress: Wraps the models, as ``tqdm`` does.

    Returns:
        All similarities, sample by sample.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Sets that share rows; an argument out of range; shapes that do not fit.
        BackendError: If no backend can measure the distances.

    Example:
        >>> a, b = torch.tensor([[-1.0], [1.0]]), torch.tensor([[-2.0], [2.0]])
        >>> samples = torch.tensor([[-1.0], [1.0], [1.0]]), torch.tensor([[-2.0], [2.0], [2.0]])
        >>> two_sets_similarity(*samples, a, b, metric="l2").means["own_set"]
        0.0

    Source:
        Kadkhodaie et al. (2024), figure 2.
    """
    if metric not in SIMILARITIES:
        raise ValueError(f"metric must be one of {', '.join(SIMILARITIES)}, got {metric!r}")
    sets = [as_denoiser_over(first_set, "first_set"), as_denoiser_over(second_set, "second_set")]
    shape = sets[0].training_set.sample_shape
    if sets[1].training_set.sample_shape != shape:
        got = sets[1].training_set.sample_shape
        raise ValueError(f"second_set must have samples of shape {shape} as first_set, got {got}")
    check_disjoint([one.training_set for one in sets], ["first_set", "second_set"])
    device = sets[0].training_set.device
    like = torch.empty(0, device=device)
    noise = unit_noise((num_samples, *shape), generator, like).to(torch.float32)
    drawn = []
    for model in (first, second):
        if isinstance(model, Tensor):
            drawn.append(model)
            continue
        if sigmas is None:
            raise ValueError("sigmas must be given for models, got None")
        one = same_noise_samples(
            [model], noise, sigmas, sampler=sampler, batch_size=batch_size, progress=progress
        )
        drawn.append(one[0])
    a, b = drawn
    if a.shape != b.shape or a.shape[1:] != shape or len(a) < 2:
        raise ValueError(
            f"samples must be (M, {', '.join(map(str, shape))}) of one noise with M >= 2, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    offset = torch.zeros(shape, device=device) if center is None else center.to(device)
    measure = SIMILARITIES[metric]
    ids: list[Tensor] = []
    own: list[Tensor] = []
    other: list[Tensor] = []
    for samples, its_set, other_set in ((a, sets[0], sets[1]), (b, sets[1], sets[0])):
        ids.append(_nearest(its_set, samples, batch_size))
        foreign = _nearest(other_set, samples, batch_size)
        own.append(measure(samples - offset, its_set.training_set[ids[-1]] - offset).cpu())
        other.append(measure(samples - offset, other_set.training_set[foreign] - offset).cpu())
    result = TwoSets(
        same_noise=measure(a - offset, b - offset).cpu(),
        own_set=torch.stack(own),
        other_set=torch.stack(other),
        chance=measure(a - offset, b.roll(1, 0) - offset).cpu(),
        nearest=torch.stack(ids).cpu(),
        intervals={},
        settings={
            "metric": metric,
            "centered": center is not None,
            "sampler": sampler,
            "num_steps": None if sigmas is None else len(sigmas) - 1,
            "num_samples": len(a),
            "num_points": [len(one.training_set) for one in sets],
            "num_bootstrap": num_bootstrap,
            "confidence": CONFIDENCE,
        },
    )
    columns = _columns(result)
    low, high = bootstrap_interval(
        torch.stack(list(columns.values()), 1), num_bootstrap=num_bootstrap, generator=generator
    )
    ends = zip(columns, low.tolist(), high.tolist(), strict=True)
    result.intervals.update({name: (left, right) for name, left, right in ends})
    return result


def _nearest(denoiser: EmpiricalDenoiser, samples: Tensor, batch_size: int) -> Tensor:
    """The nearest point to each sample, ``(M,)`` int64."""
    with torch.no_grad():
        # Distances do not depend on the noise level.
        found = [denoiser.posterior(x, 1.0, top_k=1) for x in samples.split(batch_size)]
    return torch.cat([posterior.top_indices[:, 0] for posterior in found])


def _columns(found: TwoSets) -> dict[str, Tensor]:
    """What means and intervals are of, each ``(M,)``."""
    own, other = found.own_set.mean(0), found.other_set.mean(0)
    return {
        "same_noise": found.same_noise,
        "own_set": own,
        "other_set": other,
        "chance": found.chance,
        "same_less_own": found.same_noise - own,
        "own_less_other": own - other,
    }
