"""The tables of measured times in ``docs/gpu.md``: those of the committed results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmark_suite import load_suite, row

load_suite()

from benchmarks import gpu, gpu_profile, gpu_report, results  # noqa: E402

MORE = {
    "data": "synthetic", "N": "50000", "D": "3072", "B": "8", "sigma": "2", "operation": "denoise",
    "in_bounds": "yes", "error_in_promises": "0.25", "share_of_ceiling": "0.5", "bound": "memory",
    "read_gb_s": "3000", "fma_gf_s": "50000", "int8_gop_s": "1.5e6", "machine": "some-gpu",
    "gpu": "Some GPU", "triton": "3.8.0", "cuda": "13.0", "torch": "2.11.0", "diffgen": "0.1.0",
    "commit": "0123456789ab", "date": "2026-01-02T03:04:05", "backend": "",
}  # fmt: skip


def run() -> list[results.Row]:
    """The rows of one group: peers stand beside the float32 set alone."""
    eight = MORE | {"dtype": "uint8"}
    floats = MORE | {"dtype": "float32"}
    case = "cifar-b8-sigma2"
    return [
        row(f"{case}-float32", "diffgen", 2, **floats | {"backend": "triton"}),
        row(f"{case}-float32", "diffgen-triton", 2.5, **floats),
        row(f"{case}-float32", "sdpa", 70, **floats),
        row(f"{case}-float32", "expanded", 0.5, **floats),
        row(f"{case}-float32", "expanded-tf32", 0.25, **floats | {"in_bounds": "no"}),
        row(f"{case}-float32", "cdist", "", **floats | {"note": "out of memory"}),
        row(f"{case}-uint8", "diffgen", 0.25, **eight | {"backend": "cuda"}),
        row(f"{case}-uint8", "diffgen-eager", 20, **eight),
        row("cifar-b8-sigma80-uint8", "diffgen", "", **eight | {"sigma": "80"}),
        # As fast as none, but of another noise level.
        row("cifar-b8-sigma80-float32", "expanded", 0.125, **floats | {"sigma": "80"}),
    ]


def profile() -> list[results.Row]:
    """Rows of two backends, one of which the benchmark has no row of."""
    stamp = {"date": "2026-02-03T04:05:06", "commit": "cafe", "gpu": "Some GPU"}
    versions = {"torch": "2.12", "triton": "3.9", "cuda": "13.1"}
    times = {"host_ms": "0.05", "kernels_ms": "0.06", "launches": "19", "slowest": "a 5 us x1; b"}
    asked = {"B": "8", "sigma": "2"} | times | stamp | versions
    return [
        {"dtype": "uint8", "backend": "cuda", "time_ms": "0.125"} | asked,
        {"dtype": "uint8", "backend": "triton", "time_ms": "0.5"} | asked,
    ]


def test_a_profile_stands_beside_the_benchmark(tmp_path: Path) -> None:
    text = gpu_report.measured([run()], [profile()])
    assert "### Some GPU, kernel by kernel" in text
    assert "diffgen at cafe, 2026-02-03" in text and "benchmark above, of 0123456789ab." in text
    assert [line for line in text.splitlines() if line.startswith("| uint8")] == [
        "| uint8 | cuda | 8 | 2 | **0.125** | 0.05 | 0.06 | 19 | a 5 us x1 | 0.25 | 4 (expanded) |",
        "| uint8 | triton | 8 | 2 | **0.5** | 0.05 | 0.06 | 19 | a 5 us x1 | - | - |",
    ]
    gpu_profile.write(tmp_path / "some-gpu-profile.csv", profile())
    results.write_csv(tmp_path / "some-gpu.csv", run(), gpu.COLUMNS)
    assert gpu_report.committed(tmp_path)[1] == [profile()]


def test_kernels_of_calls_are_summed_by_name() -> None:
    first = "void diffgen::cuda::(anonymous namespace)::sums<true, 3>(diffgen::cuda::Call)"
    events = [(first, 4000.0), (first, 2000.0), ("products", 2000.0), ("products", 2000.0)]
    found = gpu_profile.summed(events, calls=2)
    assert found == {
        "kernels_ms": "5.000",
        "launches": "2",
        "slowest": "sums<true, 3> 3000 us x1; products 2000 us x1",
    }


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| cifar")]


LINES = [
    "| cifar | float32 | 8 | 2 | **2** (triton) | 2.5 | - | 0.5 (expanded) | 0.25 | 0.25 | 1 m |",
    "| cifar | uint8 | 8 | 2 | **0.25** (cuda) | - | 20 | 0.5 (expanded) | 2 | 0.25 | 0.125 m |",
    "| cifar | uint8 | 8 | 80 | - | - | - | 0.125 (expanded) | - | 0.25 | - |",
]


def test_a_case_is_a_line_beside_the_fastest_peer_within_the_promise() -> None:
    assert lines(gpu_report.measured([run()])) == LINES


def test_an_error_out_of_bounds_is_said() -> None:
    first, *others = run()
    [line, *_] = lines(
        gpu_report.measured([[first | {"in_bounds": "no", "error_in_promises": "7"}, *others]])
    )
    assert "| **7, out of bounds** |" in line


def test_gpu_and_versions_are_said() -> None:
    text = gpu_report.measured([run(), [one | {"gpu": "Other GPU", "cuda": ""} for one in run()]])
    assert re.findall("^### (.*)$", text, re.MULTILINE) == ["Some GPU", "Other GPU"]
    assert (
        "Some GPU; torch 2.11.0, triton 3.8.0, CUDA kernels compiled by CUDA 13.0; diffgen 0.1.0 "
        "(0123456789ab), 2026-01-02. cifar: 50,000 x 3,072, generated images. Rates of the run: "
        "3 TB/s read, 50 TFLOP/s float32, 1500 TOP/s int8. "
        "[All rows](../benchmarks/gpu_results/some-gpu.csv)."
    ) in text
    assert "Other GPU; torch 2.11.0, triton 3.8.0; diffgen" in text


def test_the_page_needs_its_markers() -> None:
    text = f"a\n{gpu_report.BEGIN}\nold\n{gpu_report.END}\nb\n"
    assert gpu_report.page(text, []) == text.replace("old", gpu_report.NOTHING)
    with pytest.raises(ValueError, match="markers"):
        gpu_report.page("a", [])


def test_rows_come_back_from_the_file_of_a_run(tmp_path: Path) -> None:
    results.write_csv(tmp_path / "some-gpu.csv", run(), gpu.COLUMNS)
    [found], [] = gpu_report.committed(tmp_path)
    assert set(found[0]) == set(gpu.COLUMNS)
    assert gpu_report.measured([found]) == gpu_report.measured([run()])


def test_write_brings_the_page_up_to_date(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    page.write_text(f"{gpu_report.BEGIN}\nold\n{gpu_report.END}\n")
    monkeypatch.setattr(gpu_report, "PAGE", page)
    monkeypatch.setattr(gpu_report, "committed", lambda: ([run()], [profile()]))
    assert gpu_report.main([]) == 0 and "old" in page.read_text()
    assert gpu_report.main(["--write"]) == 0
    assert page.read_text() == gpu_report.page(page.read_text(), [run()], [profile()])
    assert "| cifar | uint8 | 8 | 2 |" in page.read_text()


def test_page_shows_the_committed_results() -> None:
    (runs, profiles), page = gpu_report.committed(), gpu_report.PAGE.read_text()
    want = gpu_report.page(page, runs, profiles)
    assert want == page, "run `python -m benchmarks.gpu_report --write`"
    if not runs:
        pytest.skip("no results of a GPU are committed")


def test_committed_results_are_whole_and_name_no_path_of_a_host() -> None:
    paths = [path for path in gpu.RESULTS.glob("*.csv") if not path.stem.endswith("-profile")]
    for path in sorted(paths):
        rows = results.read_csv(path)
        assert {found["case"] for found in rows} == set(gpu.CASES)
        assert {found["machine"] for found in rows} == {path.stem}
        assert all(found["gpu"] and found["commit"] and found["triton"] for found in rows)
        ours = [found for found in rows if found["contender"] == "diffgen"]
        assert all(found["time_ms"] and found["in_bounds"] == "yes" for found in ours)
        assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text())
    if not paths:
        pytest.skip("no results of a GPU are committed")
