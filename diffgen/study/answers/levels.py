"""The optimum over the noise, as part of the answer to claim 2: tables, figure, a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Any

from diffgen.generalization.statistics.standard_errors import Z_LIMIT
from diffgen.study.answer import Figure, Record, Table
from diffgen.study.drawing import COLOURS, FAINT, tidy
from diffgen.study.estimates import Estimate, largest_z, mean, number


def neighbors_table(found: Record) -> Table:
    """Neighbours, information and irreducible loss at each time."""
    rows = []
    for index, time in enumerate(found["times"]):
        entropy = mean(found["entropy"][index])
        information = found["prior_entropy"] - entropy.value
        rows.append(
            [
                f"{time}",
                number(found["sigmas"][index]),
                str(Estimate(exp(entropy.value), exp(entropy.low), exp(entropy.high))),
                number(mean(found["effective_sample_size"][index]).value),
                number(information),
                str(mean(found["loss_conditional"][index])),
            ]
        )
    return Table(
        f"{len(found['entropy'][0])} noised training images at each time, "
        f"{found['num_points']:,} training images. sigma: noise level, in the units of the data. "
        "Neighbours: exp of the mean entropy of the posterior weights; 1/sum w^2: another count of "
        "them. Information: what a noised image says about the index of its training image, in "
        f"nats. L*: irreducible loss, of {found['elements']} for pure noise, summed over the "
        "elements. Intervals: 95%, bootstrap over images.",
        ("t", "sigma", "neighbours", "1/sum w^2", "information", "L*(t)"),
        rows,
    )


def identity_sentence(found: Record) -> str:
    """How well two forms of the irreducible loss agree, and both sides of I-MMSE."""
    z = largest_z(found["loss_squared_error"], found["loss_from_norms"])
    information = largest_z(found["decrease"], found["integral"], found["quadrature_error"])
    return (
        "Checks of the optimum: the two forms of its loss, E|xi - epsilon*|^2 and "
        f"d - E|epsilon*|^2, {_agree(z)} within Monte-Carlo error at every time (largest z-score "
        f"{number(z)}); the information by entropies and by its derivative, "
        f"dI/dgamma = E|x0 - D|^2/2 with gamma = 1/sigma^2, {_agree(information)} between all "
        f"times within Monte-Carlo and quadrature error (largest z-score {number(information)}). "
        f"The limit is {Z_LIMIT:g}."
    )


def _agree(z: float) -> str:
    return "agree" if z < Z_LIMIT else "do NOT agree"


def neighbors_figure(found: Record) -> Figure:
    """Neighbours over time, and the irreducible loss."""

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        times = found["times"]
        _band(left, times, [mean(row) for row in found["entropy"]], transform=exp)
        left.axhline(found["num_points"], color=FAINT, lw=1, ls=":")
        left.set(yscale="log")
        left.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        tidy(left, "Images that a noised one could come from", "time t", "effective neighbours")
        _band(right, times, [mean(row) for row in found["loss_conditional"]])
        tidy(right, "What the best network is left with", "time t", "L*(t), sum over elements")

    return Figure(
        "optimum_levels",
        "Left: effective neighbours of noised training images; the dotted line is the whole set. "
        "Right: the irreducible loss L*(t). Bands: 95% intervals over images.",
        draw,
    )


def _band(
    axes: Any, x: Sequence[float], estimates: Sequence[Estimate], transform: Any = float
) -> None:
    low, high = ([transform(getattr(e, end)) for e in estimates] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.2, lw=0)
    axes.plot(x, [transform(e.value) for e in estimates], color=COLOURS[0], marker="o", ms=3)
