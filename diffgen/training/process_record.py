"""Processes as plain data and back, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import torch

from diffgen.process_base import Process
from diffgen.processes import DDPM, PROCESSES

_NAMED_BETAS = ("linear", "cosine")


def describe_process(process: Process | None) -> dict[str, Any] | None:
    """What rebuilds a process of `PROCESSES`, as JSON has it; None for any other.

    Example:
        >>> describe_process(DDPM("cosine", 50))
        {'name': 'ddpm', 'arguments': {'betas': 'cosine', 'num_steps': 50}}
    """
    for name, kind in PROCESSES.items():
        if type(process) is not kind:
            continue
        if isinstance(process, DDPM):
            return {"name": name, "arguments": _ddpm_arguments(process)}
        if is_dataclass(process):
            return {"name": name, "arguments": asdict(process)}
    return None


def build_process(description: Mapping[str, Any]) -> Process:
    """The process that `describe_process` described; nothing else is ever made.

    Raises:
        ValueError: A description of another form, of no process of the table, or with arguments
            that it does not take.

    Example:
        >>> build_process({"name": "edm", "arguments": {}})
        EDM()
    """
    name, arguments = description.get("name"), description.get("arguments")
    if name not in PROCESSES or not isinstance(arguments, dict):
        known = ", ".join(PROCESSES)
        raise ValueError(f"process must be one of {known} with its arguments, got {name!r}")
    given = dict(arguments)
    try:
        if isinstance(given.get("betas"), list):
            given["betas"] = torch.tensor(given["betas"], dtype=torch.float64)
        return PROCESSES[name](**given)
    except TypeError as error:
        raise ValueError(f"arguments of the process {name} do not fit: {error}") from error


def _ddpm_arguments(process: DDPM) -> dict[str, Any]:
    for betas in _NAMED_BETAS:
        if torch.equal(DDPM(betas, process.num_steps).betas, process.betas):
            return {"betas": betas, "num_steps": process.num_steps}
    return {"betas": process.betas.tolist()}
