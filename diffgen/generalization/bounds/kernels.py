"""Positive definite kernels between samples, and their means over sets, block by block.

| name         | k(x, y)                                  | largest value B |
|--------------|------------------------------------------|-----------------|
| `rbf`        | exp(-|x - y|^2 / (2 bandwidth^2))        | 1               |
| `polynomial` | (x.y / F + 1)^3, F the features          | none            |

The cubic polynomial on features of an image network is the kernel of KID. Everything is float64; no
matrix of all pairs is kept.

Source: Gretton et al., A kernel two-sample test (2012); Binkowski et al., Demystifying MMD GANs
(2018), arXiv:1801.01401 (KID).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

_BLOCK_PAIRS = 1 << 20
"""Pairs held at once: 8 MiB for each temporary."""


@dataclass(frozen=True)
class Kernel:
    """A kernel.

    Attributes:
        of_pairs: All pairs of ``(A, F)`` and ``(B, F)`` float64: ``(A, B)``.
        largest: B with ``0 <= k <= B``; infinity without one.
        bandwidth: Width, in the units of what it compares; None for kernels without.
    """

    of_pairs: Callable[[Tensor, Tensor], Tensor]
    largest: float
    bandwidth: float | None


def make_kernel(name: str, bandwidth: float | None = None) -> Kernel:
    """The kernel of a name.

    Args:
        name: A name in `KERNELS`.
        bandwidth: Width of ``rbf``, positive; refused for others.

    Raises:
        ValueError: An unknown name, or a bandwidth that is missing, out of range or of no use.

    Example:
        >>> kernel = make_kernel("rbf", bandwidth=1.0)
        >>> mean_kernel(torch.zeros(1, 1), torch.tensor([[0.0], [2.0]]), kernel)
        tensor([0.5677], dtype=torch.float64)
    """
    if name not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {name!r}")
    return KERNELS[name](bandwidth)


def _rbf(bandwidth: float | None) -> Kernel:
    if bandwidth is None or not 0 < bandwidth < inf:
        raise ValueError(f"bandwidth must be positive and finite, got {bandwidth}")
    scale = -0.5 / bandwidth**2

    def of_pairs(x: Tensor, y: Tensor) -> Tensor:
        squared = torch.addmm(y.square().sum(1), x, y.mT, alpha=-2.0)
        return (squared.add_(x.square().sum(1, keepdim=True)).clamp_(min=0) * scale).exp_()

    return Kernel(of_pairs, largest=1.0, bandwidth=bandwidth)


def _polynomial(bandwidth: float | None) -> Kernel:
    if bandwidth is not None:
        raise ValueError(f"bandwidth must be None for the polynomial kernel, got {bandwidth:g}")
    return Kernel(lambda x, y: (x @ y.mT / x.shape[1] + 1) ** 3, largest=inf, bandwidth=None)


KERNELS: dict[str, Callable[[float | None], Kernel]] = {"rbf": _rbf, "polynomial": _polynomial}
"""Every kernel by its name, made from a bandwidth."""


def mean_kernel(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """Mean of ``k(x_a, y_b)`` over the rows of y.

    Args:
        x: ``(A, F)``.
        y: ``(B, F)``, B >= 1.
        kernel: The kernel.

    Returns:
        ``(A,)`` float64.
    """
    return _row_sums(x, y, kernel) / len(y)


def mean_kernel_to_others(x: Tensor, kernel: Kernel) -> Tensor:
    """Mean of ``k(x_a, x_b)`` over the other rows, b != a: the terms of a U-statistic.

    Args:
        x: ``(A, F)``, A >= 2.
        kernel: The kernel.

    Returns:
        ``(A,)`` float64, whose mean is the U-statistic ``sum_{a != b} k / (A (A - 1))``.
    """
    return _row_sums(x, x, kernel, diagonal=False) / (len(x) - 1)


def _row_sums(x: Tensor, y: Tensor, kernel: Kernel, diagonal: bool = True) -> Tensor:
    x, y = x.to(torch.float64), y.to(torch.float64)
    step = max(1, _BLOCK_PAIRS // len(y))
    sums = []
    for start in range(0, len(x), step):
        pairs = kernel.of_pairs(x[start : start + step], y)
        if not diagonal:
            pairs.diagonal(start).zero_()
        sums.append(pairs.sum(1))
    return torch.cat(sums)
