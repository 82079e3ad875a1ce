"""Records a run, and writes the README's table and the figures from the recorded results.

``python -m benchmarks.report --record saved.json --write``
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.cases import BATCHES, SIGMAS, TIMED_SIGMAS, case_name, chosen
from benchmarks.figures import draw, figure_path
from benchmarks.results import RESULTS, Row, flatten, latest, read_csv, write_csv
from benchmarks.targets import best_rival, find, ratio_to_best, target_table, time_ms

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
STORAGE = ("uint8", "float32", "bfloat16")
ERROR_BATCH = 8
INEXACT = ("expanded", "sdpa", "faiss-top200", "expanded-bf16")
"""Peers whose errors the README names."""


def readme_block(rows: Sequence[Row]) -> str:
    """What stands between the markers: times and ratios, errors, and the setting."""
    first = rows[0]
    link = f"benchmarks/results/{first['machine']}"
    csv = Path(f"{link}.csv")
    lines = [
        f"Milliseconds for {_data(rows)} of N=50,000, D=3,072, and in brackets how many times "
        "faster that is than the fastest float32 alternative: PyTorch's products, compiled or in "
        "chunks, cdist, attention, KeOps, deepinv, smalldiffusion.",
        "",
        f"| set, noise level | {' | '.join(f'B={batch}' for batch in BATCHES)} |",
        f"|---|{'---|' * len(BATCHES)}",
    ]
    for dtype in STORAGE:
        for sigma in TIMED_SIGMAS:
            lines.append(_line(rows, f"**diffgen**, {dtype}, sigma={sigma:g}", dtype, sigma))
    lines += [
        _rivals_line(rows),
        "",
        f"{_errors(rows)}{_trajectory(rows)}",
        "",
        f"![Time against batch]({figure_path(csv, 'time')}) "
        f"![Error against noise level]({figure_path(csv, 'error')})",
        "",
        f"{first['machine']}, {first['threads']} threads, torch {first['torch']}, "
        f"diffgen {first['diffgen']} ({first['commit']}), {first['date'][:10]}. Medians of rounds "
        "taken in turn; the alternatives hold the set as float32. "
        f"[All rows]({link}.csv), [targets]({link}-targets.md).",
    ]
    return "\n".join(lines)


def targets_page(rows: Sequence[Row]) -> str:
    """The page of targets that lies beside the CSV."""
    first = rows[0]
    integers = first["int8_gop_s"]
    rate = f", {integers} GOP/s in 8-bit integers" if integers else ""
    return (
        f"# Targets on {first['machine']}\n\n"
        f"Generated from `{first['machine']}.csv` ({first['commit']}, {first['date'][:10]}; "
        f"{_data(rows)}). The fastest float32 peer is the fastest rival contender, accurate or "
        f"not. Ceilings, measured in the run ({first['ceilings']}): {first['read_gb_s']} GB/s "
        f"read from memory, {first['fma_gf_s']} GF/s in float32{rate}. A share above 100% means "
        "that work was skipped.\n\n"
        f"{target_table(rows)}\n"
    )


def with_block(text: str, block: str, begin: str = BEGIN, end: str = END) -> str:
    """``text`` with ``block`` between its markers.

    Raises:
        ValueError: If the markers are not both there, in order.
    """
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"text needs the markers {begin} and {end}, got none or one")
    return f"{before}{begin}\n{block}\n{end}{after}"


def record(saved: Path, results: Path = RESULTS) -> Path:
    """Keeps a complete run as the results of its machine.

    Args:
        saved: JSON that pytest-benchmark wrote.
        results: Folder to write ``<machine>.csv``, ``<machine>-targets.md`` and the figures to.

    Returns:
        The CSV.

    Raises:
        ValueError: If cases are missing or were run small.
    """
    rows = flatten(json.loads(saved.read_text()))
    sizes = {(row["case"], row["N"]) for row in rows}
    cases = chosen(full=False)
    missing = [case.name for case in cases if (case.name, str(case.num_points)) not in sizes]
    if missing:
        raise ValueError(f"a recorded run needs every case at full size, got none of {missing}")
    path = results / f"{rows[0]['machine']}.csv"
    write_csv(path, rows)
    write_beside(path)
    return path


def write_beside(csv: Path) -> None:
    """Writes the page of targets and the figures beside recorded results."""
    rows = read_csv(csv)
    csv.with_name(f"{csv.stem}-targets.md").write_text(targets_page(rows))
    draw(rows, csv)


def main(argv: Sequence[str] | None = None) -> int:
    """Records, writes or prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--record", type=Path, metavar="JSON", help="keep this run as the results")
    parser.add_argument(
        "--write", action="store_true", help="bring README.md, targets and figures up to date"
    )
    arguments = parser.parse_args(argv)
    if arguments.record is not None:
        print(f"wrote {record(arguments.record).relative_to(README.parent)}")
    path = latest()
    if path is None:
        print("no results yet: run `make bench`")
        return 1
    rows = read_csv(path)
    if arguments.write:
        write_beside(path)
        README.write_text(with_block(README.read_text(), readme_block(rows)))
        print(f"wrote {README.name}")
    print(f"{readme_block(rows)}\n\n{target_table(rows)}")
    return 0


def _data(rows: Sequence[Row]) -> str:
    """What the images of CIFAR-10's shape are."""
    row = find(rows, case_name("cifar", ERROR_BATCH, 2.0))
    known = {"photographs": "crops of photographs", "cifar10": "CIFAR-10"}
    return known.get(row["data"] if row is not None else "", "generated images")


def _line(rows: Sequence[Row], name: str, dtype: str, sigma: float) -> str:
    cells = []
    for batch in BATCHES:
        case, rivals = case_name("cifar", batch, sigma, dtype), case_name("cifar", batch, sigma)
        time, ratio = time_ms(rows, case), ratio_to_best(rows, case, rivals)
        shown = "-" if time is None else f"{time:.3g}"
        cells.append(shown if ratio is None else f"{shown} ({ratio:.2g}x)")
    return f"| {name} | {' | '.join(cells)} |"


def _rivals_line(rows: Sequence[Row]) -> str:
    """The fastest alternative at sigma = 2, with its name."""
    found = [best_rival(rows, case_name("cifar", batch, 2.0)) for batch in BATCHES]
    cells = ["-" if rival is None else f"{rival[0]:.3g} ({rival[1]})" for rival in found]
    return f"| fastest alternative, sigma=2 | {' | '.join(cells)} |"


def _errors(rows: Sequence[Row]) -> str:
    """The worst errors over all noise levels, as a sentence."""

    def worst(contender: str, dtypes: Iterable[str]) -> float | None:
        names = [case_name("cifar", ERROR_BATCH, s, dtype) for s in SIGMAS for dtype in dtypes]
        found = [find(rows, name, contender) for name in names]
        return max(
            (float(row["error_in_promises"]) for row in found if row and row["error_in_promises"]),
            default=None,
        )

    ours = worst("diffgen", STORAGE)
    peers = [(name, worst(name, ("float32",))) for name in INEXACT]
    parts = [f"{name} {error:.2g}" for name, error in peers if error is not None]
    if ours is None or not parts:
        return ""
    return (
        "Worst error from sigma=0.02 to 80, in units of what diffgen promises (1 or less is kept): "
        f"diffgen {ours:.2g}; {', '.join(parts)} (`sdpa` gives no logsumexp to be judged by). "
    )


def _trajectory(rows: Sequence[Row]) -> str:
    ours, theirs = (
        time_ms(rows, "trajectory-uint8"),
        time_ms(rows, "trajectory-float32", "sdpa"),
    )
    if ours is None or theirs is None:
        return ""
    return (
        f"Drawing 64 samples in 18 steps of Heun's method takes {ours / 1e3:.3g} s on bytes, "
        f"{theirs / 1e3:.3g} s over attention."
    )


if __name__ == "__main__":
    raise SystemExit(main())
