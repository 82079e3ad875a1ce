"""``diffgen info``: what can run on this machine, how accurate and how fast; what a set costs."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

import diffgen.ops  # noqa: F401  (fills the registry)
from diffgen import gpu_rates, machine, selfcheck
from diffgen.backends import registry
from diffgen.backends.listing import BackendStatus, describe
from diffgen.backends.native import load_native, why_not_native
from diffgen.cli import report, set_text, text
from diffgen.cli.gpu_text import gpu_lines
from diffgen.cli.options import add_command, add_data, add_seed, integer, positive
from diffgen.cli.progress import Line
from diffgen.cost.survey import Request, survey
from diffgen.gpu_state import GpuState, gpu_state
from diffgen.machine import Ceilings
from diffgen.placement import CPU, device_for
from diffgen.selfcheck import Accuracy, Speed

OUT_OF_PROMISE = 1
"""Exit status when a usable backend is less accurate than promised."""

_COMPILERS = ("c++", "g++", "clang++")


def add_parser(subparsers: Any) -> None:
    """Adds ``diffgen info``."""
    parser = add_command(
        subparsers,
        "info",
        run,
        "what runs here and why not, how accurate, how fast; what a set costs",
        """Lists every backend: whether it can run on this machine or why not, its worst error over
        a set of hard problems in units of what diffgen promises (at most 1), and its speed beside
        what the machine can do. Takes some seconds, and longer the first time on a GPU, where
        Triton compiles. Exits 1 when a usable backend is out of the promise. With PATH: what the
        set is, what a call on it reads and holds, and the time that each backend would take for it
        here, estimated from a sample of the rows. A set of any size takes some seconds; it is not
        read through.""",
        """
        diffgen info
        diffgen info --backend cpu
        diffgen info --json > machine.json
        diffgen info imagenet-64/ --batch 64 --sigma 1
        diffgen info latents.npz --member latents --backend cpu --json
        """,
    )
    parser.add_argument(
        "path", nargs="?", metavar="PATH", help="a training set: what would a call on it cost"
    )
    parser.add_argument("--backend", metavar="NAME", help="check this one only")
    parser.add_argument(
        "--no-speed", action="store_true", help="check the accuracy only; of a set, take no times"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--batch",
        type=integer(1),
        default=64,
        metavar="B",
        help="noisy points of a call on the set (default: %(default)s)",
    )
    parser.add_argument(
        "--sigma",
        type=positive,
        default=1.0,
        metavar="S",
        help="their noise, in the units of the data (default: %(default)s)",
    )
    parser.add_argument(
        "--member", metavar="NAME", help="which array of the file, or part of CIFAR-10"
    )
    add_data(parser)
    add_seed(parser)


def run(args: argparse.Namespace) -> int:
    """Checks the backends and prints what was found."""
    if args.backend is not None:
        registry.get(args.backend)
    if args.path is not None:
        return _run_on_set(args)
    shown = [b for b in describe() if args.backend in (None, b.name)]
    gpu = gpu_state()
    with Line() as line:
        record = _examine(shown, args, line, gpu)
    record["gpu"] = asdict(gpu)
    print(json.dumps(report.plain(record), indent=2) if args.json else _as_text(record, gpu))
    return 0 if all(b["in_promise"] for b in record["backends"]) else OUT_OF_PROMISE


def _run_on_set(args: argparse.Namespace) -> int:
    """Prints what the set costs."""
    value_range = None if args.value_range is None else tuple(args.value_range)
    request = Request(
        path=args.path,
        batch=args.batch,
        sigma=args.sigma,
        member=args.member,
        value_range=value_range,
        flip=args.flip,
        in_memory=args.in_memory,
        backends=[name for name in registry.names() if args.backend in (None, name)],
        timed=not args.no_speed,
        seed=args.seed,
    )
    with Line() as line:
        record = {**report.header(args), **survey(request, line.say)}
    if args.json:
        print(json.dumps(report.plain(record), indent=2))
    else:
        print(set_text.as_text(record))
    return 0


def _examine(
    shown: Sequence[BackendStatus], args: argparse.Namespace, line: Line, gpu: GpuState
) -> dict[str, Any]:
    """Everything that is printed, as one record."""
    record = report.header(args)
    record["native"] = _native()
    line.say("measuring the machine")
    ceilings = machine.measure()
    checked = [b.name for b in shown if b.usable and b.name != selfcheck.REFERENCE]
    line.say("solving the accuracy problems by the reference")
    problems = selfcheck.cases(args.seed) if checked else []
    sets = [] if args.no_speed or not checked else selfcheck.speed_sets(args.seed)
    there = torch.device("cuda", torch.cuda.current_device()) if gpu.devices else None
    devices: dict[str, torch.device] = {}
    accuracies: dict[str, Accuracy] = {}
    speeds: dict[str, list[Speed]] = {}
    for name in checked:
        backend = registry.get(name)
        device = devices[name] = device_for(backend, (case.problem for case in problems), there)
        line.say(f"checking the accuracy of {name}")
        accuracies[name] = selfcheck.check(backend, problems, device)
        line.say(f"timing {name}")
        speeds[name] = selfcheck.speeds(backend, sets, device)
    line.say("measuring the machine again")
    ceilings = ceilings.best(machine.measure())
    record["ceilings"] = vars(ceilings)
    ceilings_of = dict.fromkeys(checked, ceilings)
    on_gpu = [name for name in checked if devices[name] != CPU]
    if on_gpu and there is not None:
        line.say("measuring the GPU")
        gpu_ceilings = gpu_rates.measure(there)
        record["gpu_ceilings"] = vars(gpu_ceilings)
        ceilings_of |= dict.fromkeys(on_gpu, gpu_ceilings)
    record["backends"] = [
        {
            **status._asdict(),
            **({"device": str(devices[status.name])} if status.name in on_gpu else {}),
            "accuracy": asdict(accuracies[status.name]) if status.name in checked else None,
            "in_promise": status.name not in checked or accuracies[status.name].worst <= 1,
            "speeds": [
                _speed_record(s, ceilings_of[status.name]) for s in speeds.get(status.name, [])
            ],
        }
        for status in shown
    ]
    return record


def _speed_record(speed: Speed, ceilings: Ceilings) -> dict[str, Any]:
    return {
        **asdict(speed),
        "read_gb_s": speed.read_bytes / speed.time_ms / 1e6,
        "compute_gf_s": speed.operations / speed.time_ms / 1e6,
        "bound": ceilings.bound(speed.read_bytes, speed.operations),
        "share_of_ceiling": speed.share(ceilings),
    }


def _native() -> dict[str, Any]:
    """Whether the native module is there, its instruction sets, and who could compile it."""
    native = load_native()
    compiler = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    return {
        "built": native is not None,
        "why_not": None if native is not None else why_not_native(),
        "instruction_sets": {} if native is None else native.instruction_sets(),
        "compiler": compiler,
    }


def _as_text(record: dict[str, Any], gpu: GpuState) -> str:
    """The record for people."""
    versions, ceilings, native = record["versions"], record["ceilings"], record["native"]
    threads = text.count(ceilings["threads"], "thread")
    lines = [
        f"diffgen {versions['diffgen']}, torch {versions['torch']}, python {versions['python']}",
        f"machine  {record['machine']['cpu']}, {text.count(record['machine']['cpus'], 'cpu')}, "
        f"{record['machine']['system']}",
        f"ceiling  {ceilings['read_gb_s']:.1f} GB/s read, {ceilings['fma_gf_s']:.0f} GF/s float32 "
        f"with {threads} ({ceilings['source']})",
        *_gpu_ceiling(record.get("gpu_ceilings")),
        f"native   {_native_text(native)}",
        *gpu_lines(gpu),
        "",
        "worst error over a set of hard problems, in units of the promise (kept up to 1)",
        "",
        text.table(_accuracy_rows(record["backends"]), "<<><"),
    ]
    if any(backend["speeds"] for backend in record["backends"]):
        speeds = _speed_rows(record["backends"])
        lines += [
            "",
            f"one pass over {_megabytes()} MB of 3 x 32 x 32 images, and its share of the ceiling",
            "",
            text.table(speeds, "<" + ">" * (len(speeds[0]) - 1)),
        ]
    lines += ["", *_notes(record["backends"])]
    return "\n".join(lines).rstrip()


def _gpu_ceiling(ceilings: dict[str, Any] | None) -> list[str]:
    if ceilings is None:
        return []
    return [
        f"         {ceilings['read_gb_s']:.0f} GB/s read, {ceilings['fma_gf_s']:.0f} GF/s float32 "
        f"on the GPU ({ceilings['source']})"
    ]


def _native_text(native: dict[str, Any]) -> str:
    if native["built"]:
        usable = [name for name, reason in native["instruction_sets"].items() if not reason]
        return f"built, runs {', '.join(usable)}"
    compiler = native["compiler"] or "no C++ compiler found (c++, g++, clang++)"
    return f"{native['why_not']}; {compiler}"


def _accuracy_rows(backends: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["backend", "usable", "worst error", "where"]]
    for backend in backends:
        accuracy = backend["accuracy"]
        usable = "by name" if backend["usable"] and not backend["automatic"] else "yes"
        if not backend["usable"]:
            worst, where, usable = "", backend["reason"], "no"
        elif accuracy is None:
            worst, where = "", "the definition that the others are held to"
        elif accuracy["num_problems"] == 0:
            worst, where = "", "not checked: it refuses every problem of the check"
        else:
            worst, where = f"{accuracy['worst']:.2g}", accuracy["where"]
            if not backend["in_promise"]:
                where = f"OUT OF THE PROMISE: {where}"
        rows.append([backend["name"], usable, worst, where])
    return rows


def _megabytes() -> int:
    count, channels, side = selfcheck.SPEED_SIZE
    return round(4 * count * channels * side * side / 1e6)


def _speed_rows(backends: Sequence[dict[str, Any]]) -> list[list[str]]:
    timed = [backend for backend in backends if backend["speeds"]]
    names = list(dict.fromkeys(s["name"] for backend in timed for s in backend["speeds"]))
    rows = [["backend", *(cell for name in names for cell in (name, ""))]]
    for backend in timed:
        found = {speed["name"]: speed for speed in backend["speeds"]}
        cells = []
        for name in names:
            speed = found.get(name)
            cells += (
                [_speed(speed, "device" in backend), text.percent(speed["share_of_ceiling"])]
                if speed
                else ["-", ""]
            )
        rows.append([backend["name"], *cells])
    return rows


def _speed(speed: dict[str, Any], on_gpu: bool) -> str:
    rate = (
        f"{speed['read_gb_s']:.1f} GB/s"
        if speed["bound"] == "memory"
        else f"{speed['compute_gf_s']:.0f} GF/s"
    )
    time = f"{speed['time_ms']:.3g}" if on_gpu else f"{speed['time_ms']:.1f}"
    return f"{time} ms  {rate}"


def _notes(backends: Sequence[dict[str, Any]]) -> list[str]:
    """What a backend refuses, and what the second column means."""
    lines = []
    for backend in backends:
        refusals = backend["accuracy"]["refusals"] if backend["accuracy"] else ()
        if refusals:
            lines.append(f"{backend['name']} refuses some problems: {'; '.join(_joined(refusals))}")
    on_gpu = [backend["name"] for backend in backends if "device" in backend]
    if on_gpu:
        lines.append(f"checked and timed on the GPU, beside its own ceiling: {', '.join(on_gpu)}")
    if any(backend["usable"] and not backend["automatic"] for backend in backends):
        lines.append('"by name": runs when asked for by name, never chosen by itself')
    return lines


def _joined(reasons: Sequence[str]) -> list[str]:
    """Reasons that differ in what was got alone become one."""
    got: dict[str, list[str]] = {}
    for reason in reasons:
        need, found, value = reason.partition(", got ")
        got.setdefault(need + found, []).append(value)
    return [need + ", ".join(values) for need, values in got.items()]
