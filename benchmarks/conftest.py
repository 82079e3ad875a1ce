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

from benchmarks.cases import chosen  # noqa: E402
from benchmarks.contenders import chosen_backend, select, table  # noqa: E402
from benchmarks.datasets import Options  # noqa: E402
from benchmarks.journal import Journal, source_digest  # noqa: E402
from benchmarks.measure import Entry, Measurement, Slow, measure_group, note_slow  # noqa: E402
from benchmarks.results import Row, Setting, integer_peak, machine_name, row_of  # noqa: E402
from benchmarks.store import Store  # noqa: E402
from benchmarks.targets import target_table  # noqa: E402
from diffgen import machine  # noqa: E402

ROWS = pytest.StashKey[list[Row]]()
KEPT = pytest.StashKey[Journal | None]()
JOURNAL = Path(_ROOT) / ".benchmarks" / "journal.jsonl"
CIFAR = "DIFFGEN_CIFAR10"
"""Environment variable that names CIFAR-10, as ``--cifar`` does."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the choice of case, contender and backend."""
    group = parser.getgroup("diffgen benchmarks")
    group.addoption("--case", action="append", metavar="NAME", help="only this case (* allowed)")
    group.addoption("--contender", action="append", metavar="NAME", help="only this contender")
    group.addoption("--backend", default="auto", help="backend of the contender `diffgen`")
    group.addoption("--threads", type=int, default=min(2, os.cpu_count() or 1))
    group.addoption("--seed", type=int, default=0, help="another draw of the queries")
    group.addoption("--quick", action="store_true", help="tiny sizes: tries the machinery only")
    group.addoption("--full", action="store_true", help="the product of all axes, in hours")
    group.addoption(
        "--cifar", type=Path, metavar="PATH", help=f"CIFAR-10 (default: what {CIFAR} names, if set)"
    )
    group.addoption(
        "--journal",
        type=Path,
        metavar="PATH",
        help="go on where a run with this journal and the same settings was interrupted "
        "(default with --full: .benchmarks/journal.jsonl)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Starts the list of rows, and makes room for the JSON before minutes are spent on it."""
    config.stash[ROWS] = []
    # For OpenMP runtimes that are loaded later, KeOps' for one.
    os.environ.setdefault("OMP_NUM_THREADS", str(config.getoption("threads")))
    saved = config.getoption("benchmark_json", None)
    if saved is not None:
        Path(saved).parent.mkdir(parents=True, exist_ok=True)
    config.stash[KEPT] = None if config.option.collectonly else _journal(config)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Says what will run, before minutes go by."""
    backend = chosen_backend(config.getoption("backend"))
    lines = [f"diffgen: backend {backend}, {config.getoption('threads')} threads, {machine_name()}"]
    journal = config.stash[KEPT]
    if journal is not None and len(journal):
        lines.append(f"going on: {len(journal)} rows are in {journal.path}")
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes each contender of each case a parameter."""
    if "entry" in metafunc.fixturenames:
        entries = chosen_entries(metafunc.config)
        ids = ["-".join(entry.key) for entry in entries]
        metafunc.parametrize("entry", entries, ids=ids)


def chosen_entries(config: pytest.Config) -> list[Entry]:
    """The rows that the options ask for, case by case."""
    contenders = table(config.getoption("backend"))
    cases = chosen(config.getoption("full"))
    wanted_cases = config.getoption("case") or ["*"]
    wanted = config.getoption("contender") or ["*"]
    _refuse_unknown("case", wanted_cases, [case.name for case in cases])
    _refuse_unknown("contender", wanted, [contender.name for contender in contenders])
    entries = []
    for case in cases:
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

    def __init__(
        self, entries: list[Entry], setting: Setting, store: Store, journal: Journal | None
    ) -> None:
        """Keeps what to run; nothing is measured yet."""
        self.setting = setting
        self._entries = entries
        self._store = store
        self._journal = journal
        self._slow: Slow = {}
        self._found: dict[tuple[str, str], Measurement] = {}
        self._faults: dict[str, Exception] = {}

    def measurement(self, entry: Entry) -> Measurement:
        """What was found of an entry."""
        group = entry.case.group
        if group in self._faults:
            raise self._faults[group]
        if entry.key not in self._found:
            try:
                measurements = self._measure([e for e in self._entries if e.case.group == group])
            except Exception as fault:
                self._faults[group] = fault  # the other entries of the group need not try again
                raise
            self._found |= {found.entry.key: found for found in measurements}
        return self._found[entry.key]

    def _measure(self, entries: list[Entry]) -> list[Measurement]:
        kept = None if self._journal is None else self._journal.group(entries)
        if kept is not None:
            for found in kept:
                note_slow(found, self._slow)
            return kept
        measurements = measure_group(entries, self._store, self._slow)
        if self._journal is not None:
            self._journal.add(measurements)
        return measurements

    def close(self) -> None:
        """Marks the journal as finished if everything was measured."""
        if self._journal is not None and len(self._found) == len(self._entries):
            self._journal.finish()


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Iterator[Suite]:
    """The suite over the entries that are left after ``-k`` and the like."""
    config = request.config
    threads = config.getoption("threads")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    if config.getoption("quick"):
        ceilings = machine.measure_with_torch(threads, read_bytes=1 << 22, product_size=128)
        setting = Setting(machine_name(), threads, ceilings)
    else:
        ceilings = machine.measure(threads)
        setting = Setting(machine_name(), threads, ceilings, integer_peak(threads))
    entries = [item.callspec.params["entry"] for item in request.session.items]
    store = Store(config.getoption("seed"), _options(config))
    made = Suite(entries, setting, store, config.stash[KEPT])
    yield made
    made.close()
    torch.set_num_threads(before)


def _options(config: pytest.Config) -> Options:
    named = config.getoption("cifar") or os.environ.get(CIFAR)
    return Options(cifar=Path(named) if named else None, fetch=not config.getoption("quick"))


def _journal(config: pytest.Config) -> Journal | None:
    path = config.getoption("journal") or (JOURNAL if config.getoption("full") else None)
    if path is None:
        return None
    settings = {
        name: config.getoption(name) for name in ("backend", "threads", "seed", "quick", "full")
    }
    settings |= {
        "machine": machine_name(),
        "torch": torch.__version__,
        "diffgen": source_digest(),
        "cifar": str(_options(config).cifar),
    }
    return Journal(path, settings)


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
    kinds = ", ".join(sorted({row["data"] for row in rows}))
    terminalreporter.write_line(f"images: {kinds} (`synthetic` stands in for what is not there)")
    for row in rows:
        terminalreporter.write_line(
            f"{row['case']:32} {row['contender']:18} {row['time_ms'] or 'no time':>10} ms "
            f"{row['peak_mib'] or '?':>8} MiB  {row['share_of_ceiling'] or '-':>8} of ceiling  "
            f"error {row['error_in_promises'] or '-':>10}  {row['note']}"
        )
    quick = terminalreporter.config.getoption("quick")
    terminalreporter.section("targets (tiny sizes: no claim)" if quick else "targets")
    terminalreporter.write_line(target_table(rows))
