"""Laws of the gap: from which earlier time s a noisy point x_t is reached, q(s | t).

Any two times are one Gaussian step apart: `diffgen.noised.steps`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from diffgen.noised.steps import DATA
from diffgen.process_base import Process
from diffgen.processes import DDPM


class GapLaw(ABC):
    """A law q(s | t) on the times before t."""

    @abstractmethod
    def draw(self, process: Process, t: Tensor, generator: torch.Generator | None) -> Tensor:
        """Times s < t, ``(B,)``: int64 in discrete time, float64 otherwise.

        Args:
            process: The noising process.
            t: Times, ``(B,)``.
            generator: Source of the draws; None is PyTorch's own.
        """

    def probabilities(self, t: int) -> Tensor:
        """``q(s | t)`` for s = -1, 0, ..., t - 1 of a process in discrete time.

        Returns:
            ``(t + 1,)`` float64, summing to 1.

        Raises:
            ValueError: The law can only be drawn from.
        """
        raise ValueError(
            "gap must have probabilities here: 'previous', 'uniform' or a TabulatedGap, "
            f"got {self!r}"
        )

    def check(self, process: Process) -> None:
        """Checks that the process can have the law; ``ValueError`` if not."""
        return


class PreviousGap(GapLaw):
    """The step just before: ``s = t - 1``."""

    def draw(self, process: Process, t: Tensor, generator: torch.Generator | None) -> Tensor:
        """See the base class."""
        return t - 1

    def probabilities(self, t: int) -> Tensor:
        """See the base class."""
        return torch.eye(t + 1, dtype=torch.float64)[t]

    def check(self, process: Process) -> None:
        """See the base class."""
        if not isinstance(process, DDPM):
            raise ValueError(
                f"gap='previous' needs a process in discrete time, got {process!r}; "
                "use gap='uniform'"
            )

    def __repr__(self) -> str:
        """Its name."""
        return "previous"


class UniformGap(GapLaw):
    """Every earlier time alike, the data among them."""

    def draw(self, process: Process, t: Tensor, generator: torch.Generator | None) -> Tensor:
        """See the base class."""
        share = _uniform(t, generator)
        if isinstance(process, DDPM):
            return (share * (t + 1)).floor().long().clamp(max=t) - 1
        first, _ = process.time_range
        # Below 1 by what keeps s apart from t in the ratio of their scales.
        return first + (t.to(torch.float64) - first) * share.clamp(max=1 - 2.0**-24)

    def probabilities(self, t: int) -> Tensor:
        """See the base class."""
        return torch.full((t + 1,), 1 / (t + 1), dtype=torch.float64)

    def __repr__(self) -> str:
        """Its name."""
        return "uniform"


class TabulatedGap(GapLaw):
    """A law for discrete time by its weights.

    Args:
        weights: ``t -> (t + 1,)``: the weights of s = -1 (the data), 0, ..., t - 1, at least 0 and
            with a positive sum, to which they are normalised.

    Example:
        >>> law = TabulatedGap(lambda t: [1.0] + [0.0] * t)  # always from the data: DDPM's
        >>> law.probabilities(2)
        tensor([1., 0., 0.], dtype=torch.float64)
    """

    def __init__(self, weights: Callable[[int], Any]) -> None:
        """Keep the function; its values are checked where they are used."""
        self.weights = weights

    def draw(self, process: Process, t: Tensor, generator: torch.Generator | None) -> Tensor:
        """See the base class."""
        share = _uniform(t, generator)
        s = torch.empty_like(t)
        for time in t.unique().tolist():
            at = t == time
            cumulative = self.probabilities(time).cumsum(0).to(t.device)
            place = torch.searchsorted(cumulative, share[at] * cumulative[-1], right=True)
            s[at] = place + DATA
        return s

    def probabilities(self, t: int) -> Tensor:
        """See the base class."""
        weights = torch.as_tensor(self.weights(t), dtype=torch.float64)
        if weights.shape != (t + 1,):
            shape = tuple(weights.shape)
            raise ValueError(f"weights({t}) must be ({t + 1},), for s = -1 to t - 1, got {shape}")
        total = float(weights.sum())
        if not (bool((weights >= 0).all()) and 0 < total < torch.inf):
            got = weights.tolist()
            raise ValueError(f"weights({t}) must be >= 0 with a positive finite sum, got {got}")
        return weights / total

    def check(self, process: Process) -> None:
        """See the base class."""
        if not isinstance(process, DDPM):
            raise ValueError(f"a TabulatedGap needs a process in discrete time, got {process!r}")

    def __repr__(self) -> str:
        """Names the function."""
        return f"TabulatedGap({getattr(self.weights, '__qualname__', self.weights)})"


class DrawnGap(GapLaw):
    """A law given by its draws.

    Args:
        function: ``(t, generator) -> s``, with t and s ``(B,)``.
    """

    def __init__(self, function: Callable[[Tensor, torch.Generator | None], Tensor]) -> None:
        """Keep the function."""
        self.function = function

    def draw(self, process: Process, t: Tensor, generator: torch.Generator | None) -> Tensor:
        """See the base class.

        Raises:
            ValueError: The function gives another shape, no whole numbers in discrete time, or a
                time that is not before t (looked at on the CPU only).
        """
        s = torch.as_tensor(self.function(t, generator), device=t.device)
        discrete = isinstance(process, DDPM)
        if s.shape != t.shape:
            raise ValueError(f"gap must give shape {tuple(t.shape)}, got {tuple(s.shape)}")
        if discrete and s.is_floating_point():
            raise ValueError(f"gap must give integers, got {s.dtype}")
        first = DATA if discrete else process.time_range[0]
        if s.device.type == "cpu":
            bad = ~((s >= first) & (s < t))
            if bool(bad.any()):
                index = int(bad.nonzero()[0])
                raise ValueError(
                    f"gap must give times in [{first:g}, t), got {float(s[index]):g} "
                    f"for t = {float(t[index]):g}"
                )
        return s.to(torch.int64 if discrete else torch.float64)

    def __repr__(self) -> str:
        """Names the function."""
        return f"DrawnGap({getattr(self.function, '__qualname__', self.function)})"


Gap: TypeAlias = str | GapLaw | Callable[[Tensor, torch.Generator | None], Tensor]
"""``"previous"``, ``"uniform"``, a law, or ``(t, generator) -> s``."""

GAP_LAWS: dict[str, GapLaw] = {"previous": PreviousGap(), "uniform": UniformGap()}
"""Every named law."""


def gap_law(gap: Gap, process: Process) -> GapLaw:
    """The law of an argument ``gap``.

    Raises:
        TypeError: Neither a name nor a law nor a callable.
        ValueError: No such name, or a law that the process cannot have.
    """
    if isinstance(gap, str):
        if gap not in GAP_LAWS:
            raise ValueError(f"gap must be one of {', '.join(GAP_LAWS)}, got {gap!r}")
        law = GAP_LAWS[gap]
    elif isinstance(gap, GapLaw):
        law = gap
    elif callable(gap):
        law = DrawnGap(gap)
    else:
        raise TypeError(f"gap must be a name, a law or a callable, got {type(gap).__name__}")
    law.check(process)
    return law


def _uniform(t: Tensor, generator: torch.Generator | None) -> Tensor:
    source = t.device if generator is None else generator.device
    drawn = torch.rand(t.shape, generator=generator, dtype=torch.float64, device=source)
    return drawn.to(t.device)
