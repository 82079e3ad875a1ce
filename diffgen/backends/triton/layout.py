"""Where the numbers of a call lie: what kernels and drivers agree on.

Rows are taken in the canonical segments of the 8-bit engine (``csrc/u8/layout.h``), whatever their
type. A wave is some consecutive segments; its buffers have a slot for each place of each segment.
"""

from __future__ import annotations

import triton.language as tl

SEGMENT_ROWS = 1024
"""Consecutive ids whose eligible rows make a segment."""

TILE_BYTES = 400 * 1024
FEWEST_TILE_ROWS = 4
CHAIN = 512
"""Features whose lanes are added up before the next ones."""

QUERY_DIGITS = 5
WEIGHT_DIGITS = 5

# Per-query numbers, rows of a float64 tensor (NUMBERS, B).
KAPPA = tl.constexpr(0)
CONSTANT = tl.constexpr(1)
MARGIN = tl.constexpr(2)
CUT = tl.constexpr(3)
TOLERANCE = tl.constexpr(4)
NORM_FACTOR = tl.constexpr(5)
PRODUCT_FACTOR = tl.constexpr(6)
ALPHA = tl.constexpr(7)
ROW_SCALE = tl.constexpr(8)
SQUARE = tl.constexpr(9)
REACH = tl.constexpr(10)
STEP = tl.constexpr(11)  # of the first p digits at STEP + p - 1; likewise:
LOST = tl.constexpr(16)
SQUARES = tl.constexpr(21)
NUMBERS = 26

# Per-query flags, rows of an int64 tensor (FLAGS, B).
FINITE = tl.constexpr(0)
SIGMA_IS_ZERO = tl.constexpr(1)
BY_DIFFERENCES = tl.constexpr(2)
EXCLUDE = tl.constexpr(3)
DIGITS = tl.constexpr(4)
PLANES = tl.constexpr(5)
ANCHOR = tl.constexpr(6)  # row id
FLAGS = 7

# What floating-point sets know of a query beside, rows of a float64 tensor (SCREEN_NUMBERS, B).
FACTOR = tl.constexpr(0)  # of a product with the piece, in nats
SLOPE = tl.constexpr(1)  # bound on the screen's error for each unit of the row's length, in nats
LEVEL = tl.constexpr(2)  # the rest of the bound, in nats
SLACK = tl.constexpr(3)  # twice the bound on the error of a logit by products, in nats
LOWER = tl.constexpr(4)  # the best lower bound on a logit by the screen so far
BEST = tl.constexpr(5)  # the best logit by products so far
SCREEN_NUMBERS = 6

# The state of a posterior, rows of a float64 tensor (STATE, ..., B).
REFERENCE = tl.constexpr(0)
NEAREST_SQUARE = tl.constexpr(1)
QUANTISED = tl.constexpr(2)
MASS = tl.constexpr(3)
WEIGHTS = tl.constexpr(4)
SQUARED_WEIGHTS = tl.constexpr(5)
LOGITS = tl.constexpr(6)
NORMS = tl.constexpr(7)
STATE = 8


def cdiv(count: int, size: int) -> int:
    """How many blocks of a size cover a count; ``triton.cdiv`` takes far longer on the host."""
    return -(-count // size)


def tile_rows(features: int) -> int:
    """Rows of a tile: a power of two, by the number of features alone."""
    rows = SEGMENT_ROWS
    while rows > FEWEST_TILE_ROWS and rows * features > TILE_BYTES:
        rows //= 2
    return rows
