"""Files from strangers: nothing in them runs, nothing escapes, nothing crashes."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pickle
import stat
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffgen.errors import DataError
from diffgen.readers import archive, assemble, limits, open_source, packing
from diffgen.readers import source as source_module
from diffgen.training_set import TrainingSet


def read(path, **options):
    with open_source(path, **options) as source:
        return assemble(source)


def png(height=4, width=5):
    stream = io.BytesIO()
    Image.fromarray(np.arange(height * width, dtype=np.uint8).reshape(height, width)).save(
        stream, "PNG"
    )
    return stream.getvalue()


# Pickles


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def payloads(path):
    """Pickles that create the file ``path``, in every way a pickle can call."""
    name = str(path).encode()
    call = b"(X" + len(name).to_bytes(4, "little") + name + b"X\x01\0\0\0wt"
    short = bytes([len(name)]) + name
    yield "reduce", b"\x80\x02cio\nopen\n" + call + b"R."
    yield "stack_global", b"\x80\x04\x8c\x02io\x8c\x04open\x93" + call + b"R."
    yield "inst", b"(S'" + name + b"'\nS'w'\niio\nopen\n."
    yield "obj", b"(cio\nFileIO\nU" + short + b"U\x01wo."
    yield "newobj", b"\x80\x02cio\nFileIO\n" + call + b"\x81."
    yield "protocol_0", b"cio\nopen\n(S'" + name + b"'\nS'w'\ntR."
    yield "getattr", b"\x80\x02cbuiltins\ngetattr\n" + call + b"R."
    yield "dotted", b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.view\x93."
    yield "numpy_load", b"\x80\x02cnumpy\nload\n" + call + b"R."
    yield "submodule", b"\x80\x02cnumpy.core.multiarray\nfromfile\n" + call + b"R."
    for protocol in range(6):
        data = {b"data": Payload(path), b"labels": [1]}
        yield f"in_data_{protocol}", pickle.dumps(data, protocol)
        array = np.empty(2, object)
        array[0] = Payload(path)
        yield f"in_array_{protocol}", pickle.dumps({b"data": array, b"labels": [1]}, protocol)
        yield f"as_key_{protocol}", pickle.dumps({"labels": [Payload(path)]}, protocol)


NAMES = [name for name, _ in payloads("x")]


def test_payloads_would_run(tmp_path):
    """The payloads are live: without this the tests below could pass on duds."""
    for name, content in payloads(tmp_path / "ran"):
        if name in ("getattr", "dotted", "numpy_load", "submodule", "newobj"):
            continue
        pickle.loads(content)
        assert (tmp_path / "ran").exists(), name
        os.remove(tmp_path / "ran")


@pytest.mark.parametrize("packing", ["folder", "tar"])
@pytest.mark.parametrize("name", NAMES)
def test_code_in_a_cifar_pickle_does_not_run(name, packing, tmp_path):
    content = dict(payloads(tmp_path / "ran"))[name]
    path = write_cifar(tmp_path, content, packing)
    with pytest.raises(DataError, match=r"data_batch_1.*(refused pickle|must be)"):
        TrainingSet.open(path)
    assert not (tmp_path / "ran").exists()


def write_cifar(folder, content, packing="folder"):
    if packing == "folder":
        (folder / "cifar").mkdir(exist_ok=True)
        for number in range(1, 6):
            (folder / "cifar" / f"data_batch_{number}").write_bytes(content)
        return folder / "cifar"
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as tar:
        for number in range(1, 6):
            add(tar, f"cifar-10-batches-py/data_batch_{number}", content)
    return folder / "cifar.tar.gz"


def add(tar, name, content=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("end", ["npy", "npz"])
def test_code_in_an_object_array_does_not_run(end, tmp_path):
    array = np.empty(1, object)
    array[0] = Payload(tmp_path / "ran")
    path = tmp_path / f"x.{end}"
    (np.save if end == "npy" else np.savez)(path, array)
    # Pickling the payload does not run it.
    assert not (tmp_path / "ran").exists()
    with pytest.raises(DataError, match="must hold plain numbers, got object"):
        TrainingSet.open(path)
    with pytest.raises(DataError, match="must hold plain numbers, got object"):
        np.savez(tmp_path / "y.npz", x=np.zeros((1, 2)), y=array)
        TrainingSet.open(tmp_path / "y.npz", labels=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"\x80\x02}",
        b"\x80\x02].",
        b"\x80\x02K\x01.",
        # A memo place of 2^31 would make the C unpickler allocate and clear 16 GiB.
        b"\x80\x02}r\xff\xff\xff\x7f.",
        # Declared lengths far beyond the file.
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02U\x01aQ.",
        b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x80\x02" + b"]" + b"]" * 50_000 + b"a" * 50_000 + b".",
        b"\x80\x02cnumpy\nndarray\n(K\x01K\x02t}b.",
        b"\x80\x02cnumpy\nndarray\nK\x01\x85R.",
        b"\x80\x02}U\x04datacnumpy\ndtype\nU\x01O\x85Rs.",
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2.0]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 1 << 100]}),
        pickle.dumps({b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 2]}),
        pickle.dumps({b"data": np.zeros((0, 3072), np.uint8), b"labels": []}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.int8), b"labels": [1, 2]}),
        pickle.dumps({b"data": np.zeros((3072, 2), np.uint8).T, b"labels": [1, 2]}, 4),
        pickle.dumps({b"data": b"0" * 6144, b"labels": [1, 2]}),
    ],
)
def test_malformed_cifar_pickles_are_refused(content, tmp_path):
    path = write_cifar(tmp_path, content)
    with pytest.raises(DataError, match="data_batch_1"):
        TrainingSet.open(path)


def test_pickled_array_that_lies_about_its_size_is_refused(tmp_path):
    content = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}, 4)
    assert content.count(b"K\x02M\x00\x0c\x86") == 1
    for rows in (b"K\x01", b"K\x03", b"J\xff\xff\xff\x7f", b"J\xfe\xff\xff\xff"):
        changed = content[:2] + content[11:]  # without the frame, whose length would be wrong
        changed = changed.replace(b"K\x02M\x00\x0c\x86", rows + b"M\x00\x0c\x86")
        with pytest.raises(DataError, match="data_batch_1"):
            TrainingSet.open(write_cifar(tmp_path, changed))


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_cifar_records_cut_short_are_refused(size, tmp_path):
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(bytes(size))
    with pytest.raises(DataError, match=r"data_batch_1\.bin: must be records of 3073 bytes"):
        TrainingSet.open(tmp_path)


# .npy


def npy(header, data=b"", version=1, length=None):
    if isinstance(header, str):
        header = header.encode("latin1")
    size = len(header) if length is None else length
    count = struct.pack("<H", size) if version == 1 else struct.pack("<I", size)
    return b"\x93NUMPY" + bytes([version, 0]) + count + header + data


def plain(shape, descr="'<f4'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPX\x01\0",
        npy(plain((3,)), bytes(12), version=9),
        npy("", b""),
        npy("{}\n"),
        npy("[1, 2]\n"),
        npy(plain((3,)) + "x" * 100),
        npy("(" * 5000),
        npy("{" * 9000),
        npy("-" * 9000 + "1"),
        npy("\xff\xfe\x00"),
        npy("__import__('os').system('touch ran')\n"),
        npy(plain((3,)), length=60_000),
        npy(plain((3,)), bytes(12), version=2, length=2**32 - 1),
        npy(plain((3,)) + " " * 20_000, bytes(12)),
        npy(plain((3,)) + " " * 70_000, bytes(12), version=2),
        npy(plain((3,)) + " " * 70_000, bytes(12), version=3),
        npy(plain((-3,)), bytes(12)),
        npy(plain("(-1, -3)"), bytes(12)),
        npy(plain("3"), bytes(12)),
        npy(plain("(3.0,)"), bytes(12)),
        npy(plain("(None,)"), bytes(12)),
        npy(plain("()"), bytes(4)),
        npy(plain("(4,)"), bytes(12)),
        npy(plain("(2**62, 2**62)"), bytes(12)),
        npy(plain((1 << 62, 1 << 62)), bytes(12)),
        npy(plain((1 << 200,)), bytes(12)),
        npy(plain((3,), "'|O'"), bytes(12)),
        npy(plain((3,), "'<V4'"), bytes(12)),
        npy(plain((3,), "'|S0'"), bytes(12)),
        npy(plain((3,), "[('a', '|O')]"), bytes(12)),
        npy(plain((3,), "('<f4', (2,))"), bytes(12)),
        npy(plain((3,), "'os.system'"), bytes(12)),
        npy(plain((3,), "7"), bytes(12)),
        npy(plain((3,), order="'maybe'"), bytes(12)),
    ],
    ids=lambda content: content[10:50],
)
@pytest.mark.parametrize("end", ["npy", "npz", "zip"])
def test_malformed_npy_is_refused(content, end, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"x.{end}"
    if end == "npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive_:
            archive_.writestr("x.npy", content)
    with pytest.raises(DataError, match=rf"x\.{end}"):
        TrainingSet.open(path)
    assert not (tmp_path / "ran").exists()


# .safetensors


def tensors(header, data=bytes(24), length=None):
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(kind="F32", shape=(2, 3), offsets=(0, 24), **more):
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(7),
        tensors({}),
        tensors([]),
        tensors(b"7"),
        tensors(b"{"),
        tensors(b"\xff\xff"),
        tensors(b"[" * 100_000),
        tensors(b'{"x":' * 100_000),
        tensors({"x": entry()}, length=2**63),
        tensors({"x": entry()}, length=200_000_000),
        tensors({"x": entry()}, length=1000),
        tensors({"x": entry()}, data=bytes(23)),
        tensors({"x": entry(offsets=(0, 23))}),
        tensors({"x": entry(offsets=(24, 0))}),
        tensors({"x": entry(offsets=(-24, 0))}),
        tensors({"x": entry(offsets=(0, 24, 24))}),
        tensors({"x": entry(offsets=(1, 25))}),
        tensors({"x": entry(offsets=(2**70, 2**70 + 24))}),
        tensors({"x": entry(shape=(2, -3))}),
        tensors({"x": entry(shape=(2, 3.0))}),
        tensors({"x": entry(shape=(6, True, 1))}),
        tensors({"x": entry(shape=(2**40, 2**40))}),
        tensors({"x": entry(shape=())}),
        tensors({"x": entry(shape=(0, 3), offsets=(0, 0))}),
        tensors({"x": entry(kind="I32")}),
        tensors({"x": entry(kind=4)}),
        tensors({"x": entry(kind="F32", extra=1)}),
        tensors({"x": {"dtype": "F32"}}),
        tensors({"x": 3}),
        tensors(b'{"x": %b, "x": %b}' % ((json.dumps(entry()).encode(),) * 2)),
    ],
    ids=lambda content: content[8:50],
)
def test_malformed_safetensors_is_refused(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.safetensors"):
        TrainingSet.open(tmp_path / "x.safetensors")


def test_well_formed_safetensors_of_the_helper_is_read(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(tensors({"__metadata__": {"a": "b"}, "x": entry()}))
    assert read(tmp_path / "x.safetensors").shape == (2, 3)


# Zip


UNSAFE = ["../a.png", "a/../../b.png", "/a.png", "C:/a.png", "..\\a.png", "\\a.png", "a/..", "../"]


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("end", ["zip", "npz"])
def test_zip_names_that_leave_the_archive_are_refused(name, end, tmp_path):
    path = tmp_path / f"x.{end}"
    with zipfile.ZipFile(path, "w") as archive_:
        archive_.writestr("a.npy", npy(plain((3,)), bytes(12)))
        archive_.writestr(zipfile.ZipInfo(name), png())
    with pytest.raises(DataError, match="member name must stay inside the archive"):
        TrainingSet.open(path)


def test_zip_links_are_refused(tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive_:
        link = zipfile.ZipInfo("a.png")
        link.create_system = 3
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive_.writestr(link, str(tmp_path / "secret.png"))
    with pytest.raises(DataError, match=r"'a\.png' must be a file, got a symbolic link"):
        TrainingSet.open(tmp_path / "x.zip")


def zip_of(path, *contents, **options):
    options = {"compression": zipfile.ZIP_DEFLATED, **options}
    with zipfile.ZipFile(path, "w", **options) as archive_:
        for number, content in enumerate(contents):
            archive_.writestr(f"{number}.npy", content)
    return path


def patch_directory(path, field, value, member=0):
    """Change a field of the central directory: (offset, struct format)."""
    content = bytearray(path.read_bytes())
    place = -1
    for _ in range(member + 1):
        place = content.index(b"PK\x01\x02", place + 1)
    struct.pack_into(field[1], content, place + field[0], value)
    path.write_bytes(content)


FLAGS, METHOD, CRC, PACKED, SIZE = (8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (FLAGS, 1, "is encrypted"),
        (METHOD, zipfile.ZIP_LZMA, "must be stored or deflated, got method 14"),
        (METHOD, 99, "must be stored or deflated, got method 99"),
        (METHOD, zipfile.ZIP_STORED, "damaged archive|declares|must have|readable"),
        (CRC, 7, "Bad CRC-32"),
        (PACKED, 3, "damaged archive|declares|truncated|readable"),
        (PACKED, 2**31, "its members overlap"),
        (SIZE, 300, "Bad CRC-32|declares|must have|truncated"),
        (SIZE, 600, "damaged archive|declares|must have|bytes behind"),
        (SIZE, 2**31, "decompression bomb"),
    ],
)
@pytest.mark.parametrize("end", ["npz", "zip"])
def test_zip_directories_that_lie_are_refused(field, value, message, end, tmp_path):
    rng = np.random.default_rng(0)
    content = npy(plain((100,)), rng.normal(size=100).astype(np.float32).tobytes())
    path = zip_of(tmp_path / f"x.{end}", content)
    read(path)
    patch_directory(path, field, value)
    with pytest.raises(DataError, match=message):
        TrainingSet.open(path)


def test_zip_bombs_are_refused_before_they_unpack(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "FREE_BYTES", 1 << 20)
    shape = (1 << 21,)
    path = zip_of(tmp_path / "x.npz", npy(plain(shape, "'|u1'"), bytes(1 << 21)))
    with pytest.raises(DataError, match=r"decompression bomb: \d+ bytes unpack to \d+"):
        TrainingSet.open(path)
    # The same bytes are no bomb where they are stored as they are.
    zip_of(path, npy(plain(shape, "'|u1'"), bytes(1 << 21)), compression=zipfile.ZIP_STORED)
    assert read(path).shape == shape


def test_many_members_over_the_same_bytes_are_refused(tmp_path):
    path = zip_of(tmp_path / "x.npz", *[npy(plain((3,)), os.urandom(12))] * 3)
    for member in range(3):
        patch_directory(path, PACKED, path.stat().st_size // 2, member)
    with pytest.raises(DataError, match="its members overlap"):
        TrainingSet.open(path)


def test_names_that_occur_twice_are_refused(tmp_path):
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(tmp_path / "x.zip", "w") as archive_,
    ):
        archive_.writestr("a.png", png())
        archive_.writestr("a.png", png())
    with pytest.raises(DataError, match=r"'a\.png' occurs twice"):
        TrainingSet.open(tmp_path / "x.zip")


def test_members_too_large_for_memory_are_refused(tmp_path, monkeypatch):
    path = zip_of(tmp_path / "x.zip", npy(plain((3,)), bytes(12)))
    monkeypatch.setattr(archive.SafeZip.read, "__defaults__", (50,))
    with pytest.raises(DataError, match=r"0\.npy' must have at most 50 bytes, got"):
        TrainingSet.open(path)


@pytest.mark.parametrize("content", ["[" * 200_000, "{", "\udcff", '{"labels": [[]]}'])
def test_malformed_dataset_json_is_refused(content, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive_:
        archive_.writestr("dataset.json", content.encode(errors="surrogateescape"))
        archive_.writestr("a.png", png())
    with pytest.raises(DataError, match=r"x\.zip: dataset\.json"):
        TrainingSet.open(tmp_path / "x.zip")


# Tar


def write_tar(path, *members):
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as tar:
        for name, content, fields in members:
            add(tar, name, content, **fields)
    return path


@pytest.mark.parametrize("name", ["../data_batch_1", "/etc/data_batch_1", "a/../../b"])
def test_tar_names_that_leave_the_archive_are_refused(name, tmp_path):
    path = write_tar(tmp_path / "x.tar.gz", (name, b"x", {}))
    with pytest.raises(DataError, match="member name must stay inside the archive"):
        TrainingSet.open(path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_tar_links_and_devices_are_refused(kind, tmp_path):
    path = write_tar(
        tmp_path / "x.tar.gz", ("data_batch_1", b"", {"type": kind, "linkname": "/etc/passwd"})
    )
    with pytest.raises(DataError, match="must be a plain file or folder"):
        TrainingSet.open(path)


def test_tar_bombs_are_refused(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar.gz", ("other", bytes(1 << 20), {}))
    with pytest.raises(DataError, match="must hold data_batch_1"):
        TrainingSet.open(path)
    monkeypatch.setattr(archive, "MAX_TAR_BYTES", 1 << 19)
    with pytest.raises(DataError, match="decompression bomb: more than 524288 bytes"):
        TrainingSet.open(path)


def test_tar_members_too_large_are_refused(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar.gz", ("data_batch_1", bytes(1000), {}))
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 999)
    with pytest.raises(DataError, match=r"'data_batch_1' must have at most 999 bytes, got 1000"):
        TrainingSet.open(path)


def test_nothing_is_unpacked_to_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]})
    path = write_cifar(tmp_path, content, "tar")
    zip_of(tmp_path / "x.zip", npy(plain((3,)), bytes(12)))
    before = sorted(os.listdir(tmp_path))
    assert read(path).shape == (10, 3, 32, 32)
    read(tmp_path / "x.zip")
    assert sorted(os.listdir(tmp_path)) == before


# Images


def png_of(width, height, pixels=b""):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = zlib.compress(pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", content)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 100_000, 2**31 - 1])
def test_images_with_too_many_pixels_are_refused(side, tmp_path):
    """Pillow only warns of 10,000^2 pixels, and raises from twice its limit on."""
    (tmp_path / "a.png").write_bytes(png_of(side, side))
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        TrainingSet.open(tmp_path)


def test_pillows_own_limit_is_respected(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png(20, 20))
    assert read(tmp_path).shape == (1, 1, 20, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    with pytest.raises(DataError, match="exceeds limit of 399 pixels"):
        TrainingSet.open(tmp_path)


def test_many_images_that_unpack_to_far_more_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "FREE_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive_:
        for number in range(10):
            archive_.writestr(f"{number}.png", png_of(1000, 1000, bytes(1001 * 1000)))
    with pytest.raises(DataError, match="decompression bomb"):
        TrainingSet.open(tmp_path / "x.zip")


def test_large_image_among_small_is_refused_by_its_header(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png_of(9000, 9000))
    with pytest.raises(DataError, match=r"b\.png: must have the size \(5, 4\) of a\.png"):
        TrainingSet.open(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GIF89a" + bytes(100),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        png()[:40],
        png()[:-20],
        png_of(4, 4, b"\0"),
        png_of(0, 4, b"\0"),
        b"P6 99999999999 99999999999 255\n",
    ],
)
def test_damaged_images_are_refused(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png: (not a readable|damaged) image"):
        TrainingSet.open(tmp_path)


# Packed sets


@pytest.fixture
def packed_set(tmp_path):
    data = np.arange(60, dtype=np.uint8).reshape(10, 6)
    packing.write(tmp_path / "p", data, labels=range(10), shard_bytes=24)
    return tmp_path / "p"


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"shape": [11, 6]},
        {"shape": [10, 7]},
        {"shape": [10, 0]},
        {"shape": [10, -6]},
        {"shape": []},
        {"shape": [True, 6]},
        {"shape": "10"},
        {"shards": []},
        {"shards": None},
        {"shards": [{"file": "../x.npy", "rows": 10, "sha256": ""}]},
        {"shards": [{"file": "/etc/x.npy", "rows": 10, "sha256": ""}]},
        {"shards": [{"file": "a/b.npy", "rows": 10, "sha256": ""}]},
        {"shards": [{"file": "..npy", "rows": 10, "sha256": ""}]},
        {"shards": [{"file": "missing.npy", "rows": 10, "sha256": ""}]},
        {"shards": [{"file": 3, "rows": 10, "sha256": ""}]},
        {"shards": [{"file": "data_00000.npy", "rows": 10, "sha256": 3}]},
        {"shards": [{"file": "data_00000.npy", "rows": 10, "sha256": ""}]},
        {"labels": {"file": "labels.npy", "rows": 9, "sha256": ""}},
        {"labels": {"file": "labels.npy", "rows": 10, "sha256": ""}},
        {"labels": {"file": "missing.npy", "rows": 10, "sha256": ""}},
        {"labels": 3},
    ],
    ids=str,
)
def test_packed_descriptions_that_lie_are_refused(change, packed_set):
    meta = json.loads((packed_set / "meta.json").read_text())
    (packed_set / "meta.json").write_text(json.dumps({**meta, **change}))
    with pytest.raises(DataError, match=str(packed_set)):
        TrainingSet.open(packed_set)


@pytest.mark.parametrize("content", ["", "[]", "3", "[" * 200_000, '{"format": "diffgen-packed"}'])
def test_malformed_packed_descriptions_are_refused(content, packed_set):
    (packed_set / "meta.json").write_text(content)
    with pytest.raises(DataError, match=r"meta\.json: malformed"):
        TrainingSet.open(packed_set)


@pytest.mark.parametrize("name", ["data_00001.npy", "labels.npy"])
def test_one_changed_bit_of_a_packed_set_is_found(name, packed_set):
    content = (packed_set / name).read_bytes()
    for place in (len(content) - 1, 100, len(content)):
        changed = bytearray(content + b"\0")
        changed[place] ^= 1
        (packed_set / name).write_bytes(changed[: len(content) + (place == len(content))])
        with pytest.raises(DataError, match=rf"{name}: (sha256 must be|not a readable|must)"):
            TrainingSet.open(packed_set)
    (packed_set / name).write_bytes(content)
    TrainingSet.open(packed_set)


# Files that change while they are read


def random_bytes(shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def write_npy(folder, data):
    np.save(folder / "x.npy", data)
    return folder / "x.npy", "x.npy"


def write_npz(folder, data):
    np.savez(folder / "x.npz", data)
    return folder / "x.npz", "x.npz"


def write_npz_deflated(folder, data):
    np.savez_compressed(folder / "x.npz", data)
    return folder / "x.npz", "x.npz"


def write_safetensors(folder, data):
    safetensors.torch.save_file({"x": torch.from_numpy(data)}, folder / "x.safetensors")
    return folder / "x.safetensors", "x.safetensors"


def write_packed(folder, data):
    packing.write(folder / "p", data)
    return folder / "p", "p/data_00000.npy"


def write_edm(folder, data):
    # The directory of a zip is read when it is opened; its members later.
    with zipfile.ZipFile(folder / "x.zip", "w") as archive_:
        for number, row in enumerate(data):
            archive_.writestr(f"{number:04d}.npy", npy(plain(row.shape, "'|u1'"), row.tobytes()))
    return folder / "x.zip", "x.zip"


CHANGING = [
    write_npy,
    write_npz,
    write_npz_deflated,
    write_safetensors,
    write_packed,
    write_edm,
]


@pytest.mark.parametrize("write", CHANGING)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_file_that_shrinks_while_open_is_an_error(write, share, tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 50_000)
    data = random_bytes((100, 50, 100))
    path, file = write(tmp_path, data)
    assert np.array_equal(read(path).numpy(), data)
    size = (tmp_path / file).stat().st_size
    with open_source(path) as source:
        os.truncate(tmp_path / file, int(size * share))
        with pytest.raises(DataError, match=rf"{file}.*(ends at byte \d+|readable)"):
            assemble(source)


@pytest.mark.parametrize("write", CHANGING)
def test_file_that_shrinks_between_blocks_is_an_error(write, tmp_path):
    data = random_bytes((100, 50, 100))
    path, file = write(tmp_path, data)
    with open_source(path) as source:
        blocks = source.blocks(10)
        assert np.array_equal(next(blocks).numpy(), data[:10])
        os.truncate(tmp_path / file, 150_000)
        with pytest.raises(DataError, match=rf"{file}.*ends at byte 150000"):
            for _ in blocks:
                pass


@pytest.mark.parametrize("write", CHANGING)
def test_short_reads_are_continued(write, tmp_path, monkeypatch):
    data = random_bytes((20, 50))
    path, _ = write(tmp_path, data)
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: whole(fd, [views[0][:7]], at))
    assert np.array_equal(read(path).numpy(), data)


@pytest.mark.parametrize("write", CHANGING)
def test_read_errors_name_file_and_place(write, tmp_path, monkeypatch):
    path, file = write(tmp_path, random_bytes((20, 5000)))

    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    with open_source(path) as source:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(DataError, match=rf"{file}: .*Input/output error at byte \d+"):
            assemble(source)


def test_files_are_closed(tmp_path):
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("descriptors are counted in /proc")
    before = len(os.listdir("/proc/self/fd"))
    for write in CHANGING:
        folder = tmp_path / write.__name__
        folder.mkdir()
        path, file = write(folder, random_bytes((20, 50)))
        TrainingSet.open(path)
        os.truncate(folder / file, 30)
        with pytest.raises(DataError):
            TrainingSet.open(path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("write", CHANGING)
def test_every_truncation_is_found(write, tmp_path):
    path, file = write(tmp_path, random_bytes((4, 50)))
    content = (tmp_path / file).read_bytes()
    for size in range(0, len(content), max(1, len(content) // 150)):
        (tmp_path / file).write_bytes(content[:size])
        with pytest.raises(DataError):
            TrainingSet.open(path)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    data=st.data(),
)
@pytest.mark.parametrize("write", [*CHANGING, write_cifar], ids=lambda write: write.__name__)
def test_damage_anywhere_is_an_error_or_other_numbers(write, tmp_path, changes, data):
    """Whatever bytes change, the reader raises DataError or reads: it never fails otherwise."""
    if write is write_cifar:
        batch = {b"data": random_bytes((2, 3072)), b"labels": [1, 2]}
        content = pickle.dumps(batch, data.draw(st.integers(2, 5)))
        path, file = write_cifar(tmp_path, content), "cifar/data_batch_1"
    else:
        if write is write_packed and (tmp_path / "p").exists():
            for name in os.listdir(tmp_path / "p"):
                os.remove(tmp_path / "p" / name)
        path, file = write(tmp_path, random_bytes((4, 50)))
    content = bytearray((tmp_path / file).read_bytes())
    for where, mask in changes:
        # Headers are where damage is interesting: half of the changes go to the first 200 bytes.
        place = int(where * len(content)) if mask % 2 else int(where * min(200, len(content)))
        content[place] ^= mask
    (tmp_path / file).write_bytes(content)
    with contextlib.suppress(DataError):
        TrainingSet.open(path)
