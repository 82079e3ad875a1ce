"""Shapes of the kernels for floating-point sets."""

from __future__ import annotations

from diffgen.backends.triton.configs import Config
from diffgen.backends.triton.tuned import chosen

FEWEST_QUERIES = 16
"""Queries of the smallest tile: tensor cores take no fewer."""


def _tile(rows: int, queries: int, block: int, warps: int = 4, stages: int = 3) -> Config:
    return Config({"ROWS": rows, "QUERIES": queries, "BLOCK": block}, warps, stages)


# The interpreter ("cpu") takes as long for a large tile as for a small one.
CONFIGS: dict[str, dict[str, Config]] = {
    "prepare_queries": {"": Config({"BLOCK": 1024}, warps=8)},
    "raise_floors": {"": Config({"TILES": 256, "LANES": 4})},
    "best_of_segments": {"": Config(warps=4)},
    "choose_anchors": {"": Config({"BLOCK": 1024}, warps=8)},
    # Eight warps, for bounds are float64: a thread has those of 16 pairs.
    "screen_rows": {
        "": _tile(64, 64, 64, warps=8),
        "gfx": _tile(64, 64, 64, warps=8, stages=2),
        "cpu": _tile(256, 16, 64),
    },
    "multiply_rows": {
        "": _tile(64, 32, 32),
        "gfx": _tile(64, 32, 32, stages=2),
        "cpu": _tile(256, 16, 64),
    },
    "decide_rows": {
        "": Config({"ROWS": 16, "BLOCK": 128}, warps=4),
        "cpu": Config({"ROWS": 64, "BLOCK": 64}),
    },
    "weigh_rows": {"": Config(warps=4)},
    "sum_rows": {
        "": _tile(32, 32, 64, stages=2),
        "sm_1": _tile(32, 32, 32, stages=2),
        "cpu": _tile(256, 16, 128),
    },
}


def float_config(kernel: str, architecture: str, batch: int) -> Config:
    """How a kernel is launched.

    Args:
        kernel: Its name.
        architecture: Such as ``sm_90``, ``gfx942``, or ``cpu`` for the interpreter.
        batch: How many queries there are: few get a tile for few.
    """
    config = chosen(CONFIGS, kernel, architecture)
    if "QUERIES" not in config.blocks:
        return config
    queries = FEWEST_QUERIES
    while queries < min(batch, config.blocks["QUERIES"]):
        queries *= 2
    return Config({**config.blocks, "QUERIES": queries}, config.warps, config.stages)


def screen_precision(architecture: str) -> str:
    """How float32 rows are multiplied by the screen: on tensor cores that take them."""
    return "tf32" if architecture.startswith("sm_") else "ieee"
