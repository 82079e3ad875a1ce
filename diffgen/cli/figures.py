"""The picture of the demo: samples beside their nearest training images, and the two curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgen.cli.pictures import as_picture
from diffgen.generalization import Memorization, Neighbors
from diffgen.optional import require

COLUMNS = 8
"""Samples of each kind that are shown: the first ones, not chosen."""

_INK, _FAINT = "#222222", "#8a8a8a"
_BLUE, _ORANGE, _GREEN = "#0072b2", "#d55e00", "#009e73"
_STYLES = ((_BLUE, "-", 3.2), (_ORANGE, (0, (4, 3)), 2.0), (_GREEN, "-", 2.0))
_CELL = 0.92


@dataclass(frozen=True)
class Group:
    """Samples of one kind.

    Attributes:
        name: What they are called.
        samples: ``(M, *S)``.
        nearest: The nearest training image of each of the first ones, ``(<= COLUMNS, *S)``.
        memorization: What was found of them.
    """

    name: str
    samples: Tensor
    nearest: Tensor
    memorization: Memorization


def draw(
    path: Path,
    title: str,
    footer: str,
    groups: Sequence[Group],
    curves: Sequence[tuple[str, Neighbors]],
    limits: tuple[float, float],
) -> None:
    """Draws the picture of a demo run.

    Args:
        path: PNG file to write.
        title: Stands above.
        footer: Settings and versions, stands below.
        groups: One or more kinds of samples.
        curves: Neighbours over noise, of one or more kinds of points.
        limits: Values drawn black and white.

    Raises:
        MissingDependencyError: Without matplotlib.
        OSError: If the file cannot be written.
    """
    require("matplotlib", "matplotlib", "demo")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 2.55 * max(2, len(groups)) + 1.1), dpi=120)
    # Room for the footer, which the layout does not count.
    figure.set_layout_engine("constrained", rect=(0.005, 0.035, 0.99, 0.955))
    figure.suptitle(title, fontsize=14, color=_INK, fontweight="bold")
    figure.text(0.012, 0.012, footer, fontsize=8, color=_FAINT)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.55, 1), wspace=0.03)
    left, right = halves
    for axes, group in zip(left.subplots(len(groups), 1, squeeze=False)[:, 0], groups, strict=True):
        _gallery(axes, group, limits)
    ratios, neighbors = right.subplots(2, 1, gridspec_kw={"hspace": 0.12})
    _draw_ratios(ratios, groups)
    _draw_neighbors(neighbors, curves)
    figure.savefig(path)


def _gallery(axes: Any, group: Group, limits: tuple[float, float]) -> None:
    """Samples in a row, each above its nearest training image and the distance between them."""
    found = group.memorization
    memorized = found.distance_ratios < found.settings["threshold"]
    share = f"{found.ratio:.1%} memorised"
    axes.set_title(f"{group.name}: {share}", loc="left", fontsize=11, color=_INK, pad=3)
    axes.set(xlim=(-0.95, COLUMNS), ylim=(2.52, -0.04), aspect="equal")
    axes.axis("off")
    for y, label in ((0.46, "sample"), (1.41, "nearest\ntraining\nimage"), (2.14, "distance")):
        axes.text(-0.1, y, label, ha="right", va="center", fontsize=8.5, color=_FAINT)
    axes.text(-0.1, 2.4, "$d_1/d_2$", ha="right", va="center", fontsize=8.5, color=_FAINT)
    for column in range(min(COLUMNS, len(group.samples))):
        _cell(axes, column, 0.0, as_picture(group.samples[column], limits))
        _cell(axes, column, 0.95, as_picture(group.nearest[column], limits))
        colour = _ORANGE if memorized[column] else _INK
        middle = column + _CELL / 2
        for y, value in ((2.14, found.distances[column, 0]), (2.4, found.distance_ratios[column])):
            text = f"{float(value):.2f}"
            axes.text(middle, y, text, ha="center", va="center", fontsize=9, color=colour)


def _cell(axes: Any, x: float, y: float, picture: Any) -> None:
    height, width = picture.shape[:2]
    if height == 1 or width == 1:  # a vector fills its cell as a strip
        height = width = 1
    longest = max(height, width)
    w, h = _CELL * width / longest, _CELL * height / longest
    x, y = x + (_CELL - w) / 2, y + (_CELL - h) / 2
    axes.imshow(
        picture,
        extent=(x, x + w, y + h, y),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        aspect="auto",
    )
    # imshow takes the limits of the axes with it.
    axes.set(xlim=(-0.95, COLUMNS), ylim=(2.52, -0.04), aspect="equal")


def _draw_ratios(axes: Any, groups: Sequence[Group]) -> None:
    """How the ratio of the two distances is distributed, with the threshold."""
    threshold = groups[0].memorization.settings["threshold"]
    axes.axvspan(0, threshold, color=_ORANGE, alpha=0.09, lw=0)
    axes.axvline(threshold, color=_ORANGE, lw=1, ls=":")
    axes.text(
        threshold - 0.01, 0.5, "memorised", ha="right", va="center", color=_ORANGE, fontsize=9
    )
    for group, (colour, dashes, width) in zip(groups, _STYLES, strict=False):
        values = group.memorization.distance_ratios.sort().values
        share = torch.arange(1, len(values) + 1).double() / len(values)
        axes.step(
            [0.0, *values.tolist(), 1.0],
            [0.0, *share.tolist(), 1.0],
            where="post",
            color=colour,
            ls=dashes,
            lw=width,
            label=group.name,
            solid_capstyle="butt",
        )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.06))
    axes.set_xlabel("$d_1/d_2$, nearest over second nearest distance")
    axes.set_ylabel("share of samples at or below")
    axes.set_title("Copies stand next to one training image", loc="left", fontsize=11, color=_INK)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(0.36, 0.72))
    _tidy(axes)


def _draw_neighbors(axes: Any, curves: Sequence[tuple[str, Neighbors]]) -> None:
    """Number of neighbours over the noise level, with the middle 80% of the points."""
    for (name, found), colour in zip(curves, (_BLUE, _GREEN), strict=False):
        sigmas = found.sigmas.tolist()
        band = found.entropy.quantile(torch.tensor([0.1, 0.9]).double(), dim=1).exp()
        axes.fill_between(
            sigmas, band[0].tolist(), band[1].tolist(), color=colour, alpha=0.15, lw=0
        )
        axes.plot(sigmas, found.count.tolist(), color=colour, lw=2, label=name)
    total = curves[0][1].settings["num_points"]
    axes.axhline(total, color=_FAINT, lw=1, ls=":")
    axes.text(
        curves[0][1].sigmas[0], total, f"all {total:,}", va="bottom", fontsize=9, color=_FAINT
    )
    axes.set(xscale="log", yscale="log", ylim=(0.85, 1.9 * total))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel("noise level $\\sigma$, in the units of the data")
    axes.set_ylabel("effective neighbours, exp of the entropy")
    axes.set_title(
        "Training images that a noised image could have come from",
        loc="left",
        fontsize=11,
        color=_INK,
    )
    axes.legend(frameon=False, fontsize=9, loc="center left")
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=_INK)
    axes.grid(True, which="major", color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
