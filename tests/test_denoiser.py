from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from exact import exact, images, noised
from torch import nn

from diffgen.backends import registry
from diffgen.denoiser import EmpiricalDenoiser
from diffgen.training_set import TrainingSet

# The contract: the mean is within 1e-5 before the one rounding to the query's type, and a float64
# query is right to 1e-9 relative. float32 rounding adds 2^-24 of a value below 1, which is less
# than a thousandth of the former: it is part of the 1e-5 here.
PROMISE = 1e-5
PROMISE_FLOAT64 = 1e-9

SIGMAS = (0.002, 0.05, 0.5, 2.0, 80.0)


def denoiser_of(data: torch.Tensor, **options: object) -> EmpiricalDenoiser:
    return EmpiricalDenoiser(TrainingSet(data, **options))


def assert_mean(actual: torch.Tensor, expected: torch.Tensor) -> None:
    bound = PROMISE_FLOAT64 if actual.dtype == torch.float64 else PROMISE
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=bound)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("query_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("storage", [torch.uint8, torch.float32, torch.float64])
def test_denoiser_is_the_posterior_mean(storage, query_dtype, sigma):
    data = images(30)
    if storage == torch.uint8:
        data = ((data + 1) * 127.5).round().to(torch.uint8)
        values = -1 + data.double() * 2 / 255
    else:
        values = data = data.to(storage)
    x = noised(values, sigma, 5).to(query_dtype)
    denoised = denoiser_of(data)(x, sigma)
    assert denoised.dtype == query_dtype and denoised.shape == x.shape
    if storage == torch.uint8:
        # Bytes have the one promise; in float64 it is that of the score, min(sigma, 1) of it.
        bound = PROMISE * min(sigma, 1.0) if query_dtype == torch.float64 else PROMISE
        error = (denoised.double() - exact(x, values, sigma).mean).abs()
        assert error.amax() <= bound
    else:
        assert_mean(denoised, exact(x, values, sigma).mean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_denoiser_rounds_once_to_a_half_type(dtype):
    data = images(20)
    x = noised(data, 0.5, 4).to(dtype)
    denoised = denoiser_of(data)(x, 0.5)
    expected = exact(x, data, 0.5).mean
    assert denoised.dtype == dtype
    # One rounding is half a unit in the last place, eps / 2 relative; before it the promise.
    error = (denoised.double() - expected).abs()
    assert bool((error <= torch.finfo(dtype).eps / 2 * expected.abs() + PROMISE).all())


def test_denoiser_uses_sigma_in_float64():
    # Between 0 and 1 the mean is sigmoid((x - 1/2) / sigma^2), here sigmoid(1). In float32 0.3 is
    # off by 4e-8, so sigma^2 by 8e-8, and the mean by 0.2 of that: 16 times the promise.
    data = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    x = torch.tensor([[0.59]], dtype=torch.float64)
    sigma = torch.tensor(0.3, dtype=torch.float64)
    assert_mean(denoiser_of(data)(x, sigma), torch.sigmoid((x - 0.5) / sigma**2))
    rounded = sigma.float().double()
    with pytest.raises(AssertionError):
        assert_mean(denoiser_of(data)(x, sigma), torch.sigmoid((x - 0.5) / rounded**2))


@pytest.mark.parametrize(
    "sigma",
    [0.5, 1, torch.tensor(0.5, dtype=torch.float64), torch.tensor([0.5]), torch.tensor([[[[2]]]])],
)
def test_denoiser_takes_one_sigma_in_any_shape(sigma):
    data = images(10)
    x = noised(data, 0.5, 3)
    assert_mean(denoiser_of(data)(x, sigma), exact(x, data, float(sigma)).mean)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1, 1)])
def test_denoiser_takes_a_sigma_for_each_query(shape):
    data = images(10)
    levels = [0.1, 1.0, 10.0]
    x = noised(data, 0.5, 3)
    denoised = denoiser_of(data)(x, torch.tensor(levels, dtype=torch.float64).reshape(shape))
    for b, sigma in enumerate(levels):
        assert_mean(denoised[b : b + 1], exact(x[b : b + 1], data, sigma).mean)


def test_denoiser_at_sigma_zero_averages_the_nearest_points_by_weight():
    data = torch.tensor([[-1.0], [1.0], [5.0]])
    denoised = denoiser_of(data, weights=torch.tensor([1.0, 3.0, 1.0]))(
        torch.tensor([[0.0], [0.1]]), 0.0
    )
    # Shares 1/4 and 3/4 of -1 and 1; then the nearest alone.
    assert denoised.flatten().tolist() == pytest.approx([0.5, 1.0], abs=PROMISE)


def test_denoiser_at_infinite_sigma_is_the_weighted_average_of_the_set():
    data, weights = images(7), torch.arange(7.0)
    denoised = denoiser_of(data, weights=weights)(images(2, seed=5), torch.inf)
    average = (weights.reshape(7, 1, 1, 1) * data).double().sum(0) / weights.sum()
    assert_mean(denoised, average.expand(2, 3, 4, 4))


def test_weights_are_multiplicities():
    data, counts = images(6), torch.tensor([1, 2, 3, 1, 0, 2])
    x = noised(data, 0.7, 4)
    weighted = denoiser_of(data, weights=counts.double())(x, 0.7)
    repeated = denoiser_of(data.repeat_interleave(counts, 0))(x, 0.7)
    # Each is within the promise of the same number.
    torch.testing.assert_close(weighted, repeated, rtol=0, atol=2 * PROMISE)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_flips_are_the_explicitly_doubled_set(sigma):
    data = images(9)
    doubled = torch.cat([data, data.flip(-1)])
    x = noised(doubled, sigma, 5)
    assert_mean(denoiser_of(data, flip=True)(x, sigma), exact(x, doubled, sigma).mean)


@pytest.mark.parametrize("one_hot", [False, True])
def test_a_class_is_a_denoiser_over_its_points(one_hot):
    data, labels = images(20), torch.arange(20) % 3
    classes = torch.tensor([2, 0, -1, 1, 2])
    x = noised(data, 0.8, 5)
    if one_hot:
        given = torch.zeros(5, 3)
        given[torch.tensor([0, 1, 3, 4]), classes[classes >= 0]] = 1.0
    else:
        given = classes
    denoised = denoiser_of(data, labels=labels)(x, 0.8, given)
    for b, label in enumerate(classes.tolist()):
        members = data if label < 0 else data[labels == label]
        assert_mean(denoised[b : b + 1], exact(x[b : b + 1], members, 0.8).mean)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("with_classes", [False, True])
def test_exclude_is_a_denoiser_over_the_set_without_the_point(with_classes, flip):
    data, labels = images(8), torch.arange(8) % 2
    everything = torch.cat([data, data.flip(-1)]) if flip else data
    all_labels = torch.cat([labels, labels]) if flip else labels
    exclude = torch.tensor([3, -1, 0, len(everything) - 1])
    classes = torch.tensor([1, 0, 1, -1]) if with_classes else None
    x = noised(data, 0.4, 4)
    denoised = denoiser_of(data, labels=labels, flip=flip)(x, 0.4, classes, exclude=exclude)
    for b in range(4):
        keep = torch.arange(len(everything)) != exclude[b]
        if classes is not None and classes[b] >= 0:
            keep &= all_labels == classes[b]
        assert_mean(denoised[b : b + 1], exact(x[b : b + 1], everything[keep], 0.4).mean)


def test_leave_one_out_never_returns_the_point_itself():
    data = images(12)
    denoiser = denoiser_of(data)
    itself = denoiser(data, 0.01)
    others = denoiser(data, 0.01, exclude=torch.arange(12))
    assert_mean(itself, data)
    assert float((others - data).flatten(1).norm(dim=1).min()) > 1.0


def test_labels_of_no_classes_mean_the_whole_set():
    data = images(5)
    x = noised(data, 0.5, 2)
    denoiser = denoiser_of(data)
    assert torch.equal(denoiser(x, 0.5, torch.zeros(2, 0)), denoiser(x, 0.5))


def test_unknown_keywords_are_ignored():
    data = images(5)
    x = noised(data, 0.5, 2)
    denoiser = denoiser_of(data)
    assert torch.equal(denoiser(x, 0.5, force_fp32=True, augment_labels=None), denoiser(x, 0.5))


def test_denoiser_takes_strided_queries_and_empty_batches():
    data = images(5)
    x = noised(data, 0.5, 4)
    denoiser = denoiser_of(data)
    strided = x.to(memory_format=torch.channels_last)
    assert torch.equal(denoiser(strided, 0.5), denoiser(x, 0.5))
    assert torch.equal(denoiser(x.expand(4, 3, 4, 4)[::2], 0.5), denoiser(x, 0.5)[::2])
    assert denoiser(x[:0], 0.5).shape == (0, 3, 4, 4)
    assert denoiser(x[:0], torch.zeros(0)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_query_that_is_not_finite_spoils_its_own_row_alone(bad):
    data = images(10)
    x = noised(data, 0.5, 4)
    expected = exact(x, data, 0.5).mean
    x[2, 0, 0, 0] = bad
    denoised = denoiser_of(data)(x, 0.5)
    assert bool(denoised[2].isnan().all())
    rest = torch.tensor([0, 1, 3])
    assert_mean(denoised[rest], expected[rest])


@pytest.mark.parametrize(
    ("sigma", "options", "message"),
    [
        (-0.5, {}, "sigma"),
        (torch.tensor([0.5, torch.nan]), {}, "sigma.*index 1"),
        (torch.tensor([0.5, 0.5, 0.5]), {}, "sigma"),
        (0.5, {"class_labels": torch.tensor([0, 3])}, "class_labels.*3.*index 1"),
        (0.5, {"class_labels": torch.tensor([-2, 0])}, "class_labels.*-2.*index 0"),
        (0.5, {"class_labels": torch.tensor([0, 1, 1])}, "class_labels"),
        (0.5, {"class_labels": torch.full((2, 3), 0.5)}, "class_labels"),
        (0.5, {"class_labels": torch.tensor([0, 1])}, "class_labels.*1.*none"),
        (0.5, {"exclude": torch.tensor([0, 6])}, "exclude.*6.*index 1"),
        (0.5, {"exclude": torch.tensor([-2, 0])}, "exclude.*-2.*index 0"),
        (0.5, {"exclude": torch.tensor([0])}, "exclude"),
        (
            0.5,
            {"class_labels": torch.tensor([0, 2]), "exclude": torch.tensor([0, 5])},
            "exclude leaves no training point for query 1",
        ),
    ],
)
def test_a_bad_value_or_shape_is_an_error(sigma, options, message):
    labels = torch.tensor([0, 0, 0, 0, 0, 2])
    denoiser = denoiser_of(images(6), labels=labels)
    with pytest.raises(ValueError, match=message):
        denoiser(images(2), sigma, **options)


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.zeros(2, 3, 4, 5), ValueError),
        (torch.zeros(3, 4, 4), ValueError),
        (torch.zeros(()), ValueError),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), TypeError),
        (torch.zeros(2, 3, 4, 4, dtype=torch.complex64), TypeError),
        ([[0.0]], TypeError),
        (torch.zeros(2, 3, 4, 4, device="meta"), ValueError),
    ],
)
def test_a_bad_query_is_an_error(x, error):
    with pytest.raises(error, match="x must"):
        denoiser_of(images(3))(x, 0.5)


@pytest.mark.parametrize(
    ("sigma", "options"),
    [
        ("0.5", {}),
        (torch.tensor(1j), {}),
        (0.5, {"class_labels": torch.tensor([0.0, 1.0])}),
        (0.5, {"class_labels": [0, 1]}),
        (0.5, {"exclude": torch.tensor([0.0, 1.0])}),
    ],
)
def test_a_bad_type_is_an_error(sigma, options):
    denoiser = denoiser_of(images(4), labels=torch.tensor([0, 0, 0, 1]))
    with pytest.raises(TypeError):
        denoiser(images(2), sigma, **options)


def test_without_value_checks_a_bad_value_gives_a_row_of_nan():
    data, labels = images(6), torch.arange(6) % 2
    denoiser = EmpiricalDenoiser(TrainingSet(data, labels=labels), check_values=False)
    x = noised(data, 0.5, 3)
    good = denoiser(x, 0.5)
    for sigma, options in (
        (torch.tensor([0.5, -1.0, 0.5]), {}),
        (0.5, {"exclude": torch.tensor([-1, 9, -1])}),
        (0.5, {"class_labels": torch.tensor([-1, 7, -1])}),
    ):
        denoised = denoiser(x, sigma, **options)
        assert bool(denoised[1].isnan().all()), options
        torch.testing.assert_close(denoised[::2], good[::2], rtol=0, atol=2 * PROMISE)


def test_construction_refuses_what_it_cannot_use():
    with pytest.raises(TypeError, match="TrainingSet, got Tensor"):
        EmpiricalDenoiser(images(3))
    with pytest.raises(ValueError, match=r"backend must be one of .*got 'gpu'"):
        EmpiricalDenoiser(TrainingSet(images(3)), backend="gpu")


def test_a_named_backend_runs(monkeypatch):
    asked = []

    def choose(problem, name, demands):
        asked.append(name)
        return registry.get("reference")

    monkeypatch.setattr(registry, "choose", choose)
    denoiser = EmpiricalDenoiser(TrainingSet(images(5)), backend="cpu:portable")
    x = images(2)
    denoiser(x, 0.5)
    denoiser.posterior(x, 0.5)
    denoiser.covariance_vector_product(x, 0.5, x)
    assert asked == ["cpu:portable"] * 4


def test_module_has_no_state_and_keeps_its_meaning():
    denoiser = denoiser_of(images(5))
    assert list(denoiser.parameters()) == [] and list(denoiser.buffers()) == []
    assert denoiser.state_dict() == {}
    assert denoiser.load_state_dict({}) == ([], [])
    assert denoiser.training and not denoiser.eval().training
    assert denoiser.train(False) is denoiser
    assert denoiser.requires_grad_(False) is denoiser
    assert "EmpiricalDenoiser" in repr(denoiser)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_dtype_conversions_leave_the_set_alone(dtype):
    data = images(6)
    data = ((data + 1) * 127).to(torch.uint8) if dtype == torch.uint8 else data.to(dtype)
    model = nn.ModuleDict({"network": nn.Linear(2, 2), "optimum": denoiser_of(data)})
    optimum = model["optimum"]
    x = noised(images(6), 0.5, 2)
    before = optimum(x, 0.5)
    for convert in (model.half, model.bfloat16, model.double, lambda: model.to(torch.float16)):
        convert()
        assert optimum.training_set.dtype == dtype
        assert torch.equal(optimum(x, 0.5), before)
    assert model["network"].weight.dtype == torch.float16


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_autocast_does_not_reach_the_arithmetic(backend):
    data = images(20)
    x = noised(data, 0.5, 3).requires_grad_()
    denoiser = EmpiricalDenoiser(TrainingSet(data), backend=backend)
    plain = denoiser.posterior(x, 0.5)
    (plain_gradient,) = torch.autograd.grad(plain.mean.square().sum(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = denoiser.posterior(x, 0.5)
        (gradient,) = torch.autograd.grad(inside.mean.square().sum(), x)
    assert inside.mean.dtype == torch.float32
    for name in ("mean", "logsumexp", "score", "trace_covariance"):
        assert torch.equal(getattr(inside, name), getattr(plain, name)), name
    assert torch.equal(gradient, plain_gradient)


def test_to_moves_the_set_to_another_device_and_never_converts_it(monkeypatch):
    moves = []

    def to(self: TrainingSet, device: torch.device) -> TrainingSet:
        moves.append(device)
        return self

    monkeypatch.setattr(TrainingSet, "to", to)
    denoiser = denoiser_of(images(3))
    denoiser.to("cpu").to(torch.float16).float()
    assert moves == []
    nn.Sequential(denoiser).to("meta", torch.float16)
    assert moves == [torch.device("meta")]


def test_deepcopy_shares_the_data():
    data = images(5)
    model = nn.Sequential(denoiser_of(data))
    model[0].extra = [1]
    twin = copy.deepcopy(model)
    assert twin[0] is not model[0]
    assert twin[0].training_set is model[0].training_set
    assert twin[0].extra == [1] and twin[0].extra is not model[0].extra
    x = noised(data, 0.5, 2)
    assert torch.equal(
        twin(torch.zeros(0, 3, 4, 4)) if False else twin[0](x, 0.5), model[0](x, 0.5)
    )
    twin.eval()
    assert model.training


def test_pickle_and_torch_save_keep_the_denoiser():
    data, labels = images(5), torch.tensor([0, 1, 1, 0, 1])
    denoiser = EmpiricalDenoiser(TrainingSet(data, labels=labels), backend="eager").eval()
    x = noised(data, 0.5, 2)
    stream = io.BytesIO()
    torch.save(denoiser, stream)
    stream.seek(0)
    for twin in (
        pickle.loads(pickle.dumps(denoiser)),
        torch.load(stream, weights_only=False),
    ):
        assert torch.equal(twin(x, 0.5, labels[:2]), denoiser(x, 0.5, labels[:2]))
        assert (twin.backend, twin.training, twin.label_dim) == ("eager", False, 2)


def test_attributes_for_samplers():
    denoiser = denoiser_of(images(5), labels=torch.tensor([0, 1, 2, 0, 1]))
    assert (denoiser.sigma_min, denoiser.sigma_max) == (0.0, torch.inf)
    assert (denoiser.img_channels, denoiser.img_resolution, denoiser.label_dim) == (3, 4, 3)
    assert torch.equal(denoiser.round_sigma(torch.tensor([0.1, 7.0])), torch.tensor([0.1, 7.0]))
    flat = denoiser_of(images(5, shape=(7,)))
    assert flat.label_dim == 0 and not hasattr(flat, "img_channels")


@pytest.mark.parametrize("sigma_shape", [(3,), (3, 4)])
def test_sweep_is_the_denoiser_at_each_level(sigma_shape):
    data, labels = images(12), torch.arange(12) % 2
    denoiser = denoiser_of(data, labels=labels)
    x = noised(data, 0.5, 4)
    sigmas = torch.tensor([0.1, 1.0, 10.0]).reshape(3, *[1] * (len(sigma_shape) - 1))
    sigmas = (
        sigmas.expand(sigma_shape) * torch.linspace(1, 2, 4) if len(sigma_shape) == 2 else sigmas
    )
    options = {"class_labels": labels[:4], "exclude": torch.tensor([0, -1, 2, -1])}
    swept = denoiser.sweep(x, sigmas, **options)
    assert swept.shape == (3, 4, 3, 4, 4)
    for level, denoised in zip(sigmas, swept, strict=True):
        # Both are within the promise of the same number.
        expected = denoiser(x, level if level.ndim else float(level), **options)
        torch.testing.assert_close(denoised, expected, rtol=0, atol=2 * PROMISE)


@pytest.mark.parametrize("sigmas", [torch.tensor(1.0), torch.ones(2, 3), torch.ones(2, 2, 1)])
def test_sweep_refuses_other_shapes(sigmas):
    with pytest.raises(ValueError, match=r"sigmas must have shape \(S,\) or \(S, 2\)"):
        denoiser_of(images(3)).sweep(images(2), sigmas)


@pytest.mark.parametrize("flip", [False, True])
def test_covariance_vector_product_is_the_covariance_times_v(flip):
    data = images(15)
    everything = torch.cat([data, data.flip(-1)]) if flip else data
    x, v = noised(data, 0.6, 3), images(3, seed=9)
    product = denoiser_of(data, flip=flip).covariance_vector_product(x, 0.6, v)
    expected = exact(x, everything, 0.6).covariance @ v.double().reshape(3, 48, 1)
    assert product.dtype == torch.float32
    # The covariance has norm at most max|y - m|^2 <= 2^2 D; weights are right to 1e-6 or so, and
    # the mean's 1e-5 enters squared: 1e-5 of |v| is wide, and the smallest product is 0.1.
    torch.testing.assert_close(
        product.double().reshape(3, 48, 1), expected, rtol=1e-4, atol=1e-5 * float(v.norm())
    )


def test_covariance_vector_product_checks_v_and_has_no_derivative():
    denoiser = denoiser_of(images(4))
    with pytest.raises(ValueError, match="v must have the shape of x"):
        denoiser.covariance_vector_product(images(2), 0.5, images(3))
    with pytest.raises(TypeError, match="v must be floating point"):
        denoiser.covariance_vector_product(images(2), 0.5, images(2).long())
    product = denoiser.covariance_vector_product(images(2).requires_grad_(), 0.5, images(2))
    with pytest.raises(RuntimeError, match="derivative"):
        product.sum().backward()


def test_divergence_is_the_trace_of_the_jacobian():
    data = images(10, shape=(5,)).double()
    denoiser = denoiser_of(data)
    x = noised(data, 0.5, 3).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: denoiser(x, 0.5).sum(0), x)  # (D, B, D)
    expected = jacobian.diagonal(dim1=0, dim2=2).sum(1)
    divergence = denoiser.divergence(x, 0.5)
    assert divergence.dtype == torch.float64
    torch.testing.assert_close(divergence, expected, rtol=1e-9, atol=1e-9)


def test_divergence_at_sigma_zero_is_nan_on_points_and_between_them():
    denoiser = denoiser_of(torch.tensor([[-1.0], [1.0]]))
    assert bool(denoiser.divergence(torch.tensor([[0.0], [1.0]]), 0.0).isnan().all())


def test_divergence_has_no_derivative():
    divergence = denoiser_of(images(4)).divergence(images(2).requires_grad_(), 0.5)
    with pytest.raises(RuntimeError, match="derivative"):
        divergence.sum().backward()


@pytest.mark.parametrize("flip", [False, True])
def test_denoiser_is_differentiable_in_x_and_sigma(flip):
    data = images(6, shape=(1, 2, 2)).double()
    denoiser = denoiser_of(data, labels=torch.arange(6) % 2, flip=flip)
    x = noised(data, 0.7, 3).double().requires_grad_()
    sigma = torch.tensor([0.5, 0.8, 2.0], dtype=torch.float64, requires_grad=True)
    labels, exclude = torch.tensor([-1, 0, 1]), torch.tensor([2, -1, 1])
    assert torch.autograd.gradcheck(
        lambda x, sigma: denoiser(x, sigma, labels, exclude=exclude), (x, sigma)
    )


def test_a_gradient_reaches_a_float32_query_and_a_scalar_sigma():
    data = images(8)
    x = noised(data, 0.6, 3).requires_grad_()
    sigma = torch.tensor(0.6, requires_grad=True)
    v = images(3, seed=4)
    denoiser = denoiser_of(data)
    (denoiser(x, sigma) * v).sum().backward()
    product = denoiser.covariance_vector_product(x.detach(), 0.6, v)
    assert x.grad.dtype == torch.float32 and sigma.grad.shape == ()
    # The Jacobian is Cov / sigma^2, and float32 0.6 is off by 4e-8 relative.
    torch.testing.assert_close(x.grad, product / 0.36, rtol=1e-5, atol=1e-5)
    step = 1e-4
    ends = [exact(x.detach(), data, sigma.item() + h).mean for h in (-step, step)]
    slope = ((ends[1] - ends[0]) / (2 * step) * v).sum()
    # Central differences: step^2 times a third derivative, which is below 1e3 at sigma = 0.6.
    torch.testing.assert_close(sigma.grad.double(), slope, rtol=1e-4, atol=1e-4)


def test_denoiser_runs_under_inference_mode_vmap_and_compile():
    data = images(8, shape=(5,)).double()
    denoiser = denoiser_of(data)
    x = noised(data, 0.5, 4).double()
    expected = denoiser(x, 0.5)
    with torch.inference_mode():
        assert torch.equal(denoiser(x, 0.5), expected)
    rows = torch.vmap(lambda row: denoiser(row[None], 0.5)[0])(x)
    torch.testing.assert_close(rows, expected, rtol=0, atol=2 * PROMISE_FLOAT64)
    compiled = torch.compile(denoiser, fullgraph=True, backend="aot_eager")
    x.requires_grad_()
    v = images(4, shape=(5,)).double()
    gradients = [
        torch.autograd.grad((module(x, 0.5) * v).sum(), x)[0] for module in (denoiser, compiled)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_posterior_mean_takes_the_signal_scale():
    data = images(10)
    denoiser = denoiser_of(data, weights=torch.arange(1.0, 11.0))
    weights = torch.arange(1.0, 11.0)
    x = noised(data, 0.5, 3)
    mean = denoiser.posterior_mean(x, 0.4, torch.tensor([0.5]))
    assert mean.dtype == torch.float64
    expected = exact(x, data, 0.5, weights=weights, alpha=0.4).mean
    torch.testing.assert_close(mean, expected, rtol=0, atol=PROMISE)
    average = (weights.double() @ data.double().flatten(1) / weights.sum()).reshape(3, 4, 4)
    torch.testing.assert_close(
        denoiser.posterior_mean(x, 0.0, 1.0), average.expand(3, 3, 4, 4), rtol=0, atol=PROMISE
    )
