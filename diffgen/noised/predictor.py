"""The optimum of the forward-time objective over noised points, for a law of gaps.

With s drawn from q(s | t), the loss at t is ``E lam(t, s) |rho_s f(x_t) - e2|^2`` over s, the
noised points j of time s and the noise e2 of the step. At one x the density of (s, x) is
``q(s | t) p_s(x)``,

    p_s(x) = sum_j m_j N(x; (alpha_t / alpha_s) x_s^j, rho_s^2 sigma_t^2) / sum_j m_j,

and the f(x) of least loss, where ``sum_s q lam p_s rho_s (rho_s f - xi*_s)`` is 0, is

    f*(x) = sum_s v_s xi*_s(x) / rho_s,     v_s proportional to q(s | t) lam(t, s) rho_s^2 p_s(x):

a mean of the optima of the single gaps. Each p_s keeps its own normalisation, ``(2 pi rho_s^2
sigma_t^2)^(-D/2)``, as the bandwidths differ between gaps. In many dimensions they differ so much
that mostly one gap has nearly all of v: the one whose noised points x is nearest to, in units of
the step to t.

Source:
    Derived for diffgen; see `diffgen.noised.training_set`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffgen.checks import as_sigma
from diffgen.noised.gaps import Gap, gap_law
from diffgen.noised.posterior import NoisedPosterior
from diffgen.noised.steps import (
    DATA,
    GapWeighting,
    check_gap_weighting,
    gap_weights,
    step_between,
)
from diffgen.process_base import Process
from diffgen.processes import DDPM


class PosteriorSource(Protocol):
    """What the predictor asks of a set of noised points."""

    process: Process

    def posterior(
        self, x_t: Tensor, t: float | Tensor, s: float, class_labels: Tensor | None = None
    ) -> NoisedPosterior:
        """The posterior over the noised points of time s."""


class NoisedPredictor(nn.Module):
    """Where a network would stand: the optimum over noised points; made by ``predictor``.

    Attributes:
        points: The noised points.
        gap: The law q(s | t).
        weighting: lam(t, s).
    """

    def __init__(
        self,
        points: PosteriorSource,
        gap: Gap,
        weighting: GapWeighting,
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
    ) -> None:
        """Check the choices; see ``predictor``."""
        super().__init__()
        if not isinstance(points.process, DDPM):
            got = points.process
            raise ValueError(f"a law of gaps needs a process in discrete time, got {got!r}")
        check_gap_weighting(weighting)
        self.points = points
        self.gap = gap_law(gap, points.process)
        self.gap.probabilities(0)
        self.weighting = weighting
        self._progress = progress

    @torch.no_grad()
    def forward(self, x_t: Tensor, t: float | Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Predict epsilon.

        Args:
            x_t: Noisy points, ``(B, *S)``.
            t: Whole times, a number or 1 or B elements.
            class_labels: As for the noised points.

        Returns:
            ``(B, *S)`` in x_t's type, without gradient.

        Raises:
            TypeError: A type is wrong.
            ValueError: A time is not whole, or out of range; or as for the noised points.
        """
        times = as_sigma(t, x_t.shape[:1].numel(), x_t.device, "t")
        rows = self._rows(times)
        log_total = torch.full_like(times, -torch.inf)
        estimate = torch.zeros(x_t.shape, dtype=torch.float64, device=x_t.device)
        each = (-1, *[1] * (x_t.ndim - 1))
        work = sorted(rows)
        for s in self._progress(work) if self._progress else work:
            at, log_q = rows[s]
            labels = None if class_labels is None else class_labels[at]
            found = self.points.posterior(x_t[at], times[at], s, labels)
            earlier = torch.full_like(times[at], s)
            rho = step_between(self.points.process, times[at], earlier).rho
            weight = gap_weights(self.weighting, times[at], earlier, rho)
            log_v = log_q + weight.log() + 2 * rho.log() + found.log_density
            before = log_total[at]
            after = torch.logaddexp(before, log_v)
            share = torch.where(after > -torch.inf, (log_v - after).exp(), 0.0).reshape(each)
            estimate[at] = estimate[at].lerp(found.last_noise / rho.reshape(each), share)
            log_total[at] = after
        # Where no gap has a weight there is no optimum, and no number that could be taken for one.
        nothing = (log_total == -torch.inf).reshape(each)
        return estimate.masked_fill(nothing, torch.nan).to(x_t.dtype)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.points!r}, gap={self.gap!r}, weighting={self.weighting!r}"

    def _rows(self, times: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """For each s of positive probability: the queries that it concerns, and log q(s | t)."""
        found: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for t in times.unique().tolist():
            if t != int(t) or t < 0:
                raise ValueError(
                    f"t must be whole and at least 0 (as_denoiser(..., nearest=True)), got {t:g}"
                )
            at = (times == t).nonzero()[:, 0]
            log_q = self.gap.probabilities(int(t)).log()
            for place in (log_q > -torch.inf).nonzero()[:, 0].tolist():
                part = at, torch.full_like(times[at], float(log_q[place]))
                found.setdefault(place + DATA, []).append(part)
        return {
            s: (torch.cat([at for at, _ in parts]), torch.cat([log_q for _, log_q in parts]))
            for s, parts in found.items()
        }
