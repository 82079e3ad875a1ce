"""8-bit sets: the same query has the same bits in any company, on any machine, by any screen."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import problems
import pytest
import torch
from torch import Tensor

from diffgen import EmpiricalDenoiser, TrainingSet, accuracy
from diffgen.backends import cpu, native, reference
from diffgen.backends.problem import Problem
from diffgen.backends.registry import Moments, get

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        native.load_native() is None, reason=native.why_not_native() or "native core"
    ),
]

LEVELS = ("portable", "avx2", "avxvnni", "avx512", "avx512vnni")
SIGMAS = (0.0, 0.002, 0.02, 0.3, 1.0, 2.0, 5.0, 20.0, 80.0, 1e4)
SCREENS = (0, 1, 2, 3, 4, 5)

# What is asked: functionals, nearest rows, type of the mean. Each has its own margins and digits.
MEAN_ALONE = (False, 0, torch.float32)
SCORE = (False, 2, torch.float64)
EVERYTHING = (True, 3, torch.float64)
Asked = tuple[bool, int, torch.dtype]


def usable(level: str) -> str:
    reason = get(f"cpu:{level}").unavailable()
    if reason:
        pytest.skip(reason)
    return level


def ask(problem: Problem, asked: Asked, level: str = "portable", screen: int = 0) -> Moments:
    wanted, top_k, dtype = asked
    return cpu.moments(level, problem, wanted, top_k, dtype, screening_digits=screen)


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether all outputs agree bit for bit, NaN and the sign of zero included."""
    return all(
        a.shape == b.shape
        and a.dtype == b.dtype
        and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
        for a, b in zip(first, second, strict=True)
    )


def only(problem: Problem, picked: Sequence[int]) -> Problem:
    """The problem of some of its queries, in that order, repeated ones too."""

    def take(part: Tensor | None) -> Tensor | None:
        return None if part is None else part[list(picked)].contiguous()

    return dataclasses.replace(
        problem,
        query=take(problem.query),
        sigma=take(problem.sigma),
        alpha=take(problem.alpha),
        exclude=take(problem.exclude),
    )


def rows_of(moments: Moments, picked: Sequence[int]) -> list[Tensor]:
    return [part[list(picked)] for part in moments]


def photographs(count: int, features: int, seed: int) -> Tensor:
    """Rows with a 1/f^2 spectrum: clusters of near-duplicates in the first 300 of every 1,024 ids,
    some of them scattered further on, and rows by themselves."""
    rng = problems.generator(seed)
    steps = torch.randn(count, features, generator=rng, dtype=torch.float64)
    walk = steps.cumsum(1)
    walk = walk - walk.mean(1, keepdim=True)
    # The overall light of an image is a feature of its own: with one feature it is all there is.
    light = torch.randn(count, 1, generator=rng, dtype=torch.float64)
    values = 60 * walk / walk.square().mean(1, keepdim=True).sqrt().clamp(min=1e-9) + 30 * light
    ids = torch.arange(count)
    cluster = (ids % 1024 < 300) | (ids % 37 == 5)
    base = values[ids // 1024 % 2][cluster]
    # One grey level up or down in one value of sixteen.
    jitter = torch.randint(-16, 17, base.shape, generator=rng).div(16, rounding_mode="trunc")
    values[cluster] = base.round() + jitter
    return (values + 128).round().clamp(0, 255).to(torch.uint8)


def near_rows(batch: int, spread: Sequence[float], seed: int) -> Callable[[Tensor], Tensor]:
    """Queries about rows of the clusters and others in turn."""

    def make(values: Tensor) -> Tensor:
        rng = problems.generator(seed + 17)
        noise = torch.randn(batch, values.shape[1], generator=rng, dtype=torch.float64)
        levels = torch.tensor(spread, dtype=torch.float64).repeat(batch // len(spread) + 1)[:batch]
        picked = torch.arange(batch) * 211 % len(values)
        return values[picked] + levels[:, None].clamp(max=100) * noise

    return make


@functools.cache
def plain(count: int, features: int, query_dtype: torch.dtype = torch.float32) -> Problem:
    """A query for each noise level."""
    data = photographs(count, features, 0)
    make = near_rows(len(SIGMAS), SIGMAS, 0)
    return problems.from_stored(data, make, SIGMAS, query_dtype)


def _in_classes(query_dtype: torch.dtype) -> Problem:
    data = photographs(2500, 64, 1)
    rows = [i for i in range(2500) if i % 3 != 1 and not 1200 < i < 2060]
    return problems.from_stored(data, near_rows(20, SIGMAS, 1), SIGMAS, query_dtype, rows=rows)


def _excluded(query_dtype: torch.dtype) -> Problem:
    data = photographs(1300, 65, 2)
    exclude = [(b * 211 % 1300) if b % 4 else -1 for b in range(20)]
    return problems.from_stored(
        data, near_rows(20, SIGMAS, 2), SIGMAS, query_dtype, exclude=exclude
    )


def _weighted(query_dtype: torch.dtype) -> Problem:
    data = photographs(2200, 40, 3)
    rng = problems.generator(3)
    weights = 10 ** (8 * torch.rand(2200, generator=rng, dtype=torch.float64) - 4)
    weights[::7] = 0
    weights[1024:1500] = 0  # whole tiles
    return problems.from_stored(
        data, near_rows(20, SIGMAS, 3), SIGMAS, query_dtype, weights=weights
    )


def _all_at_once(query_dtype: torch.dtype) -> Problem:
    data = photographs(2500, 63, 4)
    weights = torch.arange(2500).double() % 11
    weights[300] = 1.0
    return problems.from_stored(
        data,
        near_rows(30, SIGMAS, 4),
        SIGMAS,
        query_dtype,
        value_range=(-3.5, 0.25),
        alpha=(1.0, 0.3, 0.0),
        weights=weights,
        rows=[i for i in range(2500) if i % 11 and i % 2],
        exclude=[-1, 211, 422, 633, 3, 25] * 5,
    )


def _scaled(low: float, high: float) -> Callable[[torch.dtype], Problem]:
    def make(query_dtype: torch.dtype) -> Problem:
        sigma = [level * (high - low) / 2 for level in SIGMAS]
        data = photographs(1100, 48, 5)
        queries = near_rows(20, sigma, 5)
        return problems.from_stored(
            data, queries, sigma, query_dtype, value_range=(low, high), alpha=(1.0, 0.3, 0.0)
        )

    return make


def _bisectors(query_dtype: torch.dtype) -> Problem:
    """Half-way between pairs, and rows themselves: ties, and logits that only differences tell."""

    def make(values: Tensor) -> Tensor:
        half = (values[:10] + values[700:710]) / 2
        return torch.cat([half, values[:10], 50 * half])

    return problems.from_stored(photographs(1200, 96, 6), make, SIGMAS, query_dtype)


SETS: dict[str, Callable[[torch.dtype], Problem]] = {
    "plain": functools.partial(plain, 2500, 784),
    "wide": functools.partial(plain, 400, 3072),
    "classes": _in_classes,
    "excluded": _excluded,
    "weighted": _weighted,
    "all_at_once": _all_at_once,
    "unit_range": _scaled(0.0, 1.0),
    "bytes": _scaled(0.0, 255.0),
    "tiny_range": _scaled(0.0, 1e-6),
    "large_range": _scaled(-1e6, 3e6),
    "bisectors": _bisectors,
}
EACH_SET = pytest.mark.parametrize("name", SETS)
EACH_QUERY = pytest.mark.parametrize("query", problems.QUERY)
EACH_LEVEL = pytest.mark.parametrize("level", LEVELS)


@functools.cache
def problem_of(name: str, query: torch.dtype) -> Problem:
    return SETS[name](query)


@functools.cache
def baseline(name: str, query: torch.dtype, asked: Asked) -> Moments:
    """Portable loops, the whole product for every row, one thread, all queries at once."""
    return ask(problem_of(name, query), asked, screen=5)


@EACH_SET
@EACH_QUERY
@EACH_LEVEL
def test_instruction_sets_and_screens_give_the_same_bits(
    name: str, query: torch.dtype, level: str
) -> None:
    usable(level)
    problem = problem_of(name, query)
    for asked in (MEAN_ALONE, SCORE, EVERYTHING):
        want = baseline(name, query, asked)
        for screen in SCREENS:
            assert same_bits(ask(problem, asked, level, screen), want), (asked, screen)


@EACH_SET
@EACH_QUERY
def test_the_bits_are_those_of_the_right_answer(name: str, query: torch.dtype) -> None:
    problem = problem_of(name, query)
    want = reference.moments(problem, True, 3, torch.float64)
    largest = accuracy.largest_magnitude(problem)
    for asked in (MEAN_ALONE, EVERYTHING):
        units = accuracy.units_of_promise(baseline(name, query, asked), want, problem)
        if largest > 1e3:
            # Its 1e-3 is absolute, whatever the units: with long rows float64 cannot hold it.
            units.pop("trace_covariance", None)
        assert max(units.values()) <= 1, units
    # As in test_backends: D products add up to D / 2 u of the root, x and alpha y round beforehand.
    ids, distances = baseline(name, query, EVERYTHING)[3:]
    features = problem.query.shape[1]
    reach = problem.query.double().norm(dim=1, keepdim=True) + largest * math.sqrt(features)
    slack = 2.0**-52 * (4 * reach + features * want[4])
    assert bool(((distances - want[4]).abs() <= slack).all())
    apart = (want[4].diff(dim=1) > slack[:, 1:]).all(1)
    assert torch.equal(ids[apart, :2], want[3][apart, :2])


@EACH_SET
@EACH_QUERY
@pytest.mark.parametrize("asked", [MEAN_ALONE, EVERYTHING])
def test_company_gives_the_same_bits(name: str, query: torch.dtype, asked: Asked) -> None:
    problem, want = problem_of(name, query), baseline(name, query, asked)
    batch = len(problem.query)
    backwards = list(range(batch))[::-1]
    # More than go through the rows at once, the same point several times among them.
    crowd = [(5 * i + 3) % batch for i in range(131)]
    singles = [[b] for b in range(batch)]
    for picked in [*singles, backwards, crowd, [2, 2, 2], list(range(1, batch, 3))]:
        got = ask(only(problem, picked), asked, "auto")
        assert same_bits(got, rows_of(want, picked)), picked


@EACH_QUERY
@pytest.mark.parametrize("asked", [MEAN_ALONE, EVERYTHING])
def test_noise_levels_of_one_point_share_its_products_and_no_bits(
    query: torch.dtype, asked: Asked
) -> None:
    """A point's products are formed for the level that needs most of them."""
    one = only(plain(1300, 96, query), [4])
    levels = [0.3, 1e4, 0.002, 5.0, 0.02, 80.0, 0.0, 1.0]
    many = dataclasses.replace(
        only(one, [0] * len(levels)), sigma=torch.tensor(levels, dtype=torch.float64)
    )
    for screen in SCREENS:
        got = ask(many, asked, "auto", screen)
        for at, level in enumerate(levels):
            alone = dataclasses.replace(one, sigma=torch.tensor([level], dtype=torch.float64))
            assert same_bits(rows_of(got, [at]), ask(alone, asked, "auto")), (screen, level)


# More multiply-adds than one thread keeps to itself, one query or several, few segments or many.
SHARED = {
    "one_query": lambda: only(plain(2500, 784), [3]),
    "queries": lambda: plain(2500, 784),
    "one_segment": lambda: only(plain(900, 784), [1, 3, 5, 7, 9] * 30),
    "segments": lambda: only(plain(20_000, 24), [0, 1, 2, 3, 5, 8]),
    "weighted": lambda: only(problem_of("weighted", torch.float32), list(range(20)) * 2),
    "classes": lambda: problem_of("classes", torch.float32),
}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("asked", [MEAN_ALONE, EVERYTHING])
def test_threads_give_the_same_bits(name: str, asked: Asked) -> None:
    problem = SHARED[name]()
    rows = len(problem.data) if problem.rows is None else len(problem.rows)
    assert rows * problem.query.numel() >= 1_000_000
    want = ask(problem, asked, "auto")
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        for screen in (0, 1, 5):
            # Which thread sees which segment first is chance.
            for _ in range(2):
                assert same_bits(ask(problem, asked, "auto", screen), want), (threads, screen)


ROWS = (1, 3, 4, 5, 127, 128, 129, 1023, 1024, 1025, 2500)
SIZES = [(count, features) for features in (1, 3, 63, 64, 65) for count in ROWS]
SIZES += [(5, 784), (511, 784), (513, 784), (1025, 784), (3, 3072), (127, 3072), (129, 3072)]
SIZES += [(5, 4095), (5, 4097), (9, 120_001)]


@pytest.mark.parametrize(("count", "features"), SIZES)
def test_sizes_at_edges_give_the_same_bits(count: int, features: int) -> None:
    problem = plain(count, features)
    asked = (True, min(count, 3), torch.float64)
    for what in (MEAN_ALONE, asked):
        want = ask(problem, what, screen=5)
        assert want[0].isfinite().all()
        for level in LEVELS:
            if get(f"cpu:{level}").unavailable():
                continue
            for screen in (0, 1, 2, 4):
                assert same_bits(ask(problem, what, level, screen), want), (level, screen)
        for b in (0, 3, 6):
            assert same_bits(ask(only(problem, [b]), what, "auto"), rows_of(want, [b]))


def at_the_cut(beyond: float, cut: float) -> Problem:
    """Two rows, one of them `cut` - `beyond` nats below the other, and a query that lies between.

    All features but the first are the same: a query whose fixed point is wrong the same way in each
    of them moves both logits, the one up and the other down, as far as the digits allow, and the
    bounds of the screen hold with equality.
    """
    features, reach = 1000, 64
    # 0.55 of a unit of three digits above a multiple: rounded up.
    unit = 127 / (127 * 2**16)
    value = (math.floor(0.4 / unit) + 0.55) * unit
    # 2 kappa alpha |z| |x - x_3| is just under what three digits may leave.
    kappa = 6.5e-3 / features
    query = torch.full((1, features + 1), value).double()
    query[0, 0] = 127.0
    data = torch.full((2, features + 1), 128)
    data[:, 0] = 255
    data[0, 1:] -= reach
    data[1, 1:] += reach
    value = float(query.float()[0, 1])
    further = kappa * features * ((value - reach) ** 2 - (value + reach) ** 2)
    log_weights = torch.tensor([0.0, further - cut + beyond]).double()
    problem = problems.from_stored(
        data.to(torch.uint8),
        query,
        math.sqrt(0.5 / kappa),
        torch.float32,
        value_range=(-128.0, 127.0),
    )
    return dataclasses.replace(problem, log_weights=log_weights)


@pytest.mark.parametrize("beyond", [-3e-5, -1.2e-5, -6e-6, -2e-6, -5e-7, 0.0, 1e-6, 2e-5])
@pytest.mark.parametrize(("cut", "asked"), [(22.5, MEAN_ALONE), (33.0, (True, 2, torch.float32))])
def test_row_at_the_cut_is_dropped_by_every_screen_or_none(
    beyond: float, cut: float, asked: Asked
) -> None:
    problem = at_the_cut(beyond, cut)
    want = ask(problem, asked, screen=5)
    for screen in SCREENS:
        assert same_bits(ask(problem, asked, screen=screen), want), screen


def test_denoiser_rows_are_those_of_single_calls() -> None:
    data = photographs(1500, 192, 7)
    labels = torch.arange(1500) % 3
    weights = 1.0 + torch.arange(1500).double() % 5
    x = near_rows(12, (0.002, 0.3, 2.0), 7)(data.double() * 2 / 255 - 1).reshape(12, 3, 8, 8)
    for flip in (False, True):
        training_set = TrainingSet(
            data.reshape(-1, 3, 8, 8), labels=labels, weights=weights, flip=flip
        )
        denoiser = EmpiricalDenoiser(training_set, backend="cpu")
        sigma = torch.tensor((*SIGMAS, 0.05, 0.7), dtype=torch.float64)
        asked = torch.tensor([-1, 0, 1, 2] * 3)
        exclude = torch.tensor([-1, 5, 7, 9] * 3)
        for points in (x.float(), x):
            whole = denoiser(points, sigma, asked, exclude=exclude)
            for b in range(12):
                at = slice(b, b + 1)
                one = denoiser(points[at], sigma[at], asked[at], exclude=exclude[at])
                assert same_bits([one], [whole[at]]), (flip, b)


def test_sweep_is_the_calls_it_stands_for() -> None:
    data = photographs(1500, 192, 8)
    x = near_rows(5, (0.002, 0.3, 2.0), 8)(data.double() * 2 / 255 - 1)
    denoiser = EmpiricalDenoiser(TrainingSet(data), backend="cpu")
    levels = torch.tensor(SIGMAS, dtype=torch.float64)
    for points in (x.float(), x):
        got = denoiser.sweep(points, levels)
        for at, level in enumerate(SIGMAS):
            assert same_bits([got[at]], [denoiser(points, level)]), level


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@EACH_QUERY
def test_bad_query_leaves_the_bits_of_others(bad: float, query: torch.dtype) -> None:
    problem, want = problem_of("weighted", query), baseline("weighted", query, EVERYTHING)
    spoiled = problem.query.clone()
    spoiled[4, 11] = spoiled[13, 0] = bad
    got = ask(dataclasses.replace(problem, query=spoiled), EVERYTHING, "auto")
    others = [b for b in range(20) if b not in (4, 13)]
    assert same_bits(rows_of(got, others), rows_of(want, others))
    for part in (got[0], got[1], got[2], got[4]):
        assert part[[4, 13]].isnan().all()
    assert (got[3][[4, 13]] == -1).all()


@pytest.mark.parametrize("sigma", [0.02, 2.0, 80.0])
def test_one_grey_level_of_one_value_shows_in_the_bits(sigma: float) -> None:
    """The comparison sees as little as can be planted."""
    problem = problems.from_stored(
        photographs(1300, 96, 9), near_rows(1, (sigma,), 9), sigma, torch.float32
    )
    want = ask(problem, SCORE, "auto")
    at = int(want[3][0, 0])
    data = problem.data.clone()
    data[at, 17] ^= 1
    values = problems.decode(data, problem.scale, problem.offset)
    norms = (values - problem.offset - 128 * problem.scale).square().sum(1)
    got = ask(dataclasses.replace(problem, data=data, norms=norms), SCORE, "auto")
    for part in (0, 1, 4):
        assert not same_bits([got[part]], [want[part]])
