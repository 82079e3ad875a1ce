"""A study from data to report: the stages in order, then JSON, figures and page."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffgen._version import __version__
from diffgen.machine import cpu_count, cpu_name
from diffgen.study.claims import STAGES
from diffgen.study.claims.own import OWN, OwnNetwork, measure_own_network, open_checkpoint
from diffgen.study.context import Context, StudyData
from diffgen.study.plain import plain
from diffgen.study.report import write_report
from diffgen.study.settings import TINY, StudySettings
from diffgen.study.stages import Say, Stage, code_digest, run_stages
from diffgen.study.store import StageStore, write_json

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
    subject = {
        "settings": settings.record(),
        "data": described,
        "backend": backend,
        "torch": torch.__version__,
        "checkpoint": None if own is None else own.record,
    }
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
