"""The optimum over finitely many noised points: what one step returns, and the whole path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffgen.noised import NoisedTrainingSet
from diffgen.predictor import as_denoiser
from diffgen.processes import DDPM
from diffgen.study.claims.samples import distances, draw
from diffgen.study.context import Context
from diffgen.training_set import TrainingSet

STEP_TIMES = (50, 100, 200, 300, 500)
"""Times of the single steps."""

COPIES = (1, 4, 16, 64)
"""Numbers of noised copies over which the optimum approaches the usual one."""

CONVERGENCE_TIME = 300


def look_at_noised_optimum(context: Context) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Single steps, convergence over the copies, and sampling to the end."""
    settings = context.settings
    count = min(settings.noised_points, context.data.training.num_stored)
    training_set = context.data.training.subset(torch.arange(count))
    process = context.process
    noised = NoisedTrainingSet(
        training_set, settings.noised_copies, process, settings.seed, backend=context.backend
    )
    rows = torch.arange(min(settings.level_points, count))
    noise = context.noise("noised steps", len(rows))
    return {
        "num_points": count,
        "copies": settings.noised_copies,
        "steps": [_step(context, noised, training_set[rows], noise, t) for t in STEP_TIMES],
        "convergence": _convergence(context, training_set, rows, noise),
        "sampled": _sampled(context, noised),
    }, {}


def _step(
    context: Context, noised: NoisedTrainingSet, x0: Tensor, noise: Tensor, t: int
) -> dict[str, Any]:
    """How far the step back from t to t - 1 is from noised points, and from training points."""
    process = context.process
    x_t = (float(process.alpha(t)) * x0 + float(process.sigma(t)) * noise).float()
    posterior = noised.posterior(x_t, t, t - 1)
    points = torch.cat([block for _, block in noised.blocks(t - 1)])
    nearest = context.denoiser(TrainingSet(points)).posterior(posterior.mean.float(), 1.0, top_k=1)
    scaled = (posterior.mean / float(process.alpha(t - 1))).float()
    training = context.denoiser(noised.training_set).posterior(scaled, 1.0, top_k=1)
    return {
        "t": t,
        "to_noised": nearest.top_distances[:, 0],
        "to_training": float(process.alpha(t - 1)) * training.top_distances[:, 0],
        "effective_sample_size": posterior.effective_sample_size,
    }


def _convergence(
    context: Context, training_set: TrainingSet, rows: Tensor, noise: Tensor
) -> list[dict[str, Any]]:
    """Distance of the finite optimum, in the scale of epsilon, from epsilon* over the copies."""
    process, t = context.process, CONVERGENCE_TIME
    x_t = (float(process.alpha(t)) * training_set[rows] + float(process.sigma(t)) * noise).float()
    epsilon = context.denoiser(training_set).predictor(process)(x_t, t)
    found = []
    for copies in COPIES:
        noised = NoisedTrainingSet(
            training_set, copies, process, context.settings.seed, backend=context.backend
        )
        # A long gap: the step's noise is of the size of the noise in x_t.
        step = noised.posterior(x_t, t, t // 3)
        ratio = _rho(context, t, t // 3)
        difference = step.last_noise / ratio - epsilon
        found.append({"copies": copies, "squared": difference.flatten(1).square().sum(1)})
    return found


def _rho(context: Context, t: int, s: int) -> float:
    """``sqrt((1 - alpha_bar_t / alpha_bar_s) / (1 - alpha_bar_t))``."""
    alpha_bar = context.process.alpha_bar
    return float(((1 - alpha_bar[t] / alpha_bar[s]) / (1 - alpha_bar[t])).sqrt())


def _sampled(context: Context, noised: NoisedTrainingSet) -> dict[str, Any]:
    """Samples of the finite optimum by every step of a short process, down to the data."""
    settings = context.settings
    process = DDPM("cosine", num_steps=settings.noised_steps)
    finite = NoisedTrainingSet(
        noised.training_set, noised.copies, process, settings.seed, backend=context.backend
    )
    network = as_denoiser(finite.predictor("previous"), process, nearest=True)
    samples = draw(
        context,
        network,
        context.noise("noised samples", min(64, settings.num_samples)),
        steps=process.num_steps,
        process=process,
    )
    return {
        "process": repr(process),
        **distances(samples, context.denoiser(noised.training_set)),
    }
