"""The packed set: a folder of uint8 .npy shards, each under a SHA-256, described by meta.json.

``meta.json`` holds ``format`` ("diffgen-packed"), ``version`` (1), ``shape`` (of the whole set),
``shards`` and ``labels`` (None without labels). A shard is an object with ``file``, ``rows`` and
``sha256`` (of the bytes of its file); so is ``labels``, an .npy of int64.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers.class_index import ArrayLike, to_labels
from diffgen.readers.limits import MAX_MEMBER_BYTES
from diffgen.readers.members import check_request, refuse_member
from diffgen.readers.npy import read_all, read_header
from diffgen.readers.npy import to_labels as array_to_labels
from diffgen.readers.pread import Layout, PreadFile, PreadStream, layout_source
from diffgen.readers.source import (
    Array,
    LabelRequest,
    Progress,
    Source,
    byte_view,
    row_bytes,
    rows_per_block,
    tensor_source,
)

META_FILE = "meta.json"
FORMAT = "diffgen-packed"
VERSION = 1
SHARD_BYTES = 64 << 20
"""Size of a shard that ``write`` makes."""

MAX_META_BYTES = 16 << 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.npy")


@dataclass(frozen=True)
class _Shard:
    file: str
    rows: int
    sha256: str


def write(
    path: str | os.PathLike[str],
    data: Tensor | Array | Source,
    *,
    labels: ArrayLike | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a packed set.

    The description is written last, so that a folder left by an interrupted call is no set.

    Args:
        path: Folder to make; must not exist or be empty.
        data: ``(N, *S)`` uint8, or an open source of it.
        labels: ``(N,)`` integers; None takes those of a source.
        shard_bytes: Bytes of a shard, about.

    Raises:
        ValueError: Not uint8, no rows, or labels that do not fit.
        FileExistsError: Something is in the folder.

    Example:
        >>> import tempfile
        >>> from diffgen.readers import open_source, assemble
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(folder, torch.arange(6, dtype=torch.uint8).reshape(3, 2))
        ...     with open_source(folder) as source:
        ...         print(assemble(source).tolist())
        [[0, 1], [2, 3], [4, 5]]
    """
    source = data if isinstance(data, Source) else _as_source(data)
    if source.dtype != torch.uint8:
        raise ValueError(f"data must be uint8 to be packed, got {source.dtype}")
    numbers = source.labels if labels is None else to_labels(labels, source.shape[0])
    folder = os.fspath(path)
    os.makedirs(folder, exist_ok=True)
    if os.listdir(folder):
        raise FileExistsError(f"path must be a new or empty folder, got {folder}")
    per_shard = max(1, shard_bytes // row_bytes(source.shape, source.dtype))
    shards = [
        _write_shard(folder, f"data_{number:05d}.npy", blocks)
        for number, blocks in enumerate(_shards(source, per_shard))
    ]
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "shape": list(source.shape),
        "shards": shards,
        "labels": None if numbers is None else _write_shard(folder, "labels.npy", numbers),
    }
    temporary = os.path.join(folder, META_FILE + ".part")
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(meta, stream, indent=1)
    os.replace(temporary, os.path.join(folder, META_FILE))


def _as_source(data: Tensor | Array) -> Source:
    tensor = data.detach().cpu() if isinstance(data, Tensor) else torch.from_numpy(np.array(data))
    return tensor_source(tensor.contiguous())


def _shards(source: Source, per_shard: int) -> Iterator[Tensor]:
    """The rows, ``per_shard`` at a time, except for fewer at the end."""
    with Progress(source.shape[0], "packing") as bar:
        shard = torch.empty((min(per_shard, source.shape[0]), *source.shape[1:]), dtype=torch.uint8)
        filled = 0
        for block in source.blocks(rows_per_block(source.shape, source.dtype)):
            bar.update(len(block))
            while len(block):
                count = min(len(block), len(shard) - filled)
                shard[filled : filled + count] = block[:count]
                block, filled = block[count:], filled + count
                if filled == len(shard):
                    yield shard
                    filled = 0
        if filled:
            yield shard[:filled]


def _write_shard(folder: str, name: str, rows: Tensor) -> dict[str, Any]:
    header = io.BytesIO()
    description = np.lib.format.header_data_from_array_1_0(rows.numpy())
    np.lib.format.write_array_header_1_0(header, description)
    content = byte_view(rows.contiguous())
    digest = hashlib.sha256(header.getvalue())
    digest.update(content)
    with open(os.path.join(folder, name), "wb") as stream:
        stream.write(header.getvalue())
        stream.write(content)
    return {"file": name, "rows": len(rows), "sha256": digest.hexdigest()}


def open_packed(path: str, member: str | None, labels: LabelRequest) -> Source:
    """Open a packed set; each shard is checked against its SHA-256 while it is read.

    Args:
        path: The folder.
        member: Must be None.
        labels: False passes over them; True requires them.

    Raises:
        DataError: A malformed description; a shard that is missing, of another shape, or whose
            bytes are not those that were written; with its name.
    """
    refuse_member(path, member)
    shape, shards, label_shard = _read_meta(path)
    check_request(path, labels, label_shard is not None)
    found = None
    if label_shard is not None and labels is not False:
        found = _read_labels(path, label_shard)
    for shard in shards:
        file, stream = _open_shard(path, shard)
        with file:
            _check_header(stream, file.path, (shard.rows, *shape[1:]))

    def blocks(rows: int) -> Iterator[Tensor]:
        for shard in shards:
            yield from _shard_blocks(path, shard, shape, rows)

    return Source(path, shape, torch.uint8, blocks, found)


def _shard_blocks(path: str, shard: _Shard, shape: tuple[int, ...], rows: int) -> Iterator[Tensor]:
    file, stream = _open_shard(path, shard)
    with file:
        expected = (shard.rows, *shape[1:])
        _check_header(stream, file.path, expected)
        start = stream.tell()
        digest = hashlib.sha256(file.read(0, start))
        for block in layout_source(file, Layout(expected, torch.uint8, start)).blocks(rows):
            digest.update(byte_view(block))
            yield block
        if digest.hexdigest() != shard.sha256 or stream.seek(0, os.SEEK_END) != (
            start + shard.rows * row_bytes(shape, torch.uint8)
        ):
            raise DataError(f"{file.path}: sha256 must be {shard.sha256}, got {digest.hexdigest()}")


def _open_shard(path: str, shard: _Shard) -> tuple[PreadFile, PreadStream]:
    try:
        file = PreadFile(os.path.join(path, shard.file))
    except FileNotFoundError as error:
        raise DataError(f"{path}: {shard.file} of its {META_FILE} is missing") from error
    return file, PreadStream(file)


def _check_header(stream: PreadStream, where: str, shape: tuple[int, ...]) -> None:
    header = read_header(stream, where)
    if header.shape != shape or header.dtype != np.uint8:
        raise DataError(
            f"{where}: must be uint8 of shape {shape}, got {header.dtype} of {header.shape}"
        )


def _read_meta(path: str) -> tuple[tuple[int, ...], list[_Shard], _Shard | None]:
    where = os.path.join(path, META_FILE)
    with PreadFile(where) as file:
        content = file.read_all(MAX_META_BYTES)
    try:
        meta = json.loads(content)
        if meta["format"] != FORMAT or meta["version"] != VERSION:
            raise ValueError(
                f"must be {FORMAT} {VERSION}, got {meta['format']!r:.40} {meta['version']!r:.40}"
            )
        shape = tuple(_count(size) for size in meta["shape"])
        shards = [_parse_shard(entry) for entry in meta["shards"]]
        labels = None if meta["labels"] is None else _parse_shard(meta["labels"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: malformed: {type(error).__name__}: {error}") from error
    rows = sum(shard.rows for shard in shards)
    if not shape or rows != shape[0] or (labels is not None and labels.rows != rows):
        raise DataError(f"{where}: shards hold {rows} rows for shape {shape}")
    return shape, shards, labels


def _parse_shard(entry: Any) -> _Shard:
    file, digest = entry["file"], entry["sha256"]
    if not isinstance(file, str) or not _PLAIN_NAME.fullmatch(file):
        raise ValueError(f"a shard must be the plain name of an .npy, got {file!r:.80}")
    if not isinstance(digest, str):
        raise ValueError(f"the sha256 of {file} must be a string")
    return _Shard(file, _count(entry["rows"]), digest)


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"sizes must be positive integers, got {value!r:.40}")
    return value


def _read_labels(path: str, shard: _Shard) -> Tensor:
    file, _ = _open_shard(path, shard)
    with file:
        content = file.read_all(MAX_MEMBER_BYTES)
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise DataError(f"{file.path}: sha256 must be {shard.sha256}")
    memory = io.BytesIO(content)
    header = read_header(memory, file.path)
    labels = array_to_labels(read_all(memory, header, file.path, MAX_MEMBER_BYTES), file.path)
    if len(labels) != shard.rows:
        raise DataError(f"{file.path}: must hold {shard.rows} labels, got {len(labels)}")
    return labels
