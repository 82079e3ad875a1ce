"""Same noise, two models: how similar are the samples?

A deterministic sampler maps a noise to a sample. Two models that have learnt the same distribution
map one noise to similar samples, even where they were trained on different points; two models that
have learnt their sets do not. Beside the similarity of two models stand its yardsticks:

* *seed to seed*: models of one kind that differ by their seed alone, the most to be expected;
* *chance*: samples of different noises, the least to be expected.

Cosines of images without a center are high for any two images, since all share their mean image;
the level of chance shows by how much, and ``center`` takes it away.

Source: Kadkhodaie, Guth, Simoncelli, Mallat (2024), two disjoint sets; Zhang et al., The emergence
of reproducibility and consistency in diffusion models (2024), the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.generalization.over_noise.forward import (
    Wrapper,
    check_counts,
    check_points,
    unit_noise,
)
from diffgen.generalization.statistics.bootstrap import (
    CONFIDENCE,
    NUM_BOOTSTRAP,
    percentile_interval,
)
from diffgen.sampling import Denoiser, sample

DETERMINISTIC = ("ddim", "euler", "heun")
"""Samplers that map a noise to one sample."""


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between flattened samples, ``(M,)`` float64; 0 beside a zero sample.

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])).round(decimals=4)
        tensor([0.7071], dtype=torch.float64)
    """
    a, b = a.double().flatten(1), b.double().flatten(1)
    norms = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norms > 0, (a * b).sum(1) / norms, 0.0)


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Distance of flattened samples, ``(M,)`` float64: small is similar.

    Example:
        >>> l2(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
        tensor([5.], dtype=torch.float64)
    """
    distance: Tensor = (a.double() - b.double()).flatten(1).norm(dim=1)
    return distance


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """``10 log10(2^2 D / |a - b|^2)`` in dB, for data from -1 to 1, ``(M,)`` float64.

    At most about 313 dB, that of a difference of float64 rounding.

    Example:
        >>> psnr(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.8, 0.8]])).round(decimals=3)
        tensor([20.], dtype=torch.float64)
    """
    mean_square = (a.double() - b.double()).flatten(1).square().mean(1)
    return 10 * (4 / mean_square.clamp(min=(2 * torch.finfo(torch.float64).eps) ** 2)).log10()


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine,
    "l2": l2,
    "psnr": psnr,
}
"""Similarities of two batches of samples, by name."""


@dataclass(frozen=True)
class SameNoiseSimilarity:
    """Similarities of models over M noises, and their yardsticks.

    Attributes:
        across: Of each model of the first kind with each of the second, ``(A, B, M)`` float64.
        within_first: Of pairs of different models of the first kind, ``(A, A, M)``; NaN on the
            diagonal.
        within_second: The same of the second kind, ``(B, B, M)``.
        chance: Like ``across``, between samples of different noises, ``(A, B, M)``.
        intervals: Bootstrap intervals of the means, by name: ``across``, ``chance``, and where a
            kind has several models ``within_first``, ``within_second``, and ``difference``: the
            mean of ``across`` less the mean of the seed-to-seed ones. They cover other noises, and
            for kinds of several models other models of the kind.
        settings: What determines the numbers beside the models.
    """

    across: Tensor
    within_first: Tensor
    within_second: Tensor
    chance: Tensor
    intervals: dict[str, tuple[float, float]]
    settings: dict[str, Any]

    @property
    def means(self) -> dict[str, float]:
        """The means that `intervals` are of, by the same names."""
        everything = torch.ones(1, self.across.shape[2], dtype=torch.float64)
        all_a, all_b = torch.arange(self.across.shape[0]), torch.arange(self.across.shape[1])
        found = _statistics(self._tables(), all_a, all_b, everything)
        return {name: float(value) for name, value in found.items()}

    def _tables(self) -> dict[str, Tensor]:
        return {
            "across": self.across,
            "chance": self.chance,
            "within_first": self.within_first,
            "within_second": self.within_second,
        }


def same_noise_samples(
    models: Sequence[Denoiser],
    noise: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    sampler: str = "ddim",
    batch_size: int = 256,
    progress: Wrapper | None = None,
) -> Tensor:
    """Samples of several models from the same noise, ``(K, M, *S)``.

    Args:
        models: K denoisers ``(x, sigma) -> denoised``.
        noise: Standard normal, ``(M, *S)``; each starts at ``sigmas[0]`` times it. The models get
            its type.
        sigmas: Noise levels of the sampler, decreasing to 0.
        sampler: A deterministic one: ``"ddim"``, ``"euler"`` or ``"heun"``.
        batch_size: Samples drawn at a time.
        progress: Wraps the models, as ``tqdm`` does.

    Raises:
        ValueError: No models, or a sampler that draws noise of its own.

    Example:
        >>> models = [lambda x, sigma: x.abs() * 0, lambda x, sigma: x.abs() * 0 + 1]
        >>> same_noise_samples(models, torch.randn(3, 1), [1.0, 0.0]).flatten(1).tolist()
        [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """
    if len(models) == 0:
        raise ValueError("models must be at least 1, got none")
    if sampler not in DETERMINISTIC:
        known = ", ".join(DETERMINISTIC)
        raise ValueError(f"sampler must be deterministic ({known}), got {sampler!r}")
    check_counts(batch_size=batch_size)
    check_points(noise, "noise")
    start = float(torch.as_tensor(sigmas, dtype=torch.float64)[0])
    drawn = []
    work: Iterable[Denoiser] = models
    for model in progress(work) if progress else work:
        parts = [
            sample(model, part.shape, sigmas, sampler=sampler, x_init=start * part)
            for part in noise.split(batch_size)
        ]
        drawn.append(torch.cat(parts))
    return torch.stack(drawn)


def same_noise_similarity(
    first: Sequence[Denoiser] | Tensor,
    second: Sequence[Denoiser] | Tensor,
    sigmas: Tensor | Sequence[float] | None = None,
    *,
    sample_shape: Sequence[int] | None = None,
    num_samples: int = 256,
    metric: str = "cosine",
    center: Tensor | None = None,
    sampler: str = "ddim",
    num_bootstrap: int = NUM_BOOTSTRAP,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: Wrapper | None = None,
) -> SameNoiseSimilarity:
    """How similar two kinds of models are, sample by sample of the same noise.

    Args:
        first: Models of the first kind, that differ by their seed: denoisers
            ``(x, sigma) -> denoised``; or their samples ``(A, M, *S)``, drawn from one noise.
        second: Models of the second kind, or their samples from that noise ``(B, M, *S)``.
        sigmas: Noise levels of the sampler; needed for models.
        sample_shape: S; needed for models.
        num_samples: M, at least 2, for models.
        metric: A name in `SIMILARITIES`; ``"l2"`` is a distance, small where samples are similar.
        center: What is subtracted from every sample, of its shape: the mean of the training set
            takes away from a cosine what all images share.
        sampler: A deterministic one.
        num_bootstrap: Resamples of the intervals.
        generator: Source of noise and resamples, on the CPU; None is PyTorch's own.
        batch_size: Samples drawn at a time.
        device: Where the models are; None is the CPU.
        progress: Wraps the models, as ``tqdm`` does.

    Returns:
        Similarities across the kinds, within each, and of different noises.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument out of range; shapes that do not fit.

    Example:
        >>> one, other = (lambda x, sigma: x / 2), (lambda x, sigma: x / 3)
        >>> found = same_noise_similarity([one], [other], [1.0, 0.0], sample_shape=(8,))
        >>> round(found.means["across"], 6)
        1.0
    """
    if metric not in SIMILARITIES:
        raise ValueError(f"metric must be one of {', '.join(SIMILARITIES)}, got {metric!r}")
    if num_bootstrap < 1:
        raise ValueError(f"num_bootstrap must be at least 1, got {num_bootstrap}")
    drawn: list[Tensor] = []
    noise: Tensor | None = None
    for kind in (first, second):
        if isinstance(kind, Tensor):
            drawn.append(kind)
            continue
        if sigmas is None or sample_shape is None:
            raise ValueError("sigmas and sample_shape must be given for models, got None")
        if noise is None:
            shape = (num_samples, *sample_shape)
            noise = unit_noise(shape, generator, torch.empty(0, device=device)).to(torch.float32)
        drawn.append(
            same_noise_samples(
                kind, noise, sigmas, sampler=sampler, batch_size=batch_size, progress=progress
            )
        )
    a, b = drawn
    _check_samples(a, b, center)
    if center is not None:
        a, b = a - center.to(a.device), b - center.to(b.device)
    measure = SIMILARITIES[metric]
    tables = {
        "across": _pairs(measure, a, b),
        # Every sample beside the one of the next noise.
        "chance": _pairs(measure, a, b.roll(1, 1)),
        "within_first": _others(_pairs(measure, a, a)),
        "within_second": _others(_pairs(measure, b, b)),
    }
    return SameNoiseSimilarity(
        **tables,
        intervals=_intervals(tables, num_bootstrap, generator),
        settings={
            "metric": metric,
            "centered": center is not None,
            "sampler": sampler,
            "num_steps": None if sigmas is None else len(sigmas) - 1,
            "num_first": len(a),
            "num_second": len(b),
            "num_samples": a.shape[1],
            "num_bootstrap": num_bootstrap,
            "confidence": CONFIDENCE,
        },
    )


def _check_samples(a: Tensor, b: Tensor, center: Tensor | None) -> None:
    if a.ndim < 3 or a.shape[1:] != b.shape[1:] or 0 in (len(a), len(b)):
        raise ValueError(
            "first and second must be samples (A, M, *S) and (B, M, *S) of one noise, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if a.shape[1] < 2:
        raise ValueError(f"num_samples must be at least 2 for an interval, got {a.shape[1]}")
    check_points(a.flatten(0, 1), "first")
    check_points(b.flatten(0, 1), "second")
    if center is not None and center.shape != a.shape[2:]:
        got = tuple(center.shape)
        raise ValueError(f"center must have shape {tuple(a.shape[2:])}, got {got}")


def _pairs(measure: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Similarity of every model of a with every one of b, ``(A, B, M)`` float64 on the CPU."""
    return torch.stack([torch.stack([measure(one, other).cpu() for other in b]) for one in a])


def _others(table: Tensor) -> Tensor:
    """Without the pairs of a model with itself."""
    itself = torch.eye(len(table), dtype=torch.bool)[:, :, None]
    return table.masked_fill(itself, torch.nan)


def _intervals(
    tables: dict[str, Tensor], num_bootstrap: int, generator: torch.Generator | None
) -> dict[str, tuple[float, float]]:
    num_a, num_b, count = tables["across"].shape
    drawn: dict[str, list[Tensor]] = {}
    for _ in range(num_bootstrap):
        # Models of a kind and noises; a kind of one model stays as it is.
        a, b = (torch.randint(size, (size,), generator=generator) for size in (num_a, num_b))
        noises = torch.randint(count, (count,), generator=generator)
        weights = torch.bincount(noises, minlength=count).to(torch.float64)[None]
        for name, value in _statistics(tables, a, b, weights).items():
            drawn.setdefault(name, []).append(value)
    found = {}
    for name, values in drawn.items():
        statistics = torch.stack(values)
        # A resample of one model, many times over, has no pair of different models.
        low, high = percentile_interval(statistics[~statistics.isnan()])
        found[name] = (float(low), float(high))
    return found


def _statistics(
    tables: dict[str, Tensor], a: Tensor, b: Tensor, weights: Tensor
) -> dict[str, Tensor]:
    """Means over chosen models and weighted noises; without those of kinds of one model."""
    chosen = {"across": (a, b), "chance": (a, b), "within_first": (a, a), "within_second": (b, b)}
    found = {}
    for name, (rows, columns) in chosen.items():
        if name.startswith("within") and len(rows) < 2:
            continue
        values = tables[name][rows[:, None], columns]  # (A, B, M)
        means = (values * weights).sum(2) / weights.sum()
        found[name] = means.nanmean()
    within = [value for name, value in found.items() if name.startswith("within")]
    if within:
        found["difference"] = found["across"] - torch.stack(within).nanmean()
    return found
