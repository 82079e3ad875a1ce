"""Samples of models, each with its own training set and a fresh one: joint against product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization.bounds.replicas import as_replicas, as_sets, halves
from diffgen.generalization.disjoint import check_disjoint
from diffgen.generalization.samples import Points, Samples


@dataclass(frozen=True)
class Pairs:
    """K models' samples with two sets each.

    Attributes:
        samples: ``(K, M, *S)``.
        own: The K sets that the models were trained on.
        fresh: K sets of the same size, none with a row of the own set beside it.
        settings: What they are.
    """

    samples: Tensor
    own: list[EmpiricalDenoiser]
    fresh: list[EmpiricalDenoiser]
    settings: dict[str, Any]

    def halves(self, generator: torch.Generator | None) -> tuple[Pairs, Pairs]:
        """Two random halves of each model's samples."""
        first, second = halves(self.samples, generator)
        return replace(self, samples=first), replace(self, samples=second)


def make_pairs(
    samples: Samples | Sequence[Samples],
    training_sets: Points | Sequence[Points],
    fresh_sets: Points | Sequence[Points] | None,
    *,
    least: int,
    count: int | None = None,
    sigma_min: float = 0.0,
    generator: torch.Generator | None = None,
) -> Pairs:
    """Samples and sets of one or of K models, checked.

    Args:
        samples: Of one model, or a list.
        training_sets: Of one model, or a list.
        fresh_sets: Likewise; None takes the set of the next model, of two or more.
        least: Samples needed of each model.
        count: See `as_samples`.
        sigma_min: Standard deviation of normal noise added to the samples.
        generator: Source of that noise.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Unequal numbers or sizes, sets that share rows, too few samples, or no fresh set
            for a single model.

    Example:
        >>> pairs = make_pairs(torch.zeros(4, 2), torch.zeros(3, 2), torch.ones(3, 2), least=4)
        >>> pairs.samples.shape, pairs.settings["num_models"]
        (torch.Size([1, 4, 2]), 1)
    """
    own_sets = as_list(training_sets)
    own = as_sets(own_sets)
    if fresh_sets is None:
        if len(own) < 2:
            raise ValueError("fresh_sets must be given for a single model, got None")
        check_disjoint([one.training_set for one in own])
        fresh = own[1:] + own[:1]
        source = "the set of the next model"
    else:
        fresh = as_sets(as_list(fresh_sets), "fresh_sets")
        source = "given"
        if len(fresh) != len(own):
            raise ValueError(f"fresh_sets must be {len(own)}, one a set, got {len(fresh)}")
        for a, b in zip(own, fresh, strict=True):
            check_disjoint([a.training_set, b.training_set], ("training_set", "fresh_set"))
            if len(a.training_set) != len(b.training_set):
                raise ValueError(
                    f"fresh_sets must have as many points as the training sets, "
                    f"{len(a.training_set)}, got {len(b.training_set)}"
                )
    drawn = as_replicas(
        as_list(samples),
        own[0].training_set.sample_shape,
        expected=len(own),
        least=least,
        count=count,
        sigma_min=sigma_min,
        generator=generator,
    )
    settings = {
        "num_models": len(own),
        "num_points": len(own[0].training_set),
        "sigma_min": sigma_min,
        "fresh_sets": source,
    }
    return Pairs(drawn, own, fresh, settings)


def as_list(given: Any) -> list[Any]:
    """A list of what is one thing or a list of things.

    Example:
        >>> len(as_list(torch.zeros(3, 2))), len(as_list([torch.zeros(3, 2)] * 2))
        (1, 2)
    """
    return list(given) if isinstance(given, list | tuple) else [given]
