"""A study from data to report: the stages in order, then JSON, figures and page."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffgen._version import __version__
from diffgen.machine import cpu_count, cpu_name
from diffgen.study.claims import STAGES
from diffgen.study.claims.own import OWN, OwnNetwork, measure_own_network, open_checkpoint
from diffgen.study.context import Context, Share, StudyData
from diffgen.study.plain import plain
from diffgen.study.report import write_report
from diffgen.study.settings import TINY, StudySettings
from diffgen.study.stages import Say, Stage, code_digest, run_stages, stage_keys
from diffgen.study.store import StageResult, StageStore, write_json

SCHEMA = 1
"""Version of the form of ``results.json``."""

RESULTS, REPORT = "results.json", "report.html"


def run_study(
    settings: StudySettings,
    data: StudyData,
    out: Path,
    *,
    backend: str = "auto",
    checkpoint: Path | None = None,
    header: Mapping[str, Any] | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Answers the four claims on a data set.

    Finished stages are kept in ``out / "stages"``: the same call goes on where it was stopped. What
    is finished when it stops, by whatever, is reported as partial.

    Args:
        settings: What to do.
        data: What to do it on.
        out: Folder of the results: ``results.json``, ``report.html``, ``figures/*.png``.
        backend: What runs the empirical denoisers.
        checkpoint: A checkpoint of the user's own network, to be measured as well.
        header: More for the head of the JSON, such as the command.
        say: Takes the lines of progress.

    Returns:
        The contents of ``results.json``.

    Raises:
        ImportError: A package of the extra ``study`` is missing.
        ValueError: The data are too few for the settings, or the checkpoint is of a network that
            was trained on other data.
        OSError: A result cannot be written.
    """
    context = Context(settings, data, out / "networks", backend)
    own = None if checkpoint is None else open_checkpoint(checkpoint, data)
    stages = (*STAGES, *(() if own is None else (_own_stage(own),)))
    described = data.record()
    store = StageStore(out / "stages")
    subject = _subject(settings, described, backend, own)
    record: dict[str, Any] = {
        **(header or {}),
        "schema": SCHEMA,
        "finished": False,
        "settings": settings.record(),
        "data": described,
        "versions": _versions(),
        "checkpoint": subject["checkpoint"],
    }
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        with _threads(data):
            record["machine"] = _machine()
            run_stages(stages, context, store, subject, say, size=settings.size)
        record["finished"] = True
    finally:
        record["missing"] = [stage.name for stage in stages if stage.name not in context.found]
        record["stages"] = {
            stage.name: {
                "title": stage.title,
                "seconds": context.found[stage.name].seconds,
                "values": context.found[stage.name].values,
            }
            for stage in stages
            if stage.name in context.found
        }
        record["elapsed_s"] = sum(stage["seconds"] for stage in record["stages"].values())
        record = plain(record)
        write_json(out / RESULTS, record)
        write_report(out / REPORT, record, out / "figures")
        took = time.perf_counter() - started
        say(f"{'Finished' if record['finished'] else 'Stopped'} after {took:.0f} s: {out / REPORT}")
    return record


def run_shared_stages(
    settings: StudySettings,
    data: StudyData,
    out: Path,
    *,
    share: Share,
    agree: Callable[[list[str]], list[str]],
    first: bool,
    backend: str = "auto",
    checkpoint: Path | None = None,
    say: Say = print,
) -> None:
    """Runs what several processes can do together, before one of them goes on with `run_study`.

    Each process calls it with the same arguments. The first keeps the results where `run_study`
    finds them. These are the stages over a large set; networks are trained and measured on small
    ones, and by one process.

    Args:
        settings: As for `run_study`.
        data: As for `run_study`; each process has the whole set, if only in its file.
        out: As for `run_study`.
        share: From a whole set to the same, of which this process holds a part.
        agree: Returns in all processes what the first one was called with.
        first: Whether this process keeps the results.
        backend: As for `run_study`.
        checkpoint: As for `run_study`.
        say: Takes the lines of progress.

    Raises:
        ShardError: Another process ended, or has other data.
        OSError: A result cannot be kept.
    """
    context = Context(settings, data, out / "networks", backend, share)
    store = StageStore(out / "stages")
    stages = [stage for stage in STAGES if stage.shared]
    keys, missing = {}, []
    if first:
        own = None if checkpoint is None else open_checkpoint(checkpoint, data)
        keys = stage_keys(stages, _subject(settings, data.record(), backend, own))
        missing = [s.name for s in stages if store.read(s.name, keys[s.name]) is None]
    missing = agree(missing)
    with _threads(data):
        for stage in stages:
            if stage.name in missing:
                say(f"together: {stage.title} …")
                started = time.perf_counter()
                values, arrays = stage.run(context)
                seconds = time.perf_counter() - started
                if first:
                    store.write(stage.name, keys[stage.name], StageResult(values, arrays, seconds))


def _subject(
    settings: StudySettings, described: dict[str, Any], backend: str, own: OwnNetwork | None
) -> dict[str, Any]:
    """What all results depend on beside the code."""
    return {
        "settings": settings.record(),
        "data": described,
        "backend": backend,
        "torch": torch.__version__,
        "checkpoint": None if own is None else own.record,
    }


@contextmanager
def _threads(data: StudyData) -> Iterator[None]:
    """One thread for tiny samples.

    Operations on them are too short to share: a second thread gains nothing, and where another
    program wants the core it spins on, each waits for the other, twenty times as long.
    """
    before = torch.get_num_threads()
    if data.elements <= TINY:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _own_stage(own: OwnNetwork) -> Stage[Context]:
    return Stage(
        OWN, "your network", lambda context: measure_own_network(context, own), nominal_s=10
    )


def _versions() -> dict[str, str]:
    return {
        "diffgen": __version__,
        "diffgen_sources_sha256": code_digest(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpus": cpu_count(),
        "threads": torch.get_num_threads(),
    }
