from __future__ import annotations

import math
import pickle

import pytest
import torch

from diffgen.processes import DDPM, EDM, PROCESSES, VE, RectifiedFlow

U = 2.0**-53

EVERY = {
    **{name: make() for name, make in PROCESSES.items()},
    "ddpm_cosine": DDPM("cosine"),
    "ddpm_short": DDPM(torch.linspace(0.001, 0.2, 50)),
    "ddpm_to_pure_noise": DDPM(torch.tensor([0.1, 0.5, 0.5, 1.0])),
}


@pytest.fixture(params=EVERY, ids=str)
def process(request):
    return EVERY[request.param]


def inner_times(process, n=257):
    """Times over the sampling range, whole and fractional, without a last one of pure noise."""
    first, last = process.sampling_range
    times = torch.linspace(first, last, n, dtype=torch.float64)
    return times[process.ratio(times).isfinite()]


def test_ddpm_linear_has_the_published_betas_and_product():
    process = DDPM()
    betas = torch.tensor([1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)], dtype=torch.float64)
    torch.testing.assert_close(process.betas, betas, rtol=4 * U, atol=0)
    # A product of 1,000 factors rounds 1,000 times; the logarithm, up to 10, does so too.
    tolerance = 1000 * (1 + 10) * 2 * U
    torch.testing.assert_close(process.alpha_bar, (1 - betas).cumprod(0), rtol=tolerance, atol=0)
    # The number that every implementation of the linear schedule ends on.
    assert float(process.alpha_bar[-1]) == pytest.approx(4.0358e-5, rel=1e-4)


def test_ddpm_cosine_follows_the_squared_cosine_up_to_its_cap():
    process = DDPM("cosine", num_steps=200)
    for t in (0, 50, 198):
        level = math.cos(((t + 1) / 200 + 0.008) / 1.008 * math.pi / 2) ** 2
        start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        assert float(process.alpha_bar[t]) == pytest.approx(level / start, rel=1e-10)
    assert float(process.betas[-1]) == 0.999


def test_ddpm_scales_are_roots_of_alpha_bar_at_whole_times():
    process = DDPM()
    t = torch.arange(1000)
    # alpha_bar carries one more rounding than its root, and 1 - alpha_bar cancels near 1.
    torch.testing.assert_close(process.alpha(t), process.alpha_bar.sqrt(), rtol=8 * U, atol=0)
    torch.testing.assert_close(
        process.sigma(t).square(), 1 - process.alpha_bar, rtol=8 * U, atol=4 * U
    )


def test_ddpm_sigma_keeps_its_digits_where_alpha_bar_is_nearly_one():
    process = DDPM(torch.tensor([1e-12, 1e-12], dtype=torch.float64))
    # sigma_0^2 = beta_0 exactly; 1 - alpha_bar in float64 would be right to 1e-4 only.
    assert float(process.sigma(0)) == pytest.approx(1e-6, rel=8 * U)


def test_ddpm_keeps_the_variance_between_steps_too():
    for process in (DDPM(), EVERY["ddpm_to_pure_noise"]):
        t = inner_times(process)
        total = process.alpha(t).square() + process.sigma(t).square()
        torch.testing.assert_close(total, torch.ones_like(total), rtol=8 * U, atol=0)


def test_ddpm_interpolates_the_logarithm_of_the_ratio():
    process = DDPM()
    middle = (process.ratio(10) * process.ratio(11)).sqrt()
    torch.testing.assert_close(process.ratio(10.5), middle, rtol=8 * U, atol=0)


def test_ddpm_with_a_last_step_of_pure_noise_has_every_ratio():
    process = EVERY["ddpm_to_pure_noise"]
    assert process.alpha(3) == 0 and process.sigma(3) == 1 and process.ratio(3) == math.inf
    assert process.t_from_ratio(math.inf) == 3
    t = torch.tensor([2.0, 2.25, 2.999], dtype=torch.float64)
    torch.testing.assert_close(process.t_from_ratio(process.ratio(t)), t, rtol=1e-12, atol=0)
    assert bool((process.ratio(t).diff() > 0).all())


def test_other_processes_have_their_formulas():
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    flow, edm, ve = RectifiedFlow(), EDM(), VE(0.01, 100.0)
    assert torch.equal(flow.alpha(t) + flow.sigma(t), torch.ones(3, dtype=torch.float64))
    assert torch.equal(flow.sigma(t), t)
    assert torch.equal(edm.sigma(t), t) and bool((edm.alpha(t) == 1).all())
    expected = torch.tensor([0.01, 0.1, 100.0], dtype=torch.float64)
    torch.testing.assert_close(ve.sigma(t), expected, rtol=16 * U, atol=0)
    assert bool((ve.alpha(t) == 1).all())


def test_ratio_is_sigma_over_alpha_and_increases(process):
    t = inner_times(process)
    ratio = process.ratio(t)
    torch.testing.assert_close(ratio, process.sigma(t) / process.alpha(t), rtol=16 * U, atol=0)
    assert bool((ratio.diff() > 0).all())
    assert bool((process.alpha(t).diff() <= 0).all())


def test_time_comes_back_from_the_ratio(process):
    t = inner_times(process)
    ratio = process.ratio(t)
    back = process.t_from_ratio(ratio)
    # A relative error of the ratio moves t by that error over the slope of log ratio in t.
    slope = (ratio[1:] / ratio[:-1]).log() / t.diff()
    tolerance = 64 * U / slope.min() + 64 * U * t.abs()
    assert bool(((back - t).abs() <= tolerance).all())
    again = process.ratio(back)
    torch.testing.assert_close(again, ratio, rtol=1e-11, atol=0)


def test_flow_time_is_defined_at_both_ends():
    assert RectifiedFlow().t_from_ratio([0.0, math.inf]).tolist() == [0.0, 1.0]
    assert RectifiedFlow().ratio(1) == math.inf


def test_nearest_gives_whole_ddpm_times():
    process = DDPM()
    t = torch.tensor([0, 1, 500, 999])
    for shift in (-0.4, 0.0, 0.4):
        nearest = process.t_from_ratio(process.ratio((t + shift).clamp(0, 999)), nearest=True)
        assert nearest.dtype == torch.int64
        assert torch.equal(nearest, t)
    assert EDM().t_from_ratio(0.3, nearest=True) == 0.3


def test_ratio_out_of_range_is_refused_or_clamped():
    process = DDPM()
    low, high = process.ratio_range
    for ratio in (0.9 * low, 1.1 * high, math.nan):
        with pytest.raises(ValueError, match=r"ratio sigma_t/alpha_t must be in .* got"):
            process.t_from_ratio(ratio)
    assert process.t_from_ratio([0.0, math.inf], clamp=True).tolist() == [0.0, 999.0]
    with pytest.raises(ValueError, match="got nan"):
        process.t_from_ratio(math.nan, clamp=True)


def test_ratio_rounded_to_float32_is_still_in_range(process):
    ends = torch.tensor(process.ratio_range, dtype=torch.float64)
    for up in (1 - 2**-24, 1 + 2**-24):
        times = process.t_from_ratio(ends * up)
        low, high = process.time_range
        assert bool(((times >= low) & (times <= high)).all())


def test_times_accept_numbers_and_tensors_of_any_shape(process):
    first = process.sampling_range[0]
    for t in (
        1,
        1.0,
        torch.tensor(1),
        torch.tensor([[1], [1]]),
        torch.tensor([1.0]).half(),
        [1, 1],
    ):
        for scale in (process.alpha(t), process.sigma(t), process.ratio(t)):
            assert scale.dtype == torch.float64
            assert scale.shape == torch.as_tensor(t).shape
    assert process.alpha(torch.zeros(0)).shape == (0,)
    assert process.sigma(first).ndim == 0


def test_a_time_out_of_range_is_refused_with_its_place():
    with pytest.raises(ValueError, match=r"t must be in \[0, 999\], got 1000 at index 1"):
        DDPM().alpha(torch.tensor([0, 1000]))
    with pytest.raises(ValueError, match=r"t must be in \[0, 1\], got -0.1"):
        RectifiedFlow().sigma(-0.1)
    with pytest.raises(ValueError, match="got nan"):
        EDM().ratio(math.nan)


def test_a_bad_time_in_a_transform_gives_nan_in_its_row(process):
    t = torch.tensor([1.0, -1.0], dtype=torch.float64)
    for scale in (process.alpha, process.sigma, process.ratio):
        assert torch.func.vmap(scale)(t).isnan().tolist() == [False, True] or (
            # Pure noise has no ratio to speak of, but a bad time still shows.
            torch.func.vmap(scale)(t)[1].isnan()
        )


def test_scales_and_times_compile_without_a_graph_break(process):
    def scales(t):
        ratio = process.ratio(t)
        back = process.t_from_ratio(ratio)
        return torch.stack([process.alpha(t), process.sigma(t), ratio, back])

    t = torch.tensor([0.25, 1.0], dtype=torch.float64)
    compiled = torch.compile(scales, fullgraph=True, backend="eager")
    assert torch.equal(compiled(t), scales(t))


def test_times_from_ratios_batch_under_vmap(process):
    ratio = process.ratio(inner_times(process, 9))
    batched = torch.func.vmap(process.t_from_ratio)(ratio)
    assert torch.equal(batched, process.t_from_ratio(ratio))


def test_ratio_range_is_the_ratio_at_the_ends(process):
    assert process.ratio_range == tuple(process.ratio(process.time_range).tolist())


def test_scales_are_differentiable_in_time():
    t = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    for process in (VE(), EDM(), RectifiedFlow(), DDPM()):
        assert torch.autograd.gradcheck(process.sigma, t)


def test_times_run_from_noise_to_data():
    assert DDPM().times(1000).tolist() == list(range(999, -1, -1))
    assert DDPM().times(4).tolist() == [999, 666, 333, 0]
    assert EDM().times(2).tolist() == [80.0, 0.002]
    assert RectifiedFlow().times(1).tolist() == [0.999]


def test_times_refuse_counts_that_the_process_lacks():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        EDM().times(0)
    with pytest.raises(ValueError, match="n must be at most num_steps = 10, got 11"):
        DDPM("cosine", num_steps=10).times(11)


@pytest.mark.parametrize(
    ("betas", "num_steps", "message"),
    [
        ("quadratic", 1000, "betas must be 'linear', 'cosine' or a tensor, got 'quadratic'"),
        ("linear", 1, "num_steps must be at least 2, got 1"),
        (torch.ones(2, 2), 1000, r"betas must be \(T,\) with T >= 2, got shape \(2, 2\)"),
        (torch.tensor([0.1, 0.0]), 1000, r"betas must be in \(0, 1\).*got 0 at 1"),
        (torch.tensor([1.0, 0.1]), 1000, "got 1 at 0"),
        (torch.tensor([0.1, math.nan]), 1000, "got nan at 1"),
        (torch.tensor([0.1, 0.2]), 3, "num_steps must be 2 as betas has, got 3"),
    ],
)
def test_ddpm_refuses_bad_betas(betas, num_steps, message):
    with pytest.raises(ValueError, match=message):
        DDPM(betas, num_steps)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_ve_refuses_bad_ends(ends):
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        VE(*ends)


def test_given_betas_are_copied():
    betas = torch.tensor([0.1, 0.2], dtype=torch.float64)
    process = DDPM(betas)
    betas.fill_(0.5)
    assert process.betas.tolist() == [0.1, 0.2]


def test_processes_pickle_and_print(process):
    copy = pickle.loads(pickle.dumps(process))
    assert repr(copy) == repr(process)
    assert torch.equal(copy.sigma(1), process.sigma(1))
