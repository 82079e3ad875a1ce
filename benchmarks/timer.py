"""The one timer: rounds that take every entry in turn, and time and memory of a first call."""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MIN_ROUNDS, MAX_ROUNDS = 3, 50
LONG_CALL = 1.5
"""Seconds from which one round has to do."""

SLOWEST_CALL = 10.0
"""Seconds of one call of a denoiser from which the first has to do."""

SHORTEST_ROUND = 2e-3
"""Seconds; a shorter call is repeated within its round, or the clock would be measured."""

FIRST_IS_COLD = 0.2
"""Seconds; a first call that is shorter says little about the next."""

SETTLE = 0.008
"""Seconds before each timed call: OpenMP threads spin for milliseconds after their work, and would
take the cores of the next contender. Spent in a loop: after a longer sleep, calls of a few
milliseconds take up to twice their time on a virtual machine."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Timed:
    """A call to be timed.

    Attributes:
        call: What to time.
        first: Seconds of its first call.
        seconds: Time for its rounds.
    """

    call: Callable[[], object]
    first: float
    seconds: float

    def plan(self) -> tuple[int, int]:
        """How many rounds it takes part in, and how many calls are in each."""
        estimate = seconds_of(self.call) if self.first < FIRST_IS_COLD else self.first
        if estimate > LONG_CALL:
            return 1, 1
        repeats = max(1, math.ceil(SHORTEST_ROUND / max(estimate, 1e-9)))
        rounds = int(self.seconds / max(repeats * estimate, 1e-9))
        return min(MAX_ROUNDS, max(MIN_ROUNDS, rounds)), repeats


@dataclass(frozen=True)
class FirstCall:
    """What a first call gave and took.

    Attributes:
        result: What it returned.
        seconds: Its time.
        peak_mib: The most memory it held beyond what the process held before, in MiB, or None
            where the kernel offers no such mark (it is Linux's).
    """

    result: object
    seconds: float
    peak_mib: float | None


def seconds_of(call: Callable[[], object], repeats: int = 1) -> float:
    """Mean time of a call over ``repeats`` calls in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def settle() -> None:
    """Waits for ``SETTLE`` without giving up the processor."""
    end = time.perf_counter() + SETTLE
    while time.perf_counter() < end:
        pass


def interleaved(entries: Sequence[Timed]) -> list[list[float]]:
    """Times the entries in rounds A B C A B C ..., so that a drift of the machine hits all alike.

    A slow entry takes part in fewer rounds than a fast one, spread evenly over them all.

    Args:
        entries: What to time; each has been called.

    Returns:
        For each entry, its time in every round it took part in, in seconds.
    """
    plans = [entry.plan() for entry in entries]
    rounds = max((share for share, _ in plans), default=0)
    times: list[list[float]] = [[] for _ in entries]
    gc.collect()
    gc.disable()
    try:
        for index in range(rounds):
            for entry, (share, repeats), mine in zip(entries, plans, times, strict=True):
                if (index + 1) * share // rounds > index * share // rounds:
                    settle()
                    mine.append(seconds_of(entry.call, repeats))
    finally:
        gc.enable()
    return times


def first_call(call: Callable[[], object]) -> FirstCall:
    """Calls once, and watches time and memory.

    Memory is the high-water mark of the resident set, reset before the call, so that native
    allocations count as well. What an earlier call has kept is not counted again.
    """
    gc.collect(0)  # all generations take longer than most calls
    watched = _CLEAR.exists()
    before = 0
    if watched:
        _return_free_memory()
        _CLEAR.write_text("5")  # resets VmHWM
        before = _status_kib("VmRSS")
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    peak = max(0.0, (_status_kib("VmHWM") - before) / 1024) if watched else None
    return FirstCall(result, seconds, peak)


def _return_free_memory() -> None:
    """Hands freed memory back to the system, or a call could use it unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_kib(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise OSError(f"{_STATUS} has no {key}")


@dataclass
class ReplayClock:
    """A clock that advances by given durations instead of by itself.

    Rounds of different tests have to be taken in turn, and pytest-benchmark runs one test after
    the other. So the rounds are made first, and each test hands its own to pytest-benchmark: a
    timed call of ``advance`` lasts exactly the next of them.
    """

    time: float = 0.0
    pending: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        """The time now, in seconds."""
        return self.time

    def load(self, durations: Sequence[float]) -> None:
        """Sets what the coming calls of ``advance`` last."""
        self.time, self.pending = 0.0, list(reversed(durations))

    def advance(self) -> None:
        """Passes the next duration."""
        if self.pending:
            self.time += self.pending.pop()
