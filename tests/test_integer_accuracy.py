"""8-bit sets at the edges of the promise: where roundings align, weights vanish, numbers are large.

References are float64 differences (``diffgen.backends.reference``) or, where float64 itself is too
coarse, 60 digits of mpmath.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import mpmath
import problems
import pytest
import torch
from torch import Tensor

from diffgen import TrainingSet, accuracy
from diffgen.backends import cpu, native, reference
from diffgen.backends.problem import Problem
from diffgen.backends.registry import Moments

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        native.load_native() is None, reason=native.why_not_native() or "native core"
    ),
]

# Stored units of 1/128 about zero: every decoded value and every norm is exact.
EXACT_RANGE = (-1.0, 127 / 128)
ALONE = (False, torch.float32)
SCORE = (False, torch.float64)
ALL = (True, torch.float64)
EACH_ASKED = pytest.mark.parametrize("asked", [ALONE, SCORE, ALL], ids=["mean", "score", "all"])
EACH_QUERY = pytest.mark.parametrize("query", problems.QUERY)


def ask(problem: Problem, asked: tuple[bool, torch.dtype]) -> Moments:
    return cpu.moments("auto", problem, asked[0], 0, asked[1])


def defined(problem: Problem, asked: tuple[bool, torch.dtype]) -> Moments:
    return reference.moments(problem, asked[0], 0, torch.float64)


def keeps_promise(got: Moments, want: Moments, problem: Problem) -> None:
    units = accuracy.units_of_promise(got, want, problem)
    assert max(units.values()) <= 1, units


def check(problem: Problem, asked: tuple[bool, torch.dtype]) -> None:
    keeps_promise(ask(problem, asked), defined(problem, asked), problem)


def with_log_weights(problem: Problem, log_weights: Tensor) -> Problem:
    return dataclasses.replace(problem, log_weights=log_weights.double())


def exactly(problem: Problem) -> Moments:
    """Mean and log-sum-exp of a few rows in 60-digit arithmetic, without weights."""
    values = problems.decode(problem.data, problem.scale, problem.offset).tolist()
    means, logs = [], []
    with mpmath.workdps(60):
        rows = [[mpmath.mpf(v) for v in row] for row in values]
        for b in range(len(problem.query)):
            x = [mpmath.mpf(v) for v in problem.query[b].double().tolist()]
            factor = 1 / (2 * mpmath.mpf(float(problem.sigma[b])) ** 2)
            logits = [
                -factor * mpmath.fsum((p - q) ** 2 for p, q in zip(x, row, strict=True))
                for row in rows
            ]
            best = max(logits)
            weights = [mpmath.exp(logit - best) for logit in logits]
            total = mpmath.fsum(weights)
            logs.append(float(best + mpmath.log(total)))
            weights = [weight / total for weight in weights]
            means.append(
                [float(mpmath.fdot(weights, column)) for column in zip(*rows, strict=True)]
            )
    nothing = torch.empty(len(means), 0)
    return (
        torch.tensor(means, dtype=torch.float64),
        torch.tensor(logs, dtype=torch.float64),
        nothing.double(),
        nothing.long(),
        nothing.double(),
    )


# ---- Weights under a quantum -------------------------------------------------------------------

QUANTA = {
    "three_digits": 1 / (127 * 2.0**16),
    "four_digits": 1 / (127 * 2.0**24),
    "five_digits": 1 / (127 * 2.0**32),
    "mean_cut": math.exp(-22.5),
    "fine_cut": math.exp(-33.0),
}


@EACH_ASKED
@pytest.mark.parametrize("count", [8, 16, 17, 150, 600, 1023, 4095, 60_000])
@pytest.mark.parametrize("name", QUANTA)
@pytest.mark.parametrize("share", [0.49, 0.51, 0.99])
def test_weights_that_are_each_nothing_are_something_together(
    share: float, name: str, count: int, asked: tuple[bool, torch.dtype]
) -> None:
    # Row 0 at one corner, all others at the opposite one, the query as far from both.
    data = torch.tensor([[255, 1]] * (count + 1), dtype=torch.uint8)
    data[0] = torch.tensor([1, 255], dtype=torch.uint8)
    weights = torch.full((count + 1,), math.log(share * QUANTA[name]), dtype=torch.float64)
    weights[0] = 0
    for sigma in (0.002, 0.3, 80.0):
        problem = problems.from_stored(
            data, torch.zeros(1, 2), sigma, torch.float32, value_range=EXACT_RANGE
        )
        check(with_log_weights(problem, weights), asked)


@EACH_ASKED
def test_small_weights_in_every_tile_are_counted(asked: tuple[bool, torch.dtype]) -> None:
    """Each tile has a row of weight one, and all its others just under the cut."""
    data = torch.tensor([[255, 1]] * 8192, dtype=torch.uint8)
    data[::1024] = torch.tensor([1, 255], dtype=torch.uint8)
    for nats in (22.49, 22.51, 32.99, 33.01, 12.0):
        weights = torch.full((8192,), -nats, dtype=torch.float64)
        weights[::1024] = 0
        problem = problems.from_stored(
            data, torch.zeros(1, 2), 0.3, torch.float32, value_range=EXACT_RANGE
        )
        check(with_log_weights(problem, weights), asked)


@EACH_ASKED
def test_segments_under_the_margin_are_nothing_together(asked: tuple[bool, torch.dtype]) -> None:
    """64 segments, all but one just as far below it as lets them be dropped."""
    count = 65_536
    data = torch.tensor([[255, 1]] * count, dtype=torch.uint8)
    data[:1024] = torch.tensor([1, 255], dtype=torch.uint8)
    for nats in (16.99, 17.01, 23.99, 24.01):
        weights = torch.full((count,), -nats - math.log(count), dtype=torch.float64)
        weights[:1024] = 0
        problem = problems.from_stored(
            data, torch.zeros(1, 2), 0.3, torch.float32, value_range=EXACT_RANGE
        )
        check(with_log_weights(problem, weights), asked)
        check(with_log_weights(problem, weights.flip(0)), asked)


# ---- Half-way between two images ---------------------------------------------------------------


def against_negative(features: int, seed: int) -> Tensor:
    """An image and its negative, exactly as far from zero, ``(2, features)``; halves are equal."""
    half = torch.randint(1, 256, (features // 2,), generator=problems.generator(seed))
    image = torch.cat([half, half])
    return torch.stack([image, 256 - image]).to(torch.uint8)


def half_way_noise(features: int, size: float, batch: int, seed: int) -> Tensor:
    """Points at right angles to such a pair: logits are the same."""
    half = torch.randn(batch, features // 2, generator=problems.generator(seed)) * size
    return torch.cat([half, -half], 1).double()


@EACH_ASKED
@EACH_QUERY
@pytest.mark.parametrize("features", [3072, 12_288])
@pytest.mark.parametrize("size", [0.0, 0.002, 1.0])
def test_mean_half_way_to_the_negative(
    size: float, features: int, query: torch.dtype, asked: tuple[bool, torch.dtype]
) -> None:
    data = against_negative(features, 1)
    points = half_way_noise(features, size, 4, 1)
    problem = problems.from_stored(data, points, 0.002, query, value_range=EXACT_RANGE)
    got = ask(problem, asked)
    assert got[0].abs().max() <= accuracy.PROMISES["mean"].absolute
    r = (points.square().sum(1) + problem.norms[0]) / (2 * 0.002**2)
    assert (got[1] + r - math.log(2)).abs().max() <= 1e-6 * r.max()


@EACH_QUERY
@pytest.mark.parametrize("features", [3072, 12_288])
@pytest.mark.parametrize("size", [0.0, 0.002, 0.02])
def test_score_half_way_to_the_negative(size: float, features: int, query: torch.dtype) -> None:
    """A score of zero may be off by 1e-5 / sigma: the mean by 2e-8."""
    data = against_negative(features, 1)
    points = half_way_noise(features, size, 8, 1)
    problem = problems.from_stored(data, points, 0.002, query, value_range=EXACT_RANGE)
    want = (torch.zeros_like(points), *ask(problem, SCORE)[1:])
    keeps_promise(ask(problem, SCORE), want, problem)


@pytest.mark.parametrize("features", [3072, 12_288])
@pytest.mark.parametrize("kind", ["near", "far", "black_and_white"])
def test_bisector_of_two_images_against_60_digits(kind: str, features: int) -> None:
    rng = problems.generator(features)
    first = torch.randint(1, 255, (features,), generator=rng)
    second = {
        "near": (first + torch.randint(-1, 2, (features,), generator=rng)).clamp(0, 255),
        "far": torch.randint(0, 256, (features,), generator=rng),
        "black_and_white": torch.full((features,), 255),
    }[kind]
    first = torch.zeros_like(second) if kind == "black_and_white" else first
    data = torch.stack([first, second]).to(torch.uint8)

    def make(values: Tensor) -> Tensor:
        middle = values.mean(0, keepdim=True)
        away = torch.randn(2, features, generator=rng, dtype=torch.float64)
        across = values[:1] - values[1:]
        away -= (away * across).sum(1, keepdim=True) / across.square().sum() * across
        # Moved along the line so that the logits differ by 0, 1 and 5 nats.
        shift = torch.tensor([0.0, 1.0, 5.0])[:, None].double() * 0.002**2 / across.square().sum()
        return torch.cat([middle + shift * across, middle + 0.002 * away])

    for query in problems.QUERY:
        for asked in (ALONE, SCORE):
            problem = problems.from_stored(data, make, 0.002, query, value_range=EXACT_RANGE)
            keeps_promise(ask(problem, asked), exactly(problem), problem)


@functools.cache
def swapped(features: int) -> Tensor:
    """Two rows that are each other's halves, swapped."""
    halves = torch.randint(0, 256, (2, features // 2), generator=problems.generator(3))
    return torch.stack([halves.flatten(), halves.flip(0).flatten()]).to(torch.uint8)


@pytest.mark.parametrize("sigma", [0.002, 0.3, 1.0, 20.0, 1e4])
@pytest.mark.parametrize("size", [1.0, 10.0, 100.0, 1e3, 1e4, 1e6])
def test_mean_far_from_two_rows_that_are_equally_far(size: float, sigma: float) -> None:
    """A query that is the same in both halves has the same logit for both rows."""
    half = torch.rand(8, 1536, generator=problems.generator(4)) * 2 - 1
    points = size * torch.cat([half, half], 1)
    problem = problems.from_stored(
        swapped(3072), points.double(), sigma, torch.float32, value_range=EXACT_RANGE
    )
    want = problems.decode(problem.data, problem.scale, problem.offset).mean(0)
    assert (ask(problem, ALONE)[0] - want).abs().max() <= 1e-5 + 2.0**-24


# ---- Roundings that all go one way --------------------------------------------------------------


def aligned(features: int, digits: int, upwards: bool) -> Tensor:
    """A query, most of whose fixed-point roundings to so many digits go towards white.

    The first value, 1, sets the unit; the others are a little over half a unit of those digits
    above a multiple of it (or under half), and alike.
    """
    unit = 1 / (127 * 256.0 ** (digits - 1))
    part = 0.51 if upwards else 0.49
    query = torch.full((1, features), (3 * 256 ** (digits - 1) + part) * unit).double()
    query[0, 0] = 1.0
    return query


@EACH_ASKED
@pytest.mark.parametrize("upwards", [False, True])
@pytest.mark.parametrize("digits", [3, 4, 5])
def test_rounding_of_the_query_along_the_data(
    digits: int, upwards: bool, asked: tuple[bool, torch.dtype]
) -> None:
    """Black and white images, and a query off along their difference as far as digits allow."""
    features = 3072
    data = torch.tensor([[0], [255]] * 8, dtype=torch.uint8).expand(16, features).contiguous()
    value = aligned(features, digits, upwards)
    # Over the noise levels at which one digit less comes to be enough, and past them on each side.
    for step in range(0, 80):
        sigma = 2.0 * 2.0 ** (step / 4)
        problem = problems.from_stored(data, value, sigma, torch.float64, value_range=EXACT_RANGE)
        # Weights that balance the two: where the mean moves most.
        values = problems.decode(data, problem.scale, problem.offset)
        squared = (value - values).square().sum(1)
        check(with_log_weights(problem, (squared - squared.min()) / (2 * sigma**2)), asked)


# ---- Longest rows, ranges, outliers, alpha ------------------------------------------------------


@EACH_ASKED
@EACH_QUERY
@pytest.mark.parametrize("features", [3, 784, 12_288])
def test_grey_mean_of_black_and_white_rows(
    features: int, query: torch.dtype, asked: tuple[bool, torch.dtype]
) -> None:
    pairs = 20 if features == 12_288 else 150
    data = torch.tensor([[0], [255]] * pairs, dtype=torch.uint8)
    data = data.expand(2 * pairs, features).contiguous()
    sigma = (0.5, 1.0, 2.0, 5.0, 20.0, 80.0, 1e4)
    rng = problems.generator(5)
    noise = torch.randn(7, features, generator=rng, dtype=torch.float64)
    # Noise across the line between black and white: the logits stay close.
    noise -= noise.mean(1, keepdim=True)
    shift = torch.tensor(sigma)[:, None].double().square() / features * 0.3
    for points in (shift.expand(-1, features), shift + noise, shift + noise * shift):
        check(problems.from_stored(data, points, sigma, query), asked)


@EACH_ASKED
@EACH_QUERY
@pytest.mark.parametrize(
    "value_range",
    [(0.0, 1.0), (0.0, 255.0), (-128.0, 127.0), (0.0, 1e-6), (0.0, 1e6), (1e6, 1e6 + 1)],
)
def test_value_ranges_keep_the_promise(
    value_range: tuple[float, float], query: torch.dtype, asked: tuple[bool, torch.dtype]
) -> None:
    low, high = value_range
    data = problems.encode(problems.natural(300, 8, 6), torch.uint8, (-1.0, 1.0))
    sigma = [s * (high - low) / 2 for s in (0.002, 0.02, 0.3, 1.0, 2.0, 5.0, 20.0, 80.0)]
    problem = problems.from_stored(
        data, problems.noised(sigma, 16, 6), sigma, query, value_range=value_range
    )
    check(problem, asked)


@pytest.mark.parametrize("power", [-60, -20, 20, 60])
def test_units_by_a_power_of_two_change_no_bit(power: int) -> None:
    """A promise of 1e-5 in absolute terms says nothing of tiny ranges: this does."""
    data = problems.encode(problems.natural(500, 8, 7), torch.uint8, (-1.0, 1.0))
    sigma = (0.002, 0.02, 0.3, 2.0, 20.0)
    problem = problems.from_stored(
        data, problems.noised(sigma, 10, 7), sigma, torch.float32, value_range=EXACT_RANGE
    )
    unit = 2.0**power
    scaled = dataclasses.replace(
        problem,
        query=problem.query * unit,
        sigma=problem.sigma * unit,
        norms=problem.norms * unit**2,
        scale=problem.scale * unit,
        offset=problem.offset * unit,
    )
    mean, logsumexp, *_ = ask(problem, ALONE)
    scaled_mean, scaled_logsumexp, *_ = ask(scaled, ALONE)
    assert torch.equal(scaled_mean, mean * unit)
    assert torch.equal(scaled_logsumexp, logsumexp)


@EACH_ASKED
@EACH_QUERY
@pytest.mark.parametrize("length", [1e3, 1e6, 1e12, 1e18])
def test_far_outliers_keep_the_promise(
    length: float, query: torch.dtype, asked: tuple[bool, torch.dtype]
) -> None:
    data = problems.encode(problems.natural(200, 8, 8), torch.uint8, (-1.0, 1.0))
    away = torch.randn(10, data.shape[1], generator=problems.generator(8), dtype=torch.float64)
    points = length * away / away.norm(dim=1, keepdim=True)
    # Where one row has all, and where the noise reaches as far as the query.
    sigma = (0.002, 1.0, length / 100, length, 10 * length)
    check(problems.from_stored(data, points, sigma, query), asked)


@EACH_ASKED
@EACH_QUERY
@pytest.mark.parametrize("alpha", [0.0, 1e-30, 1e-6, 1e-3, 1e3, 1e6, 1e30])
def test_huge_and_tiny_signal_scales(
    alpha: float, query: torch.dtype, asked: tuple[bool, torch.dtype]
) -> None:
    data = problems.encode(problems.natural(200, 8, 9), torch.uint8, (-1.0, 1.0))
    features = data.shape[1]
    # Where sigma is nothing beside alpha, a float64 query is not as near to a row as sigma is.
    levels = (0.3 * alpha, 3.0 * alpha, 80.0 * alpha) if alpha else ()
    for sigma in (*levels, 1.0) if alpha < 1e9 else levels:
        noise = torch.randn(6, features, generator=problems.generator(9), dtype=torch.float64)

        def make(values: Tensor, sigma: float = sigma, noise: Tensor = noise) -> Tensor:
            return alpha * values[:6] + sigma * noise

        check(problems.from_stored(data, make, sigma, query, alpha=alpha), asked)


# ---- Sizes ---------------------------------------------------------------------------------------


@EACH_QUERY
def test_million_features_do_not_overflow(query: torch.dtype) -> None:
    """All-white rows and a query that is the largest there can be in every feature."""
    features = 1_000_000
    data = torch.full((6, features), 255, dtype=torch.uint8)
    data[1, ::2] = 254
    data[2] = 0
    data[3, : features // 2] = 0
    data[4, 0] = 0
    ends = torch.tensor([1.0, -1.0, 1e6]).double()
    points = ends[:, None].expand(-1, features)
    sigma = (1000.0, 80.0, 1e6)
    problem = problems.from_stored(data, points, sigma, query, value_range=EXACT_RANGE)
    keeps_promise(ask(problem, ALL), defined(problem, ALL), problem)


@EACH_ASKED
@EACH_QUERY
@pytest.mark.parametrize("features", [1, 3072])
def test_single_row_is_the_answer_to_everything(
    features: int, query: torch.dtype, asked: tuple[bool, torch.dtype]
) -> None:
    data = torch.randint(0, 256, (1, features), generator=problems.generator(10)).to(torch.uint8)
    sigma = (0.0, 0.002, 1.0, 80.0, 1e4)
    check(problems.from_stored(data, problems.noised(sigma, 10, 10), sigma, query), asked)


# ---- Bad input, and whether the checks see ------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        (1.0, 1.0),
        (0.0, -0.0),
        (1.0, -1.0),
        (math.nan, 1.0),
        (0.0, math.nan),
        (-math.inf, 1.0),
        (0.0, math.inf),
        # Its width, or a stored unit of it, is no number.
        (-1.7e308, 1.7e308),
        (0.0, 5e-324),
    ],
)
def test_value_range_that_is_none_is_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"^value_range must be .*, got \("):
        TrainingSet(torch.zeros(2, 3, dtype=torch.uint8), value_range=bad)


@pytest.mark.parametrize(("part", "quantity"), [(0, "mean"), (1, "logsumexp")])
def test_two_promises_of_error_are_seen(part: int, quantity: str) -> None:
    problem = problems.PROBLEMS["images_mid_noise"](0, torch.uint8, torch.float32)
    want = defined(problem, ALL)
    got = list(ask(problem, ALL))
    keeps_promise(tuple(got), want, problem)
    planted = 2 * accuracy.PROMISES[quantity].tolerance(want[part].flatten()[:1])
    got[part] = got[part].clone()
    got[part].view(-1)[0] += planted[0] if part else 2e-5
    with pytest.raises(AssertionError, match=quantity):
        keeps_promise(tuple(got), want, problem)
