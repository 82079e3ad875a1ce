"""A residual multilayer perceptron with time conditioning, for samples of few values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import log, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffgen.networks.initialization import drawn_from
from diffgen.networks.time_scale import TimeScale

_LONGEST_PERIOD = 10_000.0
"""Period of the slowest embedded wave, over 2 pi, in positions."""

# More is a slip, or a description that asks for all memory.
_WIDEST = 1 << 16
_DEEPEST = 1000


class MLP(nn.Module):
    """A time-conditioned residual network on flattened samples: ``(x_t, t) -> prediction``.

    ``h_0 = W x + b``; ``h_{k+1} = h_k + B silu(A norm(h_k) + P e(t))``; ``out = C silu(norm(h))``,
    with e(t) two layers over sines and cosines of the time. C starts at 0, so that a new network
    predicts 0: the mean of an epsilon or v target.

    It has no state beside its parameters, draws nothing and changes nothing in place, so that
    ``torch.func`` can run many of them as one.

    Args:
        sample_shape: Shape S of one sample.
        width: Features of h; None for 4 times the values of a sample, as a power of two in
            [128, 1024].
        depth: Residual blocks, at least 1.
        time_scale: How times are read; a mapping of its fields is taken too. By default t is the
            whole time of a DDPM of 1,000 steps.
        generator: Source of the initial weights, on the CPU; None is PyTorch's own.

    Attributes:
        arguments: What rebuilds it, as JSON has it.

    Raises:
        ValueError: A size below 1, or too large to be meant.

    Example:
        >>> network = MLP((1, 8, 8), width=64, generator=torch.Generator().manual_seed(0))
        >>> network(torch.randn(5, 1, 8, 8), torch.arange(5)).shape
        torch.Size([5, 1, 8, 8])

    Source:
        Vaswani et al., Attention is all you need (2017), section 3.5 (sines); He et al., Identity
        mappings in deep residual networks (2016) (the order of a block).
    """

    def __init__(
        self,
        sample_shape: Sequence[int],
        width: int | None = None,
        depth: int = 3,
        *,
        time_scale: TimeScale | Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw the initial weights; see the class."""
        super().__init__()
        self.sample_shape = tuple(int(size) for size in sample_shape)
        if min(self.sample_shape, default=1) < 1:
            raise ValueError(f"sample_shape must have sizes of 1 or more, got {self.sample_shape}")
        size = prod(self.sample_shape)
        chosen = default_width(size) if width is None else width
        for name, value, most in (("width", chosen, _WIDEST), ("depth", depth, _DEEPEST)):
            if not 1 <= value <= most:
                raise ValueError(f"{name} must be between 1 and {most}, got {value}")
        self.time_scale = TimeScale.read(time_scale)
        self.arguments: dict[str, Any] = {
            "sample_shape": list(self.sample_shape),
            "width": chosen,
            "depth": depth,
            "time_scale": asdict(self.time_scale),
        }
        with drawn_from(generator):
            self.time = _TimeFeatures(chosen)
            self.enter = nn.Linear(size, chosen)
            self.blocks = nn.ModuleList(_Block(chosen) for _ in range(depth))
            self.norm = nn.LayerNorm(chosen)
            self.leave = nn.Linear(chosen, size)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predict.

        Args:
            x_t: Noisy points, ``(B, *S)`` in the type of the parameters.
            t: Times, ``(B,)`` or one for all, of any numeric type.

        Returns:
            ``(B, *S)``.

        Raises:
            ValueError: x_t has another sample shape.
        """
        if x_t.shape[1:] != self.sample_shape:
            raise ValueError(
                f"x_t must be (B, {', '.join(map(str, self.sample_shape))}), got {tuple(x_t.shape)}"
            )
        t = t.reshape(-1)
        scale = self.time_scale.input_scale(t).to(x_t.dtype)
        features = F.silu(self.time(self.time_scale.position(t)))  # (B or 1, width)
        hidden = self.enter(scale[:, None] * x_t.flatten(1))
        for block in self.blocks:
            hidden = hidden + block(hidden, features)
        predicted: Tensor = self.leave(F.silu(self.norm(hidden)))
        return predicted.reshape(x_t.shape)


class _TimeFeatures(nn.Module):
    """Sines and cosines of a position, and two layers over them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_waves = max(1, min(width // 2, 64))
        self.first = nn.Linear(2 * self.num_waves, width)
        self.second = nn.Linear(width, width)

    def forward(self, position: Tensor) -> Tensor:
        steps = torch.arange(self.num_waves, device=position.device) / self.num_waves
        angles = position[:, None] * torch.exp(-log(_LONGEST_PERIOD) * steps)  # (B, num_waves)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(self.first.weight.dtype)
        features: Tensor = self.second(F.silu(self.first(waves)))
        return features


class _Block(nn.Module):
    """What one residual block adds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.time = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        added: Tensor = self.second(F.silu(self.first(self.norm(hidden)) + self.time(features)))
        return added


def default_width(size: int) -> int:
    """Features of an MLP over samples of so many values: a power of two in [128, 1024].

    Example:
        >>> default_width(64), default_width(2), default_width(784)
        (256, 128, 1024)
    """
    return min(1024, max(128, 1 << (4 * size - 1).bit_length()))
