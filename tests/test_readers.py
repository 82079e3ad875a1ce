"""File formats: what was written comes back, whatever the format; ordinary mistakes are named."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.torch
import tables
import torch
import tqdm.auto
from PIL import Image

from diffgen.errors import DataError
from diffgen.readers import FORMATS, assemble, open_source, packing
from diffgen.readers import source as source_module
from diffgen.training_set import TrainingSet


def images(count=11, shape=(3, 8, 6), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def png(image, **options):
    """A PNG of a (C, H, W) array."""
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", **options)
    return stream.getvalue()


def read(path, **options):
    with open_source(path, **options) as source:
        return assemble(source), source.labels


@pytest.fixture(params=[1, 40, 1 << 20], ids=["row", "few", "all"])
def block_bytes(request, monkeypatch):
    """Blocks of one row, of a few, of all."""
    monkeypatch.setattr(source_module, "BLOCK_BYTES", request.param * 4)


# One table of writers: the same rows in every format


def write_npy(folder, data, labels):
    np.save(folder / "x.npy", data)
    return folder / "x.npy"


def write_npz(folder, data, labels):
    np.savez(folder / "x.npz", images=data, labels=labels)
    return folder / "x.npz"


def write_npz_deflated(folder, data, labels):
    np.savez_compressed(folder / "x.npz", other=labels, data=data)
    return folder / "x.npz"


def write_safetensors(folder, data, labels):
    tensors = {"x": torch.from_numpy(data), "y": torch.from_numpy(labels)}
    safetensors.torch.save_file(tensors, folder / "x.safetensors")
    return folder / "x.safetensors"


def write_packed(folder, data, labels):
    packing.write(folder / "packed", data, labels=labels, shard_bytes=4 * data[0].nbytes)
    return folder / "packed"


def write_sharded(folder, data, labels):
    (folder / "shards").mkdir()
    for number, rows in enumerate(np.array_split(data, 3)):
        np.save(folder / "shards" / f"part-{number}.npy", rows)
    return folder / "shards"


def write_image_folder(folder, data, labels):
    (folder / "images").mkdir()
    for row, image in enumerate(data):
        (folder / "images" / f"{row:04d}.png").write_bytes(png(image))
    (folder / "images" / "notes.txt").write_text("not an image")
    (folder / "images" / ".hidden.png").write_text("not an image")
    return folder / "images"


def edm_members(data, labels, end=".png"):
    names = [f"{row // 4:05d}/img{row:08d}{end}" for row in range(len(data))]
    yield (
        "dataset.json",
        json.dumps({"labels": [[n, int(y)] for n, y in zip(names, labels, strict=True)]}),
    )
    for name, image in zip(names, data, strict=True):
        yield name, png(image) if end == ".png" else npy_bytes(image)


def npy_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def write_edm_zip(folder, data, labels, end=".png"):
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        for name, content in edm_members(data, labels, end):
            archive.writestr(name, content)
    return folder / "x.zip"


def write_edm_zip_of_npy(folder, data, labels):
    return write_edm_zip(folder, data, labels, ".npy")


def write_edm_folder(folder, data, labels):
    for name, content in edm_members(data, labels):
        path = folder / "edm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / "edm"


def cifar_files(data, labels, version, protocol=2):
    flat = data.reshape(len(data), 3072)
    parts = np.array_split(np.arange(len(data)), 5)
    for number, rows in enumerate([*parts, np.arange(2)]):
        name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
        if version == "bin":
            records = np.concatenate([labels[rows, None].astype(np.uint8), flat[rows]], 1)
            yield f"cifar-10-batches-bin/{name}.bin", records.tobytes()
        else:
            batch = {
                b"data": flat[rows],
                b"labels": [int(label) for label in labels[rows]],
                b"filenames": [b"a.png"] * len(rows),
                b"batch_label": b"x",
            }
            yield f"cifar-10-batches-py/{name}", pickle.dumps(batch, protocol)


def write_cifar_folder(folder, data, labels, version="bin", protocol=2):
    for name, content in cifar_files(data, labels, version, protocol):
        path = folder / "cifar" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "cifar"


def write_cifar_tar(folder, data, labels, version="bin", reverse=False):
    files = list(cifar_files(data, labels, version))
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as tar:
        for name, content in reversed(files) if reverse else files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return folder / "cifar.tar.gz"


def write_cifar_py_folder(folder, data, labels):
    return write_cifar_folder(folder, data, labels, "py")


def write_cifar_py_tar(folder, data, labels):
    return write_cifar_tar(folder, data, labels, "py", reverse=True)


WRITERS = {
    name.removeprefix("write_"): function
    for name, function in globals().copy().items()
    if name.startswith("write_")
}
CIFAR = [name for name in WRITERS if name.startswith("cifar")]
LABELLED = [*CIFAR, "packed", "edm_zip", "edm_folder", "edm_zip_of_npy"]


@pytest.mark.parametrize("name", WRITERS)
def test_rows_come_back_from_every_format(name, tmp_path, block_bytes):
    data = images(shape=(3, 32, 32) if name in CIFAR else (3, 8, 6))
    labels = np.arange(11) % 10
    path = WRITERS[name](tmp_path, data, labels)
    rows, found = read(path)
    assert rows.dtype == torch.uint8
    assert np.array_equal(rows.numpy(), data)
    assert (found is not None) == (name in LABELLED)
    if found is not None:
        assert found.tolist() == labels.tolist() and found.dtype == torch.int64
    assert read(path, labels=False)[1] is None


@pytest.mark.parametrize("name", WRITERS)
def test_sha256_is_the_same_from_every_format(name, tmp_path):
    data = images(shape=(3, 32, 32))
    labels = np.arange(11) % 10
    ts = TrainingSet.open(WRITERS[name](tmp_path, data, labels))
    assert ts.sha256 == TrainingSet(data).sha256
    assert ts.path.startswith(str(tmp_path))
    again = pickle.loads(pickle.dumps(ts))
    assert again.sha256 == ts.sha256
    assert (again.labels is None) == (ts.labels is None)
    assert len(pickle.dumps(ts)) < 5000


def test_every_format_of_the_table_is_written_here(tmp_path):
    found = set()
    for name, write in {**WRITERS, **tables.WRITERS}.items():
        folder = tmp_path / name
        folder.mkdir()
        path = str(write(folder, images(shape=(3, 32, 32)), np.arange(11) % 10))
        found.add(next(known.name for known in FORMATS if known.matches(path)))
    assert found == {known.name for known in FORMATS}


def test_unknown_paths_are_named(tmp_path):
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"path must be one of: \.npy, \.npz, .*; got .*x\.csv"):
        TrainingSet.open(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match=r"path must exist, got .*missing\.npy"):
        TrainingSet.open(tmp_path / "missing.npy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="must hold images"):
        TrainingSet.open(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(DataError, match="path must be one of"):
        TrainingSet.open(tmp_path / "pipe.npy")


def test_open_takes_the_arguments_of_the_constructor(tmp_path):
    data = images()
    path = write_npy(tmp_path, data, None)
    ts = TrainingSet.open(
        str(path), labels=np.arange(11), weights=range(11), value_range=(0, 1), flip=True
    )
    assert len(ts) == 22 and ts.num_classes == 11 and ts.value_range == (0.0, 1.0)
    assert torch.equal(ts[11], ts[0].flip(-1))
    with pytest.raises(ValueError, match=r"labels must have shape \(11,\)"):
        TrainingSet.open(path, labels=[1, 2])


def test_given_labels_replace_those_of_the_file(tmp_path):
    path = write_packed(tmp_path, images(), np.arange(11))
    assert TrainingSet.open(path, labels=[3] * 11).labels.tolist() == [3] * 11


@pytest.mark.parametrize("name", ["npy", "image_folder", "npz_deflated"])
def test_labels_that_are_not_there_are_missed(name, tmp_path):
    path = WRITERS[name](tmp_path, images(), np.arange(11))
    with pytest.raises(ValueError, match="labels must be"):
        TrainingSet.open(path, labels=True)
    with pytest.raises(ValueError, match="labels must be"):
        TrainingSet.open(path, labels="nothing")


@pytest.mark.parametrize("name", ["npy", "image_folder", "packed", "edm_zip"])
def test_member_is_refused_where_there_is_one_set(name, tmp_path):
    path = WRITERS[name](tmp_path, images(), np.arange(11))
    with pytest.raises(ValueError, match="member must be None"):
        TrainingSet.open(path, member="x")


# .npy


@pytest.mark.parametrize("dtype", ["u1", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
def test_npy_keeps_types_in_both_byte_orders(dtype, tmp_path, block_bytes):
    data = np.arange(35).reshape(7, 5).astype(dtype)
    np.save(tmp_path / "x.npy", data)
    np.savez_compressed(tmp_path / "x.npz", data)
    for end in ("npy", "npz"):
        rows, _ = read(tmp_path / f"x.{end}")
        assert rows.numpy().dtype == data.dtype.newbyteorder("=")
        assert np.array_equal(rows.numpy(), data)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_versions_are_read(version, tmp_path):
    data = images()
    with open(tmp_path / "x.npy", "wb") as stream:
        np.lib.format.write_array(stream, data, version=version)
    assert np.array_equal(read(tmp_path / "x.npy")[0].numpy(), data)


def test_npy_of_one_dimension_has_one_feature(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(5.0))
    ts = TrainingSet.open(tmp_path / "x.npy")
    assert ts.sample_shape == () and ts.view().data.shape == (5, 1)


def test_npy_in_fortran_order_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(np.ones((3, 2))))
    with pytest.raises(DataError, match=r"x\.npy: must be in C order.*ascontiguousarray"):
        read(tmp_path / "x.npy")


@pytest.mark.parametrize("dtype", ["i8", "?", "c8", "U3", "M8[s]", "i1", "f4,f4", "(2,)f4"])
def test_npy_of_other_types_is_refused(dtype, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3, dtype))
    if dtype == "(2,)f4":
        assert read(tmp_path / "x.npy")[0].shape == (3, 2)
        return
    with pytest.raises(DataError, match=r"x\.npy: (type must be|must hold plain numbers)"):
        read(tmp_path / "x.npy")


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_npy_without_rows_is_refused(shape, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(shape))
    with pytest.raises(DataError, match=r"x\.npy: must hold at least one row"):
        read(tmp_path / "x.npy")


def test_nan_in_a_file_names_file_and_row(tmp_path):
    data = np.zeros((100, 7), np.float32)
    data[63, 5] = np.nan
    np.save(tmp_path / "x.npy", data)
    with pytest.raises(DataError, match=r"x\.npy: must be finite, got nan in row 63, feature 5"):
        TrainingSet.open(tmp_path / "x.npy")


# .npz and .safetensors


@pytest.mark.parametrize("end", ["npz", "safetensors"])
def test_members_are_chosen_by_name(end, tmp_path):
    arrays = {
        "a": images(seed=1),
        "x": images(seed=2),
        "data": images(seed=3),
        "images": images(seed=4),
        "labels": np.arange(11),
        "y": np.arange(11) * 2,
        "fine": np.arange(11, dtype=np.int16) * 3,
    }
    path = tmp_path / f"x.{end}"
    save(path, arrays)
    assert np.array_equal(read(path)[0].numpy(), arrays["images"])
    assert np.array_equal(read(path, member="a")[0].numpy(), arrays["a"])
    assert read(path, labels=True)[1].tolist() == arrays["labels"].tolist()
    assert read(path, labels="fine")[1].tolist() == arrays["fine"].tolist()
    assert read(path)[1] is None
    with pytest.raises(ValueError, match=r"member must be one of \['a', 'data', .* got 'b'"):
        read(path, member="b")
    save(path, {name: arrays[name] for name in ("a", "y")})
    rows, labels = read(path, labels=True)
    assert np.array_equal(rows.numpy(), arrays["a"])
    assert labels.tolist() == arrays["y"].tolist()
    save(path, {"a": arrays["a"], "b": arrays["x"]})
    with pytest.raises(DataError, match=r"name the array with member=, one of \['a', 'b'\]"):
        read(path)
    save(path, {"a": arrays["a"], "y": np.zeros(11)})
    with pytest.raises(DataError, match="labels must be integers"):
        read(path, labels=True)
    save(path, {"a": arrays["a"], "y": np.zeros((11, 1), np.int64)})
    with pytest.raises(DataError, match="labels must be integers"):
        read(path, labels=True)


def save(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        safetensors.torch.save_file(
            {name: torch.from_numpy(array) for name, array in arrays.items()}, path
        )


def test_wrong_number_of_labels_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=images(), y=np.arange(10))
    with pytest.raises(ValueError, match=r"labels must have shape \(11,\), got \(10,\)"):
        TrainingSet.open(tmp_path / "x.npz", labels=True)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_safetensors_keeps_types(dtype, tmp_path, block_bytes):
    data = torch.arange(77).reshape(11, 7).to(dtype)
    other = torch.arange(5)
    safetensors.torch.save_file(
        {"a": other, "x": data, "z": other.clone()}, tmp_path / "x.safetensors"
    )
    rows, _ = read(tmp_path / "x.safetensors")
    assert rows.dtype == dtype and torch.equal(rows, data)


# Images


@pytest.mark.parametrize("end", ["png", "jpg", "bmp", "webp", "ppm"])
def test_image_formats_are_read(end, tmp_path):
    for row, image in enumerate(images(3)):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{row}.{end}")
    rows, _ = read(tmp_path)
    for row in range(3):
        with Image.open(tmp_path / f"{row}.{end}") as image:
            assert np.array_equal(rows[row].numpy(), np.asarray(image).transpose(2, 0, 1))


def test_grey_and_palette_images_are_converted(tmp_path):
    grey = images(3, (1, 8, 6))
    for row, image in enumerate(grey):
        (tmp_path / f"{row}.png").write_bytes(png(image))
    Image.fromarray(grey[0, 0] > 128).save(tmp_path / "3.png")
    rows, _ = read(tmp_path)
    assert np.array_equal(rows[:3].numpy(), grey)
    assert np.array_equal(rows[3, 0].numpy(), np.where(grey[0, 0] > 128, 255, 0))
    colour = images(1)[0] // 128 * 255
    palette = tmp_path / "palette"
    palette.mkdir()
    image = Image.fromarray(colour.transpose(1, 2, 0)).quantize(8)
    image.save(palette / "a.png")
    assert np.array_equal(read(palette)[0][0].numpy(), colour)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "CMYK", "P"])
def test_images_with_alpha_or_other_depths_are_refused(mode, tmp_path):
    (tmp_path / "a.png").write_bytes(png(images(1)[0]))
    end, options = ("jpg" if mode == "CMYK" else "png"), {}
    image = Image.new(mode, (6, 8))
    if mode == "P":
        options["transparency"] = 0
    image.save(tmp_path / f"b.{end}", **options)
    with pytest.raises(DataError, match=rf"b\.{end}: must (have no alpha|be grey, RGB)"):
        read(tmp_path)


def test_animations_are_refused(tmp_path):
    frames = [Image.fromarray(image.transpose(1, 2, 0)) for image in images(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"a\.png: must have one frame, got 3"):
        read(tmp_path)


@pytest.mark.parametrize("shape", [(3, 8, 7), (3, 6, 8), (1, 8, 6)])
def test_mixed_sizes_name_the_file(shape, tmp_path):
    write = tmp_path / "images"
    write.mkdir()
    for row, image in enumerate(images(3)):
        (write / f"{row}.png").write_bytes(png(image))
    (write / "odd.png").write_bytes(png(images(1, shape)[0]))
    with pytest.raises(DataError, match=r"odd\.png: must have .* of 0\.png, got"):
        TrainingSet.open(write)


def test_subfolders_are_classes(tmp_path):
    data = images(6)
    names = ["b/1.png", "a/2.png", "c/x/5.png", "b/0.png", "c/4.png", "a/3.PNG"]
    for name, image in zip(names, data, strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(image))
    rows, labels = read(tmp_path)
    assert np.array_equal(rows.numpy(), data[[1, 5, 3, 0, 4, 2]])
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    (tmp_path / "z.png").write_bytes(png(data[0]))
    assert read(tmp_path)[1] is None


def test_images_that_would_be_passed_over_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(images(1)[0]))
    Image.new("L", (6, 8)).save(tmp_path / "b.gif")
    with pytest.raises(DataError, match=r"b\.gif: must be one of \.png"):
        read(tmp_path)


def test_links_to_folders_are_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(png(images(1)[0]))
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    with pytest.raises(DataError, match="loop must be a folder, got a link"):
        read(tmp_path / "set")


def test_broken_links_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(images(1)[0]))
    (tmp_path / "b.png").symlink_to(tmp_path / "missing.png")
    with pytest.raises(DataError, match=r"b\.png must be a regular file"):
        read(tmp_path)
    os.remove(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert read(tmp_path)[0].shape[0] == 2


def test_pillow_missing_says_how_to_get_it(tmp_path, monkeypatch):
    path = write_image_folder(tmp_path, images(2), None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"needs Pillow: pip install 'diffgen\[images\]'"):
        read(path)


# EDM


def test_edm_without_labels_has_none(tmp_path):
    for content in ('{"labels": null}', "{}"):
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("dataset.json", content)
            archive.writestr("a.png", png(images(1)[0]))
        assert read(path)[1] is None
        with pytest.raises(ValueError, match="holds none"):
            read(path, labels=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png(images(1)[0]))
    assert read(path)[1] is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["b.png", 1]], r"has no label for a\.png"),
        ([["a.png", [0.5, 1.0]]], "must be an integer"),
        ([["a.png", True]], "must be an integer"),
        ([["a.png"]], "must be a list of"),
        ({"a.png": 1}, "must be a list of"),
        (3, "must be a list of"),
    ],
)
def test_edm_labels_that_do_not_fit_are_refused(labels, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
        archive.writestr("a.png", png(images(1)[0]))
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.zip")


def test_edm_of_float_arrays_keeps_their_type(tmp_path):
    data = np.random.default_rng(0).normal(size=(5, 4, 3, 3)).astype(np.float32)
    path = write_edm_zip(tmp_path, data, np.arange(5), ".npy")
    rows, _ = read(path)
    assert rows.dtype == torch.float32 and np.array_equal(rows.numpy(), data)


def test_edm_members_that_differ_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.npy", npy_bytes(np.zeros((3, 2, 2), np.float32)))
        archive.writestr("b.npy", npy_bytes(np.zeros((3, 2, 2), np.uint8)))
    with pytest.raises(DataError, match=r"b\.npy: must have shape \(3, 2, 2\) and type"):
        read(tmp_path / "x.zip")


# CIFAR-10


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_cifar_pickles_of_every_protocol_are_read(protocol, tmp_path):
    data, labels = images(shape=(3, 32, 32)), np.arange(11) % 10
    path = write_cifar_folder(tmp_path, data, labels, "py", protocol)
    rows, found = read(path / "cifar-10-batches-py")
    assert np.array_equal(rows.numpy(), data) and found.tolist() == labels.tolist()


def test_cifar_pickle_of_python_2_is_read(tmp_path):
    """Byte strings, old NumPy names: what the authors' own files hold."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    data = images(2, (3072,))
    content = (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x02b1q\x03U\x06labelsq\x04]q\x05(K\x06K\x09e"
        b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85"
        b"U\x01b\x87Rq\x09(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + (2 * 3072).to_bytes(4, "little")
        + data.tobytes()
        + b"tbu."
    )
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(content)
    rows, labels = read(tmp_path)
    assert np.array_equal(rows.numpy().reshape(5, 2, 3072), np.stack([data] * 5))
    assert labels.tolist() == [6, 9] * 5


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_test_part_is_a_member(name, tmp_path):
    data, labels = images(shape=(3, 32, 32)), np.arange(11) % 10
    path = WRITERS[name](tmp_path, data, labels)
    ts = TrainingSet.open(path, member="test")
    assert ts.num_stored == 2
    assert torch.equal(pickle.loads(pickle.dumps(ts)).view().data, ts.view().data)
    with pytest.raises(ValueError, match=r"member must be one of \['test', 'train'\]"):
        TrainingSet.open(path, member="valid")


def test_cifar_with_a_batch_missing_is_refused(tmp_path):
    path = write_cifar_folder(tmp_path, images(shape=(3, 32, 32)), np.arange(11) % 10)
    os.remove(path / "cifar-10-batches-bin" / "data_batch_3.bin")
    with pytest.raises(DataError, match=r"must hold data_batch_3\.bin"):
        read(path)


def test_cifar_labels_out_of_range_are_refused(tmp_path):
    for version in ("bin", "py"):
        folder = tmp_path / version
        folder.mkdir()
        path = write_cifar_folder(folder, images(shape=(3, 32, 32)), np.arange(11), version)
        with pytest.raises(DataError, match=r"data_batch_5.*labels must be in \[0, 9\]"):
            read(path)


# Packed


@pytest.mark.parametrize("shard_rows", [1, 4, 11, 100])
def test_packed_set_round_trips(shard_rows, tmp_path, block_bytes):
    data = images()
    packing.write(tmp_path / "p", torch.from_numpy(data), shard_bytes=shard_rows * data[0].nbytes)
    rows, labels = read(tmp_path / "p")
    assert np.array_equal(rows.numpy(), data) and labels is None
    shards = [name for name in os.listdir(tmp_path / "p") if name.startswith("data_")]
    assert len(shards) == -(-11 // shard_rows)
    assert np.array_equal(np.load(tmp_path / "p" / "data_00000.npy"), data[:shard_rows])


def test_packed_set_is_written_from_any_source(tmp_path, block_bytes):
    path = write_edm_zip(tmp_path, images(), np.arange(11))
    with open_source(path) as source:
        packing.write(tmp_path / "p", source, shard_bytes=500)
    rows, labels = read(tmp_path / "p")
    assert np.array_equal(rows.numpy(), images()) and labels.tolist() == list(range(11))


def test_packed_set_is_not_overwritten(tmp_path):
    packing.write(tmp_path / "p", images())
    with pytest.raises(FileExistsError, match="new or empty folder"):
        packing.write(tmp_path / "p", images())
    with pytest.raises(ValueError, match="data must be uint8"):
        packing.write(tmp_path / "q", np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"labels must have shape"):
        packing.write(tmp_path / "q", images(), labels=[1])
    assert not (tmp_path / "q").exists()


def test_interrupted_packing_leaves_no_set(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "_describe", fail)
    with pytest.raises(KeyboardInterrupt):
        packing.write(tmp_path / "p", images())
    with pytest.raises(DataError, match="must hold images or a finished set, got"):
        read(tmp_path / "p")


# Progress


def test_progress_appears_on_work_that_takes_seconds(tmp_path, monkeypatch):
    made = []

    class Bar:
        def __init__(self, **options):
            made.append(options)
            self.count = 0

        def update(self, rows):
            self.count += rows
            made.append(self.count)

        def close(self):
            made.append("closed")

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 5 * 144)
    path = write_npy(tmp_path, images(), None)
    read(path)
    assert made == []
    monkeypatch.setattr(source_module, "PROGRESS_DELAY_S", -1.0)
    read(path)
    assert made[0]["total"] == 11 and str(path) in made[0]["desc"]
    assert made[1:] == [5, 10, 11, "closed"]


# Memory


@pytest.mark.parametrize("name", ["npy", "npz_deflated", "safetensors", "packed"])
def test_reading_needs_one_block_beside_the_rows(name, tmp_path, monkeypatch):
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("peak memory is read from /proc")
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 1 << 20)
    data = images(32, (1 << 20,))
    path = WRITERS[name](tmp_path, data, np.arange(32))
    read(WRITERS["npy"](tmp_path, data[:1], None) if name != "npy" else path)
    del data
    resident("VmHWM", reset=True)
    before = resident("VmRSS")
    rows, _ = read(path)
    peak = resident("VmHWM")
    # One block of 1 MiB, the buffers of inflate, slack of the allocator.
    assert peak - before - rows.nbytes < 24 << 20


def resident(field, reset=False):
    if reset:
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
    with open("/proc/self/status") as stream:
        line = next(line for line in stream if line.startswith(field))
    return int(line.split()[1]) * 1024
