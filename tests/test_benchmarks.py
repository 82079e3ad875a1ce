"""The benchmark suite: its tables, its gate, its timer, and the results that are committed."""

from __future__ import annotations

import argparse
import doctest
import importlib.util
import json
import math
import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffgen.cli import bench
from diffgen.machine import Ceilings

ROOT = Path(__file__).resolve().parent.parent


def _load_suite() -> None:
    """Imports the package by its path: the checkout on ``sys.path`` would hide a built core."""
    if "benchmarks" in sys.modules:
        return
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks"] = module
    spec.loader.exec_module(module)


_load_suite()

from benchmarks import gate, images, report, results, targets, timer  # noqa: E402
from benchmarks.cases import CASES, OPERATIONS, SWEEP_SIGMAS  # noqa: E402
from benchmarks.contenders import PEERS, Contender, Prepared, select, table  # noqa: E402
from benchmarks.measure import Entry, Measurement, Store, measure_group  # noqa: E402

SHAPE = (3, 4, 4)
CEILINGS = Ceilings(read_gb_s=10, fma_gf_s=100, threads=2, source="given")
SETTING = results.Setting("some-machine", 2, CEILINGS)


@pytest.fixture(scope="module")
def small() -> torch.Tensor:
    return images.natural_images(512, SHAPE)


# The tables


def test_cases_have_names_of_their_own_and_known_parts() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for case in CASES:
        assert case.operation in OPERATIONS
        assert case.dtype in ("float32", "uint8")
        assert "diffgen" in case.contenders
        for pattern in case.contenders:
            assert select(table(), [pattern]), f"{case.name} names no contender by {pattern}"


def test_cases_of_a_group_share_their_shape() -> None:
    shapes = {(case.group, case.shape) for case in CASES}
    assert len(shapes) == len({group for group, _ in shapes})


def test_cases_hold_the_problems_that_the_targets_are_about() -> None:
    problems = {(c.num_points, c.num_features, c.batch, c.sigma, c.dtype) for c in CASES}
    for sigma in (2, 80):
        for batch in (1, 8, 64):
            assert (50_000, 3_072, batch, sigma, "float32") in problems
            assert (50_000, 3_072, batch, sigma, "uint8") in problems
    for count in (12_500, 200_000):
        assert (count, 3_072, 1, 2, "float32") in problems
        assert (count, 3_072, 8, 2, "float32") in problems
    assert (16, 3_072, 1, 0.5, "float32") in problems


def test_contenders_have_names_of_their_own() -> None:
    names = [contender.name for contender in table()]
    assert len(set(names)) == len(names)
    assert {"expanded", "cdist", "sdpa"} <= {c.name for c in PEERS if c.rival}
    assert not {"expanded-bf16"} & {c.name for c in PEERS if c.rival}


def test_counted_work_is_one_pass_and_two_products() -> None:
    case = next(c for c in CASES if c.name == "b8-sigma2-float32")
    assert case.counted_bytes == 50_000 * 3_072 * 4
    assert case.counted_operations == 4 * 8 * 50_000 * 3_072


# The data


def test_images_are_smooth_and_fill_the_range() -> None:
    pixels = images.decode(images.natural_images(200, (3, 16, 16)))
    assert pixels.min() >= -1 and pixels.max() <= 1
    centred = pixels - pixels.mean((2, 3), keepdim=True)
    neighbours = (centred[..., 1:] * centred[..., :-1]).sum() / centred[..., 1:].square().sum()
    assert neighbours > 0.5  # white noise: 0


def test_images_do_not_depend_on_how_many_are_asked_for(small: torch.Tensor) -> None:
    longer = images.natural_images(images.CHUNK + 7, SHAPE)
    assert torch.equal(longer[:512], small)


def test_float32_twin_holds_the_same_images(small: torch.Tensor) -> None:
    exact = small.double() * (2 / 255) - 1
    # One rounding of a number of at most 1: half of 2^-24 2 = 6e-8; the comparison rounds too.
    assert (images.decode(small).double() - exact).abs().max() <= 2**-24 * 1.01


def test_noise_of_the_queries_does_not_point_at_an_image() -> None:
    """Both come from generators; a shared seed would make the noise an unfiltered image."""
    pixels = images.decode(images.natural_images(50, (3, 16, 16))).flatten(1)
    for seed in range(3):
        noise = images.noisy_queries(torch.zeros(50, 3 * 16 * 16), 1.0, seed)
        alike = torch.nn.functional.cosine_similarity(noise, pixels, dim=1)
        # Of independent directions: sd 1/sqrt(768) = 0.036; 5 sd for 150 of them.
        assert alike.abs().max() < 0.18


# The gate


def test_reference_of_one_point_is_that_point() -> None:
    point = torch.tensor([[[[0.25, -0.5]]]])
    mean, logsumexp = gate.reference(point, torch.tensor([[[[1.25, 0.5]]]]), 2.0)
    assert mean.tolist() == [[0.25, -0.5]]
    assert logsumexp.item() == -(1 + 1) / 8


def test_reference_of_two_points_is_a_logistic() -> None:
    points = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    mean, _ = gate.reference(points, torch.tensor(0.3).view(1, 1, 1, 1), 0.7)
    # Float64 throughout, numbers of order 1: a few units of 2e-16.
    x = torch.tensor(0.3).double().item()
    assert mean.item() == pytest.approx(math.tanh(x / 0.49), abs=1e-15)


def test_reference_does_not_depend_on_its_blocks(
    small: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = images.noisy_queries(images.decode(small[:3]), 1.0, 0)
    whole = gate.reference(small, query, 1.0)
    monkeypatch.setattr(gate, "CHUNK_ROWS", 100)
    for one, other in zip(whole, gate.reference(small, query, 1.0), strict=True):
        # 512 terms of float64 in another order.
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_gate_tells_a_planted_error_in_promises() -> None:
    exact = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([-5.0, -1e5], dtype=torch.float64)
    mean, logsumexp = exact[0].clone(), exact[1].clone()
    assert gate.error_in_promises(mean, logsumexp, exact) == 0
    mean[1, 2] = 2e-5
    assert gate.error_in_promises(mean, logsumexp, exact) == pytest.approx(2)
    logsumexp[0] += 3e-3  # three times 1e-3 nats
    assert gate.error_in_promises(mean, logsumexp, exact) == pytest.approx(3)
    logsumexp[1] += 0.4  # four times 1e-6 of 1e5
    assert gate.error_in_promises(mean, logsumexp, exact) == pytest.approx(4)
    mean[0, 0] = math.nan
    assert gate.error_in_promises(mean, None, exact) == math.inf


# The contenders


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("contender", PEERS, ids=lambda contender: contender.name)
def test_peer_computes_the_posterior_mean(
    contender: Contender, dtype: str, small: torch.Tensor
) -> None:
    stored = small if dtype == "uint8" else images.decode(small)
    methods = contender.prepare(stored)
    query = images.noisy_queries(images.decode(small[:4]), 2.0, 0)
    exact = gate.reference(stored, query, 2.0)
    mean = methods.denoise(query, 2.0)
    assert mean.shape == query.shape and mean.dtype == query.dtype
    logsumexp = None if methods.logsumexp is None else methods.logsumexp(query, 2.0)
    error = gate.error_in_promises(mean, logsumexp, exact)
    if contender.name == "expanded-bf16":
        # Eight bits: 2^-9 of data of order 1 is two hundred promises, and at most a thousand.
        assert 1 < error < 1_000
    else:
        # Logits of |x|^2 |y| / sigma^2 < 100, in float32: 100 * 48 * 2^-24 = 3e-4 < 1e-3 nats.
        assert error < 1


@pytest.mark.parametrize("contender", PEERS, ids=lambda contender: contender.name)
def test_sweep_of_a_peer_is_its_denoiser_at_each_level(
    contender: Contender, small: torch.Tensor
) -> None:
    methods = contender.prepare(images.decode(small))
    query = images.noisy_queries(images.decode(small[:2]), 2.0, 0)
    swept = methods.sweep(query, (1.0, 4.0))
    for level, sigma in zip(swept, (1.0, 4.0), strict=True):
        bound = 3e-2 if contender.name == "expanded-bf16" else 1e-4
        assert (level - methods.denoise(query, sigma)).abs().max() < bound


# The timer


def test_rounds_take_the_entries_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "SHORTEST_ROUND", 0)
    order: list[str] = []
    calls = [lambda: order.append("A"), lambda: order.append("B")]
    times = timer.interleaved(calls, seconds=0)
    assert [len(mine) for mine in times] == [timer.MIN_ROUNDS] * 2
    assert "".join(order) == "AB" * (2 + timer.MIN_ROUNDS)  # warm-up, estimate, rounds


def test_short_calls_are_repeated_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "SHORTEST_ROUND", 1e-4)
    count = 0

    def call() -> None:
        nonlocal count
        count += 1

    (times,) = timer.interleaved([call], seconds=0)
    assert count > 10 * len(times)
    assert max(times) < 1e-4  # per call, not per round


@pytest.mark.skipif(not timer._CLEAR.exists(), reason="only Linux resets the high-water mark")
def test_peak_memory_counts_what_a_call_lets_go_again() -> None:
    peak = timer.peak_mib(lambda: torch.ones(64 << 18).sum())  # 64 MiB
    assert peak is not None and 60 < peak < 100
    nothing = timer.peak_mib(lambda: None)
    assert nothing is not None and nothing < 8


def test_peak_memory_is_unknown_without_a_mark(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(timer, "_CLEAR", tmp_path / "none")
    called: list[int] = []
    assert timer.peak_mib(lambda: called.append(1)) is None
    assert called == [1]


def test_replay_clock_passes_the_given_durations() -> None:
    clock = timer.ReplayClock()
    clock.load([0.5, 0.25])
    readings = [clock()]
    for _ in range(3):
        clock.advance()
        readings.append(clock())
    assert readings == [0, 0.5, 0.75, 0.75]


# A group


def test_smaller_batches_begin_larger_ones_and_seeds_differ() -> None:
    case = next(c for c in CASES if c.name == "b8-sigma2-float32").quick()
    eight = Store().queries(case)
    assert torch.equal(Store().queries(replace(case, batch=3)), eight[:3])
    assert not torch.equal(Store(seed=1).queries(case), eight)


def test_exact_results_are_those_of_the_queries() -> None:
    store = Store()
    case = next(c for c in CASES if c.name == "b8-sigma2-uint8").quick()
    stored = store.images(case.num_points, case.shape, case.dtype)
    expected = gate.reference(stored, store.queries(case)[: gate.QUERIES], case.sigma)
    for _ in range(2):  # made, then remembered
        found = store.exact(case, stored)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert store.exact(replace(case, batch=1), stored)[0].shape[0] == 1


def _contender(name: str, prepare) -> Contender:
    return Contender(name, prepare, rival=name != "diffgen")


def test_failure_of_a_contender_is_a_row_that_says_so() -> None:
    def hungry(stored: torch.Tensor) -> Prepared:
        raise MemoryError

    case = CASES[0].quick()
    ok = next(c for c in PEERS if c.name == "expanded")
    entries = [Entry(case, ok), Entry(case, _contender("hungry", hungry))]
    found, failed = measure_group(entries, Store())
    assert len(found.seconds) >= timer.MIN_ROUNDS and found.error is not None
    row = results.row_of(failed, SETTING)
    assert row["note"] == "out of memory" and row["time_ms"] == "" and row["in_bounds"] == ""


def test_fault_of_the_benchmark_is_not_swallowed() -> None:
    def faulty(stored: torch.Tensor) -> Prepared:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        measure_group([Entry(CASES[0].quick(), _contender("faulty", faulty))], Store())


def test_inaccurate_contender_is_timed_and_out_of_bounds() -> None:
    def wrong(stored: torch.Tensor) -> Prepared:
        return Prepared(lambda x, sigma: x, lambda x, sigmas: x)

    (found,) = measure_group([Entry(CASES[0].quick(), _contender("wrong", wrong))], Store())
    row = results.row_of(found, SETTING)
    assert row["in_bounds"] == "no" and float(row["time_ms"]) > 0


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_diffgen_runs_every_operation(operation: str) -> None:
    case = replace(CASES[0].quick(), operation=operation)
    (ours,) = select(table("eager"), ["diffgen"])
    (found,) = measure_group([Entry(case, ours)], Store())
    assert found.failure == "" and found.error is not None and found.error <= 1
    assert len(SWEEP_SIGMAS) == 16


# Rows and results


def _row(case: str, contender: str, time_ms: object, **more: str) -> results.Row:
    row = dict.fromkeys(results.COLUMNS, "")
    row |= {"case": case, "contender": contender, "time_ms": str(time_ms), "machine": "m"}
    return row | more


def test_row_has_median_quartiles_and_share_of_the_ceiling() -> None:
    case = next(c for c in CASES if c.name == "b1-sigma2-float32")
    found = Measurement(Entry(case, PEERS[0]), [0.1, 0.3, 0.2, 0.5, 0.4], 12.345678, 0.5)
    row = results.row_of(found, SETTING)
    assert [row[c] for c in ("time_ms", "min_ms", "q1_ms", "q3_ms")] == ["300", "100", "200", "400"]
    # 50,000 x 3,072 x 4 bytes at 10 GB/s are 61.44 ms.
    assert row["share_of_ceiling"] == "0.2048" and row["bound"] == "memory"
    assert row["peak_mib"] == "12.35" and row["in_bounds"] == "yes" and row["N"] == "50000"
    assert tuple(row) == results.COLUMNS


def test_saved_json_is_flattened_with_its_failures(tmp_path: Path) -> None:
    saved = {
        "datetime": "2026-01-02T03:04:05.678901+00:00",
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "benchmarks": [{"extra_info": _row("a", "diffgen", 1)}],
        "failures": [_row("a", "sdpa", "", note="out of memory")],
    }
    rows = results.flatten(saved)
    assert [row["note"] for row in rows] == ["", "out of memory"]
    assert rows[0]["date"] == "2026-01-02T03:04:05" and rows[0]["commit"] == "0123456789ab+changes"
    results.write_csv(tmp_path / "m.csv", rows)
    assert results.read_csv(tmp_path / "m.csv") == rows


def test_machine_name_is_of_the_processor_not_the_host() -> None:
    name = results.machine_name()
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert platform.node().lower() not in name


def test_targets_follow_from_the_rows() -> None:
    rows = [
        _row("b1-sigma2-float32", "diffgen", 20),
        _row("b1-sigma2-float32", "sdpa", 50),
        _row("b1-sigma2-float32", "cdist", 400),
        _row("b1-sigma2-float32", "expanded-bf16", 10),  # no rival
        _row("b1-sigma2-uint8", "diffgen", 25),
        _row("overhead-d48", "diffgen", 0.05),
        *(
            _row(f"scaling-b1-float32-n{n}", "diffgen", n * (1.2 if n == 200_000 else 1))
            for n in (12_500, 25_000, 50_000, 100_000, 200_000)
        ),
    ]
    rows[0]["error_in_promises"] = "0.5"
    found = {t.claim: (t.measure(rows), t) for t in targets.TARGETS}
    met = {
        claim: (round(value, 6), target.met(value))
        for claim, (value, target) in found.items()
        if value is not None
    }
    assert met == {
        "float32, B=1, sigma=2: faster than the best peer": (2.5, True),
        "uint8, B=1, sigma=2: faster than the best peer (decoded beforehand)": (2.0, False),
        "float32, B=1: time per point, N = 12,500 to 200,000, spread": (20.0, False),
        "`denoiser(x, 0.5)`, N=16, D=48: end to end": (50.0, True),
        "worst error of all diffgen rows, in promises": (0.5, True),
    }
    assert "not run" in targets.target_table(rows) and "**no**" in targets.target_table(rows)


def test_every_target_names_a_case_that_is_run() -> None:
    names = {case.name for case in CASES}
    assert {target.case for target in targets.TARGETS} - {""} <= names


def test_block_replaces_what_is_between_the_markers() -> None:
    text = f"a\n{report.BEGIN}\nold\n{report.END}\nb\n"
    assert report.with_block(text, "new") == f"a\n{report.BEGIN}\nnew\n{report.END}\nb\n"
    with pytest.raises(ValueError, match="markers"):
        report.with_block("a", "new")


def _saved(path: Path, rows: list[results.Row]) -> Path:
    saved = {
        "datetime": "2026-01-02T03:04:05",
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "benchmarks": [{"extra_info": row} for row in rows],
        "failures": [],
    }
    path.write_text(json.dumps(saved))
    return path


def test_record_keeps_a_complete_run_only(tmp_path: Path) -> None:
    complete = [
        _row(case.name, "diffgen", 1.5, N=str(case.num_points), error_in_promises="0.25")
        for case in CASES
    ]
    csv = report.record(_saved(tmp_path / "run.json", complete), tmp_path)
    assert csv == tmp_path / "m.csv" and len(results.read_csv(csv)) == len(CASES)
    assert "# Targets on m" in (tmp_path / "m-targets.md").read_text()
    block = report.readme_block(results.read_csv(csv))
    assert "| **diffgen**, float32 set | 1.5 | 1.5 | 1.5 | 0.25 | 0.25 |" in block
    assert "best peer" not in block
    rival = _row("b8-sigma80-float32", "sdpa", 6)
    assert "4x (float32, B=8)" in report.readme_block([*complete, rival])
    quick = [complete[0] | {"N": "3"}, *complete[1:]]
    with pytest.raises(ValueError, match=CASES[0].name):
        report.record(_saved(tmp_path / "run.json", quick), tmp_path)


def test_readme_and_target_pages_are_those_of_the_committed_results() -> None:
    readme = report.README.read_text() if report.README.exists() else ""
    path = results.latest()
    if path is None:
        between = readme.partition(report.BEGIN)[2].partition(report.END)[0]
        assert between.strip() == "", "README.md shows results, and none are committed"
        return
    block = report.readme_block(results.read_csv(path))
    assert report.with_block(readme, block) == readme, "run `python -m benchmarks.report --write`"
    for csv in results.RESULTS.glob("*.csv"):
        page = csv.with_name(f"{csv.stem}-targets.md").read_text()
        assert page == report.targets_page(results.read_csv(csv))


def test_committed_results_name_no_path_of_a_host() -> None:
    for path in results.RESULTS.glob("*"):
        assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text())


@pytest.mark.parametrize("module", [gate, images])
def test_examples_in_docstrings_run(module) -> None:
    failed, tried = doctest.testmod(module)
    assert failed == 0 and tried > 0


# The suite and the command


def _run_suite(*options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pytest", "benchmarks", "-q", "--benchmark-only", *options]
    return subprocess.run(
        [*line, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )


def test_suite_runs_end_to_end_at_tiny_sizes(tmp_path: Path) -> None:
    saved = tmp_path / "made" / "run.json"
    done = _run_suite(
        "--quick",
        "--benchmark-quiet",
        "--backend=eager",
        "--threads=1",
        "--case=b8-sigma2-*",
        "--case=overhead-d48",
        f"--benchmark-json={saved}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "targets (tiny sizes: no claim)" in done.stdout
    rows = results.flatten(json.loads(saved.read_text()))
    by_case = {name: {r["contender"] for r in rows if r["case"] == name} for name in names(rows)}
    everything = {"diffgen"} | {contender.name for contender in PEERS}
    assert by_case["b8-sigma2-float32"] == everything
    assert by_case["b8-sigma2-uint8"] == {"diffgen"}
    assert by_case["overhead-d48"] == {"diffgen", "expanded", "sdpa"}
    for row in rows:
        assert float(row["time_ms"]) > 0 and int(row["rounds"]) >= timer.MIN_ROUNDS
        assert row["in_bounds"] == ("no" if row["contender"] == "expanded-bf16" else "yes")
    with pytest.raises(ValueError, match="every case at full size"):
        report.record(saved, tmp_path)


def names(rows: list[results.Row]) -> set[str]:
    return {row["case"] for row in rows}


def test_suite_refuses_a_name_it_does_not_know() -> None:
    done = _run_suite("--quick", "--case=b9")
    assert done.returncode != 0
    assert "--case must be one of overhead-d48" in done.stdout + done.stderr


def _parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    return parser.parse_args(["bench", *arguments])


def test_command_hands_its_choices_to_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(bench, "find_checkout", lambda: ROOT)
    monkeypatch.setattr(bench.subprocess, "call", lambda line, cwd: calls.append(line) or 0)
    args = _parse("--case", "b8-*", "--contender", "sdpa", "--backend", "eager", "--quick")
    assert args.func(args) == 0
    (line,) = calls
    assert line[1:4] == ["-m", "pytest", "benchmarks"] and "--benchmark-only" in line
    chosen = line[line.index("--case") :]
    assert chosen == [
        *("--case", "b8-*", "--contender", "sdpa", "--backend", "eager", "--seed", "0", "--quick")
    ]


def test_command_without_a_checkout_says_where_the_suite_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "a" / "b" / "bench.py"))
    monkeypatch.chdir(tmp_path)
    assert bench.run(_parse()) == 2
    assert "checkout" in capsys.readouterr().err
    monkeypatch.chdir(ROOT)
    assert bench.find_checkout() == ROOT
