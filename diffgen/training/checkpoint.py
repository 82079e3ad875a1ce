"""Checkpoints: a folder of .safetensors files and one JSON, whole or not there at all.

    step-00001000/
        network.safetensors      parameters and buffers, under the names of ``state_dict``
        average.safetensors      those of the moving average, where there is one
        optimizer.safetensors    the optimizer's tensors, ``<parameter>.<name>``
        state.json               everything else, with the SHA-256 of the files and of itself

A folder is written under another name, flushed to the disk and renamed: whoever is killed while
writing leaves none that is half. Nothing in it is ever run: there is no pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from diffgen.errors import DataError
from diffgen.optional import require

FORMAT = 1
"""Version of the layout."""

STATE = "state.json"

_NAME = re.compile(r"step-(\d{8,})")
_PART = ".part"
_GONE = ".gone"
_GROUPS = ("network", "average", "optimizer")
_FIELDS = {"format": int, "step": int, "files": dict, "record": dict, "sha256": str}
_RECORD = {
    "identity": dict,
    "environment": dict,
    "optimizer": dict,
    "open_row": list,
    "history": list,
    "evaluations": list,
}


@dataclass(frozen=True)
class Checkpoint:
    """A run after some steps.

    Attributes:
        step: Steps that are done.
        tensors: ``network``, ``optimizer`` and, where there is one, ``average``: tensors by name.
        record: The rest, as JSON has it.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    record: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest ``keep``.

    Args:
        folder: Where the checkpoints of a run are; made if it is not there.
        checkpoint: What to write; it replaces one of the same step.
        keep: How many stay, at least 1.

    Returns:
        Its folder.

    Raises:
        OSError: It cannot be written; the checkpoints before are as they were.
    """
    save = require("safetensors.torch", "safetensors", "study").save
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    target = folder / f"step-{checkpoint.step:08d}"
    part = folder / (target.name + _PART)
    part.mkdir()
    files = {}
    for group, tensors in checkpoint.tensors.items():
        # Copies: the format holds no views of one storage, as tied weights are.
        copies = {
            name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()
        }
        content = save(copies)
        name = f"{group}.safetensors"
        _write(part / name, content)
        files[name] = sha256(content).hexdigest()
    state = {
        "format": FORMAT,
        "step": checkpoint.step,
        "files": files,
        "record": checkpoint.record,
    }
    state["sha256"] = _digest(state)
    _write(part / STATE, (json.dumps(state, indent=1, allow_nan=False) + "\n").encode())
    _flush_folder(part)
    if target.exists():  # a damaged one, which was passed over
        _remove(target)
    os.rename(part, target)
    _flush_folder(folder)
    for path in checkpoints(folder)[keep:]:
        if path != target:
            _remove(path)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first; whether they are sound is not looked at.

    Example:
        >>> checkpoints(Path("no-such-folder"))
        []
    """
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path, match in _matches(folder)]
    return [path for _, path in sorted(found, reverse=True)]


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint, and check it against its digests.

    Args:
        path: Its folder.

    Raises:
        FileNotFoundError: There is no such folder.
        DataError: A file is missing, cut off or changed; the message names it.

    Example:
        >>> load_checkpoint(Path("no-such-folder"))
        Traceback (most recent call last):
            ...
        FileNotFoundError: [Errno 2] there is no checkpoint: 'no-such-folder'
    """
    if not path.is_dir():
        raise FileNotFoundError(2, "there is no checkpoint", str(path))
    state = _read_state(path / STATE)
    load = require("safetensors.torch", "safetensors", "study").load
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, digest in state["files"].items():
        group = name.removesuffix(".safetensors")
        if group not in _GROUPS or group == name:
            known = ", ".join(f"{known}.safetensors" for known in _GROUPS)
            raise DataError(f"{path / STATE}: files must be of {known}, got {name!r}")
        content = _read(path / name)
        found = sha256(content).hexdigest()
        if found != digest:
            raise DataError(
                f"{path / name}: cut off or changed: sha256 of its {len(content)} bytes must be "
                f"{digest}, got {found}"
            )
        try:
            tensors[group] = load(content)
        except Exception as error:  # the parser has no public exception of its own
            raise DataError(f"{path / name}: no .safetensors file: {error}") from error
    for group in ("network", "optimizer"):
        if group not in tensors:
            raise DataError(f"{path / STATE}: files must have {group}.safetensors, got none")
    return Checkpoint(state["step"], tensors, state["record"])


def latest_checkpoint(folder: Path) -> tuple[Path, Checkpoint] | None:
    """The newest sound checkpoint of a folder; None where there is none at all.

    A damaged one is passed over with a warning that says what is wrong with it.

    Raises:
        DataError: There are checkpoints, and every one is damaged.

    Example:
        >>> latest_checkpoint(Path("no-such-folder")) is None
        True
    """
    damaged: DataError | None = None
    for path in checkpoints(folder):
        try:
            found = load_checkpoint(path)
        except DataError as error:
            warnings.warn(f"checkpoint passed over: {error}", stacklevel=2)
            damaged = damaged or error
        else:
            return path, found
    if damaged is not None:
        raise damaged
    return None


def _matches(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            yield path, match


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cut off or no JSON: {error}") from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise DataError(f"{path}: must be an object with a format")
    if state["format"] != FORMAT:
        raise DataError(f"{path}: format must be {FORMAT}, got {state['format']}")
    for name, kind in _FIELDS.items():
        if type(state.get(name)) is not kind:
            raise DataError(f"{path}: {name} must be of type {kind.__name__}")
    for name, kind in _RECORD.items():
        if type(state["record"].get(name)) is not kind:
            raise DataError(f"{path}: record.{name} must be of type {kind.__name__}")
    if state.pop("sha256") != _digest(state):
        raise DataError(f"{path}: changed: its sha256 is not that of what it holds")
    return state


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _digest(state: dict[str, Any]) -> str:
    return sha256(json.dumps(state, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Make the names in a folder last; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Take a checkpoint away by a rename first: half of one never has its name."""
    gone = path.with_name(path.name + _GONE)
    os.rename(path, gone)
    shutil.rmtree(gone)


def _remove_leftovers(folder: Path) -> None:
    """What was left by whoever was killed while writing or removing."""
    for path in folder.iterdir():
        if path.suffix in (_PART, _GONE) and _NAME.fullmatch(path.stem):
            shutil.rmtree(path)
