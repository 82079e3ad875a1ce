"""Are the named problems what their names say?"""

from __future__ import annotations

import mpmath
import problems
import pytest
import torch

from diffgen.set_view import origin


def each() -> list[pytest.param]:
    return [
        pytest.param(name, storage, query, id=f"{name}-{storage}-{query}".replace("torch.", ""))
        for name in problems.PROBLEMS
        for storage in problems.STORAGE
        for query in problems.QUERY
    ]


@pytest.mark.parametrize(("name", "storage", "query"), each())
def test_problem_has_the_shapes_and_types_of_its_contract(
    name: str, storage: torch.dtype, query: torch.dtype
) -> None:
    made = problems.PROBLEMS[name](0, storage, query)
    count, features = made.data.shape
    batch = len(made.query)
    assert made.data.dtype == storage
    assert made.query.dtype == query
    assert made.query.shape == (batch, features)
    assert made.query.is_contiguous()
    assert made.data.is_contiguous()
    assert made.norms.shape == (count,)
    for each_query in (made.sigma, made.alpha):
        assert each_query is None or each_query.shape == (batch,)
        assert each_query is None or each_query.dtype == torch.float64
    assert made.exclude is None or made.exclude.shape == (batch,)
    if made.rows is not None:
        assert bool((made.rows.diff() > 0).all())


def test_norms_are_exact_in_float64() -> None:
    made = problems.PROBLEMS["shifted_data"](0, torch.uint8, torch.float32)
    middle = origin(torch.uint8, made.scale, made.offset)
    with mpmath.workdps(60):
        for row, norm in zip(made.data[:4].tolist(), made.norms[:4].tolist(), strict=True):
            terms = [(made.offset + mpmath.mpf(made.scale) * u - middle) ** 2 for u in row]
            # 110 positive terms, each rounded a few times.
            assert abs(mpmath.fsum(terms) - norm) <= 120 * 2.0**-53 * norm


def test_every_edge_size_occurs_in_every_place() -> None:
    sizes = [name.split("_")[1:] for name in problems.PROBLEMS if name.startswith("sizes_")]
    for place in zip(*sizes, strict=True):
        assert sorted(map(int, place)) == sorted(problems.EDGE_SIZES)


def test_near_duplicates_are_one_grey_level_apart() -> None:
    made = problems.PROBLEMS["near_duplicates"](0, torch.uint8, torch.float32)
    first, second, third = made.data.int().chunk(3)
    assert bool((second - first == 1).all())
    assert bool(((third - first).abs().sum(1) == 1).all())


def test_bisectors_have_two_rows_in_contention() -> None:
    made = problems.PROBLEMS["bisectors"](0, torch.float32, torch.float64)
    squared = torch.cdist(made.query, made.data.double()).square()
    half = len(made.data) // 2
    pair = squared[torch.arange(half), torch.arange(half)]
    other = squared[torch.arange(half), torch.arange(half) + half]
    torch.testing.assert_close(pair, other)


def test_natural_rows_are_smooth() -> None:
    images = problems.natural(20, 16, 0).reshape(20, 3, 16, 16)
    steps = (images[..., 1:] - images[..., :-1]).square().mean()
    assert images.abs().max() <= 1
    # Neighbours that do not know of each other differ by twice the variance.
    assert steps < images.var()


def test_memory_that_is_not_written_is_poisoned() -> None:
    assert bool(torch.empty(5).isnan().all())
    assert bool(torch.empty(5, dtype=torch.float64).isnan().all())
