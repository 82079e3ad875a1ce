"""Shapes of the kernels' blocks, warps and stages: what one launch has, and where it is found.

The tables are `bytes_configs`, `float_configs` and `difference_configs`. Their choices follow from
registers, shared memory and the instructions that compilers make of them; none has been timed on
hardware. What has been timed stands above them, one file an architecture: `tuned`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Config:
    """What one launch passes beside its arguments."""

    blocks: dict[str, int] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2

    def options(self) -> dict[str, Any]:
        """Keyword arguments of a launch. Contraction is off: bits are promised."""
        return {
            **self.blocks,
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": False,
        }


Table = Mapping[str, Mapping[str, Config]]
"""Of each kernel, configurations by the beginning of an architecture's name; ``""`` is for all."""


def architecture_of(device: torch.device) -> str:
    """The name under which a device's configurations stand: ``sm_90``, ``gfx942``, or ``cpu``."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return "cpu"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def default(table: Table, kernel: str, architecture: str) -> Config:
    """What a table has for a kernel on an architecture: the entry of the longest name that fits."""
    entries = table[kernel]
    if len(entries) == 1:
        return entries[""]
    return entries[max((name for name in entries if architecture.startswith(name)), key=len)]
