"""What other processes add to a call: nothing here, the other parts of a set in ``sharding``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from diffgen.backends.problem import Extent

Outputs = TypeVar("Outputs", bound=tuple[Tensor, ...])
Queries = tuple[Tensor | None, ...]


class Exchange:
    """A process that has all rows of its set.

    Every method is called by all processes of a set, in the same order.

    Attributes:
        alone: Whether there is no other process.
        first: Whether this process has the first rows of the set.
        parts: In how many processes the set is.
    """

    alone = True
    first = True
    parts = 1

    @contextmanager
    def together(self, step: str) -> Iterator[None]:
        """What a process does by itself; an error in it is an error in all of them."""
        yield

    def share(self, queries: Queries, call: str, compute: Callable[[Queries], Outputs]) -> Outputs:
        """Outputs for the own queries; the others may have others. See ``RowStore.share``."""
        return compute(queries)

    def extent(self, own: Extent) -> Extent:
        """The extent of the set from those of its parts."""
        return own

    def chain(self, states: Tensor, absorb: Callable[[Tensor], Tensor]) -> Tensor:
        """What passes through all processes in the order of their rows.

        Args:
            states: What the first process begins with.
            absorb: From what came so far to that with the own part.

        Returns:
            What came out at the end, the same in every process.
        """
        return absorb(states)

    def add_up(self, own: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        return own

    def rows(self, ids: Tensor, fetch: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows of the set by id.

        Args:
            ids: ``(n,)`` int64 on the CPU.
            fetch: Reads those that are here.
        """
        return fetch(ids)


ALONE = Exchange()
