"""The results of the benchmark suite: rows, journal, targets, README, figures; and the command."""

from __future__ import annotations

import argparse
import json
import platform
import re
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_suite import ROOT, load_suite, row, run_suite

load_suite()

from benchmarks import figures, report, results, targets, timer  # noqa: E402
from benchmarks.cases import CASES, case_name, chosen  # noqa: E402
from benchmarks.contenders import PEERS  # noqa: E402
from benchmarks.journal import Journal, source_digest  # noqa: E402
from benchmarks.measure import Entry, Measurement  # noqa: E402
from diffgen.cli import bench  # noqa: E402
from diffgen.machine import Ceilings  # noqa: E402

CEILINGS = Ceilings(read_gb_s=10, fma_gf_s=100, threads=2, source="given")
SETTING = results.Setting("some-machine", 2, CEILINGS, int8_gop_s=400)
INSTALLED = {
    "diffgen",
    *(c.name for c in PEERS if c.name.startswith(("expanded", "cdist", "sdpa"))),
}


def _entry(name: str, contender: str = "expanded") -> Entry:
    case = next(case for case in CASES if case.name == name)
    return Entry(case, next(c for c in PEERS if c.name == contender))


# Rows


def test_row_has_median_spread_and_share_of_the_ceiling() -> None:
    entry = _entry("cifar-b1-sigma2-float32")
    found = Measurement(entry, "photographs", [0.1, 0.3, 0.2, 0.5, 0.4], 12.345678, 0.5)
    made = results.row_of(found, SETTING)
    # Quartiles 200 and 400 ms.
    assert [made[c] for c in ("time_ms", "min_ms", "spread")] == ["300", "100", "0.6667"]
    # 50,000 x 3,072 x 4 bytes at 10 GB/s are 61.44 ms.
    assert made["share_of_ceiling"] == "0.2048" and made["bound"] == "memory"
    assert made["peak_mib"] == "12.35" and made["in_bounds"] == "yes" and made["N"] == "50000"
    assert made["data"] == "photographs" and tuple(made) == results.COLUMNS


def test_ceiling_of_an_8_bit_set_is_that_of_the_integer_units() -> None:
    found = Measurement(_entry("cifar-b64-sigma80-uint8"), seconds=[0.590])
    made = results.row_of(found, SETTING)
    # Six planes of 2 * 64 * 50,000 * 3,072 operations at 400 GOP/s: 294.9 ms.
    assert (made["bound"], made["share_of_ceiling"]) == ("arithmetic", "0.4999")
    unknown = results.row_of(found, replace(SETTING, int8_gop_s=None))
    assert (unknown["bound"], unknown["int8_gop_s"]) == ("memory", "")


def test_row_says_why_there_is_no_time_or_only_one() -> None:
    case = "cifar-b8-sigma2-float32"
    failed = results.row_of(Measurement(_entry(case, "sdpa"), failure="out of memory"), SETTING)
    assert failed["note"] == "out of memory; no logsumexp: judged on the mean"
    assert failed["time_ms"] == failed["in_bounds"] == ""
    slow = Measurement(_entry(case), seconds=[11.0], error=3.0, stopped=True)
    stopped = results.row_of(slow, SETTING)
    assert (stopped["time_ms"], stopped["note"]) == ("1.1e+04", "stopped after one call")
    assert stopped["rounds"] == "1" and stopped["in_bounds"] == "no"
    accuracy = results.row_of(Measurement(_entry("cifar-b8-sigma10-float32"), error=0.5), SETTING)
    assert accuracy["note"] == "accuracy only" and accuracy["error_in_promises"] == "0.5"


def test_saved_json_is_flattened_with_its_failures(tmp_path: Path) -> None:
    saved = {
        "datetime": "2026-01-02T03:04:05.678901+00:00",
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "benchmarks": [{"extra_info": row("a", "diffgen", 1)}],
        "failures": [row("a", "sdpa", "", note="out of memory")],
    }
    rows = results.flatten(saved)
    assert [found["note"] for found in rows] == ["", "out of memory"]
    assert rows[0]["date"] == "2026-01-02T03:04:05" and rows[0]["commit"] == "0123456789ab+changes"
    results.write_csv(tmp_path / "m.csv", rows)
    assert results.read_csv(tmp_path / "m.csv") == rows


def test_machine_name_is_of_the_processor_not_the_host() -> None:
    name = results.machine_name()
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert platform.node().lower() not in name


# The journal


def test_journal_gives_back_what_an_interrupted_run_measured(tmp_path: Path) -> None:
    path, settings = tmp_path / "made" / "journal.jsonl", {"threads": 2, "cifar": None}
    entries = [_entry("cifar-b8-sigma2-float32"), _entry("cifar-b8-sigma2-float32", "cdist")]
    written = [
        Measurement(entries[0], "photographs", (0.1, 0.2), 3.5, 0.25),
        Measurement(entries[1], "photographs", failure="out of memory"),
    ]
    assert Journal(path, settings).group(entries) is None
    Journal(path, settings).add(written)
    with path.open("a") as file:
        file.write('{"case": "torn')
    again = Journal(path, settings)
    assert len(again) == 2 and again.group(entries) == written
    # A group of which one entry is missing is measured again, whole.
    assert again.group([*entries, _entry("cifar-b8-sigma2-float32", "sdpa")]) is None
    again.add([Measurement(_entry("cifar-b8-sigma80-float32"))])
    assert len(Journal(path, settings)) == 3  # what was torn is gone


@pytest.mark.parametrize("change", ["settings", "finished"])
def test_journal_of_another_run_is_not_used(change: str, tmp_path: Path) -> None:
    path, entries = tmp_path / "journal.jsonl", [_entry("cifar-b8-sigma2-float32")]
    journal = Journal(path, {"threads": 2})
    journal.add([Measurement(entries[0], seconds=[0.1])])
    if change == "finished":
        journal.finish()
    threads = 1 if change == "settings" else 2
    assert Journal(path, {"threads": threads}).group(entries) is None
    assert len(path.read_text().splitlines()) == 1


def test_digest_of_the_source_is_that_of_the_package() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", source_digest())
    assert source_digest() == source_digest()


# Targets


def test_targets_follow_from_the_rows() -> None:
    dense = case_name("cifar", 64, 80.0, "uint8")
    rows = [
        row("cifar-b1-sigma2-float32", "diffgen", 20),
        row("cifar-b1-sigma2-float32", "sdpa", 50),
        row("cifar-b1-sigma2-float32", "keops", 400),
        row("cifar-b1-sigma2-float32", "deepinv", ""),
        row("cifar-b1-sigma2-float32", "expanded-bf16", 10),  # no rival
        row("cifar-b1-sigma2-float32", "faiss-top200", 10),  # no rival
        row("cifar-b1-sigma2-uint8", "diffgen", 6.25, N="50000", D="3072", read_gb_s="30.72"),
        row("cifar-b1-sigma2-bfloat16", "diffgen", 10),
        row("trajectory-float32", "sdpa", 9_000),
        row("trajectory-uint8", "diffgen", 3_000),
        row("sweep-calls", "diffgen", 100),
        row("sweep-levels", "diffgen", 20),
        row("sweep-onecall", "diffgen", 5),
        row("sweep-below1", "diffgen", 10),
        row(dense, "diffgen", 117.96480, N="50000", D="3072", int8_gop_s="1250"),
        row("overhead-d48", "diffgen", 0.05),
        *(
            row(f"scaling-b1-float32-n{n}", "diffgen", n * (1.2 if n == 200_000 else 1))
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
        "float32, sigma=2, B=1: faster than the fastest float32 peer": (2.5, True),
        "uint8, sigma=2, B=1: faster than the fastest float32 peer": (8.0, True),
        "bfloat16, sigma=2, B=1: faster than float32 storage": (2.0, True),
        "uint8, EDM trajectory of 64 samples: faster than over `sdpa`": (3.0, True),
        "uint8, sweep of 16 levels at B=1: faster than 16 calls": (5.0, True),
        "uint8, sweep of 16 levels below 1 at B=1: times as long as one call": (2.0, False),
        # 6 planes of 19.66 GOP in 118 ms are 1,000 GOP/s.
        "uint8, dense (sigma=80), B=64: of the integer units' peak": (80.0, True),
        # 153.6 MB in 6.25 ms are 24.6 GB/s.
        "uint8, sigma=2, B=1: of the read bandwidth": (80.0, True),
        "float32, B=1: time per point, N = 12,500 to 200,000, spread": (20.0, False),
        "`denoiser(x, 0.5)`, N=16, D=48: end to end": (50.0, True),
        "worst error of all diffgen rows, in promises": (0.5, True),
    }
    assert "not run" in targets.target_table(rows) and "**no**" in targets.target_table(rows)


def test_every_target_is_about_cases_of_the_default_run() -> None:
    names = {case.name for case in chosen(full=False)}
    assert {target.case for target in targets.TARGETS} - {""} <= names
    complete = [
        row(case.name, name, 1, N="5", D="3", read_gb_s="1", int8_gop_s="1", error_in_promises="1")
        for case in chosen(full=False)
        for name in case.contenders
    ]
    assert all(target.measure(complete) is not None for target in targets.TARGETS)


# README and figures


def test_block_replaces_what_is_between_the_markers() -> None:
    text = f"a\n{report.BEGIN}\nold\n{report.END}\nb\n"
    assert report.with_block(text, "new") == f"a\n{report.BEGIN}\nnew\n{report.END}\nb\n"
    with pytest.raises(ValueError, match="markers"):
        report.with_block("a", "new")


def _complete() -> list[results.Row]:
    """A row for each contender of each case of the default run."""
    return [
        row(
            case.name,
            name,
            1.5 if name == "diffgen" else 6,
            N=str(case.num_points),
            D=str(case.num_features),
            B=str(case.batch),
            sigma=f"{case.sigma:g}",
            dtype=case.dtype,
            data="photographs",
            error_in_promises="0.25" if name == "diffgen" else "30",
        )
        for case in chosen(full=False)
        for name in case.contenders
    ]


def _saved(path: Path, rows: list[results.Row]) -> Path:
    saved = {
        "datetime": "2026-01-02T03:04:05",
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "benchmarks": [{"extra_info": found} for found in rows],
        "failures": [],
    }
    path.write_text(json.dumps(saved))
    return path


def test_record_keeps_a_complete_run_only(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    complete = _complete()
    csv = report.record(_saved(tmp_path / "run.json", complete), tmp_path)
    rows = results.read_csv(csv)
    assert csv == tmp_path / "m.csv" and len(rows) == len(complete)
    assert "# Targets on m" in (tmp_path / "m-targets.md").read_text()
    block = report.readme_block(rows)
    assert "for crops of photographs" in block and len(block.splitlines()) <= 24
    cells = " | ".join(["1.5 (4x)"] * 4)
    assert f"| **diffgen**, uint8, sigma=0.3 | {cells} |" in block
    assert "diffgen 0.25; expanded 30, sdpa 30, faiss-top200 30, expanded-bf16 30 (" in block
    quick = [r | {"N": "3"} if r["case"] == CASES[0].name else r for r in complete]
    with pytest.raises(ValueError, match=CASES[0].name):
        report.record(_saved(tmp_path / "run.json", quick), tmp_path)


def test_figures_show_every_contender_and_carry_their_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = _complete()
    shown = figures.numbers(rows)
    labels = {*(c.name for c in PEERS), "diffgen uint8", "diffgen float32", "diffgen bfloat16"}
    assert set(shown["time"]) == {"sigma = 0.3", "sigma = 2", "sigma = 80"}
    for series in (*shown["time"].values(), *shown["error"].values()):
        assert set(series) == labels
    assert shown["time"]["sigma = 2"]["sdpa"] == [(1, 6), (8, 6), (64, 6), (256, 6)]
    assert [x for x, _ in shown["error"]["B = 8"]["sdpa"]] == [0.02, 0.3, 2, 10, 80]
    csv = tmp_path / "m.csv"
    first = {path: path.read_text() for path in figures.draw(rows, csv)}
    for path, text in first.items():
        figures.draw(rows, csv)
        assert path.read_text() == text  # the same rows, the same file
    assert figures.shown_digest(csv.with_name("m-time.svg")) == figures.digest(shown["time"])
    slower = [found | {"time_ms": "7"} for found in rows]
    assert figures.digest(figures.numbers(slower)["time"]) != figures.digest(shown["time"])
    assert figures.shown_digest(tmp_path / "none.svg") is None


def test_readme_targets_and_figures_are_those_of_the_committed_results() -> None:
    readme = report.README.read_text() if report.README.exists() else ""
    path = results.latest()
    if path is None:
        between = readme.partition(report.BEGIN)[2].partition(report.END)[0]
        assert between.strip() == "", "README.md shows results, and none are committed"
        return
    stale = "run `python -m benchmarks.report --write`"
    block = report.readme_block(results.read_csv(path))
    assert report.with_block(readme, block) == readme, stale
    for csv in results.RESULTS.glob("*.csv"):
        rows = results.read_csv(csv)
        assert csv.with_name(f"{csv.stem}-targets.md").read_text() == report.targets_page(rows)
        for figure, panels in figures.numbers(rows).items():
            drawn = figures.shown_digest(figures.figure_path(csv, figure))
            assert drawn == figures.digest(panels), stale


def test_committed_results_name_no_path_of_a_host() -> None:
    for path in results.RESULTS.glob("*"):
        assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text())


# The suite and the command


def _rows_of(saved: Path) -> list[results.Row]:
    return results.flatten(json.loads(saved.read_text()))


def test_suite_runs_end_to_end_at_tiny_sizes(tmp_path: Path) -> None:
    saved = tmp_path / "made" / "run.json"
    done = run_suite(
        "--quick",
        "--benchmark-quiet",
        "--backend=eager",
        "--threads=1",
        "--case=cifar-b8-sigma2-*",
        "--case=cifar-b8-sigma10-*",
        "--case=overhead-d48",
        f"--benchmark-json={saved}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "targets (tiny sizes: no claim)" in done.stdout and "images: synthetic" in done.stdout
    rows = _rows_of(saved)
    by_case = {
        name: {found["contender"] for found in rows if found["case"] == name}
        for name in {found["case"] for found in rows}
    }
    everything = {"diffgen"} | {contender.name for contender in PEERS}
    for case in ("cifar-b8-sigma2-float32", "cifar-b8-sigma10-float32"):
        assert by_case[case] == everything
    for dtype in ("uint8", "float16", "bfloat16"):
        assert by_case[f"cifar-b8-sigma2-{dtype}"] == {"diffgen"}
    assert by_case["overhead-d48"] == {"diffgen", "expanded", "sdpa"}
    for found in rows:
        if found["contender"] not in INSTALLED:
            assert found["time_ms"] or found["note"]
            continue
        if "sigma10" in found["case"]:
            assert "accuracy only" in found["note"] and not found["time_ms"]
        elif "backward" not in found["case"]:
            assert float(found["time_ms"]) > 0 and int(found["rounds"]) >= timer.MIN_ROUNDS
        inexact = found["contender"] == "expanded-bf16"
        assert found["in_bounds"] == ("no" if inexact else "yes")
    with pytest.raises(ValueError, match="every case at full size"):
        report.record(saved, tmp_path)


def test_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    journal, saved = tmp_path / "journal.jsonl", tmp_path / "run.json"
    options = (
        *("--quick", "--benchmark-quiet", "--backend=eager", "--threads=1"),
        *("--contender=diffgen", "--contender=sdpa", f"--journal={journal}"),
    )
    first = "--case=overhead-d48"
    assert run_suite(*options, first).returncode == 0
    lines = journal.read_text().splitlines()
    assert len(lines) == 4 and json.loads(lines[-1]) == {"finished": True}
    # As an interruption would have left it: without its last line, and a time that is no other's.
    kept = [json.loads(line) for line in lines[:-1]]
    kept[1]["seconds"] = [123.0]
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    more = ("--case=overhead-d3072", f"--benchmark-json={saved}", "--verbose")  # with a header
    done = run_suite(*options, first, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on: 2 rows" in done.stdout
    times = {(r["case"], r["contender"]): float(r["time_ms"]) for r in _rows_of(saved)}
    assert times[("overhead-d48", "diffgen")] == 123_000
    assert len(times) == 4 and times[("overhead-d3072", "sdpa")] < 1_000
    assert json.loads(journal.read_text().splitlines()[-1]) == {"finished": True}


def test_suite_refuses_a_name_it_does_not_know() -> None:
    done = run_suite("--quick", "--case=b9")
    assert done.returncode != 0
    assert "--case must be one of overhead-d48" in done.stdout + done.stderr


def _parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    return parser.parse_args(["bench", *arguments])


def test_command_hands_its_choices_to_the_suite(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(bench, "find_checkout", lambda: ROOT)
    monkeypatch.setattr(bench.subprocess, "call", lambda line, cwd: calls.append(line) or 0)
    args = _parse(
        *("--case", "cifar-b8-*", "--contender", "sdpa", "--backend", "eager"),
        *("--quick", "--full", "--cifar", str(tmp_path)),
    )
    assert args.func(args) == 0
    (line,) = calls
    assert line[1:4] == ["-m", "pytest", "benchmarks"] and "--benchmark-only" in line
    chosen_options = line[line.index("--case") :]
    assert chosen_options == [
        *("--case", "cifar-b8-*", "--contender", "sdpa", "--backend", "eager", "--seed", "0"),
        *("--quick", "--full", f"--cifar={tmp_path}"),
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
