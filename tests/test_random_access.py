"""Rows at any place of a file: the same as in a pass, and nothing of a file that changed."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from processes import ELSEWHERE
from test_readers import WRITERS, images, resident

from diffgen.errors import DataError
from diffgen.readers import assemble, descriptors, open_source, packed, packing, pread
from diffgen.readers import source as source_module
from diffgen.readers.pread import Layout, PreadFile, layout_source
from diffgen.readers.random_access import InOrder
from diffgen.readers.source import Source, tensor_source

LABELS = np.arange(11) % 10


def write(name, folder, **options):
    return WRITERS[name](folder, images(shape=(3, 32, 32), **options), LABELS)


def take(source, first, count):
    """Rows in the middle of a tensor whose other rows must stay as they are."""
    whole = torch.full((count + 2, *source.shape[1:]), 77).to(source.dtype)
    source.read(whole[1 : count + 1], first)
    assert (whole[0] == 77).all() and (whole[-1] == 77).all()
    return whole[1 : count + 1]


def places(total, generator):
    """Every place and size, in an order that goes back and forth."""
    pairs = [(a, b - a) for a in range(total + 1) for b in range(a, total + 1)]
    return [pairs[i] for i in generator.permutation(len(pairs))]


# Every format


@pytest.mark.parametrize("block_rows", [1, 3, 100])
@pytest.mark.parametrize("name", WRITERS)
def test_read_gives_the_rows_of_a_pass_at_every_place(name, block_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "BLOCK_BYTES", block_rows * 3072)
    generator = np.random.default_rng(block_rows)
    chosen = places(11, generator)
    if not name.startswith("cifar_tar"):
        chosen = [*chosen[:40], (0, 1), (10, 1), (0, 11)]
    with open_source(write(name, tmp_path)) as source:
        rows = assemble(source)
        assert np.array_equal(rows.numpy(), images(shape=(3, 32, 32)))
        for first, count in chosen:
            assert torch.equal(take(source, first, count), rows[first : first + count])
        assert torch.equal(assemble(source), rows)


@pytest.mark.parametrize("end", [".npy", ".npz"])
@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "|u1"])
def test_read_keeps_types_in_both_byte_orders(dtype, end, tmp_path):
    data = np.random.default_rng(0).uniform(0, 255, (9, 5)).astype(dtype)
    path = tmp_path / f"x{end}"
    (np.save if end == ".npy" else np.savez)(path, data)
    with open_source(path) as source:
        for first, count in places(9, np.random.default_rng(1)):
            expected = data[first : first + count].astype(data.dtype.newbyteorder("="))
            assert np.array_equal(take(source, first, count).numpy(), expected)


@pytest.mark.parametrize("short", [False, True], ids=["whole", "short reads"])
@pytest.mark.parametrize("gap", [0, 1, 4096, 4097, -4], ids=str)
def test_rows_with_gaps_between_them_are_read(gap, short, tmp_path, monkeypatch):
    """Gaps that are read along, gaps that are passed over, and rows that overlap."""
    shape = (pread.ROWS_PER_CALL + 9, 6)
    content = np.random.default_rng(0).integers(0, 256, 3 + shape[0] * (6 + gap) + 6, np.uint8)
    (tmp_path / "x").write_bytes(content.tobytes())
    if short:
        whole = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, views, at: whole(fd, [views[0][:5]], at))
    layout = Layout(shape, torch.uint8, 3, 6 + gap)
    with layout_source(PreadFile(str(tmp_path / "x")), layout) as source:
        for first, count in [(0, shape[0]), (0, 1), (shape[0] - 1, 1), (5, 258), (1, 0)]:
            expected = [content[3 + row * (6 + gap) :][:6] for row in range(first, first + count)]
            got = take(source, first, count)
            assert np.array_equal(got.numpy(), np.array(expected).reshape(count, 6))


def test_rows_with_gaps_take_one_call_for_many(tmp_path, monkeypatch):
    calls = []
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: calls.append(args) or whole(*args))
    with open_source(write("cifar_folder", tmp_path)) as source:
        calls.clear()
        take(source, 0, 11)
    # One for each of the five batches.
    assert len(calls) == 5


def test_large_reads_are_made_of_calls_that_a_system_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(pread, "MAX_CALL_BYTES", 100)
    calls = []
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: calls.append(len(args[1][0])) or whole(*args))
    data = images(5, (50,))
    np.save(tmp_path / "x.npy", data)
    with open_source(tmp_path / "x.npy") as source:
        calls.clear()
        assert np.array_equal(take(source, 0, 5).numpy(), data)
    assert calls == [100, 100, 50]


def test_read_refuses_what_does_not_fit(tmp_path):
    with open_source(write("npy", tmp_path)) as source:
        out = torch.empty(2, 3, 32, 32, dtype=torch.uint8)
        for wrong in (out.float(), out[:, :2], out[0], out.flatten(1)):
            with pytest.raises(ValueError, match="out must have shape"):
                source.read(wrong, 0)
        with pytest.raises(ValueError, match="out must be contiguous"):
            source.read(out.transpose(2, 3), 0)
        with pytest.raises(ValueError, match="out must be contiguous and on the CPU, got meta"):
            source.read(out.to("meta"), 0)
        for first in (-1, 10, 11, 1 << 70):
            with pytest.raises(ValueError, match=r"first must be in \[0, 9\] for 2 of 11 rows"):
                source.read(out, first)
    with pytest.raises(ValueError, match="must be open to be read"):
        source.read(out, 0)


# Files that change


def used_files(path):
    """Files that the rows or labels of a set come from."""
    if path.is_file():
        return [path]
    unused = ("notes.txt", ".hidden.png", "test_batch", "test_batch.bin", "norms.npy")
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name not in unused)


def touch(path):
    os.utime(path, ns=(1, 1))


def append(path):
    with open(path, "ab") as stream:
        stream.write(b"\0")


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def replace(path):
    """Another file of the same bytes and time."""
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize("change", [touch, append, cut, replace, os.remove])
@pytest.mark.parametrize("name", WRITERS)
def test_check_names_the_file_that_changed(name, change, tmp_path):
    path = write(name, tmp_path)
    for which in (0, -1):
        with open_source(path) as source:
            source.check()
            file = used_files(path)[which]
            saved = file.read_bytes()
            change(file)
            with pytest.raises(DataError, match=file.name):
                source.check()
        file.write_bytes(saved)


def test_check_asks_after_every_shard(tmp_path):
    path = write("packed", tmp_path)
    assert len(used_files(path)) == 5
    for file in used_files(path):
        with open_source(path) as source:
            touch(file)
            with pytest.raises(DataError, match=rf"{file.name}: must not change while it is open"):
                source.check()


@pytest.mark.parametrize("name", ["npy", "npz", "safetensors", "packed", "cifar_folder"])
def test_file_that_shrinks_is_an_error_of_the_read_that_needs_it(name, tmp_path):
    path = write(name, tmp_path)
    with open_source(path) as source:
        rows = assemble(source)
        files = [file for file in used_files(path) if file.name not in ("labels.npy", "meta.json")]
        file = files[-1]
        os.truncate(file, file.stat().st_size - 3000)
        with pytest.raises(DataError, match=rf"{file.name}: ends at byte \d+.*shrank while open"):
            take(source, 10, 1)
        assert torch.equal(take(source, 0, 2), rows[:2])


def test_image_that_changes_is_not_decoded(tmp_path):
    path = write("image_folder", tmp_path)
    with open_source(path) as source:
        replace(path / "0007.png")
        take(source, 0, 7)
        with pytest.raises(DataError, match=r"0007\.png: must not change while the folder is open"):
            take(source, 6, 3)


# Checksums


def test_corrupt_shard_is_found_by_the_read_that_reaches_its_end(tmp_path):
    path = write("packed", tmp_path)  # shards of 4, 4 and 3 rows
    file = path / "data_00001.npy"
    content = bytearray(file.read_bytes())
    written = hashlib.sha256(content).hexdigest()
    content[-5000] ^= 1
    file.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    message = rf"data_00001\.npy: sha256 must be {written}, got {found}"
    with open_source(path) as source:
        for first, count in [(5, 3), (9, 2), (0, 4), (4, 1), (5, 2)]:
            take(source, first, count)
        for first, count in [(7, 1), (0, 11), (4, 4), (3, 5)]:
            with pytest.raises(DataError, match=message):
                take(source, first, count)
        take(source, 4, 2)
        take(source, 0, 4)
        with pytest.raises(DataError, match=message):
            take(source, 6, 3)
        with pytest.raises(DataError, match=message):
            assemble(source)


def test_shards_are_hashed_once_and_nothing_is_read_twice(tmp_path, monkeypatch):
    path = write("packed", tmp_path)
    read = []
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: read.append(whole(*args)) or read[-1])
    with open_source(path) as source:
        read.clear()
        take(source, 0, 5)
        take(source, 5, 6)
        headers = 3 * 128
        assert sum(read) == 11 * 3072 + headers
        monkeypatch.setattr(packed.hashlib, "sha256", None)
        read.clear()
        take(source, 0, 11)
        assert sum(read) == 11 * 3072


def test_interrupt_while_hashing_accuses_nobody(tmp_path, monkeypatch):
    path = write("packed", tmp_path)

    class Interrupted:
        name = "sha256"

        def __init__(self, content):
            self.digest = hashlib.new("sha256", content)
            self.count = 0

        def update(self, content):
            self.digest.update(content)
            self.count += 1
            if self.count == 2:
                raise KeyboardInterrupt

        def hexdigest(self):
            return self.digest.hexdigest()

    with open_source(path) as source:
        with monkeypatch.context() as patch:
            patch.setattr(packed.hashlib, "sha256", Interrupted)
            take(source, 0, 1)
            with pytest.raises(KeyboardInterrupt):
                take(source, 1, 1)
        for first, count in [(1, 1), (2, 2), (2, 9), (0, 11)]:
            take(source, first, count)


def test_reads_with_rows_between_them_accuse_nobody(tmp_path):
    with open_source(write("packed", tmp_path)) as source:
        for first, count in [(0, 1), (2, 2), (0, 2), (1, 3), (0, 3), (3, 1), (4, 2), (5, 3)]:
            take(source, first, count)


def test_stored_member_with_a_changed_bit_is_found(tmp_path):
    path = write("npz", tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(images(shape=(3, 32, 32)).tobytes()) + 20_000] ^= 1
    path.write_bytes(content)
    with open_source(path) as source:
        take(source, 5, 6)
        take(source, 0, 5)
        with pytest.raises(
            DataError, match=r"x\.npz: member 'images\.npy'.*Bad CRC-32: crc32 must"
        ):
            take(source, 5, 6)


def test_deflated_member_with_a_wrong_checksum_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 3072)
    path = write("npz_deflated", tmp_path)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 16
    content[place] ^= 1
    path.write_bytes(content)
    with open_source(path) as source:
        take(source, 0, 10)
        with pytest.raises(DataError, match=r"x\.npz: member 'data\.npy'.*Bad CRC-32"):
            take(source, 10, 1)


# Formats that are read in order


def counted(data, rows=2):
    """Rows that can be read in order only, and how often that was begun and how far it came."""
    passes = []

    def blocks(count):
        passes.append(0)
        for block in data.split(count):
            passes[-1] += len(block)
            yield block
        passes[-1] += 1000  # what stands behind the rows is looked at

    return InOrder("rows", blocks, rows, len(data)), passes


def test_reading_on_goes_on_and_reading_back_starts_again():
    data = torch.arange(20)
    fill, passes = counted(data)
    for first, count, expected in [
        (0, 3, [4]),
        (3, 2, [6]),
        (5, 1, [6]),
        (12, 3, [16]),
        (14, 1, [16]),
        (13, 2, [16, 16]),
        (15, 5, [16, 1020]),
        (0, 1, [16, 1020, 2]),
    ]:
        out = torch.full((count,), -1)
        fill(out, first)
        assert out.tolist() == list(range(first, first + count))
        assert passes == expected


def test_reading_on_after_an_error_starts_again():
    data = torch.arange(20)
    fill, _ = counted(data)
    out = torch.empty(6, dtype=torch.int64)
    fill(out, 0)
    blocks, fail = fill._blocks, [True]

    def failing(count):
        for number, block in enumerate(blocks(count)):
            if fail[0] and number == 5:
                raise KeyboardInterrupt
            yield block

    fill._blocks = failing
    fill(out[:2], 0)
    with pytest.raises(KeyboardInterrupt):
        fill(out, 8)
    fail[0] = False
    fill(out, 8)
    assert out.tolist() == list(range(8, 14))


def test_too_few_rows_are_an_error():
    fill = InOrder("here", lambda rows: iter(torch.arange(4).split(rows)), 3, 9)
    with pytest.raises(DataError, match="here: must hold 9 rows, got 4"):
        fill(torch.empty(2, dtype=torch.int64), 5)


def test_sources_without_random_access_get_it():
    data = torch.arange(40.0).view(10, 4)
    source = Source("x", (10, 4), torch.float32, lambda rows: iter(data.split(rows)))
    for first, count in places(10, np.random.default_rng(0)):
        assert torch.equal(take(source, first, count), data[first : first + count])


@pytest.mark.parametrize("name", WRITERS)
def test_read_after_an_interrupt_gives_the_rows(name, tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 2 * 3072)
    whole = os.preadv
    with open_source(write(name, tmp_path)) as source:
        take(source, 0, 2)

        def interrupted(*arguments):
            monkeypatch.setattr(os, "preadv", whole)
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "preadv", interrupted)
        if "tar" in name or "cifar_py" in name:  # in memory
            take(source, 5, 6)
        else:
            with pytest.raises(KeyboardInterrupt):
                take(source, 0, 11)
        for first, count in [(2, 5), (7, 4), (0, 11)]:
            expected = images(shape=(3, 32, 32))[first : first + count]
            assert np.array_equal(take(source, first, count).numpy(), expected)


# Descriptors


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def write_shards(folder, count, rows=3):
    """A packed set and a folder of .npy files of many shards."""
    data = images(count * rows, (10,))
    packing.write(folder / "packed", data, shard_bytes=rows * 10)
    (folder / "plain").mkdir()
    for number, part in enumerate(data.reshape(count, rows, 10)):
        np.save(folder / "plain" / f"{number:04d}.npy", part)
    return data


MANY = """
import os, resource, sys
import numpy as np, torch
from diffgen.readers import assemble, open_source
import tqdm.auto
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
sources = [open_source(path) for path in sys.argv[2:]]
data = torch.from_numpy(np.load(sys.argv[1]))
for source in sources:
    assert source.shape == data.shape
    assert torch.equal(assemble(source), data)
    out = torch.empty(50, 10, dtype=torch.uint8)
    for first in np.random.default_rng(0).integers(0, len(data) - 50, 100).tolist():
        source.read(out, first)
        assert torch.equal(out, data[first : first + 50])
    source.check()
# Others take all that is left: the readers come by with what they have.
held = []
try:
    while True:
        held.append(open(os.devnull))
except OSError:
    pass
for source in sources:
    source.read(out, 0)
    source.read(out, 800)
    assert torch.equal(out, data[800:850])
print("read", len(held) >= 64 - 16 - 12)
"""


def test_more_shards_than_descriptors_are_read(tmp_path):
    data = write_shards(tmp_path, 300)
    np.save(tmp_path / "x.npy", data)
    paths = [str(tmp_path / name) for name in ("x.npy", "packed", "plain")]
    result = subprocess.run(
        [sys.executable, "-c", MANY, *paths],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ELSEWHERE,
    )
    assert (result.returncode, result.stdout) == (0, "read True\n"), result.stderr


@pytest.mark.parametrize("kind", ["packed", "plain"])
def test_descriptors_are_bounded_and_given_back(kind, tmp_path, monkeypatch):
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("descriptors are counted in /proc")
    monkeypatch.setattr(descriptors, "MAX_OPEN", 5)
    data = write_shards(tmp_path, 30)
    before = open_descriptors()
    source = open_source(tmp_path / kind)
    for first in [0, 60, 3, 89, 0]:
        assert np.array_equal(take(source, first, 1).numpy(), data[first : first + 1])
        assert open_descriptors() <= before + 5
    assert np.array_equal(assemble(source).numpy(), data)
    assert open_descriptors() <= before + 5
    source.close()
    assert open_descriptors() <= before


def test_descriptors_used_last_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(descriptors, "MAX_OPEN", 4)
    write_shards(tmp_path, 10)
    with open_source(tmp_path / "plain") as source:
        take(source, 0, 1)
        opened = []
        whole = os.open
        monkeypatch.setattr(os, "open", lambda *args: opened.append(args[0]) or whole(*args))
        for shard in range(1, 10):
            take(source, 3 * shard, 1)
            take(source, 0, 1)
    assert "0000.npy" not in map(os.path.basename, opened)


@pytest.mark.parametrize(
    ("allowed", "kept"), [(1024, 64), (256, 64), (100, 25), (8, 4), (resource.RLIM_INFINITY, 64)]
)
def test_a_quarter_of_the_descriptors_is_taken_at_most(allowed, kept, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (allowed, allowed))
    assert descriptors.limit() == kept


def test_shard_replaced_while_it_was_not_open_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(descriptors, "MAX_OPEN", 4)
    write_shards(tmp_path, 10)
    with open_source(tmp_path / "plain") as source:
        take(source, 20, 10)
        replace(tmp_path / "plain" / "0001.npy")
        (tmp_path / "plain" / "0002.npy").unlink()
        with pytest.raises(
            DataError, match=r"0001\.npy: must not change while it is open: replaced"
        ):
            take(source, 3, 1)
        with pytest.raises(DataError, match=r"0002\.npy: cannot be opened again"):
            take(source, 6, 1)
        take(source, 0, 3)


def test_files_are_opened_again_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(descriptors, "MAX_OPEN", 4)
    data = write_shards(tmp_path, 10)
    monkeypatch.chdir(tmp_path)
    with open_source("plain") as source:
        monkeypatch.chdir("/")
        assert np.array_equal(assemble(source).numpy(), data)
        source.check()


def test_threads_share_the_descriptors(tmp_path, monkeypatch):
    """Each file is closed by others' reads again and again, never during its own."""
    monkeypatch.setattr(descriptors, "MAX_OPEN", 4)
    data = write_shards(tmp_path, 20)
    failed = []

    def work(seed):
        try:
            generator = np.random.default_rng(seed)
            with open_source(tmp_path / ("packed" if seed % 2 else "plain")) as source:
                for _ in range(150):
                    first = int(generator.integers(0, 60))
                    count = min(60 - first, 7)
                    got = take(source, first, count)
                    assert np.array_equal(got.numpy(), data[first : first + count])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_reads_though_a_thread_held_the_lock(tmp_path):
    path = write("npy", tmp_path)
    taken, done = threading.Event(), threading.Event()

    def hold():
        with descriptors._kept.lock:
            taken.set()
            done.wait(60)

    with open_source(path) as source:
        thread = threading.Thread(target=hold)
        thread.start()
        taken.wait(60)
        # Made here: to fill it in the child would wait for threads of OpenMP that it does not have.
        out = torch.empty(11, 3, 32, 32, dtype=torch.uint8)
        child = os.fork()
        if child == 0:
            watchdog = threading.Timer(20, os._exit, (3,))
            watchdog.start()
            source.read(out, 0)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        done.set()
        thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


# Memory


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_read_allocates_nothing_of_the_size_of_what_it_reads(dtype, tmp_path):
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("peak memory is read from /proc")
    np.save(tmp_path / "x.npy", np.ones((64, 1 << 18), dtype))
    with open_source(tmp_path / "x.npy") as source:
        out = torch.zeros(64, 1 << 18)
        source.read(out[:1], 0)
        resident("VmHWM", reset=True)
        before = resident("VmRSS")
        source.read(out, 0)
        peak = resident("VmHWM")
    assert out.eq(1).all()
    assert peak - before < 4 << 20


def test_tensors_are_sources_too():
    data = torch.arange(12.0).view(6, 2)
    source = tensor_source(data)
    source.check()
    for first, count in places(6, np.random.default_rng(0)):
        assert torch.equal(take(source, first, count), data[first : first + count])
