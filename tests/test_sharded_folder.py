"""Folders of shards: one set from many files, and nothing that is not all of it."""

from __future__ import annotations

import os
import re
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from test_readers import edm_members, images, png, read

from diffgen.errors import DataError
from diffgen.readers import FORMATS, open_source, packing
from diffgen.training_set import TrainingSet

COUNTS = (4, 1, 6)
DATA = images(sum(COUNTS))
LABELS = np.arange(sum(COUNTS)) % 3


def save_npy(path, data, labels):
    np.save(f"{path}.npy", data)


def save_npz(path, data, labels):
    arrays = {"images": data} if labels is None else {"images": data, "y": labels}
    np.savez(f"{path}.npz", **arrays)


def save_npz_deflated(path, data, labels):
    arrays = {"images": data} if labels is None else {"images": data, "y": labels}
    np.savez_compressed(f"{path}.npz", **arrays)


def save_safetensors(path, data, labels):
    tensors = {"x": torch.from_numpy(data)}
    if labels is not None:
        tensors["y"] = torch.from_numpy(labels)
    safetensors.torch.save_file(tensors, f"{path}.safetensors")


def save_edm(path, data, labels):
    with zipfile.ZipFile(f"{path}.zip", "w") as archive:
        for name, content in edm_members(data, np.zeros(len(data)) if labels is None else labels):
            if labels is not None or name != "dataset.json":
                archive.writestr(name, content)


def save_packed(path, data, labels):
    packing.write(path, data, labels=labels, shard_bytes=3 * data[0].nbytes)


SAVERS = {
    name.removeprefix("save_"): function
    for name, function in globals().copy().items()
    if name.startswith("save_")
}
WITHOUT_ASKING = ("edm", "packed")
"""Formats that give their labels unasked."""


def write(save, folder, data=DATA, labels=LABELS, names=("part-0", "part-1", "part-2")):
    folder.mkdir(exist_ok=True)
    start = 0
    for name, count in zip(names, COUNTS, strict=True):
        rows = slice(start, start + count)
        save(folder / name, data[rows], None if labels is None else labels[rows])
        start += count
    return folder


@pytest.fixture(params=SAVERS)
def name(request):
    return request.param


def test_shards_are_one_set(name, tmp_path):
    folder = write(SAVERS[name], tmp_path / "set")
    assert next(known.name for known in FORMATS if known.matches(str(folder))).startswith(
        "folder of shards"
    )
    rows, labels = read(folder)
    assert np.array_equal(rows.numpy(), DATA)
    assert (labels is not None) == (name in WITHOUT_ASKING)
    if name != "npy":
        rows, labels = read(folder, labels=True)
        assert np.array_equal(rows.numpy(), DATA) and labels.tolist() == LABELS.tolist()
    ts = TrainingSet.open(folder)
    assert ts.sha256 == TrainingSet(DATA).sha256


def test_rows_are_read_at_every_place(name, tmp_path):
    pairs = [(a, b - a) for a in range(12) for b in range(a, 12)]
    with open_source(write(SAVERS[name], tmp_path / "set")) as source:
        for index in np.random.default_rng(0).permutation(len(pairs)):
            first, count = pairs[index]
            out = torch.full((count, *DATA.shape[1:]), 77, dtype=torch.uint8)
            source.read(out, first)
            assert np.array_equal(out.numpy(), DATA[first : first + count])


def test_shards_come_in_the_order_of_their_names(name, tmp_path):
    names = ("b", "c", "a")
    rows, _ = read(write(SAVERS[name], tmp_path / "set", names=names))
    assert np.array_equal(rows.numpy(), np.concatenate([DATA[5:], DATA[:5]]))


def test_one_shard_is_a_set(name, tmp_path):
    (tmp_path / "set").mkdir()
    SAVERS[name](tmp_path / "set" / "x", DATA, LABELS)
    assert np.array_equal(read(tmp_path / "set")[0].numpy(), DATA)


def test_check_names_the_shard_that_changed(name, tmp_path):
    folder = write(SAVERS[name], tmp_path / "set")
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "norms.npy"]
    assert len(files) >= 3
    for file in files:
        with open_source(folder) as source:
            source.check()
            os.utime(file, ns=(1, 1))
            with pytest.raises(DataError, match=re.escape(str(file.relative_to(folder)))):
                source.check()


def test_member_goes_to_each_shard(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        np.savez(folder / f"{number}.npz", images=DATA[:2], other=DATA[2:4] + number)
    rows, _ = read(folder, member="other")
    assert np.array_equal(rows.numpy(), np.concatenate([DATA[2:4] + n for n in range(3)]))
    with pytest.raises(ValueError, match=r"member must be one of .* in .*0\.npz"):
        read(folder, member="third")
    with pytest.raises(ValueError, match="member must be None for"):
        read(write(save_npy, tmp_path / "npy"), member="x")


def test_labels_are_of_all_shards_or_of_none(tmp_path):
    folder = write(save_packed, tmp_path / "set")
    save_packed(folder / "part-3", DATA[:2], None)
    message = r"part-3 must have labels like part-0, got none"
    with pytest.raises(DataError, match=message):
        read(folder)
    with pytest.raises(ValueError, match=r"labels must be passed as an array: .*part-3 holds none"):
        read(folder, labels=True)
    assert read(folder, labels=False)[1] is None
    folder = write(save_packed, tmp_path / "other", labels=None)
    save_packed(folder / "part-3", DATA[:2], LABELS[:2])
    with pytest.raises(DataError, match="part-3 must have no labels like part-0, got some"):
        read(folder)


# What is refused


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            DATA[:2, :1],
            r"type uint8 and sample shape \(3, 8, 6\) of part-0.*, got uint8 and \(1, 8",
        ),
        (DATA[:2].reshape(2, -1), r"got uint8 and \(144,\)"),
        (DATA[:2].astype(np.float32), r"got float32 and \(3, 8, 6\)"),
    ],
    ids=["shape", "dimensions", "type"],
)
@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
def test_shards_that_differ_are_named(kind, other, message, tmp_path):
    folder = write(SAVERS[kind], tmp_path / "set")
    SAVERS[kind](folder / "part-3", np.ascontiguousarray(other), LABELS[:2])
    with pytest.raises(DataError, match=rf"set: part-3\.{kind} must have .*{message}"):
        read(folder)


def test_empty_shards_are_refused(tmp_path):
    folder = write(save_npy, tmp_path / "set")
    save_npy(folder / "part-3", DATA[:0], None)
    with pytest.raises(DataError, match=r"part-3\.npy: must hold at least one row"):
        read(folder)
    (folder / "part-3.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"part-3\.npy: not a readable \.npy"):
        read(folder)


def test_truncated_shards_are_named(tmp_path):
    folder = write(save_npy, tmp_path / "set")
    os.truncate(folder / "part-1.npy", 200)
    with pytest.raises(DataError, match=r"part-1\.npy: ends at byte 200"):
        read(folder)


def test_corrupt_packed_shards_are_named(tmp_path):
    folder = write(save_packed, tmp_path / "set")
    file = folder / "part-2" / "data_00001.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"part-2/data_00001\.npy: sha256 must be \w+, got \w+"):
        read(folder)


def test_formats_are_not_mixed(tmp_path):
    folder = write(save_npy, tmp_path / "set")
    save_npz(folder / "part-3", DATA[:2], None)
    with pytest.raises(DataError, match=r"part-3\.npz must be of the format of part-0\.npy, \.npy"):
        read(folder)


@pytest.mark.parametrize("missing", ["part-1", "part-2"])
def test_numbers_have_no_gaps(name, missing, tmp_path):
    names = [f"part-{number}" for number in range(4) if f"part-{number}" != missing]
    folder = write(SAVERS[name], tmp_path / "set", names=names)
    with pytest.raises(DataError, match=f"set: {missing} is missing: it has 3 of part-0 to part-3"):
        read(folder)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["x-00002", "x-00003", "x-00005"], "x-00004"),
        (["9", "10", "12"], "11"),
        (["x8", "x10", "x11"], "x9"),
        (["train-0", "train-2", "test-1"], "train-1"),
        (["a0", "a1", "b1"], None),
        (["x2", "x3", "x4"], None),
        (["x01", "x2", "x003"], None),
        (["one", "two", "three"], None),
        (["x-0-of-3", "x-1-of-3", "x-2-of-3"], None),
        (["x-1-of-3", "x-2-of-3", "x-3-of-3"], None),
        (["x-00000-of-00004", "x-00001-of-00004", "x-00002-of-00004"], "x-00003-of-00004"),
        (["x-00001-of-00004", "x-00002-of-00004", "x-00003-of-00004"], "x-00000-of-00004"),
        (["x-00002-of-00004", "x-00003-of-00004", "x-00004-of-00004"], "x-00001-of-00004"),
        (["x-1-of-2", "x-2-of-2", "y-1-of-2"], "y-0-of-2"),
    ],
    ids=str,
)
def test_names_say_what_is_missing(names, missing, tmp_path):
    folder = write(save_npy, tmp_path / "set", names=names)
    if missing is None:
        assert len(read(folder)[0]) == len(DATA)
    else:
        with pytest.raises(DataError, match=rf"set: {missing} is missing"):
            read(folder)


@pytest.mark.parametrize("left", ["pack.json", "part-3.npy.part", "part-3.npy.crdownload"])
def test_unfinished_files_are_no_part_of_a_set(left, tmp_path):
    folder = write(save_npy, tmp_path / "set")
    (folder / left).write_bytes(b"")
    with pytest.raises(DataError, match=f"must hold images or a finished set, got {left}"):
        read(folder)


def test_unfinished_packed_sets_are_no_part_of_a_set(tmp_path):
    folder = write(save_packed, tmp_path / "set")
    os.rename(folder / "part-1" / "meta.json", folder / "part-1" / "meta.json.part")
    with pytest.raises(DataError, match=r"got part-1, a folder without meta\.json"):
        read(folder)


def test_images_and_shards_are_not_mixed(tmp_path):
    folder = write(save_npy, tmp_path / "set")
    (folder / "a.png").write_bytes(png(DATA[0]))
    with pytest.raises(DataError, match=r"shards like part-0\.npy or images, got a\.png, an image"):
        read(folder)
    os.remove(folder / "a.png")
    (folder / "more").mkdir()
    with pytest.raises(DataError, match="got more, a folder"):
        read(folder)


def test_other_files_are_passed_over(tmp_path):
    folder = write(save_npy, tmp_path / "set")
    for other in ("README.md", "sums.txt", ".part-9.npy", ".DS_Store"):
        (folder / other).write_bytes(b"x")
    (folder / ".git").mkdir()
    assert np.array_equal(read(folder)[0].numpy(), DATA)


def test_folders_of_images_stay_what_they_are(tmp_path):
    for number, image in enumerate(DATA):
        (tmp_path / f"{number:02d}.png").write_bytes(png(image))
    assert not next(f for f in FORMATS if f.name.startswith("folder of shards")).matches(
        str(tmp_path)
    )
    assert np.array_equal(read(tmp_path)[0].numpy(), DATA)
