"""What ImageNet-64 costs at every scale, counted: the tables of ``docs/scale.md``.

    python -m benchmarks.scale                    # the counts, as JSON
    python -m benchmarks.scale --write            # into results/ and docs/scale.md
    python -m benchmarks.scale --simulate         # the same code in gloo processes, small
    python -m benchmarks.scale --measure          # this machine: see benchmarks.scale_measure

Counts come from the functions that streaming and sharding go by. Times are derived from the
bandwidths below, which are of data sheets or assumed, and nothing that was measured.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
# An installed diffgen has its compiled parts, the checkout may not.
if __name__ == "__main__" and str(_ROOT) in sys.path:
    sys.path.remove(str(_ROOT))
    sys.path.append(str(_ROOT))

import torch  # noqa: E402

from benchmarks import scale_ranks  # noqa: E402
from benchmarks.results import machine_name  # noqa: E402
from diffgen.cost import counts  # noqa: E402
from diffgen.sharding.cut import bounds  # noqa: E402
from diffgen.streaming.store import queries_of_pass  # noqa: E402

RESULTS = Path(__file__).parent / "results"
COUNTS = RESULTS / "scale-counts.json"
PAGE = _ROOT / "docs" / "scale.md"

IMAGENET = counts.SetSize((1_281_167, 3, 64, 64), torch.uint8, labelled=True, measured=True)
BATCHES = (1, 8, 64, 256, 1024)
WORLDS = (1, 2, 4, 8, 32)
GPU_WORLDS = (1, 8, 32)

HBM_BYTES_S = 3.35e12
INT8_OPERATIONS_S = 1.979e15
"""Of an H100 SXM, by its data sheet; dense."""

SOCKET_BYTES_S = 2e9
"""Of a message, in the memory of a machine or over 25 Gbit/s Ethernet: assumed."""

PROCESSES_OF_MACHINE = 8

PLANES = 6
"""Products of 8-bit planes for each query, row and feature at high noise, without a screen: three
for the logits and three for the mean (``docs/numerics-integers.md``)."""

SIMULATED = (
    {"size": 2, "count": 4096, "features": 3072, "batch": 8},
    {"size": 4, "count": 4096, "features": 3072, "batch": 8},
    {"size": 2, "count": 4096, "features": 3072, "batch": 4, "own_queries": True},
    {"size": 2, "count": 4096, "features": 3072, "batch": 8, "stored": "float32"},
    {"size": 2, "count": 2048, "features": 3072, "batch": 900},
)
"""Calls that are run to compare what is counted."""

Row = dict[str, Any]


def one_process() -> list[Row]:
    """Calls of a process that streams the set from its file."""
    found = []
    for batch in BATCHES:
        cost = counts.call_cost(IMAGENET, batch, stays=True)
        memory = counts.memory_of_pass(IMAGENET, batch, stays=True)
        found.append(
            {
                "batch": batch,
                "passes": cost.passes,
                "read_gb": cost.read_bytes / 1e9,
                **{f"{name}_mb": nbytes / 1e6 for name, nbytes in memory.items() if nbytes},
                "total_mb": sum(memory.values()) / 1e6,
            }
        )
    return found


def parts() -> list[Row]:
    """What each of several processes holds."""
    found = []
    at_once = queries_of_pass(IMAGENET.features)
    for size in WORLDS:
        owned = [bounds(IMAGENET.count, rank, size, torch.uint8) for rank in range(size)]
        first, stop = max(owned, key=lambda own: own[1] - own[0])
        memory = counts.memory_of_pass(IMAGENET, 64, stays=False, own=(first, stop))
        most = counts.most_queries_in_order(IMAGENET.count, size, IMAGENET.features)
        found.append(
            {
                "processes": size,
                "rows": stop - first,
                "rows_gb": memory["rows"] / 1e9,
                "norms_mb": memory["norms"] / 1e6,
                "labels_mb": memory["labels"] / 1e6,
                # More queries than a pass takes are taken in several passes.
                "same_bits_up_to": "any" if size == 1 or most >= at_once else most,
            }
        )
    return found


def traffic() -> list[Row]:
    """What a call sends: the same queries in all processes, or others in each."""
    state = counts.state_bytes(IMAGENET.features)
    found = []
    for size in WORLDS[1:]:
        near = size <= PROCESSES_OF_MACHINE
        for batch in (1, 64):
            sent = [
                counts.merge_bytes_sent(state, batch, rank, size, one_machine=near)
                for rank in range(size)
            ]
            apart = counts.gather_bytes_sent(IMAGENET.features, batch, size)
            found.append(
                {
                    "processes": size,
                    "batch": batch,
                    "message_mb": state * batch / 1e6,
                    "steps": counts.merge_steps(size, one_machine=near),
                    "most_mb": max(sent) / 1e6,
                    "all_mb": sum(sent) / 1e6,
                    "own_queries_mb": size * apart / 1e6,
                    "own_merge_mb": size * sum(sent) / 1e6,
                }
            )
    return found


def gpus() -> list[Row]:
    """Derived times of a call with 64 queries on H100s: the larger of two floors, and the merge."""
    batch, found = 64, []
    whole = IMAGENET.rows_bytes
    state = counts.merged_state_bytes(IMAGENET.features)
    held = {part["processes"]: part["rows"] * IMAGENET.row_bytes for part in parts()}
    for size in GPU_WORLDS:
        local = min(size, PROCESSES_OF_MACHINE)
        steps = counts.merge_steps(size, one_machine=size == local)
        products = 2 * PLANES * batch / INT8_OPERATIONS_S
        found.append(
            {
                "gpus": size,
                "part_gb": held[size] / 1e9,
                "host_gb": local * held[size] / 1e9,
                "read_ms": 1e3 * held[size] / HBM_BYTES_S,
                "products_ms": 1e3 * products * held[size],
                "merge_ms": 1e3 * steps * batch * state / SOCKET_BYTES_S,
                "copies_host_gb": local * whole / 1e9,
                "copies_read_ms": 1e3 * whole / HBM_BYTES_S,
                "copies_products_ms": 1e3 * products * whole / size,
            }
        )
    return found


def counted() -> dict[str, Any]:
    """All counts."""
    size = IMAGENET
    return {
        "set": {
            "rows": size.count,
            "features": size.features,
            "rows_gb": size.rows_bytes / 1e9,
            "float32_gb": 4 * size.rows_bytes / 1e9,
            "queries_of_pass": queries_of_pass(size.features),
        },
        "state_bytes": {
            "cpu_uint8": counts.state_bytes(size.features),
            "cpu_uint8_top_10": counts.state_bytes(size.features, top_k=10),
            "other": counts.merged_state_bytes(size.features),
            "other_functionals": counts.merged_state_bytes(size.features, functionals=3),
        },
        "assumed": {
            "hbm_bytes_s": HBM_BYTES_S,
            "int8_operations_s": INT8_OPERATIONS_S,
            "socket_bytes_s": SOCKET_BYTES_S,
            "planes": PLANES,
        },
        "one_process": one_process(),
        "parts": parts(),
        "traffic": traffic(),
        "gpus": gpus(),
    }


def simulate() -> list[dict[str, Any]]:
    """What processes send and how often they go through their rows, beside what is counted."""
    found = []
    for given in SIMULATED:
        arguments = {name: value for name, value in given.items() if name != "size"}
        found.append({**given, "ranks": scale_ranks.run("traffic", given["size"], **arguments)})
    return found


TABLES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "one_process": (
        ("B", "batch", "{:,}"),
        ("passes", "passes", "{:,}"),
        ("read, GB", "read_gb", "{:.1f}"),
        ("blocks, MB", "rows_mb", "{:.1f}"),
        ("norms", "norms_mb", "{:.1f}"),
        ("labels", "labels_mb", "{:.1f}"),
        ("queries, up to", "queries_mb", "{:.1f}"),
        ("together, MB", "total_mb", "{:.1f}"),
    ),
    "parts": (
        ("processes", "processes", "{:,}"),
        ("rows of each, up to", "rows", "{:,}"),
        ("GB", "rows_gb", "{:.2f}"),
        ("norms, MB", "norms_mb", "{:.1f}"),
        ("labels, MB", "labels_mb", "{:.1f}"),
        ("bits of one process up to B =", "same_bits_up_to", "{}"),
    ),
    "traffic": (
        ("processes", "processes", "{:,}"),
        ("B", "batch", "{:,}"),
        ("message, MB", "message_mb", "{:.2f}"),
        ("one after the other", "steps", "{:,}"),
        ("most by one, MB", "most_mb", "{:.2f}"),
        ("by all, MB", "all_mb", "{:.2f}"),
        ("own queries: these, MB", "own_queries_mb", "{:.2f}"),
        ("own queries: merge, MB", "own_merge_mb", "{:.2f}"),
    ),
    "gpus": (
        ("GPUs", "gpus", "{:,}"),
        ("part, GB", "part_gb", "{:.2f}"),
        ("host, GB", "host_gb", "{:.1f}"),
        ("reading, ms", "read_ms", "{:.2f}"),
        ("products, ms", "products_ms", "{:.2f}"),
        ("merge, ms", "merge_ms", "{:.1f}"),
        ("copies: host, GB", "copies_host_gb", "{:.1f}"),
        ("copies: reading, ms", "copies_read_ms", "{:.2f}"),
        ("copies: products, ms", "copies_products_ms", "{:.2f}"),
    ),
}
"""Tables of the page: heading, name and form of each column."""


def markdown(rows: Sequence[Row], columns: Sequence[tuple[str, str, str]]) -> str:
    """A table for people.

    Example:
        >>> print(markdown([{"n": 1234}], [("N", "n", "{:,}")]))
        | N |
        |---:|
        | 1,234 |
    """
    lines = [[title for title, _, _ in columns]]
    lines += [[form.format(row[name]) for _, name, form in columns] for row in rows]
    drawn = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([drawn[0], "|" + "---:|" * len(columns), *drawn[1:]])


def tables() -> dict[str, str]:
    """Every table of the page by its name, what was measured included."""
    made = counted()
    found = {name: markdown(made[name], columns) for name, columns in TABLES.items()}
    return found | {"measured": measured_table()}


def measured_table() -> str:
    """What was measured, one table for each machine."""
    from benchmarks.scale_measure import table_of

    found = [
        table_of(json.loads(path.read_text())) for path in sorted(RESULTS.glob("*-scale.json"))
    ]
    return "\n\n".join(found) or "Nothing yet."


def replaced(page: str, made: dict[str, str]) -> str:
    """The page with its tables: what is between ``<!-- table NAME -->`` and ``<!-- end -->``."""

    def put(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{made[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?\n<!-- end -->", put, page, flags=re.DOTALL)


def write(simulated: list[dict[str, Any]]) -> None:
    """Put the counts into ``results`` and the tables into the page."""
    record = counted() | {"simulated": simulated}
    COUNTS.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(replaced(PAGE.read_text(), tables()))


def main() -> None:
    """Count, simulate or measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write results/ and docs/scale.md")
    parser.add_argument("--simulate", action="store_true", help="run small sets in gloo processes")
    parser.add_argument("--measure", action="store_true", help="measure this machine: minutes")
    parser.add_argument("--tiny", action="store_true", help="with --measure: does it run?")
    parser.add_argument("--folder", type=Path, help="where --measure puts its 4 GB")
    args = parser.parse_args()
    if args.measure:
        from benchmarks.scale_measure import measure

        record = measure(args.folder, tiny=args.tiny)
        if not args.tiny:
            place = RESULTS / f"{machine_name()}-scale.json"
            place.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps(record, indent=1))
        return
    known = json.loads(COUNTS.read_text())["simulated"] if COUNTS.exists() else []
    simulated = simulate() if args.simulate else known
    if args.write:
        write(simulated)
    else:
        print(json.dumps(counted() | {"simulated": simulated}, indent=1))


if __name__ == "__main__":
    main()
