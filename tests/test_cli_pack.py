"""``diffgen pack``: what it prints, writes and refuses, and how it is stopped and continued."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
import torch
from processes import ELSEWHERE
from test_readers import WRITERS, images

from diffgen import TrainingSet
from diffgen.cli import pack
from diffgen.cli.main import main
from diffgen.readers import packing

ROWS = 5_000
"""Five shards of 1 MiB: four of 1,024 rows and one of the rest."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", images(count=ROWS, shape=(3, 16, 16)))
    return tmp_path / "x.npy"


def run(*arguments: Any) -> int:
    return main(["pack", *map(str, arguments)])


def error(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line that a mistake gives."""
    capsys.readouterr()
    assert run(*arguments) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "Traceback" not in printed
    return printed.strip()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_packed_set_equals_its_source(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, tmp_path / "out", "--shard-mib", 1) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    plan, summary = printed.out.splitlines()
    assert plan.endswith(
        "x.npy: 5,000 rows of 3 x 16 x 16, 3.8 MB, without labels; 5 shards of up to 1,024 rows"
    )
    assert summary.startswith(
        "packed 5,000 rows of 3 x 16 x 16 uint8, 3.8 MB in 5 shards, without labels, in "
    )
    assert summary.endswith(f" MB/s); in {tmp_path / 'out'}")
    packed, original = TrainingSet.open(tmp_path / "out"), TrainingSet.open(source)
    assert packed.sha256 == original.sha256
    assert torch.equal(packed[:], original[:]) and packed.labels is None


@pytest.mark.parametrize("name", ["cifar_py_tar", "edm_zip", "packed"])
def test_labels_come_along(name: str, tmp_path: Path) -> None:
    data = images(shape=(3, 32, 32))
    path = WRITERS[name](tmp_path, data, np.arange(11) % 10)
    assert run(path, tmp_path / "out") == 0
    packed, original = TrainingSet.open(tmp_path / "out"), TrainingSet.open(path)
    assert packed.sha256 == original.sha256
    assert packed.labels is not None and original.labels is not None
    assert torch.equal(packed.labels, original.labels)
    assert run(path, tmp_path / "bare", "--no-labels") == 0
    assert TrainingSet.open(tmp_path / "bare").labels is None


def test_array_and_labels_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = images()
    np.savez(tmp_path / "x.npz", a=data, b=255 - data, kind=np.arange(11), y=np.zeros(11, int))
    arguments = (tmp_path / "x.npz", tmp_path / "out", "--member", "b", "--label-column", "kind")
    assert run(*arguments) == 0
    packed = TrainingSet.open(tmp_path / "out", value_range=(0, 255))
    assert torch.equal(packed[:], torch.from_numpy(255 - data).float())
    assert packed.labels is not None and packed.labels.tolist() == list(range(11))
    bare = (tmp_path / "x.npz", tmp_path / "other", "--member", "a")
    assert "labels must be among the members" in error(capsys, *bare, "--label-column", "none")
    assert "exclude each other" in error(capsys, *bare, "--label-column", "y", "--no-labels")
    assert run(*bare, "--labels") == 0
    assert TrainingSet.open(tmp_path / "other").num_classes == 1


def test_hugging_face_dataset_is_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = images()
    path = tables.write_dataset_of_splits(tmp_path, data, np.arange(11))
    arguments = ("--split", "train", "--image-column", "image", "--label-column", "label")
    assert run(path, tmp_path / "out", *arguments) == 0
    packed = TrainingSet.open(tmp_path / "out", value_range=(0, 255))
    assert torch.equal(packed[:], torch.from_numpy(data).float())
    assert packed.labels is not None and packed.labels.tolist() == list(range(11))
    assert "split must be one of ['train']" in error(
        capsys, path, tmp_path / "other", "--split", "test"
    )


def test_how_it_was_made_stands_in_it(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "out", "--shard-mib", 2) == 0
    made = json.loads((tmp_path / "out" / "meta.json").read_text())["made"]
    assert made["command"] == "pack"
    assert made["settings"] == {"member": None, "labels": None, "split": None, "shard_mib": 2}
    assert set(made["versions"]) == {"diffgen", "python", "torch", "numpy"}
    assert made["source"]["path"] == str(source) and len(made["source"]["files_sha256"]) == 64


def test_mistakes_are_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "path must exist, got nowhere" in error(capsys, "nowhere", out)
    assert "must be at least 1, got 0" in error(capsys, source, out, "--shard-mib", 0)
    assert "--split is for Hugging Face datasets" in error(capsys, source, out, "--split", "train")
    assert "required: OUT" in error(capsys, source)
    np.save(tmp_path / "floats.npy", np.zeros((3, 2), np.float32))
    floats = error(capsys, tmp_path / "floats.npy", out)
    assert "must be uint8 to be packed, got float32: the packed form keeps whole numbers" in floats
    assert not out.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "must be a new or empty folder" in error(capsys, source, tmp_path / "full")


def test_output_inside_the_source_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = WRITERS["image_folder"](tmp_path, images(), np.arange(11))
    (tmp_path / "link").symlink_to(path)
    for out in (path, path / "packed", path / ".." / "images" / "x", tmp_path / "link" / "x"):
        assert "OUT must not be inside SOURCE" in error(capsys, path, out)
    assert run(path, tmp_path / "images-packed") == 0


def test_ctrl_c_keeps_the_whole_shards_and_the_same_command_continues(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls = []
    original = packing.squared_norms

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(packing, "squared_norms", stopping)
    out = tmp_path / "out"
    assert run(source, out, "--shard-mib", 1) == 130
    printed = capsys.readouterr()
    assert f"the whole shards stay in {out}; the same command continues" in printed.err
    assert "packed" not in printed.out
    assert set(contents(out)) == {"pack.json", "norms.part", "data_00000.npy", "data_00001.npy"}
    assert "must hold images or a finished set" in str(refused(out))
    assert "of rows_per_shard 1024, got 2048" in error(capsys, source, out, "--shard-mib", 2)
    capsys.readouterr()
    assert run(source, out, "--shard-mib", 1) == 0
    assert "\ncontinued after 2,048 rows: packed 5,000 rows" in capsys.readouterr().out
    assert run(source, tmp_path / "other", "--shard-mib", 1) == 0
    assert contents(out) == contents(tmp_path / "other")


def refused(path: Path) -> Exception:
    with pytest.raises(ValueError) as caught:
        TrainingSet.open(path)
    return caught.value


def test_changed_source_does_not_continue(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "_describe", stop)
    assert run(source, tmp_path / "out", "--shard-mib", 1) == 130
    monkeypatch.undo()
    moved = tmp_path / "elsewhere.npy"
    source.rename(moved)
    changed = os.stat(moved).st_mtime_ns
    os.utime(moved, ns=(changed, changed + 1))
    arguments = (moved, tmp_path / "out", "--shard-mib", 1)
    assert "of another source, or of this one before it changed" in error(capsys, *arguments)
    os.utime(moved, ns=(changed, changed))
    assert run(*arguments) == 0


LIMITED = """
import resource, sys
from diffgen.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, resource.RLIM_INFINITY))
print(main(["pack", *sys.argv[1:]]))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(main(["pack", *sys.argv[1:]]))
"""


def test_limit_of_file_sizes_is_one_line_and_the_same_command_continues(tmp_path: Path) -> None:
    """No file may have more than 6 MiB: the norms of the second shard do not fit."""
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("the size of files is limited here already")
    np.save(tmp_path / "x.npy", images(count=1_200_000, shape=(2,)))
    out = tmp_path / "out"
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "x.npy"), str(out), "--shard-mib", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ELSEWHERE)
    assert done.stderr == (
        f"diffgen: {out}: File too large: 524,288 of 1,200,000 rows are packed (1.0 MB), "
        "1.4 MB are missing: make room, and the same command continues\n"
    )
    lines = done.stdout.splitlines()
    assert lines[1] == "2" and lines[4] == "0"
    assert lines[3].startswith("continued after 524,288 rows: packed 1,200,000 rows")
    assert TrainingSet.open(out).sha256 == TrainingSet.open(tmp_path / "x.npy").sha256


FILL = """
mount -t tmpfs -o size=3m tmpfs "$1" || exit 77
shift
"$@"; echo "status $?"
ls "$OUT"
mount -o remount,size=16m "$MOUNT"
"$@"; echo "status $?"
cp -r "$OUT" "$KEPT"
"""


def test_full_disk_is_one_line_and_the_same_command_continues(source: Path, tmp_path: Path) -> None:
    """A file system of 3 MiB fills up; then it gets more room."""
    disk, out, kept = tmp_path / "disk", tmp_path / "disk" / "out", tmp_path / "kept"
    disk.mkdir()
    command = [sys.executable, "-m", "diffgen", "pack", str(source), str(out), "--shard-mib", "1"]
    try:
        done = subprocess.run(
            ["unshare", "-Urm", "sh", "-c", FILL, "sh", str(disk), *command],
            capture_output=True, text=True, check=False, cwd=ELSEWHERE,
            env={**os.environ, "OUT": str(out), "MOUNT": str(disk), "KEPT": str(kept)},
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs unshare, to mount a small file system")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"needs the right to mount a small file system: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        f"diffgen: {out}: No space left on device: 3,072 of 5,000 rows are packed (2.4 MB), "
        "1.5 MB are missing: make room, and the same command continues\n"
    )
    assert "status 2" in done.stdout and "continued after 3,072 rows" in done.stdout
    assert "only 3.1 MB are free there: it will stop when the disk is full" in done.stdout
    assert done.stdout.rstrip().endswith("status 0")
    assert run(source, tmp_path / "other", "--shard-mib", 1) == 0
    assert contents(kept) == contents(tmp_path / "other")


def test_progress_starts_where_the_work_does(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = []

    class Bar(packing.Progress):
        def __init__(self, total: int, what: str) -> None:
            totals.append((total, what))
            super().__init__(total, what)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "Progress", Bar)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_describe", stop)
        assert run(source, tmp_path / "out") == 130
    assert run(source, tmp_path / "out") == 0
    assert totals == [(ROWS, "packing"), (0, "packing")]


def test_overlap_is_of_folders_only(source: Path, tmp_path: Path) -> None:
    pack._refuse_overlap(str(source), str(tmp_path / "x.npy-packed"))
    with pytest.raises(ValueError, match="OUT must not be inside SOURCE"):
        pack._refuse_overlap(str(tmp_path), str(tmp_path / "a" / "b"))
