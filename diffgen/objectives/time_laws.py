"""Laws of training times: how often a network is asked at each noise level.

| name            | law                                                                          |
|-----------------|------------------------------------------------------------------------------|
| `"uniform"`     | uniform over the times of the process                                        |
| `"lognormal"`   | ``log(sigma_t / alpha_t)`` normal with mean -1.2 and deviation 1.2 (EDM)     |
| `"logit_normal"`| the same with mean 0 and deviation 1: under `RectifiedFlow`, where           |
|                 | ``sigma_t / alpha_t = t / (1 - t)``, the logit of t is standard normal       |

A law by noise level is one for every process: the time is found from the level, the nearest that a
process in discrete time has, and the end of the range for a level outside of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from diffgen.process_base import Process
from diffgen.processes import DDPM, EDM


class TimeLaw(Protocol):
    """Draws times of a process."""

    def __call__(
        self, process: Process, count: int, generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Times, ``(count,)`` of any numeric type, drawn on a device."""


Times: TypeAlias = str | TimeLaw | Callable[..., Tensor]


@dataclass(frozen=True)
class UniformTime:
    """Uniform over the times of a process: each of T steps, or the open interval of its range.

    Raises:
        ValueError: When drawn, if the process has no last time.

    Source:
        Ho et al. (2020), algorithm 1; Liu et al., Flow straight and fast (2023), equation 1.
    """

    def __call__(
        self, process: Process, count: int, generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Times, ``(count,)``: int64 in discrete time, float64 otherwise."""
        if isinstance(process, DDPM):
            return torch.randint(process.num_steps, (count,), generator=generator, device=device)
        first, last = process.time_range
        if not isfinite(last):
            raise ValueError(
                "times='uniform' needs a process with a last time, got "
                f"{process!r}; use times='lognormal'"
            )
        share = torch.rand(count, generator=generator, dtype=torch.float64, device=device)
        # Away from both ends, by what float32 times can tell: there a ratio may be 0 or infinite.
        edge = torch.finfo(torch.float32).eps / 2
        return first + (last - first) * share.clamp(edge, 1 - edge)


@dataclass(frozen=True)
class LogNormalRatio:
    """Noise levels ``sigma_t / alpha_t`` whose logarithm is normal.

    Args:
        mean: Of the logarithm, nats.
        std: Its standard deviation, positive.

    Raises:
        ValueError: A number is not finite, or std not positive.

    Example:
        >>> from diffgen.processes import EDM
        >>> generator = torch.Generator().manual_seed(0)
        >>> times = LogNormalRatio()(EDM(), 40_000, generator, torch.device("cpu"))
        >>> round(float(times.log().mean()), 1), round(float(times.log().std()), 1)
        (-1.2, 1.2)

    Source:
        Karras et al. (2022), table 1 (training noise distribution); Esser et al., Scaling rectified
        flow transformers (2024), section 3.1 (logit-normal times).
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (isfinite(self.mean) and isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"mean and std must be finite and std positive, got {self.mean:g} and {self.std:g}"
            )

    def __call__(
        self, process: Process, count: int, generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Times, ``(count,)``: int64 in discrete time, float64 otherwise."""
        z = torch.randn(count, generator=generator, dtype=torch.float64, device=device)
        return process.t_from_ratio((self.mean + self.std * z).exp(), nearest=True, clamp=True)


TIME_LAWS: dict[str, TimeLaw] = {
    "uniform": UniformTime(),
    "lognormal": LogNormalRatio(),
    "logit_normal": LogNormalRatio(0.0, 1.0),
}
"""Every named law."""


def time_law(times: Times | None, process: Process) -> TimeLaw:
    """The law of an argument ``times``.

    Args:
        times: A name; a callable ``(process, count, generator, device) -> times``; or None for what
            the process is trained with: ``"lognormal"`` for `EDM`, ``"uniform"`` for the others.
        process: The noising process.

    Raises:
        TypeError: Neither a name nor a callable.
        ValueError: No such name, or a law that the process cannot have.
    """
    if times is None:
        times = "lognormal" if isinstance(process, EDM) else "uniform"
    if isinstance(times, str):
        if times not in TIME_LAWS:
            raise ValueError(f"times must be one of {', '.join(TIME_LAWS)}, got {times!r}")
        law = TIME_LAWS[times]
        law(process, 1, torch.Generator().manual_seed(0), torch.device("cpu"))
        return law
    if not callable(times):
        raise TypeError(f"times must be a name or a callable, got {type(times).__name__}")
    return times


def draw_times(
    law: TimeLaw, process: Process, x0: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Times for a batch, in the type that the network gets them.

    Returns:
        ``(B,)`` on x0's device: int64 if the law gives integers, x0's type otherwise.

    Raises:
        ValueError: The law gives another shape.
    """
    source = x0.device if generator is None else generator.device
    times = law(process, len(x0), generator, source)
    if times.shape != (len(x0),):
        raise ValueError(f"times must give shape ({len(x0)},), got {tuple(times.shape)}")
    kind: Any = x0.dtype if times.is_floating_point() else torch.int64
    return times.to(x0.device, kind)
