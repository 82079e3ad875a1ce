"""Messages between this process and the others, as many at once as a step needs.

All connections move together, whatever the sizes, so that no two processes wait for each other
to read first. Waiting is left to the kernel: it takes no time of a core, ends at once when a
connection ends, and signals interrupt it.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from diffgen.errors import ShardError
from diffgen.sharding.channel import Channel, Mismatch
from diffgen.sharding.region import Region
from diffgen.sharding.rendezvous import Line
from diffgen.sharding.watch import Watch
from diffgen.sharding.words import named

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Lines:
    """The connections of this process to the others, and the watch over who is alive."""

    def __init__(
        self,
        rank: int,
        lines: Mapping[int, Line],
        region: Region | None,
        timeout_s: float,
        patience_s: float,
    ) -> None:
        """Begin to watch.

        Args:
            rank: Of this process.
            lines: The connections to each other one, in rank order.
            region: The memory of this process that those of its machine read.
            timeout_s: Limit for a process that gives no sign of life, in seconds.
            patience_s: Limit for one that lives and does not take part, in seconds.
        """
        self.rank = rank
        self.size = size = len(lines) + 1
        self.bytes_sent = 0
        self._call = 0
        self._step = ""
        self.others = list(lines)
        # Memory is read by all at once, while a network carries to each on its own.
        self.on_one_machine = all(line.is_near for line in lines.values())
        self._lines = dict(lines)
        self._region = region
        self._patience_s = patience_s
        self._watch = Watch(size, {other: line.watch for other, line in lines.items()}, timeout_s)

    def begin(self, step: str) -> None:
        """Count a call, under the name of its step."""
        self._call += 1
        self._step = step
        self._watch.begin(self._call)

    def check(self) -> None:
        """Raise ``ShardError`` when another rank has failed or is silent."""
        reason = self._watch.trouble(self._step)
        if reason is not None:
            raise ShardError(reason)

    def transfer(
        self,
        what: str,
        message: Buffer,
        receivers: Iterable[int],
        incoming: Mapping[int, memoryview | None],
    ) -> dict[int, memoryview]:
        """Send a message, and receive others.

        Args:
            what: Type and shape of the messages; the same at both ends, or it is an error.
            message: What is sent.
            receivers: To whom.
            incoming: Where messages go, by sender; None for a new buffer of the size that comes.

        Returns:
            The messages that came, by sender.

        Raises:
            ShardError: A process has ended, is stopped, does something else, or does not come.
        """
        receivers = set(receivers)
        title = self._call, self._step, what
        channels = {
            other: Channel(
                self._lines[other].data,
                self._lines[other].region,
                title,
                (named([other], self.size), f"rank {self.rank}"),
            )
            for other in sorted({*receivers, *incoming}, key=self._distance)
        }
        neighbours = {other for other in receivers if self._lines[other].region is not None}
        shared = bool(neighbours) and self._region is not None and self._region.write(message)
        for other in receivers:
            channels[other].send(message, shared and other in neighbours)
        for other, place in incoming.items():
            channels[other].expect(place)
        self._move_all(channels)
        self.bytes_sent += memoryview(message).nbytes * len(receivers)
        return {other: channels[other].message for other in incoming}

    def gone(self) -> set[int]:
        """Ranks that have ended or left."""
        return self._watch.gone()

    def loss(self, otherwise: str = "") -> ShardError:
        """The error for ranks that have ended or left, or for something else where none has."""
        gone = self._watch.gone(wait=True)
        if gone:
            return ShardError(self._watch.last_words(min(gone), self._step))
        return ShardError(f"{otherwise} in step '{self._step}'")

    def tell(self, reason: str) -> None:
        """Tell the others that this process has failed in its call."""
        self._watch.tell(reason)

    def close(self) -> None:
        """Tell the others that this process leaves, and close the connections."""
        self._watch.leave()
        self._close()

    def abandon(self) -> None:
        """Close this process's copies of the connections, which are another's: after a fork."""
        self._watch.abandon()
        self._close()

    def _close(self) -> None:
        for line in self._lines.values():
            line.close()
        if self._region is not None:
            self._region.close()

    def _distance(self, other: int) -> int:
        # Each begins with another receiver, so that no one of them is rushed by all.
        return (other - self.rank) % self.size

    def _move_all(self, channels: Mapping[int, Channel]) -> None:
        deadline = time.monotonic() + self._patience_s
        pending = {other for other in channels if not self._move(other, channels[other])}
        if not pending:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self._watch.wake, selectors.EVENT_READ)
            for other in pending:
                channel = channels[other]
                selector.register(channel.line, channel.events, other)
            while pending:
                ready = selector.select(deadline - time.monotonic())
                if not ready and time.monotonic() > deadline:
                    raise self._no_show(pending)
                for key, _ in ready:
                    if key.data is None:
                        self.check()
                        continue
                    channel = channels[key.data]
                    if self._move(key.data, channel):
                        pending.remove(key.data)
                        selector.unregister(channel.line)
                    elif channel.events != key.events:
                        selector.modify(channel.line, channel.events, key.data)

    def _move(self, other: int, channel: Channel) -> bool:
        try:
            return channel.move()
        except OSError as error:
            raise ShardError(self._watch.last_words(other, self._step)) from error
        except Mismatch as error:
            raise ShardError(str(error)) from error

    def _no_show(self, pending: Iterable[int]) -> ShardError:
        # Who is waited for may itself wait for a rank that has not come.
        late = self._watch.late()
        who = named(late or pending, self.size)
        how = "come to" if late else "finished"
        return ShardError(
            f"{who} lives but has not {how} step '{self._step}' within {self._patience_s:g} s"
        )
