"""The optimum over the noise: how many images a noised one could have come from, and its loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffgen.generalization.over_noise.information import index_information
from diffgen.generalization.over_noise.irreducible import irreducible_loss
from diffgen.study.context import Context

PANELS = 8
"""Steps of the quadrature of I-MMSE between two times."""


def look_at_levels(context: Context) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Neighbours, information and irreducible loss of the optimum at each time."""
    settings = context.settings
    denoiser = context.denoiser(context.optimum_set())
    times = torch.tensor(settings.times)
    order = torch.randperm(
        denoiser.training_set.num_stored, generator=context.generator("level points")
    )
    points = denoiser.training_set[order[: settings.level_points]]
    information = index_information(
        denoiser,
        context.process.ratio(times),
        points=points,
        panels=PANELS,
        num_bootstrap=1,
        generator=context.generator("level noise"),
    )
    loss = irreducible_loss(
        denoiser,
        context.process,
        times,
        points=points,
        num_bootstrap=1,
        generator=context.generator("level loss"),
    )
    return {
        "num_points": denoiser.training_set.num_stored,
        "elements": points[0].numel(),
        "times": times,
        "sigmas": information.sigmas,
        "entropy": information.entropy,
        "effective_sample_size": information.effective_sample_size,
        "prior_entropy": information.prior_entropy,
        "decrease": information.decrease,
        "integral": information.integral,
        "quadrature_error": information.quadrature_error,
        "loss_conditional": loss.conditional,
        "loss_squared_error": loss.squared_error,
        "loss_from_norms": loss.from_norms,
    }, {}
