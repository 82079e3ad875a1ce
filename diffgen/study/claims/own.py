"""The user's own network: its samples, and its gap to the optimum of its set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgen import schedules
from diffgen.generalization.copies.copying import authenticity, data_copying
from diffgen.generalization.over_noise.gap import denoiser_gap
from diffgen.predictor import as_denoiser
from diffgen.process_base import Process
from diffgen.processes import DDPM
from diffgen.sampling import sample
from diffgen.study.claims.large_fleet import OnAccelerator
from diffgen.study.claims.samples import distances, pictures
from diffgen.study.context import Context, StudyData
from diffgen.training import load_network
from diffgen.training.process_record import build_process

OWN = "own_network"


@dataclass(frozen=True)
class OwnNetwork:
    """A trained network with its convention.

    Attributes:
        network: ``(x_t, t) -> prediction``.
        process: The noising process it was trained under.
        target: What it predicts.
        record: What identifies it.
    """

    network: Callable[[Tensor, Tensor], Tensor]
    process: Process
    target: str
    record: dict[str, Any]


def open_checkpoint(path: Path, data: StudyData) -> OwnNetwork:
    """The network of a checkpoint of `diffgen.training`, checked against the study's data.

    Raises:
        FileNotFoundError: There is no checkpoint.
        DataError: It is damaged.
        ValueError: It was trained on another set, or with an objective that does not say what the
            network predicts.
    """
    network, identity = load_network(path)
    trained_on, ours = identity["training_set"]["sha256"], data.training.sha256
    if trained_on != ours:
        raise ValueError(
            "checkpoint must be of a network trained on this study's training set, of sha256 "
            f"{ours[:16]}…, got one trained on {trained_on[:16]}… with "
            f"{identity['training_set']['num_points']:,} points: give the data, seed and number "
            "of held-out images that it was trained with"
        )
    objective = identity["objective"]
    if not isinstance(objective.get("process"), dict) or "target" not in objective:
        raise ValueError(f"checkpoint must say process and target, got {objective}")
    sha256 = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        sha256.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return OwnNetwork(
        OnAccelerator(network),
        build_process(objective["process"]),
        objective["target"],
        {**identity, "weights_sha256": sha256.hexdigest()},
    )


def measure_own_network(
    context: Context, own: OwnNetwork
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Samples of the network beside held-out images, and its gap over the noise."""
    settings, process = context.settings, own.process
    denoiser = context.denoiser(context.data.training)
    # The noise levels of the study, in the times of this process.
    whole = isinstance(process, DDPM)
    ratios = context.process.ratio(torch.tensor(settings.times))
    times = process.t_from_ratio(ratios, nearest=True, clamp=True).unique()
    held_out = context.data.held_out
    found = denoiser_gap(
        own.network,
        denoiser,
        process,
        times,
        target=own.target,
        test_points=held_out[: settings.level_points] if len(held_out) > 1 else None,
        num_samples=settings.level_points,
        num_bootstrap=1,
        generator=context.generator("own gap"),
    ).in_units_of("epsilon")
    low, high = process.ratio_range
    sigmas = schedules.karras(settings.model_steps, max(0.002, low), min(80.0, high))
    samples = sample(
        as_denoiser(own.network, process, own.target, nearest=whole),
        (settings.num_samples, *context.data.training.sample_shape),
        sigmas,
        sampler="ddim",
        generator=context.generator("own samples"),
    )
    values = {
        "record": own.record,
        "num_points": context.data.training.num_stored,
        "times": found.times,
        "sigmas": found.ratios,
        "train": {"gap": found.train.gap, "excess": found.train.excess},
        "identity_z": found.identity_z,
        "samples": {
            **distances(samples, denoiser),
            "pictures": pictures(context, samples, denoiser),
        },
    }
    if found.test is not None:
        values["test"] = {"gap": found.test.gap, "excess": found.test.excess}
    if len(held_out) >= LEAST_HELD_OUT:
        judged = held_out[: settings.num_samples]
        copying = data_copying(samples, denoiser, judged)
        values["held_out"] = distances(judged, denoiser)
        values["copying_z"] = copying.z
        values["authentic"] = authenticity(samples, denoiser).authentic.int()
    return values, {"samples": samples}


LEAST_HELD_OUT = 8
"""Held-out images that the copy statistics need."""
