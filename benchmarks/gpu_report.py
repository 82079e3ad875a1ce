"""Writes the tables of measured times in `docs/gpu.md`: `python -m benchmarks.gpu_report --write`.

Each ``gpu_results/<gpu>.csv``, which `python -m benchmarks.gpu` writes, becomes one table; each
``<gpu>-profile.csv``, which `python -m benchmarks.gpu_profile` writes, one behind it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import RESULTS
from benchmarks.report import with_block
from benchmarks.results import Row, read_csv
from benchmarks.targets import find

PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
NOTHING = "Nothing yet."
SETS = {"synthetic": "generated images", "photographs": "crops of photographs"}
HEADS = (
    *("set", "storage", "B", "sigma", "diffgen, ms", "triton, ms", "eager, ms"),
    *("fastest peer, ms", "ratio", "error", "ceiling, ms"),
)
PROFILE_HEADS = (
    *("storage", "backend", "B", "sigma", "call, ms", "Python, ms", "kernels, ms", "launches"),
    *("slowest kernel", "in the benchmark, ms", "ratio to the peer"),
)


def measured(runs: Sequence[Sequence[Row]], profiles: Sequence[Sequence[Row]] = ()) -> str:
    """What stands between the markers.

    Args:
        runs: The rows of each GPU's benchmark.
        profiles: The rows of each GPU's profile.
    """
    tables = [_of_one_gpu(rows) for rows in runs]
    tables += [_of_one_profile(rows, [row for run in runs for row in run]) for rows in profiles]
    return "\n\n".join(tables) or NOTHING


def committed(folder: Path = RESULTS) -> tuple[list[list[Row]], list[list[Row]]]:
    """The rows of every benchmark and of every profile, by the name of the file."""
    paths = sorted(folder.glob("*.csv"))
    profiles = [path for path in paths if path.stem.endswith("-profile")]
    runs = [path for path in paths if path not in profiles]
    return [read_csv(path) for path in runs], [read_csv(path) for path in profiles]


def page(text: str, runs: Sequence[Sequence[Row]], profiles: Sequence[Sequence[Row]] = ()) -> str:
    """The page with its tables.

    Raises:
        ValueError: If it lacks a marker.
    """
    return with_block(text, measured(runs, profiles), BEGIN, END)


def _of_one_gpu(rows: Sequence[Row]) -> str:
    first = rows[0]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    # Storage types apart, each in the order of the run.
    types = list(dict.fromkeys(row["dtype"] for row in rows))
    ours = [row for case in cases if (row := find(rows, case)) is not None]
    ours.sort(key=lambda row: types.index(row["dtype"]))
    compiled = f", CUDA kernels compiled by CUDA {first['cuda']}" if first["cuda"] else ""
    return "\n".join(
        [
            f"### {first['gpu'] or first['machine']}",
            "",
            f"{first['gpu'] or first['machine']}; torch {first['torch']}, triton "
            f"{first['triton'] or 'not installed'}{compiled}; diffgen {first['diffgen']} "
            f"({first['commit'] or 'commit unknown'}), {first['date'][:10]}. {_sets(rows)}. "
            f"Rates of the run: {_rates(first)}. "
            f"[All rows](../benchmarks/gpu_results/{first['machine']}.csv).",
            "",
            f"| {' | '.join(HEADS)} |",
            f"|---|---|{'---:|' * (len(HEADS) - 2)}",
            *(_line(rows, row) for row in ours),
        ]
    )


def _of_one_profile(rows: Sequence[Row], runs: Sequence[Row]) -> str:
    first = rows[0]
    return "\n".join(
        [
            f"### {first['gpu']}, kernel by kernel",
            "",
            f"{first['gpu']}; torch {first['torch']}, triton {first['triton']}, CUDA "
            f"{first['cuda']}; diffgen at {first['commit']}, {first['date'][:10]}. The last two "
            f"columns stand beside the benchmark above, of {_commits(runs)}.",
            "",
            f"| {' | '.join(PROFILE_HEADS)} |",
            f"|---|---|{'---:|' * 6}---|---:|---:|",
            *(_profile_line(row, runs) for row in rows),
        ]
    )


def _commits(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(row["commit"] for row in rows)) or "nothing"


def _profile_line(row: Row, runs: Sequence[Row]) -> str:
    cells = [row[key] for key in ("dtype", "backend", "B", "sigma")]
    cells += [f"**{float(row['time_ms']):.3g}**", f"{float(row['host_ms']):.2g}"]
    cells += [f"{float(row['kernels_ms']):.3g}", row["launches"], row["slowest"].split(";")[0]]
    name = "diffgen" if row["backend"] == "cuda" else f"diffgen-{row['backend']}"
    same = [run for run in runs if all(run[key] == row[key] for key in ("B", "sigma"))]
    before = [run for run in same if run["dtype"] == row["dtype"] and run["contender"] == name]
    cells.append(_time(before[0]) if before else "-")
    peer = fastest_peer(runs, before[0]) if before else None
    cells.append("-" if peer is None else f"{_ratio(peer, row)} ({peer['contender']})")
    return f"| {' | '.join(cells)} |"


def _ratio(peer: Row, ours: Row) -> str:
    return f"{float(peer['time_ms']) / float(ours['time_ms']):.2g}"


def _sets(rows: Sequence[Row]) -> str:
    """Each set, as N x D and what its images are."""
    found = {
        _set(row): f"{_set(row)}: {int(row['N']):,} x {int(row['D']):,}, "
        f"{SETS.get(row['data'], row['data'])}"
        for row in rows
    }
    return "; ".join(found.values())


def _set(row: Row) -> str:
    return row["case"].partition("-")[0]


def _rates(row: Row) -> str:
    integers = f", {float(row['int8_gop_s']) / 1e3:.4g} TOP/s int8" if row["int8_gop_s"] else ""
    return (
        f"{float(row['read_gb_s']) / 1e3:.3g} TB/s read, "
        f"{float(row['fma_gf_s']) / 1e3:.3g} TFLOP/s float32{integers}"
    )


def _line(rows: Sequence[Row], ours: Row) -> str:
    cells = [_set(ours), ours["dtype"], ours["B"], ours["sigma"]]
    backend = ours["backend"] or "unknown"
    cells.append(f"**{_time(ours)}** ({backend})" if ours["time_ms"] else "-")
    cells += [_time(find(rows, ours["case"], name)) for name in ("diffgen-triton", "diffgen-eager")]
    peer = fastest_peer(rows, ours)
    cells.append("-" if peer is None else f"{_time(peer)} ({peer['contender']})")
    if peer is not None and ours["time_ms"]:
        cells.append(_ratio(peer, ours))
    else:
        cells.append("-")
    cells += [_error(ours), _ceiling(ours)]
    return f"| {' | '.join(cells)} |"


def _ceiling(row: Row) -> str:
    if not row["time_ms"]:
        return "-"
    time = float(row["time_ms"]) * float(row["share_of_ceiling"])
    return f"{time:.3g} {row['bound'][:1]}"


def fastest_peer(rows: Sequence[Row], ours: Row) -> Row | None:
    """The fastest contender that is not diffgen, and within the promise, on the same queries.

    Args:
        rows: Of one GPU; peers stand beside the float32 set and were timed in the same rounds.
        ours: The row of diffgen.
    """
    same = ("data", "N", "D", "B", "sigma", "operation")
    peers = [
        row
        for row in rows
        if not row["contender"].startswith("diffgen")
        and row["time_ms"]
        and row["in_bounds"] == "yes"
        and all(row[key] == ours[key] for key in same)
    ]
    return min(peers, key=lambda row: float(row["time_ms"]), default=None)


def _time(row: Row | None) -> str:
    return f"{float(row['time_ms']):.3g}" if row is not None and row["time_ms"] else "-"


def _error(row: Row) -> str:
    if not row["error_in_promises"]:
        return "-"
    error = f"{float(row['error_in_promises']):.2g}"
    return error if row["in_bounds"] == "yes" else f"**{error}, out of bounds**"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables, or writes them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__)
    parser.add_argument("--write", action="store_true", help="bring docs/gpu.md up to date")
    args = parser.parse_args(argv)
    runs, profiles = committed()
    if args.write:
        PAGE.write_text(page(PAGE.read_text(), runs, profiles))
        print(f"wrote {PAGE.name}")
    else:
        print(measured(runs, profiles))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
