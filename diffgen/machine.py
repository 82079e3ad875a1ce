"""The machine this runs on, and the two rates that bound an exact denoiser on it.

A pass over N points of D features for B queries reads at least ``N D`` stored elements, and does
``4 B N D`` float32 operations: a product and a sum for the logits, and the same for the weighted
mean. The larger of the two times at the machine's own rates is the floor of the pass, and the floor
over the time taken the share of the machine's ceiling. The read rate is that of main memory: a set
that fits in the caches may be read faster.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

OPERATIONS = 4
"""float32 operations for each query, point and feature."""

_READ_BYTES = 1 << 28
_PRODUCT_SIZE = 1536
_TRIES = 5


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do at most.

    Attributes:
        read_gb_s: Bytes read from memory, 1e9 a second.
        fma_gf_s: float32 operations (a fused multiply-add is two), 1e9 a second.
        threads: Threads that did it.
        source: How they were measured.
    """

    read_gb_s: float
    fma_gf_s: float
    threads: int
    source: str

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of the rates of two measurements: other programs only take away from them."""
        return replace(
            self,
            read_gb_s=max(self.read_gb_s, other.read_gb_s),
            fma_gf_s=max(self.fma_gf_s, other.fma_gf_s),
        )

    def floor_ms(self, read_bytes: float, operations: float) -> float:
        """The least time, in milliseconds, that this much reading and arithmetic takes.

        Example:
            >>> Ceilings(20.0, 200.0, 2, "by hand").floor_ms(read_bytes=4e8, operations=1e9)
            20.0
        """
        return max(read_bytes / self.read_gb_s, operations / self.fma_gf_s) / 1e6

    def bound(self, read_bytes: float, operations: float) -> str:
        """What takes longer: ``"memory"`` or ``"arithmetic"``."""
        reading, computing = read_bytes / self.read_gb_s, operations / self.fma_gf_s
        return "memory" if reading >= computing else "arithmetic"


def measure(threads: int | None = None) -> Ceilings:
    """Measures both rates, in a fraction of a second.

    The native module has loops that do nothing else. Without it the sum of a large tensor and a
    product of matrices stand in, which reach less.

    Args:
        threads: How many, at least 1; None is ``torch.get_num_threads()``.

    Returns:
        The best of a few tries each.
    """
    count = torch.get_num_threads() if threads is None else threads
    try:
        from diffgen import _native  # type: ignore[attr-defined, unused-ignore]
    except ImportError:
        return measure_with_torch(count)
    read, fma = _native.measure_read_bandwidth(count), _native.measure_float_peak(count)
    return Ceilings(read / 1e9, fma / 1e9, count, "native loops")


def measure_with_torch(
    threads: int, read_bytes: int = _READ_BYTES, product_size: int = _PRODUCT_SIZE
) -> Ceilings:
    """Both rates from PyTorch operations: lower bounds of what the machine can do.

    Args:
        threads: How many PyTorch uses, kept as they are; recorded.
        read_bytes: Size of the tensor that is summed; larger than the caches.
        product_size: Rows and columns of the matrices that are multiplied.

    Returns:
        The best of a few tries each.
    """
    buffer = torch.ones(read_bytes // 4)
    reading = _best_seconds(buffer.sum)
    left = torch.ones(product_size, product_size)
    right, out = left.clone(), torch.empty_like(left)
    computing = _best_seconds(lambda: torch.mm(left, right, out=out))
    return Ceilings(
        read_bytes / reading / 1e9,
        2 * product_size**3 / computing / 1e9,
        threads,
        "a sum and a product in PyTorch",
    )


def cpu_name() -> str:
    """The processor's model, as the system names it.

    Example:
        >>> cpu_name() != ""
        True
    """
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


def cpu_count() -> int:
    """Logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _best_seconds(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_TRIES):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
