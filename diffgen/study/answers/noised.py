"""The optimum over finitely many noised points, as part of the answer to claim 4."""

from __future__ import annotations

from diffgen.study.answer import Record, Table
from diffgen.study.estimates import Estimate, mean, memorised, number, share


def noised_tables(found: Record) -> tuple[Table, ...]:
    """Single steps, and convergence over the copies."""
    steps = [
        [
            f"{row['t']}",
            str(mean(row["to_noised"])),
            str(mean(row["to_training"])),
            str(mean(row["effective_sample_size"])),
        ]
        for row in found["steps"]
    ]
    convergence = [
        [f"{row['copies']:,}", str(mean(row["squared"]))] for row in found["convergence"]
    ]
    return (
        Table(
            f"What one step of the finite-noise optimum returns, from t to t - 1: "
            f"{found['num_points']} training images, {found['copies']} noised copies of each. "
            "Distance to the nearest noised point, and to the nearest training image in the same "
            "scale; 1/sum u^2: number of noised points that are combined. Intervals: 95%, "
            "bootstrap.",
            ("t", "to a noised point", "to a training image", "1/sum u^2"),
            steps,
        ),
        Table(
            "Squared distance of the finite-noise optimum from epsilon*, in the scale of epsilon, "
            "over a long gap. It falls as the copies grow.",
            ("copies", "squared distance"),
            convergence,
        ),
    )


def noised_sentence(found: Record) -> str:
    """Both sides of the claim about the finite-noise optimum."""
    sampled = found["sampled"]
    ratio: Estimate = share(memorised(sampled["d1"], sampled["d2"]))
    nearer = sum(
        mean(row["to_noised"]).value < mean(row["to_training"]).value for row in found["steps"]
    )
    return (
        "The optimum of this objective over finitely many noised points returns, in one step, "
        f"points nearer to noised points than to training images (at {nearer} of "
        f"{len(found['steps'])} times measured); sampled to the end it memorises {ratio} all the "
        f"same ({number(sum(sampled['d1']) / len(sampled['d1']))} mean distance to a training "
        "image)."
    )
