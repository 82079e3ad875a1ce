"""The Triton kernels, executed without a GPU: the suites of ``tests/triton_suite``.

Each suite is a process: Triton reads ``TRITON_INTERPRET`` when it makes a kernel, and ttsem takes
over launches and devices. Both start at once, for each keeps one core busy.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted((HERE / "triton_suite").glob("test_*.py"))
SECONDS = 1200
TAIL = 6000

STARTS = {
    "interpreter": ["-c", "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"],
    "ttsem": ["-m", "ttsem.sanitize", "pytest"],
}
NEEDS = {"interpreter": ("triton",), "ttsem": ("triton", "ttsem")}
REQUIRED = os.environ.get("DIFFGEN_REQUIRE_TTSEM") == "1"
"""Set where a missing tool shall be a failure: in CI."""

FEWEST_PASSED = {"interpreter": 176, "ttsem": 208}
"""Fewer tests mean that some are no longer collected."""


@dataclass
class Run:
    """A suite that has been started."""

    process: subprocess.Popen[bytes]
    output: Path
    report: Path

    def text(self) -> str:
        return self.output.read_text(errors="replace")[-TAIL:]


def missing(suite: str) -> list[str]:
    return [name for name in NEEDS[suite] if importlib.util.find_spec(name) is None]


def start(suite: str, folder: Path, *asked: str) -> Run:
    """Starts a suite from a folder without a ``diffgen``, so that the installed one is tested.

    Args:
        suite: A key of ``STARTS``.
        folder: Where output goes.
        asked: Further arguments of pytest; without any, all tests that are not slow.
    """
    report, output = folder / f"{suite}.xml", folder / f"{suite}.txt"
    environment = os.environ | {
        "DIFFGEN_TRITON_SUITE": suite,
        "TRITON_INTERPRET": str(int(suite == "interpreter")),
        "TRITON_CACHE_DIR": str(folder / f"{suite}-cache"),
        "OMP_NUM_THREADS": "1",
    }
    usual = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command = [sys.executable, *STARTS[suite], *usual, "-c", str(HERE.parent / "pyproject.toml")]
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [*command, str(HERE / "triton_suite"), *asked],
            cwd=folder,
            env=environment,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    return Run(process, output, report)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    folder = tmp_path_factory.mktemp("triton")
    started = {suite: start(suite, folder) for suite in STARTS if not missing(suite)}
    yield started
    for run in started.values():
        run.process.kill()
        run.process.wait()


def skip_where_missing(suite: str) -> None:
    """Skips with the reason; where all tools are required, fails."""
    if missing(suite):
        reason = f"needs {', '.join(missing(suite))} (see .ci/run for how CI installs them)"
        assert not REQUIRED, reason
        pytest.skip(reason)


def passed(run: Run, seconds: float) -> list[ElementTree.Element]:
    """The tests of a suite, all of which have passed and none was skipped."""
    try:
        code = run.process.wait(seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the suite takes more than {seconds} s:\n{run.text()}")
    assert code == 0, run.text()
    assert "too large to be checked for races" not in run.text()
    cases = list(ElementTree.parse(run.report).iter("testcase"))
    assert not [case.get("name") for case in cases if case.find("skipped") is not None], run.text()
    return cases


@pytest.mark.parametrize("suite", STARTS)
def test_the_kernels_pass_their_suite(suite: str, runs: dict[str, Run]) -> None:
    skip_where_missing(suite)
    cases = passed(runs[suite], SECONDS)
    assert len(cases) >= FEWEST_PASSED[suite]
    by_file = Counter(str(case.get("classname")).rpartition(".")[2] for case in cases)
    assert not {path.stem for path in FILES} - {*by_file}, by_file
