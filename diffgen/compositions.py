"""Denoisers made of two others: one above a noise level and one below it, or a weighted mean."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from diffgen.levels import Number, per_sample
from diffgen.sampling import Denoiser


@dataclass(frozen=True)
class Hybrid:
    """The callable that `hybrid` returns."""

    first: Denoiser
    second: Denoiser
    switch_sigma: float

    def __call__(self, x: Tensor, sigma: Number, class_labels: Any = None) -> Tensor:
        """Denoise each sample with the denoiser of its own noise level.

        Args:
            x: Noisy samples, ``(B, *S)``.
            sigma: Noise level, a number or 1 or B elements.
            class_labels: Passed on where given; a tensor of B rows is split with its samples.

        Returns:
            Denoised samples, ``(B, *S)``.

        Raises:
            ValueError: sigma has neither 1 nor B elements.
        """
        levels = per_sample(sigma, x, "sigma").reshape(-1)
        early = levels >= self.switch_sigma
        if bool(early.all()):
            return _call(self.first, x, sigma, class_labels)
        if not bool(early.any()):
            return _call(self.second, x, sigma, class_labels)
        parts, places = [], []
        for denoiser, rows in ((self.first, early), (self.second, ~early)):
            place = rows.nonzero().reshape(-1)
            labels = class_labels[place] if isinstance(class_labels, Tensor) else class_labels
            parts.append(_call(denoiser, x[place], levels[place], labels))
            places.append(place)
        # Back into the order of the batch, as one gather: differentiable, and types promote.
        return torch.cat(parts)[torch.cat(places).argsort()]


@dataclass(frozen=True)
class Mixture:
    """The callable that `mixture` returns."""

    a: Denoiser
    b: Denoiser
    weight: Number

    def __call__(self, x: Tensor, sigma: Number, class_labels: Any = None) -> Tensor:
        """Denoise with both and average.

        Args:
            x: Noisy samples, ``(B, *S)``.
            sigma: Noise level, a number or 1 or B elements.
            class_labels: Passed on where given.

        Returns:
            Denoised samples, ``(B, *S)``.

        Raises:
            ValueError: The weight has neither 1 nor B elements.
        """
        # At the ends only one is asked: half the work, and nothing of a NaN of the other.
        if isinstance(self.weight, float) and self.weight in (0.0, 1.0):
            return _call(self.b if self.weight else self.a, x, sigma, class_labels)
        weight = per_sample(self.weight, x, "weight")
        from_a = _call(self.a, x, sigma, class_labels)
        from_b = _call(self.b, x, sigma, class_labels)
        kind = torch.promote_types(from_a.dtype, from_b.dtype)
        return torch.lerp(from_a.to(kind), from_b.to(kind), weight.to(kind))


def hybrid(first: Denoiser, second: Denoiser, switch_sigma: float) -> Hybrid:
    """One denoiser at high noise and another at low noise.

    ``D(x, sigma) = first(x, sigma) if sigma >= switch_sigma else second(x, sigma)``, sample by
    sample. With the empirical optimum on one side and a network on the other it shows at which
    noise levels a model memorises. Each call looks at sigma, which on an accelerator waits for it.

    Args:
        first: Denoiser of the high levels, where sampling begins.
        second: Denoiser of the low levels, where it ends.
        switch_sigma: The lowest level of the first, in the units of the data; 0 is the first
            everywhere, infinity the second.

    Returns:
        A denoiser ``(x, sigma, class_labels=None) -> denoised``. Each of the two sees its own
        samples only (as ``(B', *S)`` with sigma ``(B',)``), and is not called without any.

    Raises:
        ValueError: switch_sigma is negative or NaN.

    Example:
        >>> denoiser = hybrid(lambda x, sigma: x * 0, lambda x, sigma: x, switch_sigma=1.0)
        >>> denoiser(torch.ones(2, 1), torch.tensor([5.0, 0.5])).tolist()
        [[0.0], [1.0]]
    """
    if not switch_sigma >= 0:
        raise ValueError(f"switch_sigma must be at least 0, got {switch_sigma:g}")
    return Hybrid(first, second, float(switch_sigma))


def mixture(a: Denoiser, b: Denoiser, weight: Number) -> Mixture:
    """A weighted mean of two denoisers: ``D = (1 - weight) a + weight b``.

    The same mixture holds for their predictions of epsilon, score, v and velocity, which are affine
    in D.

    Args:
        a: The denoiser at weight 0.
        b: The denoiser at weight 1.
        weight: A finite number, or a tensor with 1 or B elements; outside of ``[0, 1]`` it
            extrapolates, as in guidance.

    Returns:
        A denoiser ``(x, sigma, class_labels=None) -> denoised``. At weight 0 or 1, given as a
        number, the other one is not called.

    Raises:
        ValueError: A weight is NaN or infinite.

    Example:
        >>> denoiser = mixture(lambda x, sigma: x * 0, lambda x, sigma: x, weight=0.25)
        >>> denoiser(torch.ones(1, 1), 1.0)
        tensor([[0.2500]])
    """
    if isinstance(weight, int | float):
        if not isfinite(weight):
            raise ValueError(f"weight must be finite, got {weight:g}")
        return Mixture(a, b, float(weight))
    tensor = torch.as_tensor(weight, dtype=torch.float64)
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"weight must be finite, got {tensor.tolist()}")
    return Mixture(a, b, tensor)


def _call(denoiser: Denoiser, x: Tensor, sigma: Number, class_labels: Any) -> Tensor:
    if class_labels is None:
        return denoiser(x, sigma)
    return denoiser(x, sigma, class_labels)
