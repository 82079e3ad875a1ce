"""The packed set: a folder of uint8 .npy shards, each under a SHA-256, described by meta.json.

``meta.json`` holds ``format`` ("diffgen-packed"), ``version`` (1), ``shape`` (of the whole set),
``shards``, ``labels`` (None without labels) and perhaps ``norms``. A shard is an object with
``file``, ``rows`` and ``sha256`` (of the bytes of its file); so are ``labels`` and ``norms``, .npy
files of int64. The norms, ``sum_k (u_k - 128)^2`` of each row, save a pass that measures the rows.
For people there may be ``made``: with what the set was packed, and from what.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers.limits import MAX_MEMBER_BYTES
from diffgen.readers.members import check_request, refuse_member
from diffgen.readers.npy import read_all, read_header
from diffgen.readers.npy import to_labels as array_to_labels
from diffgen.readers.pread import Layout, PreadFile, PreadStream, layout_source
from diffgen.readers.random_access import Digest, FirstPass
from diffgen.readers.source import LabelRequest, Source, join, row_bytes

META_FILE = "meta.json"
FORMAT = "diffgen-packed"
VERSION = 1
MAX_META_BYTES = 16 << 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.npy")


@dataclass(frozen=True)
class _Shard:
    file: str
    rows: int
    sha256: str


def open_packed(path: str, member: str | None, labels: LabelRequest) -> Source:
    """Open a packed set; each shard is checked against its SHA-256 when it is first read.

    That is when all of its rows have been read in order, as a pass over the set does: the read that
    reaches its last row compares. Rows read before that, at other places, are not verified;
    a shard that was verified once is not hashed again. ``check`` finds what is written later.

    Args:
        path: The folder.
        member: Must be None.
        labels: False passes over them; True requires them.

    Raises:
        DataError: A malformed description; a shard that is missing, of another shape, or whose
            bytes are not those that were written; with its name.
    """
    refuse_member(path, member)
    with ExitStack() as opened:
        meta = opened.enter_context(PreadFile(os.path.join(path, META_FILE)))
        shape, shards, label_shard, norm_shard = _read_meta(meta)
        check_request(path, labels, label_shard is not None)
        found, others = None, [meta]
        if label_shard is not None and labels is not False:
            others.append(opened.enter_context(_open_shard(path, label_shard)))
            found = _read_numbers(others[-1], label_shard, "labels")
        norms = None
        if norm_shard is not None:
            others.append(opened.enter_context(_open_shard(path, norm_shard)))
            norms = _read_numbers(others[-1], norm_shard, "norms")
        parts = [opened.enter_context(_shard_source(path, shard, shape)) for shard in shards]
        whole = join(path, parts, found)

        def check() -> None:
            for file in others:
                file.check()
            whole.check()

        return replace(whole, check=check, norms=norms, close=opened.pop_all().close)


def _shard_source(path: str, shard: _Shard, shape: tuple[int, ...]) -> Source:
    file = _open_shard(path, shard)
    with ExitStack() as opened:
        opened.callback(file.close)
        stream = PreadStream(file)
        expected = (shard.rows, *shape[1:])
        _check_header(stream, file.path, expected)
        layout = Layout(expected, torch.uint8, stream.tell())

        def start() -> Digest:
            return hashlib.sha256(file.read(0, layout.offset))

        width = row_bytes(shape, torch.uint8)
        hashed = FirstPass(file.path, shard.rows, width, start, shard.sha256)
        source = layout_source(file, layout, seen=hashed)
        if file.size != layout.offset + shard.rows * width:
            raise DataError(
                f"{file.path}: must have {layout.offset + shard.rows * width} bytes for "
                f"{shard.rows} rows, got {file.size}"
            )
        opened.pop_all()
        return source


def _open_shard(path: str, shard: _Shard) -> PreadFile:
    try:
        return PreadFile(os.path.join(path, shard.file))
    except FileNotFoundError as error:
        raise DataError(f"{path}: {shard.file} of its {META_FILE} is missing") from error


def _check_header(stream: PreadStream, where: str, shape: tuple[int, ...]) -> None:
    header = read_header(stream, where)
    if header.shape != shape or header.dtype != np.uint8:
        raise DataError(
            f"{where}: must be uint8 of shape {shape}, got {header.dtype} of {header.shape}"
        )


def _read_meta(
    file: PreadFile,
) -> tuple[tuple[int, ...], list[_Shard], _Shard | None, _Shard | None]:
    where = file.path
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
        norms = None if meta.get("norms") is None else _parse_shard(meta["norms"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: malformed: {type(error).__name__}: {error}") from error
    rows = sum(shard.rows for shard in shards)
    described = [shard for shard in (labels, norms) if shard is not None]
    if not shape or rows != shape[0] or any(shard.rows != rows for shard in described):
        raise DataError(f"{where}: shards hold {rows} rows for shape {shape}")
    return shape, shards, labels, norms


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


def _read_numbers(file: PreadFile, shard: _Shard, what: str) -> Tensor:
    content = file.read_all(MAX_MEMBER_BYTES)
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise DataError(f"{file.path}: sha256 must be {shard.sha256}")
    memory = io.BytesIO(content)
    header = read_header(memory, file.path)
    numbers = array_to_labels(read_all(memory, header, file.path, MAX_MEMBER_BYTES), file.path)
    if len(numbers) != shard.rows:
        raise DataError(f"{file.path}: must hold {shard.rows} {what}, got {len(numbers)}")
    return numbers
