"""How the processes of a group find each other: two connections between each pair of them.

Addresses and secrets pass through the group's store. A connection counts once both sides have
shown that they know the other's secret, so that a stranger who knocks is turned away.
"""

from __future__ import annotations

import json
import secrets
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from diffgen.errors import ShardError
from diffgen.sharding.addresses import connect, listen_far, listen_near, machine_identity
from diffgen.sharding.board import Board
from diffgen.sharding.region import Region
from diffgen.sharding.words import named

KINDS = (0, 1)
"""Kinds of connection: data, watch."""

HELLO = struct.Struct("!16sIB")
"""What a caller says: the secret of the process that is called, its own rank, the kind."""

NETWORK = (socket.AF_INET, socket.AF_INET6)

STRANGER_S = 1.0
"""How long a caller may take to say who it is."""

BUFFER_BYTES = 4 << 20
"""Asked for at each end of a data connection: with TCP's usual ones it has a third of the speed."""


@dataclass(frozen=True)
class Line:
    """The two connections to another process, non-blocking.

    Attributes:
        data: Messages of the steps; nothing else reads or writes it.
        watch: Signs of life and reasons of failure, at any time.
        region: Memory of the other process; None when it shares none.
    """

    data: socket.socket
    watch: socket.socket
    region: Region | None

    @property
    def is_near(self) -> bool:
        """Whether the other process is on this machine; it sees that too."""
        return self.data.family not in NETWORK

    def close(self) -> None:
        """Close both, and let go of the memory."""
        self.data.close()
        self.watch.close()
        if self.region is not None:
            self.region.close()


def meet(
    board: Board, rank: int, size: int, timeout_s: float, patience_s: float
) -> tuple[dict[int, Line], Region | None]:
    """Connect this process with each other one of its group; each of them calls it.

    Args:
        board: Where the members leave messages for each other.
        rank: Of this process.
        size: Number of processes.
        timeout_s: Limit for connecting, once all have come.
        patience_s: Limit for all to come.

    Returns:
        The lines, by rank; and the memory of this process that those of its machine read.

    Raises:
        ShardError: Some did not come, or could not be reached: the message names them.
    """
    if size == 1:
        return {}, None
    machines = board.collect("machine", machine_identity(), patience_s)
    deadline = time.monotonic() + timeout_s
    near = {other for other in range(size) if machines[other] == machines[rank]} - {rank}
    secret = secrets.token_bytes(16)
    with ExitStack() as stack:
        listeners = {}
        card: dict[str, object] = {"secret": secret.hex()}
        if near:
            listeners["near"], card["near"] = listen_near(2 * size)
        if len(near) < size - 1:
            listeners["far"], card["far"] = listen_far(board.host(), 2 * size)
        for listener in listeners.values():
            stack.callback(listener.close)
        written = board.collect("card", json.dumps(card), timeout_s)
        cards = [json.loads(each) for each in written]
        meeting = _Meeting(
            rank, size, secret, [bytes.fromhex(each["secret"]) for each in cards], deadline
        )
        stack.callback(meeting.close)
        # Calls wait in the listener's queue until they are answered, so nobody waits in a circle.
        for other in range(rank):
            meeting.call(other, cards[other]["near" if other in near else "far"])
        above = set(range(rank + 1, size))
        for kind, others in (("near", above & near), ("far", above - near)):
            if others:
                meeting.answer(listeners[kind], others)
        meeting.confirm()
        meeting.share(near)
        return meeting.lines(), meeting.region


class _Meeting:
    """The connections made so far, by rank and kind."""

    def __init__(
        self, rank: int, size: int, secret: bytes, secrets: list[bytes], deadline: float
    ) -> None:
        self.rank = rank
        self.size = size
        self.secret = secret
        self.secrets = secrets
        self.deadline = deadline
        self.found: dict[tuple[int, int], socket.socket] = {}
        self.region: Region | None = None
        self.regions: dict[int, Region] = {}

    def left(self) -> float:
        """Seconds until the deadline; never 0, which would mean not to wait at all."""
        return max(0.001, self.deadline - time.monotonic())

    def call(self, other: int, address: list[str | int]) -> None:
        """Connect to a process of lower rank, and say who calls."""
        for kind in KINDS:
            try:
                self.found[other, kind] = connect(address, self.left())
                self.found[other, kind].sendall(HELLO.pack(self.secrets[other], self.rank, kind))
            except OSError as error:
                raise self.failure([other], f": {error}") from error

    def answer(self, listener: socket.socket, others: set[int]) -> None:
        """Take the calls of processes of higher rank."""
        missing = {(other, kind) for other in others for kind in KINDS}
        while missing:
            listener.settimeout(self.left())
            try:
                line = listener.accept()[0]
            except TimeoutError:
                raise self.failure({other for other, _ in missing}) from None
            caller = self.identify(line)
            if caller in missing:
                self.found[caller] = line
                missing.remove(caller)
            else:
                line.close()

    def identify(self, line: socket.socket) -> tuple[int, int] | None:
        """Who calls, after having answered; None for a stranger."""
        with suppress(OSError):
            line.settimeout(min(STRANGER_S, self.left()))
            said, other, kind = HELLO.unpack(_read(line, HELLO.size))
            if secrets.compare_digest(said, self.secret) and other < self.size:
                line.sendall(self.secrets[other])
                return other, kind
        return None

    def confirm(self) -> None:
        """Make sure that those who were called are who they should be."""
        for (other, _), line in self.found.items():
            if other < self.rank:
                try:
                    line.settimeout(self.left())
                    said = _read(line, len(self.secret))
                except OSError as error:
                    raise self.failure([other], f": {error}") from error
                if not secrets.compare_digest(said, self.secret):
                    raise self.failure([other], ": another program answers there")

    def share(self, near: set[int]) -> None:
        """Swap memory with the processes of this machine; all of them have some, or none has."""
        self.region = Region.create() if near else None
        for other in near:
            try:
                line = self.found[other, 0]
                given = [] if self.region is None else [self.region.descriptor]
                socket.send_fds(line, [b"."], given)
            except OSError as error:
                raise self.failure([other], f": {error}") from error
        for other in near:
            try:
                line = self.found[other, 0]
                line.settimeout(self.left())
                said, got, _, _ = socket.recv_fds(line, 1, 1)
                if not said:
                    raise ConnectionResetError("the connection was closed")
                if got:
                    self.regions[other] = Region(got[0])
            except OSError as error:
                raise self.failure([other], f": {error}") from error

    def lines(self) -> dict[int, Line]:
        """The lines; they are the caller's from here on."""
        for (_, kind), line in self.found.items():
            line.setblocking(False)
            if line.family in NETWORK:
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # Against firewalls that forget a connection on which nothing moves.
                line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if kind == 0:
                for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    line.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        found, self.found = self.found, {}
        regions, self.regions = self.regions, {}
        return {
            other: Line(found[other, 0], found[other, 1], regions.get(other))
            for other, kind in sorted(found)
            if kind == 0
        }

    def failure(self, others: Iterable[int], why: str = "") -> ShardError:
        """The error for processes that could not be reached."""
        return ShardError(f"{named(others, self.size)} could not be reached in step 'join'{why}")

    def close(self) -> None:
        """Close the connections that were not handed out."""
        for line in self.found.values():
            line.close()
        for region in self.regions.values():
            region.close()


def _read(line: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        piece = line.recv(count - len(got))
        if not piece:
            raise ConnectionResetError("the connection was closed")
        got += piece
    return got
