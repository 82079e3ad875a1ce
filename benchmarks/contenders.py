"""The table of contenders; a new contender is one entry of ``table``.

The peers are what one writes with PyTorch alone. Each is given its best form: what depends on the
data only (norms, other types) is made before the clock starts, and 8-bit sets are decoded to
float32 by then too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.images import VALUE_RANGE, decode
from diffgen import EmpiricalDenoiser, TrainingSet
from diffgen.backends import registry

CHUNK_ROWS = 4096

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
    """

    denoise: Callable[[Tensor, float], Tensor]
    sweep: Callable[[Tensor, tuple[float, ...]], Tensor]
    logsumexp: Callable[[Tensor, float], Tensor] | None = None
    posterior: Callable[[Tensor, float], object] | None = None


@dataclass(frozen=True)
class Contender:
    """One way to denoise.

    Attributes:
        name: As ``--contender`` takes it.
        prepare: ``images (N, *S)`` in their storage type to the contender, ready.
        note: What a reader of its rows must know.
        rival: Whether the speed targets are against it.
    """

    name: str
    prepare: Callable[[Tensor], Prepared]
    note: str = ""
    rival: bool = False


def table(backend: str = "auto") -> list[Contender]:
    """Every contender: diffgen, each of its other backends, and the peers.

    Args:
        backend: The backend of the contender ``diffgen``.
    """
    note = f"backend {chosen_backend(backend)}; exact: what it skips cannot count"
    ours = [Contender("diffgen", partial(_diffgen, backend=backend), note)]
    for name in registry.names():
        if name not in ("cpu", "reference"):  # what `auto` takes; what only tests name
            slug = f"diffgen-{name.replace(':', '-')}"
            ours.append(Contender(slug, partial(_diffgen, backend=name)))
    return [*ours, *PEERS]


def chosen_backend(backend: str = "auto") -> str:
    """The name of the backend that ``backend`` stands for on this machine."""
    if backend != "auto":
        return registry.get(backend).name
    usable = (registry.get(name) for name in registry.names())
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

    return Prepared(
        denoise=denoiser,
        sweep=lambda query, sigmas: denoiser.sweep(
            query, torch.tensor(sigmas, dtype=torch.float64)
        ),
        logsumexp=lambda query, sigma: denoiser.posterior(query, sigma).logsumexp,
        posterior=lambda query, sigma: denoiser.posterior(query, sigma, top_k=2),
    )


def _peer(
    images: Tensor,
    weights_and_mean: Callable[[Tensor, Noise], Tensor],
    logits: Callable[[Tensor, Noise], Tensor] | None,
) -> Prepared:
    """A contender out of functions of flat queries; a sweep repeats the queries for each level."""

    def denoise(query: Tensor, sigma: Noise) -> Tensor:
        return weights_and_mean(query.flatten(1), sigma).view(query.shape)

    def sweep(query: Tensor, sigmas: tuple[float, ...]) -> Tensor:
        repeated = query.repeat(len(sigmas), *[1] * (query.ndim - 1))
        levels = torch.tensor(sigmas).repeat_interleave(query.shape[0])[:, None]
        return denoise(repeated, levels).view(len(sigmas), *query.shape)

    def logsumexp(query: Tensor, sigma: float) -> Tensor:
        assert logits is not None
        flat = query.flatten(1)
        shift = flat.double().square().sum(1) / (2 * sigma**2)
        return torch.logsumexp(logits(flat, sigma).double(), 1) - shift

    return Prepared(denoise, sweep, None if logits is None else logsumexp)


def _rows(images: Tensor) -> Tensor:
    """Flat floating-point rows; decoding is outside the timed part."""
    return (decode(images) if images.dtype == torch.uint8 else images).flatten(1)


def _minus_half_squares(rows: Tensor) -> Tensor:
    """``-|y|^2 / 2`` in float64, ``(N,)``."""
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square_().div_(-2)


def _expanded(images: Tensor, dtype: torch.dtype) -> Prepared:
    """``|x|^2 + |y|^2 - 2 x.y``, with ``|x|^2`` dropped because the softmax does not see it."""
    rows = _rows(images).to(dtype)
    half = _minus_half_squares(rows).to(dtype)

    def logits(flat: Tensor, sigma: Noise) -> Tensor:
        return torch.addmm(half, flat.to(dtype), rows.T).div_(sigma**2)

    def mean(flat: Tensor, sigma: Noise) -> Tensor:
        return (torch.softmax(logits(flat, sigma), 1) @ rows).to(flat.dtype)

    return _peer(images, mean, logits)


def _expanded_bf16(images: Tensor) -> Prepared:
    """Products in bfloat16; norms and softmax in float32, where a second pass costs nothing."""
    rows = _rows(images)
    half = _minus_half_squares(rows).float()
    rows = rows.bfloat16()

    def logits(flat: Tensor, sigma: Noise) -> Tensor:
        return (flat.bfloat16() @ rows.T).float().add_(half).div_(sigma**2)

    def mean(flat: Tensor, sigma: Noise) -> Tensor:
        return (torch.softmax(logits(flat, sigma), 1).bfloat16() @ rows).float()

    return _peer(images, mean, logits)


def _expanded_chunks(images: Tensor) -> Prepared:
    """The same by blocks of rows with a running maximum, so that no (B, N) buffer is needed."""
    rows = _rows(images)
    half = _minus_half_squares(rows).float()
    blocks = list(zip(rows.split(CHUNK_ROWS), half.split(CHUNK_ROWS), strict=True))

    def moments(flat: Tensor, sigma: Noise) -> tuple[Tensor, Tensor]:
        total, peak = (
            torch.zeros_like(flat),
            flat.new_full((flat.shape[0], 1), -torch.inf),
        )
        mass = torch.zeros_like(peak)
        for block, block_half in blocks:
            logits = torch.addmm(block_half, flat, block.T).div_(sigma**2)
            new_peak = torch.maximum(peak, logits.amax(1, keepdim=True))
            kept = torch.exp(peak - new_peak)
            weights = torch.exp_(logits.sub_(new_peak))
            mass = mass.mul_(kept).add_(weights.sum(1, keepdim=True))
            total = total.mul_(kept).addmm_(weights, block)
            peak = new_peak
        return total.div_(mass), peak + mass.log()

    return _peer(images, lambda x, s: moments(x, s)[0], lambda x, s: moments(x, s)[1])


def _cdist(images: Tensor) -> Prepared:
    """``torch.cdist``, squared, softmax, product: how most of the field writes it."""
    rows = _rows(images)

    def logits(flat: Tensor, sigma: Noise) -> Tensor:
        return torch.cdist(flat, rows).square_().div_(-2 * sigma**2)

    def mean(flat: Tensor, sigma: Noise) -> Tensor:
        return torch.softmax(logits(flat, sigma), 1) @ rows

    def shifted(flat: Tensor, sigma: Noise) -> Tensor:
        # `_peer` takes |x|^2 off again.
        return logits(flat, sigma).double() + flat.double().square().sum(1)[:, None] / 2 / sigma**2

    return _peer(images, mean, shifted)


def _sdpa(images: Tensor) -> Prepared:
    """Attention with the data as keys and values and ``-|y|^2 / 2 sigma^2`` as additive mask.

    Four axes and a mask keep it on the fused CPU kernel. An extra key channel instead of the mask
    was slower at every B (values padded to match) or left the fused kernel (values as they are).
    """
    rows = _rows(images)
    half = _minus_half_squares(rows).float()
    keys = rows[None, None]

    def mean(flat: Tensor, sigma: Noise) -> Tensor:
        mask = (half / sigma**2).expand(flat.shape[0], -1)[None, None]
        query = (flat / sigma**2)[None, None]
        return F.scaled_dot_product_attention(query, keys, keys, attn_mask=mask, scale=1.0)[0, 0]

    return _peer(images, mean, None)


PEERS = (
    Contender("expanded", partial(_expanded, dtype=torch.float32), rival=True),
    Contender("expanded-chunks", _expanded_chunks, rival=True),
    Contender("cdist", _cdist, rival=True),
    Contender("sdpa", _sdpa, "no logsumexp: judged on the mean", rival=True),
    Contender(
        "expanded-float64",
        partial(_expanded, dtype=torch.float64),
        "data held as float64 (2x)",
    ),
    Contender(
        "expanded-bf16", _expanded_bf16, "products in bfloat16: not accurate, least at small sigma"
    ),
)
