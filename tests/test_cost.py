"""What a call on a large set costs: counts against what runs do, estimates against their terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from diffgen import DataError, EmpiricalDenoiser, TrainingSet
from diffgen.backends import registry
from diffgen.backends.passes import PassOptions
from diffgen.backends.problem import Extent
from diffgen.cost import counts, offers, reading, timing
from diffgen.cost.estimate import Timing, estimate, overlap_of
from diffgen.readers import open_source
from diffgen.readers.source import Source, tensor_source
from diffgen.sharding import cut
from diffgen.streaming import store as store_module
from diffgen.streaming.exact import ExactMoments
from diffgen.streaming.exchange import Exchange
from diffgen.streaming.merged import MergedMoments
from diffgen.streaming.place import FilePlace
from diffgen.streaming.store import StreamedStore, queries_of_pass

AFFINE = (2 / 255, -1.0)


def rows(count: int = 3000, features: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, features), dtype=torch.uint8, generator=generator)


def sample_of(data: torch.Tensor) -> reading.Sample:
    return reading.take_sample(tensor_source(data), AFFINE, torch.Generator().manual_seed(0))


# Counts


def test_passes_of_a_call_are_those_that_run(monkeypatch):
    monkeypatch.setattr(store_module, "STATE_BYTES", 5 * store_module.STATE_BYTES_EACH * 12)
    data = rows().reshape(-1, 1, 3, 4)
    for flip in (False, True):
        ts = TrainingSet(data, flip=flip)
        source = tensor_source(data)
        store = StreamedStore(FilePlace(source, AFFINE[0], None))
        size = counts.SetSize(source.shape, source.dtype, flip=flip)
        view = dataclasses.replace(ts.view(), store=store.name)
        monkeypatch.setattr(ts, "_view", view)
        for batch in (1, 5, 6, 13):
            before = store.place._shared.passes
            EmpiricalDenoiser(ts)(torch.zeros(batch, 1, 3, 4), 1.0)
            ran = store.place._shared.passes - before
            cost = counts.call_cost(size, batch, stays=True)
            assert (cost.passes, cost.queries) == (ran, batch * (2 if flip else 1))
            assert cost.read_bytes == ran * data.numel()
            assert cost.operations == 4 * cost.queries * data.numel()


def test_memory_of_a_pass_counts_its_buffers_and_norms():
    for count in (500, 1500, 40_000):
        source = tensor_source(rows(count, 1000))
        place = FilePlace(source, 1.0, None)
        norms = place.norms
        held = sum(buffer.nbytes for buffer in place._buffers._buffers)
        size = counts.SetSize(source.shape, source.dtype)
        memory = counts.memory_of_pass(size, 64, stays=True)
        assert (memory["rows"], memory["norms"]) == (held, norms.nbytes)
        assert memory["queries"] == 64 * 1000 * store_module.STATE_BYTES_EACH
    labelled = dataclasses.replace(size, labelled=True, weighted=True)
    ts = TrainingSet(rows(40_000, 1), labels=torch.zeros(40_000).long(), weights=torch.ones(40_000))
    memory = counts.memory_of_pass(labelled, 1, stays=False)
    contents = ts._contents
    assert memory["labels"] == contents.labels.nbytes + contents.order.nbytes
    assert memory["weights"] == contents.log_weights.nbytes
    assert memory["rows"] == labelled.rows_bytes


def test_memory_of_a_pass_is_limited_in_queries():
    size = counts.SetSize((10**6, 12_288), torch.uint8)
    most = counts.memory_of_pass(size, 10**5, stays=True)["queries"]
    assert most == queries_of_pass(12_288) * 12_288 * store_module.STATE_BYTES_EACH
    assert counts.memory_of_pass(size, 10**5, stays=False)["queries"] > most
    assert counts.memory_of_pass(size, 1, stays=True, own=(5, 5))["rows"] == 0


@pytest.mark.parametrize("top_k", [0, 3])
def test_state_bytes_are_those_of_a_state(top_k):
    sample = sample_of(rows())
    problem = timing.problem_of(sample.data, sample.norms, AFFINE, torch.zeros(2, 12), 1.0)
    blockwise = registry.choose(problem, "auto").blockwise
    if blockwise is not None:
        options = PassOptions(False, top_k, torch.float32)
        state = blockwise.open(problem, Extent(3000, 3000, 1.0, 1.0), options, None, None)
        assert state.write_state().nbytes == 2 * counts.state_bytes(12, top_k)
    for functionals in (False, True):
        merged = MergedMoments(problem, functionals, top_k, "auto").write_state()
        assert merged.nbytes == 2 * counts.merged_state_bytes(12, top_k, 3 * functionals)


class Parts(Exchange):
    alone, first = False, False

    def __init__(self, parts: int) -> None:
        self.parts = parts


@pytest.mark.parametrize("parts", [1, 3, 8, 32])
def test_the_order_is_kept_where_the_code_keeps_it(parts):
    for count in (1000, 100_000, 1_281_167):
        most = counts.most_queries_in_order(count, parts, 12_288)
        for batch in {1, 64, most, most + 1} - {0}:
            problem = timing.problem_of(
                torch.zeros((1, 12_288), dtype=torch.uint8), torch.zeros(1), AFFINE,
                torch.zeros((1, 12_288)).expand(batch, -1), 1.0,
            )  # fmt: skip
            exact = object.__new__(ExactMoments)
            exact._exchange, exact._problem = Parts(parts), problem
            exact._extent = Extent(count, count, 1.0, 1.0)
            kept = counts.keeps_order(count, parts, batch, 12_288)
            assert kept == exact._keeps_segments() == (batch <= most)


def test_segments_of_a_part_are_those_of_the_cut():
    for count in (1, 1024, 5000, 1_281_167):
        for size in (1, 2, 7, 32):
            ends = [cut.bounds(count, rank, size, torch.uint8) for rank in range(size)]
            most = max(-(-(stop - first) // 1024) for first, stop in ends)
            assert most == counts.segments_of_part(count, size)


def test_every_rank_gets_the_merge_once():
    for size in range(1, 40):
        for near in (True, False):
            sent = [
                counts.merge_bytes_sent(10, 3, rank, size, one_machine=near) for rank in range(size)
            ]
            assert sum(sent) == 2 * (size - 1) * 30


# The sample


def test_places_lie_in_the_set_and_leave_out_first_rows():
    for count in (1, 5, 1023, 1024, 4096, 10**6):
        for width in (1, 3072, 300_000, 10**9):
            runs = reading.places(count, width, jump=True)
            ids = [i for first, n in runs for i in (first, first + n - 1)]
            assert min(ids) >= 0 and max(ids) < count and all(n > 0 for _, n in runs)
            assert ids == sorted(ids)
            nbytes = sum(n for _, n in runs) * width
            assert nbytes <= max(reading.SAMPLE_BYTES, width)
            if count >= 1024:
                assert all(first % 1024 == 1 for first, _ in runs)
            whole = sum(n for _, n in reading.places(count, width, jump=False))
            assert whole == min(count, max(1, reading.SAMPLE_BYTES // width))


def test_sample_holds_the_rows_of_its_ids():
    data = rows(5000, 40)
    sample = sample_of(data)
    assert torch.equal(sample.data, data[sample.ids])
    assert (sample.ids.diff() > 0).all() and len(sample.ids) > 4000
    assert sample.reading.nbytes == 4 * 1023 * 40


def test_rates_come_from_the_clock(monkeypatch):
    data = rows(4 * 1024, 100)
    monkeypatch.setattr(reading, "PIECE_BYTES", 1023 * 100)
    # Two pieces take a second each, which is enough; again, the first alone is over the limit.
    monkeypatch.setattr(reading, "SAMPLE_S", 1.5)
    times = [0.0, 1.0, 1.0, 2.0, 10.0, 10.5, 10.5, 11.0, 20.0, 24.0]
    ticks = iter(times)
    sample = reading.take_sample(
        tensor_source(data), AFFINE, torch.Generator().manual_seed(0), lambda: next(ticks)
    )
    found = sample.reading
    assert found.nbytes == 2 * 1023 * 100
    assert found.bytes_s == 1023 * 100 and found.again_bytes_s == 2 * 1023 * 100
    assert found.first_pass_bytes_s == pytest.approx(found.bytes_s * 0.5 // 100 * 100 / 4.0)


def test_compressed_rows_are_read_from_the_first_on(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=rows(9000, 40).numpy())
    source = open_source(tmp_path / "x.npz")
    assert not reading.can_jump(source)
    starts: list[int] = []

    def blocks(count: int):
        starts.append(count)
        return source.blocks(count)

    with source:
        spied = dataclasses.replace(source, blocks=blocks)
        sample = reading.take_sample(spied, AFFINE, torch.Generator())
    assert torch.equal(sample.ids, torch.arange(9000))
    assert len(starts) == 3  # the sample, again, and the first pass


def test_a_damaged_sample_is_an_error():
    data = torch.full((2000, 3), torch.nan)
    with pytest.raises(DataError, match="must be finite, got nan"):
        reading.take_sample(tensor_source(data), (1.0, 0.0), torch.Generator())


# The estimate


def cost(queries: int, at_once: int, read_bytes: int) -> counts.CallCost:
    return counts.CallCost(queries, at_once, read_bytes, 0)


def test_estimate_takes_the_longer_of_reading_and_computing():
    timed = Timing(rows=1000, queries=8, fixed_s=0.25, compute_s=0.5)
    reads = estimate(timed, cost(8, 8, 10**9), 2000, 1e8)
    assert (reads.seconds, reads.bound) == (10.25, "reading")
    assert (reads.read_s, reads.compute_s) == (10.0, 1.25)
    computes = estimate(timed, cost(8, 8, 10**9), 100_000, 1e8)
    assert (computes.seconds, computes.bound) == (50.25, "arithmetic")
    memory = estimate(timed, cost(8, 8, 10**9), 2000, None)
    assert (memory.seconds, memory.read_s) == (1.25, 0.0)


def test_estimate_counts_overlap_second_pass_and_parts():
    timed = Timing(1000, 8, 0.0, 1.0, overlap=1.5, second_pass=True)
    found = estimate(timed, cost(8, 8, 10**9), 1000, 1e9)
    assert (found.seconds, found.at_most_s) == (1.5, 2.5)
    # Passes of 8, 8 and 4 queries: 4 s, 4 s and 2 s of arithmetic beside 3 s of reading each.
    parts = estimate(Timing(1000, 4, 0.5, 2.0), cost(20, 8, 3 * 3 * 10**9), 1000, 1e9)
    assert parts.seconds == 0.5 * 5 + 4 + 4 + 3
    assert parts.at_most_s == parts.seconds and parts.compute_s == 12.5


def test_overlap_is_between_hidden_and_one_after_the_other():
    assert overlap_of(1.0, 1.0, 1.0, 1000) == 1.0
    assert overlap_of(2.0, 1.0, 1.0, 10**9) == pytest.approx(2.0)
    assert overlap_of(50.0, 1.0, 3.0, 10) == pytest.approx(4 / 3)
    assert overlap_of(1.0, 0.0, 0.0, 1) == 1.0
    # Without reading ahead nothing is left out.
    assert overlap_of(1.5, 1.0, 1.0) == 1.5


def test_measure_times_enough_rows():
    calls: list[int] = []

    def run(count: int) -> float:
        calls.append(count)
        return 0.01 + count * 1e-5

    found, fixed_s, rest_s = timing.measure(run, 10**9)
    assert rest_s >= timing.ENOUGH_S / 2 and rest_s == pytest.approx((found - 1) * 1e-5)
    assert fixed_s == pytest.approx(0.01001) and max(calls) == found
    # What every pass takes does not count as enough.
    assert timing.measure(lambda count: 1.0 + run(count), 10**9)[2] >= timing.ENOUGH_S / 2
    assert timing.measure(run, 100)[0] == 100
    assert timing.measure(run, 2500, each=1024)[0] == 2048
    assert timing.measure(run, 1000, each=1024)[0] == 1000
    assert timing.measure(run, 1) == (1, 0.0, pytest.approx(0.01001))


# Backends


def test_offers_have_times_or_reasons(one_thread):
    sample = sample_of(rows(5000, 40))
    size = counts.SetSize((10**6, 40), torch.uint8)
    here = timing.problem_of(sample.data, sample.norms, AFFINE, torch.zeros(2, 40), 1.0)
    for stays in (False, True):
        shape = (10**7, 40) if stays else (5000, 40)
        size = counts.SetSize(shape, torch.uint8)
        assert size.stays == stays
        for name in ("cpu", "eager", "cuda", "triton", "reference"):
            made = offers.offer(registry.get(name), size, 2, here, sample=sample)
            assert bool(made.reasons) == (made.estimate is None)
            if made.estimate is not None:
                assert made.estimate.seconds > 0
                assert (made.estimate.read_s > 0) == stays
        without = offers.offer(registry.get("eager"), size, 2, here)
        assert without.estimate is None and not without.reasons


def test_what_needs_a_gpu_is_offered_where_there_is_one(monkeypatch, one_thread):
    """A backend that takes the rows in one place only, which stands for a GPU."""
    eager = registry.get("eager")
    sample = sample_of(rows(2000, 8))
    problem = timing.problem_of(sample.data, sample.norms, AFFINE, torch.zeros(2, 8), 1.0)
    there = dataclasses.replace(problem, sigma=problem.sigma + 1)
    planted = dataclasses.replace(
        eager, name="planted", refuses=lambda p, d: [] if p is there else ["needs a GPU"]
    )

    class Properties:
        total_memory = 10**9

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    size = counts.SetSize((10**8, 8), torch.uint8)
    assert offers.offer(planted, size, 2, problem, None, sample).reasons == ("needs a GPU",)
    made = offers.offer(planted, size, 2, problem, there, sample)
    assert made.place == "cuda" and made.estimate is not None and made.estimate.read_s == 0
    large = counts.SetSize((10**9, 8), torch.uint8)
    made = offers.offer(planted, large, 2, problem, there, sample)
    assert made.estimate is None and "needs 8.0 GB of rows on a GPU of 1.0 GB" in made.reasons[0]


class Steps(Exchange):
    """Notes what a call does."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    @contextmanager
    def together(self, step: str) -> Iterator[None]:
        self.taken.append(step)
        yield


@pytest.mark.parametrize("aligned", [True, False])
def test_a_streamed_set_is_timed_the_way_that_it_is_read(tmp_path, monkeypatch, aligned):
    """By the threads that compute, where the segments lie in files as they are."""
    native_here = registry.get("cpu").unavailable() is None
    data = rows(4096, 48).numpy()
    np.save(tmp_path / "a.npy", data[: 2048 if aligned else 2000])
    np.save(tmp_path / "b.npy", data[2048 if aligned else 2000 :])
    went: list[int] = []
    go_direct = FilePlace._go_direct

    def spy(place, pieces, take):
        went.append(sum(piece.count for piece in pieces))
        go_direct(place, pieces, take)

    monkeypatch.setattr(FilePlace, "_go_direct", spy)
    with open_source(tmp_path) as source:
        sample = reading.take_sample(source, AFFINE, torch.Generator())
        query = timing.queries_of(sample, 2, 1.0, torch.Generator())
        problem = timing.problem_of(sample.data, sample.norms, AFFINE, query, 1.0)
        for name in ("cpu", "eager"):
            backend = registry.get(name)
            if backend.unavailable() is None:
                found = timing.time_streamed(backend, sample, problem, 4096)
                assert found.compute_s > 0 and found.overlap >= 1
    assert len(went) == (native_here and aligned)
    # All threads have as many segments, but for the first row.
    assert all((count + 1) % (1024 * torch.get_num_threads()) == 0 for count in went)


@pytest.mark.parametrize("sigma", [0.002, 1.0])
def test_second_pass_is_seen_where_one_runs(sigma, one_thread):
    sample = sample_of(rows(1100, 3072))
    query = timing.queries_of(sample, 3, sigma, torch.Generator().manual_seed(0))
    problem = timing.problem_of(sample.data, sample.norms, AFFINE, query, sigma)
    for name in ("cpu", "eager"):
        backend = registry.get(name)
        if backend.unavailable() is not None:
            continue
        steps = Steps()
        place = FilePlace(tensor_source(sample.data), AFFINE[0], None)
        StreamedStore(place, steps).moments(problem, False, 0, torch.float32, name)
        ran = steps.taken.count("second pass")
        assert timing.needs_second_pass(backend, problem, len(sample.data)) == bool(ran)
        assert ran == (1 if name == "cpu" and sigma < 0.01 else 0)


def test_sources_are_left_open():
    closed: list[int] = []
    source = dataclasses.replace(tensor_source(rows()), close=lambda: closed.append(1))
    assert isinstance(source, Source)
    reading.take_sample(source, AFFINE, torch.Generator())
    assert not closed
