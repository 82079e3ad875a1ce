"""The measurements of each claim: stages that leave raw values for the answers."""

from __future__ import annotations

from diffgen.study.claims import (
    comparison,
    fleets,
    gaps,
    information,
    known,
    levels,
    noised,
    optimum,
)
from diffgen.study.claims.fleets import REPLICAS, SEEDS
from diffgen.study.context import Context
from diffgen.study.stages import Stage

STAGES: tuple[Stage[Context], ...] = (
    Stage(
        "optimum_samples",
        "sampling the optimum",
        optimum.sample_optimum,
        nominal_s=20,
        shared=True,
    ),
    Stage(
        "optimum_levels",
        "the optimum over the noise",
        levels.look_at_levels,
        nominal_s=3,
        shared=True,
    ),
    Stage(
        "noised_optimum",
        "the optimum over noised points",
        noised.look_at_noised_optimum,
        nominal_s=5,
    ),
    Stage(
        "known_information",
        "the bound where the information is known",
        known.try_known_information,
        nominal_s=20,
    ),
    Stage(REPLICAS, "training on disjoint sets", fleets.train_replicas, nominal_s=150),
    Stage(
        "replica_samples",
        "sampling those networks",
        information.sample_replicas,
        needs=(REPLICAS,),
        nominal_s=6,
    ),
    Stage(
        "information",
        "what samples say about their set",
        information.bound_information,
        needs=(REPLICAS, "replica_samples"),
        nominal_s=30,
    ),
    Stage(
        "gaps",
        "how far networks are from the optimum",
        gaps.measure_gaps,
        needs=(REPLICAS,),
        nominal_s=15,
    ),
    Stage("novelty", "where novelty is lost", gaps.sweep_novelty, needs=(REPLICAS,), nominal_s=8),
    Stage(SEEDS, "training with each objective", fleets.train_seeds, nominal_s=180),
    Stage(
        "seed_samples",
        "gap and samples of each objective",
        comparison.compare_objectives,
        needs=(SEEDS,),
        nominal_s=30,
    ),
    Stage(
        "similarity",
        "similarity of the objectives",
        comparison.compare_samples,
        needs=(SEEDS, "seed_samples"),
        nominal_s=5,
    ),
)
"""All stages, in the order in which they run."""
