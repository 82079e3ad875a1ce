"""What a GPU can do at most: the rates that its rows are held against."""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffgen.machine import Ceilings

READ_BYTES = 2**30
SIZE = 8192
"""Rows and columns of the products."""

TRIES = 5


def measure(device: torch.device, read_bytes: int = READ_BYTES, size: int = SIZE) -> Ceilings:
    """Rates of reading memory and of float32 arithmetic, by PyTorch's own kernels.

    Args:
        device: Of a GPU.
        read_bytes: What is read at a time: more than caches hold.
        size: Rows and columns of the products.
    """
    words = torch.ones(read_bytes // 4, device=device)
    left, right = (torch.ones(size, size, device=device) for _ in range(2))
    return Ceilings(
        read_gb_s=read_bytes / _best_seconds(words.sum, device) / 1e9,
        fma_gf_s=2 * size**3 / _best_seconds(lambda: left @ right, device) / 1e9,
        threads=torch.get_num_threads(),
        source="sum and product of PyTorch",
    )


def measure_integers(device: torch.device, size: int = SIZE) -> float | None:
    """Operations on 8-bit integers, 1e9 a second; None where PyTorch has no product of them."""
    left, right = (torch.ones(size, size, dtype=torch.int8, device=device) for _ in range(2))
    try:
        seconds = _best_seconds(lambda: torch._int_mm(left, right), device)
    except RuntimeError:
        return None
    return 2 * size**3 / seconds / 1e9


def _best_seconds(call: Callable[[], object], device: torch.device) -> float:
    call()
    best = float("inf")
    for _ in range(TRIES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(torch.cuda.current_stream(device))
        call()
        end.record(torch.cuda.current_stream(device))
        end.synchronize()
        best = min(best, float(start.elapsed_time(end)) / 1e3)
    return best
