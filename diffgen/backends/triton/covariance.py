"""The covariance product on a GPU: backward, forward-mode derivative and Cov v.

Logits, inner products and sums are float64 differences throughout: nothing cancels at any noise
level, so that no row has to be taken twice. That costs about ``12 B N D`` float64 operations, where
products would take ``4 B N D``; the rows are read once for each tile of queries. Sums are made for
each segment and added in order: a result does not depend on how the set is cut into waves.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
from torch import Tensor

from diffgen.backends.eager_rows import Queries, prepare
from diffgen.backends.problem import CovarianceInputs, Problem
from diffgen.backends.triton.blocks import Blocks, Wave, begins_of, on_device, segments_at_once
from diffgen.backends.triton.configs import Config, architecture_of
from diffgen.backends.triton.covariance_kernels import (
    COVARIANCE_NUMBERS,
    ROW_TERMS,
    add_segments,
    covariance_moments,
    covariance_rows,
    covariance_sums,
)
from diffgen.backends.triton.difference_configs import difference_config
from diffgen.backends.triton.layout import SEGMENT_ROWS

SCRATCH_BYTES = 2**28
"""What the buffers of a wave may take; one segment of ``MOST_QUERIES`` may take more."""

MOST_QUERIES = 1024
"""Queries taken at once, bounded by the extent of a launch grid and by scratch."""


def covariance_product(problem: Problem, inputs: CovarianceInputs) -> tuple[Tensor, Tensor]:
    """The covariance product op.

    Args:
        problem: Queries and rows, those of the moments.
        inputs: The moments, the vectors and the radial coefficients.

    Returns:
        Product ``(B, D)`` and moment ``(B, 2)``, float64; NaN where sigma is 0, where weights
        relative to ``logsumexp`` are not defined, and for bad values.
    """
    here = on_device(problem)
    queries = prepare(replace(here, check_values=False))
    batch, features = problem.query.shape
    totals = inputs.mean.new_zeros(batch, features + 2)
    blocks, begins = Blocks(here), begins_of(here)
    for start in range(0, batch, MOST_QUERIES):
        part = slice(start, start + MOST_QUERIES)
        _Product(here, queries, inputs, part, begins, totals[part]).run(blocks)
    bad = (queries.bad | queries.zero | ~inputs.logsumexp.isfinite())[:, None]
    totals.masked_fill_(bad, torch.nan)
    return totals[:, :features].contiguous(), totals[:, features:].contiguous()


class _Product:
    """The product of some of the queries; adds to their totals, ``(B, D + 2)``."""

    def __init__(
        self,
        problem: Problem,
        queries: Queries,
        inputs: CovarianceInputs,
        part: slice,
        begins: Tensor,
        totals: Tensor,
    ) -> None:
        self.problem, self.begins, self.totals = problem, begins, totals
        self.architecture = architecture_of(totals.device)
        self.x = queries.x[part]
        self.mean, self.v = inputs.mean[part].contiguous(), inputs.v[part].contiguous()
        self.exclude = None if queries.exclude is None else queries.exclude[part]
        alpha = queries.alpha[part]
        numbers = self.x.new_empty(COVARIANCE_NUMBERS, len(self.x))
        numbers[0], numbers[1] = alpha, queries.inverse[part]
        numbers[2] = (self.x - alpha[:, None] * self.mean).square().sum(1)
        logsumexp = inputs.logsumexp[part]
        numbers[3] = logsumexp.masked_fill(~logsumexp.isfinite(), 0.0)
        numbers[4] = 0.0 if inputs.radial is None else inputs.radial[part]
        # Kernels would take numbers of Python in float32.
        numbers[5], numbers[6] = problem.scale, problem.offset
        self.numbers = numbers

    def run(self, blocks: Blocks) -> None:
        """Takes all rows."""
        batch, features = self.x.shape
        bytes_each = 8 * batch * (ROW_TERMS * SEGMENT_ROWS + features + 2)
        for wave in blocks.waves(segments_at_once(bytes_each, SCRATCH_BYTES, blocks.segments)):
            self._take(wave)

    def _config(self, kernel: str) -> Config:
        return difference_config(kernel, self.architecture)

    def _take(self, wave: Wave) -> None:
        problem = self.problem
        batch, features = self.x.shape
        slots = wave.segments * SEGMENT_ROWS
        terms = self.x.new_empty(ROW_TERMS, batch, slots)
        sums = self.x.new_empty(batch, wave.segments, features + 2)
        sizes = (batch, features)
        nothing = self.begins  # for a pointer that is not followed
        rows = nothing if problem.rows is None else problem.rows
        config = self._config("covariance_rows")
        tile = config.blocks
        covariance_rows[slots // tile["ROWS"], triton.cdiv(batch, tile["QUERIES"])](
            self.x,
            self.mean,
            self.v,
            self.numbers,
            nothing if self.exclude is None else self.exclude,
            wave.data,
            nothing if problem.log_weights is None else problem.log_weights,
            rows,
            self.begins,
            terms,
            *sizes,
            wave.first_row,
            wave.first,
            slots,
            HAS_EXCLUDE=self.exclude is not None,
            HAS_LOG_WEIGHTS=problem.log_weights is not None,
            HAS_ROWS=problem.rows is not None,
            **config.options(),
        )
        config = self._config("covariance_sums")
        tile = config.blocks
        feature_tiles = triton.cdiv(features, tile["FEATURES"])
        covariance_sums[feature_tiles, wave.segments, triton.cdiv(batch, tile["QUERIES"])](
            self.mean,
            self.numbers,
            wave.data,
            rows,
            self.begins,
            terms,
            sums,
            *sizes,
            wave.first_row,
            wave.first,
            wave.segments,
            HAS_ROWS=problem.rows is not None,
            **config.options(),
        )
        covariance_moments[wave.segments, batch](
            self.begins,
            terms,
            sums,
            *sizes,
            wave.first,
            wave.segments,
            ROWS=SEGMENT_ROWS,
            **self._config("covariance_moments").options(),
        )
        config = self._config("add_segments")
        width = features + 2
        add_segments[triton.cdiv(width, config.blocks["BLOCK"]), batch](
            sums, self.totals, width, wave.segments, **config.options()
        )
