"""Where the posterior collapses onto one training point, and the regimes of noise around it.

On the way down in sigma, a path of the optimum passes two levels:

    sigma_s = sqrt(largest eigenvalue of Cov(training set))     speciation: the classes part
    sigma_c = the level below which max_i w_i > 0.9 for good    collapse: one training point is left

Above sigma_s the path does not know where it goes; between the two it has a class and no training
point; below sigma_c the optimum copies. A network that generalises leaves the optimum before.

sigma_c is measured on each path: that of a point under scaled noise, or states of a sampler. Copies
of a point that the set holds more than once count as one.

Source: Biroli, Bonnaire, de Bortoli, Mezard, Dynamical regimes of diffusion models (2024), the
three regimes, speciation by the covariance; the share of 0.9 is a convention.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization.over_noise.forward import Wrapper, check_points, unit_noise

SHARE = 0.9
"""Weight of one training point at which the posterior counts as collapsed."""

_TIE = 1 + 1e-9
"""Distances this close may belong to copies of one point, whose rows are then compared."""

_FIRST_LOOK = 4
"""Nearest points that are looked at for copies, at first."""


@dataclass(frozen=True)
class Collapse:
    """Collapse levels of M paths, and the weights they come from.

    Attributes:
        sigmas: Noise levels, ``(L,)`` float64, decreasing.
        max_weight: Largest posterior weight at each level, ``(L, M)`` float64.
        collapse_sigma: The highest level from which on ``max_weight > share`` at it and at all
            below, ``(M,)`` float64; 0 for a path that has not collapsed at the lowest level.
        interval: Bootstrap interval of `median`.
        speciation_sigma: Square root of the largest eigenvalue of the covariance of the set.
        settings: What determines the numbers beside the set.
    """

    sigmas: Tensor
    max_weight: Tensor
    collapse_sigma: Tensor
    interval: tuple[float, float]
    speciation_sigma: float
    settings: dict[str, Any]

    @property
    def median(self) -> float:
        """Median of the collapse levels: half of the paths have collapsed there."""
        return float(self.collapse_sigma.quantile(0.5))

    @property
    def collapsed(self) -> Tensor:
        """Share of the paths that have collapsed for good at each level, ``(L,)`` float64."""
        return (self.collapse_sigma >= self.sigmas[:, None]).double().mean(1)

    @property
    def regimes(self) -> list[str]:
        """What each level belongs to: ``"noise"``, ``"generalising"`` or ``"collapsed"``."""
        return [
            "noise"
            if sigma > max(self.speciation_sigma, self.median)
            else ("generalising" if sigma > self.median else "collapsed")
            for sigma in self.sigmas.tolist()
        ]


def collapse_level(
    denoiser: EmpiricalDenoiser,
    sigmas: Tensor | list[float],
    *,
    points: Tensor | None = None,
    states: Tensor | None = None,
    share: float = SHARE,
    num_bootstrap: int = 1000,
    generator: torch.Generator | None = None,
    progress: Wrapper | None = None,
) -> Collapse:
    """The noise level below which the posterior stays on one training point, for each path.

    Args:
        denoiser: Over a training set with equal weights.
        sigmas: Noise levels, ``(L,)``, positive, strictly decreasing, in the units of the data.
        points: Clean points, ``(M, *S)``, M >= 2, whose paths are ``point + sigma noise`` with one
            noise for all levels.
        states: Or the states of a sampler at the levels, ``(L, M, *S)``: what ``sample`` returns
            with ``trajectory=True`` over these sigmas, without its last state at 0.
        share: Weight that counts as collapsed, in ``[0.5, 1)``.
        num_bootstrap: Resamples of the interval.
        generator: Source of noise and resamples, on the CPU; None is PyTorch's own.
        progress: Wraps the levels, as ``tqdm`` does.

    Returns:
        The level of every path, and the regimes of the levels.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument out of range; both or none of points and states; unequal weights.
        BackendError: If no backend can run the problem.

    Example:
        >>> from diffgen import EmpiricalDenoiser, TrainingSet
        >>> data = torch.tensor([[-1.0], [1.0]])
        >>> denoiser = EmpiricalDenoiser(TrainingSet(data))
        >>> found = collapse_level(denoiser, [100.0, 0.1, 0.01], points=data)
        >>> found.median, found.regimes
        (0.1, ['noise', 'collapsed', 'collapsed'])

    Source:
        Biroli et al. (2024).
    """
    levels = _levels(sigmas)
    paths = _paths(levels, points, states, generator)
    if not 0.5 <= share < 1:
        raise ValueError(f"share must be in [0.5, 1), got {share:g}")
    if num_bootstrap < 1:
        raise ValueError(f"num_bootstrap must be at least 1, got {num_bootstrap}")
    _check_equal_weights(denoiser)
    values = levels.tolist()
    work: Iterable[int] = range(len(values))
    weights = torch.zeros(len(values), paths.count, dtype=torch.float64)
    with torch.no_grad():
        for k in progress(work) if progress else work:
            weights[k] = _max_weight(denoiser, paths.at(k, values[k]), values[k]).cpu()
    # From the lowest level up, as long as the weight stays.
    stays = (weights > share).flip(0).long().cumprod(0).sum(0)  # (M,) levels collapsed for good
    lowest = torch.cat([torch.zeros(1, dtype=torch.float64), levels.flip(0)])
    found = lowest[stays]
    drawn = torch.randint(paths.count, (num_bootstrap, paths.count), generator=generator)
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = found[drawn].quantile(0.5, dim=1).quantile(tails).tolist()
    return Collapse(
        sigmas=levels,
        max_weight=weights,
        collapse_sigma=found,
        interval=(low, high),
        speciation_sigma=speciation_level(denoiser),
        settings={
            "paths": "sampler" if states is not None else "noised points",
            "num_paths": paths.count,
            "num_points": len(denoiser.training_set),
            "share": share,
            "num_bootstrap": num_bootstrap,
            "identical_points": "count once",
            "backend": denoiser.backend,
        },
    )


def speciation_level(denoiser: EmpiricalDenoiser, *, num_iterations: int = 100) -> float:
    """Square root of the largest eigenvalue of the covariance of the training set.

    By power iteration with the kernel's covariance product at infinite noise, where the posterior
    is the set; no matrix is made. After k iterations the eigenvalue is right to about
    ``log(D) / k`` relative at worst, and much better where the first two are apart.

    Args:
        denoiser: Over the training set.
        num_iterations: k, products with the covariance, each a pass over the set.

    Returns:
        A noise level in the units of the data; 0 for a set whose points are all the same.

    Raises:
        ValueError: Fewer than one iteration.
        BackendError: If no backend can run the problem.

    Example:
        >>> from diffgen import EmpiricalDenoiser, TrainingSet
        >>> data = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(speciation_level(EmpiricalDenoiser(TrainingSet(data))), 4)  # sqrt((4 + 4) / 4)
        1.4142

    Source:
        Biroli et al. (2024); Kuczynski, Wozniakowski, Estimating the largest eigenvalue by the
        power and Lanczos algorithms with a random start (1992), the error.
    """
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
    points = denoiser.training_set
    start = torch.Generator().manual_seed(0)
    shape = (1, *points.sample_shape)
    v = torch.randn(shape, generator=start).to(points.device)
    center = torch.zeros_like(v)
    eigenvalue = 0.0
    with torch.no_grad():
        for _ in range(num_iterations):
            v = v / v.norm()
            product = denoiser.covariance_vector_product(center, inf, v)
            # Rayleigh's quotient: from below, and of second order in the error of v.
            eigenvalue = float((v.double() * product.double()).sum())
            if float(product.norm()) == 0:
                return 0.0
            v = product
    return sqrt(max(eigenvalue, 0.0))


@dataclass(frozen=True)
class _Paths:
    """Noisy points at each level: states, or points with their noise."""

    base: Tensor
    noise: Tensor | None

    @property
    def count(self) -> int:
        return len(self.base) if self.noise is not None else self.base.shape[1]

    def at(self, k: int, sigma: float) -> Tensor:
        if self.noise is None:
            return self.base[k]
        return (self.base.to(torch.float64) + sigma * self.noise).to(self.base.dtype)


def _paths(
    levels: Tensor,
    points: Tensor | None,
    states: Tensor | None,
    generator: torch.Generator | None,
) -> _Paths:
    if (points is None) == (states is None):
        got = "none" if points is None else "both"
        raise ValueError(f"one of points and states must be given, got {got}")
    if points is not None:
        check_points(points, "points")
        paths = _Paths(points, unit_noise(tuple(points.shape), generator, points))
    else:
        assert states is not None
        check_points(states, "states")
        if len(states) != len(levels):
            raise ValueError(f"states must be at the {len(levels)} sigmas, got {len(states)}")
        paths = _Paths(states, None)
    if paths.count < 2:
        raise ValueError(f"at least 2 paths are needed for an interval, got {paths.count}")
    return paths


def _levels(sigmas: Tensor | list[float]) -> Tensor:
    levels = torch.as_tensor(sigmas, dtype=torch.float64).detach().cpu()
    if levels.ndim != 1 or len(levels) == 0:
        raise ValueError(f"sigmas must be (L,) with L >= 1, got shape {tuple(levels.shape)}")
    if not bool(((levels > 0) & levels.isfinite()).all()) or bool((levels.diff() >= 0).any()):
        raise ValueError(
            f"sigmas must be positive, finite and strictly decreasing, got {levels.tolist()}"
        )
    return levels


def _check_equal_weights(denoiser: EmpiricalDenoiser) -> None:
    points = denoiser.training_set
    log_weights = points.log_weight_of(torch.arange(len(points)))
    if bool((log_weights != log_weights[0]).any()):
        raise ValueError("denoiser must be over a set with equal weights, got unequal ones")


def _max_weight(denoiser: EmpiricalDenoiser, x: Tensor, sigma: float) -> Tensor:
    """Weight of the nearest point and its copies, ``(M,)`` float64."""
    points = denoiser.training_set
    rows, width = torch.arange(len(x), device=x.device), min(_FIRST_LOOK, len(points))
    weight = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    while len(rows) > 0:
        posterior = denoiser.posterior(x[rows], sigma, top_k=width)
        copies = posterior.top_distances <= posterior.top_distances[:, :1] * _TIE
        tied = (copies.sum(1) > 1).nonzero()[:, 0]
        # Points at one distance may be different points: then only the first and its copies count.
        values = points[posterior.top_indices[tied]].flatten(2)
        copies[tied] &= (values == values[:, :1]).all(2)
        weight[rows] = (posterior.top_weights * copies).sum(1)
        rows = rows[copies.all(1)] if width < len(points) else rows[:0]
        width = min(4 * width, len(points))
    return weight
