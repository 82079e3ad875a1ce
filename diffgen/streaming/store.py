"""What the ops call where the rows of a set are not in one tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from diffgen.backends import registry
from diffgen.backends.passes import BlockwiseMoments, Moments
from diffgen.backends.problem import CovarianceInputs, Demands, Problem
from diffgen.backends.values import check_values, eligible_rows
from diffgen.stores import Outputs, RowStore
from diffgen.streaming.exact import ExactMoments
from diffgen.streaming.exchange import ALONE, Exchange
from diffgen.streaming.merged import MergedMoments, SummedProducts
from diffgen.streaming.place import Place
from diffgen.streaming.plan import whole_segments

STATE_BYTES = 96 << 20
"""The most that the queries of one pass take with their posteriors."""

STATE_BYTES_EACH = 40
"""Of them, for each feature of a query: digits, sums and outputs."""


def queries_of_pass(features: int) -> int:
    """How many queries share one pass."""
    return max(1, STATE_BYTES // (STATE_BYTES_EACH * features))


class StreamedStore(RowStore):
    """Rows that are gone through block by block.

    Attributes:
        place: Where the rows of this process are.
        exchange: What other processes add.
    """

    def __init__(self, place: Place, exchange: Exchange = ALONE) -> None:
        """Take the rows."""
        super().__init__()
        self.place, self.exchange = place, exchange

    def share(
        self,
        queries: tuple[Tensor | None, ...],
        call: str,
        compute: Callable[[tuple[Tensor | None, ...]], Outputs],
    ) -> Outputs:
        """Outputs for the queries of one call; see ``RowStore.share``."""
        return self.exchange.share(queries, call, compute)

    def moments(
        self,
        problem: Problem,
        functionals: bool,
        top_k: int,
        mean_dtype: torch.dtype,
        backend: str,
    ) -> Moments:
        """The moments op over these rows; see ``RowStore.moments``."""
        problem = self._prepared(problem)
        with self.exchange.together("backend"):
            blockwise = self._blockwise(problem, Demands(functionals, top_k), backend)

        def part(queries: Problem) -> Moments:
            if blockwise is not None:
                exact = ExactMoments(blockwise, self.place, self.exchange, queries)
                return exact.moments(functionals, top_k, mean_dtype)
            return self._merged(queries, functionals, top_k, mean_dtype, backend)

        return _together([part(queries) for queries, _ in _parts(problem)])

    def covariance_product(
        self, problem: Problem, inputs: CovarianceInputs, backend: str
    ) -> tuple[Tensor, Tensor]:
        """The covariance product op over these rows; see ``RowStore.covariance_product``."""
        problem = self._prepared(problem)
        if problem.check_values:
            check_values(problem)

        def part(queries: Problem, place: Tensor) -> tuple[Tensor, Tensor]:
            own = CovarianceInputs(
                *(
                    None if given is None else given[place]
                    for given in (inputs.mean, inputs.logsumexp, inputs.v, inputs.radial)
                )  # type: ignore[arg-type]
            )
            with self.exchange.together("pass"):
                (made,) = self.place.run(
                    lambda: (SummedProducts(queries, own, backend),), problem.rows
                )
            return made.finish(self.exchange.add_up(made.sums))

        return _together([part(queries, place) for queries, place in _parts(problem)])

    def _prepared(self, problem: Problem) -> Problem:
        """The problem with the ids of its rows on the CPU, where places look at them."""
        return problem if problem.rows is None else replace(problem, rows=problem.rows.cpu())

    def _blockwise(
        self, problem: Problem, demands: Demands, backend: str
    ) -> BlockwiseMoments | None:
        """How the backend goes through the rows block by block with the bits of one call."""
        features = problem.query.shape[1]
        if problem.data.dtype != torch.uint8 or not whole_segments(features):
            return None
        # A block as it will be: its values are not read here.
        sample = replace(problem, data=torch.empty((1, features), dtype=torch.uint8))
        if problem.query.device.type != "cpu":
            return None
        return registry.choose(sample, backend, demands).blockwise

    def _merged(
        self,
        problem: Problem,
        functionals: bool,
        top_k: int,
        mean_dtype: torch.dtype,
        backend: str,
    ) -> Moments:
        if problem.check_values:
            check_values(problem)
            _check_top_k(problem, top_k)

        def make() -> tuple[MergedMoments]:
            return (MergedMoments(problem, functionals, top_k, backend),)

        with self.exchange.together("pass"):
            (own,) = self.place.run(make, problem.rows)
        if not self.exchange.alone:
            nothing = make()[0].write_state()

            def absorb(states: Tensor) -> Tensor:
                own.merge_after(states)
                return own.write_state()

            own.read_state(self.exchange.chain(nothing, absorb))
        return own.finish(mean_dtype)


def _check_top_k(problem: Problem, top_k: int) -> None:
    if top_k == 0 or problem.query.shape[0] == 0:
        return
    fewest, at = eligible_rows(problem).min(0)
    if top_k > int(fewest):
        raise ValueError(
            f"top_k must be at most the number of eligible points, {int(fewest)} for query "
            f"{int(at)}, got {top_k}"
        )


def _parts(problem: Problem) -> Iterator[tuple[Problem, Tensor]]:
    """The queries of one pass after another's, with their places."""
    batch, features = problem.query.shape
    at_once = queries_of_pass(features)
    for begin in range(0, max(batch, 1), at_once):
        place = torch.arange(begin, min(begin + at_once, batch), device=problem.query.device)
        yield (problem if batch <= at_once else problem.take(place)), place


def _together(parts: list[Outputs]) -> Outputs:
    """The outputs of all parts as those of one call."""
    if len(parts) == 1:
        return parts[0]
    joined = tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))
    return cast(Outputs, joined)
