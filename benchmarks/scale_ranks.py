"""What the processes of a sharded set do in ``benchmarks.scale``: traffic, speed-up, merge."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from diffgen import EmpiricalDenoiser, TrainingSet
from diffgen.cost import counts
from diffgen.selfcheck import stored_images
from diffgen.sharding.cut import bounds

ROOT = Path(__file__).parent.parent


def images(count: int, features: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Smooth random images, the same in every process, ``(count, features)``."""
    side = round((features / 3) ** 0.5)
    made = stored_images(min(count, 1000), 3, side, torch.uint8)
    generator = torch.Generator().manual_seed(1)
    blocks = []
    for first in range(0, count, len(made)):
        block = made.roll(first // len(made), dims=1)[: count - first]
        # Distinct rows, which shared low bits would not be.
        blocks.append(
            block ^ torch.randint(0, 4, block.shape, dtype=torch.uint8, generator=generator)
        )
    rows = torch.cat(blocks)
    return rows if dtype == torch.uint8 else (rows / 127.5 - 1).to(dtype)


def noisy(rows: torch.Tensor, batch: int, sigma: float, seed: int = 0) -> torch.Tensor:
    """Noisy points of some of the rows, ``(batch, D)``."""
    generator = torch.Generator().manual_seed(seed)
    points = rows[torch.arange(batch) * 97 % len(rows)] / 127.5 - 1
    return points + sigma * torch.randn(points.shape, generator=generator)


def traffic(
    count: int, features: int, batch: int, own_queries: bool = False, stored: str = "uint8"
) -> dict[str, int]:
    """One call over a sharded set, in one of its processes.

    Args:
        count: Rows of the set.
        features: D.
        batch: Queries of each process.
        own_queries: Whether each process has others.
        stored: Type of the rows.

    Returns:
        What it sent and how often it went through its rows, counted and as it happened.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = images(count, features)
    dtype = getattr(torch, stored)
    data = rows if dtype == torch.uint8 else (rows / 127.5 - 1).to(dtype)
    part = TrainingSet(data).shard(rank, size)
    store = part._contents.store
    assert store is not None
    ranks, place = store.exchange._ranks, store.place  # type: ignore[attr-defined]
    denoiser = EmpiricalDenoiser(part)
    query = noisy(rows, batch, 1.0, seed=rank if own_queries else 0)
    denoiser(query, 1.0)
    sent, passes = ranks.bytes_sent, place._shared.passes
    denoiser(query, 1.0)
    queries = batch * size if own_queries else batch
    state = counts.state_bytes if dtype == torch.uint8 else counts.merged_state_bytes
    counted = counts.merge_bytes_sent(state(features), queries, rank, size, one_machine=True)
    if own_queries:
        counted += counts.gather_bytes_sent(features, batch, size)
    return {
        "rank": rank,
        "sent": ranks.bytes_sent - sent,
        "counted": counted,
        "passes": place._shared.passes - passes,
        "counted_passes": counts.call_cost(
            counts.SetSize((count, features), dtype), queries, stays=True
        ).passes,
    }


def speed_up(count: int, features: int, batch: int, sigma: float, rounds: int) -> dict[str, Any]:
    """A call in one process with one thread, and in all that share the set, in turn.

    What the machine gives is measured with them: processes that each go through their rows at the
    same time, and share nothing.

    Returns:
        Seconds of each round: ``alone``, of the first process, ``together`` and ``apart``; and
        whether the bits are those of one process.
    """
    torch.set_num_threads(1)
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = images(count, features)
    whole = EmpiricalDenoiser(TrainingSet(rows))
    shared = EmpiricalDenoiser(TrainingSet(rows).shard(rank, size))
    first, stop = bounds(count, rank, size, rows.dtype)
    own = EmpiricalDenoiser(TrainingSet(rows[first:stop]))
    query = noisy(rows, batch, sigma)
    same = torch.equal(whole(query, sigma), shared(query, sigma))
    own(query, sigma)
    times: dict[str, list[float]] = {"alone": [], "together": [], "apart": []}
    for _ in range(rounds):
        dist.barrier()
        if rank == 0:
            times["alone"].append(_seconds(lambda: whole(query, sigma)))
        for name, denoiser in (("together", shared), ("apart", own)):
            dist.barrier()
            times[name].append(_seconds(lambda: denoiser(query, sigma)))  # noqa: B023
    return {**times, "same_bits": same}


def merge(count: int, features: int, batch: int, sigma: float, rounds: int) -> dict[str, float]:
    """The time of a call that is not the pass over the own rows.

    Each step is timed from when all processes have come to it: that some take longer for their
    rows than others is in the pass of those.

    Returns:
        Milliseconds of the pass, of the merge, of the steps in which the processes agree, and of
        the rest, which one process takes as well; and the bytes that were sent.
    """
    torch.set_num_threads(1)
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = images(count, features)
    part = TrainingSet(rows).shard(rank, size)
    query = noisy(rows, batch, sigma)
    store = part._contents.store
    assert store is not None
    ranks = store.exchange._ranks  # type: ignore[attr-defined]
    spent: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any) -> Any:
            start = time.perf_counter()
            made = call(*given)
            spent[name] += time.perf_counter() - start
            return made

        return wrapped

    def after_wait(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any) -> Any:
            spent["wait"] += _seconds(dist.barrier)
            return call(*given)

        return wrapped

    store.place.run = timed("pass", store.place.run)  # type: ignore[method-assign]
    ranks.pass_on = after_wait(timed("merge", ranks.pass_on))
    ranks.exchange = after_wait(timed("agree", ranks.exchange))
    denoiser = EmpiricalDenoiser(part)
    found: list[dict[str, float]] = []
    for _ in range(1 + rounds):
        spent.clear()
        spent.update(dict.fromkeys(("pass", "merge", "agree", "wait"), 0.0))
        sent = ranks.bytes_sent
        dist.barrier()
        call = _seconds(lambda: denoiser(query, sigma))
        spent["rest"] = call - sum(spent.values())
        found.append(dict(spent))
    middle = {name: statistics.median(one[name] for one in found[1:]) for name in spent}
    return {
        **{f"{name}_ms": 1e3 * middle[name] for name in ("pass", "merge", "agree", "rest")},
        "bytes_sent": float(ranks.bytes_sent - sent),
    }


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "traffic": traffic,
    "speed_up": speed_up,
    "merge": merge,
}


def run(task: str, size: int, **arguments: Any) -> list[dict[str, Any]]:
    """What each process of a gloo group returns for a task, in the order of ranks."""
    with tempfile.TemporaryDirectory() as folder:
        line = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(size), "-m", "benchmarks.scale_ranks"),
            *(task, json.dumps(arguments), folder),
        ]
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(ROOT)]))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        subprocess.run(line, cwd=ROOT, env=environment, check=True)
        return [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(size)]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(task: str, arguments: str, folder: str) -> None:
    """One process of ``run``."""
    dist.init_process_group("gloo")
    try:
        found = TASKS[task](**json.loads(arguments))
        (Path(folder) / str(dist.get_rank())).write_text(json.dumps(found))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
