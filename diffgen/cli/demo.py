"""``diffgen demo``: the empirical-optimal model of real images, sampled and looked at."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgen import machine, schedules
from diffgen.cli import demo_text, figures, pictures, progress, ranks, report, text
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
)
from diffgen.cli.splits import Split, load
from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization import (
    Memorization,
    Neighbors,
    effective_neighbors,
    memorization_ratio,
)
from diffgen.optional import require
from diffgen.sampling import sample

SAMPLERS = {"ddim": "DDIM", "heun": "Heun"}
"""What samples, and what it is called in text."""

HELD_OUT = "held_out"

NUM_LEVELS = 28
"""Noise levels of the curve of neighbours."""

MOST_NOISED = 200
"""Points of each kind that the curve averages over."""

_SAMPLES, _SAMPLES_OF_DATA = 256, 64
_BATCH = 256


def add_parser(subparsers: Any) -> None:
    """Adds ``diffgen demo``."""
    parser = add_command(
        subparsers,
        "demo",
        run,
        "sample the optimal model of real images and see what it memorises",
        """Samples from the empirical-optimal diffusion model of a set of real images, by DDIM and
        by Heun's method, and compares the samples with the images the model was made from: how
        many are copies, and up to which noise a noised image could have come from one image only.
        Without --data it takes the 8 x 8 digits that come with scikit-learn. It writes a picture,
        a JSON with every number and setting, and the samples. Under torchrun each process holds a
        part of the training set; the first one writes.""",
        """
        diffgen demo
        diffgen demo --seed 1 --steps 100
        diffgen demo --data cifar-10-python.tar.gz --samples 32 --out cifar-demo
        diffgen demo --data my-images/ --flip
        torchrun --nproc-per-node 2 -m diffgen demo --data packed/
        """,
        ranks.SHARED,
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="a training set: .npy, .npz, .safetensors, image folder, CIFAR-10, EDM .zip, "
        "packed set (default: scikit-learn's digits)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="diffgen-demo",
        help="where results are written (default: ./%(default)s)",
    )
    parser.add_argument(
        "--samples",
        type=integer(1),
        metavar="N",
        help=f"samples by each method (default: {_SAMPLES}; {_SAMPLES_OF_DATA} with --data)",
    )
    parser.add_argument(
        "--held-out",
        type=integer(0),
        metavar="N",
        help="images kept out of the training set, to compare with (default: all but 1,000 of the "
        "digits; a fifth of other sets, at most 1,000)",
    )
    add_levels(parser, steps=50)
    add_data(parser)
    add_seed(parser)
    add_backend(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the demo; what is finished when it is stopped stays."""
    # What is missing should be known before the work, not after it.
    require("matplotlib", "matplotlib", "demo")
    if args.samples is None:
        args.samples = _SAMPLES if args.data is None else _SAMPLES_OF_DATA
    sigmas = schedules.karras(args.steps, args.sigma_min, args.sigma_max)
    demo = _Demo(args, load(args), sigmas)
    if demo.writes:
        demo.out.mkdir(parents=True, exist_ok=True)
    try:
        demo.draw_samples()
        demo.judge()
        demo.find_neighbors()
        demo.say_what_ran()
        demo.record["finished"] = True
    finally:
        demo.write()
    return 0


class _Demo:
    """One run: its stages, in order, and what they have found."""

    def __init__(self, args: argparse.Namespace, split: Split, sigmas: Tensor) -> None:
        self.args = args
        self.split = split
        self.sigmas = sigmas
        self.out = Path(args.out)
        self.writes = ranks.is_first()
        self.started = time.perf_counter()
        self.denoiser = EmpiricalDenoiser(in_parts(split.training, args), backend=args.backend)
        self.device = self.denoiser.training_set.device
        self.backend = chosen_backend(self.denoiser)
        self.meter = Meter(self.denoiser)
        self.ceilings = machine.measure()
        steps = text.count(args.steps, "step")
        self.names = {key: f"{name}, {steps}" for key, name in SAMPLERS.items()}
        self.names[HELD_OUT] = "Held-out real images"
        self.samples: dict[str, Tensor] = {}
        self.memorization: dict[str, Memorization] = {}
        self.neighbors: dict[str, Neighbors] = {}
        self.record: dict[str, Any] = {
            **report.header(args),
            "finished": False,
            "processes": ranks.count(),
            "data": self._describe() if self.writes else None,
            "backend": self.backend,
            "sigmas": sigmas,
        }
        print(demo_text.introduction(split, self.backend, args.seed), flush=True)

    def _describe(self) -> dict[str, Any]:
        return {
            "name": self.split.name,
            "source": report.describe_set(self.split.source),
            "training_set": report.describe_set(self.split.training),
            "num_held_out": len(self.split.held_out),
        }

    def draw_samples(self) -> None:
        """Samples by each method from the same noise, and keeps each as it is done."""
        shape = (self.args.samples, *self.split.training.sample_shape)
        noise = torch.randn(shape, generator=generator(self.args.seed, "noise")).double()
        for name in SAMPLERS:
            drawn = sample(
                self.meter,
                shape,
                self.sigmas,
                sampler=name,
                x_init=(self.sigmas[0] * noise).to(self.device),
                progress=True,
                dtype=torch.float32,
            )
            self.samples[name] = drawn.cpu()
            if self.writes:
                report.write_array(self.out / f"{name}.npy", drawn)
        if len(self.split.held_out) > 0:
            self.samples[HELD_OUT] = self.split.held_out

    def judge(self) -> None:
        """Prints which share of the samples is memorised, beside that of real images."""
        self.record["memorization"] = {}
        batches = sum(-(-len(samples) // _BATCH) for samples in self.samples.values())
        with progress.Bar("distances", batches, "batch") as bar:
            for name, samples in self.samples.items():
                found = memorization_ratio(
                    samples.to(self.device),
                    self.denoiser,
                    generator=generator(self.args.seed, "bootstrap"),
                    batch_size=_BATCH,
                    progress=bar,
                )
                self.memorization[name] = found
                self.record["memorization"][name] = self._memorization_record(found)
        print(demo_text.memorization(self.names, self.memorization), flush=True)

    def _memorization_record(self, found: Memorization) -> dict[str, Any]:
        count = self.split.training.num_stored
        nearest = found.indices[:, 0]
        return {
            "ratio": found.ratio,
            "interval": found.interval,
            "settings": found.settings,
            "nearest_distance": found.distances[:, 0],
            "second_nearest_distance": found.distances[:, 1],
            "nearest_row": self.split.rows[nearest % count],
            "nearest_is_mirrored": nearest >= count if self.split.training.flip else None,
        }

    def find_neighbors(self) -> None:
        """Prints how many training images a noised image could have come from."""
        low, high = self.args.sigma_min, self.args.sigma_max
        levels = low * (high / low) ** torch.linspace(0, 1, NUM_LEVELS, dtype=torch.float64)
        self.record["neighbors"] = {}
        kinds = self._noised()
        with progress.Bar("neighbours", NUM_LEVELS * len(kinds), "level") as bar:
            for name, points in kinds.items():
                found = effective_neighbors(
                    self.denoiser,
                    points.to(self.device),
                    levels,
                    generator=generator(self.args.seed, f"neighbors of {name}"),
                    progress=bar,
                )
                self.neighbors[name] = found
                self.record["neighbors"][name] = {
                    "sigmas": found.sigmas,
                    "exp_mean_entropy": found.count,
                    "mean_effective_sample_size": found.effective_sample_size.mean(1),
                    "information_nats": found.information,
                    "settings": found.settings,
                }
        print(demo_text.neighbors(self.neighbors), flush=True)

    def _noised(self) -> dict[str, Tensor]:
        training, held_out = self.split.training, self.split.held_out
        order = torch.randperm(training.num_stored, generator=generator(self.args.seed, "noised"))
        kinds = {"training images": training[order[:MOST_NOISED]]}
        if len(held_out) > 0:
            kinds["held-out images"] = held_out[:MOST_NOISED]
        return kinds

    def say_what_ran(self) -> None:
        """Prints the backend, its time, and its share of the machine's ceiling."""
        self.record["ran"] = self.meter.report(self.ceilings.best(machine.measure()))
        print(demo_text.what_ran(self.record["ran"], self.args.samples), flush=True)

    def write(self) -> None:
        """Writes what there is: the JSON always, the picture once it has all its parts."""
        if not self.writes:
            return
        written = [f"{name}.npy" for name in SAMPLERS if name in self.samples]
        if self.record["finished"]:
            self._draw()
            written.insert(0, "demo.png")
        elapsed = time.perf_counter() - self.started
        self.record["elapsed_s"] = elapsed
        report.write_json(self.out / "demo.json", self.record)
        files = ", ".join([*written, "demo.json"])
        state = "Finished" if self.record["finished"] else "Not finished"
        print(
            f"\n{state} after {text.seconds(elapsed)}; written to {self.out}/: {files}", flush=True
        )

    def _draw(self) -> None:
        training = self.split.training
        groups = []
        for name, found in self.memorization.items():
            nearest = training[found.indices[: figures.COLUMNS, 0]]
            groups.append(figures.Group(self.names[name], self.samples[name], nearest, found))
        count = text.count(training.num_stored, "training image")
        digest = self.record["data"]["training_set"]["sha256"][:16]
        figures.draw(
            self.out / "demo.png",
            f"The empirical-optimal model of {self.split.name}, {count}",
            f"diffgen {self.record['versions']['diffgen']}, backend {self.backend}, "
            f"seed {self.args.seed}, {self.args.steps} steps from sigma {self.args.sigma_max:g} to "
            f"{self.args.sigma_min:g}, set sha256 {digest}…  Orange: memorised.",
            groups,
            list(self.neighbors.items()),
            pictures.value_limits(training, torch.cat([group.nearest for group in groups])),
        )
