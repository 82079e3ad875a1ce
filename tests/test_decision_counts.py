"""What decisions 9 and 10 count, on rows like those of the benchmarks."""

from __future__ import annotations

import dataclasses

import problems
import pytest
import torch
from benchmark_suite import load_suite
from streamed import place_over

load_suite()

from benchmarks.scale_ranks import images, noisy  # noqa: E402
from diffgen.backends import cpu_pass, native  # noqa: E402
from diffgen.backends.passes import PassOptions  # noqa: E402
from diffgen.backends.problem import Problem  # noqa: E402
from diffgen.readers.rows import squared_norms  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        native.load_native() is None, reason=native.why_not_native() or "native core"
    ),
]


def problem_over(rows: torch.Tensor, sigma: float, dtype: torch.dtype) -> Problem:
    query = noisy(rows, 16, sigma).double()
    made = problems.from_stored(rows[:1], query, sigma, dtype)
    return dataclasses.replace(made, data=rows, norms=squared_norms(rows, made.scale))


@pytest.mark.parametrize(
    ("features", "dtype", "last", "first"),
    [
        (3072, torch.float32, 0.015, 0.02),
        (12288, torch.float32, 0.03, 0.04),
        (3072, torch.float64, 0.06, 0.08),
        (12288, torch.float64, 0.1, 0.15),
    ],
)
def test_sigmas_that_need_the_nearest_row_first(features, dtype, last, first):
    rows = images(1024, features)
    for sigma, needs in ((last, True), (first, False)):
        problem = problem_over(rows, sigma, dtype)
        extent = place_over(problem, 1024).extent(None)
        flags = cpu_pass.undecided("auto", problem, extent, PassOptions(False, 0, dtype))
        assert flags.eq(needs).all(), sigma


def test_segments_that_a_query_keeps():
    rows = images(20 * 1024, 3072)
    for sigma, kept in ((0.2, 3.2), (1.0, 5.8), (5.0, 10.0)):
        problem = problem_over(rows, sigma, torch.float32)
        place = place_over(problem, 1024, (10 * 1024, 20 * 1024))
        extent = place.extent(None)
        options = PassOptions(False, 0, torch.float32, keep_segments=True)
        make = lambda: (cpu_pass.CpuPass("auto", problem, extent, options),)  # noqa: B023, E731
        (only,) = place.run(make)
        # A kept segment has some numbers beside its mean.
        assert only.kept_bytes() / (16 * 3072 * 8) == pytest.approx(kept, abs=0.3)
