"""Set attribution: information from telling which of K training sets a sample comes from.

K models are trained on K disjoint sets; ``xhat`` is drawn by model k. With any critic f,

    I(xhat; S) >= log K + E[f(xhat, S_k) - logsumexp_j f(xhat, S_j)]

(InfoNCE). The bound is at most log K. The critic is fitted on one half of each model's samples and
the bound is evaluated on the other.

What it bounds. Given the K sets, the mean is at most the information between xhat and the index k;
over draws of the sets that is at most ``I(xhat; S)``. The models' training seeds count as part of
S's channel where a replica has one seed: a critic that knows sets only through distances and
densities cannot recognise a seed by itself. An exact copier of continuous data has infinite
``I(xhat; S)``; ``sigma_min`` makes the bounded quantity finite, and the bound stays below log K.

The interval is a bootstrap over models and, in each, over samples; the K candidate sets of the
logsumexp stay as they are. The control is the whole procedure with permuted labels: its bound
should be near 0 or below, and its accuracy near 1/K.

Source: van den Oord, Li, Vinyals (2018), arXiv:1807.03748, section 2.3 and appendix A; applied to
the measure of Yi, Sun, Li (2023), arXiv:2305.14712 (derived, not theirs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor

from diffgen.generalization.bounds.comparisons import BATCH_SIZE, Comparisons
from diffgen.generalization.bounds.conditional_logit import bound_terms
from diffgen.generalization.bounds.critics import CRITICS
from diffgen.generalization.bounds.replicas import as_replicas, as_sets, halves
from diffgen.generalization.disjoint import check_disjoint
from diffgen.generalization.samples import Points, Samples
from diffgen.generalization.statistics.bootstrap import (
    CONFIDENCE,
    NUM_BOOTSTRAP,
    bootstrap_interval,
)

LEAST_SAMPLES = 4
"""Samples needed of each model: two to fit the critic, two to evaluate it."""


@dataclass(frozen=True)
class Attribution:
    """A lower bound on the information between samples and training set, with its control.

    Attributes:
        bound: Nats; a lower bound on ``I(xhat; S)`` in expectation. May come out negative, which
            says no more than 0.
        interval: Bootstrap interval of the bound over models and samples.
        accuracy: Share of samples whose own set scores highest (ties count in part).
        accuracy_interval: Bootstrap interval of the accuracy.
        chance: Accuracy without knowledge, 1/K.
        ceiling: Largest value that the bound can take, log K.
        control: The bound with permuted labels, critic fitted anew.
        control_interval: Its bootstrap interval.
        control_accuracy: Accuracy with permuted labels.
        per_sample: Terms whose mean the bound is, ``(K, M')`` float64, of the M' samples of each
            model that the critic was not fitted on.
        right: Whether each of them is attributed to its own set (a part where several tie),
            ``(K, M')`` float64: what the accuracy is the mean of.
        control_per_sample: Terms of the control, ``(K, M')`` float64.
        control_right: What the control's accuracy is the mean of, ``(K, M')`` float64.
        settings: What determines the numbers, the fitted critic among it.
    """

    bound: float
    interval: tuple[float, float]
    accuracy: float
    accuracy_interval: tuple[float, float]
    chance: float
    ceiling: float
    control: float
    control_interval: tuple[float, float]
    control_accuracy: float
    per_sample: Tensor
    right: Tensor
    control_per_sample: Tensor
    control_right: Tensor
    settings: dict[str, Any]


def set_attribution(
    samples: Sequence[Samples] | Tensor,
    training_sets: Sequence[Points] | Tensor,
    *,
    critic: str = "nearest",
    count: int | None = None,
    sigma_min: float = 0.0,
    num_bootstrap: int = NUM_BOOTSTRAP,
    generator: torch.Generator | None = None,
    batch_size: int = BATCH_SIZE,
) -> Attribution:
    """Lower bound on the information between samples and training set, from K disjoint sets.

    Args:
        samples: ``samples[k]`` come from the model trained on ``training_sets[k]``: a tensor
            ``(M, *S)``, a path, or a function that draws them; or one tensor ``(K, M, *S)``.
            As many for each model, at least 4.
        training_sets: K >= 2 sets without a row in common, of one size; or a tensor
            ``(K, n, *S)``.
        critic: A name in `CRITICS`.
        count: Samples of each model; needed where functions draw them.
        sigma_min: Standard deviation of normal noise added to the samples: the information is that
            of samples known to this precision. 0 takes them as they are.
        num_bootstrap: Resamples of the intervals.
        generator: Source of all random choices, on the CPU; None is PyTorch's own.
        batch_size: Samples in a pass over a set.

    Returns:
        The bound, its interval, the accuracy and the control.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An unknown critic; fewer than 2 sets; sets that share rows or differ in size;
            too few samples, or unequal numbers of them.

    Example:
        >>> from diffgen.generalization.bounds.closed_forms import gaussian_copier
        >>> generator = torch.Generator().manual_seed(0)
        >>> sets, samples = gaussian_copier(16, 10, 2, 0.05, 40, generator=generator)
        >>> found = set_attribution(samples, sets, generator=generator)
        >>> bool(1.5 < found.interval[0] < found.bound < found.ceiling)
        True

    Source:
        van den Oord, Li, Vinyals (2018), arXiv:1807.03748, equation 10.
    """
    if critic not in CRITICS:
        raise ValueError(f"critic must be one of {', '.join(CRITICS)}, got {critic!r}")
    denoisers = as_sets(training_sets)
    num_sets = len(denoisers)
    if num_sets < 2:
        raise ValueError(f"training_sets must be at least 2, got {num_sets}")
    check_disjoint([one.training_set for one in denoisers])
    drawn = as_replicas(
        samples,
        denoisers[0].training_set.sample_shape,
        expected=num_sets,
        least=LEAST_SAMPLES,
        count=count,
        sigma_min=sigma_min,
        generator=generator,
    )
    fit, judged = (
        Comparisons(half.flatten(0, 1), denoisers, batch_size) for half in halves(drawn, generator)
    )
    own = [_labels(half, num_sets) for half in (fit, judged)]
    permuted = [one[torch.randperm(len(one), generator=generator)] for one in own]

    terms, right, parameters = _evaluate(critic, fit, judged, own)
    control_terms, control_right, _ = _evaluate(critic, fit, judged, permuted)
    values = torch.stack([terms, right, control_terms], 1)
    low, high = bootstrap_interval(
        values, num_bootstrap=num_bootstrap, groups=own[1], generator=generator
    )
    ends: list[tuple[float, float]] = list(zip(low.tolist(), high.tolist(), strict=True))
    return Attribution(
        bound=float(terms.mean()),
        interval=ends[0],
        accuracy=float(right.mean()),
        accuracy_interval=ends[1],
        chance=1 / num_sets,
        ceiling=log(num_sets),
        control=float(control_terms.mean()),
        control_interval=ends[2],
        control_accuracy=float(control_right.mean()),
        per_sample=terms.reshape(num_sets, -1),
        right=right.reshape(num_sets, -1),
        control_per_sample=control_terms.reshape(num_sets, -1),
        control_right=control_right.reshape(num_sets, -1),
        settings={
            "critic": critic,
            "parameters": parameters,
            "sigma_min": sigma_min,
            "num_sets": num_sets,
            "num_points": len(denoisers[0].training_set),
            "num_fit": len(fit.samples) // num_sets,
            "num_evaluated": len(judged.samples) // num_sets,
            "num_bootstrap": num_bootstrap,
            "confidence": CONFIDENCE,
            "interval": "over models, and samples of each; the candidate sets are fixed",
        },
    )


def _evaluate(
    critic: str, fit: Comparisons, judged: Comparisons, labels: list[Tensor]
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Bound terms and correctness of each judged sample, and what was fitted."""
    fitted = CRITICS[critic](fit, labels[0])
    scores = fitted.scores(judged)
    best = scores == scores.amax(1, keepdim=True)
    right = best.gather(1, labels[1][:, None])[:, 0] / best.sum(1)
    return bound_terms(scores, labels[1]), right.to(torch.float64), fitted.parameters


def _labels(compared: Comparisons, num_sets: int) -> Tensor:
    return torch.arange(num_sets).repeat_interleave(len(compared.samples) // num_sets)
