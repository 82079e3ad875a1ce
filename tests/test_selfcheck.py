"""The self-check, the machine's ceilings and the list of backends."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import diffgen
from diffgen import machine, selfcheck
from diffgen.backends import registry
from diffgen.backends.problem import Demands, Problem
from diffgen.backends.registry import Backend, Moments


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "SIZES", ((20, 3, 4),))
    monkeypatch.setattr(selfcheck, "STORAGE_TYPES", (torch.uint8, torch.float32))
    monkeypatch.setattr(selfcheck, "SIGMAS", (0.002, 2.0))
    monkeypatch.setattr(selfcheck, "SPEED_SIZE", (40, 3, 4))


def _reference(**changes: Any) -> Backend:
    return replace(registry.get("reference"), name="changed", **changes)


def _shifted(index: int, by: float) -> Backend:
    """The reference with one output of the moments op off by a number."""

    def moments(problem: Problem, functionals: bool, top_k: int, dtype: torch.dtype) -> Moments:
        outputs = list(registry.get("reference").moments(problem, functionals, top_k, dtype))
        outputs[index] = outputs[index] + by
        return outputs[0], outputs[1], outputs[2], outputs[3], outputs[4]

    return _reference(moments=moments)


GPU = torch.device("cuda", 0)


def _placed(parts: Any, device: torch.device) -> Any:
    """On a GPU that is not there: the tensors stay, and the values are not checked."""
    gone = device.type == "cuda" and isinstance(parts, Problem)
    return replace(parts, check_values=False) if gone else parts


def _on_gpu() -> Backend:
    return _reference(refuses=lambda p, _: ["needs a GPU"] if p.check_values else [])


def test_every_usable_backend_keeps_the_promise() -> None:
    problems = selfcheck.cases()
    for status in diffgen.backends():
        if status.usable:
            found = selfcheck.check(registry.get(status.name), problems)
            assert found.worst <= 1, found
            assert found.num_problems + bool(found.refusals) * len(problems) >= len(problems)


def test_reference_is_not_off_from_itself() -> None:
    found = selfcheck.check(registry.get("reference"), selfcheck.cases())
    # uint8 and float32, two levels, and float32 data twice: with float64 queries too.
    assert (found.worst, found.num_problems) == (0.0, 6)


@pytest.mark.parametrize(("output", "by"), [(0, 2.1e-5), (1, 2.1e-3), (2, 2.1e-3)])
def test_error_of_two_promises_is_seen(output: int, by: float) -> None:
    problems = [case for case in selfcheck.cases() if "float64 queries" not in case.name]
    problems = [case for case in problems if "sigma 2" in case.name]
    found = selfcheck.check(_shifted(output, by), problems)
    # Values above 1 have a wider tolerance, relative to them; some of each quantity are below.
    assert 1 < found.worst < 3, found


def test_wrong_covariance_product_is_seen() -> None:
    def product(problem: Problem, inputs: Any) -> Any:
        right, moment = registry.get("reference").covariance_product(problem, inputs)
        return 1.1 * right, moment

    found = selfcheck.check(_reference(covariance_product=product), selfcheck.cases())
    assert found.worst > 1
    assert found.where.startswith("covariance product")


def test_backend_that_raises_is_infinitely_off() -> None:
    def moments(*_: Any) -> Moments:
        raise RuntimeError("planted\nerror")

    found = selfcheck.check(_reference(moments=moments), selfcheck.cases()[:1])
    assert found.worst == math.inf
    assert found.where.startswith("RuntimeError: planted error")


def test_refused_problems_are_named_not_counted() -> None:
    def refuses(problem: Problem, _: Demands) -> list[str]:
        return ["needs floats"] if problem.data.dtype == torch.uint8 else []

    found = selfcheck.check(_reference(refuses=refuses), selfcheck.cases())
    assert found.refusals == ("needs floats",)
    assert found.num_problems == 4


def test_a_backend_of_mean_and_logsumexp_is_judged_by_these() -> None:
    def moments(problem: Problem, functionals: bool, top_k: int, dtype: torch.dtype) -> Moments:
        assert not functionals and top_k == 0
        return registry.get("reference").moments(problem, False, 0, dtype)

    def refuses(problem: Problem, demands: Demands) -> list[str]:
        reasons = ["needs bytes"] if problem.data.dtype != torch.uint8 else []
        return reasons + [f"gives no {name}" for name in demands._fields if getattr(demands, name)]

    few = _reference(moments=moments, covariance_product=None, refuses=refuses)
    found = selfcheck.check(few, selfcheck.cases())
    assert (found.worst, found.num_problems) == (0.0, 2)
    gives = ("gives no functionals", "gives no top_k", "gives no covariance")
    assert set(found.refusals) == {*gives, "needs bytes"}
    wrong = replace(few, moments=lambda p, *others: _off_by(moments(p, *others), 2.1e-3))
    assert 1 < selfcheck.check(wrong, selfcheck.cases()).worst < 3


def _off_by(moments: Moments, by: float) -> Moments:
    mean, logsumexp, *others = moments
    return mean, logsumexp + by, *others


def test_a_backend_gets_its_problems_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that is not there: what was placed does not have its values checked."""
    monkeypatch.setattr(selfcheck, "placed", _placed)
    problems = selfcheck.cases()
    found = selfcheck.check(_on_gpu(), problems, GPU)
    assert (found.worst, found.num_problems, found.refusals) == (0.0, len(problems), ())
    assert selfcheck.check(_on_gpu(), problems).refusals == ("needs a GPU",)


def test_passes_on_a_gpu_are_timed_by_its_clock_after_a_first_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selfcheck, "placed", _placed)
    monkeypatch.setattr(selfcheck, "_SECONDS", 0.05)
    calls: list[int] = []
    gpu = _on_gpu()
    counted = replace(gpu, moments=lambda *a: calls.append(0) or gpu.moments(*a))
    lasts = iter([4e-3, 3e-3, 5e-3] * 3)

    def clock(call: Any, repeats: int) -> float:
        assert calls, "is timed before it is compiled"
        call()
        assert repeats == 5
        return next(lasts)

    found = selfcheck.speeds(counted, selfcheck.speed_sets(), GPU, clock)
    assert [speed.time_ms for speed in found] == [3.0, 3.0, 3.0]
    # 5 passes of 4, 3 and 5 ms reach 50 ms; one pass before.
    assert len(calls) == 3 * (1 + 3)
    assert selfcheck.speeds(counted, selfcheck.speed_sets()) == []


def test_speed_counts_bytes_and_operations() -> None:
    sets = selfcheck.speed_sets()
    assert [data.dtype for data in sets] == [torch.float32, torch.uint8]
    assert sets[0].numel() * 4 == sets[1].numel()
    found = {speed.name: speed for speed in selfcheck.speeds(registry.get("eager"), sets)}
    assert list(found) == ["float32, 1 query", "float32, 64 queries", "uint8, 1 query"]
    many = found["float32, 64 queries"]
    assert (many.read_bytes, many.operations) == (40 * 48 * 4, 4 * 64 * 40 * 48)
    ceilings = machine.Ceilings(10.0, 100.0, 1, "by hand")
    floor_ms = max(many.read_bytes / 10e9, many.operations / 100e9) * 1e3
    assert many.share(ceilings) == pytest.approx(floor_ms / many.time_ms)


def test_near_duplicates_differ_by_one_step() -> None:
    for dtype in (torch.uint8, torch.bfloat16, torch.float32):
        data = selfcheck._with_near_duplicates(selfcheck.stored_images(20, 3, 4, dtype))
        changed = data[:4] != data[-4:]
        assert changed.sum(1).tolist() == [1, 1, 1, 1]


def test_images_are_smooth_and_repeatable() -> None:
    images = selfcheck.stored_images(200, 1, 16, torch.float32).reshape(200, 16, 16)
    step = (images[:, 1:] - images[:, :-1]).square().mean()
    # White noise would have a ratio of 2.
    assert float(step / images.var()) < 0.5
    again = selfcheck.stored_images(200, 1, 16, torch.float32).reshape(200, 16, 16)
    assert torch.equal(images, again)
    assert not torch.equal(images[0], selfcheck.stored_images(1, 1, 16, torch.float32, 1)[0])


def test_machine_is_measured() -> None:
    found = machine.measure_with_torch(1, read_bytes=1 << 20, product_size=64)
    assert found.read_gb_s > 0 and found.fma_gf_s > 0
    native = machine.measure()
    # Between a hundredth and a hundred times of what any processor of today does.
    assert 0.1 < native.read_gb_s < 1e4 and 0.5 < native.fma_gf_s < 1e6
    assert machine.cpu_name() and machine.cpu_count() >= 1


def test_floor_is_the_slower_of_reading_and_computing() -> None:
    ceilings = machine.Ceilings(10.0, 100.0, 2, "by hand")
    assert ceilings.floor_ms(1e7, 0) == pytest.approx(1.0)
    assert ceilings.floor_ms(1e7, 1e9) == pytest.approx(10.0)
    assert ceilings.bound(1e7, 0) == "memory"
    assert ceilings.bound(1e7, 1e9) == "arithmetic"
    other = machine.Ceilings(20.0, 50.0, 2, "again")
    assert ceilings.best(other) == machine.Ceilings(20.0, 100.0, 2, "by hand")


def test_backends_lists_what_can_run_and_why_not() -> None:
    listed = {status.name: status for status in diffgen.backends()}
    assert list(listed) == registry.names()
    assert listed["eager"].usable and listed["eager"].automatic
    assert listed["reference"].usable and not listed["reference"].automatic
    for status in listed.values():
        assert status.usable == (status.reason is None)
        assert status.reason == registry.get(status.name).unavailable()


def test_backends_is_still_a_package() -> None:
    import diffgen.backends.registry as by_path

    assert by_path is registry
    assert diffgen.backends.registry is registry
