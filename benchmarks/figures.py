"""The figures of the results: time against batch, and error against noise level."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import BATCHES, CASES, SIGMAS, TIMED_SIGMAS, Case
from benchmarks.results import Row

Series = dict[str, list[tuple[float, float]]]
"""Label to points ``(x, y)``."""

ERROR_BATCH = 8
MARK = "numbers sha256:"
"""Stands before the digest of what a figure shows, in its metadata."""

LOWEST_ERROR = 1e-4
"""In promises; what is less is drawn here."""

_COLOURS = {"diffgen uint8": "#c1121f", "diffgen float32": "#f77f00", "diffgen bfloat16": "#e5b800"}
_SHAPES = "osv^D<>Pp*Xh"
_UNITS = {"time": "milliseconds", "error": "error in promises (1e-4 or less at the bottom)"}


def time_series(rows: Sequence[Row], sigma: float) -> Series:
    """Milliseconds against batch of every contender at a noise level, CIFAR-10's shape."""
    return _series(rows, [c for c in _cifar() if c.sigma == sigma and c.timed], "batch", "time_ms")


def error_series(rows: Sequence[Row]) -> Series:
    """Error in promises against noise level, at ``ERROR_BATCH`` queries."""
    cases = [case for case in _cifar() if case.batch == ERROR_BATCH]
    return _series(rows, cases, "sigma", "error_in_promises")


def numbers(rows: Sequence[Row]) -> dict[str, dict[str, Series]]:
    """Everything that is plotted: figure, panel, label, points."""
    return {
        "time": {f"sigma = {sigma:g}": time_series(rows, sigma) for sigma in TIMED_SIGMAS},
        "error": {f"B = {ERROR_BATCH}": error_series(rows)},
    }


def digest(panels: dict[str, Series]) -> str:
    """Digest of the numbers of a figure."""
    return hashlib.sha256(json.dumps(panels, sort_keys=True).encode()).hexdigest()


def figure_path(csv: Path, figure: str) -> Path:
    """Where a figure of the results in ``csv`` lies."""
    return csv.with_name(f"{csv.stem}-{figure}.svg")


def draw(rows: Sequence[Row], csv: Path) -> list[Path]:
    """Draws the figures beside the results.

    Args:
        rows: The results.
        csv: Their file, which gives the figures their names.

    Returns:
        The files written: SVG, the same for the same rows and version of matplotlib, with the
        digest of the numbers in the metadata.
    """
    written = []
    for figure, panels in numbers(rows).items():
        path = figure_path(csv, figure)
        _draw(figure, panels, path)
        written.append(path)
    return written


def shown_digest(path: Path) -> str | None:
    """The digest of the numbers that a drawn figure shows, or None."""
    text = path.read_text() if path.exists() else ""
    _, mark, rest = text.partition(MARK)
    return rest[:64] if mark else None


def _cifar() -> list[Case]:
    """The forward cases of CIFAR-10's shape that every run has."""
    return [c for c in CASES if c.data == "cifar" and c.operation == "denoise" and not c.full]


def _series(rows: Sequence[Row], cases: Sequence[Case], x: str, y: str) -> Series:
    wanted = {case.name: case for case in cases if case.group.startswith("cifar-b")}
    series: Series = {}
    for row in rows:
        case = wanted.get(row["case"])
        if case is None or row["dtype"] == "float16" or not row[y] or row[y] == "inf":
            continue
        ours = row["contender"] == "diffgen"
        label = f"diffgen {row['dtype']}" if ours else row["contender"]
        series.setdefault(label, []).append((float(getattr(case, x)), float(row[y])))
    return {label: sorted(set(points)) for label, points in sorted(series.items())}


def _draw(figure: str, panels: dict[str, Series], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "diffgen", "svg.fonttype": "none", "font.size": 9}):
        drawn, axes = pyplot.subplots(
            1, len(panels), figsize=(3.4 * len(panels) + 2.6, 3.9), squeeze=False, sharey=True
        )
        labels = sorted({label for series in panels.values() for label in series}, key=_ours_first)
        lowest = LOWEST_ERROR if figure == "error" else 0.0
        for axis, (title, series) in zip(axes[0], panels.items(), strict=True):
            axis.set_title(title)
            axis.set_xscale("log")
            axis.set_yscale("log")
            for number, label in enumerate(labels):
                points = [(x, max(y, lowest)) for x, y in series.get(label, ())]
                axis.plot(
                    [x for x, _ in points],
                    [y for _, y in points],
                    label=label,
                    marker=_SHAPES[number % len(_SHAPES)],
                    markersize=4,
                    linewidth=2.5 if label in _COLOURS else 1,
                    color=_COLOURS.get(label, pyplot.get_cmap("tab20")(number % 20)),
                )
            _label(axis, figure)
        axes[0][0].set_ylabel(_UNITS[figure])
        drawn.legend(*axes[0][0].get_legend_handles_labels(), loc="center right", frameon=False)
        drawn.tight_layout(rect=(0, 0, 1 - 1.8 / drawn.get_figwidth(), 1))
        metadata = {"Date": None, "Description": f"{MARK}{digest(panels)}"}
        drawn.savefig(path, format="svg", metadata=metadata)
        pyplot.close(drawn)


def _label(axis, figure: str) -> None:
    if figure == "time":
        axis.set_xlabel("B")
        axis.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    else:
        axis.set_xlabel("sigma")
        axis.set_xticks(SIGMAS, [f"{sigma:g}" for sigma in SIGMAS])
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _ours_first(label: str) -> tuple[bool, str]:
    return label not in _COLOURS, label
