"""The ``diffgen`` command: help, errors, ``info`` and ``sample``."""

from __future__ import annotations

import functools
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffgen
from diffgen import EmpiricalDenoiser, TrainingSet, machine, schedules, selfcheck
from diffgen.backends import registry
from diffgen.backends.problem import Demands, Problem
from diffgen.cli import demo_text, info, options, report, sample, text
from diffgen.cli.main import COMMANDS, main
from diffgen.gpu_state import CudaPart, Device, GpuState

NAMES = [module.__name__.rpartition(".")[2] for module in COMMANDS]  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "measure", lambda: machine.Ceilings(10.0, 100.0, 1, "by hand"))
    monkeypatch.setattr(selfcheck, "SIZES", ((20, 3, 4),))
    monkeypatch.setattr(selfcheck, "STORAGE_TYPES", (torch.uint8, torch.float32))
    monkeypatch.setattr(selfcheck, "SIGMAS", (0.002, 2.0))
    monkeypatch.setattr(selfcheck, "SPEED_SIZE", (40, 3, 4))
    monkeypatch.setattr(selfcheck, "_SECONDS", 0.001)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npy"
    pixels = selfcheck.stored_images(30, 3, 4, torch.uint8).reshape(30, 3, 4, 4)
    np.save(path, pixels.numpy())
    return path


def _error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a mistake gives."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err
    return printed.err.strip()


def test_module_help_runs_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "diffgen", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    for name in NAMES:
        assert f"\n    {name} " in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_help_examples_and_a_seed(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--seed" in printed
    assert f"examples:\n  diffgen {name}" in printed


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"diffgen {diffgen.__version__}\n"


def test_mistakes_are_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "samples.npy")
    assert "COMMAND" in _error(capsys)
    assert "invalid choice: 'paint'" in _error(capsys, "paint")
    assert "required: PATH, --out" in _error(capsys, "sample")
    wrong = ("sample", str(images), "--out", out)
    assert "--steps: must be at least 1, got 0" in _error(capsys, *wrong, "--steps", "0")
    assert "must be a whole number, got 'x'" in _error(capsys, *wrong, "--num", "x")
    assert "must be positive and finite, got nan" in _error(capsys, *wrong, "--sigma-min", "nan")
    assert "0 < sigma_min < sigma_max" in _error(capsys, *wrong, "--sigma-min", "90")
    assert "invalid choice: 'rk4'" in _error(capsys, *wrong, "--sampler", "rk4")
    assert "backend must be one of" in _error(capsys, *wrong, "--backend", "tpu")
    assert "needs a set with labels" in _error(capsys, *wrong, "--class-label", "3")
    gif = ("sample", str(images), "--out", "samples.gif")
    assert "must end in .npy or .png, got 'samples.gif'" in _error(capsys, *gif)
    assert "nowhere.npy" in _error(capsys, "sample", str(tmp_path / "nowhere.npy"), "--out", out)
    assert not Path(out).exists()


def test_broken_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00")
    message = _error(capsys, "sample", str(path), "--out", str(tmp_path / "samples.npy"))
    assert "broken.npy" in message


def test_traceback_is_there_when_asked_for(tmp_path: Path) -> None:
    arguments = ["sample", str(tmp_path / "nowhere.npy"), "--out", str(tmp_path / "x.npy")]
    with pytest.raises(OSError, match="nowhere"):
        main(["--traceback", *arguments])


def test_defects_are_not_hidden(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: Any) -> None:
        raise AssertionError("planted")

    monkeypatch.setattr(sample, "open_set", defect)
    with pytest.raises(AssertionError, match="planted"):
        main(["sample", str(images), "--out", "x.npy"])


def test_ctrl_c_gives_130(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "open_set", stopped)
    assert main(["sample", str(images), "--out", "x.npy"]) == 130
    assert capsys.readouterr().err == "\ndiffgen: stopped\n"


def test_sample_writes_what_the_sampler_draws(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "samples.npy"
    arguments = ["--sampler", "heun", "--steps", "5", "--num", "3", "--seed", "4"]
    assert main(["sample", str(images), "--out", str(out), *arguments]) == 0
    training_set = TrainingSet.open(images)
    want = diffgen.sample(
        EmpiricalDenoiser(training_set),
        (3, 3, 4, 4),
        schedules.karras(5),
        sampler="heun",
        generator=options.generator(4, "batch 0"),
    )
    assert np.array_equal(np.load(out), want.numpy())
    record = json.loads((tmp_path / "deep" / "samples.npy.json").read_text())
    assert record["training_set"]["sha256"] == training_set.sha256
    assert record["settings"]["seed"] == 4 and record["settings"]["sampler"] == "heun"
    assert record["ran"]["calls"] == 9 and record["num_written"] == 3 and record["finished"]
    assert record["versions"]["diffgen"] == diffgen.__version__
    assert record["sigmas"] == schedules.karras(5).tolist()


def test_more_samples_keep_the_first_ones(images: Path, tmp_path: Path) -> None:
    drawn = []
    for num in (2, 5):
        out = tmp_path / f"{num}.npy"
        arguments = ["--sampler", "ddpm", "--steps", "4", "--batch", "2", "--num", str(num)]
        assert main(["sample", str(images), "--out", str(out), *arguments]) == 0
        drawn.append(np.load(out))
    assert len(drawn[1]) == 5
    assert np.array_equal(drawn[0], drawn[1][:2])


def test_sample_of_a_class_is_from_the_class(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training_set = TrainingSet(torch.from_numpy(np.load(images)), labels=torch.arange(30) % 3)
    monkeypatch.setattr(sample, "open_set", lambda *_: training_set)
    out = tmp_path / "samples.npy"
    arguments = ["sample", str(images), "--out", str(out), "--num", "8", "--steps", "8"]
    assert main([*arguments, "--class-label", "2"]) == 0
    samples = torch.from_numpy(np.load(out))
    members = training_set[torch.arange(2, 30, 3)]
    nearest = torch.cdist(samples.flatten(1), members.flatten(1)).min(1).values
    # One member in practice, up to float32 rounding of 48 differences in the expanded form.
    assert float(nearest.max()) < 1e-2
    assert "between 0 and 2, got 3" in _error(capsys, *arguments, "--class-label", "3")


def test_sample_draws_a_picture(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.png"
    assert main(["sample", str(images), "--out", str(out), "--num", "3", "--steps", "3"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "samples.png.json").exists()


def test_stopped_sample_keeps_the_finished_batches(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, calls = sample.sample, []

    def stops_in_the_third(*arguments: Any, **settings: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return drawn(*arguments, **settings)

    monkeypatch.setattr(sample, "sample", stops_in_the_third)
    out = tmp_path / "samples.npy"
    arguments = ["--num", "7", "--batch", "2", "--steps", "3"]
    assert main(["sample", str(images), "--out", str(out), *arguments]) == 130
    assert len(np.load(out)) == 4
    record = json.loads((tmp_path / "samples.npy.json").read_text())
    assert (record["num_written"], record["finished"]) == (4, False)


def test_info_lists_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for status in diffgen.backends():
        assert f"\n  {status.name} " in printed
        if status.reason is not None:
            assert status.reason in printed
    assert f"diffgen {diffgen.__version__}" in printed and "GB/s" in printed
    assert "OUT OF THE PROMISE" not in printed


def test_info_as_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    backends = {backend["name"]: backend for backend in record["backends"]}
    assert list(backends) == registry.names()
    assert backends["reference"]["accuracy"] is None and backends["reference"]["in_promise"]
    eager = backends["eager"]
    assert eager["accuracy"]["worst"] <= 1 and len(eager["speeds"]) == 3
    assert all(speed["share_of_ceiling"] > 0 for speed in eager["speeds"])
    assert record["ceilings"]["threads"] == 1


def test_info_exits_1_when_a_backend_is_out_of_the_promise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = registry.get("reference")

    def moments(*arguments: Any) -> Any:
        mean, *others = right.moments(*arguments)
        return (mean + 1e-3, *others)

    monkeypatch.setattr(registry, "_BACKENDS", dict(registry._BACKENDS))
    monkeypatch.setattr(registry, "_RANKED", list(registry._RANKED))
    registry.register(replace(right, name="planted", moments=moments))
    assert main(["info", "--backend", "planted", "--no-speed"]) == 1
    printed = capsys.readouterr().out
    assert "OUT OF THE PROMISE: " in printed
    assert "eager" not in printed


def test_info_says_why_a_backend_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_BACKENDS", dict(registry._BACKENDS))
    monkeypatch.setattr(registry, "_RANKED", list(registry._RANKED))
    absent = replace(registry.get("eager"), name="absent", unavailable=lambda: "no such device")
    registry.register(absent)
    assert main(["info", "--backend", "absent"]) == 0
    assert "no such device" in capsys.readouterr().out


def test_info_does_not_call_a_backend_exact_that_it_could_not_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_BACKENDS", dict(registry._BACKENDS))
    monkeypatch.setattr(registry, "_RANKED", list(registry._RANKED))
    refusing = replace(
        registry.get("eager"), name="elsewhere", refuses=lambda *_: ["needs another device"]
    )
    registry.register(refusing)
    assert main(["info", "--backend", "elsewhere"]) == 0
    printed = capsys.readouterr().out
    assert "not checked: it refuses every problem of the check" in printed
    assert "elsewhere refuses some problems: needs another device" in printed


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is not there: problems stay on the CPU, and their values are not checked."""

    def placed(parts: Any, device: torch.device) -> Any:
        gone = device.type == "cuda" and isinstance(parts, Problem)
        return replace(parts, check_values=False) if gone else parts

    def refuses(problem: Problem, demands: Demands) -> list[str]:
        if problem.check_values:
            return ["needs data on a GPU, got cpu"]
        name = str(problem.data.dtype)
        return [] if name == "torch.uint8" else [f"needs uint8 data, got {name}"]

    state = GpuState(
        "2.13.0", "13.0", None, (Device("Some GPU", "9.0", 2**30),), CudaPart("-"), "3"
    )
    monkeypatch.setattr(info, "gpu_state", lambda: state)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    rates = machine.Ceilings(3000.0, 50000.0, 1, "by hand")
    monkeypatch.setattr(info.gpu_rates, "measure", lambda device: rates)
    monkeypatch.setattr(selfcheck, "placed", placed)
    timed = functools.partial(selfcheck.speeds, clock=lambda *_: 2.5e-4)
    monkeypatch.setattr(selfcheck, "speeds", timed)
    monkeypatch.setattr(registry, "_BACKENDS", dict(registry._BACKENDS))
    monkeypatch.setattr(registry, "_RANKED", list(registry._RANKED))
    registry.register(replace(registry.get("eager"), name="there", refuses=refuses))


def test_info_checks_and_times_a_gpu_backend_on_the_gpu(
    gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "--backend", "there"]) == 0
    printed = capsys.readouterr().out
    assert "\n         3000 GB/s read, 50000 GF/s float32 on the GPU (by hand)\n" in printed
    assert "\ngpu      0: Some GPU, capability 9.0, 1.0 GiB\n" in printed
    [row] = re.findall(r"^  there .*ms.*$", printed, re.MULTILINE)
    # 4 x 40 x 48 bytes in 0.25 ms are 0.03 GB/s; the float sets are refused.
    assert row.split() == ["there", "0.25", "ms", "0.0", "GB/s", "0.001%"]
    assert "there refuses some problems: needs uint8 data, got torch.float32\n" in printed
    assert "\nchecked and timed on the GPU, beside its own ceiling: there\n" in printed
    assert "needs data on a GPU" not in printed and "OUT OF THE PROMISE" not in printed


def test_info_as_json_says_what_ran_on_a_gpu(gpu: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json", "--no-speed"]) == 0
    record = json.loads(capsys.readouterr().out)
    devices = {backend["name"]: backend.get("device") for backend in record["backends"]}
    assert devices["there"] == "cuda:0" and devices["eager"] is None
    assert record["gpu_ceilings"]["read_gb_s"] == 3000.0
    assert record["ceilings"]["read_gb_s"] != 3000.0


def test_info_without_a_gpu_says_nothing_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["info", "--json", "--no-speed"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert "gpu_ceilings" not in record
    assert not any("device" in backend for backend in record["backends"])


def test_refusals_that_differ_in_what_was_got_are_one() -> None:
    reasons = ("needs bytes, got a", "gives no top_k", "needs bytes, got b")
    assert info._joined(reasons) == ["needs bytes, got a, b", "gives no top_k"]


def test_json_has_no_nan_and_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record = {"a": torch.tensor([1.0, math.nan]), "b": (math.inf, None, True), "c": Path("x")}
    report.write_json(path, record)
    assert json.loads(path.read_text()) == {"a": [1.0, None], "b": [None, None, True], "c": "x"}
    with pytest.raises(OSError):
        report.write_json(tmp_path / "nowhere" / "record.json", record)
    assert [found.name for found in tmp_path.iterdir()] == ["record.json"]


def test_purposes_have_streams_of_their_own() -> None:
    def draw(seed: int, purpose: str) -> float:
        return float(torch.rand((), generator=options.generator(seed, purpose)))

    assert draw(0, "noise") == draw(0, "noise")
    assert len({draw(seed, purpose) for seed in (0, 1) for purpose in ("noise", "split")}) == 4


def test_text_is_aligned() -> None:
    printed = text.table([["a", "b"], ["long", "1.0"]], "<>")
    assert printed == "  a       b\n  long  1.0"
    assert [text.bar(share, 2) for share in (0.0, 0.25, 1.0)] == ["", "▌", "██"]
    assert text.seconds(119.7) == "2 min 0 s"
    assert text.percent(0.004) == "0.4%"


def test_what_ran_copes_with_no_time() -> None:
    ran = {
        "ceilings": {"threads": 2, "fma_gf_s": 1.0, "read_gb_s": 1.0},
        "share_of_ceiling": None,
        "backend": "eager",
        "calls": 1,
        "seconds": 0.0,
        "bound": "memory",
    }
    assert "- of the machine's" in demo_text.what_ran(ran, 1)
