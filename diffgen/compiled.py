"""Derivatives of the two ops where they are called as ops: in compiled and exported graphs.

Callers in eager mode reach the functions of ``diffgen.autograd`` above the dispatcher. A compiled
graph holds the op, so its derivative stands at the Autograd key, which the tracing of a graph
passes. What has no derivative cannot be refused there while tracing, because a graph's backward is
traced with a gradient for every output, asked or not: the refusal is an op in the graph, which
lets a zero through.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd as BelowAutograd

from diffgen import ops
from diffgen.autograd import (
    NO_FIELD,
    NO_SECOND,
    NO_TRANSFORM,
    CovarianceFunction,
    MomentsFunction,
    apply,
    needs_gradient,
    pull_back,
    tensors_of,
)
from diffgen.backends.registry import Moments
from diffgen.checks import check_no_gradient

MEAN_DTYPE = 14
"""Place of ``mean_dtype`` among the arguments of the moments op."""

_MOMENTS: Any = ops.MOMENTS
_COVARIANCE_PRODUCT: Any = ops.COVARIANCE_PRODUCT

ops.LIBRARY.define("refuse_gradient(Tensor gradient, str reason) -> Tensor")
REFUSE_GRADIENT = torch.ops.diffgen.refuse_gradient.default


def _refuse_gradient(gradient: Tensor, reason: str) -> Tensor:
    """A float64 zero; raises for a gradient with anything else in it."""
    if bool((gradient != 0).any()):
        raise RuntimeError(reason)
    return gradient.new_zeros((), dtype=torch.float64)


class _CompiledMoments(MomentsFunction):
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        query, *rest = pull_back(ctx, *gradients[:2])
        for gradient in gradients[2:]:
            if gradient is not None and query is not None:
                query = query + REFUSE_GRADIENT(gradient, NO_FIELD).to(query.dtype)
        return query, *rest

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        raise RuntimeError(NO_TRANSFORM)


class _CompiledCovariance(CovarianceFunction):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.inputs = [
            (tensor.shape, tensor.dtype) if isinstance(tensor, Tensor) else None
            for tensor in inputs
        ]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        zero = sum(
            REFUSE_GRADIENT(gradient, NO_SECOND) for gradient in gradients if gradient is not None
        )
        return tuple(
            zero.to(like[1]).expand(like[0]) if needed else None
            for like, needed in zip(ctx.inputs, ctx.needs_input_grad, strict=True)
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise RuntimeError(NO_TRANSFORM)


def _records(arguments: tuple[Any, ...]) -> bool:
    """Whether a backward pass through the call is recorded; raises for what only eager can do."""
    tensors = tensors_of(arguments)
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    ):
        raise RuntimeError(NO_TRANSFORM)
    if not needs_gradient(*tensors):
        return False
    # Inside a transform this is called for one level of it, where a function records another.
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(NO_TRANSFORM)
    check_no_gradient(arguments[2])
    return True


def _moments(keyset: Any, *arguments: Any) -> Moments:
    if _records(arguments):
        wide = list(arguments)
        wide[MEAN_DTYPE] = torch.float64
        mean, *others = apply(_CompiledMoments, wide)
        return mean.to(arguments[MEAN_DTYPE]), *others
    with BelowAutograd():
        return _MOMENTS.redispatch(  # type: ignore[no-any-return]
            keyset & torch._C._after_autograd_keyset, *arguments
        )


def _covariance_product(keyset: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
    if _records(arguments):
        return apply(_CompiledCovariance, arguments)  # type: ignore[no-any-return]
    with BelowAutograd():
        return _COVARIANCE_PRODUCT.redispatch(  # type: ignore[no-any-return]
            keyset & torch._C._after_autograd_keyset, *arguments
        )


ops.LIBRARY.impl("moments", _moments, "Autograd", with_keyset=True)
ops.LIBRARY.impl("covariance_product", _covariance_product, "Autograd", with_keyset=True)
torch.library.register_fake(
    "diffgen::refuse_gradient",
    lambda gradient, reason: gradient.new_zeros((), dtype=torch.float64),
    lib=ops.LIBRARY,
)
ops.LIBRARY.impl("refuse_gradient", _refuse_gradient, "CompositeExplicitAutograd")
