"""The .safetensors format: a JSON header and plain little-endian tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers.limits import MAX_MEMBER_BYTES
from diffgen.readers.members import choose_data, choose_labels
from diffgen.readers.npy import to_labels
from diffgen.readers.pread import Layout, PreadFile, layout_source
from diffgen.readers.source import LabelRequest, Source

MAX_HEADER_BYTES = 8 << 20
"""Longest header that is parsed: room for tens of thousands of tensors."""

DATA_TYPES = {
    "U8": torch.uint8,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
LABEL_TYPES = {name: f"<{name[0].lower()}{int(name[1:]) // 8}" for name in (
    "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64",
)}  # fmt: skip
ITEM_BYTES = {"BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1} | {
    name: int(name.lstrip("UIBF")) // 8 for name in (*LABEL_TYPES, "F16", "BF16", "F32", "F64")
}


@dataclass(frozen=True)
class _Entry:
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


def open_safetensors(path: str, member: str | None, labels: LabelRequest) -> Source:
    """Open one tensor of a .safetensors file.

    Args:
        path: The file.
        member: Name of the tensor; None for the only one, ``images``, ``data`` or ``x``.
        labels: Name of the tensor of labels, or True for ``labels`` or ``y``.

    Raises:
        ValueError: No tensor of that name.
        DataError: A malformed header, a truncated file, or a type that is not kept.

    Source:
        The format's own description, huggingface/safetensors: README, section Format.
    """
    file = PreadFile(path)
    start, entries = _read_header(file)
    name = choose_data(path, list(entries), member)
    entry = entries[name]
    if entry.kind not in DATA_TYPES:
        raise DataError(
            f"{path}: tensor {name!r} must be one of {', '.join(DATA_TYPES)}, got {entry.kind}"
        )
    label_name = choose_labels(path, list(entries), labels)
    found = None if label_name is None else _read_labels(file, start, label_name, entries)
    layout = Layout(entry.shape, DATA_TYPES[entry.kind], start + entry.begin)
    return layout_source(file, layout, found)


def _read_header(file: PreadFile) -> tuple[int, dict[str, _Entry]]:
    """Byte where the tensors start, and the tensors by name."""
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise DataError(
            f"{file.path}: header must have at most {MAX_HEADER_BYTES} bytes, got {length}"
        )
    try:
        header = json.loads(file.read(8, length).decode(), object_pairs_hook=_unique)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.path}: header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise DataError(f"{file.path}: header must be a JSON object, got {type(header).__name__}")
    header.pop("__metadata__", None)
    room = file.size - 8 - length
    entries = {name: _parse(file.path, name, entry, room) for name, entry in header.items()}
    if not entries:
        raise DataError(f"{file.path}: must hold a tensor, got none")
    return 8 + length, entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _parse(path: str, name: str, entry: Any, room: int) -> _Entry:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise DataError(f"{where} must have dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise DataError(f"{where} has a malformed dtype, shape or data_offsets")
    begin, end = offsets
    if not begin <= end <= room:
        raise DataError(f"{where} lies at bytes {begin} to {end} of {room}: truncated or malformed")
    if kind in ITEM_BYTES and end - begin != prod(shape) * ITEM_BYTES[kind]:
        raise DataError(f"{where} of type {kind} and shape {shape} has {end - begin} bytes")
    return _Entry(kind, tuple(shape), begin, end)


def _sizes(value: Any) -> bool:
    """A list of integers, zero or more; JSON's true and 1.0 are none."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _read_labels(file: PreadFile, start: int, name: str, entries: dict[str, _Entry]) -> Tensor:
    entry = entries[name]
    where = f"{file.path}: tensor {name!r}"
    if entry.kind not in LABEL_TYPES:
        raise DataError(f"{where}: labels must be integers, got {entry.kind}")
    if entry.end - entry.begin > MAX_MEMBER_BYTES:
        raise DataError(f"{where}: labels must have at most {MAX_MEMBER_BYTES} bytes")
    content = file.read(start + entry.begin, entry.end - entry.begin)
    return to_labels(np.frombuffer(content, LABEL_TYPES[entry.kind]).reshape(entry.shape), where)
