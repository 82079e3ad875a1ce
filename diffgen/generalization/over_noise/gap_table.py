"""The gap of several networks, at equal draws: against training time, or the size of the set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization.over_noise.gap import DenoiserGap, GapCurve, denoiser_gap
from diffgen.generalization.statistics.bootstrap import bootstrap_interval
from diffgen.process_base import Process

KINDS = ("train", "test", "path")
"""The kinds of points that a gap is measured at."""


@dataclass(frozen=True)
class GapRow:
    """The gap of one network.

    Attributes:
        label: What the caller calls it: a training step, a size, a name.
        num_points: Size of the training set that its optimum is over.
        gap: Over the times, with the values of each point.
        mean: Mean over times and points, for each kind of points that was measured.
        interval: Bootstrap intervals of `mean`, over the points.
    """

    label: Any
    num_points: int
    gap: DenoiserGap
    mean: dict[str, float]
    interval: dict[str, tuple[float, float]]

    def as_dict(self) -> dict[str, Any]:
        """The numbers of the row as plain values."""
        found: dict[str, Any] = {
            "label": self.label,
            "num_points": self.num_points,
            "target": self.gap.target,
            "identity_holds": self.gap.identity_holds,
        }
        for kind, value in self.mean.items():
            found[f"{kind}_gap"] = value
            found[f"{kind}_interval"] = list(self.interval[kind])
        return found


def gap_table(
    networks: Iterable[tuple[Any, Callable[..., Any]]],
    denoiser: EmpiricalDenoiser | Callable[[Any], EmpiricalDenoiser],
    process: Process,
    times: Any,
    *,
    generator: torch.Generator | None = None,
    **options: Any,
) -> list[GapRow]:
    """The gap of each network, all on the same points with the same noise.

    Differences between rows carry no noise of the draws, as long as the points are the same.

    Args:
        networks: Pairs ``(label, network)``; taken one by one, so that a generator can load one
            checkpoint after the other.
        denoiser: The optimum of all networks; or, where they were trained on different sets, a
            function from a label to the optimum.
        process: The noising process of the networks.
        times: ``(T,)`` times of the process.
        generator: Source of the draws, on the CPU; None is PyTorch's own, seeded from it once.
        **options: Those of `denoiser_gap`.

    Returns:
        One row for each network, in their order.

    Raises:
        ValueError: No networks; or as for `denoiser_gap`.

    Example:
        >>> from diffgen import EmpiricalDenoiser, TrainingSet
        >>> from diffgen.processes import EDM
        >>> denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
        >>> networks = [(step, lambda x, t, step=step: x * step) for step in (0, 1)]
        >>> rows = gap_table(networks, denoiser, EDM(), [0.01], target="x0")
        >>> [(row.label, round(row.mean["train"], 1)) for row in rows]
        [(0, 1.0), (1, 0.0)]
    """
    seed = int(torch.randint(1 << 62, (), generator=generator))
    rows = []
    for label, network in networks:
        own = denoiser if isinstance(denoiser, EmpiricalDenoiser) else denoiser(label)
        draws = torch.Generator().manual_seed(seed)
        gap = denoiser_gap(network, own, process, times, generator=draws, **options)
        num_bootstrap = gap.settings["num_bootstrap"]
        mean, interval = {}, {}
        for kind in KINDS:
            curve: GapCurve | None = getattr(gap, kind)
            if curve is None:
                continue
            of_points = curve.gap.mean(0)
            low, high = bootstrap_interval(of_points, num_bootstrap=num_bootstrap, generator=draws)
            mean[kind] = float(of_points.mean())
            interval[kind] = float(low), float(high)
        rows.append(GapRow(label, len(own.training_set), gap, mean, interval))
    if not rows:
        raise ValueError("networks must be at least one pair (label, network), got none")
    return rows
