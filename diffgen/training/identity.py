"""What identifies a run: a resumed one must have the same, or it is another run."""

from __future__ import annotations

import json
import platform
from hashlib import sha256
from typing import Any

import torch
from torch import nn

from diffgen._version import __version__
from diffgen.networks import describe
from diffgen.training.process_record import describe_process
from diffgen.training.settings import TrainingSettings, differences
from diffgen.training_set import TrainingSet


def identity(
    settings: TrainingSettings,
    network: nn.Module,
    training_set: TrainingSet,
    objective: Any,
    num_processes: int,
) -> dict[str, Any]:
    """Settings, network, data and objective as JSON has them.

    Raises:
        TypeError: ``objective.settings()`` is not made of JSON's types.
    """
    record = {
        "settings": settings.record(),
        "network": describe(network) or {"class": _name(type(network))},
        "training_set": _describe_set(training_set),
        "objective": _describe_objective(objective),
        "num_processes": num_processes,
    }
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain


def environment(device: torch.device) -> dict[str, Any]:
    """What the last bits of the numbers depend on beside the identity."""
    return {
        "diffgen": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def changes(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What differs between two identities and matters for a resumed run.

    Under a constant learning rate no step depends on how many there will be.
    """
    found = differences(ours, theirs)
    if ours["settings"]["schedule"] == "constant":
        found = [line for line in found if not line.startswith("settings.num_steps ")]
    return found


def _describe_set(training_set: TrainingSet) -> dict[str, Any]:
    log_weights = training_set.log_weight_of(torch.arange(len(training_set))).cpu()
    weighted = not bool((log_weights == log_weights[0]).all())
    return {
        "num_points": training_set.num_stored,
        "sample_shape": list(training_set.sample_shape),
        "flip": training_set.flip,
        "sha256": training_set.sha256,
        "weights_sha256": sha256(log_weights.numpy().tobytes()).hexdigest() if weighted else None,
    }


def _describe_objective(objective: Any) -> dict[str, Any]:
    if not hasattr(objective, "settings"):
        return {"objective": getattr(objective, "__qualname__", None) or _name(type(objective))}
    described: dict[str, Any] = dict(objective.settings())
    process = describe_process(getattr(objective, "process", None))
    if process is not None:
        described["process"] = process
    return described


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
