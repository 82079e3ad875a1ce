"""Training sets whose rows stay in their file: memory, damage, threads, interrupts, pickles."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch
from processes import ELSEWHERE

import diffgen
from diffgen import DataError, EmpiricalDenoiser, TrainingSet
from diffgen.backends import native
from diffgen.readers import packing
from diffgen.readers.rows import squared_norms
from diffgen.readers.source import tensor_source
from diffgen.streaming.opening import is_streamed
from diffgen.streaming.place import FilePlace
from diffgen.streaming.sharing import SharedPasses

SHAPE = (3, 8, 8)

needs_native = pytest.mark.skipif(
    native.load_native() is None, reason=native.why_not_native() or "native core"
)


@pytest.fixture
def path(tmp_path):
    """5,000 rows of 192 bytes."""
    rows = np.random.default_rng(0).integers(0, 256, (5000, *SHAPE), dtype=np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    return tmp_path / "rows.npy"


def open_file(path, **more) -> TrainingSet:
    return TrainingSet.open(path, in_memory=False, **more)


def run(script: str, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ELSEWHERE,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )


def test_large_files_stay_where_they_are_and_small_ones_do_not():
    cifar10 = (50_000, 3, 32, 32)
    imagenet = (1_281_167, 3, 64, 64)
    assert not is_streamed(cifar10, torch.uint8, None)
    assert is_streamed(imagenet, torch.uint8, None)
    assert is_streamed(cifar10, torch.float32, None)
    assert is_streamed(cifar10, torch.uint8, False) and not is_streamed(imagenet, torch.uint8, True)


MEMORY = """
    import resource, sys
    import torch
    from diffgen import EmpiricalDenoiser, TrainingSet

    path, limited, dtype = sys.argv[1], sys.argv[2] == "limited", sys.argv[3]

    def anonymous():
        with open("/proc/self/status") as status:
            sizes = dict(line.split(":", 1) for line in status)
        return int(sizes["RssAnon"].split()[0]) / 1024, int(sizes["VmData"].split()[0]) * 1024

    # What any call needs: threads, code.
    small = TrainingSet(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    EmpiricalDenoiser(small)(torch.zeros(1, 3, 64, 64), 1.0)
    before, data = anonymous()
    if limited:
        resource.setrlimit(resource.RLIMIT_DATA, (data + (256 << 20),) * 2)
    points = TrainingSet.open(path)
    denoiser = EmpiricalDenoiser(points)
    x = points[torch.arange(12) * 4001] + 0.5
    peak = 0.0

    import threading, time
    done = threading.Event()

    def watch():
        global peak
        while not done.is_set():
            peak = max(peak, anonymous()[0] - before)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    posterior = denoiser.posterior(x, torch.tensor([0.002, 0.01, 0.1, 0.5, 1, 80.0] * 2), top_k=4)
    y = x[:2].requires_grad_()
    denoiser(y, 1.0).sum().backward()
    done.set()
    watcher.join()
    torch.save((x.detach(), posterior, y.grad, peak), sys.argv[4])
"""


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """More than twice the memory that a pass may take: 53,248 rows of 12,288 bytes."""
    path = tmp_path_factory.mktemp("large") / "rows.npy"
    count = 52 * 1024
    rows = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, 64, 64))
    random = np.random.default_rng(1)
    block = random.integers(0, 256, (1024, 3, 64, 64), dtype=np.uint8)
    for at in range(0, count, 1024):
        rows[at : at + 1024] = np.roll(block, at // 1024, 1) ^ np.uint8(at // 1024)
    rows.flush()
    return path


def test_other_processes_run_the_package_that_is_tested():
    done = run("import diffgen; print(diffgen.__file__)")
    assert done.stdout.strip() == diffgen.__file__, done.stderr


@needs_native
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_a_set_larger_than_the_memory_limit_has_the_bits_of_one_in_memory(large_file, tmp_path):
    result = tmp_path / "result.pt"
    done = run(MEMORY, large_file, "limited", "uint8", result, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    x, posterior, gradient, peak = torch.load(result, weights_only=False)
    assert peak <= 256
    points = TrainingSet.open(large_file, in_memory=True)
    denoiser = EmpiricalDenoiser(points)
    assert torch.equal(x, points[torch.arange(12) * 4001] + 0.5)
    for got, want in zip(
        posterior,
        denoiser.posterior(x, torch.tensor([0.002, 0.01, 0.1, 0.5, 1, 80.0] * 2), top_k=4),
        strict=True,
    ):
        assert got.numpy().tobytes() == want.numpy().tobytes()
    y = x[:2].clone().requires_grad_()
    denoiser(y, 1.0).sum().backward()
    assert torch.allclose(gradient, y.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_the_memory_limit_is_one(large_file, tmp_path):
    script = MEMORY.replace("TrainingSet.open(path)", "TrainingSet.open(path, in_memory=True)")
    done = run(script, large_file, "limited", "uint8", tmp_path / "result.pt")
    assert done.returncode != 0 and "memory" in done.stderr.lower()


def test_nan_is_found_on_the_first_read_of_its_block(tmp_path):
    rows = np.zeros((3000, 5), np.float32)
    rows[2500, 3] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    points = open_file(tmp_path / "rows.npy")
    assert torch.equal(points[:3], torch.zeros(3, 5))
    with pytest.raises(
        DataError, match=r"rows\.npy: must be finite, got nan in row 2500, feature 3"
    ):
        EmpiricalDenoiser(points)(torch.zeros(1, 5), 1.0)


def test_a_file_that_shrinks_while_open_is_an_error_and_then_works_again(path):
    points = open_file(path)
    denoiser = EmpiricalDenoiser(points)
    x = torch.zeros(2, *SHAPE)
    want = denoiser(x, 1.0)
    content = path.read_bytes()
    os.truncate(path, len(content) // 2)
    with pytest.raises(DataError, match=r"rows\.npy"):
        denoiser(x, 1.0)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.npy"):
        denoiser(x, 1.0)
    points.refresh()
    assert torch.equal(EmpiricalDenoiser(points)(x, 1.0), want)


@pytest.mark.parametrize("directly", [False, True])
def test_a_file_that_shrinks_in_the_middle_of_a_pass_is_an_error(path, monkeypatch, directly):
    points = open_file(path)
    denoiser = EmpiricalDenoiser(points)
    want = denoiser(torch.zeros(1, *SHAPE), 1.0)
    place = points._contents.store.place
    place.block_rows = 1024
    monkeypatch.setattr("diffgen.streaming.direct.PIECE_BYTES", 192 * 1024)
    monkeypatch.setattr("diffgen.streaming.direct.FEWEST_SEGMENTS", 1)
    monkeypatch.setattr("diffgen.streaming.direct.SEGMENTS_OF_THREAD", 1)
    if not directly:
        monkeypatch.setattr(place, "in_files", lambda: None)
    elif native.load_native() is None:
        pytest.skip("no native core")
    content, block = path.read_bytes(), place._block

    def shrink(piece, data):
        if piece.first == 2048:
            os.truncate(path, 1000)
        return block(piece, data)

    monkeypatch.setattr(place, "_block", shrink)
    # Threads only see that rows are missing: the files are then looked at.
    said = r"rows\.npy: .* 1000 now" if directly else "truncated, or it shrank while open"
    with pytest.raises(DataError, match=said):
        denoiser(torch.zeros(1, *SHAPE), 1.0)
    path.write_bytes(content)
    points.refresh()
    assert torch.equal(EmpiricalDenoiser(points)(torch.zeros(1, *SHAPE), 1.0), want)


def test_a_file_is_found_from_another_folder_and_missed_when_it_is_gone(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    points = open_file(path.name)
    denoiser = EmpiricalDenoiser(points)
    x = torch.zeros(1, *SHAPE)
    want = denoiser(x, 1.0)
    monkeypatch.chdir("/")
    assert torch.equal(denoiser(x, 1.0), want)
    path.unlink()
    with pytest.raises(DataError, match="cannot be found any more"):
        denoiser(x, 1.0)


@needs_native
@pytest.mark.parametrize("form", ["npy", "packed", "shards"])
def test_threads_that_read_for_themselves_have_the_bits_of_buffers(
    path, tmp_path, form, monkeypatch
):
    rows = torch.from_numpy(np.load(path))
    place_of = {"npy": path, "packed": tmp_path / "packed", "shards": tmp_path / "shards"}[form]
    if form == "packed":
        packing.write(place_of, rows, shard_bytes=192 * 2048)
    if form == "shards":
        place_of.mkdir()
        np.save(place_of / "a.npy", rows[:2048].numpy())
        np.save(place_of / "b.npy", rows[2048:].numpy())
    points = open_file(place_of)
    denoiser = EmpiricalDenoiser(points)
    place = points._contents.store.place
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    want = [
        EmpiricalDenoiser(TrainingSet(rows)).posterior(x, sigma, top_k=3) for sigma in (0.01, 1.0)
    ]
    EmpiricalDenoiser(points)(x, 1.0)  # what is to be verified is
    went = []
    go_direct = place._go_direct

    def spy(pieces, take):
        went.append(len(pieces))
        go_direct(pieces, take)

    monkeypatch.setattr(place, "_go_direct", spy)
    monkeypatch.setattr("diffgen.streaming.direct.PIECE_BYTES", 2 * 192 * 1024)
    monkeypatch.setattr("diffgen.streaming.direct.FEWEST_SEGMENTS", 1)
    monkeypatch.setattr("diffgen.streaming.direct.SEGMENTS_OF_THREAD", 1)
    for sigma, expected in zip((0.01, 1.0), want, strict=True):
        got = denoiser.posterior(x, sigma, top_k=3)
        assert all(
            a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(got, expected, strict=True)
        )
    assert len(went) == 2 and min(went) > 1


def test_a_segment_in_two_files_goes_through_a_buffer(path, tmp_path):
    rows = torch.from_numpy(np.load(path))
    (tmp_path / "shards").mkdir()
    np.save(tmp_path / "shards" / "a.npy", rows[:1000].numpy())
    np.save(tmp_path / "shards" / "b.npy", rows[1000:].numpy())
    points = open_file(tmp_path / "shards")
    assert points._contents.store.place.in_files() is None
    x = torch.randn(2, *SHAPE)
    assert torch.equal(
        EmpiricalDenoiser(points)(x, 0.7), EmpiricalDenoiser(TrainingSet(rows))(x, 0.7)
    )


def test_sets_of_files_are_indexed_split_pickled_and_copied_like_others(path):
    labels = torch.arange(5000) % 3
    points, in_memory = (
        TrainingSet.open(path, in_memory=kept, labels=labels, flip=True) for kept in (False, True)
    )
    for index in (
        3,
        -1,
        slice(2, 4000, 7),
        torch.tensor([[9999, 0], [4, 4]]),
        labels.repeat(2) == 1,
    ):
        assert torch.equal(points[index], in_memory[index])
    assert points.sha256 == in_memory.sha256 and copy.deepcopy(points) is points
    assert repr(points) == repr(in_memory) and len(points) == len(in_memory) == 10_000
    again = pickle.loads(pickle.dumps(points))
    assert again._contents.store is not None and len(pickle.dumps(points)) < 200_000
    x = torch.randn(3, *SHAPE)
    want = EmpiricalDenoiser(in_memory)(x, 0.7)
    assert torch.equal(EmpiricalDenoiser(again)(x, 0.7), want)
    for ours, theirs in zip(
        points.split(3, torch.Generator().manual_seed(0)),
        in_memory.split(3, torch.Generator().manual_seed(0)),
        strict=True,
    ):
        assert torch.equal(ours[:], theirs[:]) and torch.equal(ours.labels, theirs.labels)


def test_a_part_that_is_large_stays_in_the_file(path, monkeypatch):
    points, in_memory = (TrainingSet.open(path, in_memory=kept) for kept in (False, True))
    monkeypatch.setattr("diffgen.streaming.opening.MOST_BYTES_IN_MEMORY", 192 * 1000)
    rows = torch.randperm(5000, generator=torch.Generator().manual_seed(0))[:2500]
    for chosen in (rows.sort().values, rows):
        part, same = points.subset(chosen), in_memory.subset(chosen)
        assert part._contents.store is not None
        assert torch.equal(part[::17], same[::17]) and part.sha256 == same.sha256
        x = torch.randn(3, *SHAPE)
        assert torch.equal(EmpiricalDenoiser(part)(x, 0.7), EmpiricalDenoiser(same)(x, 0.7))
        again = pickle.loads(pickle.dumps(part))
        assert torch.equal(EmpiricalDenoiser(again)(x, 0.7), EmpiricalDenoiser(same)(x, 0.7))


def test_a_set_in_its_file_moves_into_the_memory_of_a_device(path):
    points, in_memory = (TrainingSet.open(path, in_memory=kept) for kept in (False, True))
    moved = points._contents._loaded("cpu")
    assert moved.store is None and torch.equal(moved.data, in_memory._contents.data)
    assert torch.equal(moved.norms, in_memory._contents.norms)


def test_a_memory_map_is_read_from_its_file(path):
    mapped = np.load(path, mmap_mode="r")[1000:4000]
    points = TrainingSet(mapped, in_memory=False)
    assert points._contents.store is not None
    x = torch.randn(3, *SHAPE)
    want = EmpiricalDenoiser(TrainingSet(torch.from_numpy(np.array(mapped))))(x, 0.7)
    assert torch.equal(EmpiricalDenoiser(points)(x, 0.7), want)


class Taker:
    """Keeps the sum of what it took."""

    def __init__(self, fails: bool = False) -> None:
        self.total, self.fails = 0.0, fails

    def add(self, block) -> None:
        if self.fails:
            raise ValueError("no")
        self.total += float(block.data.sum())


def test_calls_that_wait_share_one_pass(monkeypatch):
    place = FilePlace(tensor_source(torch.ones(4096, 4)), 1.0, None)
    place.block_rows = 1024
    _ = place.norms
    reading, go_on = threading.Event(), threading.Event()
    read = place._read

    def slow(out, first):
        reading.set()
        assert go_on.wait(30)
        read(out, first)

    monkeypatch.setattr(place, "_read", slow)
    totals = []

    def call():
        (taker,) = place.run(lambda: (Taker(),))
        totals.append(taker.total)

    threads = [threading.Thread(target=call) for _ in range(5)]
    threads[0].start()
    assert reading.wait(30)
    for thread in threads[1:]:
        thread.start()
    while len(place._shared._waiting) < 4:
        time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert totals == [4096.0 * 4] * 5
    assert place._shared.passes == 2


def test_a_packed_set_knows_its_norms_and_they_are_compared(path, tmp_path):
    rows = torch.from_numpy(np.load(path))
    folder = tmp_path / "packed"
    packing.write(folder, rows, shard_bytes=192 * 1024)
    points = open_file(folder)
    place = points._contents.store.place
    place._measure = None  # not needed
    x = torch.randn(2, *SHAPE)
    assert torch.equal(
        EmpiricalDenoiser(points)(x, 0.7), EmpiricalDenoiser(TrainingSet(rows))(x, 0.7)
    )
    assert torch.equal(place.norms, squared_norms(rows.reshape(5000, -1), place.scale))
    norms = np.load(folder / "norms.npy")
    norms[4321] += 1
    np.save(folder / "norms.npy", norms)
    meta = json.loads((folder / "meta.json").read_text())
    meta["norms"]["sha256"] = hashlib.sha256((folder / "norms.npy").read_bytes()).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match="norms do not belong to its rows: row 4321 differs"):
        EmpiricalDenoiser(open_file(folder))(x, 0.7)


def test_what_one_call_raises_is_not_the_others_error():
    class Blocks:
        def drive(self, take, _):
            for _ in range(3):
                take(type("Block", (), {"data": torch.ones(2)}))

    shared = SharedPasses(Blocks().drive)
    with pytest.raises(ValueError, match="no"):
        shared.run(lambda: (Taker(fails=True),))
    (taker,) = shared.run(lambda: (Taker(),))
    assert taker.total == 6.0


def test_denoisers_in_several_threads_get_their_own_answers(path):
    points = open_file(path)
    denoiser = EmpiricalDenoiser(points)
    x = torch.randn(6, *SHAPE)
    want = [EmpiricalDenoiser(TrainingSet.open(path))(x[i : i + 1], 0.7) for i in range(6)]
    got = [None] * 6

    def call(i):
        got[i] = denoiser(x[i : i + 1], 0.7)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


INTERRUPTED = """
    import signal, sys, threading, time, os
    import torch
    from diffgen import EmpiricalDenoiser, TrainingSet
    points = TrainingSet.open(sys.argv[1], in_memory=False)
    denoiser = EmpiricalDenoiser(points)
    x = torch.zeros(1, *points.sample_shape)
    want = denoiser(x, 1.0)
    place = points._contents.store.place
    read = place._read

    def slow(out, first):
        time.sleep(0.05)
        read(out, first)

    place._read = slow
    place.in_files = lambda: None
    place.block_rows = 1024
    denoiser(x, 1.0)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    try:
        denoiser(x, 1.0)
    except KeyboardInterrupt:
        print("interrupted", time.monotonic() - start < 1)
    print(torch.equal(denoiser(x, 1.0), want), threading.active_count())
"""


def test_an_interrupt_ends_a_pass_and_leaves_the_set_whole(path):
    done = run(INTERRUPTED, path)
    assert done.stdout.split("\n")[:2] == ["interrupted True", "True 1"], done.stderr[-2000:]


@needs_native  # PyTorch's own threads hang in a forked child
def test_a_forked_child_reads_for_itself(path):
    points = open_file(path)
    denoiser = EmpiricalDenoiser(points)
    x = torch.randn(2, *SHAPE)
    want = denoiser(x, 0.7)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(denoiser(x, 0.7), want) else 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")
