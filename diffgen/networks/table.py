"""The networks of diffgen by name: the default for a shape, and what rebuilds one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from diffgen.networks.mlp import MLP
from diffgen.networks.time_scale import TimeScale
from diffgen.networks.unet import UNet
from diffgen.process_base import Process

NETWORKS: dict[str, type[MLP] | type[UNet]] = {"mlp": MLP, "unet": UNet}
"""Every network by its name."""

_IMAGE_SIDE = 16
"""Images of at least so many pixels a side get a U-Net."""


def default_network(
    sample_shape: Sequence[int],
    process: Process | None = None,
    *,
    name: str = "auto",
    generator: torch.Generator | None = None,
    **arguments: Any,
) -> MLP | UNet:
    """A new network for samples of a shape: ``(x_t, t) -> prediction``.

    Args:
        sample_shape: Shape S of one sample.
        process: The process whose times it takes; None for a DDPM of 1,000 steps.
        name: Which network: ``"mlp"``, ``"unet"``, or ``"auto"`` for a U-Net where the samples are
            images ``(C, H, W)`` of 16 pixels or more a side, and an MLP elsewhere.
        generator: Source of the initial weights, on the CPU; None is PyTorch's own.
        **arguments: More for the network's own constructor, such as ``width``.

    Raises:
        ImportError: A U-Net without diffusers.
        ValueError: There is no such network, or an argument does not suit it.

    Example:
        >>> network = default_network((1, 8, 8), generator=torch.Generator().manual_seed(0))
        >>> type(network).__name__, sum(p.numel() for p in network.parameters())
        ('MLP', 726080)
    """
    if name == "auto":
        image = len(sample_shape) == 3 and min(sample_shape[1:]) >= _IMAGE_SIDE
        name = "unet" if image else "mlp"
    if process is not None:
        arguments["time_scale"] = TimeScale.of(process)
    return _named(name)(sample_shape, generator=generator, **arguments)


def describe(network: nn.Module) -> dict[str, Any] | None:
    """What rebuilds a network of `NETWORKS`, as JSON has it; None for any other.

    Example:
        >>> describe(MLP((2,), width=8, depth=1))["name"]
        'mlp'
    """
    for name, kind in NETWORKS.items():
        if type(network) is kind:
            return {"name": name, "arguments": network.arguments}
    return None


def build(description: Mapping[str, Any]) -> MLP | UNet:
    """The network that `describe` described, with new weights.

    Nothing but the constructors of `NETWORKS` is called, so that a description may come from a
    file of a stranger.

    Raises:
        ValueError: A description of another form, of no network of the table, or with arguments
            that its constructor does not take.

    Example:
        >>> build(describe(MLP((2,), width=8, depth=1))).arguments["width"]
        8
    """
    if set(description) != {"name", "arguments"} or not isinstance(description["arguments"], dict):
        raise ValueError(f"description must have name and arguments, got {list(description)}")
    kind = _named(description["name"])
    try:
        return kind(**description["arguments"])
    except TypeError as error:
        raise ValueError(f"arguments of {description['name']} do not fit: {error}") from error


def _named(name: str) -> type[MLP] | type[UNet]:
    if name not in NETWORKS:
        raise ValueError(f"name must be one of {', '.join(NETWORKS)}, got {name!r}")
    return NETWORKS[name]
