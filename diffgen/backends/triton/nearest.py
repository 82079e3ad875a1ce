"""The nearest rows on a GPU: float64 differences of all rows, in the order of the 8-bit engine.

For uint8 sets ids and distances are those of the ``cpu`` backend, bit for bit.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
from torch import Tensor

from diffgen.backends import values
from diffgen.backends.eager_rows import Queries, prepare, shift_of
from diffgen.backends.problem import Problem
from diffgen.backends.triton.blocks import Blocks, Wave, begins_of, on_device, segments_at_once
from diffgen.backends.triton.configs import architecture_of
from diffgen.backends.triton.difference_configs import difference_config
from diffgen.backends.triton.layout import SEGMENT_ROWS
from diffgen.backends.triton.nearest_kernels import nearest_distances, nearest_roots
from diffgen.set_view import origin

SCRATCH_BYTES = 2**28
"""What the buffers of a wave may take, if it holds more than one segment."""

MOST_QUERIES = 1024
"""Queries taken at once, bounded by the extent of a launch grid and by scratch."""

_SLOT_BYTES = 48
"""A distance, its copy beside the best so far, both sorted, and the order."""


def nearest(problem: Problem, top_k: int) -> tuple[Tensor, Tensor]:
    """The nearest rows of each query, ties to the lowest id.

    Args:
        problem: Queries and rows.
        top_k: How many, at least 1.

    Returns:
        Ids ``(B, k)`` int64 and distances ``(B, k)`` float64, nearest first; -1 and NaN where
        there is no row, and for bad values.

    Raises:
        ValueError: If ``top_k`` exceeds the eligible rows; for what weights and ``exclude`` leave
            only when the problem asks for the check, which waits for the GPU.
    """
    here = on_device(problem)
    _check_top_k(here, top_k)
    queries = prepare(replace(here, check_values=False))
    batch = len(queries.x)
    squared = queries.x.new_full((batch, top_k), torch.inf)
    ids = torch.full((batch, top_k), -1, dtype=torch.int64, device=squared.device)
    blocks, begins = Blocks(here), begins_of(here)
    for start in range(0, batch, MOST_QUERIES):
        part = slice(start, start + MOST_QUERIES)
        _Search(here, queries, part, begins, squared[part], ids[part]).run(blocks)
    squared.masked_fill_(queries.bad[:, None], torch.inf)
    if squared.numel() > 0:
        config = difference_config("nearest_roots", architecture_of(squared.device))
        grid = (triton.cdiv(squared.numel(), config.blocks["BLOCK"]),)
        nearest_roots[grid](squared, ids, squared.numel(), **config.options())
    return ids, squared


def _check_top_k(problem: Problem, top_k: int) -> None:
    """Raises where a query has fewer than k eligible rows."""
    total = problem.data.shape[0] if problem.rows is None else problem.rows.shape[0]
    if top_k <= total and not problem.check_values:
        return
    left = values.eligible_rows(problem)
    few = left < top_k
    if bool(few.any()):
        at = int(few.nonzero()[0])
        raise ValueError(
            f"top_k must be at most the number of eligible points, {int(left[at])} for query "
            f"{at}, got {top_k}"
        )


class _Search:
    """The nearest rows so far of some of the queries: squared distances and ids, ``(B, k)``."""

    def __init__(
        self,
        problem: Problem,
        queries: Queries,
        part: slice,
        begins: Tensor,
        squared: Tensor,
        ids: Tensor,
    ) -> None:
        self.problem, self.begins = problem, begins
        self.squared, self.ids = squared, ids
        self.config = difference_config("nearest_distances", architecture_of(squared.device))
        alpha = queries.alpha[part]
        middle = origin(problem.data.dtype, problem.scale, problem.offset)
        self.moved = queries.x[part] - (alpha * middle)[:, None]
        self.row_scale = alpha * problem.scale
        self.exclude = None if queries.exclude is None else queries.exclude[part]

    def run(self, blocks: Blocks) -> None:
        """Takes all rows."""
        bytes_each = _SLOT_BYTES * SEGMENT_ROWS * len(self.ids)
        for wave in blocks.waves(segments_at_once(bytes_each, SCRATCH_BYTES, blocks.segments)):
            self._merge(wave, self._distances(wave))

    def _distances(self, wave: Wave) -> Tensor:
        """Squared distances of a wave's slots, ``(B, slots)``."""
        problem, (batch, features) = self.problem, self.moved.shape
        slots, nothing = wave.segments * SEGMENT_ROWS, self.begins
        squared = self.moved.new_empty(batch, slots)
        blocks = self.config.blocks
        nearest_distances[slots // blocks["ROWS"], triton.cdiv(batch, blocks["QUERIES"])](
            self.moved,
            self.row_scale,
            nothing if self.exclude is None else self.exclude,
            wave.data,
            nothing if problem.log_weights is None else problem.log_weights,
            nothing if problem.rows is None else problem.rows,
            self.begins,
            squared,
            batch,
            features,
            wave.first_row,
            wave.first,
            slots,
            SHIFT=shift_of(problem),
            HAS_EXCLUDE=self.exclude is not None,
            HAS_LOG_WEIGHTS=problem.log_weights is not None,
            HAS_ROWS=problem.rows is not None,
            **self.config.options(),
        )
        return squared

    def _merge(self, wave: Wave, squared: Tensor) -> None:
        """Keeps the least of those so far and a wave's; of equal ones, those of lower ids."""
        top_k = self.ids.shape[1]
        # Slots are in the order of ids, and those of earlier waves come first.
        least, order = torch.cat([self.squared, squared], 1).sort(dim=1, stable=True)
        order = order[:, :top_k]
        slot = (order - top_k).clamp_(min=0)
        position = self.begins[wave.first + slot // SEGMENT_ROWS] + slot % SEGMENT_ROWS
        rows = self.problem.rows
        # A slot without a row, whose distance is infinite, has a position beyond its segment's.
        fresh = position if rows is None else rows[position.clamp_(max=len(rows) - 1)]
        known = self.ids.gather(1, order.clamp(max=top_k - 1))
        self.ids.copy_(torch.where(order < top_k, known, fresh))
        self.squared.copy_(least[:, :top_k])
