"""Who is alive, and why a rank has failed: a thread beside the work of each process.

It sends a sign of life on every line and reads those of the others, so that a process whose main
thread computes for an hour counts as alive, and one that is stopped does not. What it learns
wakes the thread that waits in a step.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from diffgen.sharding.words import named

FRAME = struct.Struct("!cQH")
"""A letter, the number of calls begun so far, the bytes of a text that follows. The letter is
``B`` for a sign of life; ``F`` for a failure in the last of the calls, with its reason; ``L`` when
the process leaves in good order."""

LONGEST_BEAT_S = 1.0
BEATS_PER_TIMEOUT = 8

LONGEST_REASON = 16384
"""Bytes of a reason that are sent: they have to fit into the connection at once."""

LAST_WORDS_S = 0.5
"""How long to wait for the reason of a process whose data connection has ended."""


class Watch:
    """The watch connections to the other ranks, and the thread that looks after them."""

    def __init__(self, size: int, lines: Mapping[int, socket.socket], timeout_s: float) -> None:
        """Start the thread.

        Args:
            size: Number of ranks, for messages.
            lines: Non-blocking connections, by rank.
            timeout_s: A rank from which nothing is heard for so long counts as stopped.
        """
        self._size = size
        self._lines = dict(lines)
        self._timeout_s = timeout_s
        self._beat_s = min(LONGEST_BEAT_S, timeout_s / BEATS_PER_TIMEOUT)
        # So that the error is there within the timeout, not a beat after it.
        self._silence_s = timeout_s - 2 * self._beat_s
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._heard = dict.fromkeys(lines, time.monotonic())
        self._calls = dict.fromkeys(lines, 0)
        self._gone: dict[int, str] = {}
        self._failure: tuple[int, str] | None = None
        self._silent: set[int] = set()
        self._own_call = 0
        self._received = {rank: bytearray() for rank in lines}
        self.wake, self._waker = socket.socketpair()
        self._end, self._ender = socket.socketpair()
        for end in (self.wake, self._waker):
            end.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="diffgen-watch", daemon=True)
        self._thread.start()

    def begin(self, call: int) -> None:
        """Note that this process has begun a call; the others hear of it with the next beat."""
        self._own_call = call

    def late(self) -> set[int]:
        """Ranks that have not begun this process's call."""
        with self._changed:
            return {rank for rank, begun in self._calls.items() if begun < self._own_call}

    def trouble(self, step: str) -> str | None:
        """Why a step cannot be: a rank has told of a failure, or is silent. Else None.

        A rank that failed in a later call has done all of this one, which can be completed.
        """
        with suppress(BlockingIOError):
            while self.wake.recv(64):
                pass
        with self._changed:
            if self._failure is not None and self._failure[0] <= self._own_call:
                return self._failure[1]
            if self._silent:
                who = named(self._silent, self._size)
                return f"{who} gave no sign of life for {self._timeout_s:g} s in step '{step}'"
        return None

    def gone(self, wait: bool = False) -> set[int]:
        """Ranks that have ended or left; with ``wait``, give one that just did time to be seen."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._gone, LAST_WORDS_S)
            return set(self._gone)

    def last_words(self, rank: int, step: str) -> str:
        """Why a rank whose data connection has ended takes no part in a step."""
        with self._changed:
            self._changed.wait_for(lambda: rank in self._gone, LAST_WORDS_S)
            reason = self._gone.get(rank, "")
        # What a rank has told names the step itself.
        return (
            reason or f"{named([rank], self._size)} has ended (or its connection) in step '{step}'"
        )

    def tell(self, reason: str) -> None:
        """Tell all others that this process has failed in its call."""
        self._send(b"F", reason.encode()[:LONGEST_REASON])

    def leave(self) -> None:
        """End the thread, tell the others, and close the connections."""
        with suppress(OSError):
            self._ender.send(b".")
        if self._thread is not threading.current_thread():
            self._thread.join(LONGEST_BEAT_S)
        self._send(b"L")
        self.abandon()

    def abandon(self) -> None:
        """Close the connections without a word, as a forked child does with its copies."""
        for end in (*self._lines.values(), self.wake, self._waker, self._end, self._ender):
            end.close()

    def _send(self, letter: bytes, text: bytes = b"") -> None:
        frame = FRAME.pack(letter, self._own_call, len(text)) + text
        with self._sending:
            for line in self._lines.values():
                # One that is full belongs to a process that does not read: it will be found out.
                with suppress(OSError):
                    line.send(frame)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._end, selectors.EVENT_READ)
            for rank, line in self._lines.items():
                selector.register(line, selectors.EVENT_READ, rank)
            next_beat = time.monotonic()
            while True:
                ready = selector.select(max(0.0, next_beat - time.monotonic()))
                now = time.monotonic()
                for key, _ in ready:
                    if key.data is None:
                        return
                    if not self._read(key.data, now):
                        selector.unregister(key.fileobj)
                # Time in which this process itself was stopped is nobody's silence.
                own_absence = now - next_beat
                if own_absence > self._beat_s:
                    self._forgive(own_absence)
                if now >= next_beat:
                    self._send(b"B")
                    next_beat = now + self._beat_s
                self._judge(now)

    def _forgive(self, seconds: float) -> None:
        with self._changed:
            for rank in self._heard:
                self._heard[rank] += seconds

    def _judge(self, now: float) -> None:
        with self._changed:
            silent = {
                rank
                for rank, heard in self._heard.items()
                if rank not in self._gone and now - heard > self._silence_s
            }
            new = silent - self._silent
            self._silent = silent
        if new:
            self._notify()

    def _read(self, rank: int, now: float) -> bool:
        """Take what has come from a rank; False when nothing more will."""
        try:
            piece = self._lines[rank].recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            piece = b""
        with self._changed:
            if not piece:
                self._gone.setdefault(rank, "")
                self._changed.notify_all()
                return False
            self._heard[rank] = now
            told = self._parse(rank, piece)
            self._changed.notify_all()
        if told:
            self._notify()
        return True

    def _parse(self, rank: int, piece: bytes) -> bool:
        """Take the frames out of the bytes; True when one of them tells of a failure."""
        buffer = self._received[rank]
        buffer += piece
        told = False
        while len(buffer) >= FRAME.size:
            letter, call, length = FRAME.unpack_from(buffer)
            end = FRAME.size + length
            if len(buffer) < end:
                break
            reason = buffer[FRAME.size : end].decode(errors="replace")
            del buffer[:end]
            self._calls[rank] = call
            if letter == b"L":
                left = f"{named([rank], self._size)} has left: it let go of its part"
                self._gone.setdefault(rank, left)
            elif letter == b"F":
                self._gone[rank] = reason
                self._failure = min(self._failure or (call, reason), (call, reason))
                told = True
        return told

    def _notify(self) -> None:
        with suppress(OSError):
            self._waker.send(b".")
