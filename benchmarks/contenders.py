"""The table of contenders; a new contender is one entry of ``table`` or of a table of peers."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor

from benchmarks.contender import Contender, Prepared
from benchmarks.images import VALUE_RANGE
from benchmarks.library_peers import LIBRARY_PEERS
from benchmarks.torch_peers import GPU_PEERS, TORCH_PEERS
from diffgen import EmpiricalDenoiser, TrainingSet
from diffgen.backends import registry
from diffgen.cli.meter import chosen_backend as backend_of
from diffgen.functional import moments

ELSEWHERE = ("cuda", "triton", "triton:interpreted")
"""Backends that do not run on the CPU, or only in emulation: ``benchmarks.gpu`` times them."""

PEERS: tuple[Contender, ...] = (*TORCH_PEERS, *LIBRARY_PEERS)


def table(backend: str = "auto", *, elsewhere: bool = False) -> list[Contender]:
    """Every contender: diffgen, each of its other backends, and the peers.

    Args:
        backend: The backend of the contender ``diffgen``.
        elsewhere: Whether those of GPUs are among them. Which backend ``auto`` takes there depends
            on the problem, so the note leaves it to the row.
    """
    left_out = ("cpu", "reference") if elsewhere else ("cpu", "reference", *ELSEWHERE)
    runs = "" if elsewhere else f"backend {chosen_backend(backend)}; "
    note = f"{runs}exact: what it skips cannot count"
    ours = [Contender("diffgen", partial(_diffgen, backend=backend), note)]
    for name in registry.names():
        if name not in left_out:  # what `auto` takes, what only tests name
            slug = f"diffgen-{name.replace(':', '-')}"
            ours.append(Contender(slug, partial(_diffgen, backend=name)))
    return [*ours, *PEERS, *(GPU_PEERS if elsewhere else ())]


def chosen_backend(backend: str = "auto") -> str:
    """The name of the backend that ``backend`` stands for on the CPU of this machine."""
    if backend != "auto":
        return registry.get(backend).name
    usable = (registry.get(name) for name in registry.names() if name not in ELSEWHERE)
    return next(b.name for b in usable if b.priority >= 0 and b.unavailable() is None)


def select(contenders: Sequence[Contender], patterns: Sequence[str]) -> list[Contender]:
    """The contenders that a pattern names, in the order of the table."""
    return [c for c in contenders if any(fnmatchcase(c.name, p) for p in patterns)]


def _diffgen(images: Tensor, backend: str) -> Prepared:
    if images.dtype == torch.uint8:
        training_set = TrainingSet(images, value_range=VALUE_RANGE)
    else:
        training_set = TrainingSet(images)
    denoiser = EmpiricalDenoiser(training_set, backend=backend)
    view = training_set.view()

    def logsumexp(query: Tensor, sigma: float) -> Tensor:
        # What a denoiser asks for: not every backend gives the functionals of a posterior.
        x = query.flatten(1)
        levels = torch.full((len(x),), sigma, dtype=torch.float64, device=x.device)
        return moments(view, x, levels, backend=backend, check_values=False).logsumexp

    return Prepared(
        denoise=denoiser,
        sweep=lambda query, sigmas: denoiser.sweep(
            query, torch.tensor(sigmas, dtype=torch.float64)
        ),
        logsumexp=logsumexp,
        posterior=lambda query, sigma: denoiser.posterior(query, sigma, top_k=2),
        backend=lambda: backend_of(denoiser),
    )
