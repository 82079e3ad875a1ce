"""One message each way over a connection that does not block."""

from __future__ import annotations

import selectors
import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diffgen.sharding.region import Region

if TYPE_CHECKING:
    from typing_extensions import Buffer

HEADER = struct.Struct("!cQHHQ")
"""Kind; number of the call; bytes of the step's name, of what is sent, and of the message."""

INLINE, SHARED, TAKEN = b"M", b"S", b"T"
"""Kinds: a message that follows; one in the sender's memory; the receipt for that."""

Title = tuple[int, str, str]
"""Number of the call, name of the step, what is sent."""


class Mismatch(Exception):
    """The other end is doing something else."""


class Channel:
    """What is still to be sent to a process and to be received from it."""

    def __init__(
        self, line: socket.socket, region: Region | None, title: Title, ends: tuple[str, str]
    ) -> None:
        """Nothing to be done yet.

        Args:
            line: A connection that does not block.
            region: Memory of the other end; None when it shares none.
            title: What both ends are doing.
            ends: The other end and this one, for messages.
        """
        self.line = line
        self.message = memoryview(b"")
        self._region = region
        self._title = title
        self._ends = ends
        self._out: list[memoryview] = []
        self._place: memoryview | None = None
        self._message_awaited = False
        self._receipt_awaited = False
        self._parts = self._read()
        self._room: memoryview | None = memoryview(b"")

    def send(self, message: Buffer, shared: bool) -> None:
        """Have a message sent.

        Args:
            message: Its bytes.
            shared: They are in this process's memory already, for the other end to read.
        """
        body = memoryview(message).cast("B")
        call, step, what = self._title
        texts = step.encode(), what.encode()
        kind = SHARED if shared else INLINE
        header = HEADER.pack(kind, call, len(texts[0]), len(texts[1]), len(body))
        self._out.append(memoryview(header + b"".join(texts)))
        if shared:
            self._receipt_awaited = True
        elif body:
            self._out.append(body)

    def expect(self, place: memoryview | None) -> None:
        """Have a message received, at a place of its size or in a new buffer."""
        self._place = place
        self._message_awaited = True

    @property
    def events(self) -> int:
        """What to wait for."""
        return (selectors.EVENT_WRITE if self._out else 0) | (
            selectors.EVENT_READ if self._awaiting() else 0
        )

    def move(self) -> bool:
        """Send and receive what can be without waiting.

        Returns:
            Whether all is done.

        Raises:
            OSError: The connection has ended.
            Mismatch: The other end is doing something else.
        """
        self._write()
        try:
            while self._awaiting() and self._room is not None:
                if self._room:
                    count = self.line.recv_into(self._room)
                    if count == 0:
                        raise ConnectionResetError("the connection was closed")
                    self._room = self._room[count:]
                else:
                    self._room = next(self._parts, None)
        except BlockingIOError:
            pass
        self._write()
        return not self.events

    def _awaiting(self) -> bool:
        return self._message_awaited or self._receipt_awaited

    def _write(self) -> None:
        try:
            while self._out:
                count = self.line.sendmsg(self._out)
                while self._out and count >= len(self._out[0]):
                    count -= len(self._out.pop(0))
                if self._out:
                    self._out[0] = self._out[0][count:]
        except BlockingIOError:
            pass

    def _read(self) -> Iterator[memoryview]:
        """The places that are filled in turn with what comes."""
        while self._awaiting():
            head = bytearray(HEADER.size)
            yield memoryview(head)
            kind, call, step_bytes, what_bytes, size = HEADER.unpack(head)
            if kind == TAKEN:
                self._receipt_awaited = False
                continue
            texts = bytearray(step_bytes + what_bytes)
            yield memoryview(texts)
            self._check(call, texts[:step_bytes].decode(), texts[step_bytes:].decode())
            place = memoryview(bytearray(size)) if self._place is None else self._place
            if kind == SHARED:
                assert self._region is not None
                self._region.read(place)
                self._out.append(memoryview(HEADER.pack(TAKEN, call, 0, 0, 0)))
            else:
                yield place
            self.message = place
            self._message_awaited = False

    def _check(self, call: int, step: str, what: str) -> None:
        other, own = self._ends
        own_call, own_step, own_what = self._title
        if (call, step) != (own_call, own_step):
            raise Mismatch(
                f"{other} is in step '{step}' (its call {call}), {own} in step '{own_step}' (its "
                f"call {own_call}): all ranks must make the same calls in the same order"
            )
        if what != own_what:
            raise Mismatch(f"{other} brings {what} to step '{step}', {own} {own_what}")
