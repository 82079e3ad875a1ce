"""Rows of results: made from measurements, flattened from saved JSON, kept as CSV."""

from __future__ import annotations

import csv
import math
import os
import platform
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import diffgen
from benchmarks.cases import Case
from benchmarks.measure import Measurement
from diffgen.machine import Ceilings

RESULTS = Path(__file__).parent / "results"

COLUMNS = (
    "date",
    "commit",
    "machine",
    "case",
    "operation",
    "data",
    "N",
    "D",
    "B",
    "sigma",
    "dtype",
    "contender",
    "time_ms",
    "min_ms",
    "spread",
    "rounds",
    "peak_mib",
    "error_in_promises",
    "in_bounds",
    "share_of_ceiling",
    "bound",
    "read_gb_s",
    "fma_gf_s",
    "int8_gop_s",
    "ceilings",
    "threads",
    "diffgen",
    "torch",
    "python",
    "note",
)

Row = dict[str, str]


@dataclass(frozen=True)
class Setting:
    """What all rows of a run have in common.

    Attributes:
        machine: Its name.
        threads: Of everything that is timed.
        ceilings: What the machine reads and computes in float32 at most.
        int8_gop_s: 8-bit integer operations (a multiply-add is two), 1e9 a second; None where it
            cannot be measured.
    """

    machine: str
    threads: int
    ceilings: Ceilings
    int8_gop_s: float | None = None


def integer_peak(threads: int) -> float | None:
    """The rate of 8-bit multiply-adds of the machine, 1e9 operations a second, or None."""
    try:
        from diffgen import _native  # type: ignore[attr-defined, unused-ignore]
    except ImportError:
        return None
    measure = getattr(_native, "measure_integer_peak", None)
    return None if measure is None else measure(threads) / 1e9


def machine_name() -> str:
    """A name for the kind of machine, from its processor; nothing of the host."""
    facts: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    model = facts.get("model name") or platform.processor() or platform.machine()
    parts = [model]
    if "cpu family" in facts and "model" in facts:
        parts.append(f"f{facts['cpu family']}m{facts['model']}")
    parts.append(f"{os.cpu_count()}cpu")
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def row_of(found: Measurement, setting: Setting) -> Row:
    """The row of a measurement, all but date and commit."""
    case, contender = found.entry.case, found.entry.contender
    bound, floor_ms = _floor(case, setting)
    row = {
        "machine": setting.machine,
        "case": case.name,
        "operation": case.operation,
        "data": found.data,
        "N": str(case.num_points),
        "D": str(case.num_features),
        "B": str(case.batch),
        "sigma": f"{case.sigma:g}",
        "dtype": case.dtype,
        "contender": contender.name,
        "peak_mib": _figure(found.peak_mib),
        "bound": bound,
        "read_gb_s": _figure(setting.ceilings.read_gb_s),
        "fma_gf_s": _figure(setting.ceilings.fma_gf_s),
        "int8_gop_s": _figure(setting.int8_gop_s),
        "ceilings": setting.ceilings.source,
        "threads": str(setting.threads),
        "diffgen": diffgen.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "note": "; ".join(part for part in (*_remarks(found), contender.note) if part),
    }
    if found.error is not None:
        row["error_in_promises"] = _figure(found.error)
        row["in_bounds"] = "yes" if found.error <= 1 else "no"
    if found.seconds:
        times = [1e3 * t for t in found.seconds]
        median = statistics.median(times)
        row |= {
            "time_ms": _figure(median),
            "min_ms": _figure(min(times)),
            "spread": _figure(_spread(times)),
            "rounds": str(len(times)),
            "share_of_ceiling": _figure(floor_ms / median),
        }
    return {column: row.get(column, "") for column in COLUMNS}


def _floor(case: Case, setting: Setting) -> tuple[str, float]:
    """What bounds a case, and the least time that takes, in milliseconds.

    An 8-bit set is held against the integer units where their rate is known, and against the
    memory alone where it is not: its products need no float32.
    """
    reading = case.counted_bytes / setting.ceilings.read_gb_s / 1e6
    if case.dtype != "uint8":
        computing = case.counted_operations / setting.ceilings.fma_gf_s / 1e6
    elif setting.int8_gop_s is not None:
        computing = case.counted_integer_operations / setting.int8_gop_s / 1e6
    else:
        computing = 0.0
    return ("memory", reading) if reading >= computing else ("arithmetic", computing)


def _remarks(found: Measurement) -> Iterator[str]:
    yield found.failure
    yield found.backend and f"backend {found.backend}"
    if found.stopped:
        yield "stopped after one call"
    elif not found.entry.case.timed and not found.failure:
        yield "accuracy only"


def flatten(saved: Mapping[str, Any]) -> list[Row]:
    """The rows of a JSON that pytest-benchmark saved, failures included."""
    commit = saved["commit_info"]
    common = {
        "date": str(saved["datetime"])[:19],
        "commit": str(commit["id"])[:12] + ("+changes" if commit.get("dirty") else ""),
    }
    rows = [
        *(entry["extra_info"] for entry in saved["benchmarks"]),
        *saved.get("failures", ()),
    ]
    return [{column: str(row.get(column, "")) for column in COLUMNS} | common for row in rows]


def write_csv(path: Path, rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Writes the rows, the columns in their order."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Row]:
    """Reads the rows back."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def latest() -> Path | None:
    """The committed results with the latest date, or None."""
    dated = [(rows[0]["date"], path) for path in RESULTS.glob("*.csv") if (rows := read_csv(path))]
    return max(dated)[1] if dated else None


def _spread(times: list[float]) -> float:
    """The interquartile range, as a part of the median."""
    if len(times) == 1:
        return 0.0
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / median


def _figure(value: float | None) -> str:
    """Four significant digits: no machine here repeats more."""
    if value is None:
        return ""
    return f"{value:.4g}" if math.isfinite(value) else "inf"
