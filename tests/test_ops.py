"""The ops: registration, shapes, classes, batching, and the arguments' contracts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cpu_backends
import pytest
import torch
from op_cases import all_apart, arguments, product_arguments, view_of
from torch import Tensor

import diffgen.compiled  # noqa: F401  (derivatives in graphs, which opcheck looks at)
from diffgen import checks, ops
from diffgen.backends import reference, registry
from diffgen.backends.problem import CovarianceInputs, Problem
from diffgen.errors import BackendError
from diffgen.set_view import SetView

CPU = torch.device("cpu")
BACKENDS = cpu_backends.USABLE
LABELS = torch.tensor([0, 2, 1, 0, 2, 2, 0])


def test_backends_that_opcheck_covers() -> None:
    assert {"eager", "reference"} <= set(BACKENDS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("classes", [False, True])
def test_moments_passes_opcheck_with_gradients(backend: str, classes: bool) -> None:
    view = view_of(7, 5, labels=LABELS if classes else None)
    asked = list(arguments(view, batch=3, backend=backend, classes=classes))
    asked[0] = asked[0].requires_grad_()
    asked[1] = asked[1].requires_grad_()
    torch.library.opcheck(ops.MOMENTS, tuple(asked))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", [torch.uint8, torch.float32])
def test_moments_passes_opcheck_with_every_output(backend: str, storage: torch.dtype) -> None:
    view = view_of(7, 5, storage=storage, weights=True)
    asked = arguments(
        view, batch=3, backend=backend, functionals=True, top_k=2, exclude=True, alpha=True
    )
    torch.library.opcheck(ops.MOMENTS, asked)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("radial", [False, True])
def test_covariance_product_passes_opcheck(backend: str, radial: bool) -> None:
    view = view_of(7, 5, labels=LABELS)
    asked = product_arguments(view, batch=3, backend=backend, classes=True, radial=radial)
    torch.library.opcheck(ops.COVARIANCE_PRODUCT, asked)


def test_outputs_that_share_a_storage_are_seen() -> None:
    empty = torch.empty(3, 0)
    assert all_apart((empty, torch.empty(3, 0)))
    assert not all_apart((empty, empty)) and not all_apart((empty, empty.detach()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [0, 1, 4])
@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize(("functionals", "top_k"), [(False, 0), (True, 0), (False, 2), (True, 2)])
def test_no_two_outputs_share_a_storage(
    backend: str, batch: int, classes: bool, functionals: bool, top_k: int
) -> None:
    view = view_of(7, 5, labels=LABELS)
    asked = {"batch": batch, "backend": backend, "classes": classes}
    for dtype in (torch.float32, torch.float64):
        made = arguments(view, **asked, functionals=functionals, top_k=top_k, mean_dtype=dtype)
        assert all_apart(ops.MOMENTS(*made))
    assert all_apart(ops.COVARIANCE_PRODUCT(*product_arguments(view, **asked)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [0, 1, 4])
@pytest.mark.parametrize("classes", [False, True])
def test_fake_kernel_has_the_shapes_and_types_of_the_op(
    backend: str, batch: int, classes: bool
) -> None:
    view = view_of(7, 5, labels=LABELS)
    for dtype in (torch.float32, torch.float64):
        asked = arguments(
            view,
            batch=batch,
            backend=backend,
            classes=classes,
            functionals=True,
            top_k=2,
            mean_dtype=dtype,
        )
        real = ops.MOMENTS(*asked)
        meta = ops.MOMENTS(*(a.to("meta") if isinstance(a, Tensor) else a for a in asked))
        assert [(o.shape, o.dtype) for o in real] == [(o.shape, o.dtype) for o in meta]


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs_give_the_same_bits(backend: str) -> None:
    view = view_of(7, 5)
    asked = arguments(view, batch=4, backend=backend, functionals=True, top_k=3, alpha=True)
    strided = [
        torch.stack((a, a), -1)[..., 0] if place in ops.QUERY_ARGUMENTS and a is not None else a
        for place, a in enumerate(asked)
    ]
    assert not strided[0].is_contiguous()
    for one, other in zip(ops.MOMENTS(*asked), ops.MOMENTS(*strided), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("weights", [False, True])
def test_a_class_query_is_a_query_against_the_rows_of_the_class(weights: bool) -> None:
    view = view_of(7, 5, labels=LABELS, weights=weights)
    asked = arguments(view, batch=4, backend="reference", functionals=True, top_k=1)
    labels = torch.tensor([2, -1, 0, 2])
    outputs = ops.MOMENTS(*asked[:3], labels, *asked[4:])
    for b, label in enumerate(labels.tolist()):
        rows = None if label < 0 else (label == LABELS).nonzero()[:, 0]
        problem = Problem(
            asked[0][b : b + 1], asked[1][b : b + 1], None, None, view.data, view.norms,
            view.log_weights, rows, 1.0, 0.0,
        )  # fmt: skip
        expected = reference.moments(problem, True, 1, torch.float32)
        for output, wanted in zip(outputs, expected, strict=True):
            assert torch.equal(output[b : b + 1], wanted)


def test_the_covariance_product_of_a_class_reads_only_the_class() -> None:
    view = view_of(7, 5, labels=LABELS)
    asked = list(product_arguments(view, batch=3, backend="reference", classes=True, radial=True))
    asked[3] = torch.tensor([2, -1, 0])
    product, moment = ops.COVARIANCE_PRODUCT(*asked)
    rows = (LABELS == 2).nonzero()[:, 0]
    problem = Problem(
        asked[0][:1], asked[1][:1], None, None, view.data, view.norms, None, rows, 1.0, 0.0
    )
    inputs = CovarianceInputs(*(tensor[:1] for tensor in asked[12:16]))
    expected = reference.covariance_product(problem, inputs)
    assert torch.equal(product[:1], expected[0])
    assert torch.equal(moment[:1], expected[1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3], r"class_labels must be in \[-1, 3\).*got 3 at index 1"),
        ([-2, 0], r"class_labels must be in \[-1, 3\).*got -2 at index 0"),
        ([0, 1], r"class_labels must name classes with training points, got 1 at index 1"),
    ],
)
def test_a_bad_class_raises_or_gives_a_row_of_nan(labels: list[int], message: str) -> None:
    view = view_of(7, 5, labels=torch.tensor([0, 2, 2, 0, 2, 2, 0]))
    asked = list(
        arguments(view, batch=2, backend="reference", functionals=True, top_k=1, classes=True)
    )
    asked[3] = torch.tensor(labels)
    with pytest.raises(ValueError, match=message):
        ops.MOMENTS(*asked)
    mean, logsumexp, functionals, indices, distances = ops.MOMENTS(*asked[:-1], False)
    bad = labels.index(next(label for label in labels if label != 0))
    for output in (mean, logsumexp[:, None], functionals, distances):
        assert output[bad].isnan().all()
        assert output[1 - bad].isfinite().all()
    assert indices[bad].item() == -1
    assert indices[1 - bad].item() >= 0


def test_labels_need_a_set_with_labels() -> None:
    asked = list(arguments(view_of(7, 5), batch=1, backend="reference"))
    asked[3] = torch.tensor([0])
    with pytest.raises(ValueError, match="labels need a training set with labels"):
        ops.MOMENTS(*asked)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("place", "values", "message"),
    [
        (1, [1.0, -0.5, 1.0], r"sigma must be .*-0.5 at index 1"),
        (1, [1.0, math.nan, 1.0], r"sigma must be .*nan at index 1"),
        (4, [-1, -1, 7], r"exclude must be .*7 at index 2"),
        (4, [-1, 2, -1], r"exclude leaves no training point for query 1"),
    ],
)
def test_messages_count_queries_as_the_caller_does(
    backend: str, place: int, values: list[float], message: str
) -> None:
    labels = torch.tensor([0, 0, 1, 0, 0, 0, 0])
    view = view_of(7, 5, labels=labels)
    asked = list(arguments(view, batch=3, backend=backend))
    asked[3] = torch.tensor([0, 1, 0])
    asked[place] = torch.tensor(values, dtype=torch.float64 if place == 1 else torch.int64)
    with pytest.raises(ValueError, match=message):
        ops.MOMENTS(*asked)


def test_vmap_folds_into_the_queries() -> None:
    view = view_of(7, 5)
    asked = arguments(view, batch=4, backend="reference", functionals=True, top_k=2)
    query, sigma = asked[0], asked[1]
    expected = ops.MOMENTS(*asked)
    each = torch.vmap(lambda q, s: ops.MOMENTS(q[None], s[None], *asked[2:]))(query, sigma)
    for output, wanted in zip(each, expected, strict=True):
        assert torch.equal(output[:, 0], wanted)
    levels = torch.stack((sigma, 2 * sigma), 1)
    by_sigma = torch.vmap(lambda s: ops.MOMENTS(query, s, *asked[2:])[1], in_dims=1)(levels)
    assert torch.equal(by_sigma[0], expected[1])
    assert torch.equal(by_sigma[1], ops.MOMENTS(query, 2 * sigma, *asked[2:])[1])


def test_vmap_of_the_covariance_product_folds_into_the_queries() -> None:
    view = view_of(7, 5)
    asked = product_arguments(view, batch=4, backend="reference", radial=True)
    vectors = torch.stack((asked[14], 2 * asked[14]))
    product, _ = torch.vmap(lambda v: ops.COVARIANCE_PRODUCT(*asked[:14], v, *asked[15:]))(vectors)
    assert torch.equal(product[0], ops.COVARIANCE_PRODUCT(*asked)[0])
    assert torch.equal(product[1], ops.COVARIANCE_PRODUCT(*asked[:14], vectors[1], *asked[15:])[0])


def test_vmap_over_the_training_set_is_refused() -> None:
    asked = arguments(view_of(7, 5), batch=2, backend="reference")
    sets = torch.stack((asked[5], asked[5]))
    with pytest.raises(NotImplementedError, match="vmap over the training set is not supported"):
        torch.vmap(lambda data: ops.MOMENTS(*asked[:5], data, *asked[6:]))(sets)


def test_the_named_backend_runs_and_an_unknown_name_raises() -> None:
    asked = arguments(view_of(3, 2), batch=1, backend="nothing")
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*got 'nothing'"):
        ops.MOMENTS(*asked)


def test_a_backend_that_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError

    refusing = registry.Backend(
        "stub", -9, lambda: None, lambda *_: ["never runs"], never, never, ""
    )
    monkeypatch.setitem(registry._BACKENDS, "stub", refusing)
    with pytest.raises(BackendError, match="backend 'stub' cannot run this problem: never runs"):
        ops.MOMENTS(*arguments(view_of(3, 2), batch=1, backend="stub"))


def test_autocast_is_off_inside_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = torch.randn(2, 3, 3)
    seen: list[torch.dtype] = []

    def multiplies(problem: Problem, *_: Any) -> Any:
        seen.append((left @ right).dtype)
        return reference.moments(problem, False, 0, torch.float32)

    stub = registry.Backend("stub", -9, lambda: None, lambda *_: [], multiplies, multiplies, "")
    monkeypatch.setitem(registry._BACKENDS, "stub", stub)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ops.MOMENTS(*arguments(view_of(3, 2), batch=1, backend="stub"))
        assert (left @ right).dtype == torch.bfloat16
    assert seen == [torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode_gives_the_same_bits(backend: str) -> None:
    asked = arguments(view_of(7, 5), batch=4, backend=backend, functionals=True)
    expected = ops.MOMENTS(*asked)
    with torch.inference_mode():
        outputs = ops.MOMENTS(*asked)
    assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))


def test_inputs_are_left_as_they_were() -> None:
    view: SetView = view_of(7, 5, labels=LABELS, weights=True)
    asked = arguments(view, batch=4, backend="reference", classes=True, exclude=True)
    before = [a.clone() if isinstance(a, Tensor) else a for a in asked]
    ops.MOMENTS(*asked)
    for one, other in zip(before, asked, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize(
    "sigma",
    [
        2,
        2.0,
        torch.tensor(2.0),
        torch.tensor(2, dtype=torch.int32),
        torch.full((3,), 2.0),
        torch.full((3, 1, 1, 1), 2.0, dtype=torch.float64),
        torch.full((1, 1), 2.0),
    ],
)
def test_sigma_comes_in_any_shape_with_one_or_batch_elements(sigma: Any) -> None:
    result = checks.as_sigma(sigma, 3, CPU)
    assert torch.equal(result, torch.full((3,), 2.0, dtype=torch.float64))
    assert result.is_contiguous()


@pytest.mark.parametrize(
    "sigma", [1, 0.1, torch.tensor([0.1], dtype=torch.float64), torch.tensor(0.1)]
)
def test_sigma_of_a_batch_of_one_or_none(sigma: Any) -> None:
    assert checks.as_sigma(sigma, 1, CPU).shape == (1,)
    assert checks.as_sigma(sigma, 0, CPU).shape == (0,)


def test_a_gradient_flows_through_the_broadcast_of_sigma() -> None:
    sigma = torch.tensor(2.0, requires_grad=True)
    checks.as_sigma(sigma, 3, CPU).sum().backward()
    assert sigma.grad is not None
    assert sigma.grad.item() == 3


def test_labels_come_as_integers_or_one_hot_rows() -> None:
    rows = torch.tensor([[0, 1], [0, 0], [1, 0], [1, 1], [0, 2]])
    for one_hot in (rows, rows.float(), rows.bfloat16()):
        labels = checks.as_labels(one_hot, 5, 2, CPU)
        assert labels is not None
        assert labels.tolist() == [1, -1, 0, -2, -2]
    labels = checks.as_labels(torch.tensor([1, -1], dtype=torch.int32), 2, 2, CPU)
    assert labels is not None
    assert labels.dtype == torch.int64
    assert checks.as_labels(None, 2, 0, CPU) is None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: checks.check_query([0.0], (1,), CPU), TypeError, "x must be a tensor, got list"),  # type: ignore[arg-type]
        (lambda: checks.check_query(torch.zeros(1, 1).long(), (1,), CPU), TypeError, "got int64"),
        (lambda: checks.check_query(torch.zeros(2, 4), (3,), CPU), ValueError, r"\(B, 3\), got"),
        (lambda: checks.check_query(torch.zeros(()), (), CPU), ValueError, r"\(B\), got \(\)"),
        (
            lambda: checks.check_query(torch.zeros(1, 1, device="meta"), (1,), CPU),
            ValueError,
            "x must be on cpu, where the training set is, got meta",
        ),
        (lambda: checks.as_sigma("1", 1, CPU), TypeError, "got str"),  # type: ignore[arg-type]
        (lambda: checks.as_sigma(True, 1, CPU), TypeError, "got bool"),
        (lambda: checks.as_sigma([1.0], 1, CPU), TypeError, "got list"),  # type: ignore[arg-type]
        (lambda: checks.as_sigma(torch.zeros(1).bool(), 1, CPU), TypeError, "got bool"),
        (lambda: checks.as_sigma(torch.ones(2), 3, CPU), ValueError, r"1 element or 3.*\(2,\)"),
        (lambda: checks.as_sigma(torch.ones(2), 1, CPU), ValueError, r"1 element, got shape"),
        (lambda: checks.as_sigma(torch.ones(1, device="meta"), 1, CPU), ValueError, "got meta"),
        (lambda: checks.as_labels([1], 1, 2, CPU), TypeError, "got list"),  # type: ignore[arg-type]
        (lambda: checks.as_labels(torch.ones(1), 1, 2, CPU), TypeError, "integers, got float32"),
        (lambda: checks.as_labels(torch.ones(1).long(), 1, 0, CPU), ValueError, "one without"),
        (lambda: checks.as_labels(torch.ones(2).long(), 1, 2, CPU), ValueError, r"\(1, 2\) with"),
        (lambda: checks.as_exclude(torch.ones(1), 1, CPU), TypeError, "integers, got float32"),
        (lambda: checks.as_exclude(torch.ones(2).long(), 1, CPU), ValueError, r"shape \(1,\), got"),
        (lambda: checks.as_exclude([0], 1, CPU), TypeError, "got list"),  # type: ignore[arg-type]
        (lambda: checks.check_top_k(4, 3), ValueError, "between 0 and 3.*got 4"),
        (lambda: checks.check_top_k(-1, 3), ValueError, "got -1"),
        (lambda: checks.check_top_k(1.0, 3), TypeError, "got float"),  # type: ignore[arg-type]
        (
            lambda: checks.check_vectors(torch.zeros(1, 2), torch.zeros(1, 3)),
            ValueError,
            r"shape of x, \(1, 3\), got \(1, 2\)",
        ),
        (lambda: checks.check_generator(3, CPU), TypeError, "got int"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_argument_says_argument_need_and_got(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
