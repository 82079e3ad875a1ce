"""Networks out of checkpoints, without the run that wrote them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffgen.errors import DataError
from diffgen.networks import build
from diffgen.predictor import NetworkDenoiser, as_denoiser
from diffgen.training.checkpoint import STATE, latest_checkpoint, load_checkpoint
from diffgen.training.process_record import build_process
from diffgen.training.state import check_architecture, load


def load_network(
    path: str | os.PathLike[str], network: nn.Module | None = None, *, average: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    """A trained network, and the identity of the run it is from.

    Args:
        path: A checkpoint, or the folder of a run, whose newest sound one is taken.
        network: What the tensors are loaded into; None builds it from the description that
            checkpoints of diffgen's own networks have. Nothing else in the file is run.
        average: Whether to take the moving average of the parameters, where there is one.

    Returns:
        The network, in evaluation mode; and the record of ``settings``, ``network``,
        ``training_set`` and ``objective``.

    Raises:
        FileNotFoundError: There is no checkpoint.
        DataError: It is damaged, or its description is of no network of diffgen.
        ValueError: It is of another architecture than the network.

    Example:
        >>> import tempfile
        >>> from diffgen import TrainingSet, processes
        >>> from diffgen.networks import MLP
        >>> from diffgen.objectives import NoisePrediction
        >>> from diffgen.training import train
        >>> points, objective = TrainingSet(torch.eye(2)), NoisePrediction(processes.DDPM())
        >>> network = MLP((2,), width=8, depth=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train(network, points, objective, num_steps=2, checkpoint_dir=folder)
        ...     loaded, run = load_network(folder)
        >>> type(loaded).__name__, run["settings"]["num_steps"]
        ('MLP', 2)
    """
    folder = Path(path)
    if (folder / STATE).exists():
        checkpoint = load_checkpoint(folder)
    else:
        found = latest_checkpoint(folder)
        if found is None:
            raise FileNotFoundError(2, "there is no checkpoint", str(folder))
        folder, checkpoint = found
    identity: dict[str, Any] = checkpoint.record["identity"]
    group = "average" if average and "average" in checkpoint.tensors else "network"
    file, tensors = folder / f"{group}.safetensors", checkpoint.tensors[group]
    if network is None:
        network = _described(folder / STATE, identity)
        check_architecture(file, tensors, network)
        network.to_empty(device="cpu")
    else:
        check_architecture(file, tensors, network)
    load(network, tensors)
    return network.eval(), identity


def load_denoiser(
    path: str | os.PathLike[str], network: nn.Module | None = None, *, average: bool = True
) -> tuple[NetworkDenoiser, dict[str, Any]]:
    """A trained network as ``(x, sigma) -> denoised``, for samplers; see `load_network`.

    Its times are those that the process has, as in training.

    Raises:
        DataError: The run's objective is none of diffgen, so that process and target are unknown.

    Example:
        >>> import tempfile
        >>> from diffgen import TrainingSet, processes
        >>> from diffgen.networks import MLP
        >>> from diffgen.objectives import NoisePrediction
        >>> from diffgen.training import train
        >>> points, objective = TrainingSet(torch.eye(2)), NoisePrediction(processes.DDPM())
        >>> network = MLP((2,), width=8, depth=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train(network, points, objective, num_steps=2, checkpoint_dir=folder)
        ...     loaded, run = load_denoiser(folder)
        >>> loaded.process, loaded.target
        (DDPM(betas='linear', num_steps=1000), 'epsilon')
    """
    loaded, identity = load_network(path, network, average=average)
    objective = identity["objective"]
    try:
        process = build_process(objective["process"])
        return as_denoiser(loaded, process, objective["target"], nearest=True), identity
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{Path(path)}: no process and target of diffgen are with the network: {error}"
        ) from error


def _described(file: Path, identity: dict[str, Any]) -> nn.Module:
    """The network of a description, on the meta device: its memory is not asked for yet."""
    try:
        with torch.device("meta"):
            return build(identity.get("network", {}))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{file}: no description of a network of diffgen: {error}; pass the network"
        ) from error
