"""What the eager backend keeps from block to block: the posterior and the nearest rows so far."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from diffgen.backends.eager_rows import (
    Block,
    Queries,
    blocks,
    decode,
    distance,
    excess_of,
    logits_of,
    pairs,
    prepare,
    shift_of,
    squared_distances,
    stored_rows,
)
from diffgen.backends.problem import Problem

TIE = 1e-12
"""At sigma = 0 squared distances that exceed the smallest by this fraction are equal to it."""


class Nearest:
    """The k nearest rows so far: squared distances by differences, ties to the lowest id."""

    def __init__(self, problem: Problem, queries: Queries, k: int) -> None:
        """Starts with no row."""
        batch = len(queries.x)
        self.problem, self.queries, self.k = problem, queries, k
        self.squared = queries.x.new_full((batch, k), torch.inf)
        self.ids = torch.full((batch, k), -1, dtype=torch.int64, device=queries.x.device)

    def add(self, block: Block, squared: Tensor) -> None:
        """Takes the rows of one block, which come after all rows taken before."""
        problem, queries, k = self.problem, self.queries, self.k
        # A row is among the k nearest only if its least possible distance is at most the k-th
        # smallest greatest possible one.
        bound = self.squared[:, -1] + queries.error
        if squared.shape[1] >= k:
            kth = squared.topk(k, dim=1, largest=False).values[:, -1]
            bound = torch.minimum(bound, kth + 2 * queries.error)
        mask = (squared <= bound[:, None]) & (squared < torch.inf)
        parts = [
            (ids, columns, distance(queries, ids, decode(problem, block.stored[columns])))
            for ids, columns in pairs(mask, problem.query.shape[1])
        ]
        if not parts:
            return
        ids, columns, distances = (torch.cat(part) for part in zip(*parts, strict=True))
        order = distances.argsort(stable=True)
        order = order[ids[order].argsort(stable=True)]
        ids, columns, distances = ids[order], columns[order], distances[order]
        first = torch.searchsorted(ids, ids)
        rank = torch.arange(len(ids), device=ids.device) - first
        kept = rank < k
        ids, rank = ids[kept], rank[kept]
        fresh, fresh_ids = torch.full_like(self.squared, torch.inf), torch.full_like(self.ids, -1)
        fresh[ids, rank] = distances[kept]
        fresh_ids[ids, rank] = block.ids[columns[kept]]
        merged, order = torch.cat([self.squared, fresh], 1).sort(dim=1, stable=True)
        self.squared = merged[:, :k].contiguous()
        self.ids = torch.cat([self.ids, fresh_ids], 1).gather(1, order)[:, :k].contiguous()

    def finish(self) -> tuple[Tensor, Tensor]:
        """Ids and distances, -1 and NaN where there is no row."""
        missing = (self.ids < 0) | self.queries.bad[:, None]
        distances = self.squared.sqrt().masked_fill_(missing, torch.nan)
        return self.ids.masked_fill(missing, -1), distances


class RunningPosterior:
    """The posterior over the rows so far.

    Logits are relative to an anchor row, the best so far, where differences decide, and absolute
    elsewhere. Squared distances of rows from the anchor also give the trace: a row that holds at
    least 1 / N of the weight makes up for its own distance from the mean to a factor N, so that
    nothing cancels. Elsewhere the first row is the anchor, and the rounding of its distances is
    below that of the logits times sigma^2.
    """

    def __init__(self, problem: Problem, queries: Queries, functionals: bool) -> None:
        """Starts with no row; where sigma = 0, looks for the nearest row first."""
        batch, features = queries.x.shape
        self.problem, self.queries, self.functionals = problem, queries, functionals
        self.peak = queries.x.new_full((batch,), -torch.inf)  # largest logit
        self.mass = queries.x.new_zeros(batch)  # sum of e = exp(logit - peak)
        self.sums = queries.x.new_zeros(batch, features)  # sum of e stored
        self.descent = queries.x.new_zeros(batch)  # sum of e (peak - logit)
        self.mass_squared = queries.x.new_zeros(batch)  # sum of e^2
        self.spread = queries.x.new_zeros(batch)  # sum of e |row - anchor|^2
        self.best = queries.x.new_full((batch,), -torch.inf)  # largest logit by products
        self.limit = queries.x.new_zeros(batch)  # smallest squared distance, for sigma = 0
        self.some_refined = bool(queries.refined.any())
        ids = queries.x.new_zeros(1, dtype=torch.int64) if problem.rows is None else problem.rows
        self.centre = stored_rows(problem, ids[:1])  # (1, D)
        self.anchor = decode(problem, self.centre).expand(batch, features).clone()
        if bool(queries.zero.any()):
            self._settle_zero()

    def _settle_zero(self) -> None:
        """Where sigma = 0 the anchor is the nearest row, found beforehand."""
        problem = self.problem
        at = self.queries.zero.nonzero()[:, 0]
        part = replace(
            problem,
            query=self.queries.x[at],
            sigma=self.queries.sigma[at],
            alpha=self.queries.alpha[at],
            exclude=None if self.queries.exclude is None else self.queries.exclude[at],
        )
        queries = prepare(part)
        nearest = Nearest(part, queries, 1)
        for block in blocks(part):
            nearest.add(block, squared_distances(part, queries, block))
        self.anchor[at] = decode(problem, stored_rows(problem, nearest.ids[:, 0].clamp(min=0)))
        self.limit[at] = nearest.squared[:, 0]

    def _move_anchor(self, at: Tensor, anchor: Tensor) -> None:
        """Expresses what was summed for the queries ``at`` against other rows."""
        problem, queries = self.problem, self.queries
        step = self.anchor[at] - anchor
        self.peak[at] += queries.inverse[at] * excess_of(
            queries.x[at], queries.alpha[at], anchor, self.anchor[at]
        )
        if self.functionals:
            mass = self.mass[at, None]
            values = problem.scale * (self.sums[at] + shift_of(problem) * mass)
            offsets = values + mass * (problem.offset - self.anchor[at])  # sum of e (row - anchor)
            self.spread[at] += (step * (2 * offsets + mass * step)).sum(1)
        self.anchor[at] = anchor

    def _refine(
        self, block: Block, squared: Tensor, logits: Tensor, spread: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Replaces the logits of the queries that products cannot decide."""
        problem, queries = self.problem, self.queries
        best, column = logits.max(dim=1)
        moved = (queries.refined & ~queries.zero & (best > self.best)).nonzero()[:, 0]
        if len(moved):
            self._move_anchor(moved, decode(problem, block.stored[column[moved]]))
        self.best = torch.maximum(self.best, best)
        close = logits >= (self.best - queries.margin)[:, None]
        nearest = squared <= (self.limit * (1 + TIE) + 2 * queries.error)[:, None]
        matters = torch.where(queries.zero[:, None], nearest, close & queries.refined[:, None])
        matters &= squared < torch.inf
        logits = logits.masked_fill_(queries.refined[:, None], -torch.inf)
        for ids, columns in pairs(matters, problem.query.shape[1]):
            rows, anchor = decode(problem, block.stored[columns]), self.anchor[ids]
            excess = excess_of(queries.x[ids], queries.alpha[ids], rows, anchor)
            tied = torch.where(excess <= TIE * self.limit[ids], 0.0, -torch.inf)
            fresh = torch.where(queries.zero[ids], tied, -excess * queries.inverse[ids])
            if block.log_weights is not None:
                fresh += block.log_weights[columns]
            logits[ids, columns] = fresh
            if spread is not None:
                spread[ids, columns] = (rows - anchor).square().sum(1)
        return logits, spread

    def add(self, block: Block, squared: Tensor) -> None:
        """Merges the posterior over one more block."""
        logits = logits_of(self.queries, block, squared)
        spread = None
        if self.functionals:
            spread = (block.stored - self.centre).square().sum(1) * self.problem.scale**2
            spread = spread.expand_as(logits)
        if self.some_refined:
            spread = None if spread is None else spread.clone()
            logits, spread = self._refine(block, squared, logits, spread)
        peak = torch.maximum(self.peak, logits.amax(1))
        level = peak.masked_fill(peak == -torch.inf, 0.0)
        scale = (self.peak - level).exp()
        weights = (logits - level[:, None]).exp()
        if spread is not None:
            fall = (level - self.peak).masked_fill(self.peak == -torch.inf, 0.0)
            self.descent = scale * (self.descent + fall * self.mass)
            self.descent += torch.special.entr(weights).sum(1)
            self.mass_squared = scale * scale * self.mass_squared + weights.square().sum(1)
            self.spread = scale * self.spread + (weights * spread).sum(1)
        self.mass = scale * self.mass + weights.sum(1)
        self.sums.mul_(scale[:, None]).addmm_(weights, block.stored)
        self.peak = peak

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, logsumexp and functionals."""
        problem, queries = self.problem, self.queries
        bad = queries.bad | (self.mass == 0)
        if problem.check_values and bool((bad & ~queries.bad).any()):
            at = int((bad & ~queries.bad).nonzero()[0])
            raise ValueError(f"exclude leaves no training point for query {at}")
        mean = decode(problem, self.sums / self.mass[:, None])
        mean = mean.masked_fill(bad[:, None], torch.nan)
        depth = (queries.x - queries.alpha[:, None] * self.anchor).square().sum(1)
        depth = torch.where(
            queries.zero,
            torch.where(self.limit == 0, 0.0, torch.inf),
            torch.where(queries.refined, depth * queries.inverse, 0.0),
        )
        log_mass = self.mass.log()
        logsumexp = (self.peak + log_mass - depth).masked_fill_(bad, torch.nan)
        if not self.functionals:
            return mean, logsumexp, mean.new_empty(len(mean), 0)
        trace = self.spread / self.mass - (mean - self.anchor).square().sum(1)
        functionals = torch.stack(
            [
                log_mass + self.descent / self.mass,
                self.mass * self.mass / self.mass_squared,
                trace.clamp(min=0.0),
            ],
            1,
        )
        return mean, logsumexp, functionals.masked_fill_(bad[:, None], torch.nan)
