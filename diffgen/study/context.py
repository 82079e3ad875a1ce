"""What a stage is given: settings, data, process, its own random numbers, earlier results."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.processes import DDPM
from diffgen.study.settings import StudySettings
from diffgen.study.stages import Found
from diffgen.training_set import TrainingSet

Share = Callable[[TrainingSet], TrainingSet]
"""From a whole set to the same, held in parts by several processes."""


@dataclass(frozen=True)
class StudyData:
    """The images of a study.

    Attributes:
        name: What they are called.
        training: Those that models are made of.
        held_out: Images of the same source that no model has seen, ``(M, *S)``.
        limits: The values that pictures draw black and white.
    """

    name: str
    training: TrainingSet
    held_out: Tensor
    limits: tuple[float, float]

    @property
    def elements(self) -> int:
        """Elements of one image."""
        return prod(self.training.sample_shape)

    def record(self) -> dict[str, Any]:
        """What identifies the data."""
        return {
            "name": self.name,
            "num_training": self.training.num_stored,
            "num_held_out": len(self.held_out),
            "sample_shape": list(self.training.sample_shape),
            "dtype": str(self.training.dtype).removeprefix("torch."),
            "flip": self.training.flip,
            "training_sha256": self.training.sha256,
            "held_out_sha256": TrainingSet(self.held_out).sha256,
            "limits": list(self.limits),
        }


class Context(Found):
    """The one argument of a stage.

    Attributes:
        settings: What to do.
        data: What to do it on.
        process: The noising process of all networks and samplers: DDPM with linear betas.
        folder: Where networks that are trained one by one keep their checkpoints.
        backend: What runs the empirical denoisers.
        share: From a whole set to the same, held in parts by several processes.
    """

    def __init__(
        self,
        settings: StudySettings,
        data: StudyData,
        folder: Path = Path("networks"),
        backend: str = "auto",
        share: Share | None = None,
    ) -> None:
        """Keep what is given."""
        super().__init__()
        self.folder = folder
        self.settings = settings
        self.data = data
        self.process = DDPM()
        self.backend = backend
        self.share = share

    def generator(self, purpose: str) -> torch.Generator:
        """A source of random numbers of its own for each purpose under one seed.

        What one stage draws then does not depend on which other stages ran.
        """
        text = f"{purpose} {self.settings.seed}"
        return torch.Generator().manual_seed(zlib.crc32(text.encode()))

    def denoiser(self, training_set: TrainingSet | Tensor) -> EmpiricalDenoiser:
        """The optimum of a set."""
        if isinstance(training_set, Tensor):
            training_set = TrainingSet(training_set)
        return EmpiricalDenoiser(training_set, backend=self.backend)

    def noise(self, purpose: str, count: int) -> Tensor:
        """Standard normal noise of the samples' shape, ``(count, *S)`` float64."""
        shape = (count, *self.data.training.sample_shape)
        return torch.randn(shape, generator=self.generator(purpose), dtype=torch.float64)

    def optimum_set(self) -> TrainingSet:
        """The set whose optimum is sampled: all training images, or as many as the settings say."""
        count = self.settings.optimum_points
        chosen = self.data.training
        if count is not None and count < chosen.num_stored:
            chosen = chosen.subset(self._order("optimum set")[:count].sort().values)
        return chosen if self.share is None else self.share(chosen)

    def replica_sets(self) -> list[TrainingSet]:
        """The disjoint sets of the replicas.

        Raises:
            ValueError: If there are too few training images.
        """
        replicas, points = self.settings.replicas, self.settings.replica_points
        need, have = replicas * points, self.data.training.num_stored
        if have < need:
            raise ValueError(
                f"{replicas} disjoint sets of {points} need {need} training images, got {have}"
            )
        order = self._order("replica sets")[:need].reshape(replicas, points)
        return [self.data.training.subset(rows.sort().values) for rows in order]

    def seed_set(self) -> TrainingSet:
        """The one set of the networks that differ in objective and seed."""
        points = self.settings.seed_points
        if self.data.training.num_stored < points:
            have = self.data.training.num_stored
            raise ValueError(f"a set of {points} needs as many training images, got {have}")
        return self.data.training.subset(self._order("seed set")[:points].sort().values)

    def _order(self, purpose: str) -> Tensor:
        count = self.data.training.num_stored
        return torch.randperm(count, generator=self.generator(purpose))


def points_of(training_set: TrainingSet) -> Tensor:
    """All points of a small set, ``(N, *S)`` float32."""
    return training_set[torch.arange(training_set.num_stored)]
