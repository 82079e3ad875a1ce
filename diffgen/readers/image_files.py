"""Many images in one place: a folder, a folder of classes, an EDM dataset in a folder or a zip."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Protocol

import torch
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers.archive import SafeZip
from diffgen.readers.descriptors import Identity
from diffgen.readers.images import OTHER_SUFFIXES, SUFFIXES, image_source
from diffgen.readers.limits import MAX_MEMBER_BYTES
from diffgen.readers.members import check_request, refuse_member
from diffgen.readers.npy import read_all, read_header, stored_type
from diffgen.readers.pread import PreadFile
from diffgen.readers.source import Array, LabelRequest, Source, check_shape

LABEL_FILE = "dataset.json"
"""Where EDM keeps the labels."""


class _Place(Protocol):
    """Files by name, of a folder or an archive."""

    path: str

    def names(self) -> list[str]: ...
    def read(self, name: str, limit: int = MAX_MEMBER_BYTES) -> bytes: ...
    def packed_bytes(self) -> int: ...
    def check(self, names: Sequence[str]) -> None: ...
    def close(self) -> None: ...


class Folder:
    """The files under a folder; hidden ones are passed over, links to folders refused."""

    def __init__(self, path: str) -> None:
        """List the files.

        Args:
            path: The folder.

        Raises:
            DataError: A link to a folder, or something that is no file, is among them.
        """
        self.path = path
        self._bytes = 0
        # A hash of what identifies a file, and not that itself: there may be a million of them.
        self._identities: dict[str, int] = {}
        pending = [""]
        while pending:
            inside = pending.pop()
            with os.scandir(os.path.join(path, inside)) as entries:
                for entry in entries:
                    name = f"{inside}/{entry.name}" if inside else entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(name)
                    elif entry.is_dir():
                        raise DataError(f"{path}: {name} must be a folder, got a link to one")
                    elif entry.is_file():
                        status = entry.stat()
                        self._bytes += status.st_size
                        self._identities[name] = hash(Identity.of(status))
                    else:
                        raise DataError(f"{path}: {name} must be a regular file")

    def names(self) -> list[str]:
        """Names of the files, relative to the folder, with ``/`` between their parts."""
        return list(self._identities)

    def packed_bytes(self) -> int:
        """Bytes of all files together."""
        return self._bytes

    def read(self, name: str, limit: int = MAX_MEMBER_BYTES) -> bytes:
        """The bytes of a file, at most ``limit``."""
        with PreadFile(os.path.join(self.path, name)) as file:
            self._compare(name, file.identity)
            return file.read_all(limit)

    def check(self, names: Sequence[str]) -> None:
        """``DataError`` when a file of these is not any more the one that was listed."""
        for name in names:
            try:
                status = os.stat(os.path.join(self.path, name))
            except OSError as error:
                raise DataError(f"{self.path}: {name}: {error.strerror}") from error
            self._compare(name, Identity.of(status))

    def _compare(self, name: str, identity: Identity) -> None:
        if hash(identity) != self._identities[name]:
            raise DataError(f"{self.path}: {name}: must not change while the folder is open")

    def close(self) -> None:
        """Close nothing."""


def open_image_folder(path: str, member: str | None, labels: LabelRequest) -> Source:
    """Open a folder of images; where all of them lie in subfolders, those are the classes.

    Rows are sorted by name, classes numbered by the sorted names of the subfolders.

    Args:
        path: The folder.
        member: Must be None.
        labels: False passes over the classes; True requires them.

    Raises:
        DataError: No images, mixed sizes, or an image that is refused; with its name.
    """
    refuse_member(path, member)
    place = Folder(path)
    names = _image_names(place, SUFFIXES)
    classes = sorted({name.split("/")[0] for name in names})
    found = None
    if names and all("/" in name for name in names):
        numbers = {name: number for number, name in enumerate(classes)}
        found = torch.tensor([numbers[name.split("/")[0]] for name in names])
    check_request(path, labels, found is not None)
    return _source(place, names, None if labels is False else found)


def open_edm(path: str, member: str | None, labels: LabelRequest) -> Source:
    """Open a dataset of EDM's tools: a zip or a folder of .png or .npy, labels in dataset.json.

    Args:
        path: The .zip or the folder.
        member: Must be None.
        labels: False passes over the labels; True requires them.

    Raises:
        DataError: A damaged or refused archive, image or list of labels; with its name.
    """
    refuse_member(path, member)
    place: _Place = Folder(path) if os.path.isdir(path) else SafeZip(path)
    names = _image_names(place, (*SUFFIXES, ".npy"))
    found = None
    if labels is not False and LABEL_FILE in place.names():
        found = _edm_labels(place, names)
    check_request(path, labels, found is not None)
    return _source(place, names, found)


def _image_names(place: _Place, suffixes: tuple[str, ...]) -> list[str]:
    names = sorted(place.names())
    for name in names:
        if name.lower().endswith(OTHER_SUFFIXES):
            raise DataError(f"{place.path}: {name}: must be one of {', '.join(suffixes)}")
    return [name for name in names if name.lower().endswith(suffixes)]


def _edm_labels(place: _Place, names: list[str]) -> Tensor | None:
    where = f"{place.path}: {LABEL_FILE}"
    try:
        content = json.loads(place.read(LABEL_FILE))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    pairs = content.get("labels") if isinstance(content, dict) else None
    if pairs is None:
        return None
    by_name: dict[str, int] = {}
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise DataError(f"{where}: labels must be a list of [name, label], got {pair!r:.80}")
        if type(pair[1]) is not int:
            raise DataError(f"{where}: label of {pair[0]} must be an integer, got {pair[1]!r:.80}")
        by_name[pair[0].replace("\\", "/")] = pair[1]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise DataError(f"{where} has no label for {missing[0]}")
    return torch.tensor([by_name[name] for name in names], dtype=torch.int64)


def _source(place: _Place, names: list[str], labels: Tensor | None) -> Source:
    def read(name: str) -> Array | bytes:
        content = place.read(name)
        if PurePosixPath(name).suffix.lower() != ".npy":
            return content
        where = f"{place.path}: {name}"
        stream = io.BytesIO(content)
        header = read_header(stream, where)
        stored_type(header, where)
        check_shape(where, header.shape)
        return read_all(stream, header, where, MAX_MEMBER_BYTES)

    described = [LABEL_FILE] if LABEL_FILE in place.names() else []

    def check() -> None:
        place.check([*described, *names])

    return image_source(place.path, names, read, place.packed_bytes(), labels, place.close, check)
