"""What stands beside every result: settings, versions, machine, and the set's digest, as JSON."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffgen._version import __version__
from diffgen.machine import cpu_count, cpu_name
from diffgen.training_set import TrainingSet

_NOT_SETTINGS = ("func", "command", "traceback", "group")


def header(args: argparse.Namespace) -> dict[str, Any]:
    """The command with its settings, the versions and the machine."""
    settings = {name: value for name, value in vars(args).items() if name not in _NOT_SETTINGS}
    return {
        "command": args.command,
        "settings": settings,
        "versions": versions(),
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {
        "diffgen": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def machine() -> dict[str, Any]:
    """The machine, and how many of its processors are used."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpus": cpu_count(),
        "threads": torch.get_num_threads(),
    }


def describe_set(training_set: TrainingSet) -> dict[str, Any]:
    """What identifies a training set."""
    return {
        "num_points": training_set.num_stored,
        "sample_shape": list(training_set.sample_shape),
        "dtype": str(training_set.dtype).removeprefix("torch."),
        "flip": training_set.flip,
        "num_classes": training_set.num_classes,
        "sha256": training_set.sha256,
    }


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes a record whole: a reader never sees half of it.

    Tensors become lists, and numbers that JSON does not have become null.

    Raises:
        OSError: If it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(plain(record), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def plain(value: Any) -> Any:
    """A value as JSON has it: tensors as lists, null for numbers that are not finite."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def write_array(path: Path, samples: Tensor) -> None:
    """Writes samples as a .npy file, whole.

    Raises:
        OSError: If it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.save(file, samples.detach().cpu().numpy())
    os.replace(part, path)
