"""Every mask of every kernel is needed: without it ttsem finds a fault, or a result changes.

The few that may go without any effect are listed with the reason.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import mutants
import placing
import problems
import pytest
import torch
from mutants import Mask
from torch import Tensor

from diffgen.backends.problem import CovarianceInputs, Problem

DEVICE = torch.device("cuda")
Results = Iterator[tuple[Tensor, ...]]

_NEXT_NUMBERS = "reads the next row of numbers, for queries whose results are not stored"
_BELOW = "in bounds: the remainder by the number of queries is the index of one"
_NEXT_PLANE = "past the last plane lie flags of queries there are, and no query has a sixth digit"
_NO_ROW = "in bounds, and what is read for a place without a row is not counted"
_UNWRITTEN = "in bounds; what is read past the count is not used, being no place here"
_ONE_TILE = "a segment is one tile here, and its spare unit is written last or not read"
_OTHER_UNITS = "in bounds, and rows of other units weigh nothing where there is one unit"
_ROW_0 = "row 0 stands for a place without one, which is not counted"
_NOT_TAKEN = "in bounds here; terms past the features and rows not near are not taken"
_FIRST_ROW = (
    "in bounds here: the first place of a segment, whose row is not read where none is better"
)
_NOT_APART = "in bounds here: the next query, past whose features a row and its anchor are equal"
_NOT_LAST = "reads into the next row, and no anchor here is the last one"
SURVIVORS: dict[str, str] = {
    **{f"covariance_kernels.covariance_rows.{n}": _NEXT_NUMBERS for n in (1, 6, 7, 8, 9)},
    **{f"merge_kernels.segment_chain.{n}": _BELOW for n in range(2)},
    **{f"merge_kernels.segment_chain.{n}": _NEXT_NUMBERS for n in (10, 11)},
    **{f"merge_kernels.write_numbers.{n}": _NEXT_NUMBERS for n in range(4)},
    **{f"product_kernels.products.{n}": _NEXT_PLANE for n in range(4)},
    **{f"row_kernels.combined.{n}": _NO_ROW for n in range(2)},
    "row_kernels.refine.0": _UNWRITTEN,
    "row_kernels.excesses.0": _NOT_APART,
    "sum_kernels.sum_kept_rows.1": _UNWRITTEN,
    "sum_kernels.sum_kept_rows.2": "in bounds, and what is read meets a row of zeros",
    "anchor_kernels.nearest_in_segment.1": _UNWRITTEN,
    "anchor_kernels.take_anchors.0": _NOT_LAST,
    **{f"unit_kernels.weigh.{n}": _ONE_TILE for n in range(6)},
    **{f"unit_kernels.functional_sums.{n}": _OTHER_UNITS for n in range(2)},
    "float_product_kernels.eligible.0": _NEXT_NUMBERS,
    **{f"float_product_kernels.assembled.{n}": _NEXT_NUMBERS for n in range(3)},
    **{f"float_product_kernels.multiply_rows.{n}": _NEXT_NUMBERS for n in (6, 7)},
    "float_product_kernels.multiply_rows.2": _ROW_0,
    **{
        f"float_product_kernels.{access}": _ROW_0
        for access in ("eligible.1", "screen_rows.2", "multiply_rows.5")
    },
    **{f"float_row_kernels.weigh_rows.{n}": _ROW_0 for n in range(2)},
    **{f"float_row_kernels.decide_rows.{n}": _NOT_TAKEN for n in range(1, 5)},
    **{f"float_query_kernels.raise_floors.{n}": _NEXT_NUMBERS for n in range(2)},
    "float_query_kernels.choose_anchors.1": _FIRST_ROW,
}
"""Accesses that need no mask on these problems, and why."""


LEVELS = (0.0, 0.002, 0.3, 80.0, 1.0)
LOW_LEVELS = (0.01, 0.002, 0.02, 0.05, 0.03)
"""Where each query keeps few rows, so that these are picked."""


def ragged(
    storage: torch.dtype,
    query_dtype: torch.dtype,
    subset: bool,
    sigma: tuple[float, ...] = LEVELS,
) -> Problem:
    """Nothing is a multiple of a block, and everything optional is there."""
    count, features, batch = (1100, 37, 5) if subset else (41, 37, 5)
    data = problems.encode(problems.natural(count, 4, 0)[:, :features], storage, (-1.0, 1.0))
    return placing.placed(
        problems.from_stored(
            data,
            problems.noised((0.0, 0.01, 0.3, 3.0, 1.0), batch, 0),
            sigma,
            query_dtype,
            alpha=(1.0, 0.7),
            exclude=[0, -1, 14, 21, -1],
            weights=[float(i % 5) for i in range(count)],
            rows=[*range(0, count, 29), count - 1] if subset else None,
        ),
        DEVICE,
    )


def moments(storage: torch.dtype, driver: ModuleType) -> Results:
    from diffgen.backends.triton import bytes_configs, merge
    from diffgen.backends.triton.configs import Config

    for subset in (True, False):
        problem = ragged(storage, torch.float32, subset)
        yield driver.moments(problem, True, 0, torch.float64)
        yield driver.moments(problem, False, 0, torch.float32)
    # Two programs for five queries: what one writes past its end is the other's.
    bytes_configs.CONFIGS["decide"] = {"": Config({"BLOCK": 4}, warps=1)}
    merge.CHAIN_QUERIES = 4
    yield driver.moments(ragged(storage, torch.float32, True), True, 0, torch.float64)
    low = ragged(storage, torch.float32, False, LOW_LEVELS)
    yield driver.moments(low, False, 0, torch.float32)


def nearest(_: ModuleType) -> Results:
    from diffgen.backends.triton.nearest import nearest as run

    for subset in (True, False):
        yield run(ragged(torch.uint8, torch.float32, subset), 3)


def covariance(driver: ModuleType) -> Results:
    from diffgen.backends.triton.configs import Config
    from diffgen.backends.triton.difference_configs import CONFIGS

    # Unlike those of the sums: what the one leaves out the other must not take.
    CONFIGS["covariance_rows"] = {"": Config({"QUERIES": 4, "ROWS": 8, "FEATURES": 32})}
    for subset in (True, False):
        problem = ragged(torch.uint8, torch.float32, subset)
        batch, features = problem.query.shape
        numbers = torch.rand(batch, 2 * features + 2, generator=problems.generator(3)).double()
        mean, v = numbers[:, :features], numbers[:, features:-2]
        inputs = CovarianceInputs(mean.contiguous(), numbers[:, -2], v.contiguous(), numbers[:, -1])
        yield driver.covariance_product(problem, inputs)


BYTES = functools.partial(moments, torch.uint8)
CASES: dict[str, Callable[[ModuleType], Results]] = {
    "nearest_kernels": nearest,
    "covariance_kernels": covariance,
    "anchor_kernels": BYTES,
    "merge_kernels": BYTES,
    "product_kernels": BYTES,
    "query_kernels": BYTES,
    "row_kernels": BYTES,
    "sum_kernels": BYTES,
    "unit_kernels": BYTES,
    "float_product_kernels": functools.partial(moments, torch.float32),
    "float_row_kernels": functools.partial(moments, torch.float32),
    "float_query_kernels": functools.partial(moments, torch.float32),
    "set_kernels": BYTES,
}
MASKS = [mask for module in CASES for mask in mutants.masks_of(module)]
QUICK = ("nearest_kernels",)


@functools.cache
def expected(case: Callable[[ModuleType], Results]) -> list[tuple[Tensor, ...]]:
    with tempfile.TemporaryDirectory() as folder, mutants.driver_with(None, Path(folder)) as driver:
        return [*case(driver)]


def same(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> bool:
    return all(
        torch.allclose(one, other, 0, 0, equal_nan=True)
        for one, other in zip(got, want, strict=True)
    )


def is_seen(case: Callable[[ModuleType], Results], driver: ModuleType) -> bool:
    want = expected(case)
    try:
        return not all(same(*pair) for pair in zip(case(driver), want, strict=True))
    except Exception as fault:
        if type(fault).__name__ != "KernelFault":
            raise
        return True


def test_every_module_of_kernels_has_a_case() -> None:
    names = {path.stem for path in mutants.FOLDER.glob("*.py") if "mask=" in path.read_text()}
    assert names == {*CASES}
    assert {*SURVIVORS} <= {mask.name for mask in MASKS}


@pytest.mark.only("ttsem")
@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(mask, marks=[] if mask.module in QUICK else [pytest.mark.slow], id=mask.name)
        for mask in MASKS
    ],
)
def test_a_dropped_mask_is_seen(mask: Mask, tmp_path: Path) -> None:
    case = CASES[mask.module]
    expected(case)
    with mutants.driver_with(mask, tmp_path) as driver:
        assert is_seen(case, driver) != (mask.name in SURVIVORS), mask.text
