"""What a study does: how many samples, networks and steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

TINY = 256
"""Samples of at most this many elements are learnt by a small network, many of them at once."""


@dataclass(frozen=True)
class StudySettings:
    """Everything that determines a study's results beside the data and the code.

    Attributes:
        seed: Of everything that is drawn.
        num_samples: Samples of each network.
        optimum_samples: Samples of the optimum by each sampler and number of steps.
        optimum_points: Points of the training set whose optimum is sampled; None takes all.
        sampler_steps: Numbers of steps of the samplers.
        model_steps: Steps of the sampler (DDIM) that draws from networks.
        times: Times of the process at which losses and gaps are measured, ascending.
        level_points: Noised points at each of them.
        replicas: Networks on disjoint training sets (K of the attribution bound).
        replica_points: Points in each of those sets.
        replica_train_steps: Training steps of each.
        seeds: Networks of each objective that differ in their seed alone.
        seed_points: Points of the set that they share.
        seed_train_steps: Training steps of each.
        checkpoints: Training times at which networks are looked at, spread in the logarithm.
        batch_size: Of training.
        learning_rate: At the start of training.
        width: Of the small network.
        depth: Its residual blocks.
        known_draws: Draws of the toy problem whose information is known.
        noised_points: Points of the set whose finite-noise optimum is taken.
        noised_copies: Noised copies of each of them.
        noised_steps: Steps of the process that is sampled to the end from noised points; each of
            them passes over other points.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> StudySettings(replicas=1)
        Traceback (most recent call last):
            ...
        ValueError: replicas must be at least 2, got 1
    """

    seed: int = 0
    num_samples: int = 256
    optimum_samples: int = 128
    optimum_points: int | None = 1000
    sampler_steps: tuple[int, ...] = (10, 50, 200, 1000)
    model_steps: int = 50
    times: tuple[int, ...] = (25, 50, 100, 150, 200, 300, 400, 500, 600, 700, 850, 999)
    level_points: int = 256
    replicas: int = 16
    replica_points: int = 80
    replica_train_steps: int = 5000
    seeds: int = 4
    seed_points: int = 8
    seed_train_steps: int = 8000
    checkpoints: int = 6
    batch_size: int = 32
    learning_rate: float = 2e-3
    width: int = 128
    depth: int = 2
    known_draws: int = 6
    noised_points: int = 50
    noised_copies: int = 32
    noised_steps: int = 200

    def __post_init__(self) -> None:
        """Check the numbers."""
        once = ("model_steps", "replica_train_steps", "seed_train_steps", "checkpoints", "depth")
        least = {name: 1 for name in once}
        least |= {name: 2 for name in ("replicas", "seeds", "known_draws")}
        least |= {
            "num_samples": 8,
            "optimum_samples": 8,
            "replica_points": 4,
            "seed_points": 4,
            "level_points": 8,
        }
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {getattr(self, name)}")
        if self.replica_points % 2:
            raise ValueError(f"replica_points must be even, got {self.replica_points}")

    @property
    def size(self) -> float:
        """Training steps of all networks, as a share of those of the default study."""
        usual = type(self)()
        steps, others = (
            each.replicas * each.replica_train_steps + each.seeds * each.seed_train_steps
            for each in (self, usual)
        )
        return steps / others

    def record(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return asdict(self)


def large(settings: StudySettings) -> StudySettings:
    """The study of a set whose samples are not tiny: fewer, larger networks, fewer samples.

    Networks are diffgen's default ones, trained one after the other: on a machine with a GPU.

    Example:
        >>> large(StudySettings()).replicas
        4
    """
    return replace(
        settings,
        num_samples=64,
        optimum_samples=64,
        optimum_points=None,
        sampler_steps=(10, 50),
        level_points=64,
        replicas=4,
        replica_points=500,
        replica_train_steps=20_000,
        seeds=2,
        seed_points=100,
        seed_train_steps=20_000,
        checkpoints=1,
        learning_rate=2e-4,
        batch_size=64,
        noised_points=50,
        noised_copies=8,
    )


def quick(settings: StudySettings) -> StudySettings:
    """The same study, small: every part runs, and the intervals are wide.

    Example:
        >>> quick(StudySettings()).replicas
        8
    """
    most = {
        "num_samples": 64,
        "optimum_samples": 64,
        "level_points": 64,
        "replicas": 8,
        "replica_points": 40,
        "replica_train_steps": 800,
        "seeds": 2,
        "seed_points": 8,
        "seed_train_steps": 1200,
        "checkpoints": 4,
        "known_draws": 2,
        "noised_points": 20,
        "noised_copies": 8,
        "noised_steps": 50,
    }
    smaller: dict[str, Any] = {
        name: min(value, getattr(settings, name)) for name, value in most.items()
    }
    times = (50, 100, 200, 300, 500, 700)
    return replace(settings, sampler_steps=(10, 50), times=times, **smaller)
