"""Claim 1, answered: what samples say about the training set."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

from diffgen.generalization.bounds.event_bound import binary_kl, kl_range
from diffgen.generalization.statistics.proportions import grouped_interval
from diffgen.study.answer import Answer, Figure, Record, Table
from diffgen.study.answers import known
from diffgen.study.answers.known import known_table
from diffgen.study.drawing import COLOURS, FAINT, MARKERS, steps_axis, tidy
from diffgen.study.estimates import Estimate, mean, memorised, number, share
from diffgen.study.galleries import Gallery, draw_galleries

STAGES = ("replicas", "replica_samples", "information", known.STAGE)
NAMES = {
    "optimum": "Optimum of each set",
    "network": "Trained networks",
    "held_out": "Held-out real images",
}
CRITIC = "log_density"
"""The critic whose bound the summary states, chosen before any result: the best of several after
the fact would be too good."""

TITLE = "How much samples say about the training set"
QUESTION = (
    "Generalisation is measured by the mutual information I(generated; training set): the less a "
    "sample says about the set, the better. How much do samples of the optimum, of trained "
    "networks, and held-out real images say?"
)
LIMITS = (
    "All numbers are lower bounds: samples may say more than a critic finds, and never more than "
    "log K can be seen with K sets. A low bound is no proof of generalisation; the optimum beside "
    "it shows what the bound can see.",
    "The information of exact copies of continuous data is infinite; it is bounded here for "
    "samples with a little noise, sigma_min.",
    "The bounds by attribution and by events are derived for this measure, not taken from the "
    "paper.",
)


def answer(stages: dict[str, Record]) -> Answer:
    """The answer, from the values of the finished stages."""
    missing = tuple(name for name in STAGES if name not in stages)
    if missing:
        return Answer(TITLE, QUESTION, (), limits=LIMITS, missing=missing)
    found, samples = stages["information"], stages["replica_samples"]
    bounds = {(row["kind"], row["critic"]): _bound(row["terms"]) for row in found["attribution"]}
    main = {kind: bounds[kind, CRITIC] for kind in NAMES if (kind, CRITIC) in bounds}
    return Answer(
        TITLE,
        QUESTION,
        _method(found, stages["replicas"]),
        verdict=_verdict(main, found),
        number=f"trained networks: at least {main['network']} nats",
        control="; ".join(
            f"{NAMES[kind].lower()}: {main[kind]}" for kind in ("optimum", "held_out")
            if kind in main
        ),
        tables=(
            _attribution_table(found, bounds),
            known_table(stages[known.STAGE]),
            _event_table(found),
            _copies_table(samples),
        ),
        figures=_figures(found, samples, bounds),
        limits=LIMITS,
    )  # fmt: skip


def _bound(terms: Sequence[Sequence[float]]) -> Estimate:
    """The mean of the terms, with models and their samples as what could have been others."""
    flat = [term for of_model in terms for term in of_model]
    return mean(flat, [model for model, row in enumerate(terms) for _ in row])


def _method(found: Record, replicas: Record) -> tuple[str, ...]:
    sets, points = found["num_sets"], found["num_points"]
    return (
        f"{sets} networks of {replicas['num_parameters']:,} parameters are trained on {sets} "
        f"disjoint sets of {points} images each, {replicas['steps'][-1]:,} steps each. From a "
        "sample alone, a critic says which of the sets it goes with; how well it does bounds the "
        "information from below (set attribution, InfoNCE): I >= log K + E[f(sample, own set) - "
        f"logsumexp over sets of f]. It cannot exceed log K = {number(log(sets))} nats. Critics "
        "are fitted on one half of the samples and judged on the other. As a control the labels "
        "are permuted and everything is done again: the bound should be near 0 or below.",
        "The event bound asks how much likelier an event is with the own set than with another "
        "one: I >= kl(P(event, own set) || P(event, other set)). The event 'copy' is "
        "d1/d2 < 1/3; 'near' is a distance below a threshold fitted on other samples. The bound "
        "stated is the low end of its 95% interval.",
        f"Normal noise of standard deviation sigma_min = {found['sigma_min']:g} is added to all "
        "samples first. Held-out real images, dealt out to the sets at random, are the control.",
    )


def _verdict(main: dict[str, Estimate], found: Record) -> list[str]:
    ceiling = number(log(found["num_sets"]))
    optimum, network = main["optimum"], main["network"]
    parts = [
        f"A sample of the optimum says at least {optimum} nats about which set it comes from "
        f"(log K = {ceiling} is the most that can be seen), one of the trained networks at least "
        f"{network}."
    ]
    if network.high < optimum.low:
        parts.append("By this measure the trained networks give away less than the optimum.")
    if network.low > 0:
        parts.append("That is more than nothing: they do not generalise perfectly.")
    else:
        parts.append("The interval includes 0: nothing is seen in their samples.")
    if "held_out" in main:
        control = main["held_out"]
        seen = "as it must be" if control.low <= 0 else "which should not be: look into it"
        parts.append(f"For held-out real images the bound is {control}, {seen}.")
    return parts


def _attribution_table(found: Record, bounds: dict[tuple[str, str], Estimate]) -> Table:
    rows = []
    for row in found["attribution"]:
        rows.append(
            [
                NAMES[row["kind"]],
                row["critic"],
                str(bounds[row["kind"], row["critic"]]),
                str(_bound(row["right"])),
                str(_bound(row["control_terms"])),
                number(_bound(row["control_right"]).value),
            ]
        )
    return Table(
        f"Set attribution, in nats, K = {found['num_sets']}, log K = "
        f"{number(log(found['num_sets']))}; accuracy by chance {number(1 / found['num_sets'])}. "
        "A bound below 0 says no more than 0; 0 without width: the critic has found nothing to go "
        "by, and scores all sets alike. Intervals: 95%, bootstrap over models and samples "
        "of each; the sets are fixed.",
        ("samples", "critic", "I at least", "accuracy", "permuted labels", "their accuracy"),
        rows,
    )


def _event_table(found: Record) -> Table:
    rows = []
    for row in found["events"]:
        own = [[pair[0] for pair in model] for model in row["happened"]]
        fresh = [[pair[1] for pair in model] for model in row["happened"]]
        # Two probabilities, each at half of the error, so that all four ends hold together.
        ends = [
            grouped_interval([sum(of) / len(of) for of in side], len(side[0]), 0.975)
            for side in (own, fresh)
        ]
        shares = [sum(map(sum, side)) / sum(map(len, side)) for side in (own, fresh)]
        estimate = binary_kl(*shares)
        rows.append(
            [
                NAMES[row["kind"]],
                row["event"],
                str(Estimate(shares[0], *ends[0])),
                str(Estimate(shares[1], *ends[1])),
                number(kl_range(*ends)[0]),
                number(estimate) if estimate < float("inf") else "unbounded",
            ]
        )
    return Table(
        "Event bounds, in nats. Shares with 97.5% intervals, over models and samples (Clopper and "
        "Pearson, with the effective number of trials); the bound holds with 95%. The last column "
        "puts the observed shares into kl: it is biased upwards, and no bound.",
        ("samples", "event", "with the own set", "with another set", "I at least", "kl observed"),
        rows,
    )


def _copies_table(samples: Record) -> Table:
    kinds = {"optimum": samples["optimum"], "network": samples["training"][-1],
             "held_out": samples["held_out"]}  # fmt: skip
    rows = [
        [NAMES[kind], f"{len(run['d1']):,}", str(_memorised(run)), str(_nearest(run))]
        for kind, run in kinds.items()
    ]
    return Table(
        "Memorised: d1/d2 < 1/3 with respect to the own set. Intervals: 95%, over models and "
        "samples.",
        ("samples", "number", "memorised", "mean d1"),
        rows,
    )


def _memorised(run: Record) -> Estimate:
    return share(memorised(run["d1"], run["d2"]), run["replica"])


def _nearest(run: Record) -> Estimate:
    return mean(run["d1"], run["replica"])


def _figures(
    found: Record, samples: Record, bounds: dict[tuple[str, str], Estimate]
) -> tuple[Figure, ...]:
    critics = list(dict.fromkeys(row["critic"] for row in found["attribution"]))
    kinds = list(dict.fromkeys(row["kind"] for row in found["attribution"]))
    ceiling = log(found["num_sets"])

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for index, critic in enumerate(critics):
            estimates = [bounds[kind, critic] for kind in kinds]
            left.errorbar(
                [place + 0.15 * (index - 1) for place in range(len(kinds))],
                [e.value for e in estimates],
                yerr=[
                    [max(0.0, e.value - e.low) for e in estimates],
                    [max(0.0, e.high - e.value) for e in estimates],
                ],
                color=COLOURS[index], marker=MARKERS[index], ls="none", capsize=3, label=critic,
            )  # fmt: skip
        left.axhline(ceiling, color=FAINT, ls=":")
        left.text(len(kinds) - 0.6, ceiling, "log K", color=FAINT, va="bottom", ha="right")
        left.axhline(0, color=FAINT, lw=0.8)
        left.set_xticks(range(len(kinds)), [NAMES[kind].replace(" ", "\n", 1) for kind in kinds])
        left.set(xlim=(-0.6, len(kinds) - 0.4))
        tidy(left, "Information, lower bounds by three critics", y="nats")
        left.legend(frameon=False)
        over_time = [_bound(row["terms"]) for row in found["training"]]
        steps = [row["step"] for row in found["training"]]
        right.fill_between(
            steps, [e.low for e in over_time], [e.high for e in over_time],
            color=COLOURS[0], alpha=0.2, lw=0,
        )  # fmt: skip
        right.plot(steps, [e.value for e in over_time], color=COLOURS[0], marker="o")
        right.axhline(0, color=FAINT, lw=0.8)
        steps_axis(right, steps)
        tidy(right, f"Trained networks ({CRITIC})", "training steps", "nats, lower bound")

    galleries = [
        Gallery.of("A trained network's samples", samples["pictures"]["network"]),
        Gallery.of("Its optimum's, from the same noise", samples["pictures"]["optimum"]),
    ]
    return (
        Figure(
            "information",
            "Left: lower bounds on the information between a sample and its training set. Right: "
            "the bound over training time. 95% intervals over models and samples.",
            draw,
            size=(10.0, 3.6),
        ),
        Figure(
            "information_gallery",
            "The first samples, not chosen, and under each its nearest training images.",
            lambda figure: draw_galleries(figure, galleries),
            size=(11.0, 3.2),
        ),
    )
