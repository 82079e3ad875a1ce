"""Samples as arrays of grey levels or colours, and grids of them as PNG files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffgen.optional import require
from diffgen.training_set import TrainingSet

COLOURS = 3
GREY = 1

_GAP = 2
"""Pixels between the images of a grid, before they are enlarged."""

_LEAST_SIDE = 64
"""Small images are enlarged to at least this many pixels."""


def value_limits(training_set: TrainingSet, shown: Tensor) -> tuple[float, float]:
    """The values that are drawn black and white.

    The range of the stored 8-bit type would do for photographs, but digits of 16 grey levels fill
    a part of it; so it is what the training images that are shown reach.

    Args:
        training_set: Gives the range where ``shown`` is empty or constant.
        shown: Training images.
    """
    if shown.numel() > 0:
        low, high = (float(value) for value in torch.aminmax(shown))
        if low < high:
            return low, high
    view = training_set.view()
    return view.offset, view.offset + max(view.scale, 1e-6) * 255


def as_picture(sample: Tensor, limits: tuple[float, float]) -> NDArray[Any]:
    """One sample as an array ``(H, W)`` or ``(H, W, 3)`` with values in ``[0, 1]``.

    Channels may come first or last; one or three of them are drawn as they are, others as their
    average. A vector becomes a row.

    Args:
        sample: ``(H, W)``, ``(C, H, W)``, ``(H, W, C)``, or of any other shape.
        limits: The values that become 0 and 1; what lies outside is clipped.

    Example:
        >>> as_picture(torch.zeros(3, 4, 5), (-1.0, 1.0)).shape
        (4, 5, 3)
        >>> as_picture(torch.zeros(7), (-1.0, 1.0)).shape
        (1, 7)
    """
    low, high = limits
    scaled = ((sample.detach().double() - low) / (high - low)).clamp(0, 1).nan_to_num(nan=0.0)
    if scaled.ndim == 3:
        channels_last = scaled.shape[0] not in (GREY, COLOURS) and scaled.shape[2] in (
            GREY,
            COLOURS,
        )
        if not channels_last:
            scaled = scaled.permute(1, 2, 0)
        if scaled.shape[2] != COLOURS:
            scaled = scaled.mean(2)
    elif scaled.ndim != 2:
        scaled = scaled.reshape(1, -1)
    array: NDArray[Any] = scaled.numpy()
    return array


def write_grid(path: Path, samples: Tensor, limits: tuple[float, float]) -> None:
    """Writes samples as a PNG file, in rows of about the square root of their number.

    Args:
        path: The file.
        samples: ``(M, *S)``, M >= 1.
        limits: As in ``as_picture``.

    Raises:
        MissingDependencyError: Without Pillow.
        OSError: If the file cannot be written.
    """
    image: Any = require("PIL.Image", "Pillow", "demo")
    pictures = [as_picture(sample, limits) for sample in samples]
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures[0].shape[:2]
    zoom = max(1, math.ceil(_LEAST_SIDE / max(height, width)))
    shape = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP)
    grid = np.ones((*shape, *pictures[0].shape[2:]))
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        grid[top : top + height, left : left + width] = picture
    pixels = np.rint(grid * 255).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
    image.fromarray(pixels).save(path, format="PNG")
