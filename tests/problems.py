"""Named problems that are hard in one way each, for every storage type and query type.

``PROBLEMS`` maps a name to ``function(seed, storage, query_dtype) -> Problem``; ``build`` makes a
problem from values in real units, with norms taken in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffgen.backends.problem import Problem
from diffgen.set_view import origin

STORAGE = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
QUERY = (torch.float32, torch.float64)

Maker = Callable[[int, torch.dtype, torch.dtype], Problem]
PROBLEMS: dict[str, Maker] = {}

EDGE_SIZES = tuple(size + by for size in (4, 8, 16, 32, 64, 128) for by in (-1, 0, 1))
"""One below, at and above the widths of vectors and tiles."""


def problem(maker: Maker) -> Maker:
    """Adds a maker to the table under its own name."""
    PROBLEMS[maker.__name__] = maker
    return maker


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decode(data: Tensor, scale: float, offset: float) -> Tensor:
    """Rows in real units, float64."""
    return offset + scale * data.double()


def encode(values: Tensor, storage: torch.dtype, value_range: tuple[float, float]) -> Tensor:
    """Stored rows nearest to real values."""
    if storage != torch.uint8:
        return values.to(storage)
    low, high = value_range
    return ((values - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)


def from_stored(
    data: Tensor,
    query: Tensor | Callable[[Tensor], Tensor],
    sigma: float | Sequence[float],
    query_dtype: torch.dtype,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    alpha: float | Sequence[float] | None = None,
    exclude: Sequence[int] | None = None,
    weights: Sequence[float] | Tensor | None = None,
    rows: Sequence[int] | None = None,
) -> Problem:
    """A problem over stored rows.

    Args:
        data: Stored rows, ``(N, D)``.
        query: ``(B, D)`` in real units, or a function that makes it from the decoded rows.
        sigma: One number, or one for each query, repeated as often as needed.
        query_dtype: Type of the query.
        value_range: Values of 0 and 255; uint8 only.
        alpha: Like ``sigma``.
        exclude: Row ids, or None.
        weights: Raw weights, ``(N,)``, or None.
        rows: Ids of the eligible rows, or None.
    """
    low, high = value_range
    is_uint8 = data.dtype == torch.uint8
    scale, offset = ((high - low) / 255, low) if is_uint8 else (1.0, 0.0)
    values = decode(data, scale, offset)
    points = query(values) if callable(query) else query
    batch = len(points)

    def per_query(number: float | Sequence[float]) -> Tensor:
        numbers = [number] if isinstance(number, float | int) else list(number)
        return torch.tensor(numbers, dtype=torch.float64).repeat(batch // len(numbers) + 1)[:batch]

    return Problem(
        query=points.to(query_dtype).contiguous(),
        sigma=per_query(sigma),
        alpha=None if alpha is None else per_query(alpha),
        exclude=None if exclude is None else torch.tensor(exclude, dtype=torch.int64),
        data=data.contiguous(),
        norms=(values - origin(data.dtype, scale, offset)).square().sum(1),
        log_weights=None if weights is None else torch.as_tensor(weights).double().log(),
        rows=None if rows is None else torch.tensor(rows, dtype=torch.int64),
        scale=scale,
        offset=offset,
    )


def natural(count: int, side: int, seed: int, channels: int = 3) -> Tensor:
    """Smooth random images with a 1/f spectrum in [-1, 1], ``(count, channels * side * side)``."""
    rng = generator(seed)
    fy = torch.fft.fftfreq(side)[:, None]
    fx = torch.fft.rfftfreq(side)[None, :]
    falloff = 1 / (fy.square() + fx.square()).sqrt().clamp(min=1 / side)
    shape = (count, channels, side, side // 2 + 1)
    phases = torch.randn(*shape, 2, generator=rng)
    images = torch.fft.irfft2(torch.view_as_complex(phases) * falloff, s=(side, side))
    images = images + images.mean(1, keepdim=True)
    return (images / images.abs().amax() * 1.5).clamp(-1, 1).reshape(count, -1).double()


def uniform(count: int, features: int, seed: int) -> Tensor:
    """Independent values in [-1, 1], ``(count, features)``."""
    return torch.rand(count, features, generator=generator(seed), dtype=torch.float64) * 2 - 1


def noised(sigma: float | Sequence[float], batch: int, seed: int) -> Callable[[Tensor], Tensor]:
    """A maker of queries: rows with noise of standard deviation ``sigma`` added."""

    def make(values: Tensor) -> Tensor:
        numbers = [sigma] if isinstance(sigma, float) else list(sigma)
        levels = torch.tensor(numbers, dtype=torch.float64)
        levels = levels.repeat(batch // len(levels) + 1)[:batch].clamp(max=1e6)
        picked = torch.arange(batch) * 7 % len(values)
        noise = torch.randn(
            batch, values.shape[1], generator=generator(seed + 1), dtype=torch.float64
        )
        return values[picked] + levels[:, None] * noise

    return make


def images_at(
    sigma: float | Sequence[float], batch: int = 6, count: int = 40, side: int = 6
) -> Maker:
    """Natural-looking rows and the noisy points that a sampler meets."""

    def make(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
        data = encode(natural(count, side, seed), storage, (-1.0, 1.0))
        return from_stored(data, noised(sigma, batch, seed), sigma, query_dtype)

    return make


PROBLEMS["images_low_noise"] = images_at((0.002, 0.005, 0.01, 0.05))
PROBLEMS["images_mid_noise"] = images_at((0.1, 0.5, 1.0, 2.0))
PROBLEMS["images_high_noise"] = images_at((5.0, 20.0, 80.0, 1e4))
PROBLEMS["mixed_sigma"] = images_at((0.0, 0.002, math.inf, 80.0, 0.3, 1e-6, 1e30), batch=9)
PROBLEMS["wide"] = images_at((0.002, 0.1, 1.0, 30.0), batch=4, count=7, side=64)


@problem
def random_rows(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    data = encode(uniform(50, 24, seed), storage, (-1.0, 1.0))
    sigma = (0.002, 0.03, 0.3, 1.0, 3.0)
    return from_stored(data, noised(sigma, 10, seed), sigma, query_dtype)


@problem
def near_duplicates(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    """Rows that differ by one grey level, in every value or in one."""
    levels = encode(natural(8, 8, seed), torch.uint8, (-1.0, 1.0)).clamp(1, 254)
    everywhere, once = levels + 1, levels.clone()
    once[:, 5] += 1
    stored = torch.cat([levels, everywhere, once])
    data = stored if storage == torch.uint8 else (stored.double() * 2 / 255 - 1).to(storage)
    sigma = (0.002, 0.004, 0.01, 0.1)
    return from_stored(data, noised(sigma, 8, seed), sigma, query_dtype)


def half_way(values: Tensor) -> Tensor:
    """Points half-way between pairs of rows, the hardest for the mean."""
    half = len(values) // 2
    return (values[:half] + values[half : 2 * half]) / 2


def bisectors_at(count: int, side: int) -> Maker:
    def make(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
        data = encode(natural(count, side, seed), storage, (-1.0, 1.0))
        return from_stored(data, half_way, (0.002, 0.01, 0.05, 0.5), query_dtype)

    return make


PROBLEMS["bisectors"] = bisectors_at(16, 8)
PROBLEMS["wide_bisectors"] = bisectors_at(8, 64)


@problem
def bisectors_of_near_duplicates(
    seed: int, storage: torch.dtype, query_dtype: torch.dtype
) -> Problem:
    first = encode(natural(6, 8, seed), torch.uint8, (-1.0, 1.0)).clamp(1, 254)
    stored = torch.cat([first, first + 1])
    data = stored if storage == torch.uint8 else (stored.double() * 2 / 255 - 1).to(storage)
    return from_stored(data, half_way, (0.002, 0.02, 0.2), query_dtype)


@problem
def far_bisectors(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    """Queries of norm 1,000 that two rows compete for."""
    data = encode(natural(8, 6, seed), storage, (-1.0, 1.0))

    def make(values: Tensor) -> Tensor:
        middle = half_way(values)
        across = values[: len(middle)] - values[len(middle) :]
        away = torch.randn(middle.shape, generator=generator(seed), dtype=torch.float64)
        along = (away * across).sum(1, keepdim=True) / across.square().sum(1, keepdim=True)
        away = away - along * across
        return middle + 1000 * away / away.norm(dim=1, keepdim=True)

    # Far away at 0.002 even the query's own last digit is worth 1e-8 nats, over what is promised to
    # float64 queries: any two ways to round differ by that.
    lowest = 0.002 if query_dtype == torch.float32 else 0.3
    return from_stored(data, make, (lowest, 0.5, 1.0), query_dtype)


@problem
def far_queries(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    data = encode(natural(30, 6, seed), storage, (-1.0, 1.0))
    away = torch.randn(6, data.shape[1], generator=generator(seed), dtype=torch.float64)
    query = 1000 * away / away.norm(dim=1, keepdim=True)
    return from_stored(data, query, (0.002, 0.5, 20.0), query_dtype)


@problem
def far_outlier(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    """A tight cluster and one row at the other end of the range."""
    values = natural(20, 6, seed) * 0.02 - 0.9
    values[7] = 1.0
    data = encode(values, storage, (-1.0, 1.0))
    sigma = (0.002, 0.02, 0.5, 20.0)
    return from_stored(data, noised(sigma, 8, seed), sigma, query_dtype)


@problem
def two_valued(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    values = torch.where(uniform(40, 30, seed) > 0, 1.0, -1.0).double()
    data = encode(values, storage, (-1.0, 1.0))
    sigma = (0.002, 0.3, 1.5, 10.0)
    return from_stored(data, noised(sigma, 8, seed), sigma, query_dtype)


@problem
def constant(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    data = encode(torch.full((9, 10), 0.25).double(), storage, (-1.0, 1.0))
    return from_stored(data, noised(0.1, 4, seed), (0.0, 0.002, 0.5, 10.0), query_dtype)


@problem
def one_row(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    data = encode(uniform(1, 12, seed), storage, (-1.0, 1.0))
    return from_stored(data, noised(0.5, 4, seed), (0.0, 0.002, 0.5, 80.0), query_dtype)


@problem
def one_feature(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    data = encode(uniform(33, 1, seed), storage, (-1.0, 1.0))
    sigma = (0.002, 0.02, 0.2, 2.0)
    return from_stored(data, noised(sigma, 8, seed), sigma, query_dtype)


@problem
def no_query(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    data = encode(uniform(5, 6, seed), storage, (-1.0, 1.0))
    return from_stored(data, torch.empty(0, 6), 0.5, query_dtype)


@problem
def weighted(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    """Weights over six orders of magnitude, some of them zero, also that of the nearest row."""
    weights = 10 ** (uniform(40, 1, seed + 5)[:, 0] * 3)
    weights[::5] = 0
    data = encode(natural(40, 6, seed), storage, (-1.0, 1.0))
    sigma = (0.0, 0.01, 0.3, 2.0, 80.0, math.inf)
    return from_stored(data, noised(0.3, 8, seed), sigma, query_dtype, weights=weights)


@problem
def one_class(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    data = encode(natural(60, 6, seed), storage, (-1.0, 1.0))
    rows = list(range(2, 60, 3))
    sigma = (0.0, 0.01, 0.3, 2.0, 80.0)
    return from_stored(data, noised(0.3, 8, seed), sigma, query_dtype, rows=rows)


@problem
def weighted_class(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    data = encode(natural(40, 6, seed), storage, (-1.0, 1.0))
    return from_stored(
        data,
        noised(0.3, 6, seed),
        (0.01, 0.5, 5.0),
        query_dtype,
        rows=[1, 4, 5, 17, 30, 31, 39],
        weights=[1.0 + i % 5 for i in range(40)],
        exclude=[1, 2, -1, 39, 17, 30],
        alpha=(1.0, 0.7),
    )


@problem
def many_rows(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    """Enough rows for several threads and blocks."""
    data = encode(uniform(5000, 6, seed), storage, (-1.0, 1.0))
    sigma = (0.002, 0.1, 1.0)
    return from_stored(data, noised(sigma, 3, seed), sigma, query_dtype)


@problem
def many_rows_of_a_class(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    data = encode(uniform(5000, 6, seed), storage, (-1.0, 1.0))
    rows = list(range(1, 5000, 2))
    sigma = (0.05, 0.2, 5.0)
    return from_stored(data, noised(sigma, 3, seed), sigma, query_dtype, rows=rows)


@problem
def left_out(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    """Each query leaves out the row it was made from, or another, or none."""
    data = encode(natural(40, 6, seed), storage, (-1.0, 1.0))
    exclude = [0, 7, 14, -1, 28, 3, 39, -1]
    sigma = (0.0, 0.002, 0.05, 1.0, 80.0)
    return from_stored(data, noised(0.01, 8, seed), sigma, query_dtype, exclude=exclude)


@problem
def signal_scales(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    """What DDPM asks, from its first step to its last; alpha = 0 is pure noise."""
    alpha = (0.999, 0.7, 0.1, 0.006, 0.0, 0.0)
    sigma = (0.01, 0.7, 0.995, 1.0, 1.0, 0.0)
    data = encode(natural(40, 6, seed), storage, (-1.0, 1.0))
    return from_stored(
        data,
        lambda values: (
            torch.tensor(alpha, dtype=torch.float64)[:, None] * noised(0.0, 6, seed)(values)
            + torch.tensor(sigma, dtype=torch.float64)[:, None]
            * uniform(6, values.shape[1], seed + 3)
        ),
        sigma,
        query_dtype,
        alpha=alpha,
    )


@problem
def shifted_data(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    """Values near 10: norms are large against differences."""
    data = encode(10 + natural(40, 6, seed), storage, (9.0, 11.0))
    sigma = (0.002, 0.05, 0.5, 5.0)
    make = noised(sigma, 8, seed)
    return from_stored(data, make, sigma, query_dtype, value_range=(9.0, 11.0))


@problem
def unit_range(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    data = encode(natural(40, 6, seed) / 2 + 0.5, storage, (0.0, 1.0))
    sigma = (0.002, 0.05, 0.5, 5.0)
    make = noised(sigma, 8, seed)
    return from_stored(data, make, sigma, query_dtype, value_range=(0.0, 1.0))


@problem
def coincident(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    """Queries that are rows, with copies of some rows in the set."""
    data = encode(natural(12, 6, seed), torch.uint8, (-1.0, 1.0)) // 128
    data = torch.cat([data, data[:5], data[:2]])
    data = data * 255 if storage == torch.uint8 else (2 * data.double() - 1).to(storage)
    return from_stored(data, lambda y: y[:8], (0.0, 0.002, 0.1, 3.0), query_dtype)


@problem
def bad_queries(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
    """NaN and infinities in some queries: they must not reach the others."""
    data = encode(natural(20, 6, seed), storage, (-1.0, 1.0))

    def make(values: Tensor) -> Tensor:
        query = noised(0.1, 8, seed)(values)
        query[1, 3], query[4, 0], query[6] = math.nan, math.inf, -math.inf
        return query

    return from_stored(data, make, (0.02, 0.0, 1.0), query_dtype)


def _sizes(index: int) -> Maker:
    total = len(EDGE_SIZES)
    count = EDGE_SIZES[index]
    features = EDGE_SIZES[(5 * index + 3) % total]
    batch = EDGE_SIZES[(7 * index + 11) % total]

    def make(seed: int, storage: torch.dtype, query_dtype: torch.dtype) -> Problem:
        data = encode(uniform(count, features, seed), storage, (-1.0, 1.0))
        sigma = (0.002, 0.1, 1.0, 20.0)
        return from_stored(data, noised(sigma, batch, seed), sigma, query_dtype)

    PROBLEMS[f"sizes_{count}_{features}_{batch}"] = make
    return make


for _index in range(len(EDGE_SIZES)):
    _sizes(_index)
