"""The user's own network, beside the four claims."""

from __future__ import annotations

from typing import Any

from diffgen.generalization.statistics.standard_errors import Z_LIMIT
from diffgen.study.answer import Answer, Figure, Record, Table
from diffgen.study.drawing import COLOURS, MARKERS, tidy
from diffgen.study.estimates import Estimate, mean, memorised, number, share
from diffgen.study.galleries import Gallery, draw_galleries

STAGE = "own_network"
TITLE = "Your network"
QUESTION = "How much does the given network memorise, and how far is it from its optimum?"
METHOD = (
    "The network of the checkpoint is sampled with DDIM; d1 and d2 are the distances of a sample "
    "to the nearest and second nearest of its training images. C_T compares d1 of samples with "
    "that of held-out images by ranks: a z-score, negative where samples are closer to the "
    "training set. Authentic: farther from the nearest training image than that is from its own "
    "nearest. The gap is E|eps_theta - epsilon*|^2, summed over the elements.",
)
LIMITS = ("Intervals cover other samples of this network, not other networks.",)


def answer(stages: dict[str, Record]) -> Answer:
    """The answer, from the values of the finished stages."""
    if STAGE not in stages:
        return Answer(TITLE, QUESTION, METHOD, limits=LIMITS, missing=(STAGE,))
    found = stages[STAGE]
    copies = _share(found["samples"])
    control = _share(found["held_out"]) if "held_out" in found else None
    gap = _gap(found, "train")
    worst = max(abs(z) for z in found["identity_z"] if z is not None)
    holds = "holds" if worst < Z_LIMIT else "does NOT hold"
    verdict = [f"The network memorises {copies} of its samples; its mean gap is {gap}."]
    if "copying_z" in found:
        verdict.append(f"C_T is {number(found['copying_z'])}.")
    return Answer(
        TITLE,
        QUESTION,
        (*METHOD, f"Check: gap = excess training loss {holds} (largest z-score {number(worst)})."),
        verdict=verdict,
        number=f"memorised: {copies}",
        control="no held-out images" if control is None else f"held-out real images: {control}",
        tables=(_samples_table(found), _gap_table(found)),
        figures=_figures(found),
        limits=LIMITS,
    )


def _share(run: Record) -> Estimate:
    return share(memorised(run["d1"], run["d2"]))


def _gap(found: Record, kind: str) -> Estimate:
    """Mean over times and points."""
    return mean([sum(point) / len(point) for point in zip(*found[kind]["gap"], strict=True)])


def _samples_table(found: Record) -> Table:
    rows = [["Samples", str(_share(found["samples"])), str(mean(found["samples"]["d1"])), ""]]
    if "held_out" in found:
        rows[0][3] = str(share([bool(one) for one in found["authentic"]]))
        held_out = found["held_out"]
        rows.append(["Held-out real images", str(_share(held_out)), str(mean(held_out["d1"])), ""])
    return Table(
        f"{len(found['samples']['d1'])} samples, {found['num_points']:,} training images. "
        "Intervals: 95%, Clopper and Pearson, and bootstrap over samples.",
        ("what", "memorised", "mean d1", "authentic"),
        rows,
    )


def _gap_table(found: Record) -> Table:
    rows = []
    for index, time in enumerate(found["times"]):
        test = str(mean(found["test"]["gap"][index])) if "test" in found else ""
        rows.append(
            [
                number(float(time)),
                number(found["sigmas"][index]),
                str(mean(found["train"]["gap"][index])),
                str(mean(found["train"]["excess"][index])),
                test,
            ]
        )
    return Table(
        "Over the times of the network's process; gaps in units of epsilon. Intervals: 95%, "
        "bootstrap over points.",
        ("t", "sigma", "gap, training points", "excess loss there", "gap, test points"),
        rows,
    )


def _figures(found: Record) -> tuple[Figure, ...]:
    gallery = Gallery.of("The network's samples", found["samples"])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for index, kind in enumerate(kind for kind in ("train", "test") if kind in found):
            values = [mean(row) for row in found[kind]["gap"]]
            axes.fill_between(
                found["sigmas"], [e.low for e in values], [e.high for e in values],
                color=COLOURS[index], alpha=0.18, lw=0,
            )  # fmt: skip
            axes.plot(found["sigmas"], [e.value for e in values], color=COLOURS[index],
                      marker=MARKERS[index], label=f"{kind} points")  # fmt: skip
        axes.set(xscale="log", yscale="log")
        tidy(axes, x="noise level sigma", y="gap, sum over elements")
        axes.legend(frameon=False)

    return (
        Figure(
            "own_gallery",
            "The first samples of the network, not chosen, and under each its nearest training "
            "images.",
            lambda figure: draw_galleries(figure, [gallery]),
            size=(6.5, 3.2),
        ),
        Figure("own_gap", "The gap to the optimum over the noise.", draw, size=(7.0, 3.0)),
    )
