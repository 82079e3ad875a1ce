"""The reference against closed forms and 60-digit arithmetic."""

from __future__ import annotations

import dataclasses
import math

import mpmath
import problems
import pytest
import torch
from torch import Tensor

from diffgen.backends import reference
from diffgen.backends.problem import CovarianceInputs, Problem

UNIT = 2.0**-53


def exact(problem: Problem, index: int) -> dict[str, object]:
    """The definition for one query in the precision of the surrounding mpmath context."""
    mp = mpmath.mpf
    ids = range(len(problem.data)) if problem.rows is None else problem.rows.tolist()
    left_out = -1 if problem.exclude is None else int(problem.exclude[index])
    prior = {
        i: mp(0) if problem.log_weights is None else mp(problem.log_weights[i].item()) for i in ids
    }
    ids = [i for i in ids if i != left_out and prior[i] > -mpmath.inf]
    scale, offset = mp(problem.scale), mp(problem.offset)
    x = [mp(value) for value in problem.query[index].tolist()]
    alpha = mp(1) if problem.alpha is None else mp(problem.alpha[index].item())
    sigma = mp(problem.sigma[index].item())
    rows = {i: [offset + scale * mp(u) for u in problem.data[i].tolist()] for i in ids}
    squared = {
        i: mpmath.fsum((a - alpha * b) ** 2 for a, b in zip(x, rows[i], strict=True)) for i in ids
    }
    logits = {i: prior[i] - squared[i] / (2 * sigma**2) for i in ids}
    total = mpmath.fsum(mpmath.exp(logit) for logit in logits.values())
    w = {i: mpmath.exp(logits[i]) / total for i in ids}
    mean = [mpmath.fsum(w[i] * rows[i][d] for i in ids) for d in range(len(x))]
    about = {i: [a - b for a, b in zip(rows[i], mean, strict=True)] for i in ids}
    return {
        "rows": rows,
        "w": w,
        "about": about,
        "squared": squared,
        "mean": mean,
        "base": mpmath.fsum((a - alpha * b) ** 2 for a, b in zip(x, mean, strict=True)),
        "logsumexp": mpmath.log(total),
        "entropy": -mpmath.fsum(v * mpmath.log(v) for v in w.values() if v > 0),
        "effective_sample_size": 1 / mpmath.fsum(v * v for v in w.values()),
        "trace": mpmath.fsum(w[i] * mpmath.fsum(c * c for c in about[i]) for i in ids),
    }


def small(name: str, storage: torch.dtype, queries: int, features: int) -> Problem:
    """A named problem cut down to what 60 digits can do quickly."""
    made = problems.PROBLEMS[name](1, storage, torch.float64)
    data = made.data[:, :features].contiguous()
    return dataclasses.replace(
        made,
        query=made.query[:queries, :features].contiguous(),
        sigma=made.sigma[:queries],
        alpha=None if made.alpha is None else made.alpha[:queries],
        exclude=None if made.exclude is None else made.exclude[:queries],
        data=data,
        norms=problems.decode(data, made.scale, made.offset).square().sum(1),
    )


CASES = [
    ("images_low_noise", torch.float32),
    ("images_mid_noise", torch.uint8),
    ("near_duplicates", torch.uint8),
    ("bisectors", torch.float64),
    ("bisectors", torch.uint8),
    ("bisectors_of_near_duplicates", torch.float32),
    ("far_bisectors", torch.float32),
    ("weighted_class", torch.bfloat16),
    ("shifted_data", torch.float16),
    ("images_high_noise", torch.float64),
]


@pytest.mark.parametrize(("name", "storage"), CASES)
def test_moments_agree_with_sixty_digits(name: str, storage: torch.dtype) -> None:
    problem = small(name, storage, 4, 12)
    mean, logsumexp, fields, _, distances = reference.moments(problem, True, 2, torch.float64)
    largest = float(problems.decode(problem.data, problem.scale, problem.offset).abs().max())
    for index in range(len(problem.query)):
        with mpmath.workdps(60):
            want = exact(problem, index)
            smallest = min(want["squared"].values())
            reach = float(problem.query[index].norm()) + math.sqrt(12) * largest
            sigma = float(problem.sigma[index])
            # The excess over the nearest row: |y_i - y_n| |2 x - y_i - y_n| with D + 4 roundings,
            # half of it over sigma^2 a logit; the decoding of uint8 rounds y twice.
            eta = 16 * UNIT * (math.sqrt(12) * 2 * largest * 2 * reach) / (2 * sigma**2)
            eta += 16 * UNIT
            assert abs(want["logsumexp"] - logsumexp[index].item()) <= (
                eta + 16 * UNIT * float(smallest) / (2 * sigma**2) + 16 * UNIT * 12
            )
            for got, value in zip(mean[index].tolist(), want["mean"], strict=True):
                assert abs(value - got) <= 2 * largest * math.expm1(2 * eta) + 16 * UNIT * largest
            names = ("entropy", "effective_sample_size", "trace")
            for got, key in zip(fields[index].tolist(), names, strict=True):
                # Entropy: |dH| <= eta E|log w + H| <= eta (2 log N + ...); the others are
                # relative, with the square of a weight and the rounding of the decoded rows.
                slack = 40 * (eta + 16 * UNIT) * max(1.0, float(want[key]))
                assert abs(want[key] - got) <= slack * max(1.0, largest**2)
            nearest = sorted(want["squared"].values())[:2]
            for got, value in zip(distances[index].tolist(), nearest, strict=True):
                assert abs(mpmath.sqrt(value) - got) <= 16 * UNIT * reach


@pytest.mark.parametrize(("name", "storage"), CASES[1:4])
def test_covariance_product_agrees_with_sixty_digits(name: str, storage: torch.dtype) -> None:
    problem = small(name, storage, 4, 12)
    mean, logsumexp, *_ = reference.moments(problem, False, 0, torch.float64)
    v = torch.randn(mean.shape, generator=problems.generator(0), dtype=torch.float64)
    radial = torch.linspace(-1, 1, len(v), dtype=torch.float64)
    product, moment = reference.covariance_product(
        problem, CovarianceInputs(mean, logsumexp, v, radial)
    )
    for index in range(len(v)):
        with mpmath.workdps(60):
            want = exact(problem, index)
            total, moments, size = [mpmath.mpf(0)] * 12, [mpmath.mpf(0)] * 2, mpmath.mpf(0)
            for i, w in want["w"].items():
                about = want["about"][i]
                rho = want["squared"][i] - want["base"]
                along = mpmath.fsum(a * b for a, b in zip(about, v[index].tolist(), strict=True))
                factor = w * (along + radial[index].item() * rho)
                total = [t + factor * a for t, a in zip(total, about, strict=True)]
                moments = [moments[0] + w * along * rho, moments[1] + w * rho]
                size += (
                    w * max(map(abs, about)) * (abs(along) + abs(rho))
                    + w * abs(rho) * abs(along)
                    + w * abs(rho)
                )
            sigma = float(problem.sigma[index])
            # A logit is taken against logsumexp, so |l| rounds too.
            eta = 16 * UNIT * (abs(float(want["logsumexp"])) + 4 * 12 * 4 / (2 * sigma**2) + 16)
            limit = math.expm1(2 * eta) * float(size) + 1e-14
            for got, value in zip(product[index].tolist(), total, strict=True):
                assert abs(value - got) <= limit
            for got, value in zip(moment[index].tolist(), moments, strict=True):
                assert abs(value - got) <= limit


def one(values: list[list[float]], query: list[float], sigma: float, **extra: object) -> Problem:
    data = torch.tensor(values, dtype=torch.float64)
    return problems.from_stored(
        data, torch.tensor([query], dtype=torch.float64), sigma, torch.float64, **extra
    )


def test_single_row_is_the_answer_at_any_noise() -> None:
    problem = one([[0.5, -0.25]], [1.5, -0.25], 0.1)
    mean, logsumexp, fields, ids, distances = reference.moments(problem, True, 1, torch.float64)
    assert mean.tolist() == [[0.5, -0.25]]
    assert logsumexp.item() == pytest.approx(-1 / 0.02, rel=4 * UNIT)
    assert fields.tolist() == [[0.0, 1.0, 0.0]]
    assert ids.tolist() == [[0]]
    assert distances.tolist() == [[1.0]]


@pytest.mark.parametrize("sigma", [0.002, 0.3, 5.0])
def test_two_points_give_a_logistic(sigma: float) -> None:
    at = 0.25 * sigma**2
    mean, logsumexp, fields, *_ = reference.moments(
        one([[-1.0], [1.0]], [at], sigma), True, 0, torch.float64
    )
    # Logits differ by 2 x / sigma^2 = 0.5; their error is the rounding of x and of few products.
    p = 1 / (1 + math.exp(-0.5))
    assert mean.item() == pytest.approx(2 * p - 1, rel=1e-14)
    assert fields[0].tolist() == pytest.approx(
        [-p * math.log(p) - (1 - p) * math.log(1 - p), 1 / (p**2 + (1 - p) ** 2), 4 * p * (1 - p)],
        rel=1e-14,
    )
    nearest = -((1 - at) ** 2) / (2 * sigma**2)
    assert logsumexp.item() == pytest.approx(nearest + math.log1p(math.exp(-0.5)), rel=1e-14)


def test_zero_noise_averages_the_nearest_rows_by_weight() -> None:
    rows = [[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, 0.5]]
    problem = one(rows, [0.0, 0.0], 0.0, weights=[1.0, 3.0, 1.0, 0.0])
    mean, logsumexp, fields, ids, _ = reference.moments(problem, True, 3, torch.float64)
    assert mean.tolist() == [[-0.5, 0.0]]
    assert logsumexp.item() == -math.inf
    assert fields[0, 2].item() == pytest.approx(0.75)
    assert ids.tolist() == [[0, 1, 2]]


def test_zero_noise_on_coincident_rows_is_the_log_of_their_weight() -> None:
    problem = one([[1.0], [1.0], [2.0]], [1.0], 0.0, weights=[2.0, 3.0, 7.0])
    assert reference.moments(problem, False, 0, torch.float64)[1].item() == pytest.approx(
        math.log(5)
    )


@pytest.mark.parametrize(("sigma", "alpha"), [(math.inf, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_without_information_the_mean_is_the_prior_mean(sigma: float, alpha: float) -> None:
    problem = one([[1.0], [4.0]], [9.0], sigma, weights=[1.0, 2.0], alpha=alpha)
    assert reference.moments(problem, False, 0, torch.float64)[0].item() == pytest.approx(3.0)


def test_chunks_of_queries_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problems.PROBLEMS["weighted_class"](0, torch.float32, torch.float32)
    whole = reference.moments(problem, True, 2, torch.float64)
    monkeypatch.setattr(reference, "_ELEMENTS", 1)
    for part, expected in zip(
        reference.moments(problem, True, 2, torch.float64), whole, strict=True
    ):
        torch.testing.assert_close(part, expected, rtol=1e-13, atol=1e-13)


def test_uint8_is_decoded_in_float64() -> None:
    data = torch.tensor([[77]], dtype=torch.uint8)
    problem = problems.from_stored(data, torch.zeros(1, 1), 1.0, torch.float32)
    mean: Tensor = reference.moments(problem, False, 0, torch.float64)[0]
    assert mean.item() == pytest.approx(-1 + 77 * 2 / 255, abs=UNIT)
