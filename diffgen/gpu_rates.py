"""What a GPU can do at most, by PyTorch's own kernels, and how work on it is timed.

The rates are lower bounds of what the chip can do, and what a pass on it is held against: see
`diffgen.machine`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffgen.machine import Ceilings

READ_BYTES = 2**30
SIZE = 8192
"""Rows and columns of the products."""

_TRIES = 5
_REPEATS = 3
"""Calls of a try: the GPU works on one while the next is launched."""

Clock = Callable[[Callable[[], object], int], float]
"""``(call, repeats)`` to mean seconds of a call."""


def event_seconds(call: Callable[[], object], repeats: int) -> float:
    """Mean time of a call on the current stream, between two CUDA events.

    Args:
        call: What puts work on the stream.
        repeats: How often it is called, at least 1.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def measure(
    device: torch.device,
    clock: Clock = event_seconds,
    read_bytes: int = READ_BYTES,
    size: int = SIZE,
) -> Ceilings:
    """Rates of reading memory and of float32 arithmetic.

    Args:
        device: The GPU, which is the current one.
        clock: How a call is timed.
        read_bytes: What is read at a time: more than caches hold.
        size: Rows and columns of the products.

    Returns:
        The best of a few tries each.
    """
    words = torch.ones(read_bytes // 4, device=device)
    reading = _best_seconds(words.sum, clock)
    del words
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator, device=device) for _ in range(2))
    out = torch.empty_like(left)
    computing = _best_seconds(lambda: torch.mm(left, right, out=out), clock)
    return Ceilings(
        read_gb_s=read_bytes / reading / 1e9,
        fma_gf_s=2 * size**3 / computing / 1e9,
        threads=torch.get_num_threads(),
        source="sum and product of PyTorch",
    )


def measure_integers(
    device: torch.device, clock: Clock = event_seconds, size: int = SIZE
) -> float | None:
    """The rate of products of 8-bit integers.

    Args:
        device: The GPU, which is the current one.
        clock: How a call is timed.
        size: Rows and columns of the products.

    Returns:
        Operations, 1e9 a second (a multiply-add is two); None where PyTorch has no such product.
    """
    generator = torch.Generator(device).manual_seed(0)
    left, right = (_bytes(size, generator) for _ in range(2))
    # The columns of the right factor are contiguous: the only order that the fast kernels take.
    columns = right.T
    try:
        seconds = _best_seconds(lambda: torch._int_mm(left, columns), clock)
    except RuntimeError:
        return None
    return 2 * size**3 / seconds / 1e9


def _bytes(size: int, generator: torch.Generator) -> Tensor:
    """Integers of 8 bits, none of them 0, ``(size, size)``."""
    made = torch.randint(
        -127, 128, (size, size), generator=generator, dtype=torch.int8, device=generator.device
    )
    return made.masked_fill_(made == 0, 1)


def _best_seconds(call: Callable[[], object], clock: Clock) -> float:
    call()
    return min(clock(call, _REPEATS) for _ in range(_TRIES))
