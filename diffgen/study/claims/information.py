"""Claim 1: what generated samples say about the training set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffgen.generalization.bounds.attribution import set_attribution
from diffgen.generalization.bounds.critics import CRITICS
from diffgen.generalization.bounds.event_bound import EVENTS, event_bound
from diffgen.predictor import as_denoiser
from diffgen.study.claims.fleets import REPLICAS, flat_noise, fleet_of
from diffgen.study.claims.samples import clipped, distances, draw, pictures
from diffgen.study.context import Context

SAMPLES = "replica_samples"
SIGMA_MIN = 0.05
"""Noise that makes the information finite, in the units of the data: an exact copy of continuous
data would say infinitely much."""

CURVE = "log_density"
"""The critic of the curve over training time; its draws are those of the same critic above."""


def sample_replicas(context: Context) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Samples of each network at each training time, of each set's optimum, and real images."""
    settings = context.settings
    sets = context.replica_sets()
    denoisers = [context.denoiser(one) for one in sets]
    ensemble = fleet_of(context, REPLICAS)
    count = max(8, settings.num_samples // 4)
    noise = context.noise("replica noise", count)
    arrays: dict[str, Tensor] = {}
    training = []
    for step in ensemble.steps:
        network = clipped(
            context, as_denoiser(ensemble.at(step).joint, context.process, nearest=True)
        )
        drawn = draw(context, network, flat_noise(noise, len(sets)), steps=settings.model_steps)
        arrays[f"network/{step}"] = samples = drawn.unflatten(0, (len(sets), count))
        found = [distances(own, one) for own, one in zip(samples, denoisers, strict=True)]
        training.append({"step": step, **_joined(found)})
    arrays["optimum"] = torch.stack(
        [draw(context, one, noise, steps=settings.model_steps) for one in denoisers]
    )
    each = len(context.data.held_out) // len(sets)
    arrays["held_out"] = context.data.held_out[: each * len(sets)].unflatten(0, (len(sets), each))
    last = arrays[f"network/{ensemble.steps[-1]}"]
    return {
        "training": training,
        "optimum": _joined(
            [distances(own, one) for own, one in zip(arrays["optimum"], denoisers, strict=True)]
        ),
        "held_out": _joined(
            [distances(own, one) for own, one in zip(arrays["held_out"], denoisers, strict=True)]
        ),
        "pictures": {
            "network": {**distances(last[0], denoisers[0]),
                        "pictures": pictures(context, last[0], denoisers[0])},
            "optimum": {**distances(arrays["optimum"][0], denoisers[0]),
                        "pictures": pictures(context, arrays["optimum"][0], denoisers[0])},
        },
    }, arrays  # fmt: skip


def bound_information(context: Context) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Lower bounds on the information, by every critic and event, of every kind of samples."""
    sets = context.replica_sets()
    drawn = context.arrays(SAMPLES)
    last = context.values(REPLICAS)["steps"][-1]
    kinds = {"optimum": drawn["optimum"], "network": drawn[f"network/{last}"]}
    if drawn["held_out"].shape[1] >= 4:
        kinds["held_out"] = drawn["held_out"]
    values: dict[str, Any] = {
        "sigma_min": SIGMA_MIN,
        "num_sets": len(sets),
        "num_points": sets[0].num_stored,
        "attribution": [],
        "events": [],
        "training": [],
    }
    for kind, samples in kinds.items():
        for critic in CRITICS:
            row = _attribution(context, samples, critic, f"{kind} {critic}")
            values["attribution"].append({"kind": kind, **row})
        for event in EVENTS:
            found = event_bound(
                list(samples),
                sets,
                event=event,
                sigma_min=SIGMA_MIN,
                generator=context.generator(f"{kind} {event}"),
            )
            values["events"].append(
                {"kind": kind, "event": event, "happened": found.per_sample.int(),
                 "settings": found.settings}
            )  # fmt: skip
    for step in context.values(REPLICAS)["steps"]:
        row = _attribution(context, drawn[f"network/{step}"], CURVE, f"network {CURVE}")
        values["training"].append({"step": step, **row})
    return values, {}


def _attribution(context: Context, samples: Tensor, critic: str, purpose: str) -> dict[str, Any]:
    found = set_attribution(
        list(samples),
        context.replica_sets(),
        critic=critic,
        sigma_min=SIGMA_MIN,
        num_bootstrap=1,  # the answers take intervals from the terms
        generator=context.generator(purpose),
    )
    return {
        "critic": critic,
        "terms": found.per_sample,
        "right": found.right,
        "control_terms": found.control_per_sample,
        "control_right": found.control_right,
        "settings": found.settings,
    }


def _joined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Distances of all replicas, one list after the other, with the replica of each."""
    return {
        "d1": torch.cat([one["d1"] for one in found]),
        "d2": torch.cat([one["d2"] for one in found]),
        "replica": [k for k, one in enumerate(found) for _ in range(len(one["d1"]))],
    }
