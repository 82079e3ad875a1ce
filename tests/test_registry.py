"""The choice among backends: what a call demands decides beside the problem."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from op_cases import arguments, product_arguments, view_of
from torch import Tensor

from diffgen import ops
from diffgen.backends import reference, registry
from diffgen.backends.problem import Demands, Problem
from diffgen.backends.registry import Moments
from diffgen.errors import BackendError

REASONS = {
    "functionals": "gives no functionals",
    "top_k": "gives no nearest rows",
    "covariance": "gives no covariance product",
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Demands]:
    """The demands that reach a preferred backend, which gives mean and logsumexp only."""
    seen: list[Demands] = []

    def refuses(_: Problem, demands: Demands) -> list[str]:
        seen.append(demands)
        return [REASONS[name] for name in REASONS if getattr(demands, name)]

    def moments(problem: Problem, functionals: bool, top_k: int, dtype: torch.dtype) -> Moments:
        assert not functionals and top_k == 0
        mean, logsumexp, *others = reference.moments(problem, functionals, top_k, dtype)
        return mean + 1, logsumexp, *others

    def never(*_: Any) -> tuple[Tensor, Tensor]:
        raise AssertionError

    monkeypatch.setattr(registry, "_BACKENDS", dict(registry._BACKENDS))
    monkeypatch.setattr(registry, "_RANKED", list(registry._RANKED))
    registry.register(
        registry.Backend("few", 1000, lambda: None, refuses, moments, never, "by a stub")
    )
    return seen


def test_a_backend_runs_what_it_gives(asked: list[Demands]) -> None:
    view = view_of(7, 5)
    preferred = ops.MOMENTS(*arguments(view, batch=3, backend="auto"))[0]
    other = ops.MOMENTS(*arguments(view, batch=3, backend="reference"))[0]
    torch.testing.assert_close(preferred, other + 1)
    assert asked == [Demands()]


@pytest.mark.parametrize("demand", [{"functionals": True}, {"top_k": 2}])
def test_moments_that_it_does_not_give_go_to_the_next(
    asked: list[Demands], demand: dict[str, Any]
) -> None:
    view = view_of(7, 5)
    outputs = ops.MOMENTS(*arguments(view, batch=3, backend="auto", **demand))
    expected = ops.MOMENTS(*arguments(view, batch=3, backend="reference", **demand))
    for one, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert asked == [Demands(**demand)]


def test_the_covariance_product_goes_to_the_next(asked: list[Demands]) -> None:
    demanded = product_arguments(view_of(7, 5), batch=3, backend="auto")
    asked.clear()
    product, _ = ops.COVARIANCE_PRODUCT(*demanded)
    assert product.isfinite().all()
    assert asked == [Demands(covariance=True)]


@pytest.mark.parametrize("demand", [{"functionals": True}, {"top_k": 2}])
def test_a_named_backend_says_what_it_does_not_give(
    asked: list[Demands], demand: dict[str, Any]
) -> None:
    [reason] = [REASONS[name] for name in demand]
    with pytest.raises(BackendError, match=f"^backend 'few' cannot run this problem: {reason}$"):
        ops.MOMENTS(*arguments(view_of(7, 5), batch=3, backend="few", **demand))


def test_a_named_backend_says_that_it_gives_no_covariance(asked: list[Demands]) -> None:
    demanded = product_arguments(view_of(7, 5), batch=3, backend="few")
    with pytest.raises(BackendError, match=r"'few'.*: gives no covariance product$"):
        ops.COVARIANCE_PRODUCT(*demanded)


def test_auto_does_not_ask_for_a_device_that_the_problem_is_not_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What answers may start a driver, which a process on the CPU does without.
    def unavailable() -> str:
        raise AssertionError

    monkeypatch.setattr(registry, "_BACKENDS", dict(registry._BACKENDS))
    monkeypatch.setattr(registry, "_RANKED", list(registry._RANKED))
    refusing = dataclasses.replace(
        registry.get("reference"),
        name="elsewhere",
        priority=1000,
        unavailable=unavailable,
        refuses=lambda *_: ["needs another device"],
    )
    registry.register(refusing)
    ops.MOMENTS(*arguments(view_of(7, 5), batch=3, backend="auto"))


def test_every_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = dataclasses.replace(
        registry.get("reference"),
        name="neither",
        unavailable=lambda: "not built",
        refuses=lambda *_: ["needs another device"],
    )
    monkeypatch.setitem(registry._BACKENDS, "neither", refusing)
    with pytest.raises(BackendError, match=r"this problem: needs another device; not built$"):
        ops.MOMENTS(*arguments(view_of(7, 5), batch=3, backend="neither"))
