"""Moments of a whole from those of its blocks, by the exact merge of ``diffgen.merging``."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import torch
from torch import Tensor

from diffgen.backends import registry
from diffgen.backends.passes import Moments
from diffgen.backends.problem import CovarianceInputs, Demands, Problem, RowBlock
from diffgen.merging import TIE, merge_functionals

FEWEST_TIES = 4
"""So many nearest rows are looked at for others as near, before more are."""


def part_of(problem: Problem, block: RowBlock) -> Problem:
    """The problem over the rows of one block, on the device of the queries."""
    device = problem.query.device
    exclude = problem.exclude
    if exclude is not None:
        if block.ids is None:
            place = exclude - block.first
            here = (place >= 0) & (place < len(block.data))
        else:
            ids = block.ids.to(device)
            place = torch.searchsorted(ids, exclude).clamp(max=len(ids) - 1)
            here = ids[place] == exclude
        exclude = torch.where(here, place, -1)
    weights = block.log_weights
    return replace(
        problem,
        data=block.data.to(device),
        norms=block.norms.to(device),
        log_weights=None if weights is None else weights.to(device),
        rows=None,
        exclude=exclude,
        check_values=False,
    )


class MergedMoments:
    """The posteriors over the rows that came so far.

    ``near`` says how near the nearest rows are where sigma is 0, is zero for other queries that
    have rows, and infinite for queries without: the nearer of two parts has it all.
    """

    def __init__(self, problem: Problem, functionals: bool, top_k: int, backend: str) -> None:
        """Start with no rows; ``problem.data`` and ``norms`` are not read."""
        self._problem, self._backend = problem, backend
        self._functionals, self._top_k = functionals, top_k
        batch, features = problem.query.shape
        new = problem.sigma.new_full
        self.at_zero = problem.sigma * problem.sigma == 0
        self._some_at_zero = bool(self.at_zero.any())
        self.mean = new((batch, features), 0.0)
        self.log_mass = new((batch,), -inf)
        self.near = new((batch,), inf)
        self.functionals = new((batch, 3 if functionals else 0), 1.0)
        self.ids = torch.full_like(new((batch, top_k), 0.0), -1, dtype=torch.int64)
        self.distances = new((batch, top_k), inf)

    def add(self, block: RowBlock) -> None:
        """Take the rows of one block, which come after all rows taken before."""
        problem = part_of(self._problem, block)
        count = min(max(self._top_k, int(self._some_at_zero)), len(block.data))
        demands = Demands(self._functionals, count)
        chosen = registry.choose(problem, self._backend, demands)
        mean, log_mass, functionals, ids, distances = chosen.moments(
            problem, self._functionals, count, torch.float64
        )
        distances = distances.nan_to_num(nan=inf)
        near = torch.where(log_mass.isnan(), inf, 0.0)
        if self._some_at_zero:
            near = torch.where(self.at_zero, distances[:, 0], near)
            log_mass = self._tied_masses(problem, chosen, log_mass, near)
        if self._top_k:
            if block.ids is not None:
                ids = block.ids.to(ids.device)[ids.clamp(min=0)]
            else:
                ids = ids + block.first
            ids = torch.where(distances < inf, ids, -1)
        self._merge(mean, log_mass, near, functionals, ids, distances)

    def _tied_masses(
        self, problem: Problem, chosen: registry.Backend, log_mass: Tensor, near: Tensor
    ) -> Tensor:
        """Log of the weight of all nearest rows of the block, where sigma is 0."""
        log_mass = log_mass.clone()
        nearer = near <= self.near * (1 + TIE)
        for at in (self.at_zero & (near < inf) & nearer).nonzero()[:, 0].tolist():
            query = problem.take(torch.tensor([at], device=near.device))
            count = FEWEST_TIES
            while True:
                count = min(count, len(problem.data))
                ids, distances = chosen.moments(query, False, count, torch.float64)[3:]
                tied = distances[0] <= near[at] * (1 + TIE)
                if count == len(problem.data) or not bool(tied.all()):
                    break
                count *= FEWEST_TIES
            weights = problem.log_weights
            found = torch.zeros_like(distances[0]) if weights is None else weights[ids[0]]
            log_mass[at] = found.masked_fill(~tied, -inf).logsumexp(0)
        return log_mass

    def _merge(
        self,
        mean: Tensor,
        log_mass: Tensor,
        near: Tensor,
        functionals: Tensor,
        ids: Tensor,
        distances: Tensor,
    ) -> None:
        """Put a part after the own one."""
        limit = torch.minimum(self.near, near) * (1 + TIE)
        own = self.log_mass.masked_fill((self.near > limit) | (self.near == inf), -inf)
        other = log_mass.masked_fill((near > limit) | (near == inf), -inf)
        total = torch.logaddexp(own, other)
        level = total.masked_fill(total == -inf, 0.0)
        u, v = (own - level).exp(), (other - level).exp()
        # A part without weight may hold NaN.
        fresh = torch.where(v[:, None] > 0, mean, self.mean)
        kept = torch.where(u[:, None] > 0, self.mean, fresh)
        if self._functionals:
            new = torch.where(v[:, None] > 0, functionals, self.functionals)
            old = torch.where(u[:, None] > 0, self.functionals, new)
            spread = (fresh - kept).square().sum(1)
            self.functionals = torch.where(
                (total > -inf)[:, None], merge_functionals(old, new, u, v, spread), old
            )
        self.mean = torch.where(
            (total > -inf)[:, None], u[:, None] * kept + v[:, None] * fresh, kept
        )
        self.log_mass, self.near = total, torch.minimum(self.near, near)
        if self._top_k:
            # Stable: of rows at the same distance the ones that came first stay first.
            merged, order = torch.cat((self.distances, distances), 1).sort(dim=1, stable=True)
            self.distances = merged[:, : self._top_k]
            self.ids = torch.cat((self.ids, ids), 1).gather(1, order)[:, : self._top_k]

    def write_state(self) -> Tensor:
        """The posteriors so far, ``(B, n)`` float64."""
        return torch.cat(
            (
                self.mean,
                self.log_mass[:, None],
                self.near[:, None],
                self.functionals,
                self.ids.to(torch.float64),
                self.distances,
            ),
            1,
        ).contiguous()

    def read_state(self, states: Tensor) -> None:
        """Put posteriors in place of the own ones."""
        features, top_k = self.mean.shape[1], self._top_k
        width = self.functionals.shape[1]
        self.mean, log_mass, near, self.functionals, ids, self.distances = states.split(
            [features, 1, 1, width, top_k, top_k], 1
        )
        self.log_mass, self.near = log_mass[:, 0], near[:, 0]
        self.ids = ids.to(torch.int64)

    def merge_after(self, states: Tensor) -> None:
        """Put the posteriors over earlier rows before the own ones."""
        own = (
            self.mean,
            self.log_mass,
            self.near,
            self.functionals,
            self.ids,
            self.distances,
        )
        self.read_state(states)
        self._merge(*own)

    def finish(self, mean_dtype: torch.dtype) -> Moments:
        """The outputs of the op; NaN for queries without a row or that are not finite."""
        nothing = (self.near == inf)[:, None]
        apart = self.at_zero & (self.near > 0)
        logsumexp = torch.where(apart, -inf, self.log_mass).masked_fill(nothing[:, 0], nan)
        missing = self.ids < 0
        return (
            self.mean.masked_fill(nothing, nan).to(mean_dtype),
            logsumexp,
            self.functionals.masked_fill(nothing, nan),
            self.ids,
            self.distances.masked_fill(missing, nan),
        )


class SummedProducts:
    """The covariance product over the rows that came so far: a sum over rows."""

    def __init__(self, problem: Problem, inputs: CovarianceInputs, backend: str) -> None:
        """Start with no rows."""
        self._problem, self._inputs, self._backend = problem, inputs, backend
        batch, features = problem.query.shape
        self.sums = problem.sigma.new_zeros((batch, features + 2))

    def add(self, block: RowBlock) -> None:
        """Take the rows of one block."""
        problem = part_of(self._problem, block)
        chosen = registry.choose(problem, self._backend, Demands(covariance=True))
        self.sums += torch.cat(chosen.covariance_product(problem, self._inputs), 1)

    def finish(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of the op from the sums over all rows."""
        return sums[:, :-2].contiguous(), sums[:, -2:].contiguous()
