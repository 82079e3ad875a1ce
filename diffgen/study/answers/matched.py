"""Objectives side by side: at equal training steps, and at equal gap."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import Any

from diffgen.study.answer import Record
from diffgen.study.estimates import Estimate, interpolated, memorised, over_seeds, share

LEVELS = 3
"""Gaps at which objectives are compared: the smallest that all reach, and larger ones."""


@dataclass(frozen=True)
class Curves:
    """What one objective's networks did over training time.

    Attributes:
        steps: Training times.
        gaps: Mean gap of each seed at each of them, ``[seed][step]``.
        shares: Memorised share of each seed at each of them.
        pooled: Share over all seeds at each of them.
    """

    steps: list[int]
    gaps: list[list[float]]
    shares: list[list[float]]
    pooled: list[Estimate]

    def gap(self, at: int) -> Estimate:
        """Mean gap over the seeds at the training time of an index."""
        return over_seeds([of_seed[at] for of_seed in self.gaps])

    def share_at_gap(self, gap: float) -> list[float]:
        """Memorised share of each seed where its gap passes a value, between checkpoints."""
        return [
            interpolated([log(value) for value in gaps], shares, log(gap))
            for gaps, shares in zip(self.gaps, self.shares, strict=True)
        ]


@dataclass(frozen=True)
class Matched:
    """Two objectives at one gap.

    Attributes:
        gap: The gap.
        first: Memorised share with the first objective.
        second: With the second.
        difference: First less second, paired by seed.
    """

    gap: float
    first: Estimate
    second: Estimate
    difference: Estimate


def curves(found: Record, objective: str) -> Curves:
    """The curves of an objective."""
    rows = [row for row in found["rows"] if row["objective"] == objective]
    steps = sorted({row["step"] for row in rows})
    seeds = sorted({row["seed"] for row in rows})
    by_place = {(row["seed"], row["step"]): row for row in rows}
    pooled = []
    for step in steps:
        at = [by_place[seed, step] for seed in seeds]
        hits = [hit for row in at for hit in memorised(row["d1"], row["d2"])]
        pooled.append(share(hits, [row["seed"] for row in at for _ in row["d1"]]))
    return Curves(
        steps,
        [[_mean(by_place[seed, step]["gap"]) for step in steps] for seed in seeds],
        [[_share(by_place[seed, step]) for step in steps] for seed in seeds],
        pooled,
    )


def matched(first: Curves, second: Curves) -> list[Matched]:
    """Both at equal gaps, the smallest first; none where their gaps have no range in common."""
    everyone = [*first.gaps, *second.gaps]
    low = max(min(of_seed) for of_seed in everyone)
    high = min(max(of_seed) for of_seed in everyone)
    if not low < high:
        return []
    found = []
    for level in range(LEVELS):
        # The ends as they are: rounding must not carry them out of the range.
        gap = low if level == 0 else exp(log(low) + level / LEVELS * (log(high) - log(low)))
        a, b = first.share_at_gap(gap), second.share_at_gap(gap)
        found.append(
            Matched(
                gap,
                over_seeds(a),
                over_seeds(b),
                over_seeds([x - y for x, y in zip(a, b, strict=True)]),
            )
        )
    return found


def difference_at_end(first: Curves, second: Curves) -> Estimate:
    """Memorised share of the first less that of the second after all steps, paired by seed."""
    pairs = zip(first.shares, second.shares, strict=True)
    return over_seeds([a[-1] - b[-1] for a, b in pairs])


def _mean(values: list[Any]) -> float:
    return float(sum(values) / len(values))


def _share(row: Record) -> float:
    hits = memorised(row["d1"], row["d2"])
    return sum(hits) / len(hits)
