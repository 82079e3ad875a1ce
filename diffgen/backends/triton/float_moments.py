"""The moments op on floating-point sets.

For each wave: a screen on tensor cores says which tiles of rows can count; their logits are formed
by products in float64; where those are not certain enough, rows that can count are decided by
float64 differences about a nearest row; weights and weighted sums are float64. The bounds are in
``float_queries``. Nothing waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffgen.backends.problem import Problem
from diffgen.backends.triton import layout, merge
from diffgen.backends.triton.blocks import Blocks, Wave, on_device, segments_at_once
from diffgen.backends.triton.configs import architecture_of
from diffgen.backends.triton.float_configs import float_config, screen_precision
from diffgen.backends.triton.float_product_kernels import multiply_rows, screen_rows
from diffgen.backends.triton.float_queries import Queries, prepare
from diffgen.backends.triton.float_query_kernels import (
    best_of_segments,
    choose_anchors,
    raise_floors,
)
from diffgen.backends.triton.float_row_kernels import decide_rows, sum_rows, weigh_rows
from diffgen.backends.triton.launching import launch
from diffgen.backends.triton.layout import SEGMENT_ROWS, cdiv
from diffgen.backends.triton.segments import measure

LOGIT_BYTES = 2**30
"""The most that the logits of a wave of several segments take."""

MOST_SEGMENTS = 65_535
"""Segments of a wave: the extent of a launch's second axis."""

MEAN_BYTES = 2**28
"""The most that the sums of several segments take."""


def moments(
    problem: Problem, functionals: bool, mean_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, log-sum-exp and functionals.

    Args:
        problem: Floating-point rows on the device of the queries or in host memory; its values
            have been checked, or give NaN rows.
        functionals: Whether they are asked for.
        mean_dtype: float32 or float64.

    Returns:
        Mean ``(B, D)``, logsumexp ``(B,)`` float64, functionals ``(B, 3)`` or ``(B, 0)`` float64.
    """
    batch, features = problem.query.shape
    eligible = problem.data.shape[0] if problem.rows is None else len(problem.rows)
    if batch > 0 and eligible > 0:
        return FloatMoments(on_device(problem), mean_dtype).run(functionals, mean_dtype)
    nothing = problem.sigma.new_full((batch, 1), torch.nan)
    mean = nothing.expand(batch, features).to(mean_dtype, copy=True)
    return mean, nothing[:, 0], nothing.repeat(1, 3 if functionals else 0)


class FloatMoments:
    """One call: its tensors on the device, and the steps of a wave."""

    def __init__(self, problem: Problem, mean_dtype: torch.dtype) -> None:
        """Takes a problem of floating-point rows and at least one query.

        Args:
            problem: On one device, but for rows in host memory.
            mean_dtype: float32 or float64; see ``prepare``.
        """
        self.problem = problem
        batch, features = problem.query.shape
        self.batch, self.features, self.device = batch, features, problem.query.device
        self.architecture = architecture_of(self.device)
        self.blocks = Blocks(problem)
        segments = measure(problem)
        self.begins = segments.begins
        self.queries: Queries = prepare(
            problem, segments, mean_dtype, self._options("prepare_queries")
        )
        self.totals, self.total_means = merge.room_for_totals(batch, features, self.device)
        at_most = min(self.blocks.segments, MOST_SEGMENTS)
        self.at_once = segments_at_once(8 * SEGMENT_ROWS * batch, LOGIT_BYTES, at_most)
        self.means_at_once = segments_at_once(8 * features * batch, MEAN_BYTES, self.at_once)
        self.logits = self._empty(batch * SEGMENT_ROWS * self.at_once)
        self.means = self._empty(batch * self.means_at_once * features)
        self.floors = self._empty(batch)  # of logits, by the screen
        self.decide_floors = self._empty(batch)  # of logits by products
        self.anchors = self._empty(batch, features)
        # What kernels take of the rows beside a wave's values; what is not read may be anything.
        self.of_rows = {
            "log_weights": problem.norms if problem.log_weights is None else problem.log_weights,
            "WEIGHTED": problem.log_weights is not None,
        }
        self.places = {
            "rows": self.begins if problem.rows is None else problem.rows,
            "begins": self.begins,
            "SUBSET": problem.rows is not None,
        }
        self.of_queries = {"numbers": self.queries.numbers, "flags": self.queries.flags}

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=self.device)

    def _options(self, kernel: str) -> dict[str, Any]:
        return float_config(kernel, self.architecture, self.batch).options()

    def run(self, functionals: bool, mean_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs: in one pass where the logits of all rows fit, else in two.

        The first of two passes finds each query's anchor.
        """
        whole = False
        for wave in self.blocks.waves(self.at_once):
            self.form(wave)
            self.choose(wave)
            if wave.segments == self.blocks.segments:
                whole = True
                self.absorb(wave)
        if not whole:
            for wave in self.blocks.waves(self.at_once):
                self.form(wave)
                self.absorb(wave)
        return merge.finish(
            self.totals,
            self.total_means,
            self.queries.numbers,
            self.queries.flags,
            scale=1.0,
            origin=0.0,
            functionals=functionals,
            mean_dtype=mean_dtype,
        )

    def _sizes(self, wave: Wave) -> dict[str, int]:
        return {
            "batch": self.batch,
            "slots": SEGMENT_ROWS * wave.segments,
            "first_segment": wave.first,
        }

    def _values_of(self, wave: Wave) -> dict[str, Any]:
        return {"data": wave.data, "features": self.features, "first_row": wave.first_row}

    def _rows_and_queries(self, wave: Wave) -> dict[str, Any]:
        return {
            **self._values_of(wave),
            **self.of_rows,
            **self.places,
            **self.of_queries,
            **self._sizes(wave),
        }

    def _tiles(self, wave: Wave, options: dict[str, Any]) -> tuple[int, int]:
        """Tiles of rows, and all pairs of them and tiles of queries."""
        rows = SEGMENT_ROWS * wave.segments // options["ROWS"]
        return rows, rows * cdiv(self.batch, options["QUERIES"])

    def form(self, wave: Wave) -> None:
        """Logits of a wave by products; those of tiles that cannot count are -inf."""
        queries = self.queries
        if queries.piece is not None:
            self.raise_floors(self.screen(wave))
        options = self._options("multiply_rows")
        _, programs = self._tiles(wave, options)
        launch(
            multiply_rows,
            (programs,),
            x=queries.x,
            floors=self.floors,
            logits=self.logits,
            steps=cdiv(self.features, options["BLOCK"]),
            SCREENED=queries.piece is not None,
            norms=self.problem.norms,
            **self._rows_and_queries(wave),
            **options,
        )

    def screen(self, wave: Wave) -> Tensor:
        """Upper bounds of a wave's logits in their place; returns each tile's lower bound."""
        options = self._options("screen_rows")
        tiles, programs = self._tiles(wave, options)
        lowers = self._empty(tiles, self.batch)
        launch(
            screen_rows,
            (programs,),
            piece=self.queries.piece,
            screen=self.queries.screen,
            uppers=self.logits,
            lowers=lowers,
            PRECISION=screen_precision(self.architecture),
            norms=self.problem.norms,
            **self._rows_and_queries(wave),
            **options,
        )
        return lowers

    def raise_floors(self, lowers: Tensor) -> None:
        """Takes each tile's lower bound, ``(tiles, B)``, into the floors of the products."""
        options = self._options("raise_floors")
        launch(
            raise_floors,
            (cdiv(self.batch, options["LANES"]),),
            lowers,
            self.queries.numbers,
            self.queries.screen,
            self.floors,
            self.batch,
            lowers.shape[0],
            **options,
        )

    def choose(self, wave: Wave) -> None:
        """The best logits by products so far: anchors, and what refers to them."""
        queries, count = self.queries, wave.segments
        tops = self._empty(self.batch, count)
        places = torch.empty(self.batch, count, dtype=torch.int64, device=self.device)
        launch(
            best_of_segments,
            (self.batch, count),
            self.logits,
            tops,
            places,
            self.batch,
            SEGMENT_ROWS * count,
            count,
            **self._options("best_of_segments"),
        )
        launch(
            choose_anchors,
            (self.batch,),
            wave.data,
            self.places["rows"],
            self.begins,
            queries.x,
            tops,
            places,
            queries.numbers,
            queries.flags,
            queries.screen,
            self.anchors,
            self.decide_floors,
            self.batch,
            self.features,
            count,
            wave.first,
            wave.first_row,
            SUBSET=self.places["SUBSET"],
            **self._options("choose_anchors"),
        )

    def absorb(self, wave: Wave) -> None:
        """Logits of a wave into weights, and its rows into the totals."""
        queries, count = self.queries, wave.segments
        launch(
            decide_rows,
            (self.batch, count),
            x=queries.x,
            anchors=self.anchors,
            floors=self.decide_floors,
            logits=self.logits,
            **self._rows_and_queries(wave),
            **self._options("decide_rows"),
        )
        parts = self._empty(layout.STATE, count, self.batch)
        launch(
            weigh_rows,
            (self.batch, count),
            logits=self.logits,
            parts=parts,
            segments=count,
            norms=self.problem.norms,
            **self.of_rows,
            **self.places,
            **self.of_queries,
            **self._sizes(wave),
            **self._options("weigh_rows"),
        )
        factors = merge.chain_segments(
            self.totals, parts, queries.numbers, queries.flags, begun=wave.first > 0
        )
        for first in range(0, count, self.means_at_once):
            self.add_means(wave, factors, first, min(self.means_at_once, count - first))

    def add_means(self, wave: Wave, factors: Tensor, first: int, count: int) -> None:
        """Weighted sums of some segments of a wave into the totals."""
        some = factors
        if count < wave.segments:
            some = factors[:, first : first + count].contiguous()
        means = self.means[: self.batch * count * self.features]
        options = self._options("sum_rows")
        blocks = cdiv(self.features, options["BLOCK"])
        launch(
            sum_rows,
            (cdiv(self.batch, options["QUERIES"]), blocks, count),
            weights=self.logits,
            factors=some,
            means=means,
            segments=count,
            first=first,
            **self._values_of(wave),
            **self.places,
            **self._sizes(wave),
            **options,
        )
        means = means.view(self.batch, count, self.features)
        merge.add_means(self.total_means, means, some)
