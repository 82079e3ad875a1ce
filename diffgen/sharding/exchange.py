"""What the processes of a sharded set add to each other's calls."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import cast

import torch
from torch import Tensor

from diffgen.backends.problem import Extent
from diffgen.errors import ShardError
from diffgen.readers.source import byte_view, type_name
from diffgen.sharding.ranks import Ranks
from diffgen.streaming.exchange import Exchange, Outputs, Queries

_EXTENT = struct.Struct("<qdd")


class RanksExchange(Exchange):
    """Processes that each hold consecutive rows of a set, in the order of their ranks."""

    alone = False

    def __init__(self, ranks: Ranks, own: tuple[int, int]) -> None:
        """Take the processes.

        Args:
            ranks: All of them.
            own: Id of the first row that is here, and after the last.
        """
        self._ranks, self._own = ranks, own
        self.first = ranks.rank == 0
        self.parts = ranks.size

    @contextmanager
    def together(self, step: str) -> Iterator[None]:
        """What a process does by itself; an error in it is an error in all of them."""
        try:
            yield
        except Exception as error:
            with suppress(ShardError):  # the own error says more
                self._ranks.agree(step, f"{type(error).__name__}: {error}")
            raise
        except BaseException as error:
            # An interrupt waits for nobody.
            self._ranks.fail(step, error)
            raise
        self._ranks.agree(step, None)

    def share(self, queries: Queries, call: str, compute: Callable[[Queries], Outputs]) -> Outputs:
        """Outputs for the own queries.

        Where all processes ask the same, the queries are answered once, and all get the same bits.
        Where they ask different things, each gets the queries of all, and keeps its own answers.
        """
        batch = cast(Tensor, queries[0]).shape[0]
        header = {
            "call": call,
            "batch": batch,
            "kinds": [_kind(given) for given in queries],
            "digest": _digest(queries),
        }
        messages = self._ranks.exchange("queries", json.dumps(header).encode())
        headers = [json.loads(message) for message in messages]
        for name, what in (("call", "make the same call"), ("kinds", "pass the same arguments")):
            for rank, other in enumerate(headers):
                if other[name] != headers[0][name]:
                    raise ShardError(
                        f"all ranks must {what}: {headers[0][name]} in rank 0, {other[name]} in "
                        f"rank {rank}"
                    )
        if all(other["digest"] == headers[0]["digest"] for other in headers):
            return compute(queries)
        batches = [int(other["batch"]) for other in headers]
        outputs = compute(tuple(self._gather(given, batches) for given in queries))
        begin = sum(batches[: self._ranks.rank])
        # A copy: a view would keep the answers of all.
        own = tuple(output[begin : begin + batch].clone() for output in outputs)
        return cast(Outputs, own)

    def _gather(self, given: Tensor | None, batches: list[int]) -> Tensor | None:
        if given is None:
            return None
        padded = given.new_zeros((max(batches), *given.shape[1:]))
        padded[: given.shape[0]] = given
        parts = self._ranks.gather("queries", padded)
        return torch.cat([part[:count] for part, count in zip(parts, batches, strict=True)])

    def extent(self, own: Extent) -> Extent:
        """The extent of the set from those of its parts."""
        message = _EXTENT.pack(own.eligible, own.longest, own.typical)
        parts = [_EXTENT.unpack(part) for part in self._ranks.exchange("extent", message)]
        eligible = sum(count for count, _, _ in parts)
        squares = sum(count * typical**2 for count, _, typical in parts)
        typical = (squares / max(eligible, 1)) ** 0.5
        return Extent(own.count, eligible, max(longest for _, longest, _ in parts), typical)

    def chain(self, states: Tensor, absorb: Callable[[Tensor], Tensor]) -> Tensor:
        """What passes through all processes in the order of their rows."""
        return self._ranks.pass_on("merge", states, absorb)

    def add_up(self, own: Tensor) -> Tensor:
        """The sum over all processes, from the first to the last: the same bits in each."""
        return self._ranks.pass_on("sum", torch.zeros_like(own), lambda before: before + own)

    def rows(self, ids: Tensor, fetch: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows of the set by id; each process reads those that it holds."""
        here = ((ids >= self._own[0]) & (ids < self._own[1])).nonzero()[:, 0]
        with self.together("nearest rows"):
            found = fetch(ids[here])

        def put(rows: Tensor) -> Tensor:
            rows[here] = found
            return rows

        nothing = found.new_zeros((len(ids), *found.shape[1:]))
        return self._ranks.pass_on("nearest rows", nothing, put)


def _kind(given: Tensor | None) -> str | None:
    """Type of a tensor and shape of a row."""
    if given is None:
        return None
    return f"{type_name(given.dtype)} {tuple(given.shape[1:])}"


def _digest(queries: Queries) -> str:
    total = hashlib.sha256()
    for given in queries:
        if given is not None:
            total.update(byte_view(given.detach().cpu().contiguous()))
    return total.hexdigest()
