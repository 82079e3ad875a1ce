"""Tuning of the Triton kernels: all but the GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmark_suite import load_suite

pytest.importorskip("triton", minversion="3.8")
load_suite()

from benchmarks import gpu_tuning  # noqa: E402
from diffgen.backends.triton import (  # noqa: E402
    bytes_configs,
    difference_configs,
    float_configs,
    tuned,
)
from diffgen.backends.triton.configs import Config, default  # noqa: E402

TABLES = (bytes_configs.CONFIGS, float_configs.CONFIGS, difference_configs.CONFIGS)
TABLE = {"one": {"": Config({"BLOCK": 128}, warps=4, stages=2)}, "other": {"": Config(warps=1)}}


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    tuned.tuned.cache_clear()
    monkeypatch.setattr(tuned, "_tried", {})
    return tmp_path


def pretend(
    table: dict[str, dict[str, Config]], seconds: Callable[[dict[str, Config]], float]
) -> tuple[gpu_tuning.Workload, Callable[[Callable[[], object], int], float]]:
    """A workload whose time follows from the configurations it runs with."""
    ran: list[dict[str, Config]] = []

    def call() -> tuple[torch.Tensor, ...]:
        ran.append({kernel: tuned.chosen(table, kernel, "sm_90") for kernel in table})
        return torch.zeros(2, 3), torch.zeros(2)

    def clock(timed: Callable[[], object], repeats: int) -> float:
        timed()
        return seconds(ran[-1])

    return gpu_tuning.Workload(table, [call], exact=True), clock


def test_kernels_have_one_name_over_all_tables() -> None:
    names = [kernel for table in TABLES for kernel in table]
    assert len(names) == len(set(names))


def test_every_table_has_an_entry_for_any_architecture() -> None:
    for table in TABLES:
        assert all("" in entries for entries in table.values())
    assert default(bytes_configs.CONFIGS, "products_few", "gfx942").warps == 2
    assert default(bytes_configs.CONFIGS, "products_few", "sm_120").warps == 4


def test_a_file_of_an_architecture_goes_before_the_default() -> None:
    config = Config({"BLOCK": 256}, warps=8, stages=3)
    path = tuned.write("sm_90", {"one": config}, {"gpu": "some"})
    assert tuned.chosen(TABLE, "one", "sm_90") == config
    assert tuned.chosen(TABLE, "one", "sm_80") == TABLE["one"][""]
    assert tuned.chosen(TABLE, "other", "sm_90") == TABLE["other"][""]
    assert json.loads(path.read_text())["settings"] == {"gpu": "some"}


@pytest.mark.parametrize("text", ["", "[]", '{"configs": {"one": {"warps": 4}}}', '{"configs": 3}'])
def test_a_file_that_is_no_table_is_refused(folder: Path, text: str) -> None:
    (folder / "sm_90.json").write_text(text)
    with pytest.raises(ValueError, match=r"sm_90.json must hold tuned configurations, got "):
        tuned.chosen(TABLE, "one", "sm_90")


def test_what_is_tried_goes_before_all_and_ends() -> None:
    tuned.write("sm_90", {"one": Config(warps=8)}, {})
    with tuned.trying("one", Config(warps=2)):
        with tuned.trying("one", Config(warps=1)):
            assert tuned.chosen(TABLE, "one", "sm_90").warps == 1
        assert tuned.chosen(TABLE, "one", "sm_90").warps == 2
    assert tuned.chosen(TABLE, "one", "sm_90").warps == 8


def test_neighbors_differ_in_one_number_within_range() -> None:
    for table in TABLES:
        for config in (config for entries in table.values() for config in entries.values()):
            found = gpu_tuning.neighbors(config)
            assert found and config not in found
            for one in found:
                old = {**config.blocks, "warps": config.warps, "stages": config.stages}
                new = {**one.blocks, "warps": one.warps, "stages": one.stages}
                assert sum(old[name] != new[name] for name in old) == 1
                assert old.keys() == new.keys()


def test_the_faster_configuration_is_found_and_the_other_kernel_stays() -> None:
    def seconds(configs: dict[str, Config]) -> float:
        one = configs["one"]
        return 1.0 - 0.2 * (one.warps == 8) - 0.1 * (one.blocks["BLOCK"] == 256)

    work, clock = pretend(TABLE, seconds)
    found = gpu_tuning.search(work, "sm_90", clock, say=lambda _: None)
    assert found == {"one": Config({"BLOCK": 256}, warps=8, stages=2)}


def test_a_gain_within_the_noise_is_left() -> None:
    work, clock = pretend(TABLE, lambda configs: 1.0 - 0.02 * (configs["one"].warps == 8))
    assert gpu_tuning.search(work, "sm_90", clock, say=lambda _: None) == {}


def test_a_fast_configuration_with_other_results_is_passed_over() -> None:
    def call() -> tuple[torch.Tensor, ...]:
        warps = tuned.chosen(TABLE, "one", "sm_90").warps
        if warps == 2:
            raise RuntimeError("out of resource: shared memory\nmore")
        return torch.full((2, 3), float(warps == 8)), torch.zeros(2)

    said: list[str] = []
    work = gpu_tuning.Workload(TABLE, [call], exact=True)
    assert gpu_tuning.search(work, "sm_90", lambda *_: 1.0, say=said.append) == {}
    assert any("warps 8" in line and line.endswith("other results") for line in said)
    assert any(line.endswith("RuntimeError: out of resource: shared memory") for line in said)


def test_results_within_the_promise_are_the_same_where_bits_are_not_owed() -> None:
    mean, mass = torch.zeros(2, 3), torch.full((2,), 1e4)
    close = (mean + 1.9e-5, mass + 1.9e-2)
    assert gpu_tuning._same(close, (mean, mass), exact=False)
    assert not gpu_tuning._same(close, (mean, mass), exact=True)
    assert not gpu_tuning._same((mean + 2.1e-5, mass), (mean, mass), exact=False)
    assert not gpu_tuning._same((mean, mass + 2.1e-2), (mean, mass), exact=False)


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_tuning.main([]) == 0
    assert capsys.readouterr().out == "SKIPPED tuning: PyTorch sees no GPU\n"
