"""The estimator of claim 1, tried where the information is known."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffgen.generalization.bounds.attribution import set_attribution
from diffgen.generalization.bounds.closed_forms import copier_information, gaussian_copier
from diffgen.generalization.bounds.critics import CRITICS
from diffgen.study.context import Context

POINTS, FEATURES, NOISE = 10, 2, 0.2
"""A copier of so many standard normal points, in so many dimensions, with normal noise."""

SETS, SAMPLES = 16, 60
"""Disjoint sets of a draw, and the samples of each."""

TRUE_SETS = 5000
"""Training sets of the Monte-Carlo mean that the known value is."""


def try_known_information(context: Context) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The bound by every critic, on sets that are drawn anew each time, beside the true value."""
    truth = copier_information(
        POINTS, FEATURES, NOISE, num_sets=TRUE_SETS, generator=context.generator("known value")
    )
    rows = []
    for draw in range(context.settings.known_draws):
        sets, samples = gaussian_copier(
            SETS, POINTS, FEATURES, NOISE, SAMPLES, generator=context.generator(f"known {draw}")
        )
        for critic in CRITICS:
            found = set_attribution(
                samples,
                sets,
                critic=critic,
                num_bootstrap=1,  # the interval is over draws
                generator=context.generator(f"known {draw} {critic}"),
            )
            rows.append(
                {"critic": critic, "draw": draw, "bound": found.bound, "control": found.control}
            )
    return {
        "true": truth.value,
        "true_standard_error": truth.standard_error,
        "num_sets": SETS,
        "num_points": POINTS,
        "features": FEATURES,
        "noise": NOISE,
        "rows": rows,
    }, {}
