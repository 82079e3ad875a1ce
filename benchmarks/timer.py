"""The one timer: rounds that take every entry in turn, and the memory of a call."""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MIN_ROUNDS, MAX_ROUNDS = 5, 200
SHORTEST_ROUND = 2e-3
"""Seconds; a shorter call is repeated within its round, or the clock would be measured."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def seconds_of(call: Callable[[], object], repeats: int = 1) -> float:
    """Mean time of a call over ``repeats`` calls in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleaved(calls: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Times the calls in rounds A B C A B C ..., so that a drift of the machine hits all alike.

    Each is called once, untimed, to warm up and once to choose the number of rounds.

    Args:
        calls: What to time.
        seconds: Time to spend on all rounds; at least ``MIN_ROUNDS`` are made.

    Returns:
        For each call, its time in every round, in seconds.
    """
    for call in calls:
        call()
    first = [seconds_of(call) for call in calls]
    repeats = [max(1, math.ceil(SHORTEST_ROUND / t)) for t in first]
    round_time = sum(t * n for t, n in zip(first, repeats, strict=True))
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(seconds / max(round_time, 1e-9))))
    times: list[list[float]] = [[] for _ in calls]
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for call, n, mine in zip(calls, repeats, times, strict=True):
                mine.append(seconds_of(call, n))
    finally:
        gc.enable()
    return times


def peak_mib(call: Callable[[], object]) -> float | None:
    """The most memory that a call holds beyond what the process held before, in MiB.

    The high-water mark of the resident set, reset before the call, so that native allocations
    count as well. Memory kept from an earlier call is not counted again, hence: measure the first.

    Returns:
        MiB, or None where the kernel offers no such mark (it is Linux's).
    """
    gc.collect()
    if not _CLEAR.exists():
        call()
        return None
    _return_free_memory()
    _CLEAR.write_text("5")  # resets VmHWM
    before = _status_kib("VmRSS")
    call()
    return max(0.0, (_status_kib("VmHWM") - before) / 1024)


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
