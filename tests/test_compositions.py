from __future__ import annotations

import math
import pickle

import pytest
import torch

from diffgen import schedules
from diffgen.compositions import hybrid, mixture
from diffgen.sampling import sample


def tens(x, sigma, class_labels=None):
    return 10 * x if class_labels is None else 10 * x + class_labels[:, None]


def halves(x, sigma, class_labels=None):
    return x / 2 if class_labels is None else x / 2 - class_labels[:, None]


def unused(*_):
    raise AssertionError("must not be called")


@pytest.mark.parametrize(
    "sigma", [2.0, torch.tensor(2.0, dtype=torch.float64), torch.full((3,), 2)]
)
def test_hybrid_asks_one_denoiser_at_one_level(sigma):
    x = torch.randn(3, 4)
    assert torch.equal(hybrid(tens, unused, 2.0)(x, sigma), tens(x, sigma))
    assert torch.equal(hybrid(unused, halves, 2.5)(x, sigma), halves(x, sigma))


@pytest.mark.parametrize("shape", [(5,), (5, 1), (1, 5)])
def test_hybrid_switches_sample_by_sample(shape):
    sigma = torch.tensor([3.0, 0.1, 1.0, 0.999, 80.0])
    seen = {}

    def listening(name, denoiser):
        def call(x, levels, class_labels=None):
            seen[name] = levels.tolist()
            return denoiser(x, levels, class_labels)

        return call

    denoiser = hybrid(listening("first", tens), listening("second", halves), 1.0)
    x = torch.randn(5, 2)
    labels = torch.arange(5.0)
    early = torch.tensor([True, False, True, False, True])[:, None]
    assert torch.equal(denoiser(x, sigma.reshape(shape)), torch.where(early, 10 * x, x / 2))
    expected = torch.where(early, 10 * x + labels[:, None], x / 2 - labels[:, None])
    assert torch.equal(denoiser(x, sigma.reshape(shape), labels), expected)
    assert seen == {
        "first": sigma.double()[[0, 2, 4]].tolist(),
        "second": sigma.double()[[1, 3]].tolist(),
    }


def test_hybrid_limits_are_its_two_denoisers():
    x = torch.randn(3, 4)
    sigma = torch.tensor([0.0, 1.0, 100.0])
    assert torch.equal(hybrid(tens, unused, 0.0)(x, sigma), 10 * x)
    assert torch.equal(hybrid(unused, halves, math.inf)(x, sigma), x / 2)
    assert hybrid(tens, unused, 1.0)(x[:0], sigma[:0]).shape == (0, 4)


def test_hybrid_passes_gradients_to_every_row():
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    denoiser = hybrid(tens, halves, 1.0)
    denoiser(x, torch.tensor([0.5, 2.0, 0.5])).sum().backward()
    assert x.grad[:, 0].tolist() == [0.5, 10.0, 0.5]


def test_sampling_with_a_hybrid_switches_on_the_way():
    levels = {"first": [], "second": []}

    def recording(name):
        def denoiser(x, sigma):
            levels[name].append(float(sigma))
            return x * 0

        return denoiser

    denoiser = hybrid(recording("first"), recording("second"), 1.0)
    sigmas = schedules.karras(10)
    sample(denoiser, (2, 3), sigmas)
    assert levels["first"] + levels["second"] == sigmas[:-1].tolist()
    assert min(levels["first"]) >= 1.0 > max(levels["second"])


@pytest.mark.parametrize("weight", [0.25, torch.tensor(0.25), torch.full((3, 1), 0.25)])
def test_mixture_is_the_weighted_mean(weight):
    x = torch.randn(3, 4)
    denoised = mixture(tens, halves, weight)(x, 1.0)
    # Three float32 roundings of terms up to 10 |x|.
    torch.testing.assert_close(denoised, 0.75 * 10 * x + 0.25 * x / 2, rtol=0, atol=4 * 2**-24 * 40)
    assert denoised.dtype == torch.float32


def test_mixture_weight_is_per_sample():
    x = torch.ones(3, 2)
    denoised = mixture(tens, halves, torch.tensor([0.0, 0.5, 1.0]))(x, 1.0)
    assert denoised[:, 0].tolist() == [10.0, 5.25, 0.5]


def test_mixture_limits_ask_one_denoiser():
    x = torch.randn(3, 4)
    for zero, one in ((0, 1), (0.0, 1.0)):
        assert torch.equal(mixture(tens, unused, zero)(x, 1.0), 10 * x)
        assert torch.equal(mixture(unused, halves, one)(x, 1.0), x / 2)


def test_mixture_extrapolates_and_passes_labels_and_gradients():
    x = torch.ones(2, 1, requires_grad=True)
    labels = torch.tensor([0.0, 1.0])
    denoised = mixture(halves, tens, 2.0)(x, 1.0, labels)
    assert denoised[:, 0].tolist() == [19.5, 22.5]
    denoised.sum().backward()
    assert x.grad[:, 0].tolist() == [19.5, 19.5]


def test_mixture_promotes_types():
    denoised = mixture(lambda x, s: x.double(), lambda x, s: x, 0.5)(torch.ones(2, 1), 1.0)
    assert denoised.dtype == torch.float64


def test_compositions_nest_and_pickle():
    denoiser = hybrid(mixture(tens, halves, 0.5), halves, 1.0)
    copy = pickle.loads(pickle.dumps(denoiser))
    x = torch.randn(2, 3)
    sigma = torch.tensor([2.0, 0.5])
    assert torch.equal(copy(x, sigma), denoiser(x, sigma))


def test_bad_arguments_are_refused():
    for switch in (-1.0, math.nan):
        with pytest.raises(ValueError, match="switch_sigma must be at least 0, got"):
            hybrid(tens, halves, switch)
    for weight in (math.nan, math.inf, torch.tensor([0.5, math.nan])):
        with pytest.raises(ValueError, match="weight must be finite, got"):
            mixture(tens, halves, weight)
    with pytest.raises(ValueError, match="weight must have 1 or 3 elements, got 2"):
        mixture(tens, halves, torch.zeros(2))(torch.zeros(3, 1), 1.0)
    with pytest.raises(ValueError, match="sigma must have 1 or 3 elements, got 2"):
        hybrid(tens, halves, 1.0)(torch.zeros(3, 1), torch.ones(2))
