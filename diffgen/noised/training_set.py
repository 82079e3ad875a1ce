"""Finitely many noised points, and the optimum of the forward-time objective over them.

With M noised copies of each training point at time s, ``x_s^j = alpha_s x_i + sigma_s e_j``, fixed
once and for all, and only the noise e2 of the last step to t drawn anew,

    x_t = (alpha_t / alpha_s) x_s^j + rho sigma_t e2                  (rho: `diffgen.noised.steps`)

the best estimate of e2 is a softmax over the noised points with the bandwidth of that step alone:

    u  = softmax_j(log m_j - |x_t - (alpha_t / alpha_s) x_s^j|^2 / (2 rho^2 sigma_t^2))
    m_s(x_t) = sum_j u_j x_s^j,     xi*(x_t) = (x_t - (alpha_t / alpha_s) m_s(x_t)) / (rho sigma_t)

It is the empirical-optimal denoiser of n M other points. Taking the last step back,
``(x_t - rho sigma_t xi*) alpha_s / alpha_t = m_s``, gives a combination of noised points, not of
training points. As M grows ``xi* / rho`` becomes epsilon*, the optimum over the training set.

No noised point is stored: `diffgen.noised.points`. For a law of gaps, s drawn from q(s | t), see
`diffgen.noised.predictor`.

Source:
    Derived for diffgen from the objective of Yi, Sun, Li, On the Generalization of Diffusion Model
    (2023), arXiv:2305.14712, as summarised second-hand; not a statement of that paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import log, pi
from typing import Any

import torch
from torch import Tensor

from diffgen import functional
from diffgen.checks import NO_CLASS, as_labels, as_sigma, check_query
from diffgen.noised import counter_noise
from diffgen.noised.gaps import Gap
from diffgen.noised.points import PointsAt, points_at
from diffgen.noised.posterior import NoisedPosterior, Part, merged
from diffgen.noised.predictor import NoisedPredictor
from diffgen.noised.steps import GapWeighting, Step, step_between
from diffgen.posterior import EFFECTIVE_SAMPLE_SIZE, ENTROPY, TRACE
from diffgen.process_base import Process
from diffgen.readers.rows import squared_norms
from diffgen.set_view import SetView
from diffgen.training_set import TrainingSet

Wrapper = Callable[[Iterable[Any]], Iterable[Any]]
"""Passes the blocks of a pass through, as ``tqdm`` does."""

BLOCK_ELEMENTS = 1 << 20
"""Elements of a block of noised points, by default."""


class NoisedTrainingSet:
    """A training set with M noised copies of each point at every time, made when they are needed.

    A pass over one time costs one pass of the posterior over n M points and the making of
    ``n M D`` normal numbers; at a time without noise (the data) the copies are the points
    themselves, and count once. It holds one block of points at a time, about 40 bytes for each of
    its elements, beside the training set.

    Mirror images of a set with ``flip`` are points of their own, with noise of their own. Weights
    and class labels hold as for the training set.

    Args:
        training_set: The training points.
        copies: M, at least 1.
        process: The noising process.
        seed: Of all the noise, 64 bits, at least 0.
        block_elements: Elements of a block (at least one point is in it). Results are the same up
            to the rounding of the merge.
        backend: Which backend runs the posterior; see ``diffgen.backends()``.

    Attributes:
        training_set: As given, like the others.
        copies: See there.
        process: See there.
        seed: See there.

    Raises:
        TypeError: training_set is no `TrainingSet`.
        ValueError: A number is out of its range.

    Example:
        >>> from diffgen.processes import DDPM
        >>> ts = TrainingSet(torch.tensor([[-1.0], [1.0]]))
        >>> noised = NoisedTrainingSet(ts, copies=3, process=DDPM())
        >>> len(noised), noised.points(torch.tensor([[1, 2]]), s=0).shape
        (6, torch.Size([1, 1]))
        >>> xi = noised.optimum(torch.tensor([[0.9]]), t=300, s=299)
        >>> xi.shape
        torch.Size([1, 1])

    Source:
        See the module docstring.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        copies: int,
        process: Process,
        seed: int = 0,
        *,
        block_elements: int = BLOCK_ELEMENTS,
        backend: str = "auto",
    ) -> None:
        """Keep the set; see the class."""
        if not isinstance(training_set, TrainingSet):
            got = type(training_set).__name__
            raise TypeError(f"training_set must be a diffgen.TrainingSet, got {got}")
        for name, value, least, most in (
            ("copies", copies, 1, counter_noise.WORD + 1),
            ("seed", seed, 0, (1 << 64) - 1),
            ("block_elements", block_elements, 1, 1 << 62),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name} must be in [{least}, {most}], got {value}")
        self.training_set = training_set
        self.copies = copies
        self.process = process
        self.seed = seed
        self.block_elements = block_elements
        self.backend = backend
        self._features = training_set.view().data.shape[1]
        everyone = torch.arange(len(training_set), device=training_set.device)
        self._log_weights = training_set.log_weight_of(everyone)
        self._eligible = everyone[self._log_weights > -torch.inf]

    def __len__(self) -> int:
        """Number of noised points of one time, ``n M``."""
        return len(self.training_set) * self.copies

    def __repr__(self) -> str:
        """The call that made it."""
        return (
            f"NoisedTrainingSet({self.training_set!r}, copies={self.copies}, "
            f"process={self.process!r}, seed={self.seed})"
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the noised points beside the training set, as numbers and words."""
        return {"copies": self.copies, "process": repr(self.process), "seed": self.seed}

    def points(self, rows: Tensor, s: float) -> Tensor:
        """Noised points ``alpha_s x_i + sigma_s e`` by their place.

        Args:
            rows: Point and copy of each, ``(R, 2)`` int64.
            s: Time, in the convention of the process (a float32 number in continuous time); -1 is
                the data of one in discrete time.

        Returns:
            ``(R, *S)`` in the type of the decoded set: float32, or float64 for a float64 set. The
            noise is the same to the bit everywhere; see `diffgen.noised.counter_noise`.

        Raises:
            IndexError: No such point.
            ValueError: s is out of range, or rows are no words.
        """
        x = self._at(s).points(rows)
        return x.reshape(len(rows), *self.training_set.sample_shape)

    def blocks(self, s: float) -> Iterator[tuple[Tensor, Tensor]]:
        """The noised points of one time, block by block, by point and then copy.

        Args:
            s: Time, as in `points`.

        Yields:
            Rows ``(R, 2)`` and points ``(R, *S)`` as in `points`, of training points of positive
            weight; each training point once where s has no noise.
        """
        at = self._at(s)
        for start in at.starts(self._eligible):
            rows = at.rows(self._eligible, start)
            yield rows, at.points(rows).reshape(len(rows), *self.training_set.sample_shape)

    @torch.no_grad()
    def posterior(
        self,
        x_t: Tensor,
        t: float | Tensor,
        s: float,
        class_labels: Tensor | None = None,
        *,
        progress: Wrapper | None = None,
    ) -> NoisedPosterior:
        """The posterior over the noised points of time s, in one pass over them.

        Args:
            x_t: Noisy points, ``(B, *S)``, on the device of the set.
            t: Time of each, a number or ``(B,)``.
            s: Time of the noised points, before every t; as in `points`.
            class_labels: int ``(B,)``, -1 for the whole set: whose copies count for each.
            progress: Wraps the blocks of the pass, as ``tqdm`` does.

        Returns:
            float64, without gradient. A query that is not finite gives NaN in its own row.

        Raises:
            TypeError: A type is wrong.
            ValueError: A shape, a time or a label is wrong, or a label's class is empty.
            BackendError: No backend can run the problem.
        """
        shape = self.training_set.sample_shape
        check_query(x_t, shape, self.training_set.device)
        query = x_t.to(torch.float64).reshape(len(x_t), self._features)
        at = self._at(s)
        step = self._step(as_sigma(t, len(x_t), x_t.device, "t"), at)
        groups = self._groups(class_labels, len(x_t))
        starts = [at.starts(ids) for _, ids in groups]
        work = [(place, start) for place, of_group in enumerate(starts) for start in of_group]
        parts: list[Part | None] = [None] * len(groups)
        for place, start in progress(work) if progress else work:
            queries, ids = groups[place]
            steps = Step(*(scale[queries] for scale in step))
            part = self._part(query[queries], steps, at, ids, start)
            earlier = parts[place]
            parts[place] = part if earlier is None else merged(earlier, part)
        whole, log_total = _empty(query), torch.empty_like(step.rho)
        for (queries, ids), found in zip(groups, parts, strict=True):
            assert found is not None  # a group has a point, and so a block
            for values, value in zip(whole, found, strict=True):
                values[queries] = value
            log_total[queries] = self._log_weights[ids].logsumexp(0) + log(at.copies)
        each = (-1, *[1] * (x_t.ndim - 1))
        mean = whole.mean.reshape(x_t.shape)
        last = (x_t.to(torch.float64) - step.alpha.reshape(each) * mean) / step.sigma.reshape(each)
        spread = self._features * (step.sigma.log() + 0.5 * log(2 * pi))
        return NoisedPosterior(mean, last, whole.logsumexp - log_total - spread, *whole[2:])

    def optimum(
        self,
        x_t: Tensor,
        t: float | Tensor,
        s: float,
        class_labels: Tensor | None = None,
        *,
        progress: Wrapper | None = None,
    ) -> Tensor:
        """``xi*(x_t)``: the best estimate of the noise of the step from time s to t.

        In the scale of that noise: ``xi* / rho`` estimates epsilon. Arguments and errors are those
        of `posterior`.

        Returns:
            ``(B, *S)`` in x_t's type, without gradient.
        """
        found = self.posterior(x_t, t, s, class_labels, progress=progress)
        return found.last_noise.to(x_t.dtype)

    def predictor(
        self,
        gap: Gap = "previous",
        weighting: GapWeighting = "unit",
        *,
        progress: Wrapper | None = None,
    ) -> NoisedPredictor:
        """The optimal network of `ForwardTime` over these points: ``(x_t, t) -> epsilon``.

        Sample from it on every step of the process. Near a noised point x_s^j its epsilon is that
        of the step from s, times 1 / rho: DDIM's step from t to t - 1 then goes about half the way
        to the point, while one k times as long goes k / 2 of it, and diverges from k = 5 on.

        Args:
            gap: The law q(s | t), one with probabilities: ``"previous"``, ``"uniform"`` or a
                `TabulatedGap`. A call makes a pass for each s that it gives a probability to.
            weighting: lam(t, s), as for `ForwardTime`.
            progress: Wraps the times s of a call, as ``tqdm`` does.

        Returns:
            A module; ``as_denoiser(module, process, nearest=True)`` samples from it.

        Raises:
            TypeError: An option has the wrong type.
            ValueError: A process in continuous time, a law without probabilities, an unknown name.

        Example:
            >>> from diffgen import as_denoiser, processes, sample, schedules
            >>> process = processes.DDPM("cosine", num_steps=50)
            >>> ts = TrainingSet(torch.tensor([[-1.0], [1.0]]))
            >>> network = NoisedTrainingSet(ts, copies=2, process=process).predictor()
            >>> denoiser = as_denoiser(network, process, nearest=True)
            >>> levels = schedules.from_process(process, 50)
            >>> x = sample(denoiser, (4, 1), levels, generator=torch.Generator().manual_seed(0))
            >>> bool(((x.abs() - 1).abs() < 1e-3).all())  # at t = 0 only the data are left
            True
        """
        return NoisedPredictor(self, gap, weighting, progress)

    def _part(self, query: Tensor, step: Step, at: PointsAt, ids: Tensor, start: int) -> Part:
        """The posterior over one block of noised points."""
        rows = at.rows(ids, start)
        data = at.points(rows)
        weighted = self.training_set.view().log_weights is not None
        log_weights = self._log_weights[rows[:, 0]] if weighted else None
        found = functional.moments(
            SetView(data, 1.0, 0.0, squared_norms(data, 1.0), log_weights),
            query,
            step.sigma,
            step.alpha,
            functionals=True,
            backend=self.backend,
            check_values=False,
        )
        columns = (found.functionals[:, c] for c in (ENTROPY, EFFECTIVE_SAMPLE_SIZE, TRACE))
        return Part(found.mean, found.logsumexp, *columns)

    def _groups(
        self, class_labels: Tensor | None, batch: int
    ) -> list[tuple[slice | Tensor, Tensor]]:
        """The queries of one class, and the ids of the training points they may use."""
        training_set = self.training_set
        labels = as_labels(class_labels, batch, training_set.num_classes, self._eligible.device)
        of_points = training_set.labels
        if labels is None or of_points is None:
            return [(slice(None), self._eligible)]
        groups: list[tuple[slice | Tensor, Tensor]] = []
        for label in labels.unique().tolist():
            ids = self._eligible
            if label != NO_CLASS:
                ids = ids[of_points.to(ids.device)[ids] == label]
            if len(ids) == 0:
                raise ValueError(f"class_labels must name a class with points, got {label}")
            groups.append(((labels == label).nonzero()[:, 0], ids))
        return groups

    def _at(self, s: float) -> PointsAt:
        return points_at(
            self.training_set,
            self.process,
            s,
            copies=self.copies,
            seed=self.seed,
            block_elements=self.block_elements,
        )

    def _step(self, t: Tensor, at: PointsAt) -> Step:
        if len(t) and not bool((t > at.s).all()):
            s, earliest = float(at.s), float(t.min())
            raise ValueError(f"s must be before t, got s = {s:g} and t = {earliest:g}")
        return step_between(self.process, t, at.s.to(t.device))


def _empty(query: Tensor) -> Part:
    batch = query.new_empty(len(query))
    return Part(torch.empty_like(query), *(torch.empty_like(batch) for _ in range(4)))
