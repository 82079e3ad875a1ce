"""Figures as SVG text and PNG files, with one style."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffgen.optional import require
from diffgen.study.answer import Figure

INK, FAINT = "#222222", "#8a8a8a"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555")
"""Okabe and Ito's colours, which most colour-blind readers tell apart."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PNG_DPI = 130


def render(figure: Figure, png: Path | None = None) -> str:
    """Draws a figure.

    Args:
        figure: What to draw.
        png: Where to write it as PNG as well.

    Returns:
        The figure as an ``<svg>`` element with text as shapes, the same for the same numbers.

    Raises:
        MissingDependencyError: Without matplotlib.
        OSError: If the PNG cannot be written.
    """
    matplotlib = require("matplotlib", "matplotlib", "study")
    figures = require("matplotlib.figure", "matplotlib", "study")
    # The salt keeps the ids of two figures in one page apart, and those of two runs equal.
    style = {"svg.hashsalt": figure.name, "svg.fonttype": "path", "font.size": 9.5}
    with matplotlib.rc_context(style):
        canvas = figures.Figure(figsize=figure.size, layout="constrained")
        figure.draw(canvas)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        # The layout is found; to find it again would take most of the time of the PNG.
        canvas.set_layout_engine("none")
        if png is not None:
            canvas.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return _inline(text.getvalue(), figure)


def tidy(axes: Any, title: str = "", x: str = "", y: str = "") -> None:
    """Labels and a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.grid(True, which="major", color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def steps_axis(axes: Any, steps: Sequence[int]) -> None:
    """A logarithmic axis of training steps with a tick at each checkpoint."""
    axes.set_xscale("log")
    axes.set_xticks(steps, [f"{step:,}" for step in steps])
    axes.minorticks_off()


def _inline(svg: str, figure: Figure) -> str:
    """The element alone, named for those who do not see it."""
    body = svg[svg.index("<svg") :].strip()
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    label = f'<svg role="img" aria-label="{figure.name.replace("_", " ")}"'
    return body.replace("<svg", label, 1)
