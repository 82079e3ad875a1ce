"""Samples and sets in whatever form a user has them.

Measures of generated data take a tensor, a file or folder that a training set could be read from,
or a model: a function that draws as many samples as it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.training_set import TrainingSet

Model: TypeAlias = Callable[[int, torch.Generator | None], Tensor]
"""``model(count, generator) -> samples``, ``(count, *S)``."""

Samples: TypeAlias = "Tensor | str | os.PathLike[str] | Model"
"""A tensor ``(M, *S)``; a path to a folder of images, an .npy, .npz or .safetensors file (or
another format of `TrainingSet.open`, 8-bit values read as -1 to 1); or a model."""

Points: TypeAlias = "TrainingSet | EmpiricalDenoiser | Tensor"
"""A training set, a denoiser over it (whose backend measures distances), or its rows."""


def as_samples(
    source: Samples,
    sample_shape: tuple[int, ...] | None = None,
    *,
    count: int | None = None,
    generator: torch.Generator | None = None,
    name: str = "samples",
) -> Tensor:
    """Samples as a tensor, checked.

    Args:
        source: A tensor, a path, or a model.
        sample_shape: The shape S that they must have; None for any.
        count: How many a model draws, and at most how many are taken of the others; None: all, and
            a model needs a number.
        generator: Passed to a model.
        name: What messages call the samples.

    Returns:
        ``(M, *S)``, floating point, finite, M >= 1.

    Raises:
        TypeError: Another kind of source, or a model that returns no tensor.
        ValueError: No samples, another shape, integers, values that are not finite, or a model
            without a count.
        FileNotFoundError: Nothing is at the path.
        DataError: The file is of no known format, or damaged.

    Example:
        >>> def model(count, generator):
        ...     return torch.randn(count, 3, generator=generator)
        >>> as_samples(model, (3,), count=5).shape
        torch.Size([5, 3])
    """
    if isinstance(source, str | os.PathLike):
        found = TrainingSet.open(source, labels=False)[:]
    elif isinstance(source, Tensor):
        found = source
    elif callable(source):
        if count is None:
            raise ValueError(f"count must be given where {name} come from a model, got None")
        with torch.no_grad():
            found = source(count, generator)
        if not isinstance(found, Tensor):
            got = type(found).__name__
            raise TypeError(f"{name} must be a tensor where a model draws them, got {got}")
    else:
        got = type(source).__name__
        raise TypeError(f"{name} must be a tensor, a path or a model, got {got}")
    found = found.detach()[:count] if found.ndim else found
    if found.ndim == 0 or len(found) == 0:
        raise ValueError(f"{name} must be (M, *S) with M >= 1, got {tuple(found.shape)}")
    if not found.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {found.dtype}")
    if sample_shape is not None and tuple(found.shape[1:]) != sample_shape:
        need = ", ".join(("M", *map(str, sample_shape)))
        raise ValueError(f"{name} must have shape ({need}), got {tuple(found.shape)}")
    bad = ~found.flatten(1).isfinite().all(1)
    if bad.any():
        raise ValueError(f"{name} must be finite, got sample {int(bad.nonzero()[0])}, which is not")
    return found


def as_denoiser_over(points: Points, name: str = "training_set") -> EmpiricalDenoiser:
    """A denoiser over a set, whose passes measure distances and densities.

    Args:
        points: A set, a denoiser over it, or rows ``(N, *S)``.
        name: What messages call it.

    Returns:
        The denoiser that was given, or one over the set.

    Raises:
        TypeError: Another kind of object.
        ValueError: Rows that make no set.

    Example:
        >>> len(as_denoiser_over(torch.eye(3)).training_set)
        3
    """
    if isinstance(points, EmpiricalDenoiser):
        return points
    if isinstance(points, TrainingSet):
        return EmpiricalDenoiser(points)
    if isinstance(points, Tensor):
        return EmpiricalDenoiser(TrainingSet(points))
    got = type(points).__name__
    raise TypeError(f"{name} must be a TrainingSet, an EmpiricalDenoiser or a tensor, got {got}")
