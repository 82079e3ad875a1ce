"""The real images that come with a dependency: handwritten digits, 8 by 8 pixels."""

from __future__ import annotations

from typing import Any

import torch

from diffgen.optional import require
from diffgen.training_set import TrainingSet

NUM_TRAINING = 1000
"""Of the 1,797 images; the others are held out."""

_GREYS = 16
"""Pixels are whole numbers from 0 to this."""


def load_digits(flip: bool = False) -> TrainingSet:
    """scikit-learn's digits, with labels: 1,797 images ``(1, 8, 8)`` with values in ``[-1, 1]``.

    Stored as they are, 0 to 16 in uint8: the range of a uint8 set says what 0 and 255 mean, so the
    value of 255 that makes 16 mean 1 keeps every pixel exact (a grey level is 1/8).

    Args:
        flip: Whether the mirror images are part of the set.

    Raises:
        MissingDependencyError: Without scikit-learn.
    """
    datasets: Any = require("sklearn.datasets", "scikit-learn", "demo")
    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    return TrainingSet(
        images, labels=labels, value_range=(-1.0, -1.0 + 255 * 2 / _GREYS), flip=flip
    )
