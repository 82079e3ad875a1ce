"""Claim 4: the original objective beside the forward-time one, over seeds and training time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffgen.generalization.copies.similarity import same_noise_similarity
from diffgen.generalization.over_noise.gap import denoiser_gap
from diffgen.predictor import as_denoiser
from diffgen.study.claims.fleets import SEEDS, flat_noise, fleet_of
from diffgen.study.claims.samples import clipped, distances, draw, pictures
from diffgen.study.context import Context, points_of

GAP_TIMES = tuple(range(20, 1000, 70))
"""Equally spaced times, over which a mean gap is that of uniform time, as in training."""

SIMILARITY_SAMPLES = 128


def compare_objectives(context: Context) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Gap and distances of every network at every training time; samples of the last."""
    settings = context.settings
    training_set = context.seed_set()
    denoiser = context.denoiser(training_set)
    ensemble = fleet_of(context, SEEDS)
    noise = context.noise("seed noise", settings.num_samples)
    names, num_seeds = context.values(SEEDS)["objectives"], context.values(SEEDS)["num_seeds"]
    repeats = -(-settings.level_points // training_set.num_stored)
    rows = []
    samples = torch.empty(0)
    for step in ensemble.steps:
        at = ensemble.at(step)
        network = clipped(context, as_denoiser(at.joint, context.process, nearest=True))
        drawn = draw(context, network, flat_noise(noise, len(at)), steps=settings.model_steps)
        samples = drawn.unflatten(0, (len(at), len(noise)))
        for index in range(len(at)):
            found = denoiser_gap(
                at[index],
                denoiser,
                context.process,
                GAP_TIMES,
                num_samples=None,
                repeats=repeats,
                num_bootstrap=1,
                # The same points and noise for all networks: differences are of networks.
                generator=context.generator("seed gaps"),
            )
            rows.append(
                {
                    "step": step,
                    "objective": names[index // num_seeds],
                    "seed": index % num_seeds,
                    **distances(samples[index], denoiser),
                    "gap": found.train.mean,
                    "identity_z": found.identity_z,
                }
            )
    return {
        "objectives": names,
        "num_points": training_set.num_stored,
        "set_sha256": training_set.sha256,
        "gap_times": GAP_TIMES,
        **_target_noise(context),
        "rows": rows,
        "pictures": [
            {
                "objective": name,
                **distances(samples[index * num_seeds], denoiser),
                "pictures": pictures(context, samples[index * num_seeds], denoiser),
            }
            for index, name in enumerate(names)
        ],
    }, {"samples": samples}


def _target_noise(context: Context) -> dict[str, Any]:
    """Noise of the last step in the scale of epsilon, ``1 / rho``, at each of the times.

    Of s = t - 1, and the root mean square over the random gap that is weighted as the loss weights
    it: ``1 / sqrt(E rho^2)``.
    """
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), context.process.alpha_bar])
    previous, uniform = [], []
    for t in GAP_TIMES:
        # Entry k is time k - 1; the first is the data.
        rho_squared = (1 - alpha_bar[t + 1] / alpha_bar[: t + 1]) / (1 - alpha_bar[t + 1])
        previous.append(float(rho_squared[-1].rsqrt()))
        uniform.append(float(rho_squared.mean().rsqrt()))
    return {"previous_noise": previous, "random_noise": uniform}


def compare_samples(context: Context) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Same-noise similarity of the objectives, beside that of seeds and of different noises."""
    samples = context.arrays("seed_samples")["samples"][:, :SIMILARITY_SAMPLES]
    names, num_seeds = context.values(SEEDS)["objectives"], context.values(SEEDS)["num_seeds"]
    by_objective = samples.unflatten(0, (len(names), num_seeds))
    center = points_of(context.seed_set()).mean(0)
    optimum = draw(
        context,
        context.denoiser(context.seed_set()),
        context.noise("seed noise", context.settings.num_samples),
        steps=context.settings.model_steps,
    )[:SIMILARITY_SAMPLES]
    others = {name: by_objective[index] for index, name in enumerate(names) if index > 0}
    others["optimum"] = optimum[None]
    rows = []
    for name, other in others.items():
        for centered in (False, True):
            found = same_noise_similarity(
                by_objective[0],
                other,
                center=center if centered else None,
                num_bootstrap=400,
                generator=context.generator("similarity"),
            )
            rows.append(
                {
                    "objective": name,
                    "centered": centered,
                    "across": found.across,
                    "within_first": found.within_first,
                    "within_second": found.within_second,
                    "chance": found.chance,
                    "intervals": found.intervals,
                    "settings": found.settings,
                }
            )
    return {"first": names[0], "rows": rows}, {}
