"""The one table of backends, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffgen.backends.passes import BlockwiseMoments, Moments
from diffgen.backends.problem import MEAN_ONLY, CovarianceInputs, Demands, Problem
from diffgen.errors import BackendError

__all__ = ["Backend", "Moments", "choose", "get", "names", "reasons_against", "register"]


@dataclass(frozen=True)
class Backend:
    """One way to run the two ops.

    Attributes:
        name: What ``backend=`` takes.
        priority: Among the backends that accept a problem the highest runs; a negative one is
            never chosen unless named.
        unavailable: Returns why the backend cannot run on this machine at all, or None.
        refuses: Returns the reasons why it cannot run one problem, or cannot give what a call
            demands of it; empty when it can. Asked of a backend that is unavailable too.
        moments: ``(problem, functionals, top_k, mean_dtype)`` to the five outputs of the op.
        covariance_product: ``(problem, inputs)`` to the two outputs of the op.
        arithmetic: How it computes, in a few words.
        blockwise: How it goes through uint8 rows block by block with the bits of one call; None
            where it cannot.
    """

    name: str
    priority: int
    unavailable: Callable[[], str | None]
    refuses: Callable[[Problem, Demands], list[str]]
    moments: Callable[[Problem, bool, int, torch.dtype], Moments]
    covariance_product: Callable[[Problem, CovarianceInputs], tuple[Tensor, Tensor]]
    arithmetic: str
    blockwise: BlockwiseMoments | None = None


_BACKENDS: dict[str, Backend] = {}
_RANKED: list[Backend] = []


def register(backend: Backend) -> Backend:
    """Adds a backend to the table; a name that is taken is replaced."""
    _BACKENDS[backend.name] = backend
    _RANKED[:] = sorted(
        (b for b in _BACKENDS.values() if b.priority >= 0), key=lambda b: -b.priority
    )
    return backend


def names() -> list[str]:
    """The registered names, highest priority first."""
    return sorted(_BACKENDS, key=lambda name: -_BACKENDS[name].priority)


def get(name: str) -> Backend:
    """The backend of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in _BACKENDS:
        known = ", ".join(["auto", *names()])
        raise ValueError(f"backend must be one of {known}, got {name!r}")
    return _BACKENDS[name]


def reasons_against(backend: Backend, problem: Problem, demands: Demands = MEAN_ONLY) -> list[str]:
    """Why a backend cannot give what is demanded of a problem; empty when it can."""
    reasons, missing = backend.refuses(problem, demands), backend.unavailable()
    return reasons if missing is None else [*reasons, missing]


def choose(problem: Problem, name: str, demands: Demands = MEAN_ONLY) -> Backend:
    """The backend that runs a problem.

    Args:
        problem: Queries and rows.
        name: A registered name, or ``"auto"`` for the best that accepts.
        demands: What the call wants beside mean and logsumexp.

    Raises:
        ValueError: If ``name`` is not registered.
        BackendError: If the named backend, or with ``"auto"`` every backend, refuses.
    """
    if name != "auto":
        backend = get(name)
        reasons = reasons_against(backend, problem, demands)
        if reasons:
            raise BackendError(f"backend {name!r} cannot run this problem: {'; '.join(reasons)}")
        return backend
    for backend in _RANKED:
        # Only a backend that the problem suits is asked whether it can run: to know may start a
        # driver, which a process on the CPU does without.
        if not backend.refuses(problem, demands) and backend.unavailable() is None:
            return backend
    refusals = [
        f"{backend.name}: {'; '.join(reasons_against(backend, problem, demands))}"
        for backend in _RANKED
    ]
    raise BackendError(f"no backend can run this problem: {' | '.join(refusals)}")
