"""Claim 2, answered: the optimum under deterministic and stochastic samplers."""

from __future__ import annotations

from typing import Any

from diffgen.study.answer import Answer, Figure, Record, Table
from diffgen.study.answers.levels import identity_sentence, neighbors_figure, neighbors_table
from diffgen.study.drawing import COLOURS, FAINT, MARKERS, tidy
from diffgen.study.estimates import THRESHOLD, Estimate, memorised, number, share
from diffgen.study.galleries import Gallery, draw_galleries

STAGES = ("optimum_samples", "optimum_levels")
NAMES = {"ddim": "DDIM", "ddpm": "DDPM", "heun": "Heun"}

HIGH = 0.9
"""A share of memorised samples above which a model counts as one that memorises."""

TITLE = "The optimum returns its training set"
QUESTION = (
    "Does what is sampled from the empirical-optimal model belong to the training set, with a "
    "deterministic sampler and with stochastic ones?"
)
METHOD = (
    "The optimal denoiser of the training set, in closed form, is sampled from the same noise with "
    "every sampler and number of steps (levels equally spaced in the time of a DDPM). A sample "
    "counts as memorised where its distance d1 to the nearest training image is less than a third "
    "of the distance d2 to the second nearest one. Held-out real images, judged in the same way, "
    "are the control.",
)
LIMITS = (
    "Memorised is said of distances in pixels; a model that copies in another sense (a shifted "
    "image, say) is not seen by it.",
)


def answer(stages: dict[str, Record]) -> Answer:
    """The answer, from the values of the finished stages."""
    missing = tuple(name for name in STAGES if name not in stages)
    if "optimum_samples" in missing:
        return Answer(TITLE, QUESTION, METHOD, limits=LIMITS, missing=missing)
    found, levels = stages["optimum_samples"], stages.get("optimum_levels")
    shares = [_share(run) for run in found["runs"]]
    held_out = _share(found["held_out"])
    least = min(shares, key=lambda estimate: estimate.value)
    return Answer(
        TITLE,
        QUESTION,
        METHOD if levels is None else (*METHOD, identity_sentence(levels)),
        verdict=(_verdict(shares, held_out, found),),
        number=f"memorised, lowest of all samplers and steps: {least}",
        control=f"held-out real images: {held_out}",
        tables=(
            _table(found, shares, held_out),
            *((neighbors_table(levels),) if levels is not None else ()),
        ),
        figures=(
            *_figures(found),
            *((neighbors_figure(levels),) if levels is not None else ()),
        ),
        limits=LIMITS,
        missing=missing,
    )


def _share(run: Record) -> Estimate:
    return share(memorised(run["d1"], run["d2"]))


def _verdict(shares: list[Estimate], held_out: Estimate, found: Record) -> str:
    least = min(shares, key=lambda estimate: estimate.low)
    steps = sorted({run["steps"] for run in found["runs"]})
    where = f"With DDIM, DDPM and Heun at {steps[0]:,} to {steps[-1]:,} steps"
    control = f"{held_out} of held-out real images"
    if least.low <= held_out.high:
        return (
            f"Not shown. {where} the lowest share of memorised samples is {least}, which these "
            f"samples do not tell apart from {control}."
        )
    if least.value == 1:
        return (
            f"Yes. {where} every sample is memorised: in each setting a share of at least "
            f"{number(least.low)} with 95% confidence, against {control}."
        )
    answer = "Yes" if least.low > HIGH else "In part"
    return f"{answer}. {where} the lowest share of memorised samples is {least}, against {control}."


def _table(found: Record, shares: list[Estimate], held_out: Estimate) -> Table:
    rows = []
    for run, estimate in zip(found["runs"], shares, strict=True):
        rows.append([NAMES[run["sampler"]], f"{run['steps']:,}", *_cells(run, estimate)])
    rows.append(["Held-out real images", "", *_cells(found["held_out"], held_out)])
    return Table(
        f"{len(found['runs'][0]['d1'])} samples each, {found['num_points']:,} training images. "
        "Intervals: 95%, Clopper and Pearson, over samples. Distinct: different training images "
        "among the nearest ones of the memorised samples.",
        ("what", "steps", "memorised", "95% interval", "median d1", "median d1/d2", "distinct"),
        rows,
    )


def _cells(run: Record, estimate: Estimate) -> list[str]:
    ratios = sorted(near / second for near, second in zip(run["d1"], run["d2"], strict=True))
    hits = memorised(run["d1"], run["d2"])
    distinct = {row for row, hit in zip(run["nearest"], hits, strict=True) if hit}
    return [
        number(estimate.value),
        estimate.interval,
        number(sorted(run["d1"])[len(run["d1"]) // 2]),
        number(ratios[len(ratios) // 2]),
        f"{len(distinct):,}",
    ]


def _figures(found: Record) -> tuple[Figure, ...]:
    longest = max(run["steps"] for run in found["runs"])
    galleries = [
        Gallery.of(f"{NAMES[run['sampler']]}, {run['steps']:,} steps", run)
        for run in found["runs"]
        if run["steps"] == longest
    ]
    galleries.append(Gallery.of("Held-out real images", found["held_out"]))

    def draw_ratios(figure: Any) -> None:
        axes = figure.subplots()
        for index, sampler in enumerate(NAMES):
            runs = [run for run in found["runs"] if run["sampler"] == sampler]
            axes.plot(
                [run["steps"] * (1 + 0.04 * (index - 1)) for run in runs],
                [_share(run).value for run in runs],
                color=COLOURS[index],
                marker=MARKERS[index],
                label=NAMES[sampler],
            )
        axes.axhline(_share(found["held_out"]).value, color=FAINT, ls=":", label="held-out images")
        axes.set(xscale="log", ylim=(-0.05, 1.05))
        tidy(axes, x="steps of the sampler", y="share memorised")
        axes.legend(frameon=False, loc="center right")

    return (
        Figure(
            "optimum_gallery",
            "The first samples of the optimum, not chosen, and under each its three nearest "
            f"training images. Orange: memorised, d1/d2 < {THRESHOLD:.2f}.",
            lambda figure: draw_galleries(figure, galleries),
            size=(11.0, 6.2),
        ),
        Figure(
            "optimum_ratio",
            "Share of memorised samples over the number of steps of the sampler.",
            draw_ratios,
            size=(7.0, 3.0),
        ),
    )
