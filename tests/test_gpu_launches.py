"""How much a call of the Triton backend asks of the host: launches of kernels and of PyTorch's.

Small batches take as long as Python needs to launch what they consist of.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from gates.fake_gpu import fake_gpu
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

ROWS = 50_000
"""Of CIFAR-10's features: one wave, 49 segments."""

FREE = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "select", "slice", "view"})
"""Operations of PyTorch that start nothing on the device."""


class _Started(TorchDispatchMode):
    """Counts the operations of PyTorch that start something."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name not in FREE:
            self.counts[f"torch.{name}"] += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def launches() -> Iterator[Counter[str]]:
    """Counts what is started on a GPU that is not there."""
    from triton.runtime.jit import JITFunction

    from diffgen.backends.triton import driver

    counts: Counter[str] = Counter()

    def run(kernel: Any, *_: Any, **__: Any) -> None:
        counts[kernel.__name__] += 1

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(driver, "_on", lambda _: contextlib.nullcontext()),
        fake_gpu("sm_90"),
        _Started(counts),
    ):
        yield counts


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize(
    ("storage", "batch", "most"),
    [
        (torch.uint8, 1, 19),
        (torch.uint8, 64, 19),
        (torch.uint8, 256, 19),
        (torch.float32, 1, 14),
        (torch.float32, 64, 14),
        (torch.float32, 256, 18),
        (torch.bfloat16, 1, 14),
        (torch.float64, 1, 12),
    ],
)
def test_a_call_launches_no_more_than_it_did(
    storage: torch.dtype, batch: int, most: int, everything: bool
) -> None:
    from gates.triton_problems import problem

    from diffgen.backends.triton import driver

    with launches() as counts:
        given = problem(storage, batch=batch, rows=ROWS, everything=everything)
        counts.clear()
        driver.moments(given, False, 0, torch.float32)
    assert counts.total() <= most, counts
