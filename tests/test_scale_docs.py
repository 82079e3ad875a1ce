"""``docs/scale.md``: its numbers are those of the code, its scripts and commands run."""

from __future__ import annotations

import json
import mmap
import os
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_suite import load_suite
from processes import run_ranks

load_suite()

from benchmarks import scale, scale_measure, scale_ranks  # noqa: E402
from diffgen.backends import native  # noqa: E402
from diffgen.cli.main import main, parser  # noqa: E402
from diffgen.cost import counts  # noqa: E402
from diffgen.sharding import ranks, region  # noqa: E402
from diffgen.sharding.agreement import PROBES  # noqa: E402
from diffgen.streaming import exact, opening, store  # noqa: E402

PAGE = scale.PAGE.read_text()
COMMITTED = json.loads(scale.COUNTS.read_text())

needs_native = pytest.mark.skipif(
    native.load_native() is None, reason=native.why_not_native() or "native core"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


SCRIPTS = {re.match(r"# (\w+\.py)", code)[1]: code for code in blocks("py")}


# Numbers


def test_committed_counts_are_those_of_the_code():
    assert json.loads(json.dumps(scale.counted())) == {
        name: value for name, value in COMMITTED.items() if name != "simulated"
    }


def test_tables_are_those_of_the_code():
    assert set(re.findall(r"<!-- table (\w+) -->", PAGE)) == set(scale.tables())
    assert scale.replaced(PAGE, scale.tables()) == PAGE


def test_another_number_in_a_table_is_found():
    changed = PAGE.replace("| 8 | 160,768 |", "| 8 | 160,769 |")
    assert changed != PAGE and scale.replaced(changed, scale.tables()) != changed


def test_numbers_of_the_text_are_those_of_the_code():
    size, made = scale.IMAGENET, scale.counted()
    state = made["state_bytes"]
    assert torch.uint8 == size.dtype and scale.PLANES == 6
    for said in (
        f"{size.count:,} images of 3 x 64 x 64, D = {size.features:,}",
        f"{size.rows_bytes / 1e9:.1f} GB in uint8",
        f"({4 * size.rows_bytes / 1e9:.1f} GB in float32)",
        f"more than {opening.MOST_BYTES_IN_MEMORY >> 20} MiB: the rows stay",
        f"More queries than {made['set']['queries_of_pass']} take several passes",
        f"{counts.FLOAT64} bytes a row for the norms of its own rows, and of",
        f"of the whole set {counts.INT64} a row for the norms that a packed set brings",
        f"{2 * counts.INT64} a row for labels and their order and {counts.FLOAT64} for weights",
        f"at most {store.STATE_BYTES_EACH} bytes a feature and query, and no more",
        f"{state['cpu_uint8']:,} bytes a query",
        f"({state['cpu_uint8_top_10']:,} with the 10 nearest rows)",
        f" and {state['other']:,} otherwise",
        f"reading at {scale.HBM_BYTES_S / 1e12:.2f} TB/s",
        f"8-bit products at {scale.INT8_OPERATIONS_S / 1e12:,.0f}",
        f"a merge at {scale.SOCKET_BYTES_S / 1e9:g} GB/s, which is assumed",
        f"at most {exact.KEPT_BYTES >> 20} MiB. The table above",
        f"at most {region.MOST_BYTES >> 20} MiB a process",
        f"within `timeout_s`, {ranks.TIMEOUT_S:.0f} s",
        f"within `patience_s`, {ranks.PATIENCE_S:,.0f} s",
        f"labels, weights, {PROBES} rows",
    ):
        assert said.replace("\n", " ") in PAGE.replace("\n", " "), said


# Counts against what runs


def traffic(**arguments) -> dict[str, int]:
    return scale_ranks.traffic(**arguments)


def agrees(found: dict[str, int], size: int) -> bool:
    """Beside the posteriors there are names, digests and numbers, for each other process."""
    others = found["sent"] - found["counted"]
    return 0 <= others < 400 * (size - 1) and found["passes"] == found["counted_passes"]


CALLS = [
    (2, {"count": 2048, "features": 192, "batch": 8}),
    (4, {"count": 4096, "features": 192, "batch": 40}),
    (2, {"count": 2048, "features": 192, "batch": 5, "own_queries": True}),
    (2, {"count": 512, "features": 192, "batch": 8, "stored": "float32"}),
]


@needs_native
@pytest.mark.parametrize("size, arguments", CALLS)
def test_processes_send_what_is_counted(size, arguments):
    done = run_ranks("test_scale_docs:traffic", size, arguments=arguments)
    found = [outcome.result() for outcome in done]
    assert all(agrees(one, size) for one in found), found
    assert all(one["counted"] > 10_000 for one in found)


def test_the_committed_simulation_agrees_with_the_counts():
    made = COMMITTED["simulated"]
    assert [{k: v for k, v in call.items() if k != "ranks"} for call in made] == list(
        scale.SIMULATED
    )
    for call in made:
        size, features = call["size"], call["features"]
        for found in call["ranks"]:
            assert agrees(found, size), found
            queries = call["batch"] * (size if call.get("own_queries") else 1)
            floats = call.get("stored", "uint8") != "uint8"
            state = (counts.merged_state_bytes if floats else counts.state_bytes)(features)
            expected = counts.merge_bytes_sent(
                state, queries, found["rank"], size, one_machine=True
            )
            if call.get("own_queries"):
                expected += counts.gather_bytes_sent(features, call["batch"], size)
            assert found["counted"] == expected


# Scripts and commands


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys) -> Path:
    """Where ``imagenet-64`` is a small set."""
    rows = scale_ranks.images(2100, 48).reshape(-1, 3, 4, 4)
    np.save(tmp_path / "rows.npy", rows.numpy())
    assert main(["pack", str(tmp_path / "rows.npy"), str(tmp_path / "imagenet-64")]) == 0
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_script(folder: str, code: str) -> None:
    os.chdir(folder)
    exec(compile(code, "script", "exec"), {"__name__": "__main__"})


def ranks_run(name: str, folder: Path) -> None:
    code = SCRIPTS[name]
    for outcome in run_ranks(
        "test_scale_docs:run_script",
        2,
        arguments={"folder": str(folder), "code": code},
        init="none",
    ):
        outcome.result()


@needs_native
def test_scripts_give_the_same_in_one_process_and_in_two(folder, monkeypatch, one_thread):
    assert set(SCRIPTS) == {"one_machine.py", "copies.py", "sharded.py"}
    run_script(str(folder), SCRIPTS["one_machine.py"])
    alone = torch.load(folder / "samples.pt")
    (folder / "samples.pt").unlink()
    ranks_run("sharded.py", folder)
    assert torch.equal(torch.load(folder / "samples.pt"), alone)
    assert alone.shape == (64, 3, 4, 4) and alone.isfinite().all()
    ranks_run("copies.py", folder)
    first, second = (torch.load(folder / f"samples-{rank}.pt") for rank in range(2))
    assert first.shape == (8, 3, 4, 4) and not torch.equal(first, second)


def commands() -> list[str]:
    lines = [
        line.split("  #")[0].strip() for code in blocks("console") for line in code.splitlines()
    ]
    return [line for line in lines if line]


def test_commands_are_understood():
    found = commands()
    assert len(found) == 6
    for line in found:
        words = shlex.split(line)
        if words[0] == "torchrun":
            from torch.distributed.run import get_args_parser

            launched = get_args_parser().parse_args(words[1:])
            if not launched.module:
                assert launched.training_script in SCRIPTS
                continue
            words = [launched.training_script, *launched.training_script_args]
        assert words[0] == "diffgen"
        parser().parse_args(words[1:])
    assert sum("--nnodes 4 --nproc-per-node 8" in line for line in found) == 1


# The measurement


def test_streaming_is_measured_against_reading(tmp_path, capsys, one_thread, monkeypatch):
    monkeypatch.setattr(scale_measure, "BATCHES", (1,))
    path = tmp_path / "rows.npy"
    scale_measure.write_rows(path, 1100)
    written = np.load(path)
    assert written.shape == (1100, 3, 64, 64) and len(np.unique(written[:, 0, 0, :8], axis=0)) > 900
    found = scale_measure.streaming(path, rounds=1)
    assert [(row["place"], row["sigma"]) for row in found] == [
        (place, sigma) for sigma in scale_measure.SIGMAS for place in ("cache", "disk")
    ]
    for row in found:
        assert row["same"] and row["ratio"] == row["stream_s"] / row["read_s"] > 0


def test_peak_memory_sees_what_is_held():
    size = 64 << 20
    # The system's own: an allocator may give room that this process has had all along.
    with (
        mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as room,
        scale_measure._watching() as seen,
    ):
        for start in range(0, size, mmap.PAGESIZE):
            room[start] = 1
        looks = len(seen)
        while len(seen) < looks + 2:
            time.sleep(0.001)
    assert max(seen) - seen[0] > 60 << 20


RECORD = {
    "date": "2025-01-02", "machine": "a machine", "cpus": 2, "threads": 2,
    "versions": {"diffgen": "1.2", "torch": "2.6"},
    "sizes": scale_measure.FULL,
    "streaming": [
        {"place": "disk", "sigma": 0.5, "batch": 8, "read_s": 2.0, "stream_s": 2.25,
         "ratio": 1.125, "gb_s": 1.78, "same": True}
    ],
    "peak_mib": {"1": 30.4, "64": 90.6},
    "speed_up": [
        {"batch": 64, "sigma": 80.0, "one_ms": 180.0, "two_ms": 100.0, "apart_ms": 95.0,
         "ratio": 1.8, "apart_ratio": 1.9, "same": False}
    ],
    "merge": {"pass_ms": 200.0, "merge_ms": 8.0, "agree_ms": 1.0, "rest_ms": 3.0, "share": 0.045,
              "bytes_sent": [1e6, 2e6]},
}  # fmt: skip


def test_a_speed_up_is_that_of_a_round():
    ranks = [
        {"alone": [2.0, 4.0, 6.0], "together": [1.0, 2.0, 2.0], "apart": [1.0] * 3,
         "same_bits": True},
        {"alone": [], "together": [0.5, 2.5, 3.0], "apart": [0.5, 2.0, 2.0], "same_bits": False},
    ]  # fmt: skip
    assert scale_measure.speed_up_of(ranks) == {
        "one_ms": 4000, "two_ms": 2500, "apart_ms": 2000,
        "ratio": 2.0, "apart_ratio": 2.0, "same": False,
    }  # fmt: skip


def test_what_was_measured_becomes_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "RESULTS", tmp_path)
    assert scale.measured_table() == "Nothing yet."
    (tmp_path / "some-scale.json").write_text(json.dumps(RECORD))
    shown = scale.measured_table()
    assert "a machine, 2 cpus, 2 threads; diffgen 1.2, torch 2.6, 2025-01-02." in shown
    assert "Streaming 4 GB of uint8" in shown
    assert "| disk | 0.5 | 8 | 2.00 | 2.25 | 1.12 | 1.78 | yes |" in shown
    assert "30 MiB at B = 1, 91 MiB at B = 64" in shown
    assert "| 64 | 80 | 180.0 | 100.0 | 95.0 | 1.80 | 1.90 | no |" in shown
    assert "8.0 ms, and 1.0 ms for the steps in which they agree, beside a pass of 200 ms" in shown
    assert "200 ms: 4.5%; " in shown and "Another 3.0 ms goes to" in shown
    assert "2.00 MB sent by one of them, 3.00 MB by all" in shown
    page = "<!-- table measured -->\nold\n<!-- end -->"
    assert scale.replaced(page, {"measured": shown}).splitlines()[1].startswith("a machine")
