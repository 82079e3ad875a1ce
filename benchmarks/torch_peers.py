"""The peers that one writes with PyTorch alone.

Each is given its best form: what depends on the data only (norms, other types) is made before the
clock starts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contender import Contender, Noise, Prepared, peer

CHUNK_ROWS = 4096


def _flat_peer(
    mean: Callable[[Tensor, Noise], Tensor],
    logits: Callable[[Tensor, Noise], Tensor] | None = None,
) -> Prepared:
    """A peer out of functions of flat queries; its logits leave out ``-|x|^2 / 2 sigma^2``."""

    def denoise(query: Tensor, sigma: Noise) -> Tensor:
        return mean(query.flatten(1), sigma).view(query.shape)

    def logsumexp(query: Tensor, sigma: float) -> Tensor:
        assert logits is not None
        flat = query.flatten(1)
        shift = flat.double().square().sum(1) / (2 * sigma**2)
        return torch.logsumexp(logits(flat, sigma).double(), 1) - shift

    return peer(denoise, None if logits is None else logsumexp)


def _minus_half_squares(rows: Tensor) -> Tensor:
    """``-|y|^2 / 2`` in float64, ``(N,)``."""
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square_().div_(-2)


def _expanded(images: Tensor, dtype: torch.dtype) -> Prepared:
    """``|x|^2 + |y|^2 - 2 x.y``, with ``|x|^2`` dropped because the softmax does not see it."""
    rows = images.flatten(1).to(dtype)
    half = _minus_half_squares(rows).to(dtype)

    def logits(flat: Tensor, sigma: Noise) -> Tensor:
        return torch.addmm(half, flat.to(dtype), rows.T).div_(sigma**2)

    def mean(flat: Tensor, sigma: Noise) -> Tensor:
        return (torch.softmax(logits(flat, sigma), 1) @ rows).to(flat.dtype)

    return _flat_peer(mean, logits)


def _expanded_tf32(images: Tensor) -> Prepared:
    """The same with the products in TF32, to which many set PyTorch: float32 on tensor cores."""
    plain = _expanded(images, torch.float32)
    assert plain.logsumexp is not None
    return peer(_in_tf32(plain.denoise), _in_tf32(plain.logsumexp))


def _in_tf32(method: Callable[[Tensor, Noise], Tensor]) -> Callable[[Tensor, Noise], Tensor]:
    def run(query: Tensor, sigma: Noise) -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return method(query, sigma)
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def _expanded_compiled(images: Tensor) -> Prepared:
    """The same under ``torch.compile``, compiled for any batch and any noise level."""
    rows = images.flatten(1)
    half = _minus_half_squares(rows).float()
    compiled = _compiled()

    def mean(flat: Tensor, sigma: Noise) -> Tensor:
        # A number would be compiled in, and each noise level anew.
        inverse = flat.new_empty(flat.shape[0], 1).copy_(torch.as_tensor(sigma)).pow_(-2)
        return compiled(flat, rows, half, inverse)

    return _flat_peer(mean)


def _two_products(flat: Tensor, rows: Tensor, half: Tensor, inverse: Tensor) -> Tensor:
    logits = torch.addmm(half, flat, rows.T) * inverse
    return torch.softmax(logits, 1) @ rows


_COMPILED: list[Callable[..., Tensor]] = []


def _compiled() -> Callable[..., Tensor]:
    """The compiled function, one for all sets; a recompilation too many is an error."""
    if not _COMPILED:
        _COMPILED.append(torch.compile(_two_products, dynamic=True, fullgraph=True))
    return _COMPILED[0]


def _expanded_bf16(images: Tensor) -> Prepared:
    """Products in bfloat16; norms and softmax in float32, where a second pass costs nothing."""
    rows = images.flatten(1)
    half = _minus_half_squares(rows).float()
    rows = rows.bfloat16()

    def logits(flat: Tensor, sigma: Noise) -> Tensor:
        return (flat.bfloat16() @ rows.T).float().add_(half).div_(sigma**2)

    def mean(flat: Tensor, sigma: Noise) -> Tensor:
        return (torch.softmax(logits(flat, sigma), 1).bfloat16() @ rows).float()

    return _flat_peer(mean, logits)


def _expanded_chunks(images: Tensor) -> Prepared:
    """The same by blocks of rows with a running maximum, so that no (B, N) buffer is needed."""
    rows = images.flatten(1)
    half = _minus_half_squares(rows).float()
    blocks = list(zip(rows.split(CHUNK_ROWS), half.split(CHUNK_ROWS), strict=True))

    def moments(flat: Tensor, sigma: Noise) -> tuple[Tensor, Tensor]:
        total, peak = (
            torch.zeros_like(flat),
            flat.new_full((flat.shape[0], 1), -torch.inf),
        )
        mass = torch.zeros_like(peak)
        for block, block_half in blocks:
            logits = torch.addmm(block_half, flat, block.T) / sigma**2
            new_peak = torch.maximum(peak, logits.detach().amax(1, keepdim=True))
            kept = torch.exp(peak - new_peak)
            weights = torch.exp(logits - new_peak)
            mass = mass * kept + weights.sum(1, keepdim=True)
            total = torch.addmm(total * kept, weights, block)
            peak = new_peak
        return total / mass, peak + mass.log()

    return _flat_peer(lambda x, s: moments(x, s)[0], lambda x, s: moments(x, s)[1])


def _cdist(images: Tensor) -> Prepared:
    """``torch.cdist``, squared, softmax, product: how most of the field writes it."""
    rows = images.flatten(1)

    def logits(flat: Tensor, sigma: Noise) -> Tensor:
        return torch.cdist(flat, rows).square().div(-2 * sigma**2)

    def mean(flat: Tensor, sigma: Noise) -> Tensor:
        return torch.softmax(logits(flat, sigma), 1) @ rows

    def shifted(flat: Tensor, sigma: Noise) -> Tensor:
        # `_flat_peer` takes |x|^2 off again.
        return logits(flat, sigma).double() + flat.double().square().sum(1)[:, None] / 2 / sigma**2

    return _flat_peer(mean, shifted)


def _sdpa(images: Tensor) -> Prepared:
    """Attention with the data as keys and values and ``-|y|^2 / 2 sigma^2`` as additive mask.

    Four axes and a mask keep it on the fused CPU kernel. An extra key channel instead of the mask
    was slower at every B (values padded to match) or left the fused kernel (values as they are).
    """
    rows = images.flatten(1)
    half = _minus_half_squares(rows).float()
    keys = rows[None, None]

    def mean(flat: Tensor, sigma: Noise) -> Tensor:
        mask = (half / sigma**2).expand(flat.shape[0], -1)[None, None]
        query = (flat / sigma**2)[None, None]
        return F.scaled_dot_product_attention(query, keys, keys, attn_mask=mask, scale=1.0)[0, 0]

    return _flat_peer(mean)


_MEAN_ONLY = "no logsumexp: judged on the mean"

TORCH_PEERS = (
    Contender("expanded", partial(_expanded, dtype=torch.float32), rival=True),
    Contender("expanded-compiled", _expanded_compiled, _MEAN_ONLY, rival=True, builds=True),
    Contender("expanded-chunks", _expanded_chunks, rival=True),
    Contender("cdist", _cdist, rival=True),
    Contender("sdpa", _sdpa, _MEAN_ONLY, rival=True),
    Contender(
        "expanded-float64",
        partial(_expanded, dtype=torch.float64),
        "data held as float64 (2x)",
    ),
    Contender(
        "expanded-bf16", _expanded_bf16, "products in bfloat16: not accurate, least at small sigma"
    ),
)

GPU_PEERS = (
    Contender(
        "expanded-tf32", _expanded_tf32, "products in TF32: not accurate, least at small sigma"
    ),
)
"""Peers that need a GPU to be what they are."""
