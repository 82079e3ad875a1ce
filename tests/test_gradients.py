"""Derivatives in every mode: right, or refused with a message; never a silent zero."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import cpu_backends
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from op_cases import arguments, product_arguments, view_of
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from diffgen import functional, ops
from diffgen.functional import Moments

COUNT, FEATURES, BATCH = 7, 3, 4
VIEW = view_of(COUNT, FEATURES, storage=torch.float64, weights=True)
QUERY, SIGMA, ALPHA = arguments(VIEW, batch=BATCH, backend="", alpha=True, dtype=torch.float64)[:3]
TANGENT = torch.randn(QUERY.shape, generator=torch.Generator().manual_seed(3)).double()
SIGMA_TANGENT = torch.linspace(-1, 1, BATCH, dtype=torch.float64)
BACKENDS = cpu_backends.USABLE

# Both sides are float64 sums of 7 terms of size about 1, and the second derivatives multiply by
# 1 / sigma^4 <= 16: about 10 * 16 * 2^-52. The eager backend refines to 1e-9 relative at worst.
CLOSE = {"rtol": 1e-8, "atol": 1e-11}

NO_SECOND = "covariance product has no derivative"
NO_FIELD = "have no derivative"


def moments(query: Tensor, sigma: Tensor, alpha: Tensor | None = None, **options: Any) -> Moments:
    options = {"backend": "reference", **options}
    return functional.moments(VIEW, query, sigma, alpha, **options)


def dense(query: Tensor, sigma: Tensor, alpha: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and logsumexp in differentiable torch operations."""
    assert VIEW.log_weights is not None
    scaled = VIEW.data if alpha is None else alpha[:, None, None] * VIEW.data
    squares = (query[:, None] - scaled).square().sum(-1)
    logits = VIEW.log_weights - squares / (2 * sigma[:, None] ** 2)
    # Spelled out: torch.logsumexp cannot be differentiated backward over forward.
    logsumexp = logits.exp().sum(1).log()
    return (logits - logsumexp[:, None]).exp() @ VIEW.data, logsumexp


def mean_of(query: Tensor, sigma: Tensor = SIGMA) -> Tensor:
    return moments(query, sigma).mean


def logsumexp_of(query: Tensor, sigma: Tensor = SIGMA) -> Tensor:
    return moments(query, sigma).logsumexp


def dense_mean(query: Tensor, sigma: Tensor = SIGMA) -> Tensor:
    return dense(query, sigma)[0]


def dense_logsumexp(query: Tensor, sigma: Tensor = SIGMA) -> Tensor:
    return dense(query, sigma)[1]


PAIRS = {"mean": (mean_of, dense_mean), "logsumexp": (logsumexp_of, dense_logsumexp)}
EACH_PAIR = pytest.mark.parametrize(("ours", "theirs"), PAIRS.values(), ids=PAIRS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_first_derivatives_pass_gradcheck_in_both_modes(backend: str, alpha: Tensor | None) -> None:
    def call(query: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(moments(query, sigma, alpha, backend=backend)[:2])

    inputs = (QUERY.clone().requires_grad_(), SIGMA.clone().requires_grad_())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.autograd.gradcheck(
            call,
            inputs,
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
        )


def test_first_derivatives_of_a_mirrored_set_pass_gradcheck() -> None:
    def call(query: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(moments(query, sigma, flip=(FEATURES,))[:2])

    inputs = (QUERY.clone().requires_grad_(), SIGMA.clone().requires_grad_())
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)


@EACH_PAIR
def test_reverse_mode_agrees_with_the_dense_formula(ours: Any, theirs: Any) -> None:
    results = []
    for function in (ours, theirs):
        query, sigma = QUERY.clone().requires_grad_(), SIGMA.clone().requires_grad_()
        output = function(query, sigma)
        output.backward(torch.linspace(-1, 1, output.numel()).double().reshape(output.shape))
        results.append((query.grad, sigma.grad))
    torch.testing.assert_close(results[0], results[1], **CLOSE)


@EACH_PAIR
def test_forward_mode_agrees_with_the_dense_formula(ours: Any, theirs: Any) -> None:
    primals, tangents = (QUERY, SIGMA), (TANGENT, SIGMA_TANGENT)
    expected = jvp(theirs, primals, tangents)
    torch.testing.assert_close(jvp(ours, primals, tangents), expected, **CLOSE)
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, primals, tangents)
        tangent = forward_ad.unpack_dual(ours(*duals)).tangent
    torch.testing.assert_close(tangent, expected[1], **CLOSE)


@EACH_PAIR
@pytest.mark.parametrize("argument", [0, 1])
def test_one_tangent_alone_is_enough(ours: Any, theirs: Any, argument: int) -> None:
    point, tangent = ((QUERY, TANGENT), (SIGMA, SIGMA_TANGENT))[argument]

    def at(function: Any) -> Tensor:
        def one(value: Tensor) -> Tensor:
            return function(value, SIGMA) if argument == 0 else function(QUERY, value)

        return jvp(one, (point,), (tangent,))[1]

    torch.testing.assert_close(at(ours), at(theirs), **CLOSE)


@EACH_PAIR
@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_jacobians_agree_with_the_dense_formula(
    ours: Any, theirs: Any, argument: int, transform: Any
) -> None:
    actual = transform(ours, argnums=argument)(QUERY, SIGMA)
    torch.testing.assert_close(actual, jacrev(theirs, argnums=argument)(QUERY, SIGMA), **CLOSE)


def single(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda query, sigma: function(query[None], sigma[None])[0]


COMPOSITIONS: dict[str, Callable[[Any], Tensor]] = {
    "vmap": lambda f: vmap(single(f))(QUERY, SIGMA),
    "vmap over sigma": lambda f: vmap(lambda s: f(QUERY, s))(torch.stack((SIGMA, 2 * SIGMA))),
    "vmap over queries": lambda f: vmap(f, in_dims=(1, None))(
        torch.stack((QUERY, -QUERY), 1), SIGMA
    ),
    "vmap of vmap": lambda f: vmap(vmap(single(f)))(
        torch.stack((QUERY, -QUERY)), torch.stack((SIGMA, 2 * SIGMA))
    ),
    "vmap of grad": lambda f: vmap(grad(lambda q, s: single(f)(q, s).sum()))(QUERY, SIGMA),
    "vmap of grad in sigma": lambda f: vmap(grad(lambda q, s: single(f)(q, s).sum(), argnums=1))(
        QUERY, SIGMA
    ),
    "vmap of vjp": lambda f: vmap(lambda g: vjp(lambda q: f(q, SIGMA), QUERY)[1](g)[0])(
        torch.stack((torch.ones_like(f(QUERY, SIGMA)), 2 * f(QUERY, SIGMA)))
    ),
    "vmap of jvp": lambda f: vmap(lambda t: jvp(lambda q: f(q, SIGMA), (QUERY,), (t,))[1])(
        torch.stack((TANGENT, 2 * TANGENT))
    ),
    "jvp of vmap": lambda f: jvp(lambda q: vmap(single(f))(q, SIGMA), (QUERY,), (TANGENT,))[1],
    "grad of vmap": lambda f: grad(lambda q: vmap(single(f))(q, SIGMA).square().sum())(QUERY),
    "grad of vmap in sigma": lambda f: grad(lambda s: vmap(single(f))(QUERY, s).square().sum())(
        SIGMA
    ),
    "vmap of jacfwd": lambda f: vmap(jacfwd(single(f)))(QUERY, SIGMA),
    "vmap of jacrev": lambda f: vmap(jacrev(single(f)))(QUERY, SIGMA),
}


@EACH_PAIR
@pytest.mark.parametrize("composition", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_compositions_agree_with_the_dense_formula(
    ours: Any, theirs: Any, composition: Any
) -> None:
    torch.testing.assert_close(composition(ours), composition(theirs), **CLOSE)


def total(function: Any) -> Callable[[Tensor], Tensor]:
    return lambda query: function(query, SIGMA).sum()


def double_backward(function: Any) -> Tensor:
    return torch.autograd.functional.hessian(total(function), QUERY)


def forward_over_backward(function: Any) -> Tensor:
    with forward_ad.dual_level():
        query = forward_ad.make_dual(QUERY.clone().requires_grad_(), TANGENT)
        (gradient,) = torch.autograd.grad(total(function)(query), query)
        return forward_ad.unpack_dual(gradient).tangent


def backward_over_forward(function: Any) -> Tensor:
    query = QUERY.clone().requires_grad_()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(
            total(function)(forward_ad.make_dual(query, TANGENT))
        ).tangent
        return torch.autograd.grad(tangent, query)[0]


SECOND: dict[str, Callable[[Any], Tensor]] = {
    "double backward": double_backward,
    "hessian": lambda f: hessian(total(f))(QUERY),
    "jacrev of jacrev": lambda f: jacrev(jacrev(total(f)))(QUERY),
    "jacfwd of jacrev": lambda f: jacfwd(jacrev(total(f)))(QUERY),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(total(f)))(QUERY),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(total(f)))(QUERY),
    "grad of grad": lambda f: grad(lambda q: grad(total(f))(q).square().sum())(QUERY),
    "jvp of grad": lambda f: jvp(grad(total(f)), (QUERY,), (TANGENT,))[1],
    "grad of jvp": lambda f: grad(lambda q: jvp(total(f), (q,), (TANGENT,))[1])(QUERY),
    "vmap of hessian": lambda f: vmap(hessian(lambda q, s: single(f)(q, s).sum()))(QUERY, SIGMA),
    "forward over backward": forward_over_backward,
    "backward over forward": backward_over_forward,
    "query, then sigma": lambda f: jacfwd(lambda s: grad(lambda q: f(q, s).sum())(QUERY))(SIGMA),
    "sigma, then query": lambda f: jacrev(lambda q: grad(lambda s: f(q, s).sum())(SIGMA))(QUERY),
    "sigma twice": lambda f: hessian(lambda s: f(QUERY, s).sum())(SIGMA),
}
REFUSED_OF_LOGSUMEXP = {
    # The tangent of the logsumexp comes from the same pass as that of the mean.
    "jacfwd of jacfwd",
    "backward over forward",
    # The slope in sigma is a second moment, whose derivative needs third ones.
    "sigma, then query",
    "sigma twice",
}


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_of_logsumexp_are_right_or_refused(name: str) -> None:
    expected = SECOND[name](dense_logsumexp)
    if name in REFUSED_OF_LOGSUMEXP:
        with pytest.raises(RuntimeError, match=NO_SECOND):
            SECOND[name](logsumexp_of)
    else:
        torch.testing.assert_close(SECOND[name](logsumexp_of), expected, **CLOSE)


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_of_the_mean_are_refused(name: str) -> None:
    assert SECOND[name](dense_mean).abs().max() > 1e-3
    with pytest.raises(RuntimeError, match=NO_SECOND):
        SECOND[name](mean_of)


def test_the_second_derivative_of_logsumexp_passes_gradgradcheck() -> None:
    query = QUERY.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda q: moments(q, SIGMA, ALPHA).logsumexp, (query,))


FIELDS: dict[str, Callable[[Moments], Tensor]] = {
    "entropy": lambda m: m.functionals[:, 0],
    "effective_sample_size": lambda m: m.functionals[:, 1],
    "trace_covariance": lambda m: m.functionals[:, 2],
    "top_distances": lambda m: m.top_distances[:, 0],
}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("flip", [None, (FEATURES,)])
@pytest.mark.parametrize("argument", [0, 1])
def test_other_fields_raise_in_backward_and_are_nan_in_forward(
    field: Any, flip: Any, argument: int
) -> None:
    def call(value: Tensor) -> Tensor:
        query, sigma = (value, SIGMA) if argument == 0 else (QUERY, value)
        return field(moments(query, sigma, functionals=True, top_k=1, flip=flip))

    point = (QUERY, SIGMA)[argument]
    with pytest.raises(RuntimeError, match=NO_FIELD):
        call(point.clone().requires_grad_()).sum().backward()
    with pytest.raises(RuntimeError, match=NO_FIELD):
        grad(lambda value: call(value).sum())(point)
    with pytest.raises(RuntimeError, match=NO_FIELD):
        jacrev(call)(point)
    assert jvp(call, (point,), (torch.ones_like(point),))[1].isnan().all()
    assert jacfwd(call)(point).isnan().any()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(point, torch.ones_like(point))
        assert forward_ad.unpack_dual(call(dual)).tangent.isnan().all()


@pytest.mark.parametrize("flip", [None, (FEATURES,)])
def test_fields_beside_do_not_disturb_the_gradients_of_mean_and_logsumexp(flip: Any) -> None:
    def call(query: Tensor, **options: Any) -> Tensor:
        outputs = moments(query, SIGMA, flip=flip, **options)
        return outputs.mean.square().sum() + outputs.logsumexp.sum()

    expected = grad(call)(QUERY)
    query = QUERY.clone().requires_grad_()
    call(query, functionals=True, top_k=2).backward()
    torch.testing.assert_close(query.grad, expected, **CLOSE)
    _, tangent = jvp(lambda q: call(q, functionals=True, top_k=2), (QUERY,), (TANGENT,))
    torch.testing.assert_close(tangent, (expected * TANGENT).sum(), **CLOSE)


def test_alpha_is_refused() -> None:
    alpha = ALPHA.clone().requires_grad_()
    with pytest.raises(ValueError, match="alpha must not require a gradient"):
        moments(QUERY, SIGMA, alpha)
    with pytest.raises(ValueError, match="alpha must not require a gradient"):
        grad(lambda a: moments(QUERY, SIGMA, a).mean.sum())(ALPHA)
    with pytest.raises(RuntimeError, match="alpha has no derivative"):
        jvp(lambda a: moments(QUERY, SIGMA, a).mean, (ALPHA,), (ALPHA,))
    with torch.no_grad():
        assert not moments(QUERY, SIGMA, alpha).mean.requires_grad


def test_the_training_set_is_refused() -> None:
    asked = arguments(VIEW, batch=BATCH, backend="reference", dtype=torch.float64)

    def mean(data: Tensor) -> Tensor:
        view = VIEW.__class__(data, 1.0, 0.0, VIEW.norms)
        return functional.moments(view, QUERY, SIGMA, backend="reference").mean

    with pytest.raises(RuntimeError, match="training set has no derivative"):
        mean(asked[5].clone().requires_grad_()).sum().backward()
    with pytest.raises(RuntimeError, match="training set has no derivative"):
        jvp(mean, (asked[5],), (asked[5],))


PRODUCT = product_arguments(VIEW, batch=BATCH, backend="reference", dtype=torch.float64)


def product_of(query: Tensor = QUERY, v: Tensor = TANGENT) -> Tensor:
    mean, logsumexp = PRODUCT[12:14]
    return functional.covariance_product(
        VIEW, query, SIGMA, None, None, None, mean, logsumexp, v, backend="reference"
    )[0]


@pytest.mark.parametrize("argument", ["query", "v"])
def test_the_covariance_product_refuses_every_derivative(argument: str) -> None:
    point = {"query": QUERY, "v": TANGENT}[argument]

    def call(value: Tensor) -> Tensor:
        return product_of(**{argument: value})

    with pytest.raises(RuntimeError, match=NO_SECOND):
        call(point.clone().requires_grad_()).sum().backward()
    with pytest.raises(RuntimeError, match=NO_SECOND):
        grad(lambda value: call(value).sum())(point)
    with pytest.raises(RuntimeError, match=NO_SECOND):
        jvp(call, (point,), (point,))
    with pytest.raises(RuntimeError, match=NO_SECOND), forward_ad.dual_level():
        call(forward_ad.make_dual(point, point))
    batched = vmap(call)(torch.stack((point, point)))
    torch.testing.assert_close(batched[1], call(point), rtol=0, atol=0)


@pytest.mark.parametrize("op", [ops.MOMENTS, ops.COVARIANCE_PRODUCT], ids=["moments", "product"])
def test_the_ops_themselves_never_give_a_silent_tangent(op: Any) -> None:
    asked = PRODUCT
    if op is ops.MOMENTS:
        asked = arguments(VIEW, batch=BATCH, backend="reference", dtype=torch.float64)

    def call(query: Tensor) -> Tensor:
        return op(query, *asked[1:])[0]

    refused = "not supported|no derivative"
    with pytest.raises(RuntimeError, match=refused):
        jvp(call, (QUERY,), (TANGENT,))
    with pytest.raises(RuntimeError, match=refused):
        vmap(grad(lambda q: call(q.expand(BATCH, -1)).sum()))(QUERY)
    with pytest.raises(RuntimeError, match=refused), forward_ad.dual_level():
        call(forward_ad.make_dual(QUERY, TANGENT))


def test_the_moments_op_itself_has_the_gradient_of_the_function() -> None:
    asked = arguments(VIEW, batch=BATCH, backend="reference", dtype=torch.float64)
    gradients = []
    for call in (lambda q: ops.MOMENTS(q, *asked[1:])[0], lambda q: mean_of(q).float()):
        query = QUERY.clone().requires_grad_()
        call(query).sum().backward()
        gradients.append(query.grad)
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_gradients_have_the_type_and_shape_of_the_input(dtype: torch.dtype) -> None:
    query = QUERY.clone().to(dtype).requires_grad_()
    sigma = SIGMA.clone().requires_grad_()
    outputs = moments(query, sigma)
    assert outputs.mean.dtype == dtype
    (outputs.mean.double().sum() + outputs.logsumexp.sum()).backward()
    assert query.grad is not None
    assert sigma.grad is not None
    assert (query.grad.dtype, query.grad.shape) == (dtype, query.shape)
    assert (sigma.grad.dtype, sigma.grad.shape) == (torch.float64, sigma.shape)


def test_the_gradient_of_logsumexp_comes_from_the_unrounded_mean() -> None:
    """Near a lone point the score is (mean - x) / sigma^2, and mean - x is 1e-6: with the mean
    rounded to float32 at 1, half a unit of which is 6e-8, it would be off by 3e-2 relative."""
    data = torch.tensor([[1.0 + 1e-6]], dtype=torch.float64)
    view = VIEW.__class__(data, 1.0, 0.0, data.square().sum(1))
    query = torch.ones(1, 1, requires_grad=True)
    sigma = torch.full((1,), 1e-3, dtype=torch.float64)
    outputs = functional.moments(view, query, sigma, backend="reference")
    assert outputs.mean.dtype == torch.float32
    outputs.logsumexp.sum().backward()
    assert query.grad is not None
    # One rounding of the gradient to float32.
    torch.testing.assert_close(query.grad.item(), 1.0, rtol=2e-7, atol=0)


def test_values_are_those_without_a_gradient() -> None:
    plain = moments(QUERY.float(), SIGMA, mean_dtype=torch.float64, functionals=True, top_k=2)
    query = QUERY.float().requires_grad_()
    recorded = moments(query, SIGMA, mean_dtype=torch.float64, functionals=True, top_k=2)
    for one, other in zip(plain, recorded, strict=True):
        assert torch.equal(one, other)
    assert recorded.mean.requires_grad
    assert not plain.mean.requires_grad
    with torch.no_grad():
        assert not moments(query, SIGMA).mean.requires_grad


def test_a_bad_row_gives_nan_gradients_to_itself_alone() -> None:
    query = QUERY.clone()
    query[1, 0] = torch.nan
    query.requires_grad_()
    outputs = moments(query, SIGMA)
    (outputs.mean.sum() + outputs.logsumexp.sum()).backward()
    assert query.grad is not None
    assert query.grad[1].isnan().all()
    assert query.grad[[0, 2, 3]].isfinite().all()
