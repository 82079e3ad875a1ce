"""The ``diffgen`` command: parses, runs one subcommand, and turns errors into one line.

Each subcommand is a module with ``add_parser(subparsers)``, which sets ``func`` to its
``run(args) -> exit status``. Exit status: 0 done, 1 a check failed, 2 a mistake in what was asked
for, 130 stopped by Ctrl-C, 143 by the end of another process of the same command.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from diffgen._version import __version__
from diffgen.cli import bench, demo, info, pack, ranks, sample, study, train
from diffgen.errors import BackendError, ShardError

Subparsers = Any
"""What ``ArgumentParser.add_subparsers`` returns, which argparse gives no public name."""

MISTAKE = 2
STOPPED = 130

_EXPECTED = (ValueError, TypeError, OSError, ImportError, BackendError, ShardError)
"""What a mistake in arguments or files, a missing package of an extra, or the end of another
process raises; anything else is a defect, and shows where."""

GRACE_S = 0.5
"""Ctrl-C reaches all processes of a command within this: one that hears of another's end first
waits to see whether it was stopped itself."""


class Command(Protocol):
    """A module of a subcommand."""

    def add_parser(self, subparsers: Subparsers) -> None:
        """Adds its parser, with ``func`` set to what runs it."""


COMMANDS: tuple[Command, ...] = (demo, info, pack, sample, train, study, bench)
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
        # All processes of one command have the same mistakes.
        with ranks.quiet():
            args = parser().parse_args(argv)
    except SystemExit as finished:
        return int(finished.code or 0)
    try:
        with ranks.joined(args):
            return _status(args)
    except KeyboardInterrupt:
        return _stopped()
    except _EXPECTED as error:
        # That a command runs in one process is the same in all.
        return _mistake(error, args, ranks.is_first() or args.group != ranks.ONE)


def _status(args: argparse.Namespace) -> int:
    """Runs the command; the exit status, once an error is told."""
    try:
        try:
            with ranks.quiet():
                return int(args.func(args))
        except ShardError:
            time.sleep(GRACE_S)
            raise
    except KeyboardInterrupt:
        return _stopped()
    except BrokenPipeError:
        # Who read the output has left; what Python still holds of it has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return MISTAKE
    except _EXPECTED as error:
        return _mistake(error, args, ranks.says(_one_line(error)))


def _stopped() -> int:
    if ranks.is_first():
        print("\ndiffgen: stopped", file=sys.stderr)
    return STOPPED


def _mistake(error: Exception, args: argparse.Namespace, shown: bool) -> int:
    if args.traceback:
        raise error
    if shown:
        print(f"diffgen: {ranks.who()}{_one_line(error)}", file=sys.stderr)
    return MISTAKE


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
