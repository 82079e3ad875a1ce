"""How well a denoiser restores training and test points, in decibels, over the noise level.

    PSNR in:   10 log10(peak^2 / sigma^2)
    PSNR out:  10 log10(peak^2 D / |x0 - denoiser(x0 + sigma noise, sigma)|^2)

A denoiser that has learnt the distribution restores test points as well as training points; one
that has learnt its set restores training points better, and the difference is the memorisation.

Source: Kadkhodaie, Guth, Simoncelli, Mallat, Generalization in diffusion models arises from
geometry-adaptive harmonic representations (2024), figure 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.generalization.over_noise.forward import (
    Draws,
    PerPoint,
    Wrapper,
    check_finite,
    check_points,
    noised_points,
    squared_norm,
    time_grid,
)
from diffgen.generalization.statistics.bootstrap import (
    CONFIDENCE,
    bootstrap_means,
    percentile_interval,
)
from diffgen.network_output import prediction
from diffgen.processes import EDM
from diffgen.sampling import Denoiser


@dataclass(frozen=True)
class DenoisingPSNR:
    """PSNR of denoised training and test points at L noise levels, in dB.

    Attributes:
        sigmas: Noise levels, ``(L,)`` float64.
        input_psnr: Of the noisy points, by the noise level, ``(L,)`` float64.
        train: Of each denoised training point, ``(L, M)`` float64: the PSNR of its mean squared
            error over the repeats.
        test: Of each denoised test point, ``(L, M')`` float64.
        train_interval: Bootstrap interval of the mean over training points: two ``(L,)``.
        test_interval: The same of the test points.
        difference_interval: The same of the mean of train less that of test.
        settings: What determines the numbers beside the denoiser and the points.
    """

    sigmas: Tensor
    input_psnr: Tensor
    train: Tensor
    test: Tensor
    train_interval: tuple[Tensor, Tensor]
    test_interval: tuple[Tensor, Tensor]
    difference_interval: tuple[Tensor, Tensor]
    settings: dict[str, Any]

    @property
    def difference(self) -> Tensor:
        """Mean PSNR of training points less that of test points, ``(L,)``, dB."""
        return self.train.mean(1) - self.test.mean(1)


def denoising_psnr(
    denoiser: Denoiser,
    train_points: Tensor,
    test_points: Tensor,
    sigmas: Tensor | list[float],
    *,
    peak: float = 2.0,
    repeats: int = 1,
    num_bootstrap: int = 1000,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: Wrapper | None = None,
) -> DenoisingPSNR:
    """PSNR of a denoiser on training and on test points, over noise levels.

    Args:
        denoiser: ``(x, sigma) -> denoised``: an `EmpiricalDenoiser`, or a network through
            `as_denoiser`; sigma is ``(B,)`` float32.
        train_points: Points that it was made from, ``(M, *S)``, M >= 2.
        test_points: Points of the same distribution that it has not seen, ``(M', *S)``, M' >= 2.
        sigmas: Noise levels, ``(L,)``, positive, in the units of the data.
        peak: Range of the data: 2 for values from -1 to 1.
        repeats: Noises drawn for each point.
        num_bootstrap: Resamples of the intervals.
        generator: Source of noise and resamples, on the CPU; None is PyTorch's own.
        batch_size: Points in a call of the denoiser.
        progress: Wraps the pieces of work, as ``tqdm`` does.

    Returns:
        PSNR of each point. A point that is restored exactly has a PSNR of its float64 rounding.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument out of range; an output of another shape, or not finite.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> points = torch.zeros(100, 50)
        >>> found = denoising_psnr(lambda x, sigma: x, points, points, [0.1], generator=generator)
        >>> round(float(found.input_psnr)), round(float(found.train.mean()))
        (26, 26)

    Source:
        Kadkhodaie et al. (2024), figure 1.
    """
    if not peak > 0:
        raise ValueError(f"peak must be positive, got {peak:g}")
    check_points(train_points, "train_points")
    check_points(test_points, "test_points")
    grid = time_grid(EDM(), sigmas, finite=True)
    draws = Draws(generator, batch_size, progress, repeats)
    psnr = []
    for points in (train_points, test_points):
        error = PerPoint(len(grid.times), len(points), repeats)
        with torch.no_grad():
            for batch in noised_points(points, grid, draws):
                denoised = prediction(denoiser, batch.x_t, batch.t)
                check_finite(denoised, batch)
                error.add(batch, squared_norm(denoised - batch.x0))
        features = points[0].numel()
        # Below the rounding of the points nothing is told apart, and zero has no logarithm.
        floor = features * (torch.finfo(torch.float64).eps * peak) ** 2
        psnr.append(10 * (peak**2 * features / error.values.clamp(min=floor)).log10())
    train, test = psnr
    means = [
        bootstrap_means(values.T, num_bootstrap=num_bootstrap, generator=generator)
        for values in psnr
    ]
    return DenoisingPSNR(
        sigmas=grid.sigma,
        input_psnr=10 * (peak**2 / grid.sigma.square()).log10(),
        train=train,
        test=test,
        train_interval=percentile_interval(means[0]),
        test_interval=percentile_interval(means[1]),
        difference_interval=percentile_interval(means[0] - means[1]),
        settings={
            "peak": peak,
            "num_train": len(train_points),
            "num_test": len(test_points),
            "repeats": repeats,
            "num_bootstrap": num_bootstrap,
            "confidence": CONFIDENCE,
        },
    )
