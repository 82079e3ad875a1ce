"""Waves of rows: what they hold, and that copies beside kernels neither race nor are missed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import problems
import pytest
import torch
from placing import placed
from torch import Tensor

from diffgen.backends.problem import Problem
from diffgen.backends.triton import blocks, lanes
from diffgen.backends.triton.blocks import Blocks
from diffgen.backends.triton.layout import SEGMENT_ROWS
from diffgen.backends.triton.segments import measure

FEATURES = 3


def problem_of(count: int, device: torch.device, rows: list[int] | None = None) -> Problem:
    data = torch.arange(count * FEATURES, dtype=torch.float64).reshape(count, FEATURES)
    made = problems.from_stored(data, data[:1], 1.0, torch.float64, rows=rows)
    assert made.data.device == device or device.type == "cuda"
    return made


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 3 * 1024, 5000])
@pytest.mark.parametrize("segments", [1, 2, 100])
@pytest.mark.parametrize("copied", [False, True])
def test_waves_are_all_rows_in_order(
    count: int, segments: int, copied: bool, device: torch.device
) -> None:
    problem = problem_of(count, device)
    if not copied:
        problem = placed(problem, device)
    made = Blocks(problem, lanes.InOrder(device) if copied else None)
    assert made.segments == -(-count // SEGMENT_ROWS)
    for _ in range(2):  # as often as a call needs a pass
        parts, expected = [], 0
        for wave in made.waves(segments):
            assert wave.first == expected
            assert 1 <= wave.segments <= segments
            assert wave.first_row == wave.first * SEGMENT_ROWS
            assert len(wave.data) == min(wave.segments * SEGMENT_ROWS, count - wave.first_row)
            assert wave.data.is_contiguous()
            assert (wave.data.data_ptr() == problem.data[wave.first_row :].data_ptr()) != copied
            parts.append(wave.data.clone())
            expected += wave.segments
        assert expected == made.segments
        assert torch.equal(torch.cat(parts).cpu(), problem.data.cpu())


def test_copies_take_what_two_buffers_hold(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(7 * SEGMENT_ROWS + 5, device)
    monkeypatch.setattr(blocks, "STAGE_BYTES", 3 * SEGMENT_ROWS * FEATURES * 8 + 1)
    lane = lanes.InOrder(device)
    waves = [(wave.first, wave.segments, len(wave.data)) for wave in Blocks(problem, lane).waves(5)]
    rows = [3 * SEGMENT_ROWS, 3 * SEGMENT_ROWS, SEGMENT_ROWS + 5]
    assert waves == [(0, 3, rows[0]), (3, 3, rows[1]), (6, 2, rows[2])]
    assert [len(slot) for slot in lane.slots] == [3 * SEGMENT_ROWS] * 2


def test_begins_count_the_eligible_rows_before_each_segment(device: torch.device) -> None:
    problem = problem_of(2500, device)
    assert blocks.begins_of(problem).tolist() == [0, 1024, 2048, 2500]
    problem = problem_of(4 * 1024, device, rows=[0, 1023, 1024, 3071, 3072, 4095])
    assert blocks.begins_of(problem).tolist() == [0, 2, 3, 4, 6]


@pytest.mark.parametrize("count", [1, 1024, 1025, 3000])
@pytest.mark.parametrize("step", [0, 1, 7, 1500])
def test_segments_are_measured_by_their_eligible_rows(
    count: int, step: int, device: torch.device
) -> None:
    rows = list(range(count - 1, -1, -step))[::-1] if step else None
    problem = placed(problem_of(count, device, rows), device)
    found = measure(problem)
    assert found.begins.tolist() == blocks.begins_of(problem).tolist()
    assert found.eligible == (count if rows is None else len(rows))
    norms = problem.norms.cpu() if rows is None else problem.norms.cpu()[rows]
    ends = found.begins.tolist()
    parts = [norms[begin:end] for begin, end in itertools.pairwise(ends)]
    assert found.count == len(parts)
    largest = [max(part.tolist(), default=0.0) for part in parts]
    assert found.lengths[0].tolist() == largest
    sums = torch.stack([part.sum() for part in parts])
    torch.testing.assert_close(found.lengths[1].cpu(), sums, rtol=1e-13, atol=0.0)


def test_a_wave_takes_what_scratch_holds_and_one_segment_at_least() -> None:
    assert blocks.segments_at_once(10, 99, 100) == 9
    assert blocks.segments_at_once(10, 9, 100) == 1
    assert blocks.segments_at_once(10, 10_000, 7) == 7
    assert blocks.segments_at_once(0, 10, 7) == 7


class Stream:
    """A stream that only counts: ``clock`` says what has run before its next operation."""

    def __init__(self, _: object = None) -> None:
        self.clock: dict[int, int] = {}

    def wait_event(self, event: Event) -> None:
        for stream, count in event.clock.items():
            self.clock[stream] = max(self.clock.get(stream, 0), count)

    def run(self) -> tuple[int, int]:
        """An operation, as (stream, number)."""
        self.clock[id(self)] = self.clock.get(id(self), 0) + 1
        return id(self), self.clock[id(self)]

    def has_seen(self, operation: tuple[int, int]) -> bool:
        return self.clock.get(operation[0], 0) >= operation[1]


class Event:
    def __init__(self) -> None:
        self.clock: dict[int, int] = {}

    def record(self, stream: Stream) -> None:
        self.clock = dict(stream.clock)


class Watch:
    """CUDA's streams, and who wrote and read each slot; raises at the first race."""

    def __init__(self) -> None:
        self.compute = self.now = Stream()
        # Whoever had the memory of the slots before has launched readers of it.
        before = self.compute.run()
        self.readers = {slot: [before] for slot in (0, 1)}
        self.writer: dict[int, tuple[int, int]] = {}

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        yield
        self.now = before

    def write(self, slot: int) -> None:
        for reader in self.readers[slot]:
            assert self.now.has_seen(reader), "a copy overwrites what has yet to be read"
        self.readers[slot], self.writer[slot] = [], self.now.run()

    def read(self, slot: int) -> None:
        assert self.compute.has_seen(self.writer[slot]), "rows are read before they are copied"
        self.readers[slot].append(self.compute.run())


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made, fetch = Watch(), lanes.InOrder.fetch

    def watched(self: lanes.InOrder, slot: int, rows: Tensor) -> None:
        made.write(slot)
        fetch(self, slot, rows)

    monkeypatch.setattr(lanes.InOrder, "fetch", watched)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", made.on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: made.now)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    return made


def pass_over(watch: Watch, lane: lanes.OnAStream, device: torch.device) -> None:
    problem = problem_of(7 * SEGMENT_ROWS, device)
    for turn, wave in enumerate(Blocks(problem, lane).waves(1)):
        rows = problem.data[wave.first_row :][: len(wave.data)]
        assert torch.equal(wave.data.cpu(), rows)
        watch.read(turn % 2)


def test_a_stream_of_copies_neither_overtakes_nor_is_overtaken(
    watch: Watch, device: torch.device
) -> None:
    lane = lanes.OnAStream(device)
    pass_over(watch, lane, device)
    pass_over(watch, lane, device)


def test_a_copy_does_not_wait_for_the_wave_before_it(watch: Watch, device: torch.device) -> None:
    lane = lanes.OnAStream(device)
    made = iter(Blocks(problem_of(3 * SEGMENT_ROWS, device), lane).waves(1))
    next(made)
    watch.read(0)
    last = watch.readers[0][-1]
    assert watch.compute.has_seen(watch.writer[0])
    assert not watch.compute.has_seen(watch.writer[1])
    assert not lane.stream.has_seen(last)


def without(kind: type, method: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setattr(kind, method, lambda *_: None)


def without_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """``release`` only where ``open`` calls it."""
    release, opening = lanes.OnAStream.release, [2]

    def once(self: lanes.OnAStream, slot: int) -> None:
        if opening[0] > 0:
            opening[0] -= 1
            release(self, slot)

    monkeypatch.setattr(lanes.OnAStream, "release", once)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (without(Stream, "wait_event"), "yet to be read"),
        (without(Event, "record"), "yet to be read"),
        (without(lanes.OnAStream, "release"), "yet to be read"),
        (without_release, "yet to be read"),
        (
            lambda patch: patch.setattr(lanes.OnAStream, "take", lanes.InOrder.take),
            "before they are copied",
        ),
        (
            lambda patch: patch.setattr(lanes.OnAStream, "open", lanes.InOrder.open),
            "yet to be read",
        ),
    ],
)
def test_a_dropped_wait_is_seen(
    fault: Callable[[pytest.MonkeyPatch], None],
    message: str,
    watch: Watch,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError, match=message):
        pass_over(watch, lanes.OnAStream(device), device)


@pytest.mark.only("gpu")
@pytest.mark.parametrize("pinned", [False, True])
def test_rows_in_host_memory_come_to_a_gpu(pinned: bool, device: torch.device) -> None:
    problem = problem_of(20 * SEGMENT_ROWS + 7, device)
    data = problem.data.pin_memory() if pinned else problem.data
    lane = lanes.OnAStream(device)
    here = Problem(
        problem.query.to(device), problem.sigma.to(device), None, None, data,
        problem.norms.to(device), None, None, 1.0, 0.0,
    )  # fmt: skip
    parts = [wave.data.clone() for wave in Blocks(here, lane).waves(2)]
    assert torch.equal(torch.cat(parts).cpu(), problem.data)
