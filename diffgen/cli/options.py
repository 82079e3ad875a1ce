"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import math
import textwrap
import zlib
from collections.abc import Callable
from typing import Any

import torch

from diffgen.cli import ranks
from diffgen.training_set import TrainingSet


def add_command(
    subparsers: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    examples: str,
    group: str = ranks.ONE,
) -> argparse.ArgumentParser:
    """Adds the parser of a command.

    Args:
        subparsers: Where to.
        name: The command.
        run: Runs it.
        summary: One line for the list of commands.
        description: What it does, for its own help.
        examples: Command lines, one a line.
        group: What it does where torchrun starts several, a name of `diffgen.cli.ranks`.

    Returns:
        The parser, for its arguments.
    """
    made: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=textwrap.fill(" ".join(description.split()), 88),
        epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(func=run, command=name, group=group)
    return made


def integer(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number of at least ``least``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return parse


def positive(text: str) -> float:
    """The type of an argument that is a positive, finite number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Adds ``--seed``."""
    parser.add_argument(
        "--seed",
        type=integer(0),
        default=0,
        metavar="N",
        help="seed of everything that is drawn (default: %(default)s)",
    )


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Adds ``--backend``."""
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="what runs the denoiser; `diffgen info` lists them (default: the fastest here)",
    )


def add_levels(parser: argparse.ArgumentParser, steps: int) -> None:
    """Adds ``--steps``, ``--sigma-min`` and ``--sigma-max``."""
    parser.add_argument(
        "--steps",
        type=integer(1),
        default=steps,
        metavar="N",
        help="noise levels of the sampler (default: %(default)s)",
    )
    parser.add_argument(
        "--sigma-min",
        type=positive,
        default=0.002,
        metavar="S",
        help="smallest of them, in the units of the data (default: %(default)s)",
    )
    parser.add_argument(
        "--sigma-max",
        type=positive,
        default=80.0,
        metavar="S",
        help="largest of them (default: %(default)s)",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds what says how a training set is read."""
    parser.add_argument(
        "--value-range",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help="what 0 and 255 of 8-bit images mean (default: -1 1)",
    )
    parser.add_argument(
        "--flip", action="store_true", help="let the mirror images be part of the set"
    )
    parser.add_argument(
        "--in-memory",
        action=argparse.BooleanOptionalAction,
        help="read the rows into memory once, or leave them in the file and read them in every "
        "pass, with the same results (default: leave those of more than 160 MiB)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``."""
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="where the denoiser runs, such as cuda; with --no-in-memory rows are copied there in "
        "every pass (default: %(default)s)",
    )


def open_set(path: str, args: argparse.Namespace) -> TrainingSet:
    """Opens the training set that ``add_data``'s arguments describe.

    In several processes ``--in-memory`` is about the part that each holds: see `in_parts`.
    """
    extra: dict[str, Any] = {"in_memory": args.in_memory}
    if args.in_memory and not ranks.is_alone():
        extra["in_memory"] = False
    if args.value_range is not None:
        extra["value_range"] = tuple(args.value_range)
    return TrainingSet.open(path, flip=args.flip, **extra)


def in_parts(training_set: TrainingSet, args: argparse.Namespace) -> TrainingSet:
    """The set for a denoiser: in several processes each holds a part; on the device asked for.

    Args:
        training_set: The whole set.
        args: What ``add_data`` and, where the command has it, ``add_device`` parsed.

    Raises:
        ValueError: There is no such device.
        ShardError: Another process has another set.
    """
    device = ranks.local_device(getattr(args, "device", "cpu"))
    stay = args.in_memory is False
    return ranks.shared(training_set, args.in_memory, device, rows_on_host=stay)


def generator(seed: int, purpose: str) -> torch.Generator:
    """A source of random numbers of its own for each purpose under one seed.

    What one part draws then does not depend on how much another part drew before.
    """
    return torch.Generator().manual_seed(zlib.crc32(f"{purpose} {seed}".encode()))
