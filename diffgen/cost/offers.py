"""What each backend would take for a call on a set, or why it cannot."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from diffgen.backends import registry
from diffgen.backends.problem import Problem
from diffgen.backends.registry import Backend
from diffgen.cost.counts import SetSize, call_cost
from diffgen.cost.estimate import Estimate, estimate
from diffgen.cost.reading import Sample
from diffgen.cost.timing import time_in_memory, time_streamed

REFERENCE = "reference"

NOT_TIMED = "not timed: it is the definition that the others are held to"


@dataclass(frozen=True)
class Offer:
    """A backend for a call on a set.

    Attributes:
        name: Of the backend.
        reasons: Why it cannot run the call here; empty when it can.
        place: Where the rows are for it: ``"file"``, ``"memory"`` or ``"cuda"``.
        automatic: Whether ``backend="auto"`` may choose it.
        estimate: The time of the call; None when it cannot run, or is not timed.
    """

    name: str
    reasons: tuple[str, ...]
    place: str
    automatic: bool
    estimate: Estimate | None


def offer(
    backend: Backend,
    size: SetSize,
    batch: int,
    problem: Problem,
    on_gpu: Problem | None = None,
    sample: Sample | None = None,
) -> Offer:
    """What a backend would take for a call.

    Args:
        backend: Any.
        size: The set.
        batch: Noisy points of the call.
        problem: Some of its rows, in the memory of the CPU.
        on_gpu: The same on a GPU, where there is one: a backend that takes it there, and not on the
            CPU, is offered for rows that were copied to the GPU.
        sample: The rows, to be timed; None for the reasons alone.
    """
    reasons = registry.reasons_against(backend, problem)
    place, asked = "file" if size.stays else "memory", problem
    if reasons and on_gpu is not None:
        place, asked = "cuda", on_gpu
        reasons = _reasons_on_gpu(backend, on_gpu, size)
    if backend.name == REFERENCE:
        reasons = [NOT_TIMED]
    found = None
    if sample is not None and not reasons:
        cost = call_cost(size, batch, stays=place == "file")
        if place == "file":
            timing = time_streamed(backend, sample, asked, size.count)
            found = estimate(timing, cost, size.count, sample.reading.bytes_s)
        else:
            found = estimate(time_in_memory(backend, asked), cost, size.count, None)
    missing = backend.unavailable()
    if missing is not None:  # says more than what does not suit this set
        reasons = [missing, *(reason for reason in reasons if reason != missing)]
    return Offer(backend.name, tuple(reasons), place, backend.priority >= 0, found)


def _reasons_on_gpu(backend: Backend, problem: Problem, size: SetSize) -> list[str]:
    reasons = registry.reasons_against(backend, problem)
    total = torch.cuda.get_device_properties(problem.query.device).total_memory
    if size.rows_bytes > total:
        reasons = [
            *reasons,
            f"needs {size.rows_bytes / 1e9:.1f} GB of rows on a GPU of {total / 1e9:.1f} GB: shard "
            "the set, or leave the rows on the host",
        ]
    return reasons
