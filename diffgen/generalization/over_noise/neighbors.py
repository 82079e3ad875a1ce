"""How many training points a noisy point could have come from, over the noise levels.

With w the posterior weights of the training points given ``x = x0 + sigma epsilon``, ``exp H(w)``
and ``1 / sum w^2`` are numbers of neighbours: 1 where the optimum has collapsed onto one training
point, all of them where the noise has drowned the image. ``log N - E H(w)`` is the information that
x has about which training point it came from.

Source: Yi, Sun, Li, On the Generalization of Diffusion Model (2023), arXiv:2305.14712, the
empirical optimum; Biroli et al., Dynamical regimes of diffusion models (2024), the collapse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser

Wrapper = Callable[[Iterable[float]], Iterable[float]]
"""Passes the noise levels through, as ``tqdm`` does."""


@dataclass(frozen=True)
class Neighbors:
    """Numbers of neighbours of M noised points at L noise levels.

    Attributes:
        sigmas: Noise levels, ``(L,)`` float64.
        entropy: Of the posterior weights, ``(L, M)`` float64, nats.
        effective_sample_size: ``1 / sum w^2``, ``(L, M)`` float64.
        information: ``log N - mean entropy``, ``(L,)`` float64, nats: what the noisy point says
            about the index of its training point, when the points are drawn from equal weights.
        settings: What determines the numbers beside the points and the set.
    """

    sigmas: Tensor
    entropy: Tensor
    effective_sample_size: Tensor
    information: Tensor
    settings: dict[str, Any]

    @property
    def count(self) -> Tensor:
        """``exp`` of the mean entropy over the points, ``(L,)``: a typical number of neighbours."""
        return self.entropy.mean(1).exp()

    @property
    def mean_count(self) -> Tensor:
        """Mean of ``exp H(w)`` over the points, ``(L,)``: at least `count`, by Jensen."""
        return self.entropy.exp().mean(1)


def effective_neighbors(
    denoiser: EmpiricalDenoiser,
    points: Tensor,
    sigmas: Tensor | list[float],
    *,
    generator: torch.Generator | None = None,
    progress: Wrapper | None = None,
) -> Neighbors:
    """Numbers of training points that noised points could have come from.

    The same unit noise is used at all levels, scaled, so that the curves over sigma are smooth.

    Args:
        denoiser: Over the training set.
        points: Clean points, ``(M, *S)`` floating point, M >= 1: training points, or others.
        sigmas: Noise levels, ``(L,)``, positive, in the units of the data.
        generator: Source of the noise; None is PyTorch's own.
        progress: Wraps the levels, as ``tqdm`` does.

    Returns:
        Entropy and effective sample size of every point at every level.

    Raises:
        ValueError: If points are none or of another shape, or levels are none or not positive.
        BackendError: If no backend can run the problem.

    Example:
        >>> from diffgen import EmpiricalDenoiser, TrainingSet
        >>> data = torch.tensor([[-1.0], [1.0]])
        >>> found = effective_neighbors(EmpiricalDenoiser(TrainingSet(data)), data, [0.01, 100.0])
        >>> found.count.round(decimals=3)
        tensor([1., 2.], dtype=torch.float64)

    Source:
        Yi, Sun, Li (2023), arXiv:2305.14712.
    """
    levels = torch.as_tensor(sigmas, dtype=torch.float64)
    if levels.ndim != 1 or len(levels) == 0:
        raise ValueError(f"sigmas must be (L,) with L >= 1, got shape {tuple(levels.shape)}")
    if not bool((levels > 0).all()):
        at = int((~(levels > 0)).nonzero()[0])
        raise ValueError(f"sigmas must be positive, got {float(levels[at]):g} at index {at}")
    if len(points) == 0:
        raise ValueError(f"points must be (M, *S) with M >= 1, got {tuple(points.shape)}")
    device = points.device if generator is None else generator.device
    noise = torch.randn(points.shape, generator=generator, dtype=torch.float64, device=device)
    noise = noise.to(points.device)
    values: list[float] = levels.tolist()
    entropy, size = [], []
    with torch.no_grad():
        for sigma in progress(values) if progress else values:
            x = (points.to(torch.float64) + sigma * noise).to(points.dtype)
            posterior = denoiser.posterior(x, sigma)
            entropy.append(posterior.entropy)
            size.append(posterior.effective_sample_size)
    stacked = torch.stack(entropy).cpu()
    num_points = len(denoiser.training_set)
    return Neighbors(
        sigmas=levels,
        entropy=stacked,
        effective_sample_size=torch.stack(size).cpu(),
        information=torch.tensor(float(num_points)).double().log() - stacked.mean(1),
        settings={
            "num_noised": len(points),
            "num_points": num_points,
            "flip": denoiser.training_set.flip,
            "backend": denoiser.backend,
        },
    )
