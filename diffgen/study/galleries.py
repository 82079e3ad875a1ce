"""Grids of samples above their nearest training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffgen.study.answer import Record
from diffgen.study.drawing import COLOURS, INK
from diffgen.study.estimates import memorised
from diffgen.study.plain import unpack_images

_CHANNELS = (1, 3)


@dataclass(frozen=True)
class Gallery:
    """Samples of one kind.

    Attributes:
        name: Stands above.
        samples: ``(M, *S)`` uint8.
        neighbors: ``(M, k, *S)`` uint8, the nearest first.
        ratios: d1/d2 of each.
        memorised: Whether each counts as memorised.
    """

    name: str
    samples: Tensor
    neighbors: Tensor
    ratios: list[float]
    memorised: list[bool]

    @staticmethod
    def of(name: str, run: Record) -> Gallery:
        """The gallery of a run that has kept pictures."""
        samples = unpack_images(run["pictures"]["samples"])
        count = len(samples)
        d1, d2 = run["d1"][:count], run["d2"][:count]
        return Gallery(
            name,
            samples,
            unpack_images(run["pictures"]["neighbors"]),
            [near / second for near, second in zip(d1, d2, strict=True)],
            memorised(d1, d2),
        )


def draw_galleries(figure: Any, galleries: Sequence[Gallery]) -> None:
    """Draws galleries side by side, two in a row."""
    columns = 2 if len(galleries) > 1 else 1
    rows = -(-len(galleries) // columns)
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in all_axes:
        axes.axis("off")
    for axes, gallery in zip(all_axes, galleries, strict=False):
        _draw_gallery(axes, gallery)


def _draw_gallery(axes: Any, gallery: Gallery) -> None:
    rows = [gallery.samples, *gallery.neighbors.transpose(0, 1)]
    count, depth = len(gallery.samples), len(rows) - 1
    picture, side = sheet([[as_pixels(image) for image in row] for row in rows])
    axes.set_title(gallery.name, loc="left", fontsize=10, color=INK)
    bottom = picture.shape[0] / side
    axes.imshow(
        picture.numpy(),
        extent=(0, picture.shape[1] / side, bottom, 0),
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
    )
    for column in range(count):
        colour = COLOURS[1] if gallery.memorised[column] else INK
        ratio = f"{gallery.ratios[column]:.2f}"
        middle = (column + 0.5) * picture.shape[1] / side / count
        axes.text(middle, bottom + 0.2, ratio, ha="center", va="center", fontsize=8, color=colour)
    for y, label in ((0.5, "sample"), (1.2 + depth / 2, "nearest"), (bottom + 0.2, "d1/d2")):
        axes.text(-0.12, y, label, ha="right", va="center", fontsize=8, color=INK)
    axes.set(xlim=(-1.1, picture.shape[1] / side), ylim=(bottom + 0.45, -0.05), aspect="equal")


def sheet(rows: Sequence[Sequence[Tensor]]) -> tuple[Tensor, int]:
    """Rows of images as one picture on white, the first row a little apart from the others.

    Args:
        rows: Images ``(H, W)`` or ``(H, W, 3)``, all of one shape.

    Returns:
        The picture, and the pixels from one image to the next.

    Example:
        >>> import torch
        >>> picture, side = sheet([[torch.zeros(10, 10)] * 3] * 2)
        >>> picture.shape, side
        (torch.Size([24, 33]), 11)
    """
    first = rows[0][0]
    height, width = first.shape[:2]
    gap = max(1, max(height, width) // 12)
    tall, wide, side = height + gap, width + gap, max(height, width) + gap
    apart = 2 * gap
    shape = (len(rows) * tall + apart, len(rows[0]) * wide, *first.shape[2:])
    picture = first.new_full(shape, 255)
    for index, row in enumerate(rows):
        top = index * tall + (apart if index > 0 else 0)
        for column, image in enumerate(row):
            picture[top : top + height, column * wide : column * wide + width] = image
    return picture, side


def as_pixels(image: Tensor) -> Tensor:
    """One image as ``(H, W)`` or ``(H, W, 3)``; a vector becomes a row.

    Example:
        >>> import torch
        >>> as_pixels(torch.zeros(3, 4, 5)).shape, as_pixels(torch.zeros(7)).shape
        (torch.Size([4, 5, 3]), torch.Size([1, 7]))
    """
    if image.ndim == 3:
        if image.shape[0] in _CHANNELS or image.shape[2] not in _CHANNELS:
            image = image.permute(1, 2, 0)
        return image if image.shape[2] == 3 else image.float().mean(2).to(image.dtype)
    return image if image.ndim == 2 else image.reshape(1, -1)
