"""The two ops: schemas, what runs behind them, fake kernels and batching rules.

``torch.ops.diffgen.moments`` returns posterior moments over a training set, and
``torch.ops.diffgen.covariance_product`` the product of the posterior covariance with a vector,
which is their derivative. The backend is chosen inside the op, so that one schema, one fake
kernel and one derivative hold for all of them. ``diffgen.autograd`` registers the derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

import diffgen.backends  # noqa: F401  (fills the registry)
from diffgen import stores
from diffgen.backends import registry
from diffgen.backends.problem import CovarianceInputs, Demands, Problem
from diffgen.backends.registry import Moments
from diffgen.grouping import by_class

Outputs = TypeVar("Outputs")

NAMESPACE = "diffgen"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")

_PROBLEM = (
    "Tensor query, Tensor sigma, Tensor? alpha, Tensor? labels, Tensor? exclude, "
    "Tensor data, Tensor norms, Tensor? log_weights, Tensor? order, Tensor? class_offsets, "
    "float scale, float offset"
)
LIBRARY.define(
    f"moments({_PROBLEM}, bool functionals, int top_k, ScalarType mean_dtype, "
    "str backend, bool check_values, str store='') -> "
    "(Tensor mean, Tensor logsumexp, Tensor functionals_out, "
    "Tensor top_indices, Tensor top_distances)"
)
LIBRARY.define(
    f"covariance_product({_PROBLEM}, Tensor mean, Tensor logsumexp, Tensor v, Tensor? radial, "
    "str backend, bool check_values, str store='') -> (Tensor product, Tensor moment)"
)
MOMENTS: Callable[..., Moments] = torch.ops.diffgen.moments.default
COVARIANCE_PRODUCT: Callable[..., tuple[Tensor, Tensor]] = (
    torch.ops.diffgen.covariance_product.default
)

NUM_FUNCTIONALS = 3
"""Entropy, effective sample size, trace of the covariance."""

QUERY_ARGUMENTS = (0, 1, 2, 3, 4)
"""Places in both schemas of the tensors with a row for each query."""

SET_ARGUMENTS = (5, 6, 7, 8, 9)
"""Places in both schemas of the tensors of the training set."""

PRODUCT_ARGUMENTS = (12, 13, 14, 15)
"""Places of further tensors with a row for each query in the covariance product."""

MOMENTS_STORE = 17
"""Place of ``store`` among the arguments of the moments op; left out where it is empty."""


def _without_autocast(device_type: str, call: Callable[[], Outputs]) -> Outputs:
    # Backends state the accuracy of the arithmetic they wrote, not of one chosen around them.
    with torch.autocast(device_type, enabled=False):
        return call()


def _problem(
    query: Tensor,
    sigma: Tensor,
    alpha: Tensor | None,
    exclude: Tensor | None,
    data: Tensor,
    norms: Tensor,
    log_weights: Tensor | None,
    rows: Tensor | None,
    scale: float,
    offset: float,
    check_values: bool,
) -> Problem:
    return Problem(
        query if query.is_contiguous() else query.contiguous(),
        sigma if sigma.is_contiguous() else sigma.contiguous(),
        alpha if alpha is None else alpha.contiguous(),
        exclude if exclude is None else exclude.contiguous(),
        data,
        norms,
        log_weights,
        rows,
        scale,
        offset,
        check_values,
    )


def _moments(
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
    demands = Demands(functionals, top_k)

    def call(problem: Problem) -> Moments:
        if store:
            place = stores.find(store)
            return place.moments(problem, functionals, top_k, mean_dtype, backend)
        chosen = registry.choose(problem, backend, demands)
        return chosen.moments(problem, functionals, top_k, mean_dtype)

    def run(
        rows: Tensor | None, x: Tensor, s: Tensor, a: Tensor | None, e: Tensor | None
    ) -> Moments:
        problem = _problem(x, s, a, e, data, norms, log_weights, rows, scale, offset, check_values)
        if torch._C._is_any_autocast_enabled():
            return _without_autocast(query.device.type, lambda: call(problem))
        return call(problem)

    def compute(queries: tuple[Any, ...]) -> Moments:
        x, s, a, classes, e = queries
        if classes is None:
            return run(None, x, s, a, e)
        empty = _fake_moments(x, functionals=functionals, top_k=top_k, mean_dtype=mean_dtype)
        for output in empty:
            output.fill_(-1 if output.dtype == torch.int64 else torch.nan)
        count = data.shape[0]
        return by_class(
            run, (x, s, a, e), classes, order, class_offsets, empty, count, check_values
        )

    queries = (query, sigma, alpha, labels, exclude)
    if not store:
        return compute(queries)
    asked = f"moments ({functionals=}, {top_k=}, {mean_dtype=}, {backend=}, {check_values=})"
    return stores.find(store).share(queries, asked, compute)


def _covariance_product(
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
    mean: Tensor,
    logsumexp: Tensor,
    v: Tensor,
    radial: Tensor | None,
    backend: str,
    check_values: bool,
    store: str = "",
) -> tuple[Tensor, Tensor]:
    def call(problem: Problem, inputs: CovarianceInputs) -> tuple[Tensor, Tensor]:
        if store:
            return stores.find(store).covariance_product(problem, inputs, backend)
        chosen = registry.choose(problem, backend, Demands(covariance=True))
        return chosen.covariance_product(problem, inputs)

    def run(
        rows: Tensor | None,
        x: Tensor,
        s: Tensor,
        a: Tensor | None,
        e: Tensor | None,
        m: Tensor,
        log_sum: Tensor,
        vectors: Tensor,
        radii: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        problem = _problem(x, s, a, e, data, norms, log_weights, rows, scale, offset, check_values)
        inputs = CovarianceInputs(
            m.to(torch.float64).contiguous(),
            log_sum.to(torch.float64).contiguous(),
            vectors.to(torch.float64).contiguous(),
            radii if radii is None else radii.to(torch.float64).contiguous(),
        )
        if torch._C._is_any_autocast_enabled():
            return _without_autocast(query.device.type, lambda: call(problem, inputs))
        return call(problem, inputs)

    def compute(queries: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        x, s, a, classes, *others = queries
        if classes is None:
            return run(None, x, s, a, *others)
        empty = _fake_covariance_product(x)
        for output in empty:
            output.fill_(torch.nan)
        return by_class(
            run,
            (x, s, a, *others),
            classes,
            order,
            class_offsets,
            empty,
            data.shape[0],
            check_values,
        )

    queries = (query, sigma, alpha, labels, exclude, mean, logsumexp, v, radial)
    if not store:
        return compute(queries)
    asked = f"covariance_product ({backend=}, {check_values=})"
    return stores.find(store).share(queries, asked, compute)


def _fake_moments(
    query: Tensor, *, functionals: bool, top_k: int, mean_dtype: torch.dtype
) -> Moments:
    batch, features = query.shape
    width = NUM_FUNCTIONALS if functionals else 0
    return (
        query.new_empty((batch, features), dtype=mean_dtype),
        query.new_empty((batch,), dtype=torch.float64),
        query.new_empty((batch, width), dtype=torch.float64),
        query.new_empty((batch, top_k), dtype=torch.int64),
        query.new_empty((batch, top_k), dtype=torch.float64),
    )


def _fake_covariance_product(query: Tensor) -> tuple[Tensor, Tensor]:
    batch, features = query.shape
    return (
        query.new_empty((batch, features), dtype=torch.float64),
        query.new_empty((batch, 2), dtype=torch.float64),
    )


def fold(
    batch_size: int,
    in_dims: tuple[int | None, ...],
    arguments: tuple[Any, ...],
    places: tuple[int, ...],
) -> tuple[Any, ...]:
    """The arguments of an op with the dimension that ``vmap`` added folded into the queries.

    Args:
        batch_size: Size ``V`` of the added dimension.
        in_dims: Where each argument has it, None for nowhere.
        arguments: Arguments of the op.
        places: Which of them have a row for each query; these become ``(V * B, ...)``.

    Raises:
        NotImplementedError: If a tensor of the training set has the dimension.
    """
    if any(in_dims[place] is not None for place in SET_ARGUMENTS):
        raise NotImplementedError(
            "vmap over the training set is not supported: the ops batch over queries, got a "
            "batched data tensor; loop over the sets"
        )
    folded = list(arguments)
    for place in places:
        tensor = arguments[place]
        if tensor is None:
            continue
        dim = in_dims[place]
        if dim is None:
            tensor = tensor.unsqueeze(0).expand(batch_size, *tensor.shape)
        else:
            tensor = tensor.movedim(dim, 0)
        folded[place] = tensor.reshape(batch_size * tensor.shape[1], *tensor.shape[2:])
    return tuple(folded)


def unfold(batch_size: int, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Outputs ``(V * B, ...)`` as ``(V, B, ...)``."""
    return tuple(
        output.reshape(batch_size, output.shape[0] // max(batch_size, 1), *output.shape[1:])
        for output in outputs
    )


def _moments_vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
    folded = fold(info.batch_size, in_dims, arguments, QUERY_ARGUMENTS)
    return unfold(info.batch_size, MOMENTS(*folded)), (0,) * 5


def _covariance_product_vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
    folded = fold(info.batch_size, in_dims, arguments, QUERY_ARGUMENTS + PRODUCT_ARGUMENTS)
    return unfold(info.batch_size, COVARIANCE_PRODUCT(*folded)), (0,) * 2


torch.library.register_fake(
    f"{NAMESPACE}::moments",
    lambda query, *others: _fake_moments(
        query, functionals=others[11], top_k=others[12], mean_dtype=others[13]
    ),
    lib=LIBRARY,
)
torch.library.register_fake(
    f"{NAMESPACE}::covariance_product",
    lambda query, *others: _fake_covariance_product(query),
    lib=LIBRARY,
)
LIBRARY.impl("moments", _moments, "CompositeExplicitAutograd")
LIBRARY.impl("covariance_product", _covariance_product, "CompositeExplicitAutograd")
torch.library.register_vmap(f"{NAMESPACE}::moments", _moments_vmap, lib=LIBRARY)
torch.library.register_vmap(
    f"{NAMESPACE}::covariance_product", _covariance_product_vmap, lib=LIBRARY
)
