"""Where the time of a call goes on a GPU, kernel by kernel: `python -m benchmarks.gpu_profile`.

For each backend of a GPU, batch and noise level: the time of a call by CUDA events, the time until
Python has it back, the sum of its kernels and the slowest of them by PyTorch's profiler. The set is
that of `python -m benchmarks.gpu`. Nothing is compared and nothing judged here. The rows become
``gpu_results/<gpu>-profile.csv``.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

_ROOT = Path(__file__).parent.parent
# An installed diffgen has its compiled parts, the checkout may not.
if __name__ == "__main__" and str(_ROOT) in sys.path:
    sys.path.remove(str(_ROOT))
    sys.path.append(str(_ROOT))

import torch  # noqa: E402

from benchmarks.cases import case_name, chosen  # noqa: E402
from benchmarks.gpu import RESULTS, event_seconds, gpu_name, stamp_of  # noqa: E402
from benchmarks.images import VALUE_RANGE  # noqa: E402
from benchmarks.store import Store  # noqa: E402
from diffgen import EmpiricalDenoiser, TrainingSet  # noqa: E402

PAIRS = (("uint8", "cuda"), ("uint8", "triton"), ("float32", "triton"))
BATCHES = (1, 8, 64, 256)
SIGMAS = (0.3, 2.0, 80.0)
CALLS = 10
PROFILED = 3
SHOWN = 6
COLUMNS = (
    *("dtype", "backend", "B", "sigma", "time_ms", "host_ms", "kernels_ms", "launches"),
    *("slowest", "date", "commit", "gpu", "torch", "triton", "cuda"),
)

Row = dict[str, str]


def kernel_name(full: str) -> str:
    """A kernel's own name, without namespaces and arguments.

    Example:
        >>> kernel_name("void diffgen::cuda::(anonymous namespace)::dense_sums<true, 3>(Call)")
        'dense_sums<true, 3>'
    """
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|void ", "", full).partition("(")[0]
    outside, bracket, inside = name.partition("<")
    return outside.rpartition("::")[2] + bracket + inside


def summed(events: Iterable[tuple[str, float]], calls: int) -> Row:
    """What the profiler saw of so many calls: launches and kernel times of one.

    Args:
        events: Name and microseconds of each kernel that ran.
        calls: How many calls they are of.
    """
    times: dict[str, float] = defaultdict(float)
    count: Counter[str] = Counter()
    for name, microseconds in events:
        times[kernel_name(name)] += microseconds / calls
        count[kernel_name(name)] += 1
    slowest = sorted(times.items(), key=lambda pair: -pair[1])[:SHOWN]
    return {
        "kernels_ms": f"{sum(times.values()) / 1e3:.3f}",
        "launches": f"{sum(count.values()) / calls:.0f}",
        "slowest": "; ".join(
            f"{name} {took:.0f} us x{count[name] / calls:.0f}" for name, took in slowest
        ),
    }


def profile(call: Callable[[], object]) -> Row:
    """One row's times of a call that has run before."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    host = (time.perf_counter() - start) / CALLS
    torch.cuda.synchronize()
    took = event_seconds(call, CALLS)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(PROFILED):
            call()
        torch.cuda.synchronize()
    events = [
        (event.name, float(event.device_time))
        for event in seen.events() or []
        if event.device_type.name == "CUDA"
    ]
    times = {"time_ms": f"{took * 1e3:.3f}", "host_ms": f"{host * 1e3:.3f}"}
    return times | summed(events, PROFILED)


def write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Writes rows, the columns in their order."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def run(device: torch.device, stamp: Row) -> list[Row]:
    """All rows.

    Args:
        device: A GPU.
        stamp: What all rows share.
    """
    store, rows = Store(), []
    for dtype, backend in PAIRS:
        names = [case_name("cifar", batch, sigma, dtype) for batch in BATCHES for sigma in SIGMAS]
        cases = [case for case in chosen(full=False) if case.name in names]
        store.open(cases)
        values = {"value_range": VALUE_RANGE} if dtype == "uint8" else {}
        points = TrainingSet(store.images(cases[0]).to(device), **values)
        denoiser = EmpiricalDenoiser(points, backend=backend)
        for case in cases:
            x = store.queries(case).to(device)
            denoiser(x, case.sigma)
            found = profile(lambda x=x, sigma=case.sigma: denoiser(x, sigma))  # noqa: B023
            asked = {"dtype": dtype, "backend": backend, "B": str(case.batch)}
            rows.append(asked | {"sigma": f"{case.sigma:g}"} | found | stamp)
            print(" ".join(rows[-1].values()), flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Profiles and writes; without a GPU it says so and does nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_profile", description=__doc__)
    parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("SKIPPED GPU profile: PyTorch sees no GPU")
        return 0
    device = torch.device("cuda", torch.cuda.current_device())
    rows = run(device, stamp_of(device) | {"torch": torch.__version__})
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{gpu_name(device)}-profile.csv"
    write(path, rows)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
