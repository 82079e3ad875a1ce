"""``diffgen sample``: samples from the optimal model of a training set, or a trained network."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgen import machine, schedules
from diffgen.cli import pictures, progress, ranks, report, text
from diffgen.cli.meter import Meter, chosen_backend
from diffgen.cli.options import (
    add_backend,
    add_command,
    add_data,
    add_device,
    add_levels,
    add_seed,
    generator,
    in_parts,
    integer,
    open_set,
)
from diffgen.denoiser import EmpiricalDenoiser
from diffgen.optional import require
from diffgen.predictor import NetworkDenoiser
from diffgen.sampling import SAMPLERS, Denoiser, sample
from diffgen.training import load_denoiser
from diffgen.training_set import TrainingSet

_SUFFIXES = (".npy", ".png")

_SHOWN = 64
"""Training images that tell which values a picture draws black and white."""


def add_parser(subparsers: Any) -> None:
    """Adds ``diffgen sample``."""
    parser = add_command(
        subparsers,
        "sample",
        run,
        "draw samples from the optimal model of a training set",
        """Samples from the empirical-optimal diffusion model of a training set, and writes them as
        an array (.npy, float32, in the units of the data) or a picture (.png), with a JSON of all
        settings beside it. With --network the model is a network that `diffgen train` trained.
        Under torchrun each process holds a part of the training set; the first one writes.""",
        """
        diffgen sample cifar-10-python.tar.gz --out samples.npy --samples 64
        diffgen sample digits.npz --out samples.png --sampler heun --steps 18
        diffgen sample cifar-10-python.tar.gz --out cats.png --class-label 3 --seed 1
        diffgen sample digits.npz --out network.png --network runs/digits
        torchrun --nproc-per-node 2 -m diffgen sample packed/ --out samples.npy --samples 64
        """,
        ranks.SHARED,
    )
    parser.add_argument("path", metavar="PATH", help="the training set")
    parser.add_argument(
        "--out", metavar="FILE", required=True, help="where to: a name that ends in .npy or .png"
    )
    parser.add_argument(
        "--sampler",
        choices=tuple(SAMPLERS),
        default="ddim",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        # torchrun takes --num for the beginning of an option of its own.
        "--samples",
        "--num",
        dest="num",
        type=integer(1),
        default=16,
        metavar="N",
        help="how many (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=integer(1),
        default=256,
        metavar="N",
        help="samples drawn at once (default: %(default)s)",
    )
    parser.add_argument(
        "--class-label", type=int, metavar="C", help="draw from this class (default: all)"
    )
    parser.add_argument(
        "--network",
        metavar="DIR",
        help="sample from this trained network (a run of `diffgen train`, or one of its "
        "checkpoints), between the noise levels that it knows",
    )
    add_levels(parser, steps=50)
    add_data(parser)
    add_seed(parser)
    add_backend(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Draws the samples; those finished when it is stopped are written."""
    out = Path(args.out)
    if out.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"--out must end in {' or '.join(_SUFFIXES)}, got {args.out!r}")
    if out.suffix.lower() == ".png":
        require("PIL.Image", "Pillow", "demo")
    training_set = open_set(args.path, args)
    _check_label(args.class_label, training_set)
    first = ranks.is_first()
    record = {**report.header(args), "processes": ranks.count()}
    if first:
        record["training_set"] = report.describe_set(training_set)
    device = None
    levels = (args.sigma_min, args.sigma_max)
    meter: Meter | None = None
    model: Meter | NetworkDenoiser
    if args.network is None:
        parts = in_parts(training_set, args)
        model = meter = Meter(EmpiricalDenoiser(parts, backend=args.backend))
        device = parts.device
        record["backend"] = chosen_backend(meter.denoiser)
    else:
        model, record["network"] = _network(args)
        levels = max(levels[0], model.sigma_min), min(levels[1], model.sigma_max)
    sigmas = schedules.karras(args.steps, *levels)
    record["sigmas"] = sigmas
    shape = training_set.sample_shape
    if first:
        out.parent.mkdir(parents=True, exist_ok=True)
    drawn: list[Tensor] = []
    started = time.perf_counter()
    try:
        counts = _batches(args.num, args.batch)
        # One batch shows its steps; of many, which batch it is says more.
        with progress.Bar("batches", len(counts), "batch", hidden=len(counts) == 1) as bar:
            for count in bar(counts):
                size, index = (count, *shape), len(drawn)
                drawn.append(_draw(model, args, sigmas, size, index, device, len(counts) == 1))
    finally:
        if drawn and first:
            samples = torch.cat(drawn)
            record |= {
                "num_written": len(samples),
                "finished": len(samples) == args.num,
                "elapsed_s": time.perf_counter() - started,
            }
            if meter is not None:
                record["ran"] = meter.report(machine.measure())
            _write(out, samples, training_set, record)
    return 0


def _network(args: argparse.Namespace) -> tuple[NetworkDenoiser, dict[str, Any]]:
    if not ranks.is_alone():
        raise ValueError(f"--network runs in one process, got {ranks.count()}")
    for option, given, usual in (
        ("--class-label", args.class_label, None),
        ("--backend", args.backend, "auto"),
        ("--device", args.device, "cpu"),
    ):
        if given != usual:
            raise ValueError(f"{option} is of the optimal model, got it with --network")
    return load_denoiser(args.network)


def _draw(
    model: Denoiser,
    args: argparse.Namespace,
    sigmas: Tensor,
    size: tuple[int, ...],
    index: int,
    device: torch.device | None,
    steps: bool,
) -> Tensor:
    labels = None
    if args.class_label is not None:
        labels = torch.full(size[:1], args.class_label, device=device)
    return sample(
        model,
        size,
        sigmas,
        sampler=args.sampler,
        # A source for each batch: asking for more samples leaves the first ones as they are.
        generator=generator(args.seed, f"batch {index}"),
        class_labels=labels,
        progress=steps,
        device=device,
    ).cpu()


def _batches(num: int, batch: int) -> list[int]:
    return [min(batch, num - start) for start in range(0, num, batch)]


def _check_label(label: int | None, training_set: TrainingSet) -> None:
    if label is None:
        return
    if training_set.num_classes == 0:
        raise ValueError(f"--class-label needs a set with labels, got {label} for a set without")
    if not 0 <= label < training_set.num_classes:
        raise ValueError(
            f"--class-label must be between 0 and {training_set.num_classes - 1}, got {label}"
        )


def _write(out: Path, samples: Tensor, training_set: TrainingSet, record: dict[str, Any]) -> None:
    """The samples and, beside them, the settings."""
    if out.suffix.lower() == ".png":
        shown = training_set[torch.arange(min(_SHOWN, training_set.num_stored))]
        pictures.write_grid(out, samples, pictures.value_limits(training_set, shown))
    else:
        report.write_array(out, samples)
    settings = out.with_name(out.name + ".json")
    report.write_json(settings, record)
    print(f"{text.count(len(samples), 'sample')} in {out}, settings in {settings}")
