"""Writing a packed set, shard after shard, so that an interrupted call can be continued.

A shard gets its name when its bytes are on the disk, then the journal records it, and ``meta.json``
comes last: at any moment the folder holds whole shards and a journal of them, or a whole set.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffgen.readers.class_index import ArrayLike, to_labels
from diffgen.readers.durable import written_whole
from diffgen.readers.pack_journal import Journal, alone
from diffgen.readers.packed import FORMAT, META_FILE, VERSION
from diffgen.readers.rows import squared_norms
from diffgen.readers.source import (
    Array,
    Progress,
    Source,
    byte_view,
    row_bytes,
    rows_per_block,
    tensor_source,
    type_name,
)

SHARD_BYTES = 64 << 20
"""Size of a shard, about."""

SEGMENT_ROWS = 1024
"""Rows that a pass over 8-bit rows sums together. Shards are cut between segments where they hold
any, so that a part of the shards is a part of the segments."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of writing that go away when there is room."""


@dataclass(frozen=True)
class Packed:
    """What ``write`` has written.

    Attributes:
        shape: Of the whole set, ``(N, *S)``.
        shards: Their number.
        found: Rows that were packed before this call.
        labels: Whether there are labels.
    """

    shape: tuple[int, ...]
    shards: int
    found: int
    labels: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return prod(self.shape)


def rows_per_shard(shape: tuple[int, ...], shard_bytes: int = SHARD_BYTES) -> int:
    """How many rows a shard holds: whole segments where one fits, else what fits, at least one.

    Args:
        shape: ``(N, *S)`` of uint8.
        shard_bytes: Most bytes of a shard, unless a row has more.

    Example:
        >>> rows_per_shard((50_000, 3, 32, 32)), rows_per_shard((50_000, 3, 512, 512))
        (21504, 85)
    """
    rows = max(1, shard_bytes // row_bytes(shape, torch.uint8))
    return rows if rows < SEGMENT_ROWS else rows - rows % SEGMENT_ROWS


def write(
    path: str | os.PathLike[str],
    data: Tensor | Array | Source,
    *,
    labels: ArrayLike | None = None,
    shard_bytes: int = SHARD_BYTES,
    identity: Mapping[str, Any] | None = None,
    made: Mapping[str, Any] | None = None,
) -> Packed:
    """Write a packed set, or go on with one.

    The bytes do not depend on how often the writing was interrupted, by whatever it was. The extra
    memory is one block of rows and the norms, whatever N is.

    Args:
        path: Folder to make. Must not exist or be empty, or hold an unfinished pack of the same
            ``identity``, labels, shape and size of shards.
        data: ``(N, *S)`` uint8, or an open source of it.
        labels: ``(N,)`` integers; None takes those of a source.
        shard_bytes: See ``rows_per_shard``.
        identity: What tells the rows of the source from all others, as JSON has it: under
            ``"source"`` what stands for its contents, under other names which part of it they are.
            The labels speak for themselves. With None an interrupted call cannot be continued.
        made: How the set is made, as JSON has it: kept in ``meta.json`` for people. A call that
            goes on keeps that of the first.

    Raises:
        ValueError: Not uint8, no rows, labels that do not fit, or an unfinished pack of something
            else.
        FileExistsError: Something else is in the folder, or another process packs into it.
        DataError: The source is damaged, or has changed while it was open.
        OSError: The disk is full; what is packed stays, and the same call continues.

    Example:
        >>> import tempfile
        >>> from diffgen.readers import open_source, assemble
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     packed = write(folder, torch.arange(6, dtype=torch.uint8).reshape(3, 2))
        ...     with open_source(folder) as source:
        ...         print(packed.shape, assemble(source).tolist())
        (3, 2) [[0, 1], [2, 3], [4, 5]]
    """
    source = data if isinstance(data, Source) else _as_source(data)
    if source.dtype != torch.uint8:
        raise ValueError(
            f"data must be uint8 to be packed, got {type_name(source.dtype)}: the packed form "
            "keeps whole numbers from 0 to 255, and rounding to them is not its business"
        )
    given = source.labels if labels is None else labels
    numbers = None if given is None else to_labels(given, source.shape[0])
    folder = os.fspath(path)
    os.makedirs(folder, exist_ok=True)
    job = {
        **(identity or {}),
        "shape": source.shape,
        "rows_per_shard": rows_per_shard(source.shape, shard_bytes),
        "labels": None if numbers is None else hashlib.sha256(byte_view(numbers)).hexdigest(),
    }
    with alone(folder):
        journal = Journal(folder, job, made, resumable=identity is not None)
        found = journal.rows
        if not journal.complete:
            try:
                _write_shards(journal, folder, source, job["rows_per_shard"])
                _describe(journal, folder, source, numbers)
            except OSError as error:
                if error.errno in FULL:
                    raise _full(error, journal, folder, source) from error
                raise
        journal.remove()
    return Packed(source.shape, len(journal.shards), found, numbers is not None)


def _as_source(data: Tensor | Array) -> Source:
    tensor = data.detach().cpu() if isinstance(data, Tensor) else torch.from_numpy(np.array(data))
    return tensor_source(tensor.contiguous())


def _write_shards(journal: Journal, folder: str, source: Source, per_shard: int) -> None:
    """Write the shards that the journal does not have."""
    total = source.shape[0]
    with Progress(total - journal.rows, "packing") as bar:
        for first in range(journal.rows, total, per_shard):
            source.check()
            shape = (min(per_shard, total - first), *source.shape[1:])
            norms = torch.empty(shape[0], dtype=torch.int64)
            blocks = _blocks(source, first, norms, bar)
            name = f"data_{len(journal.shards):05d}.npy"
            journal.add(_write_array(folder, name, shape, np.dtype(np.uint8), blocks), norms)
    source.check()


def _blocks(source: Source, first: int, norms: Tensor, bar: Progress) -> Iterator[Tensor]:
    """The rows from ``first`` on, as many as ``norms`` has places; fills the norms."""
    total = len(norms)
    rows = min(rows_per_block(source.shape, source.dtype), total)
    buffer = torch.empty((rows, *source.shape[1:]), dtype=torch.uint8)
    for start in range(0, total, rows):
        block = buffer[: min(rows, total - start)]
        source.read(block, first + start)
        # Sums of squares of whole numbers, exact in float64 up to 2^53.
        norms[start : start + len(block)] = squared_norms(block.reshape(len(block), -1), 1.0)
        yield block
        bar.update(len(block))


def _write_array(
    folder: str, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[Tensor]
) -> dict[str, Any]:
    """Write an .npy of consecutive blocks, and return its entry, with its size in bytes."""
    header = io.BytesIO()
    description = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(header, description)
    digest = hashlib.sha256(header.getvalue())
    with written_whole(os.path.join(folder, name)) as stream:
        stream.write(header.getvalue())
        for block in blocks:
            content = byte_view(block)
            digest.update(content)
            stream.write(content)
        size = stream.tell()
    return {"file": name, "rows": shape[0], "sha256": digest.hexdigest(), "bytes": size}


def _describe(journal: Journal, folder: str, source: Source, labels: Tensor | None) -> None:
    """Write what belongs to the rows, and ``meta.json`` over all."""

    def vector(name: str, values: Tensor) -> dict[str, Any]:
        entry = _write_array(folder, name, tuple(values.shape), np.dtype(np.int64), [values])
        return {key: entry[key] for key in ("file", "rows", "sha256")}

    meta = {
        "format": FORMAT,
        "version": VERSION,
        "shape": list(source.shape),
        "shards": journal.entries(),
        "labels": None if labels is None else vector("labels.npy", labels),
        "norms": vector("norms.npy", journal.norms),
        "made": journal.made,
    }
    with written_whole(os.path.join(folder, META_FILE)) as stream:
        stream.write((json.dumps(meta, indent=1) + "\n").encode())


def _full(error: OSError, journal: Journal, folder: str, source: Source) -> OSError:
    """The error of a full disk, with what is done and what is missing."""
    done, total = journal.rows, source.shape[0]
    each = row_bytes(source.shape, source.dtype) / 1e6
    return OSError(
        error.errno,
        f"{error.strerror}: {done:,} of {total:,} rows are packed ({done * each:,.1f} MB), "
        f"{(total - done) * each:,.1f} MB are missing: make room, and the same command continues",
        folder,
    )
