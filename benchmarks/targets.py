"""The table of targets: what the speed must be, measured from the rows of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.cases import (
    BATCHES,
    DENSE_PLANES,
    OVERHEAD_SHAPES,
    SCALING_POINTS,
    TIMED_SIGMAS,
    case_name,
)
from benchmarks.contenders import PEERS
from benchmarks.results import Row

FASTER = {
    ("uint8", 0.3): (7.5, 9.0, 6.5, 5.0),
    ("uint8", 2.0): (7.5, 6.0, 3.2, 2.4),
    ("uint8", 80.0): (7.0, 4.0, 1.9, 1.5),
    ("float32", 2.0): (2.2, 2.8, 1.5, None),
    ("float32", 80.0): (2.2, 2.8, 1.5, None),
}
"""Storage type and sigma, to the least ratio to the fastest rival at each of ``BATCHES``."""

BF16 = (1.6, 1.2, 1.0, 1.0)
"""The least ratio of bfloat16 storage to float32 storage at each of ``BATCHES``."""


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


def find(rows: Sequence[Row], case: str, contender: str = "diffgen") -> Row | None:
    """The row of a contender in a case, or None."""
    for row in rows:
        if row["case"] == case and row["contender"] == contender:
            return row
    return None


def time_ms(rows: Sequence[Row], case: str, contender: str = "diffgen") -> float | None:
    """Median time of a contender in a case, or None."""
    row = find(rows, case, contender)
    return float(row["time_ms"]) if row is not None and row["time_ms"] else None


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
    rival = best_rival(rows, rivals)
    return None if rival is None else _over(rival[0], time_ms(rows, case))


def _over(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or denominator is None else numerator / denominator


def _spread_over_sizes(rows: Sequence[Row], group: str) -> float | None:
    times = [time_ms(rows, f"{group}-n{n}") for n in SCALING_POINTS]
    per_point = [t / n for t, n in zip(times, SCALING_POINTS, strict=True) if t is not None]
    if len(per_point) < len(SCALING_POINTS):
        return None
    return 100 * (max(per_point) / min(per_point) - 1)


def _share_of_rate(
    rows: Sequence[Row], case: str, rate: str, count: Callable[[Row], float]
) -> float | None:
    """What a case makes of a rate that was measured in the run, in per cent, or None."""
    row = find(rows, case)
    if row is None or not row["time_ms"] or not row[rate]:
        return None
    return 100 * count(row) / (float(row["time_ms"]) * 1e6 * float(row[rate]))


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


def _elements(row: Row) -> float:
    return float(row["N"]) * float(row["D"])


def _speed_targets() -> Iterator[Target]:
    for (dtype, sigma), needs in FASTER.items():
        for batch, need in zip(BATCHES, needs, strict=True):
            case, rivals = case_name("cifar", batch, sigma, dtype), case_name("cifar", batch, sigma)
            if need is not None:
                yield Target(
                    f"{dtype}, sigma={sigma:g}, B={batch}: faster than the fastest float32 peer",
                    need,
                    True,
                    "x",
                    lambda rows, case=case, rivals=rivals: ratio_to_best(rows, case, rivals),
                    case,
                )
    for batch, need in zip(BATCHES, BF16, strict=True):
        for sigma in TIMED_SIGMAS[1:]:
            case, twin = (
                case_name("cifar", batch, sigma, "bfloat16"),
                case_name("cifar", batch, sigma),
            )
            yield Target(
                f"bfloat16, sigma={sigma:g}, B={batch}: faster than float32 storage",
                need,
                True,
                "x",
                lambda rows, case=case, twin=twin: _over(time_ms(rows, twin), time_ms(rows, case)),
                case,
            )


def _whole_targets() -> Iterator[Target]:
    ours, theirs = "trajectory-uint8", "trajectory-float32"
    yield Target(
        "uint8, EDM trajectory of 64 samples: faster than over `sdpa`",
        3,
        True,
        "x",
        lambda rows: _over(time_ms(rows, theirs, "sdpa"), time_ms(rows, ours)),
    )
    yield Target(
        "uint8, sweep of 16 levels at B=1: faster than 16 calls",
        4,
        True,
        "x",
        lambda rows: _over(time_ms(rows, "sweep-calls"), time_ms(rows, "sweep-levels")),
    )
    yield Target(
        "uint8, sweep of 16 levels below 1 at B=1: times as long as one call",
        1.5,
        False,
        "x",
        lambda rows: _over(time_ms(rows, "sweep-below1"), time_ms(rows, "sweep-onecall")),
    )
    dense = case_name("cifar", 64, 80.0, "uint8")
    yield Target(
        "uint8, dense (sigma=80), B=64: of the integer units' peak",
        80,
        True,
        "%",
        lambda rows: _share_of_rate(
            rows, dense, "int8_gop_s", lambda row: 2 * DENSE_PLANES * 64 * _elements(row)
        ),
        dense,
    )
    for sigma in TIMED_SIGMAS:
        single = case_name("cifar", 1, sigma, "uint8")
        yield Target(
            f"uint8, sigma={sigma:g}, B=1: of the read bandwidth",
            80,
            True,
            "%",
            lambda rows, single=single: _share_of_rate(rows, single, "read_gb_s", _elements),
            single,
        )


def _small_targets() -> Iterator[Target]:
    for dtype in ("uint8", "float32"):
        for batch in (1, 8):
            group = f"scaling-b{batch}-{dtype}"
            yield Target(
                f"{dtype}, B={batch}: time per point, N = 12,500 to 200,000, spread",
                15,
                False,
                "%",
                lambda rows, group=group: _spread_over_sizes(rows, group),
                f"{group}-n{SCALING_POINTS[-1]}",
            )
    for shape in OVERHEAD_SHAPES:
        case = f"overhead-d{shape[0] * shape[1] * shape[2]}"
        yield Target(
            f"`denoiser(x, 0.5)`, N=16, D={case.removeprefix('overhead-d')}: end to end",
            60,
            False,
            "us",
            lambda rows, case=case: _overhead(rows, case),
        )
    yield Target("worst error of all diffgen rows, in promises", 1, False, "", _worst_error)


TARGETS = (*_speed_targets(), *_whole_targets(), *_small_targets())


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
    row = find(rows, case)
    if row is None or not row["share_of_ceiling"]:
        return ""
    return f"{row['bound']}, at {100 * float(row['share_of_ceiling']):.0f}% of its ceiling"
