"""Runs compilations in two processes and remembers what they measured."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .measured import Measured
from .tools import ROOT

PROCESSES = 2


@dataclass(frozen=True)
class Job:
    """One compilation, which another process can run.

    Attributes:
        key: Digest of all that its result depends on, but for how results are read.
        run: A function of a module.
        arguments: What it takes.
    """

    key: str
    run: Callable[..., list[Measured]]
    arguments: tuple[str, ...]


def cache_folder() -> Path:
    """Where results are kept: ``DIFFGEN_GATE_CACHE``, else in the checkout's build folder."""
    return Path(os.environ.get("DIFFGEN_GATE_CACHE") or ROOT / "build" / "gates")


def run_all(jobs: Sequence[Job]) -> tuple[list[Measured], list[str]]:
    """Runs what is not remembered.

    Returns:
        What was measured, in the order of the jobs, and what did not compile.
    """
    found = {job.key: _remembered(job.key) for job in jobs}
    missing = [job for job in jobs if found[job.key] is None]
    failures = []
    if missing:
        with (
            tempfile.TemporaryDirectory() as scratch,
            ProcessPoolExecutor(
                min(PROCESSES, len(missing)),
                # A fork would take over the threads of PyTorch, and hang.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_prepare,
                initargs=(scratch,),
            ) as pool,
        ):
            running: list[tuple[Job, Future[list[Measured]]]] = [
                (job, pool.submit(job.run, *job.arguments)) for job in missing
            ]
            for job, future in running:
                try:
                    found[job.key] = future.result()
                except RuntimeError as error:
                    failures.append(str(error))
                else:
                    _remember(job.key, future.result())
    return [row for job in jobs for row in found[job.key] or ()], failures


def _prepare(scratch: str) -> None:
    """Sets up a process before it imports Triton."""
    # Interpreted kernels have no machine code.
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = scratch
    os.environ["OMP_NUM_THREADS"] = "1"


@functools.cache
def _readers() -> str:
    """Digest of the code that reads results: when it changes, what was read does not count."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _place(key: str) -> Path:
    name = hashlib.sha256(f"{key} {_readers()}".encode()).hexdigest()
    return cache_folder() / f"{name[:32]}.json"


def _remembered(key: str) -> list[Measured] | None:
    try:
        rows = json.loads(_place(key).read_text())
    except (OSError, ValueError):
        return None
    return [Measured(**row) for row in rows]


def _remember(key: str, rows: Sequence[Measured]) -> None:
    place = _place(key)
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    unfinished.replace(place)
