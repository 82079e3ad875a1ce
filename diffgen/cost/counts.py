"""Passes, bytes and messages of a call, counted."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from diffgen.machine import OPERATIONS
from diffgen.sharding.ways import star, tree
from diffgen.streaming.exact import KEPT_BYTES
from diffgen.streaming.opening import is_streamed
from diffgen.streaming.plan import SEGMENT_ROWS, rows_of_block
from diffgen.streaming.store import STATE_BYTES_EACH, queries_of_pass

STATE_HEAD = 9
"""Numbers of the state of a query beside its mean and nearest rows: ``csrc/cpu/u8/pass.cpp``."""

MERGED_HEAD = 2
"""The same of ``streaming.merged``."""

FLOAT64, INT64 = 8, 8


@dataclass(frozen=True)
class SetSize:
    """What the cost of a set depends on.

    Attributes:
        shape: ``(N, *S)``.
        dtype: Stored type.
        labelled: Whether there are labels.
        weighted: Whether there are weights.
        flip: Whether the mirror images belong to the set.
        measured: Whether the file brings the norms of its rows.
        in_memory: Whether the rows are read into memory once; None for what their size suggests.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    labelled: bool = False
    weighted: bool = False
    flip: bool = False
    measured: bool = False
    in_memory: bool | None = None

    @property
    def count(self) -> int:
        """Stored rows, N."""
        return self.shape[0]

    @property
    def features(self) -> int:
        """D."""
        return prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row."""
        return self.features * self.dtype.itemsize

    @property
    def rows_bytes(self) -> int:
        """Bytes of all stored rows."""
        return self.count * self.row_bytes

    @property
    def stays(self) -> bool:
        """Whether ``TrainingSet.open`` leaves the rows in their file."""
        return is_streamed(self.shape, self.dtype, self.in_memory)

    def queries(self, batch: int) -> int:
        """Queries of a pass for a batch of noisy points: the mirror images are a second half."""
        return batch * (2 if self.flip else 1)


@dataclass(frozen=True)
class CallCost:
    """What one call costs over rows that stay in their file, or in memory.

    Attributes:
        queries: Noisy points, and their mirror images where these belong to the set.
        queries_of_pass: The most that go through the rows together.
        read_bytes: Bytes of rows that are gone through, at least.
        operations: Products and sums that the definition needs.
    """

    queries: int
    queries_of_pass: int
    read_bytes: int
    operations: int

    @property
    def passes(self) -> int:
        """Times that all rows are gone through."""
        return parts_of(self.queries, self.queries_of_pass)


def call_cost(size: SetSize, batch: int, stays: bool) -> CallCost:
    """The cost of a call, without the second pass that the smallest noise needs in part.

    Args:
        size: The set.
        batch: Noisy points of the call.
        stays: Whether the rows stay in their file.

    Example:
        >>> imagenet = SetSize((1_281_167, 3, 64, 64), torch.uint8)
        >>> cost = call_cost(imagenet, 64, stays=True)
        >>> cost.passes, cost.read_bytes
        (1, 15742980096)
    """
    queries = size.queries(batch)
    at_once = queries_of_pass(size.features) if stays else max(queries, 1)
    operations = OPERATIONS * queries * size.count * size.features
    passes = parts_of(queries, at_once)
    return CallCost(queries, at_once, passes * size.rows_bytes, operations)


def parts_of(number: int, most: int) -> int:
    """Parts of at most so many, at least one.

    Example:
        >>> parts_of(64, 204), parts_of(1000, 204), parts_of(0, 204)
        (1, 5, 1)
    """
    return max(1, -(-number // most))


def memory_of_pass(
    size: SetSize, batch: int, stays: bool, own: tuple[int, int] | None = None
) -> dict[str, int]:
    """Bytes that a process holds during a call, by what they are.

    Args:
        size: The set.
        batch: Noisy points of the call.
        stays: Whether the rows stay in their file.
        own: Id of the first row that this process goes through and after the last; None for all.

    Returns:
        ``rows``: the rows, or the two buffers through which they come; ``norms``, and those that
        the file brings; ``labels`` and the order by label; ``weights``; ``queries``: at most so
        much for the queries of a pass. But for the first two, and the norms of the rows that are
        gone through, they are those of the whole set in every process.
    """
    first, stop = (0, size.count) if own is None else own
    block = min(rows_of_block(size.row_bytes), stop - first)
    buffers = 0 if block == 0 else min(2, parts_of(stop - first, block))
    at_once = size.queries(batch)
    if stays:
        at_once = min(at_once, queries_of_pass(size.features))
    return {
        "rows": (buffers * block if stays else stop - first) * size.row_bytes,
        "norms": (stop - first) * FLOAT64 + (size.count * INT64 if size.measured else 0),
        "labels": 2 * size.count * INT64 if size.labelled else 0,
        "weights": size.count * FLOAT64 if size.weighted else 0,
        "queries": at_once * STATE_BYTES_EACH * size.features,
    }


def state_bytes(features: int, top_k: int = 0) -> int:
    """Bytes of the posterior of one query that processes hand on, over 8-bit rows on CPUs.

    Example:
        >>> state_bytes(12_288)
        98376
    """
    return FLOAT64 * (STATE_HEAD + features + 2 * top_k)


def merged_state_bytes(features: int, top_k: int = 0, functionals: int = 0) -> int:
    """The same for rows of floats, and on GPUs."""
    return FLOAT64 * (MERGED_HEAD + features + functionals + 2 * top_k)


def merge_bytes_sent(
    state: int, queries: int, rank: int, world_size: int, *, one_machine: bool
) -> int:
    """Bytes of posteriors that one process sends in a merge, each receiver counted.

    Each process hands them to the next one; then the last one's reach all others: from its memory
    on one machine, else along a binomial tree.

    Args:
        state: Bytes of a query.
        queries: How many are merged at once.
        rank: Of the process.
        world_size: Number of processes.
        one_machine: Whether all processes are on one.

    Example:
        >>> [merge_bytes_sent(1, 1, rank, 4, one_machine=True) for rank in range(4)]
        [1, 1, 1, 3]
        >>> [merge_bytes_sent(1, 1, rank, 4, one_machine=False) for rank in range(4)]
        [1, 2, 1, 2]
    """
    way = star if one_machine else tree
    _, below = way(rank, world_size, world_size - 1)
    messages = len(below) + (1 if rank + 1 < world_size else 0)
    return messages * state * queries


def merge_steps(world_size: int, *, one_machine: bool) -> int:
    """Messages of a merge that follow on each other: along the processes, and to all.

    Example:
        >>> merge_steps(1, one_machine=True), merge_steps(8, one_machine=True)
        (0, 8)
        >>> merge_steps(32, one_machine=False)
        36
    """
    levels = (world_size - 1).bit_length()
    return world_size - 1 + (min(levels, 1) if one_machine else levels)


def gather_bytes_sent(features: int, batch: int, world_size: int, itemsize: int = 4) -> int:
    """Bytes that a process sends so that all processes have the queries of each.

    Args:
        features: D.
        batch: Largest number of queries of a process.
        world_size: Number of processes.
        itemsize: Bytes of a number of a query.

    Example:
        >>> gather_bytes_sent(12_288, 64, 2)
        3146240
    """
    return (world_size - 1) * batch * (features * itemsize + FLOAT64)


def segments_of_part(count: int, world_size: int) -> int:
    """Canonical segments of a part of 8-bit rows, at most."""
    return parts_of(parts_of(count, SEGMENT_ROWS), world_size)


def kept_bytes(count: int, world_size: int, queries: int, features: int) -> int:
    """The most bytes that the posteriors of single segments take, where these are kept apart."""
    return segments_of_part(count, world_size) * queries * features * FLOAT64


def keeps_order(count: int, world_size: int, queries: int, features: int) -> bool:
    """Whether processes merge 8-bit rows in the order of one process, and so to its bits.

    Args:
        count: N.
        world_size: Number of processes.
        queries: Of a pass.
        features: D.

    Example:
        >>> keeps_order(1_281_167, 8, 16, 12_288), keeps_order(1_281_167, 8, 64, 12_288)
        (True, False)
    """
    return kept_bytes(count, world_size, queries, features) <= KEPT_BYTES


def most_queries_in_order(count: int, world_size: int, features: int) -> int:
    """The most queries of a pass for which ``keeps_order`` holds."""
    return KEPT_BYTES // kept_bytes(count, world_size, 1, features)
