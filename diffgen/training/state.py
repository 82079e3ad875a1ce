"""From a network, its average and its optimizer to the tensors of a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from diffgen.errors import DataError


def capture(
    network: nn.Module, average: AveragedModel | None, optimizer: Optimizer
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors of a checkpoint by group, and what of the optimizer is none.

    Raises:
        TypeError: The optimizer keeps something that is neither a tensor nor a plain number.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            elif value is None or isinstance(value, bool | int | float):
                values[f"{index}.{name}"] = value
            else:
                raise TypeError(
                    f"the state of an optimizer must be tensors and numbers, got {name} of type "
                    f"{type(value).__name__}"
                )
    groups = {"network": dict(network.state_dict()), "optimizer": tensors}
    if average is not None:
        groups["average"] = dict(average.module.state_dict())
    return groups, values


def restore(
    path: Path,
    groups: Mapping[str, Mapping[str, Tensor]],
    values: Mapping[str, Any],
    network: nn.Module,
    average: AveragedModel | None,
    optimizer: Optimizer,
) -> None:
    """Put what `capture` gave back in place; nothing is changed unless all of it fits.

    Args:
        path: The checkpoint, for messages.
        groups: Its tensors.
        values: What of the optimizer is none.
        network: The network.
        average: Its average.
        optimizer: Its optimizer, with no state so far.

    Raises:
        ValueError: The network has another architecture.
        DataError: The average or the optimizer's state is not that of such a network.
    """
    check_architecture(path / "network.safetensors", groups["network"], network)
    if average is not None:
        file = path / "average.safetensors"
        if "average" not in groups:
            raise DataError(f"{file}: missing, though the run has a moving average")
        check_architecture(file, groups["average"], average.module)
    state = _optimizer_state(path, groups["optimizer"], values, optimizer)
    load(network, groups["network"])
    if average is not None:
        load(average.module, groups["average"])
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def check_architecture(file: Path, tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    """Compare the names, shapes and types of a file's tensors with those of a network.

    Raises:
        ValueError: They differ; the message names the file and the first tensor that does.
    """
    own = network.state_dict()
    for name in dict.fromkeys((*own, *tensors)):
        need, got = (_kind(of.get(name)) for of in (own, tensors))
        if need != got:
            raise ValueError(
                f"{file}: of another architecture than the network: {name!r} must be {need}, "
                f"got {got}"
            )


def load(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors of the same architecture into a network."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(tensors[name])


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _optimizer_state(
    path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], optimizer: Optimizer
) -> dict[int, dict[str, Any]]:
    """The state by parameter, checked against the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *values.items()):
        file = path / "optimizer.safetensors"
        index, _, name = key.partition(".")
        if not (index.isdecimal() and int(index) < len(parameters) and name):
            raise DataError(f"{file}: {key!r} must be of one of {len(parameters)} parameters")
        shape = parameters[int(index)].shape
        if isinstance(value, Tensor) and value.ndim and value.shape != shape:
            raise DataError(
                f"{file}: {key!r} must have the shape of its parameter, {tuple(shape)}, "
                f"got {tuple(value.shape)}"
            )
        state.setdefault(int(index), {})[name] = value
    return state
