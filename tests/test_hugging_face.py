"""Hugging Face datasets on disk: found, checked, and read at any place without running anything."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import tables
import torch
from hypothesis import HealthCheck, given, settings
from tables import arrow, save_dataset, save_parquet, save_stream, table
from test_readers import images

from diffgen.errors import DataError
from diffgen.readers import arrow_package, arrow_stream, assemble, limits
from diffgen.readers.hugging_face import find_files, is_dataset, open_dataset
from diffgen.readers.parquet import ParquetFile

LABELS = np.arange(11) % 10


def read(path: Path, member: str | None = None, labels: Any = None, **options: Any) -> Any:
    with open_dataset(str(path), member, labels, **options) as source:
        return assemble(source), source.labels


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return save_dataset(table(images(), LABELS), tmp_path / "d")


@pytest.mark.parametrize("name", tables.WRITERS)
def test_rows_are_read_at_any_place(name: str, tmp_path: Path) -> None:
    data = images(count=11)
    path = tables.WRITERS[name](tmp_path, data, LABELS)
    assert is_dataset(str(path))
    with open_dataset(str(path), None, None) as source:
        assert source.shape == data.shape and source.dtype == torch.uint8
        for first, count in [(0, 4), (4, 3), (7, 4), (2, 7), (10, 1), (0, 11), (5, 0), (1, 1)]:
            out = torch.zeros((count, *data.shape[1:]), dtype=torch.uint8)
            source.read(out, first)
            assert np.array_equal(out.numpy(), data[first : first + count]), (first, count)
        source.check()
        assert source.labels is not None and source.labels.tolist() == LABELS.tolist()


def test_reading_in_order_reads_each_batch_once(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned = []
    original = arrow_stream.StreamFile.scan

    def scan(self: Any, part: int, column: str, rows: int) -> Any:
        scanned.append((os.path.basename(self.path), part))
        return original(self, part, column, rows)

    with open_dataset(str(dataset), None, False) as source:
        monkeypatch.setattr(arrow_stream.StreamFile, "scan", scan)
        out = torch.empty((2, *source.shape[1:]), dtype=torch.uint8)
        for first in range(0, 10, 2):
            source.read(out, first)
        assert len(scanned) == len(set(scanned)) == 4
        scanned.clear()
        source.read(out, 9)
        # The last batch alone: nothing before it is read to get there.
        assert scanned == [("data-00001-of-00002.arrow", 1)]


def test_reading_goes_on_after_an_error(dataset: Path) -> None:
    place = dataset / "data-00000-of-00002.arrow"
    content = place.read_bytes()
    with open_dataset(str(dataset), None, False) as source:
        out = torch.empty((3, *source.shape[1:]), dtype=torch.uint8)
        source.read(out, 0)
        os.truncate(place, 100)
        # Batch 0 is held; batch 1 is where it would go on.
        with pytest.raises(DataError, match=r"data-00000-of-00002\.arrow: .*shrank while open"):
            source.read(out, 3)
        with pytest.raises(DataError, match="must not change while it is open"):
            source.check()
        place.write_bytes(content)
        source.read(out, 3)
        assert np.array_equal(out.numpy(), images()[3:6])


# Columns


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    pa = arrow()
    data = images()
    other = pa.array([{"bytes": tables.png(255 - image), "path": None} for image in data])
    fine = pa.array(LABELS[::-1].copy(), pa.int32())
    path = save_parquet(table(data, LABELS, mask=other, fine=fine), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"must have one column of images, got \['image', 'mask'\]"):
        read(path)
    rows, labels = read(path, "mask", "fine")
    assert np.array_equal(rows.numpy(), 255 - data)
    assert labels.tolist() == LABELS[::-1].tolist()
    assert read(path, "image", False)[1] is None
    with pytest.raises(ValueError, match=r"member must be one of .* got 'img'"):
        read(path, "img")
    with pytest.raises(ValueError, match=r"labels must be one of .* got 'y'"):
        read(path, "image", "y")
    with pytest.raises(DataError, match="column 'image' must hold integers, got struct"):
        read(path, "image", "image")
    with pytest.raises(DataError, match="column 'label' must hold image files"):
        read(path, "label")


def test_columns_that_are_said_to_be_no_images_are_passed_over(tmp_path: Path) -> None:
    pa = arrow()
    rows = table(images(), None, sound=pa.array([{"bytes": b"riff", "path": None}] * 11))
    features = {"image": {"_type": "Image"}, "sound": {"_type": "Audio"}}
    told = json.dumps({"info": {"features": features}})
    path = save_parquet(rows.replace_schema_metadata({"huggingface": told}), tmp_path / "x.parquet")
    assert np.array_equal(read(path)[0].numpy(), images())


@pytest.mark.parametrize("told", [None, "", "[]", '{"info": {"features": [1]}}', "[" * 200_000])
def test_description_is_not_needed(told: str | None, tmp_path: Path) -> None:
    pa = arrow()
    rows = table(images(), LABELS)
    rows = rows.set_column(0, "png", rows["image"].combine_chunks().field("bytes"))
    rows = rows.replace_schema_metadata(None if told is None else {"huggingface": told})
    path = save_parquet(rows.append_column("n", pa.array(range(11))), tmp_path / "x.parquet")
    found, labels = read(path)
    assert np.array_equal(found.numpy(), images()) and labels.tolist() == LABELS.tolist()


def test_labels_are_integers_or_left_out(tmp_path: Path) -> None:
    pa = arrow()
    words = table(images(), None, label=pa.array(["cat"] * 11))
    path = save_parquet(words, tmp_path / "words.parquet")
    assert read(path)[1] is None
    with pytest.raises(ValueError, match="labels must be a column of integers, label or labels"):
        read(path, labels=True)
    numbers = pa.array([None, *range(10)], pa.int64())
    gap = table(images(), None).append_column("labels", numbers)
    path = save_parquet(gap, tmp_path / "gap.parquet")
    with pytest.raises(DataError, match=r"gap\.parquet: column 'labels' must have no empty cell"):
        read(path)


@pytest.mark.parametrize("empty", [None, {"bytes": None, "path": "/etc/passwd"}])
def test_path_in_a_table_is_not_followed(empty: Any, tmp_path: Path) -> None:
    pa = arrow()
    rows = table(images(), None)
    cells = rows["image"].to_pylist()
    cells[7] = empty
    rows = rows.set_column(0, "image", pa.array(cells, rows["image"].type))
    path = save_dataset(rows, tmp_path / "d")
    with pytest.raises(DataError, match="row 7: must hold the bytes of an image"):
        read(path)


def test_images_of_another_size_are_named(tmp_path: Path) -> None:
    pa = arrow()
    small = table(images(count=2, shape=(3, 8, 5)), None)
    path = save_dataset(pa.concat_tables([table(images(), None), small]), tmp_path / "d")
    with pytest.raises(DataError, match=r"row 11: must have the size \(6, 8\) of row 0"):
        read(path)


# Files


def test_splits_are_named(tmp_path: Path) -> None:
    data = images()
    for split, rows in (("train", slice(0, 7)), ("test", slice(7, 11))):
        save_dataset(table(data[rows], None), tmp_path / "d" / split, _split=split)
        save_parquet(table(data[rows], None), tmp_path / "p" / f"{split}-00000-of-00001.parquet")
        save_parquet(table(data[rows], None), tmp_path / "q" / f"{split}.parquet")
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for name in "dpq":
        with pytest.raises(DataError, match=f"{name}: holds the splits test, train: name one"):
            read(tmp_path / name)
        assert np.array_equal(read(tmp_path / name, split="test")[0].numpy(), data[7:])
        with pytest.raises(ValueError, match=r"split must be one of \['test', 'train'\]"):
            read(tmp_path / name, split="dev")
    assert len(read(tmp_path / "d" / "test", split="test")[0]) == 4
    with pytest.raises(ValueError, match=r"split must be 'test' of .*, got 'train'"):
        read(tmp_path / "d" / "test", split="train")


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
        ["train-00000-of-00002.parquet"],
        ["0000.parquet", "0002.parquet"],
        ["part-1.parquet", "part-2.parquet", "part-4.parquet"],
    ],
)
def test_missing_parquet_is_seen(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"must be numbered .*number \d is missing"):
        find_files(str(tmp_path), None)


def test_same_number_twice_is_seen(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001-aa.parquet", "train-00000-of-00001-bb.parquet"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="one is there twice"):
        find_files(str(tmp_path), None)


def test_numbers_are_not_sorted_as_text(tmp_path: Path) -> None:
    names = [f"part-{number}.parquet" for number in range(12)]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert [os.path.basename(file) for file in find_files(str(tmp_path), None)] == names


def test_missing_arrow_file_is_named(dataset: Path) -> None:
    (dataset / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(
        DataError, match=r"data-00001-of-00002\.arrow of its state\.json is missing"
    ):
        read(dataset)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_indices_files": [{"filename": "indices.arrow"}]}, "must not select rows"),
        ({"_data_files": [{"filename": "../d/data-00000-of-00002.arrow"}]}, "a plain name"),
        ({"_data_files": [{"filename": "/etc/passwd"}]}, "a plain name"),
        ({"_data_files": [{"filename": ".."}]}, "a plain name"),
        ({"_data_files": [{"filename": 3}]}, "a plain name"),
        ({"_data_files": [3]}, "must list the files"),
        ({"_data_files": None}, "must list the files"),
        ({"_data_files": []}, "must hold at least one row"),
    ],
)
def test_states_that_lie_are_refused(state: Any, message: str, dataset: Path) -> None:
    found = json.loads((dataset / "state.json").read_text())
    (dataset / "state.json").write_text(json.dumps({**found, **state}))
    with pytest.raises(DataError, match=message):
        read(dataset)


@pytest.mark.parametrize("content", ["", "[]", "3", "[" * 200_000])
@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_malformed_descriptions_are_refused(name: str, content: str, dataset: Path) -> None:
    (dataset / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}: (malformed|must be an object)"):
        read(dataset)


@pytest.mark.parametrize("splits", [None, "train", [], [3], [".."], ["../d"], ["/etc"], ["a\\b"]])
def test_splits_that_lead_elsewhere_are_refused(splits: Any, dataset: Path) -> None:
    (dataset / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(DataError, match=r"must hold splits|a split must have a plain name"):
        read(dataset)


def test_files_of_other_columns_are_named(tmp_path: Path) -> None:
    pa = arrow()
    folder = save_dataset(table(images(), LABELS), tmp_path / "d")
    other = table(images(count=3), None, label=pa.array([0, 1, 2], pa.int16()))
    save_stream(other, folder / "data-00001-of-00002.arrow")
    with pytest.raises(DataError, match=r"00001-of-00002\.arrow: column 'label' must be int64"):
        read(folder)
    save_stream(other.drop_columns(["image"]), folder / "data-00001-of-00002.arrow")
    with pytest.raises(DataError, match=r"column 'image' must be struct<.*got none"):
        read(folder)


def test_empty_dataset_is_refused(tmp_path: Path) -> None:
    path = save_dataset(table(images(), LABELS)[:0], tmp_path / "d", num_shards=1)
    with pytest.raises(DataError, match="must hold images"):
        read(path)


# Damage


def test_compressed_and_dictionary_batches_are_refused(tmp_path: Path) -> None:
    pa = arrow()
    folder = save_dataset(table(images(), LABELS), tmp_path / "d", num_shards=1)
    place = folder / "data-00000-of-00001.arrow"
    packed = pa.ipc.IpcWriteOptions(compression="zstd")
    save_stream(table(images(), LABELS), place, packed)
    with pytest.raises(DataError, match="must not be compressed, got a compressed batch"):
        read(folder)
    words = pa.array(["a"] * 11).dictionary_encode()
    save_stream(table(images(), LABELS, word=words), place)
    with pytest.raises(DataError, match="must hold batches of rows only, got message 2"):
        read(folder)


def test_cells_that_point_outside_are_refused(tmp_path: Path) -> None:
    pa = arrow()
    cells = [tables.png(image) for image in images(count=2)]
    save_dataset(pa.table({"image": cells}), tmp_path / "d", num_shards=1)
    place = tmp_path / "d" / "data-00000-of-00001.arrow"
    first, end = len(cells[0]), len(cells[0]) + len(cells[1])
    offsets, lie = (np.array([0, at, end], np.int32).tobytes() for at in (first, 1_000_000_000))
    content = place.read_bytes()
    assert content.count(offsets) == 1
    place.write_bytes(content.replace(offsets, lie))
    with pytest.raises(DataError, match=rf"{place.name}: batch 0: .*ffset"):
        read(tmp_path / "d")


def test_group_of_fewer_rows_than_it_says_is_refused(tmp_path: Path) -> None:
    file = ParquetFile(str(save_parquet(table(images(), LABELS), tmp_path / "x.parquet")))
    assert sum(map(len, file.scan(1, "label", 2))) == 3
    file.counts[1] = 4
    with pytest.raises(DataError, match=r"x\.parquet: group 1 must hold 4 rows, got 3"):
        list(file.scan(1, "label", 2))


@pytest.mark.parametrize("name", [b"image", b"bytes", b"label"])
def test_names_that_are_no_text_are_refused(name: bytes, dataset: Path) -> None:
    place = dataset / "data-00000-of-00002.arrow"
    place.write_bytes(place.read_bytes().replace(name, b"\x80" + name[1:]))
    with pytest.raises(DataError, match=r"00000-of-00002\.arrow: 'utf-8' codec"):
        read(dataset)


def test_parquet_that_unpacks_to_far_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = arrow()
    path = save_parquet(
        table(images(), None, zeros=pa.array([bytes(100_000)] * 11)), tmp_path / "x.parquet"
    )
    assert len(read(path)[0]) == 11
    monkeypatch.setattr(limits, "FREE_BYTES", 1000)
    monkeypatch.setattr(limits, "MAX_RATIO", 2)
    with pytest.raises(DataError, match=r"x\.parquet: decompression bomb"):
        read(path)


def test_batches_too_large_to_hold_are_refused(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_stream, "MAX_BATCH_BYTES", 100)
    with pytest.raises(DataError, match="a batch must have at most 100 bytes"):
        read(dataset)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=150,
)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4)
)
@pytest.mark.parametrize("name", ["saved_dataset", "parquet_file"])
def test_damage_anywhere_is_an_error_or_other_numbers(
    name: str, changes: list[tuple[float, int]], tmp_path: Path
) -> None:
    """Whatever bytes change, the reader raises DataError or reads: it never fails otherwise."""
    path = tables.WRITERS[name](tmp_path, images(count=7), LABELS[:7])
    file = path if path.is_file() else path / "data-00000-of-00002.arrow"
    content = bytearray(file.read_bytes())
    for where, mask in changes:
        # Headers stand at the start of a stream and at the end of a parquet.
        reach = len(content) if mask % 2 else min(900, len(content))
        place = int(where * reach)
        content[place if name == "saved_dataset" else len(content) - 1 - place] ^= mask
    file.write_bytes(content)
    with contextlib.suppress(DataError):
        read(path)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 0.5, -1, -9])
@pytest.mark.parametrize("name", ["saved_dataset", "parquet_file"])
def test_truncated_files_are_refused(name: str, length: float, tmp_path: Path) -> None:
    path = tables.WRITERS[name](tmp_path, images(), LABELS)
    file = path if path.is_file() else path / "data-00000-of-00002.arrow"
    size = file.stat().st_size
    cut = int(length * size) if isinstance(length, float) else length % size
    os.truncate(file, cut)
    with pytest.raises(DataError, match=file.name):
        read(path)


def test_old_pyarrow_is_refused(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow(), "__version__", "14.0.0")
    with pytest.raises(ImportError, match=r"pyarrow must be 14\.0\.1 or newer, got 14\.0\.0"):
        read(dataset)


def test_missing_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install 'diffgen\[arrow\]'"):
        arrow_package.arrow()


@pytest.mark.parametrize("name", ["x.npy", "x.png", "dataset_info.json", ".x.parquet"])
def test_other_folders_are_no_datasets(name: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_text("")
    assert not is_dataset(str(tmp_path / "other"))
