"""CIFAR-10 as its authors publish it: binary or Python version, unpacked or as a .tar.gz."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
import torch

from diffgen.errors import DataError
from diffgen.readers import inert_pickle
from diffgen.readers.archive import read_tar
from diffgen.readers.limits import MAX_MEMBER_BYTES
from diffgen.readers.members import check_request
from diffgen.readers.pread import Layout, PreadFile, layout_source
from diffgen.readers.source import Array, LabelRequest, Source, join, tensor_source

PARTS = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
"""Batches of each part, in order."""

SUBFOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
"""Where the batches lie, seen from the folder that is named."""

IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3072
RECORD_BYTES = 1 + IMAGE_BYTES
"""A label and an image of the binary version."""


def find_folder(path: str) -> str | None:
    """The folder that holds the batches, ``path`` or one just below it; None if there is none."""
    for inside in SUBFOLDERS:
        folder = os.path.join(path, inside)
        for batch in PARTS["train"] + PARTS["test"]:
            if any(os.path.isfile(os.path.join(folder, batch + end)) for end in ("", ".bin")):
                return folder
    return None


def open_cifar10(path: str, member: str | None, labels: LabelRequest) -> Source:
    """Open CIFAR-10.

    The batches of an unpacked binary version are read where they lie. The Python version is a set
    of pickles, which are read without running anything in them: a part of it, and of an archive,
    is held in memory while it is open, 154 MB.

    Args:
        path: The folder, the folder above it, or the .tar.gz.
        member: ``"train"`` (also None) or ``"test"``.
        labels: False passes over them.

    Returns:
        Rows ``(N, 3, 32, 32)`` uint8.

    Raises:
        ValueError: Another member.
        DataError: A batch is missing, damaged or refused; with its name.

    Source:
        https://www.cs.toronto.edu/~kriz/cifar.html
    """
    part = "train" if member is None else member
    if part not in PARTS:
        raise ValueError(f"member must be one of {sorted(PARTS)} for {path}, got {member!r}")
    check_request(path, labels, found=True)
    from_place = _from_folder if os.path.isdir(path) else _from_tar
    with ExitStack() as opened:
        batches = [opened.enter_context(batch) for batch in from_place(path, part)]
        found = [batch.labels for batch in batches if batch.labels is not None]
        whole = join(path, batches, None if labels is False else torch.cat(found))
        opened.pop_all()
        return whole


def _file_names(part: str) -> list[str]:
    return [batch + end for batch in PARTS[part] for end in (".bin", "")]


def _from_folder(path: str, part: str) -> Iterator[Source]:
    folder = find_folder(path) or path
    names = [name for name in _file_names(part) if os.path.exists(os.path.join(folder, name))]
    for name in _in_order(path, names, part):
        file = PreadFile(os.path.join(folder, name))
        where = f"{path}: {name}"
        if name.endswith(".bin"):
            yield _binary_source(file, where)
        else:
            yield _in_memory(file, *_parse_pickle(file.read_all(MAX_MEMBER_BYTES), where))


def _from_tar(path: str, part: str) -> Iterator[Source]:
    wanted = _file_names(part)
    file = PreadFile(path)
    members = read_tar(path, lambda name: PurePosixPath(name).name in wanted)
    contents = {PurePosixPath(name).name: content for name, content in members}
    for name in _in_order(path, list(contents), part):
        where = f"{path}: {name}"
        # Taken out: the packed and the parsed form of one batch are in memory, not of all.
        content = contents.pop(name)
        parse = _parse_records if name.endswith(".bin") else _parse_pickle
        yield _in_memory(file, *parse(content, where))


def _in_order(path: str, names: Sequence[str], part: str) -> Iterator[str]:
    """The batches in the order of the set, binary before Python where both are there."""
    end = ".bin" if any(name.endswith(".bin") for name in names) else ""
    for batch in PARTS[part]:
        if batch + end not in names:
            raise DataError(f"{path}: must hold {batch + end} of CIFAR-10")
        yield batch + end


def _in_memory(file: PreadFile, images: Array, labels: Array) -> Source:
    """Rows that were read from a file as a whole."""
    rows = torch.from_numpy(images).view(-1, *IMAGE_SHAPE)
    source = tensor_source(rows, torch.from_numpy(labels), file.path)
    return replace(source, check=file.check, close=file.close)


def _binary_source(file: PreadFile, where: str) -> Source:
    """Rows of a batch of the binary version, each behind its label."""
    count = _count_records(file.size, where)
    labels = np.empty(count, np.uint8)
    file.read_rows(labels.data, 0, 1, RECORD_BYTES)
    _check_labels(labels, where)
    layout = Layout((count, *IMAGE_SHAPE), torch.uint8, offset=1, stride=RECORD_BYTES)
    return layout_source(file, layout, torch.from_numpy(labels.astype(np.int64)))


def _parse_records(content: bytes, where: str) -> tuple[Array, Array]:
    """Images ``(n, 3072)`` uint8 and labels ``(n,)`` int64 of a batch of the binary version."""
    count = _count_records(len(content), where)
    records = np.frombuffer(content, np.uint8).reshape(count, RECORD_BYTES)
    _check_labels(records[:, 0], where)
    return records[:, 1:].copy(), records[:, 0].astype(np.int64)


def _count_records(size: int, where: str) -> int:
    if size == 0 or size % RECORD_BYTES:
        raise DataError(f"{where}: must be records of {RECORD_BYTES} bytes, got {size} bytes")
    return size // RECORD_BYTES


def _check_labels(labels: Array, where: str) -> None:
    if labels.max() > 9:
        row = int((labels > 9).argmax())
        raise DataError(f"{where}: labels must be in [0, 9], got {labels[row]} at index {row}")


def _parse_pickle(content: bytes, where: str) -> tuple[Array, Array]:
    """Images ``(n, 3072)`` uint8 and labels ``(n,)`` int64 of a batch of the Python version."""
    batch = inert_pickle.load(content, where)
    if not isinstance(batch, dict):
        raise DataError(f"{where}: must be a pickled dict, got {type(batch).__name__}")
    fields = {}
    for key, value in batch.items():
        name = inert_pickle.to_bytes(key)
        fields[name.decode("latin1") if isinstance(name, bytes) else name] = value
    images = inert_pickle.to_array(fields.get("data"), f"{where}: data")
    labels = fields.get("labels")
    if images.ndim != 2 or images.shape[1] != IMAGE_BYTES or len(images) == 0:
        raise DataError(f"{where}: data must have shape (n, {IMAGE_BYTES}), got {images.shape}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{where}: labels must be a list of integers")
    if len(labels) != len(images):
        raise DataError(f"{where}: {len(labels)} labels for {len(images)} images")
    if not all(0 <= label <= 9 for label in labels):
        raise DataError(f"{where}: labels must be in [0, 9]")
    return images.copy(), np.array(labels, dtype=np.int64)
