"""Information about the training point in a noisy one, and the identity it obeys (I-MMSE).

With x = x0 + sigma noise, x0 a training point drawn by its weight, and w the posterior weights,

    I(index; x) = H(W) - E H(w)                    log n - E H(w) for equal weights
    dI / dgamma = E |x0 - D(x, sigma)|^2 / 2       gamma = 1 / sigma^2

The entropies and the errors of the denoiser come from one pass and by different ways, so that the
identity checks both. It is checked between neighbouring levels, integrated:

    I(sigma_a) - I(sigma_b) = int gamma E |x0 - D|^2 dlog sigma       from sigma_a to sigma_b

by Simpson's rule, with the conditional expectation ``trace Cov_w(x0)`` in place of the squared
error: less variance, the same mean. All levels see the same points and the same noise, so that the
Monte-Carlo error is that of the difference of both sides. The error of Simpson's rule is estimated
by the change when every second level is left out; that is at least about 15 times the error itself
where the levels are close enough for the rule.

The index is that of a distinct point: points that the set holds twice count as two.

Source: Guo, Shamai, Verdu, Mutual information and minimum mean-square error in Gaussian channels
(2005), theorem 2; Yi, Sun, Li (2023), arXiv:2305.14712, the empirical optimum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization.over_noise.forward import Wrapper, check_counts, draw_points, unit_noise
from diffgen.generalization.statistics.bootstrap import bootstrap_interval
from diffgen.generalization.statistics.standard_errors import agree, standard_error


@dataclass(frozen=True)
class Information:
    """Information, denoising error and numbers of neighbours at L levels, of M noised points.

    Attributes:
        sigmas: Noise levels, ``(L,)`` float64, increasing.
        entropy: Of the posterior weights, ``(L, M)`` float64, nats.
        squared_error: ``trace Cov_w(x0)``, the expected ``|x0 - D|^2`` given x, ``(L, M)`` float64.
        effective_sample_size: ``1 / sum w^2``, ``(L, M)`` float64.
        prior_entropy: H(W) of the weights of the set, nats; ``log n`` for equal weights.
        interval: Bootstrap interval of `information` at each level: two ``(L,)``.
        decrease: Of the information from each level to the next, by the entropies, for each point,
            ``(L - 1, M)`` float64.
        integral: The same by the identity, for each point, ``(L - 1, M)`` float64. Its mean is the
            decrease; of a single point it is not.
        quadrature_error: Estimate for the mean of ``integral``, ``(L - 1,)`` float64.
        settings: What determines the numbers beside the set.
    """

    sigmas: Tensor
    entropy: Tensor
    squared_error: Tensor
    effective_sample_size: Tensor
    prior_entropy: float
    interval: tuple[Tensor, Tensor]
    decrease: Tensor
    integral: Tensor
    quadrature_error: Tensor
    settings: dict[str, Any]

    @property
    def information(self) -> Tensor:
        """I(index; x), ``(L,)`` float64, nats."""
        return self.prior_entropy - self.entropy.mean(1)

    @property
    def mean_squared_error(self) -> Tensor:
        """``E |x0 - D|^2`` at each level, ``(L,)``: twice ``dI / dgamma``."""
        return self.squared_error.mean(1)

    @property
    def neighbors(self) -> Tensor:
        """Mean of ``exp H(w)``, ``(L,)`` float64: the number of effective neighbours."""
        return self.entropy.exp().mean(1)

    @property
    def z_score(self) -> Tensor:
        """Of ``decrease - integral``, ``(L - 1,)``, beyond the quadrature error: 0 within it."""
        difference = self.decrease - self.integral
        beyond = (difference.mean(1).abs() - self.quadrature_error).clamp(min=0)
        error = standard_error(difference)
        return torch.where(beyond == 0, 0.0, beyond / error) * difference.mean(1).sign()

    @property
    def identity_holds(self) -> bool:
        """Whether dI/dgamma = E|x0 - D|^2 / 2 between all levels: no z-score is beyond 4."""
        return agree(self.z_score)


def index_information(
    denoiser: EmpiricalDenoiser,
    sigmas: Tensor | list[float],
    *,
    points: Tensor | None = None,
    num_samples: int | None = 1000,
    panels: int = 4,
    num_bootstrap: int = 1000,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: Wrapper | None = None,
) -> Information:
    """The information about the index of the training point, over noise levels.

    Args:
        denoiser: Over the training set.
        sigmas: Noise levels, ``(L,)``, positive and finite, all different, L >= 2, in the units of
            the data.
        points: Training points to noise, ``(M, *S)``; None draws them from the set, by its
            weights. What is said holds for points that are drawn from it.
        num_samples: Points to draw; None for every one, once.
        panels: Steps of Simpson's rule between two levels, a multiple of 4.
        num_bootstrap: Resamples of the interval.
        generator: Source of points, noise and resamples, on the CPU; None is PyTorch's own.
        batch_size: Points in a pass over the data.
        progress: Wraps the pieces of work, as ``tqdm`` does.

    Returns:
        Information, errors and neighbours at the levels, and both sides of the identity.

    Raises:
        ValueError: An argument out of range.
        BackendError: If no backend can run the problem.

    Example:
        >>> from diffgen import EmpiricalDenoiser, TrainingSet
        >>> denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
        >>> found = index_information(denoiser, [0.01, 100.0])
        >>> found.information.round(decimals=3)  # one bit, and nothing
        tensor([0.6930, 0.0000], dtype=torch.float64)

    Source:
        Guo, Shamai, Verdu (2005), theorem 2.
    """
    levels = _levels(sigmas)
    check_counts(batch_size=batch_size)
    if panels < 4 or panels % 4:
        raise ValueError(f"panels must be a positive multiple of 4, got {panels}")
    if points is None:
        points = draw_points(denoiser.training_set, num_samples, generator)
    fine = _refined(levels, panels)
    shape = len(fine), len(points)
    entropy, error, counts = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    rows = torch.arange(len(points)).split(batch_size)
    work: Iterable[tuple[int, int]] = [(b, k) for b in range(len(rows)) for k in range(len(fine))]
    with torch.no_grad():
        for batch, k in progress(work) if progress else work:
            at = rows[batch]
            if k == 0:
                x0 = points[at.to(points.device)]
                noise = unit_noise(tuple(x0.shape), generator, points)
            sigma = float(fine[k].item())
            x = (x0.to(torch.float64) + sigma * noise).to(points.dtype)
            posterior = denoiser.posterior(x, sigma)
            entropy[k, at] = posterior.entropy.cpu()
            error[k, at] = posterior.trace_covariance.cpu()
            counts[k, at] = posterior.effective_sample_size.cpu()
    integral, coarse = _integrals(fine, error, panels)
    low, high = bootstrap_interval(
        entropy[::panels].T, num_bootstrap=num_bootstrap, generator=generator
    )
    prior = _prior_entropy(denoiser)
    return Information(
        sigmas=levels,
        entropy=entropy[::panels],
        squared_error=error[::panels],
        effective_sample_size=counts[::panels],
        prior_entropy=prior,
        interval=(prior - high, prior - low),
        decrease=entropy[::panels].diff(dim=0),
        integral=integral,
        quadrature_error=(integral - coarse).mean(1).abs(),
        settings={
            "num_samples": len(points),
            "num_points": len(denoiser.training_set),
            "flip": denoiser.training_set.flip,
            "panels": panels,
            "num_bootstrap": num_bootstrap,
            "backend": denoiser.backend,
        },
    )


def _levels(sigmas: Tensor | list[float]) -> Tensor:
    levels = torch.as_tensor(sigmas, dtype=torch.float64).detach().cpu()
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(f"sigmas must be (L,) with L >= 2, got shape {tuple(levels.shape)}")
    good = (levels > 0) & levels.isfinite()
    if not bool(good.all()):
        at = int((~good).nonzero()[0])
        raise ValueError(
            f"sigmas must be positive and finite, got {float(levels[at]):g} at index {at}"
        )
    levels = levels.sort().values
    if bool((levels.diff() == 0).any()):
        twice = float(levels[1:][levels.diff() == 0][0])
        raise ValueError(f"sigmas must all differ, got {twice:g} twice")
    return levels


def _refined(levels: Tensor, panels: int) -> Tensor:
    """The levels with ``panels - 1`` more between two, equally spaced in their logarithm."""
    share = torch.arange(panels, dtype=torch.float64) / panels
    between = levels[:-1, None] * (levels[1:] / levels[:-1])[:, None] ** share  # (L - 1, panels)
    return torch.cat([between.reshape(-1), levels[-1:]])


def _integrals(fine: Tensor, error: Tensor, panels: int) -> tuple[Tensor, Tensor]:
    """Integral of ``error / sigma^2`` over log sigma between levels, ``(L - 1, M)``.

    By Simpson's rule on all levels, and on every second one.
    """
    integrand = error / fine.square()[:, None]
    width = fine.log()[::panels].diff()[:, None]
    pieces = integrand[:-1].reshape(-1, panels, error.shape[1])
    ends = integrand[panels::panels, None]
    pieces = torch.cat([pieces, ends], 1)  # (L - 1, panels + 1, M)
    return _simpson(pieces) * width, _simpson(pieces[:, ::2]) * width


def _simpson(values: Tensor) -> Tensor:
    """Mean of a function over an interval from its values ``(L, k + 1, M)``, k even."""
    steps = values.shape[1] - 1
    odd, even = values[:, 1:-1:2].sum(1), values[:, 2:-1:2].sum(1)
    return (values[:, 0] + values[:, -1] + 4 * odd + 2 * even) / (3 * steps)


def _prior_entropy(denoiser: EmpiricalDenoiser) -> float:
    points = denoiser.training_set
    log_weights = points.log_weight_of(torch.arange(len(points))) - points.log_total_weight
    share = log_weights.exp()
    return float(-torch.where(share > 0, share * log_weights, 0.0).sum())
