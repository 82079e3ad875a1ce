"""``diffgen study``: the four claims about generalisation, answered on a data set."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffgen.cli import pictures, ranks
from diffgen.cli.options import add_backend, add_command, add_data, add_seed, in_parts, integer
from diffgen.cli.splits import load
from diffgen.optional import require
from diffgen.study import (
    StudyData,
    StudySettings,
    digest,
    large,
    quick,
    run_shared_stages,
    run_study,
)
from diffgen.study.settings import TINY

HELD_OUT = 500
"""Digits that no model sees; the others hold 16 disjoint sets of 80."""

_SHOWN = 256
"""Training images that tell which values a picture draws black and white."""


def add_parser(subparsers: Any) -> None:
    """Adds ``diffgen study``."""
    parser = add_command(
        subparsers,
        "study",
        run,
        "how much does a diffusion model generalise: four claims, answered on your data",
        """Trains the small networks that it needs and answers four questions about a data set:
        what do generated samples say about the training set; what do samplers make of the
        empirical optimum; how far from the optimum are trained networks, and does it matter; and
        does the forward-time objective memorise less. Each answer has intervals and controls. It
        writes a report (report.html, which needs no network), every number (results.json) and the
        figures. A study that is stopped goes on where it was. Under torchrun all processes sample
        the optimum of the set together, each with a part of it; then the first one goes on alone,
        as networks are trained on small sets.""",
        """
        diffgen study
        diffgen study --quick --out first-look
        diffgen study --seed 1
        diffgen study --data cifar-10-python.tar.gz --out cifar-study
        diffgen train --out run --held-out 500 && diffgen study --checkpoint run
        torchrun --nproc-per-node 2 -m diffgen study --data packed/
        """,
        ranks.SHARED,
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="images: .npy, .npz, .safetensors, image folder, CIFAR-10, EDM .zip, "
        "packed set (default: scikit-learn's digits)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="diffgen-study",
        help="where results are written (default: ./%(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a first look: every part, small, wide intervals"
    )
    parser.add_argument(
        "--held-out",
        type=integer(1),
        metavar="N",
        help=f"images that no model sees (default: {HELD_OUT} of the digits; a fifth of other "
        "sets, at most 1,000)",
    )
    parser.add_argument(
        "--samples", type=integer(8), metavar="N", help="samples of each model and sampler"
    )
    parser.add_argument(
        "--steps", type=integer(1), metavar="N", help="training steps of each network"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=Path,
        help="a run of `diffgen train` on the same data, seed and number of held-out images: "
        "measure its network as well",
    )
    add_data(parser)
    add_seed(parser)
    add_backend(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the study; what is finished when it is stopped is reported, and kept."""
    # What is missing should be known before the work, not after it.
    require("matplotlib", "matplotlib", "study")
    if args.data is None and args.held_out is None:
        args.held_out = HELD_OUT
    split = load(args)
    shown = split.training[torch.arange(min(_SHOWN, split.training.num_stored))]
    data = StudyData(
        split.name, split.training, split.held_out, pictures.value_limits(split.training, shown)
    )
    header = {"command": "study", "arguments": {"data": args.data, "quick": args.quick}}
    chosen, out = settings(args, data), Path(args.out)
    if not ranks.is_alone():
        run_shared_stages(
            chosen,
            data,
            out,
            share=lambda whole: in_parts(whole, args),
            agree=ranks.agreed,
            first=ranks.is_first(),
            backend=args.backend,
            checkpoint=args.checkpoint,
        )
        if not ranks.leave():
            return 0
        print("the other processes are done; this one trains and measures networks", flush=True)
    record = run_study(
        chosen, data, out, backend=args.backend, checkpoint=args.checkpoint, header=header
    )
    print(f"\n{digest(record)}")
    return 0


def settings(args: argparse.Namespace, data: StudyData) -> StudySettings:
    """What the arguments ask for."""
    chosen = StudySettings(seed=args.seed)
    if data.elements > TINY:
        chosen = large(chosen)
    if args.quick:
        chosen = quick(chosen)
    if args.samples is not None:
        chosen = replace(chosen, num_samples=args.samples, optimum_samples=args.samples)
    if args.steps is not None:
        chosen = replace(chosen, replica_train_steps=args.steps, seed_train_steps=args.steps)
    return chosen
