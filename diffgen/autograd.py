r"""Derivatives of the two ops, and the way in for callers.

With logits ``l_i = log_weight_i - r_i / (2 s^2)``, ``r_i = |x - a y_i|^2``, weights
``w = softmax(l)``, mean ``m``, ``L = logsumexp(l)`` and ``rho_i = r_i - |x - a m|^2``:

    dm = (a / s^2) Cov_w(y) dx + Cov_w(y, rho) ds / s^3
    dL = -(x - a m) . dx / s^2 + (|x - a m|^2 + E_w rho) ds / s^3

so that the covariance product is all that either mode needs. ``L`` is differentiated in terms of
the mean, which makes its second derivatives right; those of the mean need third moments, which no
op returns, and raise. What has no derivative raises or is NaN, never zero.

In eager mode ``MomentsFunction`` carries backward, forward and batching rules, and is entered only
when something asks for them. Dynamo cannot trace a function with a forward rule, so compiled code
holds the op itself, which meets its backward rule at the Autograd key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd as BelowAutograd

from diffgen import ops
from diffgen.backends.registry import Moments
from diffgen.checks import check_no_gradient

Outputs = TypeVar("Outputs", bound=tuple[Tensor, ...])

NUM_PROBLEM_TENSORS = 10
"""Leading tensor arguments of both ops: query, sigma, alpha, ..., class_offsets."""

NO_ALPHA = "alpha has no derivative: divide x and sigma by it instead"
NO_SET = "the training set has no derivative: the ops differentiate in query and sigma only"
NO_FIELD = (
    "entropy, effective_sample_size, trace_covariance and top_distances have no derivative: "
    "the ops differentiate mean and logsumexp only; detach the field, or x before asking for it"
)
NO_SECOND = (
    "the covariance product has no derivative, so the posterior mean has no second derivative "
    "(that of logsumexp in x exists); detach the first derivative"
)
NO_TRANSFORM = (
    "torch.func transforms and forward-mode derivatives are not supported inside torch.compile "
    "or on torch.ops.diffgen directly: apply them to the uncompiled function"
)


def transforming() -> bool:
    """Whether a ``torch.func`` transform or a forward-mode level is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass through any of the tensors is being recorded."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def moments(
    query: Tensor,
    sigma: Tensor,
    alpha: Tensor | None,
    labels: Tensor | None,
    exclude: Tensor | None,
    data: Tensor,
    norms: Tensor,
    log_weights: Tensor | None,
    order: Tensor | None,
    class_offsets: Tensor | None,
    scale: float,
    offset: float,
    functionals: bool,
    top_k: int,
    mean_dtype: torch.dtype,
    backend: str,
    check_values: bool,
    store: str = "",
) -> Moments:
    """The moments op, differentiable in ``query`` and ``sigma``.

    Args are those of ``torch.ops.diffgen.moments``. Where a derivative is asked, the mean is
    computed in float64 and rounded after, so that derivatives start from the unrounded one.

    Raises:
        ValueError: If ``alpha`` requires a gradient.
        RuntimeError: If a transform is active inside ``torch.compile``.
    """
    check_no_gradient(alpha)
    problem = (
        query,
        sigma,
        alpha,
        labels,
        exclude,
        data,
        norms,
        log_weights,
        order,
        class_offsets,
    )
    options = (scale, offset, functionals, top_k)
    compiling = torch.compiler.is_compiling()
    if transforming():
        if compiling:
            raise RuntimeError(NO_TRANSFORM)
    elif compiling:
        return ops.MOMENTS(*problem, *options, mean_dtype, backend, check_values, store)
    elif not needs_gradient(query, sigma, data):
        with BelowAutograd():
            return ops.MOMENTS(*problem, *options, mean_dtype, backend, check_values, store)
    wide = (*problem, *options, torch.float64, backend, check_values, store)
    mean, *others = apply(MomentsFunction, wide)
    return (mean.to(mean_dtype), *others)


def covariance_product(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The covariance product op; asking for its derivative raises.

    Args are those of ``torch.ops.diffgen.covariance_product``.

    Raises:
        ValueError: If ``alpha`` requires a gradient.
        RuntimeError: If a transform is active inside ``torch.compile``.
    """
    check_no_gradient(arguments[2])
    compiling = torch.compiler.is_compiling()
    if transforming():
        if compiling:
            raise RuntimeError(NO_TRANSFORM)
    elif compiling:
        return ops.COVARIANCE_PRODUCT(*arguments)
    elif not needs_gradient(*tensors_of(arguments)):
        with BelowAutograd():
            return ops.COVARIANCE_PRODUCT(*arguments)
    return apply(CovarianceFunction, arguments)  # type: ignore[no-any-return]


def apply(function: Any, arguments: Sequence[Any]) -> Any:
    """The outputs of an ``autograd.Function``, whose ``apply`` has no type."""
    return function.apply(*arguments)


def tensors_of(arguments: tuple[Any, ...]) -> list[Tensor]:
    """The tensors among an op's arguments."""
    return [argument for argument in arguments if isinstance(argument, Tensor)]


def _refuse_inputs(asked: Iterable[bool]) -> None:
    """Raises where a derivative is asked of alpha, the first argument, or one after it."""
    alpha, *others = asked
    if alpha:
        raise RuntimeError(NO_ALPHA)
    if any(others):
        raise RuntimeError(NO_SET)


def _own(outputs: Outputs) -> Outputs:
    """The outputs, none of them a view: a view cannot be given a tangent of its own."""
    owned = tuple(output.clone() if output._is_view() else output for output in outputs)
    return owned  # type: ignore[return-value]


class _Saved:
    """The saved tensors of a moments call, in float64, and its covariance product."""

    def __init__(self, ctx: Any) -> None:
        *self.tensors, self.mean, self.logsumexp = ctx.saved_tensors
        self.scale, self.offset, self.backend, self.store = ctx.settings
        query: Tensor = self.tensors[0]
        self.sigma: Tensor = self.tensors[1]
        alpha: Tensor | None = self.tensors[2]
        self.alpha = torch.ones_like(self.sigma) if alpha is None else alpha
        self.residual: Tensor = query.to(torch.float64) - self.alpha[:, None] * self.mean  # (B, D)

    def product(self, v: Tensor, radial: Tensor | None) -> tuple[Tensor, Tensor]:
        return covariance_product(
            *self.tensors,
            self.scale,
            self.offset,
            self.mean,
            self.logsumexp,
            v,
            radial,
            self.backend,
            False,
            self.store,
        )

    def mean_square(self, moment: Tensor) -> Tensor:
        """``E_w |x - a y|^2``, ``(B,)``."""
        return self.residual.square().sum(1) + moment[:, 1]


def pull_back(
    ctx: Any, mean_gradient: Tensor | None, logsumexp_gradient: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of query and sigma, and None for every other argument."""
    wants_query, wants_sigma, *others = ctx.needs_input_grad
    _refuse_inputs(others)
    saved = _Saved(ctx)
    sigma = saved.sigma
    query_gradient = torch.zeros_like(saved.residual)
    sigma_gradient = torch.zeros_like(sigma)
    if mean_gradient is not None or (logsumexp_gradient is not None and wants_sigma):
        v = torch.zeros_like(saved.mean) if mean_gradient is None else mean_gradient
        product, moment = saved.product(v, None)
        if mean_gradient is not None:
            query_gradient = product * (saved.alpha / sigma**2)[:, None]
            sigma_gradient = moment[:, 0] / sigma**3
        if logsumexp_gradient is not None:
            slope = saved.mean_square(moment) / sigma**3
            sigma_gradient = sigma_gradient + logsumexp_gradient * slope
    if logsumexp_gradient is not None:
        factor = (logsumexp_gradient / sigma**2)[:, None]
        query_gradient = query_gradient - factor * saved.residual
    return (
        query_gradient.to(saved.tensors[0].dtype) if wants_query else None,
        sigma_gradient if wants_sigma else None,
        *(None for _ in others),
    )


def push_forward(
    ctx: Any, query_tangent: Tensor | None, sigma_tangent: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tangents of mean and logsumexp."""
    saved = _Saved(ctx)
    sigma = saved.sigma
    v = torch.zeros_like(saved.mean)
    radial = None
    logsumexp_tangent = torch.zeros_like(sigma)
    if query_tangent is not None:
        tangent = query_tangent.to(torch.float64)
        v = (saved.alpha / sigma**2)[:, None] * tangent
        logsumexp_tangent = -(saved.residual * tangent).sum(1) / sigma**2
    if sigma_tangent is not None:
        radial = sigma_tangent / sigma**3
    product, moment = saved.product(v, radial)
    if radial is not None:
        logsumexp_tangent = logsumexp_tangent + radial * saved.mean_square(moment)
    return product, logsumexp_tangent


class MomentsFunction(torch.autograd.Function):
    """The moments op with its derivatives; the mean must be asked for in float64."""

    @staticmethod
    def forward(*arguments: Any) -> Moments:
        """The op's outputs."""
        with BelowAutograd():
            return _own(ops.MOMENTS(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Moments) -> None:
        """Keeps the problem, mean and logsumexp."""
        saved = (*inputs[:NUM_PROBLEM_TENSORS], *output[:2])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        store = inputs[ops.MOMENTS_STORE] if len(inputs) > ops.MOMENTS_STORE else ""
        ctx.settings = (inputs[10], inputs[11], inputs[15], store)
        ctx.widths = (output[2].shape[1], output[4].shape[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of query and sigma; raises for fields without one."""
        if any(gradient is not None for gradient in gradients[2:]):
            raise RuntimeError(NO_FIELD)
        return pull_back(ctx, *gradients[:2])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        """Tangents of mean and logsumexp; NaN for fields without one."""
        _refuse_inputs(isinstance(tangent, Tensor) for tangent in tangents[2:])
        mean, logsumexp = push_forward(ctx, *tangents[:2])
        # A tangent cannot be refused before it is read: NaN is what cannot pass unseen.
        functionals, distances = (
            torch.full_like(logsumexp, torch.nan)[:, None].expand(-1, width) for width in ctx.widths
        )
        return mean, logsumexp, functionals.clone(), None, distances.clone()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        """The added dimension is folded into the queries."""
        folded = ops.fold(info.batch_size, in_dims, arguments, ops.QUERY_ARGUMENTS)
        return ops.unfold(info.batch_size, apply(MomentsFunction, folded)), (0,) * 5


class CovarianceFunction(torch.autograd.Function):
    """The covariance product op, whose derivatives raise."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        """The op's outputs."""
        with BelowAutograd():
            return _own(ops.COVARIANCE_PRODUCT(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keeps nothing."""
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> None:
        """Raises."""
        raise RuntimeError(NO_SECOND)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        """Raises."""
        raise RuntimeError(NO_SECOND)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        """The added dimension is folded into the queries."""
        places = ops.QUERY_ARGUMENTS + ops.PRODUCT_ARGUMENTS
        folded = ops.fold(info.batch_size, in_dims, arguments, places)
        return ops.unfold(info.batch_size, apply(CovarianceFunction, folded)), (0,) * 2
