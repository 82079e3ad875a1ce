"""``diffgen train``: trains a network on a training set, beside the optimum of that set."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffgen.cli import ranks, report, splits, text
from diffgen.cli.options import add_command, add_data, add_seed, generator, integer, positive
from diffgen.denoiser import EmpiricalDenoiser
from diffgen.networks import NETWORKS, default_network
from diffgen.objectives import ClosedFormTarget, ForwardTime, NoisePrediction, Objective
from diffgen.optional import require
from diffgen.parameterizations import PARAMETERIZATIONS
from diffgen.process_base import Process
from diffgen.processes import PROCESSES
from diffgen.training import TrainingResult, train
from diffgen.training.learning_rates import SCHEDULES
from diffgen.training.logs import LOGGERS
from diffgen.training_set import TrainingSet

DIGITS = "digits"
"""What ``--data`` calls scikit-learn's digits."""

_SAVES = 10
"""Checkpoints in a run that says no other number."""


def _noise(process: Process, args: argparse.Namespace, points: TrainingSet) -> Objective:
    return NoisePrediction(process, args.target)


def _forward(process: Process, args: argparse.Namespace, points: TrainingSet) -> Objective:
    if args.target != "epsilon":
        raise ValueError(f"--objective forward-time has --target epsilon, got {args.target}")
    return ForwardTime(process, gap=args.gap)


def _closed_form(process: Process, args: argparse.Namespace, points: TrainingSet) -> Objective:
    return ClosedFormTarget(process, EmpiricalDenoiser(points), args.target)


OBJECTIVES: dict[str, Callable[[Process, argparse.Namespace, TrainingSet], Objective]] = {
    "noise": _noise,
    "forward-time": _forward,
    "closed-form": _closed_form,
}
"""Every objective by its name here."""


def add_parser(subparsers: Any) -> None:
    """Adds ``diffgen train``."""
    parser = add_command(
        subparsers,
        "train",
        run,
        "train a network on a training set, beside its optimum",
        """Trains a network, and measures its loss over time on training and held-out points beside
        the irreducible loss and the optimum of the set. Writes checkpoints, history.csv,
        evaluations.csv and train.json into a folder; the same command again goes on where it was
        stopped. Under `accelerate launch -m diffgen train ...` it runs on many processes.""",
        """
        diffgen train --out digits-run --steps 5000
        diffgen train --data cifar-10-python.tar.gz --out run --steps 100000 --flip
        diffgen train --out forward-run --objective forward-time --gap uniform --seed 1
        """,
        ranks.OWN,
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        default=DIGITS,
        help="a training set, or 'digits' for scikit-learn's (default: %(default)s)",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the run")
    parser.add_argument(
        "--held-out",
        type=integer(0),
        metavar="N",
        help="points kept out of training, for the test loss (default: all but 1,000 of the "
        "digits; a fifth of other sets, at most 1,000)",
    )
    _add_what(parser)
    _add_how(parser)
    add_data(parser)
    add_seed(parser)


def _add_what(parser: argparse.ArgumentParser) -> None:
    """What is trained."""
    choose(parser, "--network", ("auto", *NETWORKS), "auto")
    choose(parser, "--process", tuple(PROCESSES), "ddpm")
    choose(parser, "--objective", tuple(OBJECTIVES), "noise")
    choose(parser, "--target", tuple(PARAMETERIZATIONS), "epsilon")
    choose(parser, "--gap", ("previous", "uniform"), "previous", "of the forward-time objective; ")


def _add_how(parser: argparse.ArgumentParser) -> None:
    """How it is trained."""
    counts = (
        ("--steps", 5000, "updates of the weights"),
        ("--batch-size", 128, "points of an update"),
        ("--warmup-steps", 100, "steps in which the learning rate rises; fewer in short runs"),
        ("--accumulation-steps", 1, "parts of a batch that gradients are summed over"),
    )
    for name, default, words in counts:
        parser.add_argument(
            name,
            type=integer(0 if name == "--warmup-steps" else 1),
            default=default,
            metavar="N",
            help=f"{words} (default: %(default)s)",
        )
    parser.add_argument(
        "--learning-rate",
        type=positive,
        default=1e-3,
        metavar="R",
        help="the highest (default: %(default)s)",
    )
    choose(parser, "--schedule", tuple(SCHEDULES), "cosine")
    parser.add_argument(
        "--ema-decay",
        type=float,
        default=0.999,
        metavar="D",
        help="of the moving average of the weights, in [0, 1) (default: %(default)s)",
    )
    parser.add_argument(
        "--evaluate-every",
        type=integer(1),
        metavar="N",
        help="steps between evaluations (default: one, at the end)",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=integer(1),
        metavar="N",
        help=f"steps between checkpoints (default: {_SAVES} in a run)",
    )
    choose(parser, "--logger", tuple(LOGGERS), "csv")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the newest checkpoint in the folder; with --no-resume there must be none "
        "(default: --resume)",
    )
    parser.add_argument("--cpu", action="store_true", help="keep to the CPU")


def choose(
    parser: argparse.ArgumentParser,
    name: str,
    choices: tuple[str, ...],
    default: str,
    words: str = "",
) -> None:
    """Adds an argument that is one of some names."""
    parser.add_argument(
        name, choices=choices, default=default, help=f"{words}(default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Trains; what there is when it is stopped is kept."""
    accelerate = require("accelerate", "accelerate", "study")
    accelerator = accelerate.Accelerator(cpu=True) if args.cpu else accelerate.Accelerator()
    given = argparse.Namespace(**vars(args))
    given.data = None if args.data == DIGITS else args.data
    split = splits.load(given)
    process = PROCESSES[args.process]()
    objective = OBJECTIVES[args.objective](process, args, split.training)
    network = default_network(
        split.training.sample_shape,
        process,
        name=args.network,
        generator=generator(args.seed, "network"),
    )
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    record = {**report.header(args), "training_set": report.describe_set(split.training)}
    started = time.perf_counter()

    def write(more: dict[str, Any]) -> None:
        if accelerator.is_main_process:
            elapsed = {"elapsed_s": time.perf_counter() - started}
            report.write_json(out / "train.json", record | more | elapsed)

    try:
        result = train(
            network,
            split.training,
            objective,
            num_steps=args.steps,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            schedule=args.schedule,
            warmup_steps=min(args.warmup_steps, args.steps // 10),
            accumulation_steps=args.accumulation_steps,
            ema_decay=args.ema_decay,
            seed=args.seed,
            test_set=split.held_out if len(split.held_out) > 1 else None,
            evaluate_every=args.evaluate_every or args.steps,
            checkpoint_dir=out,
            checkpoint_every=args.checkpoint_every or max(1, args.steps // _SAVES),
            resume=args.resume,
            logger=args.logger,
            progress=True,
            accelerator=accelerator,
        )
    except KeyboardInterrupt:
        write({"finished": False})
        raise
    run_record = {"run": result.settings, "environment": result.environment}
    write({"finished": True, "resumed_from": result.resumed_from, **run_record})
    if accelerator.is_main_process:
        print(_summary(result, out))
    return 0


def _summary(result: TrainingResult, out: Path) -> str:
    """One line: how far it is from the optimum, and where it is."""
    last = result.history[-1]
    means = []
    for kind in ("train", "test"):
        gaps = [
            row["gap"]
            for row in result.evaluations
            if row["step"] == last["step"] and row["split"] == kind
        ]
        if gaps:
            means.append(f"{sum(gaps) / len(gaps):.4g} on {kind} points")
    steps = text.count(last["step"], "step")
    gap = f"; gap to the optimum {' and '.join(means)}" if means else ""
    return f"{steps}: loss {last['loss']:.4g}{gap} (mean over times); run in {out}"
