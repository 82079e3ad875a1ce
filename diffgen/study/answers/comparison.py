"""Claim 4, answered: the original objective beside the forward-time one."""

from __future__ import annotations

from typing import Any

from diffgen.study.answer import Answer, Figure, Record, Table
from diffgen.study.answers.matched import Curves, Matched, curves, difference_at_end, matched
from diffgen.study.answers.noised import noised_sentence, noised_tables
from diffgen.study.answers.similarity import (
    similarity_figure,
    similarity_sentence,
    similarity_table,
)
from diffgen.study.drawing import COLOURS, MARKERS, steps_axis, tidy
from diffgen.study.estimates import Estimate, number
from diffgen.study.galleries import Gallery, draw_galleries

STAGES = ("seeds", "seed_samples", "similarity", "noised_optimum")

TITLE = "The forward-time objective returns a similar model"
QUESTION = (
    "Another objective estimates the noise of the last step, E[xi_{t,s} | x_t] from x_s to x_t, "
    "instead of all noise since x_0. Does a network trained with it memorise less, at equal "
    "training steps and at an equal gap to the optimum, and is it a similar model?"
)
LIMITS = (
    "Where networks differ in their gap, less memorisation may be under-fitting: only the "
    "comparison at an equal gap tells the two apart, and only where both objectives reach gaps at "
    "which something is memorised.",
    "An equal gap is equal as a mean over t: objectives may spread it over t differently. The "
    "interpolation between checkpoints has an error that no interval covers, and several gaps are "
    "compared; a small difference at one of them is no finding.",
    "Intervals over seeds cover other seeds on the same training set, not other sets; with few "
    "seeds they are wide, and where all seeds agree they have no width, which says nothing about "
    "others.",
    "Settings (network, learning rate, batch) are the same for all objectives and tuned for none; "
    "an objective with a noisier gradient may want others.",
)


def answer(stages: dict[str, Record]) -> Answer:
    """The answer, from the values of the finished stages."""
    missing = tuple(name for name in STAGES if name not in stages)
    if "seeds" in missing or "seed_samples" in missing:
        return Answer(TITLE, QUESTION, (), limits=LIMITS, missing=missing)
    found = stages["seed_samples"]
    similarity, noised = stages.get("similarity"), stages.get("noised_optimum")
    by_name = {name: curves(found, name) for name in found["objectives"]}
    original = by_name[found["objectives"][0]]
    others = {name: of for name, of in by_name.items() if of is not original}
    at_equal_gap = {name: matched(original, of) for name, of in others.items()}
    return Answer(
        TITLE,
        QUESTION,
        _method(stages["seeds"], found),
        verdict=_verdict(original, others, at_equal_gap, similarity, noised),
        number="memorised after all steps: "
        + "; ".join(f"{name} {of.pooled[-1]}" for name, of in others.items()),
        control=f"original objective: {original.pooled[-1]}",
        tables=(
            _steps_table(by_name, found),
            _matched_table(at_equal_gap),
            *((similarity_table(similarity),) if similarity is not None else ()),
            *(noised_tables(noised) if noised is not None else ()),
        ),
        figures=(
            _curves_figure(by_name),
            _gallery_figure(found),
            *((similarity_figure(similarity),) if similarity is not None else ()),
        ),
        limits=LIMITS,
        missing=missing,
    )


def _method(seeds: Record, found: Record) -> tuple[str, ...]:
    return (
        f"Networks of {seeds['num_parameters']:,} parameters are trained on one set of "
        f"{found['num_points']} images, {seeds['num_seeds']} with each objective. Networks of one "
        "seed start from the same weights and draw the same points. 'Previous point': s = t - 1; "
        "'random gap': s uniform below t; the loss is |rho eps_theta - e|^2 with the last noise e "
        "and rho its share of all noise (weight 1). Learning rate constant, moving average of the "
        "weights, no clipping of gradients.",
        "The target is as noisy as the gap is short: in the scale of epsilon the noise of the last "
        f"step, 1/rho, is up to {number(max(found['previous_noise']))} at s = t - 1 and "
        f"{number(max(found['random_noise']))} (root mean square) at a random gap, where the "
        "original has 1. Noisier gradients learn more slowly at an equal learning rate and batch.",
        "At checkpoints over training, samples from the same noise are compared with the training "
        "images, and the gap to the optimum is measured, a mean over uniform t. At an equal gap: "
        "the memorised share of each network where its gap passes the value, interpolated between "
        "checkpoints in the logarithm of the gap; differences are paired by seed, with Student's "
        "interval over seeds.",
    )


def _verdict(
    original: Curves,
    others: dict[str, Curves],
    at_equal_gap: dict[str, list[Matched]],
    similarity: Record | None,
    noised: Record | None,
) -> list[str]:
    parts = []
    for name, of in others.items():
        difference = difference_at_end(original, of)
        parts.append(
            f"{_capital(name)}: after {of.steps[-1]:,} steps {of.pooled[-1]} of the samples are "
            f"memorised, with the original objective {original.pooled[-1]} "
            f"({_compared(difference)}), at gaps of {number(of.gap(-1).value)} and "
            f"{number(original.gap(-1).value)}; {_at_gap(at_equal_gap[name])}."
        )
    if similarity is not None:
        parts.append(similarity_sentence(similarity))
    if noised is not None:
        parts.append(noised_sentence(noised))
    return parts


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _compared(difference: Estimate) -> str:
    if difference.low == difference.high:
        return "all seeds agree, so that no interval can be given"
    if difference.low > 0:
        return f"less, by {difference}"
    if difference.high < 0:
        return f"more, by {Estimate(-difference.value, -difference.high, -difference.low)}"
    return f"not told apart: original less this one {difference}"


def _at_gap(found: list[Matched]) -> str:
    if not found:
        return (
            "their gaps have no range in common, so that nothing tells less memorisation from "
            "under-fitting"
        )
    least = found[0]
    if least.first.value == 0 and least.second.value == 0:
        return (
            f"at the smallest gap that both reach, {number(least.gap)}, neither memorises, so that "
            "the comparison at an equal gap decides nothing"
        )
    return (
        f"at an equal gap of {number(least.gap)} the shares are {number(least.second.value)} and "
        f"{number(least.first.value)} ({_compared(least.difference)})"
    )


def _steps_table(by_name: dict[str, Curves], found: Record) -> Table:
    rows = [
        [name, f"{step:,}", str(of.pooled[index]), str(of.gap(index))]
        for name, of in by_name.items()
        for index, step in enumerate(of.steps)
    ]
    return Table(
        f"{len(found['rows'][0]['d1'])} samples of each network. Memorised: 95% by Clopper and "
        "Pearson with the effective number of trials; gap: 95%, Student, over seeds.",
        ("objective", "steps", "memorised", "gap, mean over t"),
        rows,
    )


def _matched_table(at_equal_gap: dict[str, list[Matched]]) -> Table:
    rows = [
        [name, number(at.gap), str(at.second), str(at.first), str(at.difference)]
        for name, found in at_equal_gap.items()
        for at in found
    ]
    if not rows:
        rows = [["no gap is reached by both", "", "", "", ""]]
    return Table(
        "At equal gap, from the smallest that both objectives reach. Intervals: 95%, Student, over "
        "seeds; the difference is paired by seed. No width: all seeds agree.",
        ("objective", "gap", "memorised", "original", "original less this"),
        rows,
    )


def _curves_figure(by_name: dict[str, Curves]) -> Figure:
    original_steps = next(iter(by_name.values())).steps

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for index, (name, of) in enumerate(by_name.items()):
            colour, marker = COLOURS[index], MARKERS[index]
            for shares in of.shares:
                left.plot(of.steps, shares, color=colour, lw=0.8, alpha=0.5)
            means = [estimate.value for estimate in of.pooled]
            left.plot(of.steps, means, color=colour, marker=marker, ms=4, label=name)
            for gaps, shares in zip(of.gaps, of.shares, strict=True):
                right.plot(gaps, shares, color=colour, marker=marker, ms=3, lw=0.9, alpha=0.8)
        left.set(ylim=(-0.03, None))
        steps_axis(left, original_steps)
        right.set(xscale="log", ylim=(-0.03, None))
        right.invert_xaxis()
        tidy(left, "At equal steps", "training steps", "share memorised")
        tidy(right, "At equal gap, each seed", "gap to the optimum", "share memorised")
        left.legend(frameon=False)

    return Figure(
        "objectives",
        "Memorised share over training steps (thin lines: each seed), and over the gap to the "
        "optimum, which falls to the right.",
        draw,
        size=(10.0, 3.5),
    )


def _gallery_figure(found: Record) -> Figure:
    galleries = [Gallery.of(f"{run['objective']}, one seed", run) for run in found["pictures"]]
    return Figure(
        "objectives_gallery",
        "The first samples of one seed of each objective from the same noise, not chosen, and "
        "under each its nearest training images. Orange: memorised.",
        lambda figure: draw_galleries(figure, galleries),
        size=(11.0, 6.2),
    )
