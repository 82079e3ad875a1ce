"""Initial weights from a generator, though PyTorch's layers draw from the global one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def drawn_from(generator: torch.Generator | None) -> Iterator[None]:
    """What is drawn inside from PyTorch's global CPU generator comes from this one instead.

    The global generator is as before afterwards.

    Args:
        generator: On the CPU; None leaves the global generator in charge.

    Example:
        >>> with drawn_from(torch.Generator().manual_seed(0)):
        ...     first = torch.nn.Linear(2, 2)
        >>> with drawn_from(torch.Generator().manual_seed(0)):
        ...     second = torch.nn.Linear(2, 2)
        >>> torch.equal(first.weight, second.weight)
        True
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds accelerators too, and those are not put back.
        torch.default_generator.manual_seed(seed)
        yield
