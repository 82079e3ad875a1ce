"""The peers that other packages offer; ``pip install 'diffgen[bench]'`` brings them.

Each import stands inside, so that a package that is missing is a row that says so.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.contender import Contender, Noise, Prepared, peer

_LIBRARIES: list[torch.library.Library] = []


def _keops(images: Tensor) -> Prepared:
    """KeOps: softmax of the distances and weighted sum in one reduction that it compiles."""
    from pykeops.torch import LazyTensor

    points = LazyTensor(images.flatten(1)[None])  # (1, N, D)

    def denoise(query: Tensor, sigma: Noise) -> Tensor:
        flat = query.flatten(1)
        # A number would be compiled in, and each noise level anew.
        scale = flat.new_empty(flat.shape[0], 1).copy_(torch.as_tensor(sigma)).pow_(-2).div_(2)
        squared = ((LazyTensor(flat[:, None]) - points) ** 2).sum(-1)
        logits = -squared * LazyTensor(scale[:, None])
        return logits.sumsoftmaxweight(points, axis=1).view(query.shape)

    return peer(denoise)


def _deepinv(images: Tensor) -> Prepared:
    """Deepinv's ``MMSE`` over the whole set as a tensor, its fastest mode."""
    _declare_missing_operators()
    from deepinv.models import MMSE

    # A device by its name, the default, has no `.type`, which `forward` asks for.
    model = MMSE(dataloader=images, device=torch.device("cpu"), dtype=torch.float32)

    def denoise(query: Tensor, sigma: Noise) -> Tensor:
        return model(query, sigma.flatten() if isinstance(sigma, Tensor) else sigma)

    return peer(denoise)


def _smalldiffusion(images: Tensor) -> Prepared:
    """Smalldiffusion's ``IdealDenoiser``, which gives epsilon."""
    _declare_missing_operators()
    from smalldiffusion import IdealDenoiser

    model = IdealDenoiser(images)

    def denoise(query: Tensor, sigma: Noise) -> Tensor:
        level = torch.as_tensor(sigma, dtype=query.dtype)
        if level.ndim:
            # It divides (N, B) distances and (B, *S) images by the same tensor.
            raise NotImplementedError("takes one noise level a call")
        return query - level * model(query, level)

    return peer(denoise)


def _faiss(images: Tensor, k: int) -> Prepared:
    """FAISS: the k nearest points, exactly, and the softmax over them alone."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    rows = images.flatten(1)
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows.numpy())
    nearest = min(k, len(rows))

    def denoise(query: Tensor, sigma: Noise) -> Tensor:
        flat = query.flatten(1)
        if flat.requires_grad:
            raise NotImplementedError("no gradient")
        distances, indices = index.search(flat.numpy(), nearest)
        logits = torch.from_numpy(distances).div_(-2 * sigma**2)
        weights = torch.softmax(logits, 1)[:, None]  # (B, 1, k)
        # One query at a time: (B, k, D) would be larger than the set.
        means = [w @ rows[i] for w, i in zip(weights, torch.from_numpy(indices), strict=True)]
        return torch.cat(means).view(query.shape)

    return peer(denoise)


def _declare_missing_operators() -> None:
    """Lets torchvision, which both packages import and neither needs here, be imported.

    Its wheel on PyPI is built for CUDA. Beside a CPU build of PyTorch its compiled operators do not
    load, and it then stumbles over two that it takes for granted.
    """
    if _LIBRARIES:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        _LIBRARIES.append(library)


_MEAN_ONLY = "gives no logsumexp: judged on the mean"
_TOP = "the {} nearest points only; judged on the mean"

LIBRARY_PEERS = (
    Contender("keops", _keops, f"{_MEAN_ONLY}; one thread at B=1", rival=True, builds=True),
    Contender("deepinv", _deepinv, _MEAN_ONLY, rival=True),
    Contender("smalldiffusion", _smalldiffusion, _MEAN_ONLY, rival=True),
    *(
        Contender(f"faiss-top{k}", partial(_faiss, k=k), _TOP.format(f"{k:,}"))
        for k in (200, 2_000)
    ),
)
