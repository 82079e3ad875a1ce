"""The suite's pytest plugin: options, the entries to run, the targets at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

# pytest puts the checkout in front of the module path, where its source would hide an installed
# diffgen, compiled core and all. This package is loaded by now and does not need the entry.
_ROOT = str(Path(__file__).parent.parent)
if _ROOT in sys.path and _ROOT not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    sys.path.remove(_ROOT)
    sys.path.append(_ROOT)

import torch  # noqa: E402

from benchmarks.cases import CASES  # noqa: E402
from benchmarks.contenders import chosen_backend, select, table  # noqa: E402
from benchmarks.measure import Entry, Measurement, Store, measure_group  # noqa: E402
from benchmarks.results import Row, Setting, machine_name, row_of  # noqa: E402
from benchmarks.targets import target_table  # noqa: E402
from diffgen import machine  # noqa: E402

ROWS = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the choice of case, contender and backend."""
    group = parser.getgroup("diffgen benchmarks")
    group.addoption("--case", action="append", metavar="NAME", help="only this case (* allowed)")
    group.addoption("--contender", action="append", metavar="NAME", help="only this contender")
    group.addoption("--backend", default="auto", help="backend of the contender `diffgen`")
    group.addoption("--threads", type=int, default=min(2, os.cpu_count() or 1))
    group.addoption("--seed", type=int, default=0, help="another draw of the queries")
    group.addoption("--quick", action="store_true", help="tiny sizes: tries the machinery only")


def pytest_configure(config: pytest.Config) -> None:
    """Starts the list of rows, and makes room for the JSON before minutes are spent on it."""
    config.stash[ROWS] = []
    saved = config.getoption("benchmark_json", None)
    if saved is not None:
        Path(saved).parent.mkdir(parents=True, exist_ok=True)


def pytest_report_header(config: pytest.Config) -> str:
    """Says what will run, before minutes go by."""
    backend = chosen_backend(config.getoption("backend"))
    return f"diffgen: backend {backend}, {config.getoption('threads')} threads, {machine_name()}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes each contender of each case a parameter."""
    if "entry" in metafunc.fixturenames:
        entries = chosen_entries(metafunc.config)
        ids = ["-".join(entry.key) for entry in entries]
        metafunc.parametrize("entry", entries, ids=ids)


def chosen_entries(config: pytest.Config) -> list[Entry]:
    """The rows that the options ask for, case by case."""
    contenders = table(config.getoption("backend"))
    wanted_cases = config.getoption("case") or ["*"]
    wanted = config.getoption("contender") or ["*"]
    _refuse_unknown("case", wanted_cases, [case.name for case in CASES])
    _refuse_unknown("contender", wanted, [contender.name for contender in contenders])
    entries = []
    for case in CASES:
        if any(fnmatchcase(case.name, pattern) for pattern in wanted_cases):
            shown = case.quick() if config.getoption("quick") else case
            for contender in select(select(contenders, case.contenders), wanted):
                entries.append(Entry(shown, contender))
    return entries


def _refuse_unknown(option: str, patterns: list[str], known: list[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise pytest.UsageError(f"--{option} must be one of {', '.join(known)}, got {pattern}")


class Suite:
    """The entries that will run, measured group by group when the first of a group is asked for."""

    def __init__(self, entries: list[Entry], setting: Setting, seed: int) -> None:
        """Keeps what to run; nothing is measured yet."""
        self.setting = setting
        self._entries = entries
        self._store = Store(seed)
        self._found: dict[tuple[str, str], Measurement] = {}
        self._faults: dict[str, Exception] = {}

    def measurement(self, entry: Entry) -> Measurement:
        """What was found of an entry."""
        group = entry.case.group
        if group in self._faults:
            raise self._faults[group]
        if entry.key not in self._found:
            try:
                measurements = measure_group(
                    [e for e in self._entries if e.case.group == group], self._store
                )
            except Exception as fault:
                self._faults[group] = fault  # the other entries of the group need not try again
                raise
            self._found |= {found.entry.key: found for found in measurements}
        return self._found[entry.key]


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Iterator[Suite]:
    """The suite over the entries that are left after ``-k`` and the like."""
    config = request.config
    threads = config.getoption("threads")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    quick = config.getoption("quick")
    if quick:
        ceilings = machine.measure_with_torch(threads, read_bytes=1 << 22, product_size=128)
    else:
        ceilings = machine.measure(threads)
    entries = [item.callspec.params["entry"] for item in request.session.items]
    setting = Setting(machine_name(), threads, ceilings)
    yield Suite(entries, setting, config.getoption("seed"))
    torch.set_num_threads(before)


@pytest.fixture
def row(request: pytest.FixtureRequest, entry: Entry, suite: Suite) -> Row:
    """The row of an entry, kept for the summary."""
    made = row_of(suite.measurement(entry), suite.setting)
    request.config.stash[ROWS].append(made)
    return made


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, object]) -> None:
    """Saves the rows without a time too: a failure is a row, not a gap."""
    output_json["failures"] = [row for row in config.stash[ROWS] if not row["time_ms"]]


@pytest.hookimpl(trylast=True)  # below the tables of pytest-benchmark
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the accuracy of what ran, and the targets."""
    rows = terminalreporter.config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("accuracy, memory, share of the ceiling")
    for row in rows:
        terminalreporter.write_line(
            f"{row['case']:24} {row['contender']:20} {row['time_ms'] or 'no time':>10} ms "
            f"{row['peak_mib'] or '?':>8} MiB  {row['share_of_ceiling'] or '-':>8} of ceiling  "
            f"error {row['error_in_promises'] or '-':>10}  {row['note']}"
        )
    quick = terminalreporter.config.getoption("quick")
    terminalreporter.section("targets (tiny sizes: no claim)" if quick else "targets")
    terminalreporter.write_line(target_table(rows))
