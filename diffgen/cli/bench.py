"""``diffgen bench``: a front to the benchmark suite, which lies in a checkout of the source."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

from diffgen.cli.options import add_backend, add_command, add_seed, integer

SUITE = "benchmarks"
NEEDS = ("pytest", "pytest_benchmark")


def add_parser(subparsers: Any) -> None:
    """Adds the command to the parser of ``diffgen``."""
    parser = add_command(
        subparsers,
        "bench",
        run,
        summary="time diffgen beside what PyTorch and other packages offer",
        description="""Run the benchmark suite, out of a checkout of the source: every contender of
        every case is judged against a float64 reference, then timed in turn with the others.
        Without a choice it takes about a quarter of an hour on two cores. Packages that the
        others come from: pip install 'diffgen[bench]'.""",
        examples="""
        diffgen bench --quick
        diffgen bench --case 'cifar-b8-*' --contender diffgen --contender sdpa
        diffgen bench --full --cifar ./cifar-10-batches-bin --json full.json
        """,
    )
    for option in ("case", "contender"):
        parser.add_argument(
            f"--{option}",
            action="append",
            default=[],
            metavar="NAME",
            help=f"only this {option}; * allowed; may be repeated",
        )
    add_backend(parser)
    add_seed(parser)
    parser.add_argument(
        "--threads",
        type=integer(1),
        metavar="N",
        help="threads of everything that is timed (default: 2)",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the machinery only")
    parser.add_argument(
        "--full",
        action="store_true",
        help="the product of all axes, in hours; goes on where it was interrupted",
    )
    parser.add_argument(
        "--cifar", type=Path, metavar="PATH", help="CIFAR-10, in place of crops of photographs"
    )
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="write every row, setting and version here"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the suite in a fresh interpreter.

    Args:
        args: What ``add_parser`` parsed.

    Returns:
        The exit status of pytest, or 2 where the suite cannot run.
    """
    checkout = find_checkout()
    if checkout is None:
        return _refuse(
            "the benchmark suite is not part of the installed package: run `diffgen bench` in a "
            f"checkout of the source, which has a folder {SUITE}/"
        )
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        return _refuse(f"bench needs {' and '.join(missing)}: pip install 'diffgen[bench]'")
    return subprocess.call(command(args), cwd=checkout)


def find_checkout() -> Path | None:
    """The checkout this package was imported from, or the one that is the current folder."""
    for folder in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (folder / SUITE / "cases.py").is_file() and (folder / "diffgen").is_dir():
            return folder
    return None


def command(args: argparse.Namespace) -> list[str]:
    """The command line of pytest that does what ``args`` asks for."""
    line = [sys.executable, "-m", "pytest", SUITE, "-q", "--benchmark-only", "--benchmark-quiet"]
    for option in ("case", "contender"):
        for name in getattr(args, option):
            line += [f"--{option}", name]
    line += ["--backend", args.backend, "--seed", str(args.seed)]
    if args.threads is not None:
        line += ["--threads", str(args.threads)]
    line += [f"--{option}" for option in ("quick", "full") if getattr(args, option)]
    if args.cifar is not None:
        line.append(f"--cifar={args.cifar.resolve()}")
    if args.json is not None:
        line.append(f"--benchmark-json={args.json.resolve()}")
    return line


def _refuse(reason: str) -> int:
    print(f"diffgen bench: {reason}", file=sys.stderr)
    return 2
