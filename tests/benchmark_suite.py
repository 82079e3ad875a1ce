"""The benchmark suite for its tests, and what they share."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load_suite() -> None:
    """Imports the package by its path: the checkout on ``sys.path`` would hide a built core."""
    if "benchmarks" in sys.modules:
        return
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks"] = module
    spec.loader.exec_module(module)


def run_suite(*options: str, timeout: float = 250) -> subprocess.CompletedProcess[str]:
    """Runs the suite in an interpreter of its own."""
    line = [sys.executable, "-m", "pytest", "benchmarks", "-q", "--benchmark-only", *options]
    return subprocess.run(
        [*line, "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ,
        timeout=timeout,
    )


def row(case: str, contender: str, time_ms: object, **more: str) -> dict[str, str]:
    """A row of results with little in it."""
    from benchmarks.results import COLUMNS

    made = dict.fromkeys(COLUMNS, "")
    made |= {"case": case, "contender": contender, "time_ms": str(time_ms), "machine": "m"}
    return made | more
