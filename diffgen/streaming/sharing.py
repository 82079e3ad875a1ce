"""Calls that wait for the same rows at the same time share one pass over them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from diffgen.backends.problem import RowBlock


class Consumer(Protocol):
    """Whoever takes the blocks of a pass, in ascending order of their ids."""

    def add(self, block: RowBlock) -> None:
        """Take the rows of one block."""


Made = TypeVar("Made", bound=Sequence[Consumer])


class _Call:
    """A call that waits for its turn."""

    def __init__(self, make: Callable[[], Sequence[Consumer]]) -> None:
        self.make = make
        self.consumers: Sequence[Consumer] = ()
        self.error: Exception | None = None
        self.finished = False

    def start(self) -> None:
        self._attempt(lambda: setattr(self, "consumers", self.make()))

    def add(self, block: RowBlock) -> None:
        for consumer in self.consumers:
            if self.error is None:
                self._attempt(lambda taker=consumer: taker.add(block))  # type: ignore[misc]

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of this call alone: the others of the pass go on
            self.error = error


class SharedPasses:
    """Full passes over the rows of a place, one at a time.

    Whoever comes while none is under way goes through the rows at once; all who come meanwhile
    share the next pass, which the first of them drives.
    """

    def __init__(
        self, drive: Callable[[Callable[[RowBlock], None], Sequence[Consumer]], None]
    ) -> None:
        """Take what hands all rows, for some consumers, to a function, block by block."""
        self._drive = drive
        self._change = threading.Condition()
        self._waiting: list[_Call] = []
        self._busy = False
        self.passes = 0

    def run(self, make: Callable[[], Made]) -> Made:
        """Hand all blocks to consumers.

        Args:
            make: Makes the consumers, when their pass begins.

        Returns:
            The consumers, after the pass.

        Raises:
            DataError: If the rows cannot be read.
            Exception: What a consumer of this call raised.
        """
        call = _Call(make)
        with self._change:
            self._waiting.append(call)
            try:
                while self._busy and not call.finished:
                    self._change.wait()
            except BaseException:
                if call in self._waiting:
                    self._waiting.remove(call)
                raise
            if not call.finished:
                self._busy = True
                calls, self._waiting = self._waiting, []
        if not call.finished:
            self._lead(calls)
        if call.error is not None:
            raise call.error
        return call.consumers  # type: ignore[return-value]

    def _lead(self, calls: list[_Call]) -> None:
        try:
            self.passes += 1
            for call in calls:
                call.start()
            consumers = [consumer for call in calls for consumer in call.consumers]
            self._drive(lambda block: _hand_out(block, calls), consumers)
        except Exception as error:
            for call in calls:
                call.error = call.error or error
        except BaseException:
            # An interrupt is the driver's own: whoever waited goes through the rows again.
            self._end(calls[:1], calls[1:])
            raise
        self._end(calls, [])

    def _end(self, finished: list[_Call], again: list[_Call]) -> None:
        with self._change:
            self._busy = False
            for call in finished:
                call.finished = True
            self._waiting[:0] = again
            self._change.notify_all()


class _Abandoned(Exception):
    """No call of a pass has use for its blocks any more."""


def _hand_out(block: RowBlock, calls: list[_Call]) -> None:
    for call in calls:
        call.add(block)
    if all(call.error is not None for call in calls):
        raise _Abandoned
