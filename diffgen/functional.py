"""The two ops as functions of a training set's view, and mirrored sets without storing them.

Where the mirrored set is part of the set, the distance from ``x`` to a mirrored point is that from
the mirrored ``x`` to the point. So the queries are doubled, one pass runs over the stored points,
and the two halves are merged exactly, as two blocks of a set are: ``diffgen.mirror``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import diffgen.compiled  # noqa: F401  (derivatives of the ops in compiled graphs)
from diffgen import autograd, mirror
from diffgen.set_view import SetView


class Moments(NamedTuple):
    """What one pass over a training set says about B queries.

    Attributes:
        mean: Posterior mean, ``(B, D)``.
        logsumexp: Log of the sum of the exponentials of the logits, ``(B,)`` float64, nats.
        functionals: Entropy, effective sample size and trace of the covariance of the weights,
            ``(B, 3)`` float64, or ``(B, 0)``. Their backward raises, their forward tangent is NaN.
        top_indices: Ids of the nearest points, nearest first, ``(B, k)`` int64.
        top_distances: Their l2 distances, not squared, ``(B, k)`` float64; derivatives as those
            of ``functionals``.
    """

    mean: Tensor
    logsumexp: Tensor
    functionals: Tensor
    top_indices: Tensor
    top_distances: Tensor


def moments(
    view: SetView,
    query: Tensor,
    sigma: Tensor,
    alpha: Tensor | None = None,
    labels: Tensor | None = None,
    exclude: Tensor | None = None,
    *,
    functionals: bool = False,
    top_k: int = 0,
    mean_dtype: torch.dtype | None = None,
    backend: str = "auto",
    check_values: bool = True,
    flip: tuple[int, ...] | None = None,
) -> Moments:
    """Moments of the posterior over the training points given noisy points.

    With ``l_i = log_weight_i - |x - alpha y_i|^2 / (2 sigma^2)`` and ``w = softmax(l)`` over the
    eligible points, ``mean = sum_i w_i y_i`` and ``logsumexp = log sum_i exp(l_i)``. Both are
    differentiable in ``query`` and ``sigma``, in every mode of torch outside ``torch.compile`` and
    backward inside it.

    Args:
        view: The training set.
        query: Noisy points, ``(B, D)`` floating point.
        sigma: Noise standard deviations, ``(B,)`` float64, in the units of the data, >= 0.
        alpha: Signal scales, ``(B,)`` float64, >= 0; None for ones.
        labels: Class of each query, ``(B,)`` int64, -1 for the whole set; or None.
        exclude: Id of the point that each query leaves out, ``(B,)`` int64, -1 for none; or None.
        functionals: Whether to compute these.
        top_k: How many of the nearest points to return.
        mean_dtype: Type of the mean; None for the query's.
        backend: Name of a backend, or ``"auto"``.
        check_values: Whether bad values raise; otherwise they give NaN rows.
        flip: Shape of a sample, when the set's mirror image along its last axis belongs to it.

    Returns:
        The moments; those that are not asked for have width 0.

    Raises:
        ValueError: For bad values, a class without points, or an ``exclude`` that leaves none.
        BackendError: If no backend can run the problem.

    Example:
        >>> data = torch.tensor([[0.0], [1.0]])
        >>> view = SetView(data, 1.0, 0.0, data.double().square().sum(1))
        >>> sigma = torch.ones(1, dtype=torch.float64)
        >>> moments(view, torch.tensor([[0.5]]), sigma, backend="reference").mean
        tensor([[0.5000]])

    Source: Yi, Sun and Li (2023), "On the Generalization of Diffusion Model", arXiv:2305.14712,
    the empirical-optimal denoiser.
    """
    dtype = query.dtype
    if mean_dtype is None:
        mean_dtype = dtype
    if dtype is not torch.float32 and dtype is not torch.float64:
        query = query.to(torch.float32)
    narrow = mean_dtype is not torch.float32 and mean_dtype is not torch.float64
    if flip is not None:
        merged = mirror.moments(
            view, query, sigma, alpha, labels, exclude, functionals, top_k, backend, check_values,
            flip,
        )  # fmt: skip
        return Moments(merged[0].to(mean_dtype), *merged[1:])
    outputs = autograd.moments(
        query,
        sigma,
        alpha,
        labels,
        exclude,
        view.data,
        view.norms,
        view.log_weights,
        view.order,
        view.class_offsets,
        view.scale,
        view.offset,
        functionals,
        top_k,
        torch.float64 if narrow else mean_dtype,
        backend,
        check_values,
        view.store,
    )
    if narrow:
        return Moments(outputs[0].to(mean_dtype), *outputs[1:])
    return Moments(*outputs)


def covariance_product(
    view: SetView,
    query: Tensor,
    sigma: Tensor,
    alpha: Tensor | None,
    labels: Tensor | None,
    exclude: Tensor | None,
    mean: Tensor,
    logsumexp: Tensor,
    v: Tensor,
    radial: Tensor | None = None,
    *,
    backend: str = "auto",
    check_values: bool = True,
    flip: tuple[int, ...] | None = None,
) -> tuple[Tensor, Tensor]:
    """Product of the posterior covariance with vectors.

    With ``r_i = |x - alpha y_i|^2``, ``rho_i = r_i - |x - alpha mean|^2`` and the weights
    ``w_i = exp(l_i - logsumexp)``:

        product = sum_i w_i (y_i - mean) ((y_i - mean) . v + radial rho_i)
        moment  = sum_i w_i rho_i ((y_i - mean) . v), sum_i w_i rho_i

    It is the derivative of the moments, in both modes; its own derivative raises.

    Args:
        view: The training set.
        query: As in :func:`moments`, like the arguments up to ``exclude``.
        sigma: See there.
        alpha: See there.
        labels: See there.
        exclude: See there.
        mean: Posterior mean, ``(B, D)``, best in float64.
        logsumexp: ``(B,)`` float64.
        v: Vectors, ``(B, D)`` floating point.
        radial: Coefficients of ``rho_i``, ``(B,)`` float64; None for zeros.
        backend: See there.
        check_values: See there.
        flip: See there.

    Returns:
        ``product (B, D)`` and ``moment (B, 2)``, float64.

    Raises:
        ValueError: As :func:`moments`.
        BackendError: If no backend can run the problem.
    """
    if query.dtype is not torch.float32 and query.dtype is not torch.float64:
        query = query.to(torch.float32)
    mean, logsumexp, v = mean.to(torch.float64), logsumexp.to(torch.float64), v.to(torch.float64)
    if flip is not None:
        return mirror.covariance_product(
            view, query, sigma, alpha, labels, exclude, mean, logsumexp, v, radial, backend,
            check_values, flip,
        )  # fmt: skip
    return autograd.covariance_product(
        query,
        sigma,
        alpha,
        labels,
        exclude,
        view.data,
        view.norms,
        view.log_weights,
        view.order,
        view.class_offsets,
        view.scale,
        view.offset,
        mean,
        logsumexp,
        v,
        radial,
        backend,
        check_values,
        view.store,
    )
