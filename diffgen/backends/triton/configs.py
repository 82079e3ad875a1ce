"""Shapes of the kernels' blocks, warps and stages.

One table for all architectures, with what an architecture has otherwise. Choices follow from
registers, shared memory and the instructions that compilers make of them; none has been timed on
hardware.
"""

from __future__ import annotations

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


def _tile(rows: int, columns: int, features: int, warps: int, stages: int) -> Config:
    blocks = {"BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns, "BLOCK_FEATURES": features}
    return Config(blocks, warps, stages)


def _sums(queries: int, rows: int, features: int, warps: int, stages: int) -> Config:
    blocks = {"BLOCK_QUERIES": queries, "BLOCK_ROWS": rows, "BLOCK_FEATURES": features}
    return Config(blocks, warps, stages)


SUM_QUERIES = 16
"""Queries that share a weighted sum over whole tiles."""

_COMMON = {
    "move": Config({"BLOCK": 1024}, warps=4),
    "split": Config(warps=1),
    "decide": Config({"BLOCK": 32}, warps=1),
    # Products: by the number of columns, five for each query at most.
    "products_few": _tile(64, 16, 256, 4, 4),
    "products_some": _tile(128, 64, 128, 8, 3),
    "products_many": _tile(128, 128, 128, 8, 3),
    "nearest": Config(warps=4),
    "anchors": Config(warps=1),
    "take_anchors": Config({"BLOCK": 1024}, warps=4),
    "screen": Config(warps=8),
    "refine": Config({"BLOCK_FEATURES": 128}, warps=4, stages=3),
    "weigh": Config(warps=8),
    "functionals": Config(warps=1),
    "whole_tiles": _sums(SUM_QUERIES, 32, 32, 4, 2),
    "kept_rows": Config({"BLOCK_QUERIES": SUM_QUERIES, "BLOCK_FEATURES": 512}, warps=4),
}

_OTHERWISE: dict[str, dict[str, Config]] = {
    # A compute unit has 64 KiB of shared memory and warps of 64.
    "gfx": {
        "products_few": _tile(64, 16, 128, 2, 2),
        "products_some": _tile(128, 64, 128, 4, 2),
        "products_many": _tile(128, 128, 64, 4, 2),
        "refine": Config({"BLOCK_FEATURES": 128}, warps=2, stages=2),
    },
}


def architecture_of(device: torch.device) -> str:
    """The name under which a device's exceptions stand: ``sm_90``, ``gfx942``, or ``cpu``."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return "cpu"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def config(kernel: str, architecture: str) -> Config:
    """How a kernel is launched on an architecture."""
    for prefix, table in _OTHERWISE.items():
        if architecture.startswith(prefix) and kernel in table:
            return table[kernel]
    return _COMMON[kernel]


def products_config(batch: int) -> str:
    """Which shape of products suits so many queries."""
    if 5 * batch <= 16:
        return "products_few"
    return "products_some" if batch <= 64 else "products_many"
