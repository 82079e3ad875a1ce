"""Compiled graphs: one op in one graph, forward and backward, and what must raise there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.autograd.forward_ad as forward_ad
from op_cases import arguments, product_arguments, view_of
from torch import Tensor

from diffgen import functional
from diffgen.functional import Moments

VIEW = view_of(7, 6, weights=True)
QUERY, SIGMA = arguments(VIEW, batch=4, backend="")[:2]
FLIP = (2, 3)
NO_TRANSFORM = r"torch\.func transforms and forward-mode derivatives"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def moments(query: Tensor, sigma: Tensor, **options: Any) -> Moments:
    return functional.moments(VIEW, query, sigma, backend="reference", **options)


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(function, **{"fullgraph": True, "backend": "aot_eager", **options})


def gradients(function: Callable[..., Moments]) -> tuple[Tensor | None, Tensor | None]:
    query, sigma = QUERY.clone().requires_grad_(), SIGMA.clone().requires_grad_()
    outputs = function(query, sigma)
    (outputs.mean.square().sum() + outputs.logsumexp.sum()).backward()
    return query.grad, sigma.grad


@pytest.mark.parametrize("flip", [None, FLIP])
@pytest.mark.parametrize("functionals", [False, True])
def test_a_full_graph_gives_the_same_values_and_gradients(flip: Any, functionals: bool) -> None:
    def call(query: Tensor, sigma: Tensor) -> Moments:
        return moments(query, sigma, flip=flip, functionals=functionals, top_k=2)

    graph = compiled(call)
    for one, other in zip(graph(QUERY, SIGMA), call(QUERY, SIGMA), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(gradients(graph), gradients(call), strict=True):
        assert torch.equal(one, other)


def test_inductor_gives_the_same_gradients() -> None:
    # Inductor may contract to FMA: a few roundings of float64 in sums of six terms.
    for one, other in zip(
        gradients(compiled(moments, backend="inductor")), gradients(moments), strict=True
    ):
        torch.testing.assert_close(
            one, other, rtol=1e-6 if one.dtype == torch.float32 else 1e-14, atol=1e-14
        )


def test_the_batch_is_dynamic() -> None:
    graph = compiled(lambda query, sigma: moments(query, sigma).mean, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (4, 2, 9):
            query, sigma = arguments(VIEW, batch=batch, backend="")[:2]
            query.requires_grad_()
            mean = graph(query, sigma)
            assert torch.equal(mean, moments(query, sigma).mean)
            mean.sum().backward()
            assert query.grad is not None


def test_the_batch_becomes_dynamic_by_itself_after_one_change() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    graph = torch.compile(
        lambda query, sigma: moments(query, sigma).mean, fullgraph=True, backend=counter
    )
    for batch in (4, 2, 9, 17, 3):
        graph(*arguments(VIEW, batch=batch, backend="")[:2])
    assert counter.frame_count == 2


def test_the_covariance_product_compiles() -> None:
    asked = product_arguments(VIEW, batch=4, backend="reference")

    def call(query: Tensor, mean: Tensor, logsumexp: Tensor, v: Tensor) -> Tensor:
        return functional.covariance_product(
            VIEW, query, SIGMA, None, None, None, mean, logsumexp, v, backend="reference"
        )[0]

    values = (QUERY, *asked[12:15])
    assert torch.equal(compiled(call)(*values), call(*values))
    query = QUERY.clone().requires_grad_()
    output = compiled(call)(query, *values[1:])
    with pytest.raises(RuntimeError, match="covariance product has no derivative"):
        output.sum().backward()


def test_other_fields_raise_when_a_gradient_is_asked() -> None:
    graph = compiled(lambda query: moments(query, SIGMA, functionals=True, top_k=1))
    for field in ("functionals", "top_distances"):
        query = QUERY.clone().requires_grad_()
        with pytest.raises(RuntimeError, match="have no derivative"):
            getattr(graph(query), field).sum().backward()


def test_second_derivatives_are_refused() -> None:
    query = QUERY.double().requires_grad_()
    logsumexp = compiled(lambda q: moments(q, SIGMA).logsumexp)(query)
    with pytest.raises(RuntimeError, match="double backward"):
        (gradient,) = torch.autograd.grad(logsumexp.sum(), query, create_graph=True)
        gradient.sum().backward()


TRANSFORMS: dict[str, Callable[[Tensor], Any]] = {
    "jvp": lambda x: torch.func.jvp(lambda q: moments(q, SIGMA).mean, (x,), (x,)),
    "grad": torch.func.grad(lambda q: moments(q, SIGMA).mean.sum()),
    "vmap": torch.func.vmap(lambda q: moments(q[None], SIGMA[:1]).mean),
    "jacfwd": torch.func.jacfwd(lambda q: moments(q, SIGMA).mean),
    "mirrored jvp": lambda x: torch.func.jvp(
        lambda q: moments(q, SIGMA, flip=FLIP).mean, (x,), (x,)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_inside_a_full_graph_raises(name: str) -> None:
    with pytest.raises(Exception, match=NO_TRANSFORM):
        compiled(TRANSFORMS[name])(QUERY)


@pytest.mark.parametrize("name", ["jvp", "vmap"])
@pytest.mark.filterwarnings("ignore")
def test_a_transform_inside_a_broken_graph_is_right(name: str) -> None:
    actual = compiled(TRANSFORMS[name], fullgraph=False)(QUERY)
    torch.testing.assert_close(actual, TRANSFORMS[name](QUERY), rtol=0, atol=0)


@pytest.mark.parametrize("compiled_before", [False, True])
def test_forward_mode_through_a_compiled_function_raises(compiled_before: bool) -> None:
    graph = compiled(lambda query: moments(query, SIGMA).mean)
    if compiled_before:
        graph(QUERY)
    with pytest.raises(Exception, match=NO_TRANSFORM), forward_ad.dual_level():
        graph(forward_ad.make_dual(QUERY, QUERY))


def test_export_holds_the_op() -> None:
    class Denoises(torch.nn.Module):
        def forward(self, query: Tensor, sigma: Tensor) -> Tensor:
            return moments(query, sigma).mean

    exported = torch.export.export(Denoises(), (QUERY, SIGMA))
    targets = [str(node.target) for node in exported.graph.nodes]
    assert targets.count("diffgen.moments.default") == 1
    assert torch.equal(exported.module()(QUERY, SIGMA), moments(QUERY, SIGMA).mean)
