"""Loss, gap and irreducible loss over time while a network trains, on fixed points and noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization.over_noise.forward import draw_points
from diffgen.generalization.over_noise.gap import GapCurve, denoiser_gap
from diffgen.generalization.over_noise.irreducible import irreducible_loss
from diffgen.network_output import prediction
from diffgen.process_base import Process
from diffgen.training.logs import Row
from diffgen.training.seeds import derived_generator
from diffgen.training_set import TrainingSet

NUM_TIMES = 8
"""Times of an evaluation that names none."""


class Evaluation:
    """Measures a network against the optimum of its training set.

    All evaluations of a run see the same points with the same noise, so that their differences are
    the network's. Losses and gaps are sums over the D elements of a sample; divide by D to compare
    them with the training loss of the history.

    Args:
        process: The noising process.
        target: What the network predicts, a name in ``PARAMETERIZATIONS``.
        training_set: The set it is trained on.
        test_set: Points that it does not see, a set or ``(M, *S)``; None for none.
        times: ``(T,)`` times; None for `NUM_TIMES`, equally spaced in the logarithm of the noise.
        num_samples: Training points, and test points at most, that are noised.
        seed: Seed of points and noise.

    Raises:
        ValueError: Test points of another shape, or a time that the process has not.

    Example:
        >>> from diffgen import processes
        >>> from diffgen.networks import MLP
        >>> points = TrainingSet(torch.randn(20, 2, generator=torch.Generator().manual_seed(0)))
        >>> evaluation = Evaluation(processes.DDPM(), "epsilon", points, times=[100, 500])
        >>> rows = evaluation.rows(MLP((2,), width=16, depth=1), step=0)
        >>> [(row["split"], row["t"]) for row in rows]
        [('train', 100), ('train', 500)]
    """

    def __init__(
        self,
        process: Process,
        target: str,
        training_set: TrainingSet,
        test_set: TrainingSet | Tensor | None = None,
        times: Any = None,
        num_samples: int = 256,
        seed: int = 0,
    ) -> None:
        """Draw the points; see the class."""
        self._process = process
        self._target = target
        self._seed = seed
        self._denoiser = EmpiricalDenoiser(training_set)
        self._times = spread_times(process, NUM_TIMES) if times is None else times
        source = self._generator("points")
        self._points = draw_points(training_set, num_samples, source)
        self._test_points = _test_points(test_set, num_samples, source, training_set)
        self._least: Tensor | None = None

    def rows(self, network: nn.Module, step: int) -> list[Row]:
        """Measure a network.

        Args:
            network: ``(x_t, t) -> prediction``; in evaluation mode meanwhile.
            step: The step that the rows are of.

        Returns:
            A row for each kind of points (``split``: ``train``, ``test``) and time t, with the
            ``loss`` there, that of the optimum on the same draws (``optimum_loss``), the
            ``irreducible_loss`` L*(t) of the training set, and the ``gap``, with its bootstrap
            interval over the points (``gap_low``, ``gap_high``).
        """
        if self._least is None:
            self._least = irreducible_loss(
                self._denoiser,
                self._process,
                self._times,
                target=self._target,
                points=self._points,
                generator=self._generator("irreducible loss"),
            ).mean
        training = network.training
        network.eval()
        try:
            kind = point_type(network)
            test = self._test_points
            found = denoiser_gap(
                _between_devices(network),
                self._denoiser,
                self._process,
                self._times,
                target=self._target,
                points=self._points.to(kind),
                test_points=None if test is None else test.to(kind),
                generator=self._generator("gap"),
            )
        finally:
            network.train(training)
        rows = []
        for split, curve in (("train", found.train), ("test", found.test)):
            if curve is not None:
                rows += self._rows_of(split, step, found.times, curve, self._least)
        return rows

    def _rows_of(
        self, split: str, step: int, times: Tensor, curve: GapCurve, least: Tensor
    ) -> list[Row]:
        assert curve.loss is not None and curve.optimum_loss is not None  # at noised points
        columns = {
            "t": times,
            "loss": curve.loss.mean(1),
            "optimum_loss": curve.optimum_loss.mean(1),
            "irreducible_loss": least,
            "gap": curve.mean,
            "gap_low": curve.interval[0],
            "gap_high": curve.interval[1],
        }
        lists = [column.tolist() for column in columns.values()]
        return [
            {"step": step, "split": split, **dict(zip(columns, values, strict=True))}
            for values in zip(*lists, strict=True)
        ]

    def _generator(self, purpose: str) -> torch.Generator:
        return derived_generator(self._seed, f"evaluation {purpose}")


def spread_times(process: Process, count: int) -> Tensor:
    """Times equally spaced in the logarithm of the noise level, least noisy first.

    Args:
        process: The noising process; the ends are those of its ``sampling_range``.
        count: How many, at least 2; fewer come back where a process in discrete time has no more.

    Returns:
        ``(T,)``: int64 for a process in discrete time, float64 otherwise.

    Example:
        >>> from diffgen.processes import DDPM
        >>> spread_times(DDPM(), 5)
        tensor([  0,  30, 302, 722, 999])
    """
    first, last = (float(process.ratio(t)) for t in process.sampling_range)
    ratios = torch.logspace(0, 1, count, base=last / first, dtype=torch.float64) * first
    times: Tensor = process.t_from_ratio(ratios, nearest=True, clamp=True).unique()
    return times


def _test_points(
    test_set: TrainingSet | Tensor | None,
    num_samples: int,
    generator: torch.Generator,
    training_set: TrainingSet,
) -> Tensor | None:
    if test_set is None:
        return None
    if isinstance(test_set, Tensor):
        order = torch.randperm(len(test_set), generator=generator)[:num_samples]
        points = test_set[order.to(test_set.device)]
    else:
        points = draw_points(test_set, min(num_samples, len(test_set)), generator)
    if points.shape[1:] != training_set.sample_shape:
        raise ValueError(
            f"test_set must have samples {training_set.sample_shape}, got {tuple(points.shape[1:])}"
        )
    return points.to(training_set.device)


def point_type(network: nn.Module) -> torch.dtype:
    """The type in which a network gets its points: float64 for a float64 one, else float32."""
    double = any(p.dtype == torch.float64 for p in network.parameters())
    return torch.float64 if double else torch.float32


def _between_devices(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The network for points that may be on another device than its parameters."""
    device = next(network.parameters()).device

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        return prediction(network, x_t.to(device), t.to(device)).to(x_t.device)

    return predict
