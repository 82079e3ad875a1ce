"""Moments of 8-bit sets by Triton: the bits of the ``cpu`` backend."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import placing
import problems
import pytest
import torch
from torch import Tensor

from diffgen.backends import registry
from diffgen.backends.problem import Problem
from diffgen.backends.triton import bytes_moments, driver

BYTES = (0.0, 255.0)
NAMES = (
    "mixed_sigma", "near_duplicates", "bisectors", "far_bisectors", "far_outlier", "constant",
    "one_row", "one_feature", "no_query", "weighted_class", "left_out", "signal_scales",
    "coincident", "bad_queries",
)  # fmt: skip
SIGMAS = (0.0, 0.002, 0.02, 0.3, 1.0, 3.0, 20.0, 80.0, 1e4)


def check(
    problem: Problem,
    device: torch.device,
    *,
    functionals: bool = False,
    mean_dtype: torch.dtype = torch.float32,
    scratch: int = bytes_moments.SCRATCH_BYTES,
) -> None:
    problem = dataclasses.replace(problem, check_values=False)
    want = registry.get("cpu").moments(problem, functionals, 0, mean_dtype)[:3]
    there = placing.placed(problem, device)
    got = placing.brought(bytes_moments.moments(there, functionals, mean_dtype, scratch=scratch))
    for part, wanted in zip(got, want, strict=True):
        same_bits(part, wanted)


def same_bits(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    # NaN has many bit patterns, and none of them is promised.
    if not want.is_floating_point():
        assert torch.equal(got, want)
        return
    nan = torch.isnan(want)
    assert torch.equal(torch.isnan(got), nan)
    bits = torch.int32 if want.dtype == torch.float32 else torch.int64
    assert torch.equal(got.view(bits)[~nan], want.view(bits)[~nan])


def images(count: int, features: int, spread: float, seed: int = 0) -> Tensor:
    """Rows about mid-grey, some of them near-duplicates of the first."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(count, features, generator=generator) * spread + 128
    data[1::5] = data[0] + torch.randn(len(data[1::5]), features, generator=generator)
    return data.clamp(*BYTES).to(torch.uint8)


def about(data: Tensor, sigmas: tuple[float, ...], dtype: torch.dtype, **set_: object) -> Problem:
    """Each noise level at a row of the set, with its noise."""
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randint(len(data), (len(sigmas),), generator=generator)
    clean = problems.decode(data[chosen], 2 / 255, -1.0)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    query = clean + torch.tensor(sigmas, dtype=torch.float64)[:, None] * noise
    sigma = torch.tensor(sigmas, dtype=torch.float64)
    return problems.from_stored(data, query, sigma, dtype, **set_)


# The interpreter takes seconds where ttsem takes one.
SLOW = pytest.mark.only("ttsem", "gpu")


@SLOW
def test_queries_beyond_a_grid_take_turns(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "MOST_QUERIES", 2)
    data = images(40, 5, 30.0)
    exclude = torch.tensor([0, -1, 3, -1, 5])
    problem = about(data, (0.02, 0.3, 3.0, 0.0, 80.0), torch.float32, exclude=exclude)
    problem = dataclasses.replace(problem, check_values=False, alpha=torch.rand(5).double())
    want = registry.get("cpu").moments(problem, True, 3, torch.float64)
    got = placing.brought(driver.moments(placing.placed(problem, device), True, 3, torch.float64))
    for part, wanted in zip(got, want, strict=True):
        same_bits(part, wanted)


@SLOW
@pytest.mark.parametrize("name", NAMES)
def test_every_problem_has_the_bits_of_the_cpu_backend(name: str, device: torch.device) -> None:
    check(problems.PROBLEMS[name](0, torch.uint8, torch.float32), device)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=SLOW)])
def test_every_noise_level_has_the_bits_of_the_cpu_backend(
    dtype: torch.dtype, device: torch.device
) -> None:
    check(about(images(150, 33, 50.0), SIGMAS, dtype), device, functionals=True)


@SLOW
@pytest.mark.parametrize("spread", [4.0, 50.0])
def test_tiles_that_keep_many_and_few_rows_take_their_turns(
    spread: float, device: torch.device
) -> None:
    # Tiles of 128 rows, three of them; rows of the second are far off.
    data = images(300, 1700, spread)
    data[128:256] = 255 - data[128:256]
    check(about(data, (2.0, 30.0), torch.float32), device)


def test_segments_merge_in_order_however_they_are_cut_into_waves(device: torch.device) -> None:
    problem = about(images(2100, 20, 50.0), (0.0, 0.002, 1.0, 9.0), torch.float64)
    rows = torch.arange(0, 2100, 2)
    rows = rows[(rows < 500) | (rows > 1300)]
    log_weights = torch.randn(2100, generator=torch.Generator().manual_seed(2)).double()
    log_weights[::3] = -torch.inf
    problem = dataclasses.replace(
        problem,
        rows=rows,
        log_weights=log_weights,
        exclude=torch.tensor([2, -1, 4, 1400]),
        alpha=torch.tensor([1.0, 0.5, 0.0, 2.0], dtype=torch.float64),
    )
    for scratch in (1, bytes_moments.SCRATCH_BYTES):
        check(problem, device, functionals=True, scratch=scratch)


@SLOW
@pytest.mark.parametrize("features", [1, 48, 63, 64, 65, 511, 513])
def test_features_of_any_number_have_the_bits_of_the_cpu_backend(
    features: int, device: torch.device
) -> None:
    problem = about(images(40, features, 30.0), (0.01, 0.5, 10.0), torch.float32)
    check(problem, device, mean_dtype=torch.float64)


@pytest.mark.only("interpreter")
@pytest.mark.parametrize("features", [16, 48])
def test_what_fills_masked_bytes_changes_no_result(
    features: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a compiler makes of a fill is beyond emulation: so results must not rest on one.
    from triton.runtime import interpreter

    load, filled = interpreter.InterpreterBuilder.create_masked_load, []

    def filling(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        if other is not None and other.data.dtype == np.uint8:
            filled.append(not mask.data.all())
            other = interpreter.TensorHandle(np.full_like(other.data, 201), other.dtype)
        return load(self, pointers, mask, other, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", filling)
    problem = about(images(40, features, 30.0), (0.0, 0.01, 0.5, 10.0), torch.float32)
    want = registry.get("cpu").moments(problem, False, 3, torch.float64)
    got = placing.brought(driver.moments(placing.placed(problem, device), False, 3, torch.float64))
    assert any(filled)
    for part, wanted in zip(got, want, strict=True):
        same_bits(part, wanted)


@SLOW
@pytest.mark.parametrize("batch", [4, 17])
def test_blocks_of_queries_that_are_not_full_have_the_bits_of_the_cpu_backend(
    batch: int, device: torch.device
) -> None:
    sigmas = tuple(0.01 * 3.0 ** (b % 8) for b in range(batch))
    check(about(images(70, 12, 50.0), sigmas, torch.float32), device)


def test_a_call_does_not_wait_for_the_device(device: torch.device) -> None:
    problem = dataclasses.replace(
        about(images(60, 12, 50.0), (0.3, 0.0), torch.float32), check_values=False
    )
    there = placing.placed(problem, device)
    with placing.NoWaiting():
        bytes_moments.moments(there, True, torch.float32)
