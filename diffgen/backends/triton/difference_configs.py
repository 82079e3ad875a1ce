"""Shapes of the kernels that take float64 differences: the covariance product, nearest rows."""

from __future__ import annotations

from diffgen.backends.triton.configs import Config
from diffgen.backends.triton.tuned import chosen


def _tile(queries: int, rows: int, features: int, warps: int = 4) -> Config:
    blocks = {"QUERIES": queries, "ROWS": rows, "FEATURES": features}
    return Config(blocks, warps, stages=2)


CONFIGS: dict[str, dict[str, Config]] = {
    # Two sums for each query, row and feature of a block: 64 of the 255 registers of a thread.
    "covariance_rows": {"": _tile(4, 16, 32)},
    "covariance_sums": {"": _tile(4, 16, 32)},
    "covariance_moments": {"": Config(warps=4)},
    "add_segments": {"": Config({"BLOCK": 128}, warps=4)},
    # 32 lanes for each query and row.
    "nearest_distances": {"": Config({"QUERIES": 4, "ROWS": 16}, warps=4)},
    "nearest_roots": {"": Config({"BLOCK": 128}, warps=4)},
}


def difference_config(kernel: str, architecture: str) -> Config:
    """How a kernel is launched on an architecture, such as ``sm_90``, ``gfx942`` or ``cpu``."""
    return chosen(CONFIGS, kernel, architecture)
