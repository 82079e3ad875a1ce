"""Moments over rows that come block by block, with the bits of one call over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from diffgen.backends.problem import Extent, Problem, RowBlock

Moments: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Mean, logsumexp, functionals, top indices, top distances: the outputs of the moments op."""


@dataclass(frozen=True, slots=True)
class PassOptions:
    """What a pass is to compute, and how.

    Attributes:
        functionals: As the moments op has it.
        top_k: As the moments op has it.
        mean_dtype: As the moments op has it.
        segments_at_once: Segments of a block of rows, about; a matter of speed.
        keep_segments: Whether the posteriors of single segments are kept apart, so that those of
            earlier rows can be put before them.
    """

    functionals: bool
    top_k: int
    mean_dtype: torch.dtype
    segments_at_once: int = 1
    keep_segments: bool = False


class Ending(NamedTuple):
    """How a pass ended.

    Attributes:
        moments: The outputs of the op; NaN rows for queries without an answer.
        empty: The first query that is left without a row, -1 for none.
        scarce: The first query with fewer than ``top_k`` rows, -1 for none.
        eligible: So many rows it has.
    """

    moments: Moments
    empty: int
    scarce: int
    eligible: int


class UnreadableRows(Exception):
    """Rows of a file are not there: whoever brought the block knows which file."""


class MomentsPass(Protocol):
    """The posterior of every query over the rows that came so far."""

    def add(self, block: RowBlock) -> None:
        """Take rows: whole segments, in ascending order.

        Raises:
            UnreadableRows: If they are in a file, and cannot be read there.
        """

    def empty_state(self) -> Tensor:
        """What ``write_state`` gives before any row came."""

    def write_state(self) -> Tensor:
        """The posteriors so far, ``(B, n)`` float64: what another process needs to go on."""

    def read_state(self, states: Tensor) -> None:
        """Put posteriors in place of the own ones."""

    def merge_after(self, states: Tensor) -> None:
        """Put the posteriors over earlier rows before the own ones."""

    def kept_bytes(self) -> int:
        """Bytes that the kept segments take."""

    def finish(self) -> Ending:
        """End the pass."""


@dataclass(frozen=True, slots=True)
class BlockwiseMoments:
    """How a backend goes through rows block by block.

    Attributes:
        undecided: Which queries, ``(B,)`` bool, need the nearest row before the pass.
        open: Starts a pass over ``problem``, whose ``data`` and ``norms`` are not read. Given
            ``anchors``, nearest rows ``(B, D)`` for the undecided queries, and ``squares``,
            ``(B, segments of the set)`` float64 or None, which takes the least squared distance of
            each query at sigma = 0 to each segment.
    """

    undecided: Callable[[Problem, Extent, PassOptions], Tensor]
    open: Callable[[Problem, Extent, PassOptions, Tensor | None, Tensor | None], MomentsPass]
