"""``diffgen train``: what it writes, that it goes on where it was stopped, and its mistakes."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from diffgen import TrainingSet, sample, schedules
from diffgen.cli.main import main
from diffgen.cli.options import generator
from diffgen.networks import MLP
from diffgen.objectives import NoisePrediction
from diffgen.training import checkpoints, load_denoiser, load_network

pytest.importorskip("accelerate")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "points.npy"
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    np.save(path, rows.numpy())
    return str(path)


def command(data: str, out: Path, *more: str) -> list[str]:
    return ["train", "--data", data, "--out", str(out), "--steps", "20", "--batch-size", "8",
            "--cpu", *more]  # fmt: skip


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([p.reshape(-1) for p in load_network(folder)[0].parameters()])


def test_run_writes_checkpoints_tables_and_settings(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(data, out, "--evaluate-every", "10", "--held-out", "20")) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and printed.startswith("20 steps: loss ")
    record = json.loads((out / "train.json").read_text())
    assert record["finished"] and record["settings"]["steps"] == 20
    whole = TrainingSet.open(data)
    assert record["training_set"]["num_points"] == 40
    assert record["training_set"]["sha256"] != whole.sha256
    assert record["run"]["training_set"]["sha256"] == record["training_set"]["sha256"]
    assert {"torch", "diffgen"} <= set(record["versions"])
    assert [path.name for path in checkpoints(out)] == ["step-00000020", "step-00000018"]
    with (out / "evaluations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["step"], row["split"]) for row in rows} == {
        (step, split) for step in ("10", "20") for split in ("train", "test")
    }
    # The line is the mean of the table.
    gaps = [float(r["gap"]) for r in rows if r["step"] == "20" and r["split"] == "test"]
    assert f"{sum(gaps) / len(gaps):.4g} on test points" in printed


def test_stopped_run_goes_on_and_ends_as_a_whole_one(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = NoisePrediction.draw
    calls = []

    def pressed(self, *args, **more):
        calls.append(0)
        if len(calls) == 7:
            signal.raise_signal(signal.SIGINT)
        return draw(self, *args, **more)

    monkeypatch.setattr(NoisePrediction, "draw", pressed)
    stopped = tmp_path / "stopped"
    assert main(command(data, stopped)) == 130
    assert "diffgen: stopped" in capsys.readouterr().err
    assert checkpoints(stopped)[0].name == "step-00000007"
    assert json.loads((stopped / "train.json").read_text())["finished"] is False
    assert main(command(data, stopped)) == 0
    assert json.loads((stopped / "train.json").read_text())["resumed_from"] == 7
    assert main(command(data, tmp_path / "whole")) == 0
    assert torch.equal(weights(stopped), weights(tmp_path / "whole"))


@pytest.mark.parametrize(
    "more",
    [
        ["--objective", "forward-time", "--gap", "uniform"],
        ["--objective", "closed-form", "--target", "v"],
        ["--process", "edm", "--target", "x0"],
        ["--process", "rectified_flow", "--target", "velocity", "--schedule", "linear"],
        ["--process", "ve", "--held-out", "0", "--accumulation-steps", "2"],
    ],
    ids=" ".join,
)
def test_trained_network_can_be_sampled_from(data: str, tmp_path: Path, more: list[str]) -> None:
    assert main(command(data, tmp_path / "run", *more)) == 0
    denoiser, identity = load_denoiser(tmp_path / "run")
    assert isinstance(denoiser.network, MLP)
    assert identity["objective"]["target"] == denoiser.target
    low, high = max(denoiser.sigma_min, 0.1), min(denoiser.sigma_max, 20.0)
    drawn = sample(denoiser, (3, 4), torch.linspace(high, low, 4, dtype=torch.float64))
    assert drawn.shape == (3, 4) and bool(drawn.isfinite().all())


def test_sample_draws_from_a_trained_network(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "samples.npy"
    assert main(command(data, run)) == 0
    arguments = ["sample", data, "--out", str(out), "--num", "3", "--steps", "4"]
    assert main([*arguments, "--network", str(run)]) == 0
    denoiser, identity = load_denoiser(run)
    levels = schedules.karras(4, denoiser.sigma_min, 80.0)
    source = generator(0, "batch 0")
    assert np.array_equal(np.load(out), sample(denoiser, (3, 4), levels, generator=source).numpy())
    record = json.loads((tmp_path / "samples.npy.json").read_text())
    assert record["network"]["settings"] == identity["settings"]
    assert record["finished"] and "ran" not in record
    capsys.readouterr()
    assert main([*arguments, "--network", str(run), "--backend", "eager"]) == 2
    assert "--backend is of the optimal model, got it with --network" in capsys.readouterr().err
    assert main([*arguments, "--network", str(tmp_path / "none")]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err


def test_digits_are_the_default(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    arguments = ["train", "--out", str(tmp_path), "--steps", "2", "--batch-size", "4", "--cpu"]
    assert main(arguments) == 0
    record = json.loads((tmp_path / "train.json").read_text())
    assert record["training_set"]["num_points"] == 1000
    assert record["run"]["network"]["arguments"]["sample_shape"] == [1, 8, 8]


def test_mistakes_are_one_line_and_leave_the_run_as_it_was(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(data, out)) == 0
    before = {path.name: path.read_bytes() for path in out.glob("*.*")}
    for more, message in (
        (["--seed", "1"], "settings.seed = 1, not 0"),
        (["--no-resume"], "must hold no checkpoints with resume=False"),
        (["--objective", "forward-time", "--target", "v"], "has --target epsilon, got v"),
        (["--accumulation-steps", "3"], "batch_size must be divisible"),
        (["--ema-decay", "1"], "ema_decay must be in [0, 1), got 1"),
        (["--held-out", "59"], "needs at least 2 images"),
        (["--steps", "0"], "must be at least 1, got 0"),
    ):
        capsys.readouterr()
        assert main(command(data, out, *more)) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and message in printed.err
        assert printed.err.count("\n") == 1 and "Traceback" not in printed.err
    assert {path.name: path.read_bytes() for path in out.glob("*.*")} == before
