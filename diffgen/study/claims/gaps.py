"""Claim 3: the difference between networks and their optimum, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffgen import schedules
from diffgen.generalization.copies.novelty import NoveltyRow, novelty_sweep
from diffgen.generalization.over_noise.gap import DenoiserGap, denoiser_gap
from diffgen.predictor import as_denoiser
from diffgen.study.claims.fleets import REPLICAS, fleet_of
from diffgen.study.claims.samples import ClippedNetwork, clipped
from diffgen.study.context import Context
from diffgen.training_set import TrainingSet

MEASURED_REPLICAS = 4
"""Networks whose gap is measured at every training time; each is measured alone."""

PATHS = 32
"""Samples whose path is followed."""

SWITCHES = 8
"""Noise levels at which optimum and network take over from each other."""

WEIGHTS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Weights of the network in the mixtures."""


def measure_gaps(context: Context) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The gap of some replicas at each training time, at training, test and own points."""
    settings = context.settings
    sets = context.replica_sets()[:MEASURED_REPLICAS]
    ensemble = fleet_of(context, REPLICAS)
    held_out = context.data.held_out
    size = min(settings.level_points, settings.replica_points)
    rows = []
    for step in ensemble.steps:
        for replica, training_set in enumerate(sets):
            network = ensemble.at(step)[replica]
            found = denoiser_gap(
                network,
                context.denoiser(training_set),
                context.process,
                settings.times,
                test_points=held_out[: min(size, len(held_out))],
                num_samples=size,
                num_bootstrap=1,
                generator=context.generator(f"gap of replica {replica}"),
            )
            path = _own_path(context, network, training_set)
            rows.append(
                {"step": step, "replica": replica, **_gap_values(found), "path": {"gap": path}}
            )
    return {
        "times": settings.times,
        "elements": held_out[0].numel(),
        "num_points": settings.replica_points,
        "rows": rows,
    }, {}


def sweep_novelty(context: Context) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Samples of the optimum and a network put together in all ways."""
    settings = context.settings
    ensemble = fleet_of(context, REPLICAS)
    network = clipped(context, as_denoiser(ensemble[0], context.process, nearest=True))
    sigmas = schedules.from_process(context.process, settings.model_steps)
    # Between steps, spread over the levels at which a posterior is neither one-hot nor the prior.
    switches = torch.logspace(-1, 1, SWITCHES, dtype=torch.float64).tolist()
    found = novelty_sweep(
        network,
        context.denoiser(context.replica_sets()[0]),
        sigmas,
        switch_sigmas=switches,
        weights=WEIGHTS,
        num_samples=settings.num_samples,
        num_bootstrap=1,
        generator=context.generator("novelty"),
    )
    rows = [_novelty_values(row) for row in (found.network, found.optimum, *found.rows)]
    return {"step": ensemble.step, "settings": found.settings, "rows": rows}, {}


def _own_path(
    context: Context, network: Callable[..., Tensor], training_set: TrainingSet
) -> Tensor:
    """The gap of the network as it is sampled, clipped, on its own path, ``(T, M)``."""
    settings = context.settings
    found = denoiser_gap(
        ClippedNetwork(network, context.process, context.data.limits),
        context.denoiser(training_set),
        context.process,
        settings.times,
        # The path is what is asked for; two points are the least.
        num_samples=2,
        num_paths=min(PATHS, settings.level_points),
        path_steps=min(20, settings.model_steps),
        num_bootstrap=1,
        generator=context.generator("own paths"),
    )
    assert found.path is not None
    return found.path.gap


def _gap_values(found: DenoiserGap) -> dict[str, Any]:
    values: dict[str, Any] = {"identity_z": found.identity_z}
    for kind, curve in (("train", found.train), ("test", found.test)):
        assert curve is not None and curve.excess is not None
        values[kind] = {"gap": curve.gap, "excess": curve.excess}
    return values


def _novelty_values(row: NoveltyRow) -> dict[str, Any]:
    return {
        "kind": row.kind,
        "value": row.value,
        "d1": row.memorization.distances[:, 0],
        "d2": row.memorization.distances[:, 1],
        "distance_to_network": row.distance_to_network,
        "distance_to_optimum": row.distance_to_optimum,
    }
