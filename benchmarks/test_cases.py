"""One benchmark for each contender of each case."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.conftest import Suite
from benchmarks.measure import Entry
from benchmarks.results import Row
from benchmarks.timer import ReplayClock

CLOCK = ReplayClock()


@pytest.mark.benchmark(timer=CLOCK)
def test_case(entry: Entry, suite: Suite, row: Row, benchmark: Any) -> None:
    """Hands the rounds that the group took in turn to pytest-benchmark, with the row."""
    found = suite.measurement(entry)
    if found.fault:
        pytest.fail(found.failure, pytrace=False)
    if not found.seconds:
        pytest.skip(row["note"])
    benchmark.group = entry.case.group
    benchmark.extra_info.update(row)
    CLOCK.load(found.seconds)
    benchmark.pedantic(CLOCK.advance, rounds=len(found.seconds))
