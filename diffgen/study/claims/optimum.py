"""Claim 2: what samplers make of the optimum."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffgen.study.claims.samples import distances, draw, pictures
from diffgen.study.context import Context

SAMPLERS = ("ddim", "ddpm", "heun")


def sample_optimum(context: Context) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Samples of the optimum by each sampler from the same noise, and held-out images beside."""
    settings = context.settings
    denoiser = context.denoiser(context.optimum_set())
    noise = context.noise("optimum noise", settings.optimum_samples)
    runs = []
    for sampler in SAMPLERS:
        for steps in settings.sampler_steps:
            samples = draw(context, denoiser, noise, steps=steps, sampler=sampler)
            run = {"sampler": sampler, "steps": steps, **distances(samples, denoiser)}
            if steps == max(settings.sampler_steps):
                run["pictures"] = pictures(context, samples, denoiser)
            runs.append(run)
    held_out = context.data.held_out[: settings.optimum_samples]
    return {
        "num_points": denoiser.training_set.num_stored,
        "set_sha256": denoiser.training_set.sha256,
        "runs": runs,
        "held_out": {
            **distances(held_out, denoiser),
            "pictures": pictures(context, held_out, denoiser),
        },
    }, {}
