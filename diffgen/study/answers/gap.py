"""Claim 3, answered: the difference between networks and their optimum."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from diffgen.generalization.statistics.standard_errors import Z_LIMIT
from diffgen.study.answer import Answer, Figure, Record, Table
from diffgen.study.drawing import COLOURS, FAINT, MARKERS, steps_axis, tidy
from diffgen.study.estimates import Estimate, mean, memorised, number, share

STAGES = ("gaps", "novelty", "replica_samples", "seed_samples")
KINDS = {"train": "training points", "test": "test points", "path": "own path"}
SWEEPS = {
    "optimum_first": "optimum above sigma, network below",
    "network_first": "network above sigma, optimum below",
}

TITLE = "The difference to the optimum remains, and it matters"
QUESTION = (
    "How far are trained networks from the optimum of their set, over the noise and over training "
    "time, and what becomes of their samples as the difference goes?"
)
METHOD = (
    "The gap at a time t is E|eps_theta - epsilon*|^2, the squared distance of the network's "
    "prediction from that of the optimum, summed over the elements: at noised training points, at "
    "noised test points, and on the network's own sampling path (with denoised samples clipped to "
    "the range of the data, as all samples of networks here). At training points it must equal the "
    "excess of the training loss over the irreducible loss; both are measured, and their z-score "
    "is reported.",
    "Hybrid samplers take the optimum on one side of a noise level and a network on the other, "
    "mixtures take (1 - lambda) optimum + lambda network at all levels, all from the same noise. "
    "Where along the sweep the memorised share changes is where the difference matters.",
)
LIMITS = (
    "Networks and sets are small; how the gap falls with time and size is theirs.",
    "That fewer samples are memorised at a larger gap does not say that they are good samples: a "
    "network that has learnt nothing memorises nothing.",
)


def answer(stages: dict[str, Record]) -> Answer:
    """The answer, from the values of the finished stages."""
    missing = tuple(name for name in STAGES if name not in stages)
    if "gaps" in missing or "replica_samples" in missing:
        return Answer(TITLE, QUESTION, METHOD, limits=LIMITS, missing=missing)
    gaps, samples = stages["gaps"], stages["replica_samples"]
    novelty, seeds = stages.get("novelty"), stages.get("seed_samples")
    last = gaps["rows"][-1]["step"]
    remaining = gap_of(gaps, last, "train")
    copies = _copies(samples["training"][-1])
    return Answer(
        TITLE,
        QUESTION,
        (*METHOD, _identity_sentence(gaps)),
        verdict=_verdict(gaps, samples, novelty, seeds),
        number=f"gap after {last:,} steps, mean over t: {remaining}; memorised: {copies}",
        control=f"optimum: gap 0 by definition; memorised: {_copies(samples['optimum'])}",
        tables=(
            _time_table(gaps, samples),
            _level_table(gaps, last),
            *((_novelty_table(novelty),) if novelty is not None else ()),
        ),
        figures=(
            _gap_figure(gaps, last),
            *((_novelty_figure(novelty),) if novelty is not None else ()),
        ),
        limits=LIMITS,
        missing=missing,
    )


def gap_of(gaps: Record, step: int, kind: str, value: str = "gap") -> Estimate:
    """Mean over times and points at a training time; points and replicas could be others."""
    values: list[float] = []
    groups: list[int] = []
    for row in gaps["rows"]:
        if row["step"] == step:
            over_times = [sum(point) / len(point) for point in zip(*row[kind][value], strict=True)]
            values += over_times
            groups += [row["replica"]] * len(over_times)
    return mean(values, groups)


def _level_gap(gaps: Record, step: int, kind: str, index: int, value: str = "gap") -> Estimate:
    rows = [row for row in gaps["rows"] if row["step"] == step]
    values = [point for row in rows for point in row[kind][value][index]]
    return mean(values, [row["replica"] for row in rows for _ in row[kind][value][index]])


def _copies(run: Record) -> Estimate:
    return share(memorised(run["d1"], run["d2"]), run["replica"])


def _identity_sentence(gaps: Record) -> str:
    scores = [abs(z) for row in gaps["rows"] for z in row["identity_z"] if z is not None]
    holds = "holds" if max(scores) < Z_LIMIT else "does NOT hold"
    return (
        f"Check: gap = excess training loss {holds} at noised training points: the largest of "
        f"{len(scores)} z-scores is {number(max(scores))}, of {Z_LIMIT:g} allowed. At test points "
        "it need not hold; both are in the table."
    )


def _verdict(
    gaps: Record, samples: Record, novelty: Record | None, seeds: Record | None
) -> list[str]:
    steps = [row["step"] for row in samples["training"]]
    first, last = (gap_of(gaps, step, "train") for step in (steps[0], steps[-1]))
    copies, optimum = _copies(samples["training"][-1]), _copies(samples["optimum"])
    remains = "remains" if last.low > 0 else "cannot be told from 0"
    was = f" (it was {first} after {steps[0]:,})" if len(steps) > 1 else ""
    parts = [
        f"After {steps[-1]:,} steps a gap of {last} {remains}{was}, and the networks memorise "
        f"{copies} of their samples where their optimum memorises {optimum}."
    ]
    if seeds is not None:
        parts.append(_closing_sentence(seeds))
    if novelty is not None:
        parts.append(_novelty_sentence(novelty))
    return [part for part in parts if part]


def _closing_sentence(seeds: Record) -> str:
    """What closing the gap does, from the networks on the smallest set."""
    original = seeds["objectives"][0]
    rows = [row for row in seeds["rows"] if row["objective"] == original]
    if rows[0]["step"] == rows[-1]["step"]:
        return ""
    ends = []
    for step in (rows[0]["step"], rows[-1]["step"]):
        at = [row for row in rows if row["step"] == step]
        gap = sum(sum(row["gap"]) / len(row["gap"]) for row in at) / len(at)
        hits = [hit for row in at for hit in memorised(row["d1"], row["d2"])]
        groups = [row["seed"] for row in at for _ in row["d1"]]
        ends.append((step, gap, share(hits, groups)))
    (start, wide, before), (end, narrow, after) = ends
    change = "rises" if after.low > before.high else "goes"
    return (
        f"On a set of {seeds['num_points']} images, as the gap falls from {number(wide)} to "
        f"{number(narrow)} between steps {start:,} and {end:,}, the memorised share {change} from "
        f"{before} to {after}."
    )


def _novelty_sentence(novelty: Record) -> str:
    rows = [row for row in novelty["rows"] if row["kind"] == "optimum_first"]
    rows.sort(key=lambda row: -row["value"])
    shares = [(row["value"], _share(row).value) for row in rows]
    for (above, before), (below, after) in pairwise(shares):
        if before < 0.5 <= after:
            return (
                "With the optimum above a noise level and a network below it, more than half of "
                f"the samples are memorised once that level is between {number(below)} and "
                f"{number(above)} or lower: what the network does above it decides."
            )
    return ""


def _share(row: Record) -> Estimate:
    return share(memorised(row["d1"], row["d2"]))


def _time_table(gaps: Record, samples: Record) -> Table:
    rows = []
    for run in samples["training"]:
        step = run["step"]
        rows.append(
            [
                f"{step:,}",
                str(gap_of(gaps, step, "train")),
                str(gap_of(gaps, step, "train", "excess")),
                str(gap_of(gaps, step, "test")),
                str(gap_of(gaps, step, "test", "excess")),
                str(gap_of(gaps, step, "path")),
                str(_copies(run)),
            ]
        )
    replicas = len({row["replica"] for row in gaps["rows"]})
    return Table(
        f"Mean over t = {', '.join(map(str, gaps['times']))}; sums over the {gaps['elements']} "
        f"elements; {replicas} networks on sets of {gaps['num_points']}, memorised of all. "
        "Intervals: 95%, bootstrap over networks and points; memorised: Clopper and Pearson with "
        "the effective number of trials.",
        ("steps", "gap, training points", "excess loss there", "gap, test points",
         "excess loss there", "gap, own path", "memorised"),
        rows,
    )  # fmt: skip


def _level_table(gaps: Record, step: int) -> Table:
    rows = []
    for index, time in enumerate(gaps["times"]):
        scores = [row["identity_z"][index] for row in gaps["rows"] if row["step"] == step]
        rows.append(
            [
                f"{time}",
                *(str(_level_gap(gaps, step, kind, index)) for kind in KINDS),
                str(_level_gap(gaps, step, "train", index, "excess")),
                number(max(abs(z) for z in scores if z is not None)),
            ]
        )
    return Table(
        f"After {step:,} steps, over t. z: the largest z-score, of all networks, of gap = excess "
        "training loss. Intervals: 95%, bootstrap over networks and points.",
        ("t", *(f"gap, {name}" for name in KINDS.values()), "excess training loss", "z"),
        rows,
    )


def _novelty_table(novelty: Record) -> Table:
    names = {**SWEEPS, "mixture": "mixture, lambda", "network": "network alone",
             "optimum": "optimum alone"}  # fmt: skip
    rows = [
        [
            names[row["kind"]],
            "" if row["value"] is None else number(row["value"]),
            str(_share(row)),
            str(mean(row["distance_to_network"])),
            str(mean(row["distance_to_optimum"])),
        ]
        for row in novelty["rows"]
    ]
    return Table(
        f"One network (step {novelty['step']:,}) and its optimum, "
        f"{len(novelty['rows'][0]['d1'])} samples each from the same noise. Distances: l2, to the "
        "network's own and to the optimum's sample of the same noise. Intervals: 95%, over noises, "
        "not over networks.",
        ("sampler", "sigma or lambda", "memorised", "distance to network's", "to optimum's"),
        rows,
    )


def _gap_figure(gaps: Record, last: int) -> Figure:
    steps = list(dict.fromkeys(row["step"] for row in gaps["rows"]))

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for index, (kind, name) in enumerate(KINDS.items()):
            estimates = [_level_gap(gaps, last, kind, at) for at in range(len(gaps["times"]))]
            _line(left, gaps["times"], estimates, index, name)
            _line(right, steps, [gap_of(gaps, step, kind) for step in steps], index, name)
        left.set(yscale="log")
        right.set(yscale="log")
        steps_axis(right, steps)
        tidy(left, f"After {last:,} steps", "time t", "gap, sum over elements")
        tidy(right, "Over training", "training steps", "gap, mean over t")
        left.legend(frameon=False)

    return Figure(
        "gap",
        "The gap to the optimum. Bands: 95% intervals over networks and points.",
        draw,
    )


def _line(axes: Any, x: list[float], estimates: list[Estimate], index: int, name: str) -> None:
    axes.fill_between(
        x, [e.low for e in estimates], [e.high for e in estimates],
        color=COLOURS[index], alpha=0.18, lw=0,
    )  # fmt: skip
    axes.plot(
        x, [e.value for e in estimates],
        color=COLOURS[index], marker=MARKERS[index], ms=3.5, label=name,
    )  # fmt: skip


def _novelty_figure(novelty: Record) -> Figure:
    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for index, (kind, name) in enumerate(SWEEPS.items()):
            rows = sorted(
                (row for row in novelty["rows"] if row["kind"] == kind), key=lambda r: r["value"]
            )
            _line(left, [row["value"] for row in rows], [_share(row) for row in rows], index, name)
        alone = {row["kind"]: row for row in novelty["rows"] if row["value"] is None}
        mixed = [row for row in novelty["rows"] if row["kind"] == "mixture"]
        weights = [0.0, *(row["value"] for row in mixed), 1.0]
        rows = [alone["optimum"], *mixed, alone["network"]]
        _line(right, weights, [_share(row) for row in rows], 2, "mixture")
        for axes in (left, right):
            axes.set(ylim=(-0.05, 1.05))
            axes.axhline(_share(alone["network"]).value, color=FAINT, ls=":", lw=1)
        left.set(xscale="log")
        tidy(left, "Where they take over", "sigma of the switch", "share memorised")
        tidy(right, "Mixtures", "lambda, weight of the network", "share memorised")
        left.legend(frameon=False, fontsize=8)

    return Figure(
        "novelty",
        "The memorised share of samples made with the optimum and a network together. Dotted: the "
        "network alone. Bands: 95% intervals over noises.",
        draw,
    )
