"""What is computed of stored rows, block by block: norms, the search for NaN, the digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from diffgen.backends.native import load_native
from diffgen.errors import DataError
from diffgen.readers.source import STORED_TYPES, byte_view, type_name
from diffgen.set_view import UINT8_SHIFT

BLOCK_ELEMENTS = 1 << 20
"""Elements that are widened at a time."""

SHARD_BYTES = 16 << 20
"""Bytes under one partial digest: a constant of the digest, whatever file held them."""


def squared_norms(data: Tensor, scale: float, where: str = "data", first: int = 0) -> Tensor:
    """``|x_i - origin|^2`` of every row, with ``origin`` of ``diffgen.set_view``.

    uint8 rows are summed as integers, exactly, and scaled once; floats are summed in float64. The
    extra memory is a few MiB, whatever N is, as long as a row has at most a million features.

    Args:
        data: Stored rows, ``(N, D)``.
        scale: Size of one stored unit; 1 for floats.
        where: Name of the data, for messages.
        first: Number of the first row, for messages.

    Returns:
        ``(N,)`` float64, on the device of the data.

    Raises:
        DataError: A row holds NaN or an infinity, or its norm overflows float64; with the row.

    Example:
        >>> squared_norms(torch.tensor([[3.0, 4.0]]), 1.0)
        tensor([25.], dtype=torch.float64)
    """
    if data.dtype == torch.uint8 and data.is_cpu and data.is_contiguous():
        native = load_native()
        if native is not None:
            sums = torch.empty(len(data), dtype=torch.int64)
            native.byte_norms(
                data.data_ptr(), *data.shape, sums.data_ptr(), torch.get_num_threads()
            )
            return sums.to(torch.float64).mul_(scale * scale)
    rows = max(1, BLOCK_ELEMENTS // data.shape[1])
    norms = torch.empty(len(data), dtype=torch.float64, device=data.device)
    for start in range(0, len(data), rows):
        block = data[start : start + rows]
        if data.dtype == torch.uint8:
            shifted = block.to(torch.int16).sub_(UINT8_SHIFT)
            # 128^2 fits int16; the sum of a row does not, and is taken in int64.
            sums = shifted.mul_(shifted).sum(1, dtype=torch.int64)
        else:
            wide = block.to(torch.float64)
            sums = wide.mul_(wide) if wide is not block else wide * wide
            sums = sums.sum(1)
        norms[start : start + rows] = sums
    if data.dtype != torch.uint8:
        _refuse_non_finite(data, norms, where, first)
    return norms.mul_(scale * scale)


def _refuse_non_finite(data: Tensor, norms: Tensor, where: str, first: int) -> None:
    bad = norms.isfinite().logical_not_()
    if not bad.any():
        return
    row = int(bad.nonzero()[0])
    values = data[row]
    if values.isfinite().all():
        raise DataError(f"{where}: the squared norm of row {first + row} overflows float64")
    feature = int(values.isfinite().logical_not().nonzero()[0])
    raise DataError(
        f"{where}: must be finite, got {values[feature].item()} in row {first + row}, "
        f"feature {feature}"
    )


class Digest:
    """SHA-256 of what rows mean, taken block by block: shape, type, range and stored bytes.

    The hash runs over one line of JSON and the SHA-256 of each ``SHARD_BYTES`` of the rows in C
    order, little-endian. So it does not depend on the file, the device or the threads.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, value_range: tuple[float, float] | None
    ) -> None:
        """Take what the rows are; see ``digest``."""
        header = {
            "dtype": type_name(dtype),
            "range": None if value_range is None else list(value_range),
            "shape": list(shape),
        }
        self._total = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + b"\n")
        self._shard = hashlib.sha256()
        self._room = SHARD_BYTES

    def add_shards(self, digests: Iterable[bytes]) -> None:
        """Take the SHA-256 of whole shards."""
        for part in digests:
            self._total.update(part)

    def add(self, rows: Tensor) -> None:
        """Take the next rows, contiguous, on the CPU."""
        content = byte_view(rows)
        while len(content):
            part, content = content[: self._room], content[self._room :]
            self._shard.update(part)
            self._room -= len(part)
            if self._room == 0:
                self._end_shard()

    def _end_shard(self) -> None:
        self.add_shards((self._shard.digest(),))
        self._shard, self._room = hashlib.sha256(), SHARD_BYTES

    def finish(self) -> str:
        """64 hexadecimal digits."""
        if self._room < SHARD_BYTES:
            self._end_shard()
        return self._total.hexdigest()


def digest(data: Tensor, value_range: tuple[float, float] | None) -> str:
    """SHA-256 of rows in memory, see ``Digest``.

    Args:
        data: ``(N, *S)``, contiguous.
        value_range: Values of a stored 0 and 255; None for floats.

    Returns:
        64 hexadecimal digits.
    """
    total = Digest(tuple(data.shape), data.dtype, value_range)
    shards = data.reshape(-1).view(torch.uint8).split(SHARD_BYTES)
    if len(shards) == 1:
        total.add_shards((_shard_digest(shards[0]),))
    else:
        with ThreadPoolExecutor(min(len(shards), os.cpu_count() or 1, 8)) as pool:
            total.add_shards(pool.map(_shard_digest, shards))
    return total.finish()


def _shard_digest(shard: Tensor) -> bytes:
    return hashlib.sha256(shard.cpu().numpy().data).digest()


def decode(stored: Tensor, scale: float, offset: float) -> Tensor:
    """Values of stored rows, ``offset + scale * stored``, rounded once to float32.

    Args:
        stored: Any shape, one of the stored types.
        scale: Size of one stored unit; 1 for floats.
        offset: Value of a stored zero; 0 for floats.

    Returns:
        A new tensor of the same shape, float32; float64 for float64.
    """
    if stored.dtype not in STORED_TYPES:
        raise TypeError(f"stored must be one of the stored types, got {stored.dtype}")
    if stored.dtype == torch.uint8:
        return stored.to(torch.float64).mul_(scale).add_(offset).to(torch.float32)
    target = torch.float64 if stored.dtype == torch.float64 else torch.float32
    return stored.to(target, copy=True)
