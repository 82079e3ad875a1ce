"""What every noising process is: two scales over time, and the way back from their ratio."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf

import torch
from torch import Tensor

from diffgen.levels import Number, within

RATIO_SLACK = 1e-6
"""A ratio this much (relative) outside of the range is taken as its end: float32 callers round."""


class Process(ABC):
    """A noising process ``x_t = alpha(t) x0 + sigma(t) epsilon``, epsilon standard normal.

    ``sigma(t) / alpha(t)`` increases with t. A time may be a number or a tensor of any shape and
    numeric type; results are float64, of the same shape, on the same device.

    Attributes:
        time_range: First (least noisy) and last (most noisy) time.
        sampling_range: The times between which `times` places the steps of a sampler; the ratio
            is finite and positive there.
    """

    time_range: tuple[float, float]
    sampling_range: tuple[float, float]

    def alpha(self, t: Number) -> Tensor:
        """Signal scale at time t, float64.

        Raises:
            ValueError: t is NaN or outside of ``time_range`` (CPU, eager; NaN elsewhere).
        """
        return self._alpha(within(t, *self.time_range, "t"))

    def sigma(self, t: Number) -> Tensor:
        """Noise scale at time t, float64: the standard deviation of the noise in ``x_t``.

        Raises:
            ValueError: t is NaN or outside of ``time_range`` (CPU, eager; NaN elsewhere).
        """
        return self._sigma(within(t, *self.time_range, "t"))

    def ratio(self, t: Number) -> Tensor:
        """Noise level ``sigma(t) / alpha(t)`` at time t, float64; infinite where alpha is 0.

        Raises:
            ValueError: t is NaN or outside of ``time_range`` (CPU, eager; NaN elsewhere).
        """
        return self._ratio(within(t, *self.time_range, "t"))

    @property
    @abstractmethod
    def ratio_range(self) -> tuple[float, float]:
        """Smallest and largest noise level ``sigma_t / alpha_t``; the largest may be infinite."""

    def t_from_ratio(self, ratio: Number, *, nearest: bool = False, clamp: bool = False) -> Tensor:
        """Time at which ``sigma(t) / alpha(t)`` has a given value: the inverse of `ratio`.

        Args:
            ratio: Noise level, a number or a tensor of any shape, in the units of the data.
            nearest: Round to the nearest time that a process in discrete time has, as int64 (for
                networks with a table of times). A process in continuous time has every time.
            clamp: Take a ratio outside of ``ratio_range`` as its nearer end, instead of an error.

        Returns:
            float64 times (int64 where a discrete process rounds), of the ratio's shape.

        Raises:
            ValueError: A ratio is NaN, or outside of ``ratio_range`` without ``clamp``.

        Example:
            >>> from diffgen.processes import RectifiedFlow
            >>> RectifiedFlow().t_from_ratio([0.0, 1.0, float("inf")]).tolist()
            [0.0, 0.5, 1.0]
        """
        low, high = self.ratio_range
        if clamp:
            checked = within(ratio, -inf, inf, "ratio")
        else:
            slack = RATIO_SLACK
            checked = within(ratio, low * (1 - slack), high * (1 + slack), "ratio sigma_t/alpha_t")
        time = self._t_from_ratio(checked.clamp(low, high))
        return self._nearest(time) if nearest else time

    def times(self, n: int) -> Tensor:
        """The n times from the noisy end of ``sampling_range`` to the clean one, equally spaced.

        Raises:
            ValueError: n is not a positive integer.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        first, last = self.sampling_range
        return torch.linspace(last, first, n, dtype=torch.float64)

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _ratio(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _t_from_ratio(self, ratio: Tensor) -> Tensor: ...

    def _nearest(self, t: Tensor) -> Tensor:
        return t
