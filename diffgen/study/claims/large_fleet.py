"""Networks on larger samples: trained one after the other, kept in folders, run on the accelerator.

Where samples are not tiny an ensemble does not pay: one network fills the machine. These are
diffgen's default networks, trained by `diffgen.training.train`, whose checkpoints make a stopped
study go on within a network. Only the end of training is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from diffgen.networks import default_network
from diffgen.objectives import Objective
from diffgen.processes import DDPM
from diffgen.training import load_network, train
from diffgen.training_set import TrainingSet

CALL_SIZE = 256
"""Samples in one call of a network."""


class Fleet(Protocol):
    """Networks of one kind at several training times; `Ensemble`, or `NetworkList`."""

    step: int

    @property
    def steps(self) -> tuple[int, ...]:
        """Training times, ascending."""

    def at(self, step: int) -> Fleet:
        """The networks at a training time."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, replica: int) -> Callable[[Tensor, Tensor], Tensor]:
        """One of them, ``(x_t, t) -> epsilon``."""

    def joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        """All of them on one batch, a part each."""


class NetworkList:
    """Networks at the end of their training, called one after the other.

    Args:
        networks: At least one.
        step: Their training time.

    Example:
        >>> fleet = NetworkList([nn.Bilinear(2, 1, 2), nn.Bilinear(2, 1, 2)], step=10)
        >>> len(fleet), fleet.steps
        (2, (10,))
    """

    def __init__(self, networks: Sequence[nn.Module], step: int) -> None:
        """Move the networks to the accelerator, if there is one."""
        self.step = step
        self._networks = [OnAccelerator(network) for network in networks]

    @property
    def steps(self) -> tuple[int, ...]:
        """The one training time."""
        return (self.step,)

    def at(self, step: int) -> NetworkList:
        """These networks.

        Raises:
            ValueError: At another time than theirs.
        """
        if step != self.step:
            raise ValueError(f"step must be {self.step}, got {step}")
        return self

    def __len__(self) -> int:
        """How many there are."""
        return len(self._networks)

    def __getitem__(self, replica: int) -> Callable[[Tensor, Tensor], Tensor]:
        """One of them."""
        return self._networks[replica]

    def joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        """All of them on one batch, a part each."""
        parts = zip(
            self._networks,
            x_t.chunk(len(self)),
            t.expand(len(x_t)).chunk(len(self)),
            strict=True,
        )
        return torch.cat([network(x, time) for network, x, time in parts])


class OnAccelerator:
    """A network on the accelerator for callers whose tensors are on the CPU."""

    def __init__(self, network: nn.Module) -> None:
        """Move the network there."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.eval().to(self._device)

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The prediction, on the device of x_t."""
        times = t.expand(len(x_t)).split(CALL_SIZE)
        parts = zip(x_t.split(CALL_SIZE), times, strict=True)
        return torch.cat(
            [
                self._network(x.to(self._device), time.to(self._device)).to(x_t.device)
                for x, time in parts
            ]
        )


def train_in_folders(
    folder: Path,
    sets: Sequence[TrainingSet],
    objectives: Sequence[Objective],
    seeds: Sequence[int],
    process: DDPM,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
) -> list[str]:
    """Trains one network on each set; what is trained already is taken up.

    Returns:
        The folder of each network, relative to ``folder``.

    Raises:
        ImportError: accelerate, safetensors or diffusers is missing.
        ValueError: A folder holds another run.
    """
    names = []
    for index, (training_set, objective, seed) in enumerate(
        zip(sets, objectives, seeds, strict=True)
    ):
        generator = torch.Generator().manual_seed(seed)
        names.append(f"{index:03d}")
        train(
            default_network(training_set.sample_shape, process, generator=generator),
            training_set,
            objective,
            num_steps=num_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule="constant",
            max_grad_norm=None,
            seed=seed,
            checkpoint_dir=folder / names[-1],
            checkpoint_every=max(1, num_steps // 10),
            progress=True,
        )
    return names


def load_fleet(folder: Path, names: Sequence[str], step: int) -> NetworkList:
    """The networks that `train_in_folders` has trained.

    Raises:
        FileNotFoundError: A checkpoint is gone.
        DataError: One is damaged.
    """
    return NetworkList([load_network(folder / name)[0] for name in names], step)
