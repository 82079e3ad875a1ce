"""``diffgen demo``: its numbers, its files, and what is left when it is stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffgen import TrainingSet, machine
from diffgen.cli import demo
from diffgen.cli.digits import load_digits
from diffgen.cli.main import main
from diffgen.cli.pictures import as_picture, write_grid
from diffgen.selfcheck import stored_images


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "measure", lambda: machine.Ceilings(10.0, 100.0, 1, "by hand"))
    monkeypatch.setattr(demo, "MOST_NOISED", 20)


def _run(out: Path, *arguments: str) -> dict[str, Any]:
    assert main(["demo", "--out", str(out), "--steps", "4", "--samples", "12", *arguments]) == 0
    record: dict[str, Any] = json.loads((out / "demo.json").read_text())
    return record


def _colour_images(count: int) -> np.ndarray:
    return stored_images(count, 3, 8, torch.uint8).reshape(count, 3, 8, 8).numpy()


def test_digits_are_exact() -> None:
    digits = load_digits()
    assert (digits.num_stored, tuple(digits.sample_shape), digits.num_classes) == (
        1797,
        (1, 8, 8),
        10,
    )
    datasets = pytest.importorskip("sklearn.datasets")
    pixels = torch.from_numpy(datasets.load_digits().images)
    # 16 grey levels over [-1, 1] are eighths: every type holds them without rounding.
    assert torch.equal(digits[torch.arange(1797)].double()[:, 0], pixels / 8 - 1)


def test_demo_memorizes_the_digits_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = _run(tmp_path, "--steps", "10")
    ratios = {name: found["ratio"] for name, found in record["memorization"].items()}
    # Every sample of the optimum is a training point; real images lie between them.
    assert ratios["ddim"] == ratios["heun"] == 1.0
    assert ratios["held_out"] < 0.02
    assert len(record["memorization"]["held_out"]["nearest_distance"]) == 797
    data = record["data"]
    assert (data["training_set"]["num_points"], data["num_held_out"]) == (1000, 797)
    assert data["source"]["sha256"] == load_digits().sha256
    assert record["finished"] and record["command"] == "demo"
    assert record["settings"]["seed"] == 0 and record["settings"]["samples"] == 12
    assert set(record["versions"]) == {"diffgen", "python", "torch", "numpy"}
    ran = record["ran"]
    # DDIM calls once a step, Heun twice but for the last.
    assert (ran["calls"], ran["queries"]) == (10 + 19, 12 * 29)
    assert ran["counted_bytes"] == 29 * 1000 * 64
    assert ran["counted_operations"] == 4 * 12 * 29 * 1000 * 64
    assert ran["share_of_ceiling"] > 0
    counts = record["neighbors"]["training images"]["exp_mean_entropy"]
    assert counts[0] == pytest.approx(1.0, abs=1e-3) and counts[-1] > 990
    printed = capsys.readouterr()
    for word in ("DDIM, 10 steps", "Held-out real images", "1.000", f"backend {record['backend']}"):
        assert word in printed.out
    assert "ddim" in printed.err and "heun" in printed.err
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_samples_are_the_training_rows_that_the_record_names(tmp_path: Path) -> None:
    record = _run(tmp_path, "--steps", "10")
    rows = torch.tensor(record["memorization"]["heun"]["nearest_row"])
    samples = torch.from_numpy(np.load(tmp_path / "heun.npy"))
    off = (samples - load_digits()[rows]).flatten(1).norm(dim=1)
    want = torch.tensor(record["memorization"]["heun"]["nearest_distance"])
    # The samples are float32 near 1: the norm of 64 differences is right to 64 roundings.
    torch.testing.assert_close(off.double(), want.double(), rtol=0, atol=64 * 2**-24)


def test_seed_decides_everything(tmp_path: Path) -> None:
    def numbers(record: dict[str, Any]) -> Any:
        return record["memorization"], record["neighbors"], record["data"]["training_set"]

    first, again = (_run(tmp_path / name) for name in ("a", "b"))
    other = _run(tmp_path / "c", "--seed", "1")
    assert numbers(first) == numbers(again)
    assert numbers(first)[2]["sha256"] != numbers(other)[2]["sha256"]


@pytest.mark.parametrize("flip", [False, True])
def test_own_colour_images_lose_a_fifth_to_the_held_out(tmp_path: Path, flip: bool) -> None:
    path = tmp_path / "colour.npy"
    np.save(path, _colour_images(40))
    record = _run(tmp_path / "out", "--data", str(path), *(["--flip"] if flip else []))
    assert record["data"]["num_held_out"] == 8
    assert record["data"]["source"]["sha256"] == TrainingSet.open(path, flip=flip).sha256
    ddim = record["memorization"]["ddim"]
    assert ddim["ratio"] == 1.0
    assert ddim["settings"]["num_points"] == (64 if flip else 32)
    assert (ddim["nearest_is_mirrored"] is not None) == flip
    assert max(ddim["nearest_row"]) < 40


@pytest.mark.parametrize("shape", [(5,), (6, 4), (4, 6, 3), (2, 3, 4, 5)])
def test_other_shapes_and_floats_work(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "points.npy"
    np.save(path, np.random.default_rng(0).normal(size=(12, *shape)).astype(np.float32))
    record = _run(tmp_path / "out", "--data", str(path))
    assert record["finished"]
    assert np.load(tmp_path / "out" / "ddim.npy").shape == (12, *shape)


def test_smallest_set_has_nothing_to_hold_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "two.npy"
    np.save(path, _colour_images(2))
    record = _run(tmp_path / "out", "--data", str(path))
    assert list(record["memorization"]) == ["ddim", "heun"]
    assert list(record["neighbors"]) == ["training images"]
    assert "Held-out" not in capsys.readouterr().out
    np.save(path, _colour_images(1))
    assert main(["demo", "--data", str(path), "--out", str(tmp_path / "one")]) == 2
    assert "at least 2 images, got 1" in capsys.readouterr().err


def test_stopped_demo_leaves_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = demo.sample

    def stopped_in_heun(*arguments: Any, **options: Any) -> torch.Tensor:
        if options["sampler"] == "heun":
            raise KeyboardInterrupt
        return drawn(*arguments, **options)

    monkeypatch.setattr(demo, "sample", stopped_in_heun)
    arguments = ["demo", "--out", str(tmp_path), "--steps", "4", "--samples", "12"]
    assert main(arguments) == 130
    record = json.loads((tmp_path / "demo.json").read_text())
    assert record["finished"] is False
    assert np.load(tmp_path / "ddim.npy").shape == (12, 1, 8, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ddim.npy", "demo.json"]
    printed = capsys.readouterr()
    assert "Not finished" in printed.out
    assert printed.err.endswith("diffgen: stopped\n")


def test_missing_dependency_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # None in sys.modules is how Python marks a module that cannot be imported.
    for module, package in (("sklearn.datasets", "scikit-learn"), ("matplotlib", "matplotlib")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        assert main(["demo", "--out", str(tmp_path / "out")]) == 2
        message = capsys.readouterr().err
        assert message == f"diffgen: this needs {package}: pip install 'diffgen[demo]'\n"
    assert not (tmp_path / "out").exists()


def test_pictures_take_channels_first_and_last() -> None:
    pixels = torch.rand(3, 5, 7)
    first = as_picture(pixels, (0.0, 1.0))
    assert first.shape == (5, 7, 3)
    assert (first == as_picture(pixels.permute(1, 2, 0), (0.0, 1.0))).all()
    assert as_picture(torch.rand(1, 5, 7), (0.0, 1.0)).shape == (5, 7)
    assert as_picture(torch.rand(9, 5, 7), (0.0, 1.0)).shape == (5, 7)
    clipped = as_picture(torch.tensor([[-9.0, 0.0, 9.0, float("nan")]]), (-1.0, 1.0))
    assert clipped.tolist() == [[0.0, 0.5, 1.0, 0.0]]


def test_grid_holds_every_sample(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    samples = torch.arange(5).float().reshape(5, 1, 1, 1).expand(5, 1, 64, 64) / 4
    write_grid(tmp_path / "grid.png", samples, (0.0, 1.0))
    pixels = np.asarray(image.open(tmp_path / "grid.png"))
    # Five images of 64 in three columns and two rows, two white pixels between them.
    assert pixels.shape == (2 * 64 + 2, 3 * 64 + 2 * 2)
    corners = [pixels[row * 66, column * 66] for row in range(2) for column in range(3)]
    assert corners[:5] == [0, 64, 128, 191, 255]
    assert pixels[0, 64] == 255
