"""Runs a group of cases: prepare, gate, rounds in turn; keeps numbers, lets go of the tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contender import Contender, Prepared
from benchmarks.gate import QUERIES, error_in_promises
from benchmarks.operations import OPERATIONS
from benchmarks.store import Store
from benchmarks.timer import SLOWEST_CALL, FirstCall, Timed, first_call, interleaved
from diffgen import BackendError


@dataclass(frozen=True)
class Entry:
    """A contender in a case: one row of the results."""

    case: Case
    contender: Contender

    @property
    def key(self) -> tuple[str, str]:
        """What identifies it."""
        return self.case.name, self.contender.name


@dataclass
class Measurement:
    """What was found of one entry.

    Attributes:
        entry: Whose.
        data: What the images are.
        seconds: Time of the call in each round; empty after a failure, or where none was wanted.
        peak_mib: Memory of the first call beyond the data, or None where it cannot be told.
        error: Worst error in units of the promise; None after a failure.
        failure: Why there are no times; empty otherwise.
        stopped: Whether one call took so long that it had to do.
        fault: Whether the failure is one of diffgen, which no contender's row may hide.
        backend: The backend of diffgen that ran, where it was asked; empty otherwise.
    """

    entry: Entry
    data: str = ""
    seconds: Sequence[float] = ()
    peak_mib: float | None = None
    error: float | None = None
    failure: str = ""
    stopped: bool = False
    fault: bool = False
    backend: str = ""


Slow = dict[tuple[str, str], int]
"""Set and contender, to the smallest batch at which one call had to do."""


def measure_group(
    entries: Sequence[Entry], store: Store, slow: Slow | None = None
) -> list[Measurement]:
    """Measures entries side by side.

    Args:
        entries: Of cases of one group, which share set and shape.
        store: Where images, queries, exact results and prepared contenders come from.
        slow: Contenders that were too slow before, which are not called again with as large a
            batch; it is added to.

    Returns:
        One measurement for each entry, in their order.
    """
    slow = {} if slow is None else slow
    data = store.open([entry.case for entry in entries])
    measurements = [Measurement(entry, data) for entry in entries]
    timed: dict[int, Timed] = {}
    for index, found in enumerate(measurements):
        try:
            entered = _enter(found, store, slow)
        except Exception as error:
            _note_failure(found, error)
        else:
            if entered is not None:
                timed[index] = entered
    for index, times in zip(timed, interleaved(list(timed.values())), strict=True):
        measurements[index].seconds = times
    return measurements


def note_slow(found: Measurement, slow: Slow) -> None:
    """Keeps in mind that a contender took too long."""
    case = found.entry.case
    if found.stopped and case.operation == "denoise":
        key = (case.data, found.entry.contender.name)
        slow[key] = min(case.batch, slow.get(key, case.batch))


def _enter(found: Measurement, store: Store, slow: Slow) -> Timed | None:
    """Judges an entry by a first call; returns what is to be timed in rounds, if anything."""
    case, contender = found.entry.case, found.entry.contender
    limit = slow.get((case.data, contender.name))
    if limit is not None and case.batch >= limit:
        needs = f"needs over {SLOWEST_CALL:g} s a call at B={limit}"
        raise NotImplementedError(f"not called: {needs}")
    operation = OPERATIONS[case.operation]
    query = store.queries(case)
    exact = store.exact(case)
    methods = store.prepared(contender, case)
    if contender.builds:
        operation.call(methods, query[:2], case.sigma)()
    call = operation.call(methods, query, case.sigma)
    first = first_call(call)
    found.peak_mib = first.peak_mib
    found.error = _judge(methods, case, query, exact, first)
    if not case.timed:
        return None
    if first.seconds > SLOWEST_CALL * operation.calls:
        found.seconds, found.stopped = [first.seconds], True
        note_slow(found, slow)
        return None
    return Timed(call, first.seconds, case.seconds)


def _judge(
    methods: Prepared, case: Case, query: Tensor, exact: tuple[Tensor, Tensor], first: FirstCall
) -> float:
    """The error of the first queries: of the timed call where it gives the mean at sigma."""
    few = query[:QUERIES]
    if OPERATIONS[case.operation].gives_mean:
        assert isinstance(first.result, Tensor)
        mean = first.result[:QUERIES]
    else:
        mean = methods.denoise(few, case.sigma)
    mass = None if methods.logsumexp is None else methods.logsumexp(few, case.sigma)
    return error_in_promises(mean, mass, exact)


def _note_failure(found: Measurement, error: Exception) -> None:
    """A contender that fails is a row that says so, and a fault if it is diffgen."""
    found.seconds, found.error = (), None
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        found.failure = "out of memory"
    elif isinstance(error, ImportError):
        missing = error.name or str(error)
        found.failure = f"not installed: {missing} (pip install 'diffgen[bench]')"
    elif isinstance(error, NotImplementedError):
        found.failure = str(error)
    else:
        # No path of this machine in the results.
        message = re.sub(r"(?<![\w.])/[\w./+-]+", "...", (str(error).splitlines() or [""])[0])
        found.failure = f"{type(error).__name__}: {message[:160]}"
        found.fault = found.entry.contender.ours and not isinstance(error, BackendError)
