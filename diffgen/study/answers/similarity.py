"""Same-noise similarity of two objectives, as part of the answer to claim 4."""

from __future__ import annotations

from typing import Any

from diffgen.study.answer import Figure, Record, Table
from diffgen.study.drawing import COLOURS, tidy
from diffgen.study.estimates import Estimate, number

HEADS = {
    "across": "with the original",
    "within_first": "original, seed to seed",
    "within_second": "own seeds",
    "chance": "different noises",
    "difference": "across less seed to seed",
}


def estimates(row: Record) -> dict[str, Estimate]:
    """The mean similarities of a row, with their intervals."""
    found = {}
    means = {name: _mean(row[name]) for name in HEADS if name in row}
    within = [means[name] for name in ("within_first", "within_second") if name in row["intervals"]]
    if within:
        means["difference"] = means["across"] - sum(within) / len(within)
    for name, (low, high) in row["intervals"].items():
        found[name] = Estimate(means[name], low, high)
    return found


def similarity_table(found: Record) -> Table:
    """Similarities across and within objectives, and of different noises."""
    rows = []
    for row in found["rows"]:
        of = estimates(row)
        rows.append(
            [
                row["objective"],
                "less the mean image" if row["centered"] else "as they are",
                *(str(of[name]) if name in of else "" for name in HEADS),
            ]
        )
    samples = len(found["rows"][0]["across"][0][0])
    return Table(
        f"Mean cosine of samples from the same {samples} noises, with DDIM. Seed to seed: networks "
        "that differ in their seed alone, the most to expect. Different noises: the least. "
        "Intervals: 95%, bootstrap over noises and seeds.",
        ("compared with the original", "images", *HEADS.values()),
        rows,
    )


def similarity_sentence(found: Record) -> str:
    """How similar the networks are, beside the seeds."""
    parts = []
    for row in found["rows"]:
        if not row["centered"] and row["objective"] != "optimum":
            of = estimates(row)
            parts.append(
                f"{number(of['across'].value)} between the original and '{row['objective']}' "
                f"(less seed to seed: {of['difference']})"
            )
    first = estimates(found["rows"][0])["within_first"]
    return (
        "Samples from the same noise have a mean cosine of "
        + " and ".join(parts)
        + f", against {first} between seeds of the original."
    )


def similarity_figure(found: Record) -> Figure:
    """Similarities with their intervals."""
    rows = [row for row in found["rows"] if not row["centered"]]
    names = [name for name in HEADS if name != "difference"]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for index, name in enumerate(names):
            places, values = [], []
            for place, row in enumerate(rows):
                of = estimates(row)
                if name in of:
                    places.append(place + 0.15 * (index - 1.5))
                    values.append(of[name])
            axes.errorbar(
                places, [e.value for e in values],
                yerr=[[max(0.0, e.value - e.low) for e in values],
                      [max(0.0, e.high - e.value) for e in values]],
                color=COLOURS[index], marker="o", ls="none", capsize=3, label=HEADS[name],
            )  # fmt: skip
        axes.set_xticks(range(len(rows)), [row["objective"] for row in rows])
        axes.set(xlim=(-0.6, len(rows) - 0.4))
        tidy(axes, y="cosine, same noise")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    return Figure(
        "similarity",
        "Similarity of samples from the same noise: the original objective with each other model, "
        "beside seeds of one objective and samples of different noises. 95% intervals.",
        draw,
        size=(9.0, 3.2),
    )


def _mean(table: list[Any]) -> float:
    """Mean over models of the means over noises; a model with itself (null) does not count."""
    means = [sum(cell) / len(cell) for row in table for cell in row if cell and cell[0] is not None]
    return sum(means) / len(means) if means else float("nan")
