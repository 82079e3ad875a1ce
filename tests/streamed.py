"""Stores over rows in memory, in blocks as small as a test likes them."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from diffgen.backends.problem import Problem
from diffgen.readers.source import Source, tensor_source
from diffgen.streaming.exchange import ALONE, Exchange
from diffgen.streaming.place import FilePlace
from diffgen.streaming.store import StreamedStore


def place_over(
    problem: Problem,
    block_rows: int,
    own: tuple[int, int] | None = None,
    source: Source | None = None,
) -> FilePlace:
    """The rows of a problem, some at a time."""
    place = FilePlace(
        tensor_source(problem.data) if source is None else source,
        problem.scale,
        problem.log_weights,
        own,
    )
    place.block_rows = block_rows
    return place


def store_over(problem: Problem, block_rows: int, exchange: Exchange = ALONE) -> StreamedStore:
    return StreamedStore(place_over(problem, block_rows), exchange)


def without_rows(problem: Problem) -> Problem:
    """The problem as a store is given it: whoever reads its rows or norms gets rubbish."""
    return dataclasses.replace(
        problem,
        data=hidden(problem.data),
        norms=hidden(problem.norms),
    )


def hidden(tensor: Tensor) -> Tensor:
    return tensor.new_full((1,) * tensor.ndim, 7).expand(tensor.shape)
