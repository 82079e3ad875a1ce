"""What a GPU can do at most: all but the GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from diffgen import gpu_rates

CPU = torch.device("cpu")


def test_rates_are_counts_over_the_best_time() -> None:
    lasts = iter([4.0, 2.0, 8.0, 4.0, 4.0, 0.5, 0.5, 0.25, 0.5, 0.5])

    def clock(call: Callable[[], object], repeats: int) -> float:
        call()
        assert repeats > 1
        return next(lasts)

    found = gpu_rates.measure(CPU, clock, read_bytes=4_000, size=10)
    assert found.read_gb_s == pytest.approx(4_000 / 2 / 1e9)
    assert found.fma_gf_s == pytest.approx(2_000 / 0.25 / 1e9)
    assert next(lasts, None) is None and found.source == "sum and product of PyTorch"


def test_integers_are_multiplied_by_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(torch, "_int_mm", lambda *factors: seen.extend(factors))

    def clock(call: Callable[[], object], repeats: int) -> float:
        call()
        return 0.5

    assert gpu_rates.measure_integers(CPU, clock, size=64) == pytest.approx(2 * 64**3 / 0.5 / 1e9)
    left, right = seen[:2]
    assert left.stride() == (64, 1) and right.stride() == (1, 64)
    for factor in (left, right):
        assert factor.dtype == torch.int8 and bool((factor != 0).all())
        assert len(factor.unique()) > 200  # of 254


def test_without_a_product_of_integers_there_is_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: torch.Tensor) -> None:
        raise RuntimeError("not implemented")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    assert gpu_rates.measure_integers(CPU, lambda *_: 1.0, size=64) is None


def test_events_time_the_mean_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, other: Event) -> float:
            return 6.0  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    seconds = gpu_rates.event_seconds(lambda: log.append("call"), 3)
    assert seconds == pytest.approx(2e-3)
    assert log == ["record", "call", "call", "call", "record", "wait"]
