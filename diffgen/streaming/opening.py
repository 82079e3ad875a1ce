"""Files whose rows stay where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from diffgen.backends.problem import RowBlock
from diffgen.readers.rows import Digest
from diffgen.readers.source import Source, row_bytes
from diffgen.streaming.place import FilePlace, MemoryPlace, Place
from diffgen.streaming.plan import Piece, runs_of

MOST_BYTES_IN_MEMORY = 160 << 20
"""Sets up to this size are read into memory, unless it is asked otherwise: CIFAR-10 is."""


def is_streamed(shape: tuple[int, ...], dtype: torch.dtype, in_memory: bool | None) -> bool:
    """Whether the rows of a file stay there.

    Args:
        shape: ``(N, *S)``.
        dtype: Stored type.
        in_memory: What was asked for; None for what their size suggests.
    """
    if in_memory is not None:
        return not in_memory
    return shape[0] * row_bytes(shape, dtype) > MOST_BYTES_IN_MEMORY


def selected(source: Source, rows: Tensor) -> Source:
    """Some rows of a source, in the order of their numbers, as a source of its own.

    Args:
        source: An open source; it stays open for as long as the new one is held.
        rows: Numbers of the rows, ``(n,)`` int64, on the CPU.
    """

    def fill(out: Tensor, first: int) -> None:
        wanted = rows[first : first + len(out)]
        ids, place = wanted.unique(return_inverse=True)
        if len(ids) == len(wanted) and bool((place.diff() > 0).all()):
            for at, row, count in runs_of(Piece(int(ids[0]), len(ids), ids)):
                source.read(out[at : at + count], row)
        else:
            for at, row in enumerate(wanted.tolist()):
                source.read(out[at : at + 1], row)

    def blocks(count: int):  # type: ignore[no-untyped-def]
        for first in range(0, len(rows), count):
            out = torch.empty(
                (min(count, len(rows) - first), *source.shape[1:]), dtype=source.dtype
            )
            fill(out, first)
            yield out

    shape = (len(rows), *source.shape[1:])
    labels = None if source.labels is None else source.labels[rows]
    return Source(source.path, shape, source.dtype, blocks, labels, fill=fill, check=source.check)


class _Copy:
    """Rows as they come, on a device."""

    def __init__(self, place: Place, device: torch.device | str | int) -> None:
        shape = (place.stop - place.first, place.features)
        self.data = torch.empty(shape, dtype=place.dtype, device=device)
        self._first = place.first

    def add(self, block: RowBlock) -> None:
        begin = block.first - self._first
        self.data[begin : begin + len(block.data)] = block.data


def in_memory_of(place: Place, device: torch.device | str | int = "cpu") -> MemoryPlace:
    """The same rows in the memory of a device; one pass, which holds two blocks besides."""
    (copy,) = place.run(lambda: (_Copy(place, device),))
    return MemoryPlace(
        copy.data,
        place.norms.to(device),
        place.count,
        place.first,
        place.scale,
        place.log_weights,
    )


def digest_of(place: FilePlace, value_range: tuple[float, float] | None) -> str:
    """SHA-256 of the rows of a file, that of ``readers.rows.digest``; one pass.

    Args:
        place: All rows of the set.
        value_range: Values of a stored 0 and 255; None for floats.
    """
    digest = Digest(place.source.shape, place.dtype, value_range)
    place.read_through(lambda data: digest.add(data), "hashing")
    return digest.finish()
