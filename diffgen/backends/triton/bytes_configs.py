"""Shapes of the kernels for 8-bit sets."""

from __future__ import annotations

from diffgen.backends.triton.configs import Config
from diffgen.backends.triton.tuned import chosen


def _tile(rows: int, columns: int, features: int, warps: int, stages: int) -> Config:
    blocks = {"BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns, "BLOCK_FEATURES": features}
    return Config(blocks, warps, stages)


def _sums(queries: int, rows: int, features: int, warps: int, stages: int) -> Config:
    blocks = {"BLOCK_QUERIES": queries, "BLOCK_ROWS": rows, "BLOCK_FEATURES": features}
    return Config(blocks, warps, stages)


SUM_QUERIES = 16
"""Queries that share a weighted sum over whole tiles."""

# AMD's compute unit has 64 KiB of shared memory and warps of 64.
CONFIGS: dict[str, dict[str, Config]] = {
    "move": {"": Config({"BLOCK": 1024}, warps=4)},
    "split": {"": Config(warps=1)},
    "decide": {"": Config({"BLOCK": 32}, warps=1)},
    # Products: by the number of columns, five for each query at most.
    "products_few": {"": _tile(64, 16, 256, 4, 4), "gfx": _tile(64, 16, 128, 2, 2)},
    "products_some": {"": _tile(128, 64, 128, 8, 3), "gfx": _tile(128, 64, 128, 4, 2)},
    "products_many": {"": _tile(128, 128, 128, 8, 3), "gfx": _tile(128, 128, 64, 4, 2)},
    "nearest": {"": Config(warps=4)},
    "anchors": {"": Config(warps=1)},
    "take_anchors": {"": Config({"BLOCK": 1024}, warps=4)},
    "screen": {"": Config(warps=8)},
    "refine": {
        "": Config({"BLOCK_FEATURES": 128}, warps=4, stages=3),
        "gfx": Config({"BLOCK_FEATURES": 128}, warps=2, stages=2),
    },
    "weigh": {"": Config(warps=8)},
    "functionals": {"": Config(warps=1)},
    "whole_tiles": {"": _sums(SUM_QUERIES, 32, 32, 4, 2)},
    "kept_rows": {"": Config({"BLOCK_QUERIES": SUM_QUERIES, "BLOCK_FEATURES": 512}, warps=4)},
}


def bytes_config(kernel: str, architecture: str) -> Config:
    """How a kernel is launched on an architecture, such as ``sm_90``, ``gfx942`` or ``cpu``."""
    return chosen(CONFIGS, kernel, architecture)


def products_config(batch: int) -> str:
    """Which shape of products suits so many queries."""
    if 5 * batch <= 16:
        return "products_few"
    return "products_some" if batch <= 64 else "products_many"
