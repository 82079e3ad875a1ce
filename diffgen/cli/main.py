"""The ``diffgen`` command: parses, runs one subcommand, and turns errors into one line.

Each subcommand is a module with ``add_parser(subparsers)``, which sets ``func`` to its
``run(args) -> exit status``. Exit status: 0 done, 1 a check failed, 2 a mistake in what was asked
for, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from diffgen._version import __version__
from diffgen.cli import bench, demo, info, sample, study, train
from diffgen.errors import BackendError

Subparsers = Any
"""What ``ArgumentParser.add_subparsers`` returns, which argparse gives no public name."""

MISTAKE = 2
STOPPED = 130

_EXPECTED = (ValueError, TypeError, OSError, ImportError, BackendError)
"""What a mistake in arguments or files, or a missing package of an extra, raises; anything else is
a defect, and shows where."""


class Command(Protocol):
    """A module of a subcommand."""

    def add_parser(self, subparsers: Subparsers) -> None:
        """Adds its parser, with ``func`` set to what runs it."""


COMMANDS: tuple[Command, ...] = (demo, info, sample, train, study, bench)
"""Every subcommand, in the order of the help."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    top = _Parser(
        prog="diffgen",
        description="Exact, fast empirical-optimal denoisers: the best diffusion model of a "
        "finite training set, in closed form.",
        epilog="Start with `diffgen demo`. Each command has its own --help, with examples.",
    )
    top.add_argument("--version", action="version", version=f"diffgen {__version__}")
    top.add_argument(
        "--traceback", action="store_true", help="show where an error was raised, not one line"
    )
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the program's name; None takes the process's own.

    Returns:
        The exit status.

    Example:
        >>> main(["--version"])
        diffgen ...
        0
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets a replacement, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        args = parser().parse_args(argv)
    except SystemExit as finished:
        return int(finished.code or 0)
    try:
        return int(args.func(args))
    except KeyboardInterrupt:
        print("\ndiffgen: stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        # Who read the output has left; what Python still holds of it has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return MISTAKE
    except _EXPECTED as error:
        if args.traceback:
            raise
        print(f"diffgen: {_one_line(error)}", file=sys.stderr)
        return MISTAKE


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
