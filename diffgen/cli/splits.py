"""The training set of the demo, and the real images that it holds out."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffgen.cli.digits import NUM_TRAINING, load_digits
from diffgen.cli.options import generator, open_set
from diffgen.training_set import TrainingSet

MOST_HELD_OUT = 1000
"""As many as this are held out of a large set."""

SHARE_HELD_OUT = 0.2
"""As much as this of a small one."""


@dataclass(frozen=True)
class Split:
    """A training set and images of the same source that are not in it.

    Attributes:
        name: What the source is called.
        source: All images.
        training: The set the model is of.
        rows: Rows of the source that it is made from, ``(N,)`` int64, ascending.
        held_out: The others, ``(M, *S)``; none for a set too small to give some up.
        held_out_rows: Their rows in the source.
    """

    name: str
    source: TrainingSet
    training: TrainingSet
    rows: Tensor
    held_out: Tensor
    held_out_rows: Tensor


def load(args: argparse.Namespace) -> Split:
    """Opens what ``--data`` names, or the digits, and splits it by the seed.

    Raises:
        ValueError: If fewer than two images would be left to train on.
        DataError: If the file cannot be used.
    """
    if args.data is None:
        name, source = "scikit-learn digits", load_digits(args.flip)
        default = source.num_stored - NUM_TRAINING
    else:
        name, source = Path(args.data).name, open_set(args.data, args)
        default = min(MOST_HELD_OUT, int(SHARE_HELD_OUT * source.num_stored))
    count = source.num_stored
    held_out = default if args.held_out is None else args.held_out
    if count - held_out < 2:
        raise ValueError(
            f"the training set needs at least 2 images, got {count} with {held_out} held out"
        )
    order = torch.randperm(count, generator=generator(args.seed, "split"))
    rows = order[: count - held_out].sort().values
    held_out_rows = order[count - held_out :].sort().values
    return Split(
        name=name,
        source=source,
        training=source.subset(rows),
        rows=rows,
        held_out=source[held_out_rows],
        held_out_rows=held_out_rows,
    )
