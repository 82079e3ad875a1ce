"""What the processes of a sharded set must agree on, compared before the first call."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from diffgen._version import __version__
from diffgen.errors import ShardError
from diffgen.readers.source import byte_view, type_name

PROBES = 256
"""So many rows, spread evenly over the set, are compared where its SHA-256 is not known."""


def probes(count: int) -> Tensor:
    """Ids of the rows that are compared, ``(n,)`` int64: the first, the last, and some between.

    Example:
        >>> probes(3).tolist()
        [0, 1, 2]
    """
    places = torch.linspace(0, count - 1, min(count, PROBES), dtype=torch.float64)
    return places.to(torch.int64)


def digest_of(tensor: Tensor | None) -> str | None:
    """SHA-256 of the elements of a tensor; None for none."""
    if tensor is None:
        return None
    return hashlib.sha256(byte_view(tensor.detach().cpu().contiguous())).hexdigest()


def description(
    rank: int,
    world_size: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    value_range: tuple[float, float] | None,
    flip: bool,
    labels: Tensor | None,
    log_weights: Tensor | None,
    rows: str,
) -> dict[str, Any]:
    """What one process says of its set.

    Args:
        rank: Part that it holds.
        world_size: Number of parts.
        shape: ``(N, *S)`` of the whole set.
        dtype: Stored type.
        value_range: Values of a stored 0 and 255; None for floats.
        flip: Whether the mirror images belong to the set.
        labels: ``(N,)``, or None.
        log_weights: ``(N,)``, or None.
        rows: Digest of the rows, or of those that are compared.
    """
    return {
        "diffgen": __version__,
        "rank": rank,
        "world_size": world_size,
        "shape": list(shape),
        "dtype": type_name(dtype),
        "value_range": None if value_range is None else list(value_range),
        "flip": flip,
        "labels": digest_of(labels),
        "weights": digest_of(log_weights),
        "rows": rows,
    }


def compare(messages: list[bytes]) -> None:
    """Check what all processes said.

    Args:
        messages: Their descriptions as JSON, in the order of the group.

    Raises:
        ShardError: If two hold different sets, or the same part, or not all parts are held; the
            same in every process.
    """
    said: list[dict[str, Any]] = [json.loads(message) for message in messages]
    size = len(said)
    for member, own in enumerate(said):
        if own["world_size"] != size:
            raise ShardError(
                f"world_size must be the size of the group, {size}, got {own['world_size']} in "
                f"rank {member}"
            )
    held = [own["rank"] for own in said]
    for member, part in enumerate(held):
        if held.count(part) > 1:
            holders = [number for number, other in enumerate(held) if other == part]
            raise ShardError(
                f"rank must differ between processes, got {part} in processes "
                f"{', '.join(map(str, holders))}: the same shard twice"
            )
        if part != member:
            raise ShardError(f"rank must be that of the process in its group, {member}, got {part}")
    for name in said[0]:
        for member, own in enumerate(said):
            if name != "rank" and own[name] != said[0][name]:
                raise ShardError(
                    f"all ranks must hold the same set, but its {name.replace('_', ' ')} differs: "
                    f"{said[0][name]} in rank 0, {own[name]} in rank {member}"
                )
