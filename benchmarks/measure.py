"""Runs a group of cases: prepare, gate, rounds in turn; keeps numbers, lets go of the tensors."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.cases import LARGEST_BATCH, OPERATIONS, Case
from benchmarks.contenders import Contender, Prepared
from benchmarks.gate import QUERIES, error_in_promises, reference
from benchmarks.images import decode, natural_images, noisy_queries
from benchmarks.timer import interleaved, peak_mib
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
        seconds: Time of the call in each round; empty after a failure.
        peak_mib: Memory of the first call beyond the data, or None where it cannot be told.
        error: Worst error in units of the promise; None after a failure.
        failure: Why there are no times; empty otherwise.
    """

    entry: Entry
    seconds: Sequence[float] = ()
    peak_mib: float | None = None
    error: float | None = None
    failure: str = ""


class Store:
    """What outlives a group: the 8-bit images of the longest set, and the results of reference."""

    def __init__(self, seed: int = 0) -> None:
        """Starts empty.

        Args:
            seed: Another one draws other queries.
        """
        self._seed = seed
        self._images: dict[tuple[int, int, int], Tensor] = {}
        self._exact: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def images(self, count: int, shape: tuple[int, int, int], dtype: str) -> Tensor:
        """``(N, *S)`` images, uint8 or their float32 twin; shorter sets begin longer ones."""
        kept = self._images.get(shape)
        if kept is None or kept.shape[0] < count:
            kept = self._images[shape] = natural_images(count, shape)
        return kept[:count] if dtype == "uint8" else decode(kept[:count])

    def queries(self, case: Case) -> Tensor:
        """``(B, *S)`` noisy points; smaller batches begin larger ones."""
        seed = zlib.crc32(f"queries at sigma {case.sigma:g}, seed {self._seed}".encode())
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(case.num_points, (LARGEST_BATCH,), generator=generator)
        points = decode(self.images(case.num_points, case.shape, "uint8")[chosen])
        return noisy_queries(points, case.sigma, seed)[: case.batch]

    def exact(self, case: Case, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logsumexp of the first queries of the case, by the definition."""
        key = (case.num_points, case.shape, case.dtype, case.sigma)
        if key not in self._exact:
            several = self.queries(replace(case, batch=QUERIES))
            self._exact[key] = reference(images, several, case.sigma)
        mean, logsumexp = self._exact[key]
        return mean[: case.batch], logsumexp[: case.batch]


def measure_group(entries: Sequence[Entry], store: Store) -> list[Measurement]:
    """Measures entries side by side.

    All sets and contenders of the group are held at once, since their rounds are taken in turn,
    and released on return.

    Args:
        entries: Of cases of one group, which have one shape.
        store: Where images, queries and their exact results come from.

    Returns:
        One measurement for each entry, in their order.
    """
    sets: dict[str, Tensor] = {}
    prepared: dict[tuple[int, str, str], Prepared] = {}
    measurements: list[Measurement] = []
    calls: list[Callable[[], object]] = []
    timed: list[Measurement] = []
    for entry in entries:
        case, contender = entry.case, entry.contender
        found = Measurement(entry)
        measurements.append(found)
        if case.dtype not in sets:
            largest = max(e.case.num_points for e in entries if e.case.dtype == case.dtype)
            sets[case.dtype] = store.images(largest, case.shape, case.dtype)
        images = sets[case.dtype][: case.num_points]
        query = store.queries(case)
        exact = store.exact(case, images)
        try:
            which = (case.num_points, case.dtype, contender.name)
            if which not in prepared:
                prepared[which] = contender.prepare(images)
            methods = prepared[which]
            call = OPERATIONS[case.operation].call(methods, query, case.sigma)
            found.peak_mib = peak_mib(call)
            found.error = _judge(methods, query, case.sigma, exact)
        except (MemoryError, NotImplementedError, RuntimeError) as error:
            found.failure = _reason(error)
        else:
            calls.append(call)
            timed.append(found)
    if calls:
        seconds = sum(case.seconds for case in {entry.case for entry in entries})
        for found, times in zip(timed, interleaved(calls, seconds), strict=True):
            found.seconds = times
    return measurements


def _judge(methods: Prepared, query: Tensor, sigma: float, exact: tuple[Tensor, Tensor]) -> float:
    mean = methods.denoise(query, sigma)[:QUERIES]
    mass = None if methods.logsumexp is None else methods.logsumexp(query, sigma)[:QUERIES]
    return error_in_promises(mean, mass, exact)


def _reason(error: Exception) -> str:
    """The failure of a row that says so; any other error is a fault of the benchmark."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "out of memory"
    if isinstance(error, NotImplementedError | BackendError):
        return str(error)
    raise error
