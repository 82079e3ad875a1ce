"""Tunes the Triton kernels for the GPU of this machine: `python -m benchmarks.gpu_tuning`.

Kernel by kernel, neighbours of its configuration (warps, stages, features of a block) are timed
against it in turn, within whole calls of diffgen; one that is faster by `GAIN` takes its place, and
its neighbours are next. A neighbour that does not compile, or changes a result, is passed over.

What was found becomes ``diffgen/backends/triton/tuned/<architecture>.json``, to be committed with
the compile gates' new table (`python -m tests.gates.report --write`).
"""

from __future__ import annotations

import argparse
import datetime
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_ROOT = Path(__file__).parent.parent
# What is written belongs to the checkout, so it is the checkout's that is tuned.
if __name__ == "__main__" and str(_ROOT) not in sys.path:
    sys.path.insert(0, str(_ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.cases import case_name, chosen  # noqa: E402
from benchmarks.gate import LOGSUMEXP_PROMISE, LOGSUMEXP_RELATIVE, MEAN_PROMISE  # noqa: E402
from benchmarks.gpu import gpu_name, interleaved  # noqa: E402
from benchmarks.images import VALUE_RANGE  # noqa: E402
from benchmarks.store import Store  # noqa: E402
from diffgen import TrainingSet, __version__  # noqa: E402
from diffgen.backends.triton import bytes_configs, float_configs, tuned  # noqa: E402
from diffgen.backends.triton.configs import (  # noqa: E402
    Config,
    Table,
    architecture_of,
)
from diffgen.functional import moments  # noqa: E402
from diffgen.gpu_rates import Clock, event_seconds  # noqa: E402
from diffgen.set_view import SetView  # noqa: E402

GAIN = 0.03
"""Share of a call's time that a configuration has to save: less is noise."""

FEATURE_BLOCKS = ("BLOCK_FEATURES", "BLOCK")
"""Sizes that may change without their caller's layout."""

WARPS, STAGES, FEATURES = (1, 16), (1, 5), (32, 1024)
"""The least and the most that is tried."""

SHAPES = tuple((batch, sigma) for batch in (1, 8, 64, 256) for sigma in (0.3, 2.0, 80.0))

Fields = tuple[Tensor, ...]


@dataclass(frozen=True)
class Workload:
    """What kernels of one table are timed by.

    Attributes:
        table: The kernels' defaults.
        calls: Whole calls, each of which returns mean and logsumexp.
        exact: Whether every configuration owes the same bits.
    """

    table: Table
    calls: Sequence[Callable[[], Fields]]
    exact: bool


def neighbors(config: Config) -> list[Config]:
    """Configurations that differ from one in a single number, by one step."""
    found = [
        replace(config, warps=warps)
        for warps in (config.warps // 2, config.warps * 2)
        if WARPS[0] <= warps <= WARPS[1]
    ]
    found += [
        replace(config, stages=stages)
        for stages in (config.stages - 1, config.stages + 1)
        if STAGES[0] <= stages <= STAGES[1]
    ]
    return found + [
        replace(config, blocks={**config.blocks, block: size})
        for block in FEATURE_BLOCKS
        for size in (config.blocks.get(block, 0) // 2, config.blocks.get(block, 0) * 2)
        if FEATURES[0] <= size <= FEATURES[1]
    ]


def search(
    work: Workload, architecture: str, clock: Clock, say: Callable[[str], object] = print
) -> dict[str, Config]:
    """The faster configurations of a table's kernels.

    Args:
        work: The kernels and what they are timed by.
        architecture: The device's.
        clock: How a call is timed.
        say: Gets a line for each configuration that was tried.

    Returns:
        By kernel; none for those whose configuration stays.
    """
    wanted = [call() for call in work.calls]
    better: dict[str, Config] = {}
    for kernel in work.table:
        best = tuned.chosen(work.table, kernel, architecture)
        tried, waiting = [best], neighbors(best)
        while waiting:
            config = waiting.pop(0)
            tried.append(config)
            saved = _saved(work, kernel, best, config, wanted, clock)
            outcome = saved if isinstance(saved, str) else f"{saved:+.1%} of the time saved"
            shape = f"{config.blocks} warps {config.warps} stages {config.stages}"
            say(f"{kernel:<16} {shape}: {outcome}")
            if isinstance(saved, float) and saved >= GAIN:
                best = better[kernel] = config
                waiting = [one for one in neighbors(best) if one not in tried]
    return better


def _saved(
    work: Workload, kernel: str, old: Config, new: Config, wanted: list[Fields], clock: Clock
) -> float | str:
    """Share of the time that a configuration saves, or why it cannot stand."""

    def under(config: Config, call: Callable[[], Fields]) -> Callable[[], Fields]:
        def run() -> Fields:
            with tuned.trying(kernel, config):
                return call()

        return run

    try:
        found = [under(new, call)() for call in work.calls]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}"
    if not all(_same(*pair, exact=work.exact) for pair in zip(found, wanted, strict=True)):
        return "other results"
    pairs = [under(config, call) for call in work.calls for config in (old, new)]
    times = [statistics.median(rounds) for rounds in interleaved(pairs, clock)]
    ratios = [
        math.log(after / before) for before, after in zip(times[::2], times[1::2], strict=True)
    ]
    return 1 - math.exp(statistics.fmean(ratios))


def _same(found: Fields, wanted: Fields, *, exact: bool) -> bool:
    if exact:
        return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    # Each may be off by the promise, to either side.
    (mean, mass), (other, other_mass) = found, wanted
    allowed = (LOGSUMEXP_RELATIVE * other_mass.abs()).clamp(min=LOGSUMEXP_PROMISE)
    return bool(
        ((mean - other).abs() <= 2 * MEAN_PROMISE).all()
        and ((mass - other_mass).abs() <= 2 * allowed).all()
    )


def workloads(device: torch.device, backend: str = "triton") -> list[Workload]:
    """The moments of an image set, 8-bit and float32, from few queries to many."""
    store = Store()
    found = []
    for dtype, table in (("uint8", bytes_configs.CONFIGS), ("float32", float_configs.CONFIGS)):
        names = {case_name("cifar", batch, sigma, dtype) for batch, sigma in SHAPES}
        cases = [case for case in chosen(full=False) if case.name in names]
        store.open(cases)
        values = {"value_range": VALUE_RANGE} if dtype == "uint8" else {}
        points = TrainingSet(store.images(cases[0]).to(device), **values)
        view = points.view()

        def call(x: Tensor, sigma: Tensor, view: SetView = view) -> Fields:
            # What a denoiser asks for: functionals would add work that most calls do not have.
            found = moments(view, x, sigma, mean_dtype=x.dtype, backend=backend, check_values=False)
            return found.mean, found.logsumexp

        calls = []
        for case in cases:
            x = store.queries(case).to(device).flatten(1)
            sigma = torch.full((len(x),), case.sigma, dtype=torch.float64, device=device)
            calls.append(lambda x=x, sigma=sigma, call=call: call(x, sigma))
        found.append(Workload(table, calls, exact=dtype == "uint8"))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Tunes and writes; without a GPU it says so and does nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tuning", description=__doc__)
    parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("SKIPPED tuning: PyTorch sees no GPU")
        return 0
    device = torch.device("cuda", torch.cuda.current_device())
    architecture = architecture_of(device)
    found = dict(tuned.tuned(architecture))
    for work in workloads(device):
        found |= search(work, architecture, event_seconds)
    settings = {
        "gpu": gpu_name(device),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "diffgen": __version__,
    }
    print(f"wrote {tuned.write(architecture, found, settings)}")
    return 0


def _triton_version() -> str:
    import triton

    return str(triton.__version__)


if __name__ == "__main__":
    sys.exit(main())
