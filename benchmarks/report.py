"""Records a run, and writes the README's table from the recorded results.

``python -m benchmarks.report --record saved.json --write``
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.results import RESULTS, Row, flatten, latest, read_csv, write_csv
from benchmarks.targets import ratio_to_best, target_table, time_ms

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
BATCHES = (1, 8, 64)


def readme_block(rows: Sequence[Row]) -> str:
    """What stands between the markers: times and errors of every contender, and the setting."""
    first = rows[0]
    lines = [
        "Milliseconds at N=50,000, D=3,072, sigma=2; error in units of what diffgen promises "
        "(1 or less is in bounds).",
        "",
        "| | B=1 | B=8 | B=64 | error, sigma=2 | error, sigma=0.02 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_line(rows, "**diffgen**, uint8 set", "diffgen", "uint8")]
    for contender in (row["contender"] for row in rows if row["case"] == _case(1)):
        name = "**diffgen**, float32 set" if contender == "diffgen" else contender
        lines.append(_line(rows, name, contender, "float32"))
    lines += [
        "",
        *_ratios(rows),
        f"{first['machine']}, {first['threads']} threads, torch {first['torch']}, "
        f"diffgen {first['diffgen']} ({first['commit']}), {first['date'][:10]}. Medians of rounds "
        "taken in turn; the peers hold the set as float32 (or as named). "
        f"[All rows](benchmarks/results/{first['machine']}.csv), "
        f"[targets](benchmarks/results/{first['machine']}-targets.md).",
    ]
    return "\n".join(lines)


def targets_page(rows: Sequence[Row]) -> str:
    """The page of targets that lies beside the CSV."""
    first = rows[0]
    return (
        f"# Targets on {first['machine']}\n\n"
        f"Generated from `{first['machine']}.csv` ({first['commit']}, {first['date'][:10]}). The "
        "best peer is the fastest of the rival contenders, accurate or not. Ceilings, measured in "
        f"the run ({first['ceilings']}): {first['read_gb_s']} GB/s read from memory, "
        f"{first['fma_gf_s']} GF/s in float32. A share above 100% means integer units, or work "
        "that was skipped.\n\n"
        f"{target_table(rows)}\n"
    )


def with_block(text: str, block: str) -> str:
    """``text`` with ``block`` between its markers.

    Raises:
        ValueError: If the markers are not both there, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"text needs the markers {BEGIN} and {END}, got none or one")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def record(saved: Path, results: Path = RESULTS) -> Path:
    """Keeps a complete run as the results of its machine.

    Args:
        saved: JSON that pytest-benchmark wrote.
        results: Folder to write ``<machine>.csv`` and ``<machine>-targets.md`` to.

    Returns:
        The CSV.

    Raises:
        ValueError: If cases are missing or were run small.
    """
    rows = flatten(json.loads(saved.read_text()))
    sizes = {(row["case"], row["N"]) for row in rows}
    missing = [case.name for case in CASES if (case.name, str(case.num_points)) not in sizes]
    if missing:
        raise ValueError(f"a recorded run needs every case at full size, got none of {missing}")
    path = results / f"{rows[0]['machine']}.csv"
    write_csv(path, rows)
    path.with_name(f"{path.stem}-targets.md").write_text(targets_page(rows))
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Records, writes or prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--record", type=Path, metavar="JSON", help="keep this run as the results")
    parser.add_argument("--write", action="store_true", help="bring README.md up to date")
    arguments = parser.parse_args(argv)
    if arguments.record is not None:
        print(f"wrote {record(arguments.record).relative_to(README.parent)}")
    path = latest()
    if path is None:
        print("no results yet: run `make bench`")
        return 1
    rows = read_csv(path)
    if arguments.write:
        README.write_text(with_block(README.read_text(), readme_block(rows)))
        print(f"wrote {README.name}")
    print(f"{readme_block(rows)}\n\n{target_table(rows)}")
    return 0


def _case(batch: int, sigma: str = "2", dtype: str = "float32") -> str:
    return f"b{batch}-sigma{sigma}-{dtype}"


def _line(rows: Sequence[Row], name: str, contender: str, dtype: str) -> str:
    times = [time_ms(rows, _case(batch, dtype=dtype), contender) for batch in BATCHES]
    cells = ["-" if time is None else f"{time:.3g}" for time in times]
    at_two = [_error(rows, _case(batch, dtype=dtype), contender) for batch in BATCHES]
    at_small = [_error(rows, _case(batch, "0.02", dtype), contender) for batch in BATCHES]
    return f"| {name} | {' | '.join(cells)} | {_worst(at_two)} | {_worst(at_small)} |"


def _ratios(rows: Sequence[Row]) -> list[str]:
    """The least ratio to the best peer at sigma = 2 and 80, as a sentence."""

    def least(batch: int, dtype: str) -> float | None:
        pairs = ((_case(batch, s, dtype), _case(batch, s)) for s in ("2", "80"))
        ratios = [ratio_to_best(rows, ours, peers) for ours, peers in pairs]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    found = [
        (least(batch, dtype), batch, dtype) for dtype in ("float32", "uint8") for batch in BATCHES
    ]
    parts = [f"{ratio:.2g}x ({dtype}, B={batch})" for ratio, batch, dtype in found if ratio]
    if not parts:
        return []
    return [f"Faster than the best peer, the lesser of sigma=2 and 80: {', '.join(parts)}.", ""]


def _error(rows: Sequence[Row], case: str, contender: str) -> float | None:
    for row in rows:
        if row["case"] == case and row["contender"] == contender and row["error_in_promises"]:
            return float(row["error_in_promises"])
    return None


def _worst(errors: Sequence[float | None]) -> str:
    known = [error for error in errors if error is not None]
    return f"{max(known):.2g}" if known else "-"


if __name__ == "__main__":
    raise SystemExit(main())
