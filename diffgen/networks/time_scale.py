"""How a network reads the time of a noising process: a position to embed, a scale of its input.

| kind        | process              | position  | input scale           |
|-------------|----------------------|-----------|-----------------------|
| `linear`    | DDPM, rectified flow | scale t   | 1                     |
| `geometric` | VE, ``sigma = e^u``  | 100 u     | 1 / sqrt(1 + sigma^2) |
| `noise`     | EDM, ``sigma = t``   | 100 log t | 1 / sqrt(1 + sigma^2) |

with ``u = offset + scale t``. Positions span about 1,000, the range that sinusoidal embeddings are
made for. Where the variance grows with t, the input scale keeps what the network sees near 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, log
from typing import Any

import torch
from torch import Tensor

from diffgen.process_base import Process
from diffgen.processes import DDPM, EDM, VE, RectifiedFlow

KINDS = ("linear", "geometric", "noise")
"""How times are read."""

_SPAN = 1000.0
"""Positions of a process whose time ends."""

_PER_NAT = 100.0
"""Positions in a factor e of noise: 0.002 to 80 spans about 1,000."""

_LEAST_NOISE = 1e-6
"""Less noise than this is read as this: t = 0 has no logarithm."""


@dataclass(frozen=True)
class TimeScale:
    """How times are read; its fields are plain numbers, for checkpoints.

    Args:
        kind: One of `KINDS`.
        scale: Positions (``linear``) or nats of noise (``geometric``) in a unit of time.
        offset: Logarithm of the noise at t = 0 (``geometric``).

    Raises:
        ValueError: There is no such kind; a number is not finite.

    Example:
        >>> from diffgen.processes import RectifiedFlow
        >>> TimeScale.of(RectifiedFlow()).position(torch.tensor([0.0, 0.5, 1.0]))
        tensor([   0.,  500., 1000.])
    """

    kind: str = "linear"
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        for name, value in (("scale", self.scale), ("offset", self.offset)):
            if not isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    @classmethod
    def read(cls, value: TimeScale | Mapping[str, Any] | None) -> TimeScale:
        """A scale from what stands for one: itself, a mapping of its fields, None for the default.

        Raises:
            TypeError: A mapping with other fields.
        """
        if isinstance(value, TimeScale):
            return value
        return cls() if value is None else cls(**value)

    @classmethod
    def of(cls, process: Process) -> TimeScale:
        """The scale that suits a process.

        Args:
            process: One of `diffgen.processes`; of another, the time must end.

        Raises:
            ValueError: An unknown process whose time has no end.
        """
        if isinstance(process, DDPM):
            return cls("linear", _SPAN / process.num_steps)
        if isinstance(process, RectifiedFlow):
            return cls("linear", _SPAN)
        if isinstance(process, VE):
            span = log(process.sigma_max / process.sigma_min)
            return cls("geometric", span, log(process.sigma_min))
        if isinstance(process, EDM):
            return cls("noise")
        last = process.time_range[1]
        if not 0 < last < float("inf"):
            raise ValueError(
                f"process must have a last time, got {process!r}, which runs to {last}"
            )
        return cls("linear", _SPAN / last)

    def position(self, t: Tensor) -> Tensor:
        """What is embedded: float32, of t's shape."""
        if self.kind == "linear":
            return self.scale * t.to(torch.float32)
        return _PER_NAT * self._log_noise(t)

    def input_scale(self, t: Tensor) -> Tensor:
        """What the network's input is multiplied with: float32, of t's shape."""
        if self.kind == "linear":
            return torch.ones_like(t, dtype=torch.float32)
        return torch.rsqrt(1 + (2 * self._log_noise(t)).exp())

    def _log_noise(self, t: Tensor) -> Tensor:
        time = t.to(torch.float32)
        if self.kind == "geometric":
            return self.offset + self.scale * time
        return time.clamp(min=_LEAST_NOISE).log()
