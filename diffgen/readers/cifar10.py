"""CIFAR-10 as its authors publish it: binary or Python version, unpacked or as a .tar.gz."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers import inert_pickle
from diffgen.readers.archive import read_tar
from diffgen.readers.limits import MAX_MEMBER_BYTES
from diffgen.readers.members import check_request
from diffgen.readers.pread import PreadFile
from diffgen.readers.source import Array, LabelRequest, Source

PARTS = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
"""Batches of each part, in order."""

SUBFOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
"""Where the batches lie, seen from the folder that is named."""

IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3072


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

    The Python version is a set of pickles, which are read without running anything in them. A
    part is held in memory while it is open: 154 MB.

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
    contents = _from_folder(path, part) if os.path.isdir(path) else _from_tar(path, part)
    batches = [
        _parse(name, content, f"{path}: {name}")
        for name, content in _in_order(path, contents, part)
    ]
    found = torch.from_numpy(np.concatenate([numbers for _, numbers in batches]))
    check_request(path, labels, found=True)
    images = [torch.from_numpy(rows) for rows, _ in batches]
    shape = (len(found), *IMAGE_SHAPE)

    def blocks(rows: int) -> Iterator[Tensor]:
        for batch in images:
            yield from batch.view(-1, *IMAGE_SHAPE).split(rows)

    return Source(path, shape, torch.uint8, blocks, None if labels is False else found)


def _file_names(part: str) -> list[str]:
    return [batch + end for batch in PARTS[part] for end in (".bin", "")]


def _from_folder(path: str, part: str) -> dict[str, bytes]:
    folder = find_folder(path) or path
    contents = {}
    for name in _file_names(part):
        place = os.path.join(folder, name)
        if os.path.exists(place):
            with PreadFile(place) as file:
                contents[name] = file.read_all(MAX_MEMBER_BYTES)
    return contents


def _from_tar(path: str, part: str) -> dict[str, bytes]:
    wanted = _file_names(part)
    members = read_tar(path, lambda name: PurePosixPath(name).name in wanted)
    return {PurePosixPath(name).name: content for name, content in members}


def _in_order(path: str, contents: dict[str, bytes], part: str) -> Iterator[tuple[str, bytes]]:
    """The batches in the order of the set, binary before Python where both are there."""
    end = ".bin" if any(name.endswith(".bin") for name in contents) else ""
    for batch in PARTS[part]:
        if batch + end not in contents:
            raise DataError(f"{path}: must hold {batch + end} of CIFAR-10")
        yield batch + end, contents[batch + end]


def _parse(name: str, content: bytes, where: str) -> tuple[Array, Array]:
    """Images ``(n, 3072)`` uint8 and labels ``(n,)`` int64 of a batch."""
    if name.endswith(".bin"):
        if len(content) == 0 or len(content) % (IMAGE_BYTES + 1):
            raise DataError(
                f"{where}: must be records of {IMAGE_BYTES + 1} bytes, got {len(content)} bytes"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, IMAGE_BYTES + 1)
        images, labels = records[:, 1:].copy(), records[:, 0].astype(np.int64)
    else:
        images, labels = _parse_pickle(content, where)
    if labels.min() < 0 or labels.max() > 9:
        row = int(((labels < 0) | (labels > 9)).argmax())
        raise DataError(f"{where}: labels must be in [0, 9], got {labels[row]} at index {row}")
    return images, labels


def _parse_pickle(content: bytes, where: str) -> tuple[Array, Array]:
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
