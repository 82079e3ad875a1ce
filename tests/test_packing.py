"""Packing: the same bytes however often it is interrupted, and no set that looks whole too soon."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
import torch
from processes import ELSEWHERE
from test_readers import CIFAR, WRITERS, images

from diffgen.errors import DataError
from diffgen.readers import assemble, open_source, pack_journal
from diffgen.readers.fingerprint import fingerprint
from diffgen.readers.hugging_face import open_dataset
from diffgen.readers.packing import rows_per_shard, write
from diffgen.readers.source import Source, tensor_source

ME = {"source": "mine"}
ROW = 3 * 8 * 6


def read(path: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    with open_source(path) as source:
        return assemble(source), source.labels


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def failing(data: np.ndarray, error: BaseException, row: int) -> Source:
    """A source that raises instead of reading a row."""
    whole = tensor_source(torch.from_numpy(data))

    def fill(out: torch.Tensor, first: int) -> None:
        if first + len(out) > row:
            raise error
        whole.read(out, first)

    return Source("failing", whole.shape, whole.dtype, whole.blocks, fill=fill)


def interrupted(folder: Path, data: np.ndarray, rows: int = 8, **options: Any) -> Path:
    """A pack in shards of four rows that was stopped in the shard of a row."""
    with pytest.raises(KeyboardInterrupt):
        write(
            folder,
            failing(data, KeyboardInterrupt(), rows),
            shard_bytes=4 * ROW,
            **{"identity": ME, **options},
        )
    return folder


# What is written


@pytest.mark.parametrize("name", [*WRITERS, *tables.WRITERS])
def test_every_format_is_packed_as_it_is_read(name: str, tmp_path: Path) -> None:
    data = images(shape=(3, 32, 32) if name in CIFAR else (3, 8, 6))
    labels = np.arange(11) % 10
    path = {**WRITERS, **tables.WRITERS}[name](tmp_path, data, labels)
    opener = open_dataset if name in tables.WRITERS else open_source
    with opener(str(path), None, None) as source:
        found = source.labels
        packed = write(tmp_path / "out", source, shard_bytes=4 * data[0].nbytes)
    rows, read_labels = read(tmp_path / "out")
    assert np.array_equal(rows.numpy(), data)
    assert (packed.shape, packed.shards, packed.nbytes) == (data.shape, 3, data.nbytes)
    assert packed.labels == (found is not None) == (read_labels is not None)
    if found is not None and read_labels is not None:
        assert read_labels.tolist() == found.tolist() == labels.tolist()


def test_shards_are_cut_between_segments() -> None:
    each = rows_per_shard((10_000, 3, 32, 32))
    assert each == 21 * 1024
    assert rows_per_shard((10_000, 100), 1024 * 100) == 1024
    assert rows_per_shard((10_000, 100), 1024 * 100 - 1) == 1023
    assert rows_per_shard((10_000, 100), 99) == 1


def test_norms_are_those_of_the_rows(tmp_path: Path) -> None:
    data = images(count=23)
    data[0], data[1] = 0, 255
    write(tmp_path / "p", data, shard_bytes=4 * ROW)
    norms = np.load(tmp_path / "p" / "norms.npy")
    wanted = ((data.astype(np.int64) - 128) ** 2).reshape(23, -1).sum(1)
    assert norms.dtype == np.int64 and np.array_equal(norms, wanted)
    meta = json.loads((tmp_path / "p" / "meta.json").read_text())
    assert set(meta["norms"]) == set(meta["shards"][0]) == {"file", "rows", "sha256"}
    assert meta["norms"]["rows"] == 23


def test_large_rows_have_exact_norms(tmp_path: Path) -> None:
    # Beyond what float32, or 32 bits, hold.
    data = np.full((2, 300_000), 255, np.uint8)
    data[0, 0] = 127
    write(tmp_path / "p", data)
    assert np.load(tmp_path / "p" / "norms.npy").tolist() == [
        299_999 * 127**2 + 1,
        300_000 * 127**2,
    ]


def test_how_it_was_made_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "p", images(), made={"by": "hand"})
    assert json.loads((tmp_path / "p" / "meta.json").read_text())["made"] == {"by": "hand"}


def test_what_cannot_be_packed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 to be packed, got float32: the packed"):
        write(tmp_path / "p", np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"labels must be in \[0, \d+\), got -1 at index 1"):
        write(tmp_path / "p", tensor_source(torch.zeros(2, 2).byte(), torch.tensor([0, -1])))
    assert not (tmp_path / "p").exists()


# Interrupted, and continued

CRASHES = """
import os, signal, sys
import numpy as np
import torch
from diffgen.readers import packing
from diffgen.readers.source import Source

folder, rows = sys.argv[1], np.load(sys.argv[2])
torch.set_num_threads(1)
steps, last = 0, 0

def counted(function):
    def call(*arguments, **options):
        global steps
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

for name in ("makedirs", "fsync", "replace", "remove", "rename"):
    setattr(os, name, counted(getattr(os, name)))
packing.Source.read = counted(Source.read)

def pack(number, kill):
    global last
    last = kill
    source = packing.tensor_source(torch.from_numpy(rows), torch.arange(len(rows)))
    packing.write(f"{folder}/{number}", source, shard_bytes=600, identity={"source": "x"})

def killed(number):
    child = os.fork()
    if child == 0:
        pack(number, number)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert died or status == 0, status
    return died

number = 1
while killed(number):
    # Its successor has less to do: it is killed farther on, or finishes. A finished set has none.
    if os.path.exists(f"{folder}/{number}/pack.json"):
        killed(number)
    number += 1
print(number)
"""


def test_process_killed_at_any_step_continues_to_the_same_bytes(tmp_path: Path) -> None:
    """A process is killed before each of its calls that change the disk, and before each read.

    So is the one that continues, after as many calls of its own; then another continues.
    """
    data = images(count=11)
    np.save(tmp_path / "x.npy", data)
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", CRASHES, str(tmp_path / "out"), str(tmp_path / "x.npy")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, cwd=ELSEWHERE
    )
    count = int(done.stdout)
    source = tensor_source(torch.from_numpy(data), torch.arange(11))
    wanted = contents(tmp_path / "out" / str(count))
    assert count > 30 and "meta.json" in wanted and "pack.json" not in wanted
    kept = 0
    for number in range(1, count):
        folder = tmp_path / "out" / str(number)
        folder.mkdir(exist_ok=True)
        whole = "meta.json" in contents(folder)
        if whole:
            assert np.array_equal(read(folder)[0].numpy(), data)
        else:
            with pytest.raises(DataError):
                open_source(folder)
        done_before = []
        if (folder / "pack.json").exists():
            done_before = json.loads((folder / "pack.json").read_text())["shards"]
        inodes = [(folder / shard["file"]).stat().st_ino for shard in done_before]
        if whole and not done_before:
            assert contents(folder) == wanted, number
            continue
        packed = write(folder, source, shard_bytes=600, identity={"source": "x"})
        assert packed.found == sum(shard["rows"] for shard in done_before)
        assert contents(folder) == wanted, number
        assert inodes == [(folder / shard["file"]).stat().st_ino for shard in done_before]
        kept += bool(done_before)
    assert kept > 10


def test_interrupted_pack_is_continued_where_it_stopped(tmp_path: Path) -> None:
    data = images(count=19)
    interrupted(tmp_path / "p", data, rows=10)
    assert set(contents(tmp_path / "p")) == {
        "pack.json", "norms.part", "data_00000.npy", "data_00001.npy",
    }  # fmt: skip
    asked = []
    whole = tensor_source(torch.from_numpy(data))

    def fill(out: torch.Tensor, first: int) -> None:
        asked.append(first)
        whole.read(out, first)

    source = Source("counted", whole.shape, whole.dtype, whole.blocks, fill=fill)
    packed = write(tmp_path / "p", source, shard_bytes=4 * ROW, identity=ME)
    assert packed.found == 8 and min(asked) == 8
    write(tmp_path / "q", data, shard_bytes=4 * ROW)
    assert contents(tmp_path / "p") == contents(tmp_path / "q")


def test_error_of_the_source_leaves_what_is_whole(tmp_path: Path) -> None:
    data = images(count=19)
    with pytest.raises(DataError, match="row 9 is damaged"):
        write(
            tmp_path / "p",
            failing(data, DataError("row 9 is damaged"), 9),
            shard_bytes=4 * ROW,
            identity=ME,
        )
    assert write(tmp_path / "p", data, shard_bytes=4 * ROW, identity=ME).found == 8


def test_made_of_the_first_call_stays(tmp_path: Path) -> None:
    interrupted(tmp_path / "p", images(), made={"call": 1})
    write(tmp_path / "p", images(), shard_bytes=4 * ROW, identity=ME, made={"call": 2})
    assert json.loads((tmp_path / "p" / "meta.json").read_text())["made"] == {"call": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": {"source": "other"}}, "of another source, or of this one before it changed"),
        ({"identity": {**ME, "member": "y"}}, r"of member None, got 'y'"),
        ({"identity": {}}, "of another source, or of this one before it changed"),
        ({"shard_bytes": 5 * ROW}, r"of rows_per_shard 4, got 5"),
        ({"labels": range(11)}, r"of labels None, got '[0-9a-f]{64}'"),
        ({"data": images(count=12)}, r"of shape \[11, 3, 8, 6\], got \[12, 3, 8, 6\]"),
    ],
)
def test_another_pack_does_not_continue_it(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    interrupted(tmp_path / "p", images())
    before = contents(tmp_path / "p")
    same = {"data": images(), "shard_bytes": 4 * ROW, "identity": ME}
    with pytest.raises(ValueError, match=f"p holds an unfinished pack {message}: continue it"):
        write(tmp_path / "p", **{**same, **change})
    assert contents(tmp_path / "p") == before
    write(tmp_path / "p", **same)


def test_pack_without_identity_is_not_continued(tmp_path: Path) -> None:
    interrupted(tmp_path / "p", images(), identity=None)
    for identity in (None, ME):
        with pytest.raises(FileExistsError, match="unfinished pack that cannot be continued"):
            write(tmp_path / "p", images(), shard_bytes=4 * ROW, identity=identity)
    with pytest.raises(DataError):
        open_source(tmp_path / "p")


def shorten(folder: Path) -> None:
    with open(folder / "data_00000.npy", "r+b") as stream:
        stream.truncate(100)


def remove_shard(folder: Path) -> None:
    (folder / "data_00000.npy").unlink()


def change_last_byte(folder: Path) -> None:
    content = bytearray((folder / "data_00001.npy").read_bytes())
    content[-1] ^= 1
    (folder / "data_00001.npy").write_bytes(content)


def change_norms(folder: Path) -> None:
    content = bytearray((folder / "norms.part").read_bytes())
    content[40] ^= 1
    (folder / "norms.part").write_bytes(content)


def shorten_norms(folder: Path) -> None:
    os.truncate(folder / "norms.part", 63)


def remove_norms(folder: Path) -> None:
    (folder / "norms.part").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shorten, r"data_00000\.npy must have \d+ bytes, got 100"),
        (remove_shard, r"data_00000\.npy must have \d+ bytes, got 0"),
        (change_last_byte, r"sha256 of data_00001\.npy must be"),
        (change_norms, r"norms\.part must hold the norms of data_00001\.npy"),
        (shorten_norms, r"norms\.part must have 64 bytes, got 63"),
        (remove_norms, r"norms\.part must have 64 bytes, got 0"),
    ],
)
def test_damaged_beginning_is_not_continued(damage: Any, message: str, tmp_path: Path) -> None:
    interrupted(tmp_path / "p", images())
    damage(tmp_path / "p")
    with pytest.raises(ValueError, match=f"p: {message}.*remove the folder to start again"):
        write(tmp_path / "p", images(), shard_bytes=4 * ROW, identity=ME)


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 200_000, '{"job": 1, "shards": [1]}'])
def test_damaged_journal_is_refused(content: str, tmp_path: Path) -> None:
    interrupted(tmp_path / "p", images())
    (tmp_path / "p" / "pack.json").write_text(content)
    with pytest.raises(ValueError, match=r"pack\.json: malformed.*remove the folder"):
        write(tmp_path / "p", images(), shard_bytes=4 * ROW, identity=ME)


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="must be a new or empty folder"):
        write(tmp_path, images(), identity=ME)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    write(tmp_path / "p", images(), identity=ME)
    with pytest.raises(FileExistsError, match="must be a new or empty folder"):
        write(tmp_path / "p", images(), identity=ME)


def test_two_processes_do_not_pack_into_one_folder(tmp_path: Path) -> None:
    with (
        pack_journal.alone(str(tmp_path)),
        pytest.raises(FileExistsError, match="another process is packing into"),
    ):
        write(tmp_path, images(), identity=ME)
    write(tmp_path, images(), identity=ME)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("place", ["shard", "journal", "labels"])
def test_full_disk_says_what_is_missing(
    number: int, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = images(count=19)
    original = os.fsync
    calls = []

    def full(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}") if sys.platform == "linux" else ""
        calls.append(os.path.basename(path))
        wanted = {"shard": "data_00002.npy.part", "journal": "pack.json.part"}.get(
            place, "labels.npy.part"
        )
        if calls[-1] == wanted and calls.count("data_00001.npy.part") == 1:
            raise OSError(number, os.strerror(number))
        original(descriptor)

    if sys.platform != "linux":
        pytest.skip("the name behind a descriptor is looked up in /proc")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="make room, and the same command continues") as caught:
        write(tmp_path / "p", data, labels=range(19), shard_bytes=4 * ROW, identity=ME)
    rows = {"shard": 8, "journal": 4, "labels": 19}[place]
    # The journal counts a shard only once it is in it.
    assert f"{rows} of 19 rows are packed" in str(caught.value)
    assert caught.value.errno == number and caught.value.filename == str(tmp_path / "p")
    assert not [name for name in contents(tmp_path / "p") if name.endswith(".npy.part")]
    monkeypatch.undo()
    packed = write(tmp_path / "p", data, labels=range(19), shard_bytes=4 * ROW, identity=ME)
    assert packed.found == rows
    write(tmp_path / "q", data, labels=range(19), shard_bytes=4 * ROW)
    assert contents(tmp_path / "p") == contents(tmp_path / "q")


def test_source_that_changes_while_it_is_packed_is_refused(tmp_path: Path) -> None:
    data = images(count=19)
    np.save(tmp_path / "x.npy", data)
    with open_source(tmp_path / "x.npy") as source:

        def fill(out: torch.Tensor, first: int) -> None:
            source.read(out, first)
            if first == 8:
                os.utime(tmp_path / "x.npy", (1, 1))

        watched = Source(
            "x", source.shape, source.dtype, source.blocks, fill=fill, check=source.check
        )
        with pytest.raises(DataError, match=r"x\.npy: must not change while it is open"):
            write(tmp_path / "p", watched, shard_bytes=4 * ROW, identity=ME)
    # Found before the next shard, not at the end.
    assert sorted(name for name in contents(tmp_path / "p") if name.endswith(".npy")) == [
        f"data_{shard:05d}.npy" for shard in range(3)
    ]


# The fingerprint


def test_fingerprint_sees_names_sizes_and_times(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "x").write_text("1")
    (folder / "y").write_text("1")
    seen = {fingerprint(str(folder))}
    os.utime(folder / "y", ns=(1, 1))
    seen.add(fingerprint(str(folder)))
    (folder / "y").rename(folder / "z")
    seen.add(fingerprint(str(folder)))
    (folder / "z").write_text("12")
    os.utime(folder / "z", ns=(1, 1))
    last = fingerprint(str(folder))
    seen.add(last)
    assert len(seen) == 4
    (folder / ".hidden").write_text("")
    folder.rename(tmp_path / "moved")
    assert fingerprint(str(tmp_path / "moved")) == last
    assert fingerprint(str(tmp_path / "moved" / "z")) != last
    with pytest.raises(FileNotFoundError):
        fingerprint(str(folder))


def test_packing_module_is_light() -> None:
    code = (
        "import sys, diffgen.readers.packing, diffgen.readers.hugging_face\n"
        "print(sorted({'pyarrow', 'PIL', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ELSEWHERE
    )
    assert done.stdout.strip() == "[]"
