"""The GPU benchmark and `make gpu`: all but the GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmark_suite import ROOT, load_suite

load_suite()

from benchmarks import gpu, gpu_suite, results, torch_peers  # noqa: E402
from benchmarks.cases import Case, chosen  # noqa: E402
from benchmarks.contender import Contender, Prepared, peer  # noqa: E402
from benchmarks.contenders import table  # noqa: E402
from benchmarks.gate import reference  # noqa: E402
from benchmarks.store import Store  # noqa: E402
from benchmarks.timer import seconds_of  # noqa: E402
from diffgen import EmpiricalDenoiser  # noqa: E402
from diffgen.backends import registry  # noqa: E402
from diffgen.gpu_state import gpu_state  # noqa: E402
from diffgen.machine import Ceilings  # noqa: E402

CPU = torch.device("cpu")
SETTING = results.Setting("some-gpu", 1, Ceilings(100.0, 1000.0, 1, "by hand"), int8_gop_s=400)

pytestmark = pytest.mark.usefixtures("one_thread")


def case(dtype: str) -> Case:
    [found] = [c for c in chosen(full=False) if c.name == f"cifar-b8-sigma2-{dtype}"]
    return found.quick()


def failing(error: Exception) -> Callable[[torch.Tensor], Prepared]:
    def denoise(*_: Any) -> torch.Tensor:
        raise error

    return lambda _: peer(denoise)


def test_cases_are_of_the_suite() -> None:
    known = {c.name for c in chosen(full=False)}
    assert set(gpu.CASES) <= known


def test_peers_stand_beside_the_float_set_only() -> None:
    known = table(elsewhere=True)
    names = {
        dtype: [c.name for c in gpu.contenders_of(case(dtype), known)]
        for dtype in ("uint8", "float32")
    }
    assert {"diffgen", "diffgen-cuda"} <= set(names["uint8"])
    assert not set(gpu.PEERS) & set(names["uint8"])
    assert set(names["float32"]) == set(names["uint8"]) | set(gpu.PEERS)


def test_every_contender_has_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "ROUNDS", 2)
    kept: list[int] = []
    cases = [case("uint8"), case("float32")]
    rows = gpu.run(cases, CPU, SETTING, seconds_of, lambda rows: kept.append(len(rows)))
    assert kept == [len(rows)]
    found = {(row["dtype"], row["contender"]): row for row in rows}
    assert all(set(row) == set(gpu.COLUMNS) for row in rows)
    assert all(row["triton"] == (gpu_state().triton_version or "") for row in rows)
    for dtype in ("uint8", "float32"):
        ours = found[dtype, "diffgen"]
        assert float(ours["time_ms"]) > 0 and ours["in_bounds"] == "yes" and ours["rounds"] == "2"
        chosen_here = "cpu" if registry.get("cpu").unavailable() is None else "eager"
        assert ours["backend"] == chosen_here
        assert ours["note"] == f"backend {chosen_here}; exact: what it skips cannot count"
        assert found[dtype, "diffgen-eager"]["backend"] == "eager"
        refused = found[dtype, "diffgen-cuda"]
        assert refused["time_ms"] == "" and "needs data and query on one CUDA" in refused["note"]
    for peer_name in gpu.PEERS:
        row = found["float32", peer_name]
        assert float(row["error_in_promises"]) > 0 and row["time_ms"] and row["backend"] == ""
    assert capsys.readouterr().out.count("\n") == len(rows)


def test_ours_are_judged_by_mean_and_logsumexp_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a backend has to be that gives no functionals."""

    def posterior(*_: Any, **__: Any) -> None:
        raise AssertionError("asks for functionals")

    monkeypatch.setattr(EmpiricalDenoiser, "posterior", posterior)
    for dtype in ("uint8", "float32"):
        one, store = case(dtype), Store()
        store.open([one])
        query = store.queries(one)
        _, exact = reference(store.images(one), query, one.sigma)
        for contender in table(elsewhere=True):
            if contender.name in ("diffgen", "diffgen-eager"):
                methods = contender.prepare(store.images(one))
                assert methods.logsumexp is not None
                error = methods.logsumexp(query, one.sigma) - exact
                assert float(error.abs().max()) <= 1e-3


def test_precision_of_a_peer_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        torch_peers,
        "_expanded",
        lambda *_: Prepared(
            lambda *_: asked.append(torch.get_float32_matmul_precision()),
            lambda *_: None,
            lambda *_: asked.append(torch.get_float32_matmul_precision()),
        ),
    )
    [contender] = [c for c in table(elsewhere=True) if c.name == "expanded-tf32"]
    assert contender.name not in {c.name for c in table()}
    before = torch.get_float32_matmul_precision()
    methods = contender.prepare(torch.zeros(2, 3))
    methods.denoise(torch.zeros(1, 3), 1.0)
    assert methods.logsumexp is not None
    methods.logsumexp(torch.zeros(1, 3), 1.0)
    assert asked == ["high", "high"] and torch.get_float32_matmul_precision() == before


def test_the_commit_is_what_the_environment_says_or_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpu.COMMIT, "0123456789ab")
    assert gpu.commit() == "0123456789ab"
    monkeypatch.delenv(gpu.COMMIT)
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=128))
    assert gpu.commit() == ""
    assert gpu.COMMIT in (ROOT / "benchmarks" / "README.md").read_text()


def test_failures_are_rows_and_ours_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Contender("peer", failing(torch.OutOfMemoryError("CUDA out of memory")))
    broken = Contender("diffgen-broken", failing(ValueError("planted\nmore")))
    monkeypatch.setattr(gpu, "contenders_of", lambda *_: [full])
    [row] = gpu.run([case("float32")], CPU, SETTING, seconds_of)
    assert (row["note"], row["time_ms"]) == ("out of memory", "")
    monkeypatch.setattr(gpu, "contenders_of", lambda *_: [full, broken])
    with pytest.raises(
        RuntimeError, match=r"diffgen failed: .*diffgen-broken: ValueError: planted"
    ):
        gpu.run([case("float32")], CPU, SETTING, seconds_of)


def test_rounds_take_calls_in_turn() -> None:
    order: list[str] = []
    lasts = {"short": 1e-4, "long": 3.0}

    def clock(call: Callable[[], object], repeats: int) -> float:
        name = str(call())
        order.append(f"{name} x{repeats}")
        return lasts[name]

    times = gpu.interleaved([lambda: "short", lambda: "long"], clock)
    assert [len(one) for one in times] == [gpu.ROUNDS, 1]
    assert order[:5] == ["short x1", "long x1", "short x20", "long x1", "short x20"]


def test_make_gpu_runs_tests_then_sanitizers_then_the_benchmark() -> None:
    plain = gpu_suite.commands(None)
    assert [command[-1] for command in plain] == [
        "tests/test_gpu_users.py",
        "benchmarks.gpu",
        "benchmarks.gpu_profile",
    ]
    checked = gpu_suite.commands("compute-sanitizer")
    assert [command[2] for command in checked[1:-2]] == list(gpu_suite.TOOLS)
    text = (ROOT / "tests" / "test_gpu_device.py").read_text()
    assert f"def {gpu_suite.SUBSET}" in text
    assert "python -m benchmarks.gpu_suite" in (ROOT / "Makefile").read_text().replace(
        "$(PYTHON)", "python"
    )


def test_make_gpu_stops_at_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [["true"], ["false"], ["true"]]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_suite, "gpu_state", lambda: None)
    monkeypatch.setattr(gpu_suite, "gpu_lines", lambda _: [])
    monkeypatch.setattr(gpu_suite, "commands", lambda _: steps)
    assert gpu_suite.main() == 1
    monkeypatch.setattr(gpu_suite, "commands", lambda _: steps[:1])
    assert gpu_suite.main() == 0


def test_without_a_gpu_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_suite.main() == 0
    printed = capsys.readouterr().out
    assert "\nSKIPPED GPU tests, sanitizers and benchmark: PyTorch sees no GPU\n" in printed
    assert "\ncuda     " in printed and "\ntriton   " in printed
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == "SKIPPED GPU benchmark: PyTorch sees no GPU\n"
