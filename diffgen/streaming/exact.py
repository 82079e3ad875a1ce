"""Moments over 8-bit rows block by block, with the bits of one call over all of them.

Most queries need one pass. Those whose logits are decided by differences from the nearest row need
that row first: the pass finds it, and how far each segment is. Then only the segments that are
near enough to matter are read again.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf, log

import torch
from torch import Tensor

from diffgen.backends.passes import BlockwiseMoments, Ending, Moments, MomentsPass, PassOptions
from diffgen.backends.problem import Extent, Problem
from diffgen.streaming.direct import SEGMENTS_OF_THREAD
from diffgen.streaming.exchange import Exchange
from diffgen.streaming.place import Place
from diffgen.streaming.plan import SEGMENT_ROWS

LARGEST_MARGIN = 40.0
"""No query is decided by rows so many nats and the logarithm of their number below the best: the
margins of ``csrc/u8/query_rules.h`` are smaller."""

ROUNDING = 1e-9
"""Relative rounding of squared distances, and more."""

KEPT_BYTES = 256 << 20
"""The most that kept segments may take in one process."""


class ExactMoments:
    """The moments of one problem over a place and what is exchanged with others."""

    def __init__(
        self, blockwise: BlockwiseMoments, place: Place, exchange: Exchange, problem: Problem
    ) -> None:
        """Take the problem; its eligible rows are ``problem.rows``, ids on the CPU."""
        self._blockwise, self._place, self._exchange = blockwise, place, exchange
        self._problem = problem
        with exchange.together("measure"):
            own = place.extent(problem.rows)
        self._extent: Extent = exchange.extent(own)

    def moments(self, functionals: bool, top_k: int, mean_dtype: torch.dtype) -> Moments:
        """The outputs of the moments op.

        Raises:
            ValueError: For bad values when the problem asks for the check.
            DataError: If the rows cannot be read.
        """
        problem = self._problem
        options = PassOptions(
            functionals,
            top_k,
            mean_dtype,
            # Queries are not cut for the threads' sake: each cut would read the rows once more.
            segments_at_once=max(
                self._place.block_rows // SEGMENT_ROWS, SEGMENTS_OF_THREAD * torch.get_num_threads()
            ),
            keep_segments=self._keeps_segments(),
        )
        undecided = self._blockwise.undecided(problem, self._extent, options)
        later = undecided.nonzero()[:, 0]
        if len(later) == 0:
            return self._checked(self._one_pass(options), options)
        return self._checked(self._two_passes(options, ~undecided, later), options)

    def _keeps_segments(self) -> bool:
        """Whether the canonical order of the segments is kept over all processes."""
        if self._exchange.first:
            return False
        segments = -(-self._extent.count // SEGMENT_ROWS)
        batch, features = self._problem.query.shape
        return -(-segments // self._exchange.parts) * batch * features * 8 <= KEPT_BYTES

    def _open(
        self, problem: Problem, options: PassOptions, anchors: Tensor | None = None,
        squares: Tensor | None = None,
    ) -> MomentsPass:  # fmt: skip
        return self._blockwise.open(problem, self._extent, options, anchors, squares)

    def _one_pass(self, options: PassOptions) -> Ending:
        rows = self._problem.rows
        with self._exchange.together("pass"):
            (only,) = self._place.run(lambda: (self._open(self._problem, options),), rows)
        return self._join(only)

    def _join(self, own: MomentsPass) -> Ending:
        """Put the other processes' parts to a pass, and end it."""
        if not self._exchange.alone:

            def absorb(states: Tensor) -> Tensor:
                own.merge_after(states)
                return own.write_state()

            own.read_state(self._exchange.chain(own.empty_state(), absorb))
        return own.finish()

    def _two_passes(self, options: PassOptions, decided: Tensor, later: Tensor) -> Ending:
        problem, place, exchange = self._problem, self._place, self._exchange
        at_once = decided.nonzero()[:, 0]
        now, rest = problem.take(at_once), problem.take(later)
        search = replace(rest, sigma=torch.zeros_like(rest.sigma))
        search_options = replace(options, functionals=False, top_k=max(1, options.top_k))
        segments = -(-place.count // SEGMENT_ROWS)
        squares = torch.empty((len(later), segments), dtype=torch.float64)

        def make() -> tuple[MomentsPass, ...]:
            squares.fill_(inf)
            found = self._open(search, search_options, squares=squares)
            return (found, self._open(now, options)) if len(at_once) else (found,)

        with exchange.together("pass"):
            found, *others = place.run(make, problem.rows)
        first = others[0] if others else self._open(now, options)
        ending = self._join(first)
        nearest = self._join(found)
        ids = nearest.moments[3][:, 0].clamp(min=0)
        anchors = exchange.rows(ids, place.fetch)
        wanted = self._segments_that_matter(rest, squares, nearest.moments[4][:, 0])
        rest_options = replace(options, top_k=0)
        with exchange.together("second pass"):
            (second,) = place.run(
                lambda: (self._open(rest, rest_options, anchors),), problem.rows, wanted
            )
        last = self._join(second)
        ids, distances = (part[:, : options.top_k] for part in nearest.moments[3:])
        return Ending(
            _interleave(at_once, ending.moments, later, (*last.moments[:3], ids, distances)),
            *_first_of(at_once, ending, later, nearest),
        )

    def _segments_that_matter(self, problem: Problem, squares: Tensor, nearest: Tensor) -> Tensor:
        """Which segments may hold a row that counts, ``(segments,)`` bool."""
        kappa = 0.5 / problem.sigma.square()
        spread = 0.0
        if problem.log_weights is not None:
            finite = problem.log_weights[problem.log_weights > -inf]
            spread = float(finite.max() - finite.min())
        margin = LARGEST_MARGIN + log(max(self._extent.eligible, 1)) + spread
        least = nearest.square()[:, None] * (1 + ROUNDING)
        fall = kappa[:, None] * (squares * (1 - ROUNDING) - least)
        # Written so that a NaN lets the segment through.
        return (~(fall > margin) & (squares < inf)).any(0)

    def _checked(self, ending: Ending, options: PassOptions) -> Moments:
        if self._problem.check_values:
            if ending.empty >= 0:
                raise ValueError(f"exclude leaves no training point for query {ending.empty}")
            if ending.scarce >= 0:
                raise ValueError(
                    f"top_k must be at most the number of eligible points, {ending.eligible} for "
                    f"query {ending.scarce}, got {options.top_k}"
                )
        return ending.moments


def _interleave(at_once: Tensor, some: Moments, later: Tensor, others: Moments) -> Moments:
    """Outputs for all queries from those of two groups."""
    outputs = []
    for one, other in zip(some, others, strict=True):
        output = one.new_empty((len(one) + len(other), *one.shape[1:]))
        output[at_once], output[later] = one, other
        outputs.append(output)
    mean, logsumexp, functionals, ids, distances = outputs
    return mean, logsumexp, functionals, ids, distances


def _first_of(
    at_once: Tensor, ending: Ending, later: Tensor, nearest: Ending
) -> tuple[int, int, int]:
    """The first query without a row, and with too few, among all."""

    def place(queries: Tensor, at: int) -> float:
        return inf if at < 0 else int(queries[at])

    empty = min(place(at_once, ending.empty), place(later, nearest.empty))
    scarce = [
        (place(at_once, ending.scarce), ending.eligible),
        (place(later, nearest.scarce), nearest.eligible),
    ]
    query, eligible = min(scarce)
    return (
        -1 if empty == inf else int(empty),
        -1 if query == inf else int(query),
        eligible,
    )
