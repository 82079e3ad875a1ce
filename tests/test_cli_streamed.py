"""Commands over sets that stay in their files: the same bytes as over sets in memory."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffgen import TrainingSet, machine, selfcheck
from diffgen.cli import demo
from diffgen.cli.main import main
from diffgen.cli.progress import Bar
from diffgen.streaming import opening
from diffgen.streaming.place import FilePlace

ROWS = 2_500
"""Two segments of 1,024 rows and a part of a third."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(machine, "measure", lambda: machine.Ceilings(10.0, 100.0, 1, "by hand"))
    monkeypatch.setattr(demo, "MOST_NOISED", 10)
    monkeypatch.setattr(demo, "NUM_LEVELS", 4)
    monkeypatch.setattr(demo.figures, "draw", lambda *arguments: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "x.npz"
    pixels = selfcheck.stored_images(ROWS, 1, 8, torch.uint8).reshape(ROWS, 1, 8, 8)
    # Each image twice, far apart: measures read rows to see what is the same.
    pixels[ROWS // 2 :] = pixels[: ROWS // 2]
    np.savez(path, images=pixels.numpy(), labels=np.arange(ROWS) % 3)
    np.save(path.with_suffix(".npy"), pixels.numpy())
    assert main(["pack", str(path), str(path.with_name("packed")), "--labels"]) == 0
    return path


@pytest.fixture(params=["x.npy", "packed"])
def stored(request: pytest.FixtureRequest, source: Path) -> Path:
    return source.with_name(request.param)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows of every pass over a file."""
    seen: list[int] = []
    through = FilePlace._through

    def counted(place: FilePlace, pieces: Any, *others: Any) -> None:
        seen.append(sum(piece.count for piece in pieces))
        through(place, pieces, *others)

    directly = FilePlace._go_direct

    def counted_directly(place: FilePlace, pieces: Any, take: Any) -> None:
        seen.append(sum(piece.count for piece in pieces))
        directly(place, pieces, take)

    monkeypatch.setattr(FilePlace, "_through", counted)
    monkeypatch.setattr(FilePlace, "_go_direct", counted_directly)
    return seen


def sampled(path: Path, out: Path, *arguments: str) -> bytes:
    command = ["sample", str(path), "--out", str(out), "--num", "5", "--steps", "6"]
    assert main([*command, *arguments]) == 0
    return out.read_bytes()


def test_samples_of_a_file_are_those_of_memory(
    stored: Path, tmp_path: Path, passes: list[int]
) -> None:
    kept = sampled(stored, tmp_path / "kept.npy")
    assert passes == []
    streamed = sampled(stored, tmp_path / "streamed.npy", "--no-in-memory")
    # Six noise levels need six passes at least.
    assert len(passes) >= 6 and set(passes) <= {ROWS, 1024, 2048, ROWS - 1024, ROWS - 2048}
    assert streamed == kept
    record = json.loads((tmp_path / "streamed.npy.json").read_text())
    assert record["settings"]["in_memory"] is False
    assert record["training_set"]["sha256"] == TrainingSet.open(stored).sha256


def test_samples_of_a_class_are_those_of_memory(source: Path, tmp_path: Path) -> None:
    packed = source.with_name("packed")
    of_class = ("--class-label", "2", "--sampler", "heun")
    kept = sampled(packed, tmp_path / "kept.npy", *of_class)
    assert sampled(packed, tmp_path / "streamed.npy", *of_class, "--no-in-memory") == kept
    assert sampled(packed, tmp_path / "all.npy", "--sampler", "heun") != kept


def test_demo_of_a_file_is_that_of_memory(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    command = ["demo", "--data", str(stored), "--steps", "4", "--samples", "6", "--out"]
    assert main([*command, str(tmp_path / "kept")]) == 0
    assert passes == []
    monkeypatch.setattr(opening, "MOST_BYTES_IN_MEMORY", 10_000)
    assert main([*command, str(tmp_path / "streamed")]) == 0
    assert passes
    kept, streamed = (
        json.loads((tmp_path / name / "demo.json").read_text()) for name in ("kept", "streamed")
    )
    for name in ("ddim.npy", "heun.npy"):
        assert (tmp_path / "kept" / name).read_bytes() == (
            tmp_path / "streamed" / name
        ).read_bytes()
    for part in ("data", "memorization", "neighbors", "backend"):
        assert kept[part] == streamed[part]


def test_large_file_is_read_into_memory_when_asked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    monkeypatch.setattr(opening, "MOST_BYTES_IN_MEMORY", 0)
    path = source.with_suffix(".npy")
    sampled(path, tmp_path / "kept.npy", "--in-memory")
    assert passes == []
    sampled(path, tmp_path / "streamed.npy")
    assert passes


def test_hidden_bar_draws_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffgen.cli.progress.DELAY_S", 0)
    for hidden in (True, False):
        with Bar("batches", 3, "batch", hidden=hidden) as bar:
            assert list(bar(range(3))) == [0, 1, 2]
        assert ("batches" in capsys.readouterr().err) is not hidden


class Terminal(io.StringIO):
    """A terminal that keeps all that is written to it."""

    def isatty(self) -> bool:
        return True


def test_bars_of_passes_do_not_fight_with_that_of_the_sampler(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffgen.readers.source.PROGRESS_DELAY_S", 0)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    sampled(source.with_suffix(".npy"), tmp_path / "x.npy", "--no-in-memory")
    shown = terminal.getvalue()
    # The digest is taken before the sampler starts; afterwards its bar is the only one, and
    # nothing moves the cursor to another line.
    assert "hashing" in shown or "reading" in shown or "measuring" in shown
    before, after = shown.split("ddim", 1)
    assert "x.npy" in before and "x.npy" not in after
    assert "\x1b[A" not in shown
