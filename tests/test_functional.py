"""The functions over a set's view: types, defaults, and mirrored sets against explicit ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from op_cases import arguments, product_arguments, view_of
from torch import Tensor

from diffgen import functional, mirror
from diffgen.functional import Moments
from diffgen.set_view import SetView

SHAPE = (2, 3)
FEATURES = 6
LABELS = torch.tensor([0, 2, 1, 0, 2, 2, 0])
BATCH = 5

# Halves in float64 against the whole in float64: sums of 14 terms of size about 1 in other orders,
# amplified by logits of size 1 / (2 sigma^2) * |x - y|^2 <= 5e3 at sigma = 0.05.
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def moments(view: SetView, query: Tensor, sigma: Tensor, *rest: Any, **options: Any) -> Moments:
    options = {"backend": "reference", **options}
    return functional.moments(view, query, sigma, *rest, **options)


def doubled(view: SetView) -> SetView:
    """The view of the set with its mirror images stored."""
    images = mirror.mirrored(view.data, SHAPE)
    order = offsets = None
    if view.order is not None and view.class_offsets is not None:
        labels = torch.empty_like(view.order)
        sizes = view.class_offsets.diff()
        labels[view.order] = torch.arange(len(sizes)).repeat_interleave(sizes)
        labels = torch.cat((labels, labels))
        order = labels.argsort(stable=True)
        offsets = 2 * view.class_offsets
    weights = view.log_weights
    return SetView(
        torch.cat((view.data, images)),
        view.scale,
        view.offset,
        torch.cat((view.norms, view.norms)),
        None if weights is None else torch.cat((weights, weights)),
        order,
        offsets,
    )


def queries(view: SetView, sigma: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    query, levels, alpha = arguments(
        view, batch=BATCH, backend="", alpha=True, dtype=torch.float64
    )[:3]
    return query, levels if sigma is None else torch.full_like(levels, sigma), alpha


def mirrored_and_explicit(view: SetView, *rest: Any, **options: Any) -> tuple[Moments, Moments]:
    merged = moments(view, *rest, flip=SHAPE, **options)
    return merged, moments(doubled(view), *rest, **options)


def assert_same(merged: Moments, explicit: Moments) -> None:
    for one, other in zip(merged, explicit, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_mirrored_reverses_the_last_axis_of_each_sample() -> None:
    rows = torch.arange(12.0).reshape(2, 6)
    assert mirror.mirrored(rows, SHAPE)[0].tolist() == [2, 1, 0, 5, 4, 3]
    assert torch.equal(mirror.mirrored(mirror.mirrored(rows, SHAPE), SHAPE), rows)


@pytest.mark.parametrize("sigma", [None, 0.05, 3.0, 1e4])
@pytest.mark.parametrize("storage", [torch.uint8, torch.float64])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_mirrored_set_is_the_set_with_its_images(
    sigma: float | None, storage: torch.dtype, weights: bool, alpha: bool
) -> None:
    view = view_of(7, FEATURES, storage=storage, weights=weights)
    query, levels, scales = queries(view, sigma)
    assert_same(
        *mirrored_and_explicit(
            view, query, levels, scales if alpha else None, functionals=True, top_k=4
        )
    )


@pytest.mark.parametrize("top_k", [0, 1, 3, 4])
@pytest.mark.parametrize("exclude", [None, [3, -1, 13, 7, 0]])
def test_a_mirrored_set_with_classes(top_k: int, exclude: list[int] | None) -> None:
    view = view_of(7, FEATURES, labels=torch.tensor([0, 2, 1, 0, 2, 1, 0]))
    query, levels, _ = queries(view)
    labels = torch.tensor([0, 2, -1, 0, 2])
    left_out = None if exclude is None else torch.tensor(exclude)
    assert_same(
        *mirrored_and_explicit(
            view, query, levels, None, labels, left_out, functionals=True, top_k=top_k
        )
    )


@pytest.mark.parametrize("left_out", [2, 9])
def test_a_half_may_lose_its_only_point(left_out: int) -> None:
    view = view_of(7, FEATURES, labels=LABELS)
    query, levels, _ = queries(view)
    labels = torch.tensor([1, 0, 1, -1, 1])
    exclude = torch.tensor([left_out, -1, left_out, left_out, -1])
    assert_same(
        *mirrored_and_explicit(
            view, query, levels, None, labels, exclude, functionals=True, top_k=1
        )
    )
    one = view_of(1, FEATURES)
    merged, explicit = mirrored_and_explicit(
        one, query, levels, None, None, torch.tensor([0, 1, 0, 1, -1]), functionals=True, top_k=1
    )
    assert_same(merged, explicit)
    assert merged.top_indices[:4, 0].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("top_k", [8, 11, 14])
@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_top_k_reaches_over_both_halves(top_k: int, backend: str) -> None:
    view = view_of(7, FEATURES)
    query, levels, _ = queries(view)
    assert_same(*mirrored_and_explicit(view, query, levels, top_k=top_k, backend=backend))


def test_top_k_of_small_classes_and_left_out_points() -> None:
    view = view_of(7, FEATURES, labels=torch.tensor([0, 2, 1, 0, 2, 1, 0]))
    query, levels, _ = queries(view)
    labels = torch.tensor([0, 2, 0, -1, 2])
    exclude = torch.tensor([3, -1, 10, 7, 2])
    assert_same(*mirrored_and_explicit(view, query, levels, None, labels, exclude, top_k=4))


def test_top_k_beyond_the_eligible_points_is_refused() -> None:
    view = view_of(7, FEATURES, labels=LABELS)
    query, levels, _ = queries(view)
    with pytest.raises(ValueError, match=r"top_k must be at most 14, .* got 15"):
        moments(view, query, levels, top_k=15, flip=SHAPE)
    labels = torch.tensor([0, 0, 1, 0, 0])
    with pytest.raises(ValueError, match=r"top_k must be at most 2, .* of query 2, got 3"):
        moments(view, query, levels, None, labels, top_k=3, flip=SHAPE)


def test_ties_between_a_point_and_its_image_go_to_the_lower_id() -> None:
    view = view_of(7, FEATURES, storage=torch.float64)
    query = queries(view)[0]
    symmetric = query + mirror.mirrored(query, SHAPE)
    merged = moments(view, symmetric, torch.ones(BATCH, dtype=torch.float64), top_k=6, flip=SHAPE)
    pairs = merged.top_indices.reshape(BATCH, 3, 2)
    assert torch.equal(pairs[..., 0] + 7, pairs[..., 1])


@pytest.mark.parametrize("weights", [False, True])
def test_a_mirrored_set_at_sigma_zero(weights: bool) -> None:
    view = view_of(7, FEATURES, storage=torch.float64, weights=weights)
    query, zeros, _ = queries(view, 0.0)
    query[1] = view.data[4]
    query[2] = mirror.mirrored(view.data[4:5], SHAPE)[0]
    query[3] = query[3] + mirror.mirrored(query[3:4], SHAPE)[0]
    # Whichever half is nearer to a query, the other one is to its image.
    query, zeros = torch.cat((query, mirror.mirrored(query, SHAPE))), torch.cat((zeros, zeros))
    assert_same(*mirrored_and_explicit(view, query, zeros, functionals=True))
    nearest = moments(view, query, zeros, top_k=1, flip=SHAPE).top_indices[:, 0]
    assert nearest[1:3].tolist() == [4, 11]


def test_a_query_that_is_not_finite_spoils_its_own_row_alone() -> None:
    view = view_of(7, FEATURES)
    query, levels, _ = queries(view)
    expected = moments(view, query, levels, functionals=True, top_k=2, flip=SHAPE)
    query[1, 2], query[3, 0] = math.nan, math.inf
    outputs = moments(view, query, levels, functionals=True, top_k=2, flip=SHAPE)
    for output, wanted in zip(outputs, expected, strict=True):
        assert torch.equal(output[[0, 2, 4]], wanted[[0, 2, 4]])
        bad = output[[1, 3]]
        assert (bad == -1).all() if output.dtype == torch.int64 else bad.isnan().all()


@pytest.mark.parametrize("bad", [-2, 14])
def test_a_bad_exclude_of_a_mirrored_set_is_named_as_given(bad: int) -> None:
    view = view_of(7, FEATURES)
    query, levels, _ = queries(view)
    exclude = torch.tensor([0, -1, bad, 13, 2])
    with pytest.raises(ValueError, match=rf"exclude must be in \[-1, 14\), got {bad} at index 2"):
        moments(view, query, levels, None, None, exclude, flip=SHAPE)
    outputs = moments(view, query, levels, None, None, exclude, flip=SHAPE, check_values=False)
    assert outputs.mean[2].isnan().all()
    assert outputs.mean[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_the_covariance_product_of_a_mirrored_set(exclude: bool, weights: bool) -> None:
    view = view_of(7, FEATURES, labels=LABELS, weights=weights)
    asked = product_arguments(
        doubled(view), batch=BATCH, backend="reference", alpha=True, radial=True
    )
    labels = torch.tensor([1, 0, -1, 2, 1])
    left_out = torch.tensor([2, 3, 8, -1, 9]) if exclude else None
    problem = (*asked[:3], labels, left_out)
    mean, logsumexp, *_ = moments(doubled(view), *problem, mean_dtype=torch.float64)
    rest = (mean, logsumexp, *asked[14:16])
    merged = functional.covariance_product(view, *problem, *rest, backend="reference", flip=SHAPE)
    explicit = functional.covariance_product(doubled(view), *problem, *rest, backend="reference")
    torch.testing.assert_close(merged, explicit, **CLOSE)


def test_a_mirrored_set_under_vmap() -> None:
    view = view_of(7, FEATURES)
    query, levels, _ = queries(view)
    expected = moments(view, query, levels, functionals=True, top_k=3, flip=SHAPE)
    each = torch.vmap(
        lambda q, s: moments(view, q[None], s[None], functionals=True, top_k=3, flip=SHAPE)
    )(query, levels)
    for output, wanted in zip(each, expected, strict=True):
        torch.testing.assert_close(output[:, 0], wanted, **CLOSE)


@pytest.mark.parametrize("flip", [None, SHAPE])
def test_an_empty_batch_gives_empty_outputs(flip: Any) -> None:
    view = view_of(7, FEATURES, labels=LABELS)
    none = torch.empty(0, dtype=torch.int64)
    outputs = moments(
        view, torch.empty(0, FEATURES), torch.empty(0).double(), None, none, none,
        functionals=True, top_k=9 if flip else 2, flip=flip,
    )  # fmt: skip
    assert [tuple(output.shape) for output in outputs] == [
        (0, FEATURES), (0,), (0, 3), (0, 9 if flip else 2), (0, 9 if flip else 2),
    ]  # fmt: skip


@pytest.mark.parametrize("flip", [None, SHAPE])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_mean_has_the_type_of_the_query(dtype: torch.dtype, flip: Any) -> None:
    view = view_of(7, FEATURES)
    query, levels, _ = queries(view)
    query = query.to(dtype)
    outputs = moments(view, query, levels, flip=flip)
    assert outputs.mean.dtype == dtype
    exact = moments(view, query.double(), levels, flip=flip).mean
    # One rounding: half a unit in the last place.
    unit = torch.finfo(dtype).eps / 2
    assert ((outputs.mean.double() - exact).abs() <= exact.abs() * unit * 1.001 + 1e-9).all()
    assert moments(view, query, levels, mean_dtype=torch.float64, flip=flip).mean.dtype == (
        torch.float64
    )


def test_what_is_not_asked_has_width_zero() -> None:
    view = view_of(7, FEATURES)
    query, levels, _ = queries(view, 0.0)
    for flip in (None, SHAPE):
        outputs = moments(view, query, levels, flip=flip)
        assert outputs.functionals.shape == (BATCH, 0)
        assert outputs.top_indices.shape == (BATCH, 0)
        assert outputs.top_distances.shape == (BATCH, 0)


def test_autocast_does_not_change_results() -> None:
    view = view_of(7, FEATURES, storage=torch.bfloat16)
    query, levels, _ = queries(view)
    for flip in (None, SHAPE):
        for backend in ("reference", "eager"):
            options = {"functionals": True, "top_k": 2, "flip": flip, "backend": backend}
            plain = moments(view, query.float(), levels, **options)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                cast = moments(view, query.float(), levels, **options)
            assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
