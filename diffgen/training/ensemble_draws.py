"""Draws of many training runs side by side, each a function of its own seed and the step alone.

What a replica draws does not depend on how many others there are. Draws of many steps are made in
one call, since a call costs more than its numbers where samples are small.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffgen.objectives import ClosedFormTarget, Objective, Regression
from diffgen.training.seeds import derived_generator

_MOST_STEPS = 32
"""Steps whose draws are made in one call."""

_MOST_ELEMENTS = 1 << 17
"""Elements of the samples drawn in one call for one replica, where a step has fewer."""


class EnsembleDraws:
    """The regressions of every step, of all replicas together.

    Args:
        points: Training points of each replica, ``(n, *S)``.
        objectives: Objective of each.
        batch_size: Points of a replica's step, drawn with replacement.
        seeds: Seed of each.
    """

    def __init__(
        self,
        points: Sequence[Tensor],
        objectives: Sequence[Objective],
        batch_size: int,
        seeds: Sequence[int],
    ) -> None:
        """Choose how many steps are drawn at once; see the class."""
        self._points = points
        self._objectives = objectives
        self._batch_size = batch_size
        self._seeds = seeds
        elements = batch_size * points[0][0].numel()
        # A function of one replica, or the draws would depend on how many there are.
        self._steps = max(1, min(_MOST_STEPS, _MOST_ELEMENTS // max(1, elements)))
        self._chunk: tuple[int, list[Regression]] | None = None

    def regression(self, step: int) -> Regression:
        """The draws of a step, counted from 0: ``(K B, *S)``, replica after replica."""
        chunk, place = divmod(step, self._steps)
        if self._chunk is None or self._chunk[0] != chunk:
            drawn = [self._draw(replica, chunk) for replica in range(len(self._points))]
            self._chunk = chunk, drawn
        parts = [_part(one, place, self._batch_size) for one in self._chunk[1]]
        return _joined(parts)

    def _draw(self, replica: int, chunk: int) -> Regression:
        generator = derived_generator(self._seeds[replica], "ensemble draws", chunk)
        points, objective = self._points[replica], self._objectives[replica]
        count = self._steps * self._batch_size
        rows = torch.randint(len(points), (count,), generator=generator).to(points.device)
        if _is_apart(objective):
            return objective.draw(points[rows], generator)
        return _joined(
            [objective.draw(points[of_step], generator) for of_step in rows.split(self._batch_size)]
        )


def _is_apart(objective: Objective) -> bool:
    """Whether a sample's draws do not depend on which others are drawn with it."""
    return not (isinstance(objective, ClosedFormTarget) and objective.denoiser is None)


def _part(drawn: Regression, place: int, size: int) -> Regression:
    rows = slice(place * size, (place + 1) * size)
    return Regression(
        drawn.x_t[rows], drawn.t[rows], drawn.target[rows], drawn.scale[rows], drawn.weight[rows]
    )


def _joined(parts: Sequence[Regression]) -> Regression:
    return Regression(
        torch.cat([part.x_t for part in parts]),
        torch.cat([part.t for part in parts]),
        torch.cat([part.target for part in parts]),
        torch.cat([part.scale for part in parts]),
        torch.cat([part.weight for part in parts]),
    )
