"""Moments of 8-bit sets: the integer engine of ``csrc/cpu/u8``, kernel by kernel.

Its results are the processor's, bit for bit: the same digits, segments, tiles and units, integer
sums, and float64 operations in the same order without contraction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffgen.backends.problem import Problem
from diffgen.backends.triton import anchor_kernels, row_kernels, unit_kernels
from diffgen.backends.triton.blocks import Blocks, Wave, on_device, segments_at_once
from diffgen.backends.triton.bytes_configs import SUM_QUERIES, bytes_config, products_config
from diffgen.backends.triton.bytes_queries import SHIFT, Queries, prepare
from diffgen.backends.triton.configs import Config, architecture_of
from diffgen.backends.triton.launching import launch
from diffgen.backends.triton.layout import (
    QUERY_DIGITS,
    SEGMENT_ROWS,
    STATE,
    WEIGHT_DIGITS,
    cdiv,
    tile_rows,
)
from diffgen.backends.triton.merge import (
    add_means,
    chain_segments,
    empty_totals,
    finish,
    room_for_totals,
)
from diffgen.backends.triton.product_kernels import products
from diffgen.backends.triton.segments import measure
from diffgen.backends.triton.sum_kernels import sum_kept_rows, sum_whole_tiles

SCRATCH_BYTES = 2**30
"""What the buffers of a wave may take, if it holds more than one segment."""

_PLANES_OF_A_MEAN = 4
"""Digits of weights that a float32 mean has at most."""


class BytesMoments:
    """One call: its tensors on the device and its launches."""

    def __init__(
        self, problem: Problem, functionals: bool, mean_dtype: torch.dtype, scratch: int
    ) -> None:
        """Takes a problem of uint8 rows.

        Args:
            problem: On one device, but for rows in host memory.
            functionals: Whether they are asked for.
            mean_dtype: float32 or float64.
            scratch: Bytes that a wave's buffers may take.
        """
        self.blocks = Blocks(problem)
        self.problem = on_device(problem)
        self.functionals = functionals
        self.mean_dtype = mean_dtype
        self.scratch = scratch
        self.device = problem.query.device
        self.architecture = architecture_of(self.device)
        self.batch, self.features = problem.query.shape
        self.tile_rows = tile_rows(self.features)
        self.tiles = SEGMENT_ROWS // self.tile_rows
        self.segments = measure(self.problem)
        self.begins = self.segments.begins
        self.score = mean_dtype == torch.float64 or problem.query.dtype == torch.float64
        self.planes = _PLANES_OF_A_MEAN if not (functionals or self.score) else WEIGHT_DIGITS

    def _config(self, kernel: str) -> Config:
        return bytes_config(kernel, self.architecture)

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def segments_of_a_wave(self) -> int:
        """As many segments as the scratch has room for."""
        row = 4 * QUERY_DIGITS + 8 + 4 + WEIGHT_DIGITS + 4 + (8 if self.functionals else 0)
        units = (2 * self.tiles + 1) * 8 * (STATE + 3)
        each = self.batch * (SEGMENT_ROWS * row + 8 * self.features + units)
        return segments_at_once(each, self.scratch, self.blocks.segments)

    def products(self, queries: Queries, wave: Wave, anchors_only: bool) -> Tensor:
        """Products of a wave's rows with the digits that screen or decide, ``(5 B, slots)``."""
        slots = wave.segments * SEGMENT_ROWS
        out = self._empty(QUERY_DIGITS * self.batch, slots, dtype=torch.int32)
        chosen = self._config(products_config(self.batch))
        grid = (
            slots // chosen.blocks["BLOCK_ROWS"],
            cdiv(QUERY_DIGITS * self.batch, chosen.blocks["BLOCK_COLUMNS"]),
        )
        launch(
            products,
            grid,
            wave.data,
            queries.digits,
            queries.flags,
            self.problem.rows,
            self.begins,
            out,
            self.batch,
            self.features,
            queries.digits.shape[2],
            wave.first,
            wave.segments,
            wave.first_row,
            HAS_ROWS=self.problem.rows is not None,
            ANCHORS_ONLY=anchors_only,
            **chosen.options(),
        )
        return out

    def _kinds(self) -> dict[str, Any]:
        return {
            "HAS_ROWS": self.problem.rows is not None,
            "HAS_WEIGHTS": self.problem.log_weights is not None,
        }

    def find_anchors(self, queries: Queries, wave: Wave, planes: Tensor) -> None:
        """Takes the wave's nearest rows into the anchors."""
        problem, batch, segments = self.problem, self.batch, wave.segments
        slots = segments * SEGMENT_ROWS
        best = self._empty(segments, batch)
        best_ids = self._empty(segments, batch, dtype=torch.int64)
        launch(
            anchor_kernels.nearest_in_segment,
            (batch, segments),
            wave.data,
            queries.moved,
            planes,
            problem.norms,
            problem.log_weights,
            problem.rows,
            self.begins,
            queries.numbers,
            queries.flags,
            self._empty(batch, slots, dtype=torch.int32),
            best,
            best_ids,
            batch,
            self.features,
            wave.first,
            wave.segments,
            wave.first_row,
            **self._kinds(),
            **self._config("nearest").options(),
        )
        launch(
            anchor_kernels.set_anchors,
            (batch,),
            best,
            best_ids,
            queries.least,
            queries.numbers,
            queries.flags,
            batch,
            segments,
            **self._config("anchors").options(),
        )
        chosen = self._config("take_anchors")
        launch(
            anchor_kernels.take_anchors,
            (batch, cdiv(self.features, chosen.blocks["BLOCK"])),
            wave.data,
            queries.anchors,
            queries.flags,
            batch,
            self.features,
            wave.data.shape[0],
            wave.first_row,
            **chosen.options(),
        )

    def logits(self, queries: Queries, wave: Wave, planes: Tensor) -> Tensor:
        """Logits of a wave's rows, ``(B, slots)``, -inf where a row cannot matter."""
        problem, batch = self.problem, self.batch
        slots = wave.segments * SEGMENT_ROWS
        logits = self._empty(batch, slots)
        candidates = self._empty(batch, slots, dtype=torch.int32)
        counts = self._empty(wave.segments, batch, dtype=torch.int32)
        grid = (batch, wave.segments)
        launch(
            row_kernels.screen,
            grid,
            planes,
            problem.norms,
            problem.log_weights,
            problem.rows,
            self.begins,
            queries.numbers,
            queries.flags,
            logits,
            candidates,
            counts,
            batch,
            self.features,
            wave.first,
            wave.segments,
            **self._kinds(),
            TILES=self.tiles,
            TILE_ROWS=self.tile_rows,
            **self._config("screen").options(),
        )
        launch(
            row_kernels.refine,
            grid,
            wave.data,
            queries.anchors,
            queries.digits,
            queries.moved,
            problem.norms,
            problem.log_weights,
            problem.rows,
            self.begins,
            queries.numbers,
            queries.flags,
            logits,
            candidates,
            counts,
            batch,
            self.features,
            queries.digits.shape[2],
            wave.first,
            wave.segments,
            wave.first_row,
            **self._kinds(),
            **self._config("refine").options(),
        )
        return logits

    def add(
        self, queries: Queries, wave: Wave, logits: Tensor, totals: Tensor, means: Tensor
    ) -> None:
        """Adds the posterior over a wave's rows to the totals."""
        problem, batch, segments = self.problem, self.batch, wave.segments
        slots = segments * SEGMENT_ROWS
        units = 2 * self.tiles + 1
        digits = self._empty(WEIGHT_DIGITS, batch, slots, dtype=torch.int8)
        weights = self._empty(batch, slots if self.functionals else 0)
        kept = self._empty(batch, slots, dtype=torch.int32)
        kept_counts = self._empty(segments, self.tiles, batch, dtype=torch.int32)
        tile_units = self._empty(segments, self.tiles, batch, dtype=torch.int32)
        parts = torch.zeros(STATE, units, segments, batch, dtype=torch.float64, device=self.device)
        steps = self._empty(units, segments, batch)
        shape = {"TILES": self.tiles, "TILE_ROWS": self.tile_rows}
        launch(
            unit_kernels.weigh,
            (batch, segments),
            logits,
            problem.norms,
            problem.log_weights,
            problem.rows,
            self.begins,
            queries.numbers,
            queries.flags,
            digits,
            weights,
            kept,
            kept_counts,
            tile_units,
            parts,
            steps,
            batch,
            wave.first,
            segments,
            **self._kinds(),
            **shape,
            FUNCTIONALS=self.functionals,
            **self._config("weigh").options(),
        )
        if self.functionals:
            launch(
                unit_kernels.functional_sums,
                (batch, segments),
                logits,
                weights,
                problem.norms,
                problem.rows,
                self.begins,
                tile_units,
                parts,
                batch,
                wave.first,
                segments,
                HAS_ROWS=problem.rows is not None,
                **shape,
                **self._config("functionals").options(),
            )
        states = self._empty(STATE, segments, batch)
        of_queries = (queries.numbers, queries.flags)
        factors = chain_segments(states, parts, *of_queries, begun=False)
        segment_factors = chain_segments(totals, states, *of_queries, begun=wave.first > 0)
        part_means = self._empty(batch, segments, self.features)
        shared = (factors, steps, segment_factors, part_means, batch, self.features)
        place = (wave.first, segments, wave.first_row)
        whole = self._config("whole_tiles")
        launch(
            sum_whole_tiles,
            (
                cdiv(self.features, whole.blocks["BLOCK_FEATURES"]),
                segments,
                cdiv(batch, SUM_QUERIES),
            ),
            wave.data,
            problem.rows,
            self.begins,
            digits,
            kept_counts,
            tile_units,
            *shared,
            *place,
            HAS_ROWS=problem.rows is not None,
            PLANES=self.planes,
            **shape,
            **whole.options(),
        )
        picked = self._config("kept_rows")
        launch(
            sum_kept_rows,
            (cdiv(self.features, picked.blocks["BLOCK_FEATURES"]), segments, batch),
            wave.data,
            problem.rows,
            self.begins,
            digits,
            kept,
            kept_counts,
            tile_units,
            *shared,
            *place,
            HAS_ROWS=problem.rows is not None,
            PLANES=self.planes,
            TILES=self.tiles,
            **picked.options(),
        )
        add_means(means, part_means, segment_factors)

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean ``(B, D)``, logsumexp ``(B,)`` and functionals ``(B, 3)`` or ``(B, 0)``."""
        problem = self.problem
        room = room_for_totals if self.blocks.segments > 0 else empty_totals
        totals, means = room(self.batch, self.features, self.device)
        if self.batch > 0:
            queries = prepare(
                problem, self.segments, self.functionals, self.score, self.architecture
            )
            at_once = self.segments_of_a_wave()
            planes = None
            for wave in self.blocks.waves(at_once):
                alone = wave.segments == self.blocks.segments
                formed = self.products(queries, wave, anchors_only=not alone)
                self.find_anchors(queries, wave, formed)
                planes = formed if alone else None
            for wave in self.blocks.waves(at_once):
                formed = self.products(queries, wave, False) if planes is None else planes
                logits = self.logits(queries, wave, formed)
                self.add(queries, wave, logits, totals, means)
        else:
            queries = Queries(*(self._empty(0, 0),) * 6)
        return finish(
            totals,
            means,
            queries.numbers,
            queries.flags,
            scale=problem.scale,
            origin=problem.offset + SHIFT * problem.scale,
            functionals=self.functionals,
            mean_dtype=self.mean_dtype,
        )


def moments(
    problem: Problem,
    functionals: bool,
    mean_dtype: torch.dtype,
    *,
    scratch: int = SCRATCH_BYTES,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, logsumexp and functionals over a set of uint8 rows; the processor's bits.

    Args:
        problem: Queries and rows; at most 131,071 features.
        functionals: Whether they are asked for.
        mean_dtype: float32 or float64.
        scratch: Bytes that the buffers of a wave may take. The result does not depend on it.
    """
    return BytesMoments(problem, functionals, mean_dtype, scratch).run()
