"""Which rows each process holds."""

from __future__ import annotations

import torch

from diffgen.streaming.plan import SEGMENT_ROWS


def bounds(count: int, rank: int, world_size: int, dtype: torch.dtype) -> tuple[int, int]:
    """The rows of one of ``world_size`` consecutive parts, about equal in size.

    8-bit rows are cut at the borders of the canonical segments of 1,024 rows, so that the bits of
    a result are those of one process; a part of a small set may be empty.

    Args:
        count: Rows of the set.
        rank: Number of the part, in ``[0, world_size)``.
        world_size: Number of parts.
        dtype: Stored type.

    Returns:
        Id of the first row and after the last.

    Example:
        >>> [bounds(5000, rank, 2, torch.uint8) for rank in range(2)]
        [(0, 2048), (2048, 5000)]
        >>> [bounds(5, rank, 2, torch.float32) for rank in range(2)]
        [(0, 2), (2, 5)]
    """
    if dtype != torch.uint8:
        return count * rank // world_size, count * (rank + 1) // world_size
    segments = -(-count // SEGMENT_ROWS)
    first, stop = (segments * part // world_size * SEGMENT_ROWS for part in (rank, rank + 1))
    return min(first, count), min(stop, count)
