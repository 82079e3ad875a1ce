"""The nearest rows of Triton against the reference, and the bits of the ``cpu`` backend."""

from __future__ import annotations

import dataclasses

import placing
import problems
import pytest
import torch
from test_backends import check_nearest, nearest_asked
from torch import Tensor

from diffgen.backends import reference, registry
from diffgen.backends.problem import Problem
from diffgen.backends.triton import blocks, lanes, nearest
from diffgen.backends.triton.configs import Config
from diffgen.backends.triton.difference_configs import CONFIGS

NAMES = (
    "near_duplicates", "bisectors_of_near_duplicates", "far_queries", "constant", "one_row",
    "one_feature", "no_query", "weighted", "weighted_class", "left_out", "signal_scales",
    "shifted_data", "coincident", "bad_queries",
)  # fmt: skip
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def run(problem: Problem, top_k: int, device: torch.device) -> tuple[Tensor, ...]:
    return placing.brought(nearest.nearest(placing.placed(problem, device), top_k))


def check(problem: Problem, top_k: int, got: tuple[Tensor, ...]) -> None:
    want = reference.moments(problem, False, top_k, torch.float64)
    check_nearest((*want[:3], *got), want, problem)


def same_bits(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for part, wanted in zip(got, want, strict=True):
        assert torch.equal(part.view(torch.int64), wanted.view(torch.int64))


def cpu_backend() -> registry.Backend:
    return registry.get("cpu")


@pytest.mark.parametrize("name", NAMES)
def test_8_bit_rows_are_those_of_the_cpu_backend(name: str, device: torch.device) -> None:
    problem = problems.PROBLEMS[name](0, torch.uint8, torch.float32)
    top_k = nearest_asked(problem)
    got = run(problem, top_k, device)
    check(problem, top_k, got)
    want = cpu_backend().moments(problem, False, top_k, torch.float64)[3:]
    same_bits(got, want)


@pytest.mark.parametrize("storage", FLOATS)
@pytest.mark.parametrize("name", ["left_out", "shifted_data"])
def test_float_rows_are_those_of_the_reference(
    name: str, storage: torch.dtype, device: torch.device
) -> None:
    problem = problems.PROBLEMS[name](0, storage, torch.float64)
    check(problem, 3, run(problem, 3, device))


@pytest.mark.parametrize("features", [16, 31, 32, 33, 48, 511, 512, 513, 545, 1025])
def test_chains_and_lanes_of_any_length_give_the_same_bits(
    features: int, device: torch.device
) -> None:
    data = problems.encode(problems.uniform(5, features, 0), torch.uint8, (-1.0, 1.0))
    problem = problems.from_stored(data, problems.noised(0.5, 2, 0), 0.5, torch.float64)
    want = cpu_backend().moments(problem, False, 5, torch.float64)[3:]
    same_bits(run(problem, 5, device), want)


def some_segments(subset: bool) -> Problem:
    """Two or four segments and a part of one, full of equal distances; a class skips one."""
    count = 4200 if subset else 2100
    data = (problems.uniform(count, 3, 0) * 2 + 3).to(torch.uint8)
    query = problems.decode(data[:4], 2 / 255, -1.0)
    rows = [i for i in range(count) if i % 7 == 0 and not 1024 <= i < 2048] if subset else None
    return problems.from_stored(data, query, 0.1, torch.float32, rows=rows)


@pytest.mark.parametrize("top_k", [7, 300])
@pytest.mark.parametrize("subset", [False, True])
def test_neither_waves_nor_where_rows_lie_change_a_bit(
    subset: bool, top_k: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = some_segments(subset)
    monkeypatch.setitem(CONFIGS, "nearest_distances", {"": Config({"QUERIES": 2, "ROWS": 256})})
    want = cpu_backend().moments(problem, False, top_k, torch.float64)[3:]
    same_bits(run(problem, top_k, device), want)
    monkeypatch.setattr(nearest, "SCRATCH_BYTES", 2 * 1024 * 4 * 48)
    monkeypatch.setattr(nearest, "MOST_QUERIES", 3)
    monkeypatch.setattr(nearest, "Blocks", lambda p: blocks.Blocks(p, lanes.InOrder(device)))
    same_bits(run(problem, top_k, device), want)


def test_more_than_are_eligible_is_refused_or_filled(device: torch.device) -> None:
    problem = problems.PROBLEMS["weighted_class"](0, torch.uint8, torch.float32)
    with pytest.raises(ValueError, match=r"^top_k must .* points, 6 for query 0, got 7$"):
        run(problem, 7, device)
    unchecked = dataclasses.replace(problem, check_values=False)
    with pytest.raises(ValueError, match="got 8"):
        run(unchecked, 8, device)
    ids, distances = run(unchecked, 7, device)
    asked = problem.exclude
    assert torch.equal(ids[:, 6] < 0, torch.isin(asked, problem.rows))
    assert torch.equal(ids < 0, distances.isnan())
    check(unchecked, 5, run(unchecked, 5, device))


def test_rows_without_weight_never_appear(device: torch.device) -> None:
    problem = problems.PROBLEMS["weighted"](0, torch.float32, torch.float32)
    unchecked = dataclasses.replace(problem, check_values=False)
    ids, distances = run(unchecked, 40, device)
    assert bool((ids % 5 != 0)[ids >= 0].all())
    assert torch.equal((ids < 0).sum(1), torch.full((8,), 8))
    assert torch.equal(ids < 0, distances.isnan())


def test_nothing_waits_for_the_device(device: torch.device) -> None:
    problem = placing.placed(
        problems.PROBLEMS["weighted_class"](0, torch.uint8, torch.float32), device
    )
    with placing.NoWaiting():
        nearest.nearest(dataclasses.replace(problem, check_values=False), 2)
