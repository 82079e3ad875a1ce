"""The networks of a study: replicas on disjoint sets; seeds of several objectives on one set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffgen.networks import MLP, TimeScale
from diffgen.objectives import ForwardTime, NoisePrediction, Objective
from diffgen.processes import DDPM
from diffgen.study.claims.large_fleet import Fleet, load_fleet, train_in_folders
from diffgen.study.context import Context
from diffgen.study.settings import TINY
from diffgen.study.store import digest
from diffgen.training import load_network
from diffgen.training.ensemble import Ensemble
from diffgen.training.ensemble_loop import train_ensemble
from diffgen.training_set import TrainingSet

REPLICAS, SEEDS = "replicas", "seeds"
"""The stages that train."""

WARMUP_STEPS = 100


def objectives(process: DDPM) -> dict[str, Objective]:
    """The objectives that are compared, by name; the first is the original."""
    return {
        "original": NoisePrediction(process),
        "forward, random gap": ForwardTime(process, gap="uniform"),
        "forward, previous point": ForwardTime(process, gap="previous"),
    }


def train_replicas(context: Context) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One network on each of the disjoint sets, with the original objective."""
    settings = context.settings
    sets = context.replica_sets()
    return _train(
        context,
        sets,
        [NoisePrediction(context.process)] * len(sets),
        num_steps=settings.replica_train_steps,
        seeds=[settings.seed * 1000 + k for k in range(len(sets))],
        title=REPLICAS,
    )


def train_seeds(context: Context) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Several networks with each objective on one set.

    Networks of one seed have the same first weights and draw the same points and times, whatever
    their objective is.
    """
    settings = context.settings
    chosen = objectives(context.process)
    seeds = [settings.seed * 1000 + k for k in range(settings.seeds)]
    values, arrays = _train(
        context,
        [context.seed_set()] * (len(chosen) * len(seeds)),
        [objective for objective in chosen.values() for _ in seeds],
        num_steps=settings.seed_train_steps,
        seeds=seeds * len(chosen),
        title=SEEDS,
    )
    return {**values, "objectives": list(chosen), "num_seeds": len(seeds)}, arrays


def fleet_of(context: Context, stage: str) -> Fleet:
    """The networks that a stage has trained, at all its training times."""
    values = context.values(stage)
    if "folders" in values:
        return load_fleet(context.folder / values["folder"], values["folders"], values["steps"][-1])
    return Ensemble.from_tensors(_new_network(context), context.arrays(stage))


def checkpoint_steps(num_steps: int, count: int) -> tuple[int, ...]:
    """Training times, each twice the one before, up to the end.

    Example:
        >>> checkpoint_steps(6000, 4)
        (750, 1500, 3000, 6000)
    """
    steps = {max(1, num_steps >> power) for power in range(count)}
    return tuple(sorted(steps))


def flat_noise(noise: Tensor, count: int) -> Tensor:
    """The same noise ``(M, *S)`` for each of ``count`` networks, ``(count M, *S)``."""
    return torch.cat([noise] * count)


def _train(
    context: Context,
    sets: Sequence[TrainingSet],
    of_each: Sequence[Objective],
    *,
    num_steps: int,
    seeds: Sequence[int],
    title: str,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    settings = context.settings
    if context.data.elements > TINY:
        folder = f"{title}-{digest([context.data.record(), settings.record()])[:16]}"
        names = train_in_folders(
            context.folder / folder,
            sets,
            of_each,
            seeds,
            context.process,
            num_steps=num_steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
        )
        network, _ = load_network(context.folder / folder / names[0])
        count = sum(p.numel() for p in network.parameters())
        return {
            "steps": [num_steps], "folder": folder, "folders": names, "num_parameters": count
        }, {}  # fmt: skip

    def progress(steps: Iterable[int]) -> Iterable[int]:
        bar: Iterable[int] = tqdm(steps, desc=title, unit="step", leave=False, disable=None)
        return bar

    ensemble = train_ensemble(
        lambda: _new_network(context),
        sets,
        of_each,
        num_steps=num_steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        # A falling rate would make an early checkpoint of a long run another thing than the end of
        # a short one.
        schedule="constant",
        warmup_steps=min(WARMUP_STEPS, num_steps // 2),
        # The gradients of the objectives differ in size, which clipping would not be fair to.
        max_grad_norm=None,
        seeds=seeds,
        checkpoints=checkpoint_steps(num_steps, settings.checkpoints),
        progress=progress,
    )
    values = {
        "steps": ensemble.steps,
        "loss_steps": ensemble.loss_steps,
        "losses": ensemble.losses.T,
        "num_parameters": sum(p.numel() for p in ensemble[0].parameters()),
        "settings": ensemble.settings,
    }
    return values, ensemble.tensors()


def _new_network(context: Context) -> nn.Module:
    settings = context.settings
    return MLP(
        context.data.training.sample_shape,
        width=settings.width,
        depth=settings.depth,
        time_scale=TimeScale.of(context.process),
    )
