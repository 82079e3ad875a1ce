"""Streaming and sharding on this machine: what ``python -m benchmarks.scale --measure`` measures.

Contenders take turns, so that a drift of the machine hits all alike, and claims are ratios within
one run.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import scale_ranks
from benchmarks.scale_ranks import noisy
from diffgen import EmpiricalDenoiser, TrainingSet, __version__
from diffgen.machine import cpu_name
from diffgen.selfcheck import stored_images

FEATURES = 12_288
READ_BYTES = 8 << 20
BATCHES = (1, 2, 4, 8)
SIGMAS = (0.5, 0.05)
MIB = 1 << 20

FULL = {"file_bytes": 4_000_000_000, "rounds": 5, "turns": 9, "count": 50_000, "features": 3072}
TINY = {"file_bytes": 60_000_000, "rounds": 2, "turns": 2, "count": 5_000, "features": 192}


def measure(folder: Path | None, *, tiny: bool = False) -> dict[str, Any]:
    """Everything, in some minutes.

    Args:
        folder: Where a file of 4 GB is put while it lasts; None for the system's.
        tiny: Small sizes, to see that it runs.

    Returns:
        The record.
    """
    sizes = TINY if tiny else FULL
    record: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {"diffgen": __version__, "torch": torch.__version__},
        "sizes": sizes,
    }
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "rows.npy"
        _say("writing the file")
        write_rows(path, sizes["file_bytes"] // FEATURES)
        record["streaming"] = streaming(path, sizes["rounds"])
        _say("peak memory")
        record["peak_mib"] = peak_mib(path)
    count, features, turns = sizes["count"], sizes["features"], sizes["turns"]
    record["speed_up"] = []
    for batch in (1, 64):
        for sigma in (1.0, 80.0):
            _say(f"two processes, B = {batch}, sigma = {sigma:g}")
            given = {"batch": batch, "sigma": sigma}
            ranks = scale_ranks.run(
                "speed_up", 2, count=count, features=features, rounds=turns, **given
            )
            record["speed_up"].append({**given, **speed_up_of(ranks)})
    _say("merging four")
    ranks = scale_ranks.run(
        "merge", 4, count=count, features=features, batch=64, sigma=80.0, rounds=turns
    )
    merge = {
        name: max(found[name] for found in ranks)
        for name in ("pass_ms", "merge_ms", "agree_ms", "rest_ms")
    }
    record["merge"] = {
        **merge,
        "share": (merge["merge_ms"] + merge["agree_ms"]) / merge["pass_ms"],
        "bytes_sent": [found["bytes_sent"] for found in ranks],
    }
    return record


def speed_up_of(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of what the processes of ``scale_ranks.speed_up`` found, and of ratios in a round."""
    one_s = ranks[0]["alone"]
    two_s, apart_s = (
        [max(times) for times in zip(*(found[name] for found in ranks), strict=True)]
        for name in ("together", "apart")
    )

    def ratio(others: list[float]) -> float:
        return statistics.median(one / other for one, other in zip(one_s, others, strict=True))

    return {
        "one_ms": 1e3 * statistics.median(one_s),
        "two_ms": 1e3 * statistics.median(two_s),
        "apart_ms": 1e3 * statistics.median(apart_s),
        "ratio": ratio(two_s),
        "apart_ratio": ratio(apart_s),
        "same": all(found["same_bits"] for found in ranks),
    }


def write_rows(path: Path, count: int) -> None:
    """A file of distinct images, on the disk and in the page cache."""
    base = stored_images(min(2048, count), 3, 64, torch.uint8)
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (count, 3, 64, 64)}
        )
        for number, first in enumerate(range(0, count, len(base))):
            block = base.roll(17 * number, dims=1)[: count - first]
            bits = torch.randint(0, 4, block.shape, dtype=torch.uint8, generator=generator)
            file.write((block ^ bits).numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())


def read_once(path: Path) -> None:
    """Read a file through, into one buffer."""
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        at = 0
        while count := os.preadv(file.fileno(), [buffer], at):
            at += count


def forget(path: Path) -> None:
    """Ask the system to drop the file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def streaming(path: Path, rounds: int) -> list[dict[str, Any]]:
    """Calls that stream the file, and reading it once, in turn; from the cache and the disk."""
    streamed = TrainingSet.open(path, in_memory=False)
    denoiser = EmpiricalDenoiser(streamed)
    kept = EmpiricalDenoiser(TrainingSet.open(path, in_memory=True))
    rows = torch.from_numpy(np.load(path, mmap_mode="r")[:1000].copy()).reshape(-1, FEATURES)
    found = []
    for sigma in SIGMAS:
        for batch in BATCHES:
            x = noisy(rows, batch, sigma).reshape(batch, 3, 64, 64)
            same = torch.equal(denoiser(x, sigma), kept(x, sigma))
            for place in ("cache", "disk"):
                _say(f"streaming from the {place}, B = {batch}, sigma = {sigma:g}")
                times: dict[str, list[float]] = {"read": [], "stream": []}
                calls: dict[str, Callable[[], object]] = {
                    "read": lambda: read_once(path),
                    "stream": lambda: denoiser(x, sigma),  # noqa: B023
                }
                for _ in range(rounds):
                    for name, call in calls.items():
                        if place == "disk":
                            forget(path)
                        times[name].append(_seconds(call))
                read_s, stream_s = (statistics.median(times[name]) for name in times)
                found.append(
                    {
                        "place": place,
                        "sigma": sigma,
                        "batch": batch,
                        "read_s": read_s,
                        "stream_s": stream_s,
                        "ratio": stream_s / read_s,
                        "gb_s": path.stat().st_size / stream_s / 1e9,
                        "same": same,
                    }
                )
    return found


def peak_mib(path: Path) -> dict[str, float]:
    """Anonymous memory of calls that stream the file, beyond what the process had, in MiB."""
    line = [sys.executable, "-m", "benchmarks.scale_measure", str(path)]
    place = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(scale_ranks.ROOT)]))
    environment = os.environ | {"PYTHONPATH": place}
    done = subprocess.run(
        line, cwd=scale_ranks.ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _peaks(path: Path) -> dict[str, float]:
    streamed = TrainingSet.open(path, in_memory=False)
    denoiser = EmpiricalDenoiser(streamed)
    warm = EmpiricalDenoiser(TrainingSet(torch.zeros((2, 3, 64, 64), dtype=torch.uint8)))
    warm(torch.zeros(1, 3, 64, 64), 1.0)
    found = {}
    base = _anonymous_bytes()
    for batch in (1, 64, 256):
        x = torch.zeros(batch, 3, 64, 64)
        with _watching() as seen:
            denoiser(x, 1.0)
        found[str(batch)] = (max(seen) - base) / MIB
    return found


@contextmanager
def _watching() -> Iterator[list[int]]:
    """Anonymous memory, looked at every few milliseconds."""
    seen = [_anonymous_bytes()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(_anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/status does not tell RssAnon")


def table_of(record: dict[str, Any]) -> str:
    """A record for people, as markdown."""
    sizes, merge = record["sizes"], record["merge"]
    versions = record["versions"]
    lines = [
        f"{record['machine']}, {record['cpus']} cpus, {record['threads']} threads; diffgen "
        f"{versions['diffgen']}, torch {versions['torch']}, {record['date']}.",
        "",
        f"Streaming {sizes['file_bytes'] / 1e9:g} GB of uint8, against reading the file once:",
        "",
        "| from | sigma | B | reading once, s | streaming, s | ratio | GB/s | bits of memory |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row['place']} | {row['sigma']:g} | {row['batch']} | {row['read_s']:.2f} | "
        f"{row['stream_s']:.2f} | {row['ratio']:.2f} | {row['gb_s']:.2f} | {_yes(row['same'])} |"
        for row in record["streaming"]
    ]
    peaks = ", ".join(f"{mib:.0f} MiB at B = {batch}" for batch, mib in record["peak_mib"].items())
    lines += [
        "",
        f"Peak anonymous memory of these calls, norms included: {peaks}.",
        "",
        f"Two processes of one thread against one, {sizes['count']:,} x {sizes['features']:,}; "
        "beside it two that each go through half of the rows and share nothing, which is what the "
        "machine gives:",
        "",
        "| B | sigma | one, ms | two, ms | nothing shared, ms | one / two | one / nothing shared | "
        "bits of one |",
        "|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row['batch']} | {row['sigma']:g} | {row['one_ms']:.1f} | {row['two_ms']:.1f} | "
        f"{row['apart_ms']:.1f} | {row['ratio']:.2f} | {row['apart_ratio']:.2f} | "
        f"{_yes(row['same'])} |"
        for row in record["speed_up"]
    ]
    lines += [
        "",
        f"Merging four processes at B = 64, sigma = 80: {merge['merge_ms']:.1f} ms, and "
        f"{merge['agree_ms']:.1f} ms for the steps in which they agree, beside a pass of "
        f"{merge['pass_ms']:.0f} ms: {100 * merge['share']:.1f}%; "
        f"{max(merge['bytes_sent']) / 1e6:.2f} MB sent by one of them, "
        f"{sum(merge['bytes_sent']) / 1e6:.2f} MB by all. Another {merge['rest_ms']:.1f} ms goes "
        "to what one process does as well.",
    ]
    return "\n".join(lines)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(json.dumps(_peaks(Path(sys.argv[1]))))
