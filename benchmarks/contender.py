"""What a contender is; the table of them is in ``contenders.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Noise = float | Tensor
"""A noise level for all queries, or one for each, ``(B, 1)``."""


@dataclass(frozen=True)
class Prepared:
    """A contender that has seen the data.

    Attributes:
        denoise: ``(query (B, *S), sigma)`` to the posterior mean, ``(B, *S)``.
        sweep: ``(query, sigmas)`` to the means at each noise level, ``(S, B, *S)``.
        logsumexp: ``(query, sigma)`` to ``(B,)``, for the gate; None when the method has none.
        posterior: ``(query, sigma)`` to every field; None when the method gives the mean only.
        backend: Names the backend of diffgen that runs; None for peers.
    """

    denoise: Callable[[Tensor, float], Tensor]
    sweep: Callable[[Tensor, tuple[float, ...]], Tensor]
    logsumexp: Callable[[Tensor, float], Tensor] | None = None
    posterior: Callable[[Tensor, float], object] | None = None
    backend: Callable[[], str] | None = None


@dataclass(frozen=True)
class Contender:
    """One way to denoise.

    Attributes:
        name: As ``--contender`` takes it.
        prepare: ``images (N, *S)`` in their storage type to the contender, ready.
        note: What a reader of its rows must know.
        rival: Whether the speed targets are against it: everything that computes in float32.
        builds: Whether a first call compiles code, which is then not part of any time.
    """

    name: str
    prepare: Callable[[Tensor], Prepared]
    note: str = ""
    rival: bool = False
    builds: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is diffgen."""
        return self.name.startswith("diffgen")


def peer(
    denoise: Callable[[Tensor, Noise], Tensor],
    logsumexp: Callable[[Tensor, float], Tensor] | None = None,
) -> Prepared:
    """A contender out of a denoiser that takes a noise level for each query.

    Args:
        denoise: ``(query (B, *S), sigma)`` to the mean; its sweep repeats the queries for each
            level.
        logsumexp: ``(query, sigma)`` to ``(B,)``, or None.
    """

    def sweep(query: Tensor, sigmas: tuple[float, ...]) -> Tensor:
        repeated = query.repeat(len(sigmas), *[1] * (query.ndim - 1))
        levels = torch.tensor(sigmas).repeat_interleave(query.shape[0])[:, None]
        return denoise(repeated, levels).view(len(sigmas), *query.shape)

    return Prepared(denoise, sweep, logsumexp)
