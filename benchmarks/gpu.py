"""Times diffgen on a GPU beside PyTorch: `python -m benchmarks.gpu`.

The cases, the gate and the contenders are those of the CPU's suite; times are taken by CUDA events,
in rounds that take every contender in turn, and memory is what PyTorch's allocator held at most. A
contender that runs out of memory or is inaccurate is a row that says so. The rows become
``gpu_results/<gpu>.csv``, written after every group of cases.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

_ROOT = Path(__file__).parent.parent
# An installed diffgen has its compiled parts, the checkout may not.
if __name__ == "__main__" and str(_ROOT) in sys.path:
    sys.path.remove(str(_ROOT))
    sys.path.append(str(_ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import results  # noqa: E402
from benchmarks.cases import Case, case_name, chosen  # noqa: E402
from benchmarks.contender import Contender  # noqa: E402
from benchmarks.contenders import select, table  # noqa: E402
from benchmarks.gate import QUERIES, error_in_promises, reference  # noqa: E402
from benchmarks.measure import Entry, Measurement  # noqa: E402
from benchmarks.results import Row, Setting, row_of, write_csv  # noqa: E402
from benchmarks.store import Store  # noqa: E402
from diffgen import BackendError  # noqa: E402
from diffgen.gpu_rates import Clock, event_seconds, measure, measure_integers  # noqa: E402
from diffgen.gpu_state import gpu_state  # noqa: E402

RESULTS = Path(__file__).parent / "gpu_results"
OURS = ("diffgen", "diffgen-cuda", "diffgen-triton", "diffgen-eager")
PEERS = ("expanded", "expanded-chunks", "sdpa", "expanded-tf32", "expanded-bf16")
COLUMNS = (*results.COLUMNS, "backend", "gpu", "triton", "cuda")
"""Those of every benchmark; the backend that ran, the GPU's name, and the versions of Triton and of
the toolkit that compiled the CUDA kernels."""

COMMIT = "DIFFGEN_COMMIT"
"""Environment variable that names the commit in place of git."""

CASES = tuple(
    case_name("cifar", batch, sigma, dtype)
    for batch in (1, 8, 64, 256)
    for sigma in (0.3, 2.0, 80.0)
    for dtype in ("uint8", "float32")
)
WARM_CALLS = 3
ROUNDS = 20
SHORTEST_ROUND = 2e-3
"""Seconds; a shorter call is repeated within its round."""

LONGEST_CALL = 1.0
"""Seconds from which one round has to do."""


def interleaved(calls: Sequence[Callable[[], object]], clock: Clock) -> list[list[float]]:
    """Times calls in rounds A B C A B C ...; each has been called.

    Args:
        calls: What to time.
        clock: How.

    Returns:
        The seconds of each call in each round it took part in.
    """
    plans = []
    for call in calls:
        estimate = clock(call, 1)
        rounds = 1 if estimate > LONGEST_CALL else ROUNDS
        plans.append((rounds, max(1, math.ceil(SHORTEST_ROUND / max(estimate, 1e-9)))))
    times: list[list[float]] = [[] for _ in calls]
    for index in range(ROUNDS):
        for call, (rounds, repeats), mine in zip(calls, plans, times, strict=True):
            if index < rounds:
                mine.append(clock(call, repeats))
    return times


def measure_group(
    entries: Sequence[Entry], store: Store, device: torch.device, clock: Clock
) -> list[Measurement]:
    """Measures entries of cases of one group side by side.

    Args:
        entries: Cases that share set and shape.
        store: Where images and queries come from.
        device: Where they are taken to.
        clock: How a call is timed.

    Returns:
        One measurement for each entry, in their order.
    """
    source = store.open([entry.case for entry in entries])
    found = [Measurement(entry, source) for entry in entries]
    calls: dict[int, Callable[[], object]] = {}
    for index, one in enumerate(found):
        try:
            calls[index] = _enter(one, store, device)
        except torch.OutOfMemoryError:
            one.failure = "out of memory"
        except Exception as error:
            one.failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
            one.fault = one.entry.contender.ours and not isinstance(error, BackendError)
    for index, times in zip(calls, interleaved(list(calls.values()), clock), strict=True):
        found[index].seconds = times
    return found


def _enter(found: Measurement, store: Store, device: torch.device) -> Callable[[], object]:
    """Judges an entry by its first call; returns what is to be timed."""
    case, contender = found.entry.case, found.entry.contender
    images, query = store.images(case).to(device), store.queries(case).to(device)
    methods = contender.prepare(images)
    few = query[:QUERIES]
    exact = reference(images, few, case.sigma)
    held = _memory(device, "memory_allocated")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    mean = methods.denoise(query, case.sigma)
    found.peak_mib = (_memory(device, "max_memory_allocated") - held) / 2**20
    found.backend = "" if methods.backend is None else methods.backend()
    mass = None if methods.logsumexp is None else methods.logsumexp(few, case.sigma)
    found.error = error_in_promises(mean[:QUERIES], mass, exact)

    def call() -> Tensor:
        return methods.denoise(query, case.sigma)

    for _ in range(WARM_CALLS):
        call()
    return call


def _memory(device: torch.device, what: str) -> int:
    return int(getattr(torch.cuda, what)(device)) if device.type == "cuda" else 0


def contenders_of(case: Case, known: Sequence[Contender]) -> list[Contender]:
    """All that is ours, and beside a float32 set, which they are given, the peers."""
    return select(known, OURS + (PEERS if case.dtype == "float32" else ()))


def run(
    cases: Sequence[Case],
    device: torch.device,
    setting: Setting,
    clock: Clock,
    keep: Callable[[Sequence[Row]], object] = len,
) -> list[Row]:
    """The rows of cases.

    Args:
        cases: What to run; those of one group are timed in turn.
        device: Where.
        setting: What all rows share.
        clock: How a call is timed.
        keep: Gets the rows so far after every group: an interrupted run loses one group.

    Raises:
        RuntimeError: If diffgen fails in a way that no refusal explains.
    """
    store, known = Store(), table(elsewhere=True)
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    rows, faults = [], []
    stamp = stamp_of(device)
    for group in groups.values():
        entries = [Entry(case, c) for case in group for c in contenders_of(case, known)]
        for found in measure_group(entries, store, device, clock):
            rows.append(row_of(found, setting) | stamp | {"backend": found.backend})
            print(_line(rows[-1]), flush=True)
            if found.fault:
                faults.append(f"{'/'.join(found.entry.key)}: {found.failure}")
        keep(rows)
    if faults:
        raise RuntimeError(f"diffgen failed: {'; '.join(faults)}")
    return rows


def _line(row: Row) -> str:
    time = f"{row['time_ms']:>10} ms" if row["time_ms"] else f"{'-':>13}"
    error = f"error {row['error_in_promises'] or '-':>9}"
    return f"{row['case']:<28} {row['contender']:<16} {time}  {error}  {row['note']}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def commit() -> str:
    """The commit of the checkout: what ``DIFFGEN_COMMIT`` says, or else git."""

    def git(*words: str) -> str:
        asked = subprocess.run(
            ["git", "-C", str(_ROOT), *words], capture_output=True, text=True, check=False
        )
        return asked.stdout.strip() if asked.returncode == 0 else ""

    if COMMIT in os.environ:
        return os.environ[COMMIT]
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD")[:12] + ("+changes" if changed else "")


def stamp_of(device: torch.device) -> Row:
    """When and of what a row on that device is."""
    state = gpu_state()
    name = torch.cuda.get_device_properties(device).name if device.type == "cuda" else ""
    versions = {"triton": state.triton_version or "", "cuda": state.cuda.version or ""}
    return {"date": _now(), "commit": commit(), "gpu": name, **versions}


def gpu_name(device: torch.device) -> str:
    """A name for the kind of GPU, fit for a file."""
    name = torch.cuda.get_device_properties(device).name
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; without a GPU it says so and does nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the machinery")
    parser.add_argument(
        "--case",
        action="append",
        metavar="PATTERN",
        help="these cases alone, and no file but --out",
    )
    parser.add_argument("--out", type=Path, metavar="PATH", help="where the rows go, as CSV")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("SKIPPED GPU benchmark: PyTorch sees no GPU")
        return 0
    device = torch.device("cuda", torch.cuda.current_device())
    wanted = args.case or ["*"]
    cases = [
        case
        for case in chosen(full=False)
        if case.name in CASES and any(fnmatchcase(case.name, pattern) for pattern in wanted)
    ]
    setting = Setting(
        gpu_name(device), torch.get_num_threads(), measure(device), measure_integers(device)
    )
    path: Path | None = args.out
    if args.quick:
        cases = [case.quick() for case in cases]
    elif not args.case:
        path = path or RESULTS / f"{setting.machine}.csv"
    if path is None:
        run(cases, device, setting, event_seconds)
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    run(cases, device, setting, event_seconds, partial(write_csv, path, columns=COLUMNS))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
