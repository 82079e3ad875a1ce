"""The table of targets: what the speed must be, measured from the rows of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.cases import OVERHEAD_SHAPES, SCALING_POINTS
from benchmarks.contenders import PEERS
from benchmarks.results import Row


@dataclass(frozen=True)
class Target:
    """A claim that a run bears out or not.

    Attributes:
        claim: In words.
        need: The number to reach.
        at_least: Whether ``need`` is the smallest allowed value, or the largest.
        unit: Behind the number.
        measure: Rows to the value, or None when the rows it takes are missing.
        case: The case whose share of the ceiling tells how much room is left.
    """

    claim: str
    need: float
    at_least: bool
    unit: str
    measure: Callable[[Sequence[Row]], float | None]
    case: str = ""

    def met(self, value: float) -> bool:
        """Whether a measured value reaches the target."""
        return value >= self.need if self.at_least else value <= self.need


def time_ms(rows: Sequence[Row], case: str, contender: str = "diffgen") -> float | None:
    """Median time of a contender in a case, or None."""
    for row in rows:
        if row["case"] == case and row["contender"] == contender and row["time_ms"]:
            return float(row["time_ms"])
    return None


def best_rival(rows: Sequence[Row], case: str) -> tuple[float, str] | None:
    """Time and name of the fastest rival in a case, accurate or not."""
    times = [
        (time, contender.name)
        for contender in PEERS
        if contender.rival and (time := time_ms(rows, case, contender.name)) is not None
    ]
    return min(times) if times else None


def ratio_to_best(rows: Sequence[Row], case: str, rivals: str) -> float | None:
    """How many times faster diffgen is in a case than the best rival of another, or None."""
    ours, rival = time_ms(rows, case), best_rival(rows, rivals)
    return None if ours is None or rival is None else rival[0] / ours


def _spread_over_sizes(rows: Sequence[Row], group: str) -> float | None:
    times = [time_ms(rows, f"{group}-n{n}") for n in SCALING_POINTS]
    per_point = [t / n for t, n in zip(times, SCALING_POINTS, strict=True) if t is not None]
    if len(per_point) < len(SCALING_POINTS):
        return None
    return 100 * (max(per_point) / min(per_point) - 1)


def _overhead(rows: Sequence[Row], case: str) -> float | None:
    time = time_ms(rows, case)
    return None if time is None else 1e3 * time


def _worst_error(rows: Sequence[Row]) -> float | None:
    errors = [
        float(row["error_in_promises"])
        for row in rows
        if row["contender"].startswith("diffgen") and row["error_in_promises"]
    ]
    return max(errors) if errors else None


def _table() -> tuple[Target, ...]:
    targets = []
    for batch, need in ((1, 2.1), (8, 2.6), (64, 1.45)):
        for sigma in (2, 80):
            case = f"b{batch}-sigma{sigma}-float32"
            targets.append(
                Target(
                    f"float32, B={batch}, sigma={sigma}: faster than the best peer",
                    need,
                    True,
                    "x",
                    lambda rows, case=case: ratio_to_best(rows, case, case),
                    case,
                )
            )
    for sigma in (2, 80):
        case, twin = f"b1-sigma{sigma}-uint8", f"b1-sigma{sigma}-float32"
        targets.append(
            Target(
                f"uint8, B=1, sigma={sigma}: faster than the best peer (decoded beforehand)",
                5,
                True,
                "x",
                lambda rows, case=case, twin=twin: ratio_to_best(rows, case, twin),
                case,
            )
        )
    for batch in (1, 8):
        group = f"scaling-b{batch}-float32"
        targets.append(
            Target(
                f"float32, B={batch}: time per point, N = 12,500 to 200,000, spread",
                15,
                False,
                "%",
                lambda rows, group=group: _spread_over_sizes(rows, group),
                f"{group}-n{SCALING_POINTS[-1]}",
            )
        )
    for shape in OVERHEAD_SHAPES:
        case = f"overhead-d{shape[0] * shape[1] * shape[2]}"
        targets.append(
            Target(
                f"`denoiser(x, 0.5)`, N=16, D={case.removeprefix('overhead-d')}: end to end",
                60,
                False,
                "us",
                lambda rows, case=case: _overhead(rows, case),
            )
        )
    targets.append(
        Target("worst error of all diffgen rows, in promises", 1, False, "", _worst_error)
    )
    return tuple(targets)


TARGETS = _table()


def target_table(rows: Sequence[Row]) -> str:
    """The targets beside what was measured, as a Markdown table."""
    lines = ["| target | need | measured | met | bound by |", "|---|---|---|---|---|"]
    for target in TARGETS:
        value = target.measure(rows)
        word = "at least" if target.at_least else "at most"
        measured = "not run" if value is None else f"{value:.3g}{target.unit}"
        met = "" if value is None else "yes" if target.met(value) else "**no**"
        need = f"{word} {target.need:g}{target.unit}"
        bound = _room(rows, target.case)
        lines.append(f"| {target.claim} | {need} | {measured} | {met} | {bound} |")
    return "\n".join(lines)


def _room(rows: Sequence[Row], case: str) -> str:
    for row in rows:
        if row["case"] == case and row["contender"] == "diffgen" and row["share_of_ceiling"]:
            return f"{row['bound']}, at {100 * float(row['share_of_ceiling']):.0f}% of its ceiling"
    return ""
