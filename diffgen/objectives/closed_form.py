"""Regression on the exact posterior mean of the target instead of the target of one sample.

    loss = E w(t) |network(x_t, t) - E[target | x_t, R]|^2

with R the whole training set, or a reference batch that holds the source of x_t. Both have the
gradient of `NoisePrediction` in expectation, with less variance: ``E[target | x_t, R]`` is a
conditional expectation of the same target, and the network sees only x_t.

For a reference batch that is because the source of x_t is, given the batch without its order and
before x_t is seen, any of its points alike: so the softmax over the batch is its posterior. Drop
the source from the batch, and the estimate is biased.

Source:
    Bertrand et al., On the closed form of flow matching (2025), arXiv:2506.03719 (the full set);
    Xu, Tong, Jaakkola, Stable target field for reduced variance score estimation (2023), equation 6
    and section 3 (the reference batch; the trace of the target's covariance).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffgen.checks import as_sigma
from diffgen.denoiser import EmpiricalDenoiser
from diffgen.network_output import prediction
from diffgen.objectives.noise_prediction import NoisePrediction
from diffgen.objectives.regression import Regression, checked_points, normal
from diffgen.objectives.time_laws import Times
from diffgen.objectives.weightings import Weighting, slope
from diffgen.process_base import Process
from diffgen.training_set import TrainingSet


class ClosedFormTarget(NoisePrediction):
    """Regress on ``E[target | x_t]`` over the training set, or over a batch with the source point.

    Args:
        process: The noising process.
        denoiser: The denoiser over the training set that x0 is drawn from, by its weights. None
            takes the batch itself as the reference set, and the ``reference`` points of a call.
        target: What the network predicts, as for `NoisePrediction`.
        times: Law of the times, as there.
        weighting: Weight over noise levels, as there.

    Raises:
        TypeError: denoiser is no `EmpiricalDenoiser`; or as for `NoisePrediction`.
        ValueError: As for `NoisePrediction`.

    Example:
        >>> from diffgen.processes import DDPM
        >>> ts = TrainingSet(torch.tensor([[-1.0], [1.0]]))
        >>> denoiser, process = EmpiricalDenoiser(ts), DDPM()
        >>> objective = ClosedFormTarget(process, denoiser)
        >>> optimum = denoiser.predictor(process, "epsilon")
        >>> float(objective(optimum, ts[[0, 1, 0, 1]])) < 1e-6  # nothing is left at the optimum
        True
    """

    def __init__(
        self,
        process: Process,
        denoiser: EmpiricalDenoiser | None = None,
        target: str = "epsilon",
        *,
        times: Times | None = None,
        weighting: Weighting = "unit",
    ) -> None:
        """Check the choices; see the class."""
        if not isinstance(denoiser, EmpiricalDenoiser | None):
            got = type(denoiser).__name__
            raise TypeError(f"denoiser must be an EmpiricalDenoiser or None, got {got}")
        super().__init__(process, target, times=times, weighting=weighting)
        self.denoiser = denoiser

    def __call__(
        self,
        network: Callable[..., Any],
        x0: Tensor,
        generator: torch.Generator | None = None,
        *,
        class_labels: Tensor | None = None,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, as `Objective.__call__`; the reference as in `draw`."""
        drawn = self.draw(
            x0,
            generator,
            class_labels=class_labels,
            reference=reference,
            reference_labels=reference_labels,
        )
        extra = {} if class_labels is None else {"class_labels": class_labels}
        return drawn.losses(prediction(network, drawn.x_t, drawn.t, **extra)).mean()

    def draw(
        self,
        x0: Tensor,
        generator: torch.Generator | None = None,
        *,
        class_labels: Tensor | None = None,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Regression:
        """The draws of one training step.

        Args:
            x0: Training points, ``(B, *S)``: the sources.
            generator: Source of the draws.
            class_labels: int ``(B,)``, -1 for none. The posterior of a sample runs over its class
                in the reference set; that of one without label over all points.
            reference: More points, ``(R, *S)``, drawn from the training set as x0 is; the reference
                set is x0 and these. Only without a denoiser.
            reference_labels: int ``(R,)``, where class_labels are given.

        Raises:
            TypeError: A type is wrong.
            ValueError: A shape is wrong; reference points beside a denoiser; labels without those
                of the reference.
        """
        checked_points(x0)
        over = self._over(x0, class_labels, reference, reference_labels)
        noised = self.noise(x0, generator)
        # The query as the network sees it, in float64, so that the target is a function of it.
        x_t = noised.x_t.detach().to(torch.float64)
        with torch.no_grad():
            mean = over.posterior_mean(x_t, noised.alpha, noised.sigma, class_labels)
        return self.regression(noised, mean, x_t)

    def target_variance(
        self,
        x0: Tensor,
        t: float | Tensor,
        generator: torch.Generator | None = None,
        *,
        class_labels: Tensor | None = None,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        """Trace of the covariance of one sample's target given x_t: what the closed form removes.

        At one x_t for each x0, drawn at time t. Over the whole set its mean is, for epsilon, the
        irreducible loss of noise prediction; over a reference batch it is less than that.

        Args:
            x0: Training points, ``(B, *S)``.
            t: Time in the convention of the process, a number or ``(B,)``.
            generator: Source of the noise.
            class_labels: As in `draw`.
            reference: As in `draw`.
            reference_labels: As in `draw`.

        Returns:
            ``(B,)`` float64: a sum over the elements, not their mean.

        Raises:
            TypeError: A type is wrong.
            ValueError: A shape is wrong, or t out of the process's range.

        Example:
            >>> from diffgen.processes import EDM
            >>> ts = TrainingSet(torch.tensor([[-1.0], [1.0]]))
            >>> objective = ClosedFormTarget(EDM(), EmpiricalDenoiser(ts))
            >>> objective.target_variance(ts[[0, 1]], 0.01) < 1e-9  # x_t says which point it was
            tensor([True, True])

        Source:
            Xu, Tong, Jaakkola (2023), section 3.
        """
        checked_points(x0)
        over = self._over(x0, class_labels, reference, reference_labels)
        time = as_sigma(t, len(x0), x0.device, "t")
        alpha, sigma = self.process.alpha(time), self.process.sigma(time)
        each = (-1, *[1] * (x0.ndim - 1))
        x_t = alpha.reshape(each) * x0 + sigma.reshape(each) * normal(x0, generator)
        # Pure noise says nothing: any query at an infinite level has the posterior of the set.
        pure = alpha == 0
        y = torch.where(pure.reshape(each), 0.0, x_t / alpha.reshape(each))
        with torch.no_grad():
            trace = over.posterior(y, sigma / alpha, class_labels).trace_covariance
        rate = slope(self._parameterization, alpha, sigma)
        # At pure noise epsilon and score do not depend on x0 and their slope is NaN.
        return torch.where(pure & rate.isnan(), 0.0, trace / rate.square())

    def settings(self) -> dict[str, Any]:
        """What determines the objective beside the draws, as numbers and words."""
        over = "batch" if self.denoiser is None else repr(self.denoiser.training_set)
        return {**super().settings(), "reference": over}

    def _over(
        self,
        x0: Tensor,
        class_labels: Tensor | None,
        reference: Tensor | None,
        reference_labels: Tensor | None,
    ) -> EmpiricalDenoiser:
        """The denoiser over the reference set of a batch."""
        if self.denoiser is not None:
            if reference is not None:
                raise ValueError("reference must be None beside a denoiser, got both")
            return self.denoiser
        points, labels = x0.detach(), class_labels
        if reference is not None:
            checked_points(reference)
            if reference.shape[1:] != x0.shape[1:]:
                raise ValueError(
                    f"reference must have samples of shape {tuple(x0.shape[1:])}, "
                    f"got {tuple(reference.shape[1:])}"
                )
            points = torch.cat([points, reference.detach().to(points)])
            labels = self._joined(class_labels, reference, reference_labels)
        if labels is None or bool((labels < 0).all()):
            # A query without a label needs none in the set, but may ask for "no class".
            labels = None if labels is None else torch.zeros_like(labels)
        else:
            # Points without a label count for queries without one: a class of their own.
            labels = torch.where(labels < 0, labels.max() + 1, labels)
        return EmpiricalDenoiser(TrainingSet(points, labels=labels))

    @staticmethod
    def _joined(
        class_labels: Tensor | None, reference: Tensor, reference_labels: Tensor | None
    ) -> Tensor | None:
        if (class_labels is None) != (reference_labels is None):
            raise ValueError("class_labels and reference_labels must be given together, got one")
        if class_labels is None or reference_labels is None:
            return None
        if reference_labels.shape != (len(reference),):
            need, got = len(reference), tuple(reference_labels.shape)
            raise ValueError(f"reference_labels must have shape ({need},), got {got}")
        return torch.cat([class_labels, reference_labels.to(class_labels)])
