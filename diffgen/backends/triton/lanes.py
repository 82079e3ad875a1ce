"""Copies of rows from host memory to a device, beside the kernels that read them.

A lane has two slots. ``fetch`` starts a copy into one, ``take`` makes what is launched from then on
wait for it, ``release`` says that what was launched so far is all that reads it. Nothing waits on
the host.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class CopyLane(Protocol):
    """Two slots for rows, and copies into them."""

    def open(self, shape: tuple[int, int], dtype: torch.dtype, slots: int) -> None:
        """Makes room for so many slots of ``shape``; both are free."""

    def fetch(self, slot: int, rows: Tensor) -> None:
        """Starts to copy rows into a slot, once what reads it has run."""

    def take(self, slot: int) -> Tensor:
        """The rows of a slot, for kernels launched from now on."""

    def release(self, slot: int) -> None:
        """Leaves a slot to the next fetch."""


class InOrder:
    """A lane for a device that runs what it is told in order: each copy at once."""

    def __init__(self, device: torch.device) -> None:
        """Takes the device of the slots."""
        self.device = device
        self.slots: list[Tensor] = []
        self.rows = [0, 0]

    def open(self, shape: tuple[int, int], dtype: torch.dtype, slots: int) -> None:
        """See ``CopyLane``."""
        self.slots = [torch.empty(shape, dtype=dtype, device=self.device) for _ in range(slots)]

    def fetch(self, slot: int, rows: Tensor) -> None:
        """See ``CopyLane``."""
        self.rows[slot] = len(rows)
        self.slots[slot][: len(rows)].copy_(rows, non_blocking=True)

    def take(self, slot: int) -> Tensor:
        """See ``CopyLane``."""
        return self.slots[slot][: self.rows[slot]]

    def release(self, slot: int) -> None:
        """See ``CopyLane``."""


class OnAStream(InOrder):
    """A lane of its own stream on a CUDA device. Copies from pinned memory overlap kernels."""

    def __init__(self, device: torch.device) -> None:
        """Takes the device of the slots."""
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)
        self.copied = [torch.cuda.Event(), torch.cuda.Event()]
        self.read = [torch.cuda.Event(), torch.cuda.Event()]

    def open(self, shape: tuple[int, int], dtype: torch.dtype, slots: int) -> None:
        """See ``CopyLane``."""
        super().open(shape, dtype, slots)
        for slot in range(slots):
            # The memory may be that of a tensor whose readers have yet to run.
            self.release(slot)
            self.slots[slot].record_stream(self.stream)

    def fetch(self, slot: int, rows: Tensor) -> None:
        """See ``CopyLane``."""
        self.stream.wait_event(self.read[slot])
        with torch.cuda.stream(self.stream):
            super().fetch(slot, rows)
            self.copied[slot].record(self.stream)

    def take(self, slot: int) -> Tensor:
        """See ``CopyLane``."""
        torch.cuda.current_stream(self.device).wait_event(self.copied[slot])
        return super().take(slot)

    def release(self, slot: int) -> None:
        """See ``CopyLane``."""
        self.read[slot].record(torch.cuda.current_stream(self.device))


def copy_lane(device: torch.device) -> CopyLane:
    """The usual lane to a device."""
    return OnAStream(device) if device.type == "cuda" else InOrder(device)
