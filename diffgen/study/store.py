"""Finished stages on disk: a JSON of numbers and an ``.npz`` of tensors each, written whole.

A stage's files carry the key of what it was computed from in their names. Other settings, data or
code have other keys, so that a result is never taken for one that it is not, and two studies in one
folder leave each other alone. A file is written under another name, flushed to the disk, and then
renamed: who reads the folder after a crash finds a stage whole or not at all. The JSON comes last
and holds the digests of itself and of the ``.npz``, which is what makes the pair one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from diffgen.study.plain import plain

_KEY_DIGITS = 16


@dataclass(frozen=True)
class StageResult:
    """What a stage has found.

    Attributes:
        values: Numbers, texts and lists of them, as JSON has them.
        arrays: Tensors that later stages take up (samples, parameters), on the CPU.
        seconds: How long it took.
    """

    values: dict[str, Any]
    arrays: dict[str, Tensor]
    seconds: float


def digest(value: Any) -> str:
    """A sha256 of a JSON-able value, whatever the order of its keys.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    text = json.dumps(plain(value), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class StageStore:
    """The finished stages of a folder.

    Args:
        folder: Where they are; made when the first stage is written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = StageStore(Path(folder) / "stages")
        ...     result = StageResult({"ratio": 1.0}, {"samples": torch.zeros(2)}, seconds=0.5)
        ...     store.write("optimum", "0123", result)
        ...     store.read("optimum", "0123").values, store.read("optimum", "4567")
        ({'ratio': 1.0}, None)
    """

    def __init__(self, folder: Path) -> None:
        """Keep the folder."""
        self.folder = folder

    def read(self, name: str, key: str) -> StageResult | None:
        """The stage's result under this key; None where there is none, or only a damaged one.

        A damaged file can only be what a crash of the disk or another program left; the stage runs
        again, which is always right.
        """
        path = self._path(name, key, "json")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.pop("sha256") != digest(record) or record["key"] != key:
                return None
            arrays = self._read_arrays(self._path(name, key, "npz"), record["arrays_sha256"])
            return StageResult(record["values"], arrays, float(record["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, name: str, key: str, result: StageResult) -> None:
        """Keeps a result, whole.

        Raises:
            OSError: If it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {
            key: value.detach().cpu().numpy() for key, value in result.arrays.items()
        }
        path = self._path(name, key, "npz")
        write_whole(path, lambda file: np.savez(file, **arrays))
        record = plain(
            {
                "stage": name,
                "key": key,
                "seconds": result.seconds,
                "arrays_sha256": _file_sha256(path),
                "values": result.values,
            }
        )
        text = json.dumps({**record, "sha256": digest(record)}, allow_nan=False)
        write_whole(self._path(name, key, "json"), lambda file: file.write(text.encode()))

    def _path(self, name: str, key: str, suffix: str) -> Path:
        return self.folder / f"{name}-{key[:_KEY_DIGITS]}.{suffix}"

    @staticmethod
    def _read_arrays(path: Path, sha256: str) -> dict[str, Tensor]:
        if _file_sha256(path) != sha256:
            raise ValueError(f"{path} is not the file that was written")
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file that a reader sees complete or not at all, also after a crash.

    Raises:
        OSError: If it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON, whole; numbers that JSON does not have become null.

    Raises:
        OSError: If it cannot be written.
    """
    text = json.dumps(plain(record), allow_nan=False)
    write_whole(path, lambda file: file.write(text.encode()))


def _file_sha256(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()
