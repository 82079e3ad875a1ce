"""File formats a training set can be read from: one table, one file a format.

A new format is an entry in ``FORMATS``: how to tell it by its path, and a function that opens it
as a ``Source``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from diffgen.errors import DataError
from diffgen.readers.cifar10 import find_folder, open_cifar10
from diffgen.readers.hugging_face import is_dataset, open_dataset
from diffgen.readers.image_files import LABEL_FILE, open_edm, open_image_folder
from diffgen.readers.npy import open_npy
from diffgen.readers.npz import open_npz
from diffgen.readers.packed import META_FILE, open_packed
from diffgen.readers.safetensors import open_safetensors
from diffgen.readers.sharded import is_sharded, open_sharded
from diffgen.readers.source import LabelRequest, Source, assemble

__all__ = ["FORMATS", "Format", "LabelRequest", "Source", "assemble", "open_source"]

Opener: TypeAlias = Callable[[str, str | None, LabelRequest], Source]


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: What it is called in messages.
        matches: Whether a path that exists is of this format.
        open: Opens it, given the path, ``member`` and ``labels``.
    """

    name: str
    matches: Callable[[str], bool]
    open: Opener


def _file(*suffixes: str) -> Callable[[str], bool]:
    return lambda path: os.path.isfile(path) and path.lower().endswith(suffixes)


def _folder_with(name: str) -> Callable[[str], bool]:
    return lambda path: os.path.isfile(os.path.join(path, name))


FORMATS: tuple[Format, ...] = (
    Format(".npy", _file(".npy"), open_npy),
    Format(".npz", _file(".npz"), open_npz),
    Format(".safetensors", _file(".safetensors"), open_safetensors),
    Format("CIFAR-10 .tar.gz", _file(".tar.gz", ".tgz", ".tar"), open_cifar10),
    Format("EDM dataset .zip", _file(".zip"), open_edm),
    Format("packed set (a folder with meta.json)", _folder_with(META_FILE), open_packed),
    Format("CIFAR-10 folder", lambda path: find_folder(path) is not None, open_cifar10),
    Format("EDM dataset folder (with dataset.json)", _folder_with(LABEL_FILE), open_edm),
    Format("Hugging Face dataset (save_to_disk, or .parquet)", is_dataset, open_dataset),
    Format(
        "folder of shards (.npy, .npz, .safetensors, EDM .zip or packed sets)",
        is_sharded,
        open_sharded,
    ),
    Format("folder of images", os.path.isdir, open_image_folder),
)
"""The formats, tried in this order."""


def open_source(
    path: str | os.PathLike[str], member: str | None = None, labels: LabelRequest = None
) -> Source:
    """Open the rows of a file or folder, in the format its path shows.

    Args:
        path: File or folder.
        member: Which array of a file with several, or ``"train"`` or ``"test"`` of CIFAR-10.
        labels: None, those the format defines; True, required; False, none; or the name of the
            member that holds them.

    Returns:
        An open source: a context manager.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: ``member`` or ``labels`` does not fit the file.
        DataError: No known format, or a damaged or refused file; with the place.
    """
    name = os.fspath(path)
    if not os.path.exists(name):
        raise FileNotFoundError(f"path must exist, got {name}")
    for known in FORMATS:
        if known.matches(name):
            return known.open(name, member, labels)
    formats = ", ".join(known.name for known in FORMATS)
    raise DataError(f"path must be one of: {formats}; got {name}")
