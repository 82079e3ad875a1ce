r"""Training sets whose mirror image belongs to them, without storing it.

With ``P`` the mirror along the last axis, ``|x - alpha P y| = |P x - alpha y|``: the mirrored half
of the set is what the stored half is to the mirrored query, and its mean comes out mirrored. The
halves merge as ``diffgen.merging`` has it.

Point ``N + i`` is the mirror image of stored point ``i``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
from torch import Tensor

from diffgen import autograd
from diffgen.backends.registry import Moments
from diffgen.merging import TIE, merge_functionals
from diffgen.mirror_members import Eligible
from diffgen.set_view import SetView


def mirrored(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Flat rows ``(B, D)`` of samples of a shape, mirrored along the shape's last axis."""
    return rows.reshape(rows.shape[0], *shape).flip(-1).reshape(rows.shape)


def _tracing() -> bool:
    """Whether values cannot be looked at: inside ``torch.compile`` and transforms."""
    return torch.compiler.is_compiling() or autograd.transforming()


def _twice(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else torch.cat((tensor, tensor))


def moments(
    view: SetView,
    query: Tensor,
    sigma: Tensor,
    alpha: Tensor | None,
    labels: Tensor | None,
    exclude: Tensor | None,
    functionals: bool,
    top_k: int,
    backend: str,
    check_values: bool,
    flip: tuple[int, ...],
) -> Moments:
    """Moments over the set and its mirror image, with the mean in float64.

    Args are those of :func:`diffgen.functional.moments`.

    Raises:
        ValueError: As there.
    """
    batch = query.shape[0]
    eligible = Eligible(view, batch, labels, exclude, check_values and not _tracing())
    queries = (
        torch.cat((query, mirrored(query, flip))),
        torch.cat((sigma, sigma)),
        _twice(alpha),
        _twice(labels),
        eligible.exclude,
    )

    def run(tensors: tuple[Any, ...], functionals: bool, count: int) -> Moments:
        arguments: tuple[Any, ...] = (
            *tensors,
            *_tensors(view),
            view.scale,
            view.offset,
            functionals,
            count,
            torch.float64,
            backend,
            check_values,
            view.store,
        )
        return autograd.moments(*arguments)

    count = top_k
    if count == 0 and (_tracing() or bool((sigma * sigma == 0).any())):
        count = 1  # Which half is nearer decides where both logsumexps are -inf.
    shared = min(count, view.data.shape[0])
    one_by_one = False
    if top_k and batch and not _tracing():
        eligible.check_top_k(top_k)
        fewest, most = eligible.fewest_and_most()
        shared = min(count, fewest)
        one_by_one = shared < min(count, most)
    outputs = run(queries, functionals, shared)
    mean, logsumexp, values, ids, distances = outputs
    if one_by_one:
        ids, distances = _nearest_one_by_one(run, queries, eligible, top_k)
    if eligible.empty is not None:
        logsumexp = torch.where(eligible.empty, -inf, logsumexp)
        distances = torch.where(eligible.empty[:, None], inf, distances)
    shares = _shares(logsumexp, distances)
    merged_mean, spread = _merge_means(mean, shares, flip)
    fields, others = values.chunk(2)
    return (
        merged_mean,
        torch.logaddexp(*logsumexp.chunk(2)),
        merge_functionals(fields, others, *shares, spread) if functionals else fields,
        *_merge_nearest(ids, distances, top_k, view.data.shape[0]),
    )


def _tensors(
    view: SetView,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    return view.data, view.norms, view.log_weights, view.order, view.class_offsets


def _shares(logsumexp: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the two halves, ``(B,)`` each."""
    first, second = logsumexp.chunk(2)
    difference = first - second
    if distances.shape[1]:
        # At sigma = 0 off the points both are -inf and the nearer half has it all. Halves at the
        # same distance share it evenly: they then hold mirror images, unless by accident.
        near, far = distances[:, 0].detach().chunk(2)
        limit = torch.minimum(near, far) * (1 + TIE)
        nearer = torch.where(near > limit, -inf, torch.where(far > limit, inf, 0.0))
        neither = (first == -inf) & (second == -inf)
        difference = torch.where(neither, nearer, difference)
    return torch.sigmoid(difference), torch.sigmoid(-difference)


def _merge_means(
    mean: Tensor, shares: tuple[Tensor, Tensor], flip: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The mean of the whole, and the squared distance between the halves' means."""
    first, second = mean.chunk(2)
    second = mirrored(second, flip)
    merged = shares[0][:, None] * first + shares[1][:, None] * second
    return merged, (first - second).square().sum(1)


def _nearest_one_by_one(
    run: Callable[[tuple[Any, ...], bool, int], Moments],
    queries: tuple[Tensor | None, ...],
    eligible: Eligible,
    top_k: int,
) -> tuple[Tensor, Tensor]:
    """The nearest points of each half where the halves have different numbers of points.

    Only a ``top_k`` close to the size of a class, or of the set, comes here.
    """
    ids, distances = [], []
    for at, count in enumerate(eligible.counts.tolist()):
        known = min(top_k, count)
        one = tuple(None if tensor is None else tensor[at : at + 1] for tensor in queries)
        *_, nearest, far = run(one, False, known)
        missing = (0, top_k - known)
        ids.append(torch.nn.functional.pad(nearest, missing, value=-1))
        distances.append(torch.nn.functional.pad(far, missing, value=inf))
    return torch.cat(ids), torch.cat(distances)


def _merge_nearest(ids: Tensor, distances: Tensor, top_k: int, count: int) -> tuple[Tensor, Tensor]:
    """The ``top_k`` nearest of both halves, ``(B, top_k)``, ties to the lowest id."""
    first, second = ids.chunk(2)
    ids = torch.cat((first, torch.where(second < 0, second, second + count)), 1)
    distances = torch.cat(distances.chunk(2), 1)
    distances, order = distances.sort(dim=1, stable=True)
    ids = ids.gather(1, order)
    # A point and its image at the same distance get it by sums in different orders, so that what
    # differs by rounding only is a tie: groups of equal distances are put in the order of ids.
    limit = distances.detach() * (1 + TIE)
    starts = distances.detach()[:, 1:] > limit[:, :-1]
    groups = torch.nn.functional.pad(starts.to(torch.int64), (1, 0)).cumsum(1)
    by_id = ids.argsort(dim=1, stable=True)
    order = by_id.gather(1, groups.gather(1, by_id).argsort(dim=1, stable=True))[:, :top_k]
    return ids.gather(1, order), distances.gather(1, order)


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
    radial: Tensor | None,
    backend: str,
    check_values: bool,
    flip: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Covariance product over the set and its mirror image.

    It is a sum over points, and ``(P y - m) . v = (y - P m) . P v``: a mirrored point gives the
    mirrored query, mean and vector what a stored one gives theirs, mirrored.

    Args are those of :func:`diffgen.functional.covariance_product`.

    Raises:
        ValueError: As there.
    """
    eligible = Eligible(view, query.shape[0], labels, exclude, check_values and not _tracing())
    product, moment = autograd.covariance_product(
        torch.cat((query, mirrored(query, flip))),
        torch.cat((sigma, sigma)),
        _twice(alpha),
        _twice(labels),
        eligible.exclude,
        *_tensors(view),
        view.scale,
        view.offset,
        torch.cat((mean, mirrored(mean, flip))),
        torch.cat((logsumexp, logsumexp)),
        torch.cat((v, mirrored(v, flip))),
        _twice(radial),
        backend,
        check_values,
        view.store,
    )
    if eligible.empty is not None:
        product = torch.where(eligible.empty[:, None], 0.0, product)
        moment = torch.where(eligible.empty[:, None], 0.0, moment)
    first, second = product.chunk(2)
    return first + mirrored(second, flip), moment.chunk(2)[0] + moment.chunk(2)[1]
