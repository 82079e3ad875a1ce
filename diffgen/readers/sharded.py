"""A folder of shards: files of one array format, or packed sets, taken together as one set."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers.image_files import open_edm
from diffgen.readers.images import SUFFIXES
from diffgen.readers.npy import open_npy
from diffgen.readers.npz import open_npz
from diffgen.readers.pack_journal import JOURNAL_FILE
from diffgen.readers.packed import META_FILE, open_packed
from diffgen.readers.safetensors import open_safetensors
from diffgen.readers.source import LabelRequest, Source, join, type_name

PACKED = "packed set"

OPENERS = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".safetensors": open_safetensors,
    ".zip": open_edm,
    PACKED: open_packed,
}
"""Formats of a shard, by the end of its name."""

UNFINISHED = (".part", ".partial", ".tmp", ".crdownload")
"""Ends of the names of files that something is still writing, or gave up."""

_NUMBERED = re.compile(r"(.*?)(\d+)(-of-(\d+))?", re.DOTALL)


def is_sharded(path: str) -> bool:
    """Whether a folder holds shards, whatever else it holds."""
    return os.path.isdir(path) and any(kind is not None for _, kind in _entries(path))


def open_sharded(path: str, member: str | None, labels: LabelRequest) -> Source:
    """Open a folder of shards as one set, in the sorted order of their names.

    A shard is an .npy, .npz, .safetensors or EDM .zip, or a folder with a packed set; all of one
    format, type and sample shape. Labels are those of all shards. Files that are neither shards
    nor images are passed over.

    A folder does not say how many shards it should hold. Where names end in a number, or in the
    ``-00001-of-00008`` of other tools, one that is missing between them is an error; a packed set
    knows all of its shards.

    Args:
        path: The folder.
        member: Passed on to each shard.
        labels: Passed on to each shard.

    Raises:
        ValueError: ``member`` or ``labels`` does not fit the format.
        DataError: Something that cannot be told from a part of the set; a shard that is missing,
            empty, damaged, or differs from the first in format, type, shape, or in having labels;
            with its name.
    """
    names, kind = _shards(path)
    refuse_gaps(path, names if kind == PACKED else [os.path.splitext(name)[0] for name in names])
    with ExitStack() as opened:
        parts: list[Source] = []
        for name in names:
            part = OPENERS[kind](os.path.join(path, name), member, labels)
            parts.append(opened.enter_context(part))
            _refuse_different(path, names[0], parts[0], name, part)
        whole = join(path, parts, _labels(parts))
        opened.pop_all()
        return whole


def _entries(path: str) -> list[tuple[os.DirEntry[str], str | None]]:
    """What is in a folder and not hidden, and the format it has as a shard, or None."""
    with os.scandir(path) as entries:
        return [(entry, _kind(entry)) for entry in entries if not entry.name.startswith(".")]


def _kind(entry: os.DirEntry[str]) -> str | None:
    if entry.is_dir():
        return PACKED if os.path.isfile(os.path.join(entry.path, META_FILE)) else None
    end = os.path.splitext(entry.name)[1].lower()
    return end if end in OPENERS else None


def _shards(path: str) -> tuple[list[str], str]:
    """Names of the shards, sorted, and their format."""
    entries = sorted(_entries(path), key=lambda pair: pair[0].name)
    shards = [(entry.name, kind) for entry, kind in entries if kind is not None]
    first, kind = shards[0]
    for entry, other in entries:
        name = entry.name
        if name == JOURNAL_FILE or name.lower().endswith(UNFINISHED):
            raise DataError(
                f"{path}: must hold images or a finished set, got {name}: if diffgen pack was "
                "interrupted, run it again"
            )
        if other is None and (entry.is_dir() or name.lower().endswith(SUFFIXES)):
            what = f"a folder without {META_FILE}" if entry.is_dir() else "an image"
            raise DataError(f"{path}: must hold shards like {first} or images, got {name}, {what}")
        if other not in (None, kind):
            raise DataError(f"{path}: {name} must be of the format of {first}, {kind}, got {other}")
    return [name for name, _ in shards], kind


def refuse_gaps(path: str, names: Sequence[str]) -> None:
    """Refuse numbered names with a number missing between them.

    Args:
        path: The folder, for messages.
        names: Names of the shards, without what tells the format.

    Raises:
        DataError: Naming the one that is missing.

    Example:
        >>> refuse_gaps("set", ["part-0001", "part-0003"])
        Traceback (most recent call last):
        ...
        diffgen.errors.DataError: set: part-0002 is missing: it has 2 of part-0001 to part-0003
    """
    groups: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is not None:
            before, number, after, _ = match.groups("")
            groups.setdefault((before, after), {})[int(number)] = number
    for (before, after), group in groups.items():
        first, last = min(group), max(group)
        if after:
            # Counted from 0 or from 1: with N shards, the number N is there in one of them only.
            total = int(after.removeprefix("-of-"))
            first = 1 if total in group else 0
            last = first + total - 1
        missing = next((number for number in range(first, last + 1) if number not in group), None)
        if missing is None:
            continue
        width = min(map(len, group.values()))
        named = [f"{before}{number:0{width}d}{after}" for number in (missing, first, last)]
        raise DataError(
            f"{path}: {named[0]} is missing: it has {len(group)} of {named[1]} to {named[2]}"
        )


def _refuse_different(path: str, first_name: str, first: Source, name: str, part: Source) -> None:
    if (part.dtype, part.shape[1:]) != (first.dtype, first.shape[1:]):
        raise DataError(
            f"{path}: {name} must have type {type_name(first.dtype)} and sample shape "
            f"{first.shape[1:]} of {first_name}, got {type_name(part.dtype)} and {part.shape[1:]}"
        )
    if (part.labels is None) != (first.labels is None):
        has, got = ("labels", "none") if part.labels is None else ("no labels", "some")
        raise DataError(f"{path}: {name} must have {has} like {first_name}, got {got}")


def _labels(parts: Sequence[Source]) -> Tensor | None:
    found = [part.labels for part in parts if part.labels is not None]
    return torch.cat(found) if found else None
