"""What every objective is: a weighted least-squares regression on draws of ``(x_t, t, target)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.network_output import prediction
from diffgen.parameterizations import PARAMETERIZATIONS, Parameterization
from diffgen.process_base import Process


@dataclass(frozen=True)
class Regression:
    """Draws of one training step: where the network is asked, and what it should say there.

    ``loss_b = weight_b mean_over_elements |scale_b network(x_t, t)_b - target_b|^2``

    Attributes:
        x_t: Noisy points, ``(B, *S)``, in the type of the training points.
        t: Times in the convention of the process, ``(B,)``: int64 for a process in discrete time,
            the type of x_t otherwise. The scales of x_t are those of exactly these times.
        target: ``(B, *S)``, in the type of x_t; without gradient.
        scale: What the prediction is multiplied with, ``(B,)``, in the type of x_t.
        weight: ``(B,)``, at least 0, in the type of x_t.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor
    scale: Tensor
    weight: Tensor

    def losses(self, prediction: Tensor) -> Tensor:
        """The loss of each sample, ``(B,)``: a mean over elements, not their sum.

        Args:
            prediction: What a network says at ``(x_t, t)``, ``(B, *S)``. Half-precision outputs
                are compared in the type of the target.

        Returns:
            ``(B,)`` in the type of the target; differentiable in the prediction.

        Raises:
            ValueError: The prediction has another shape than the target.

        Example:
            >>> one, x = torch.ones(2), torch.zeros(2, 3)
            >>> step = Regression(x, one, target=x + 1, scale=one, weight=2 * one)
            >>> step.losses(x + 3)
            tensor([8., 8.])
        """
        if prediction.shape != self.target.shape:
            raise ValueError(
                f"prediction must have the shape of the target, {tuple(self.target.shape)}, "
                f"got {tuple(prediction.shape)}"
            )
        each = (-1, *[1] * (self.target.ndim - 1))
        error = self.scale.reshape(each) * prediction.to(self.target.dtype) - self.target
        return self.weight * error.square().flatten(1).mean(1)


class Objective(ABC):
    """A training loss, ``objective(network, x0, generator) -> loss``, and the draws behind it.

    Attributes:
        process: The noising process.
        target: What the network predicts, a name of ``PARAMETERIZATIONS``; with it
            ``as_denoiser(network, objective.process, objective.target)`` is the trained denoiser.
    """

    process: Process
    target: str

    def __call__(
        self,
        network: Callable[..., Any],
        x0: Tensor,
        generator: torch.Generator | None = None,
        *,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch: the mean over its samples and their elements.

        Args:
            network: ``(x_t, t) -> prediction`` of the objective's target, ``(B, *S)``; diffusers'
                outputs and tuples are unwrapped.
            x0: Training points, ``(B, *S)``, float32 or float64, B >= 1.
            generator: Source of all draws; None is PyTorch's own. It may live on another device
                than x0: the draws are then moved, and are the same on every device.
            class_labels: int ``(B,)``, -1 for none; the network gets them by this name. None
                calls it without.

        Returns:
            A scalar in x0's type, differentiable in the network's parameters.

        Raises:
            TypeError: A type is wrong.
            ValueError: A shape or a value is wrong, that of the network's output included.
        """
        drawn = self.draw(x0, generator, class_labels=class_labels)
        extra = {} if class_labels is None else {"class_labels": class_labels}
        return drawn.losses(prediction(network, drawn.x_t, drawn.t, **extra)).mean()

    @abstractmethod
    def draw(
        self,
        x0: Tensor,
        generator: torch.Generator | None = None,
        *,
        class_labels: Tensor | None = None,
    ) -> Regression:
        """The draws of one training step; arguments and errors as in ``__call__``."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What determines the objective beside the draws, as numbers and words."""


def checked_points(x0: Tensor) -> None:
    """Checks that x0 can be a batch of training points.

    Raises:
        TypeError: Not a tensor of float32 or float64.
        ValueError: No samples, or samples without elements.
    """
    if not isinstance(x0, Tensor) or x0.dtype not in (torch.float32, torch.float64):
        got = x0.dtype if isinstance(x0, Tensor) else type(x0).__name__
        raise TypeError(
            f"x0 must be a float32 or float64 tensor (a TrainingSet decodes others), got {got}"
        )
    if x0.ndim < 2 or x0.numel() == 0:
        raise ValueError(f"x0 must be (B, *S) with B >= 1 and elements, got {tuple(x0.shape)}")


def parameterization(target: str) -> Parameterization:
    """The prediction target of a name.

    Raises:
        ValueError: There is no such target.
    """
    if target not in PARAMETERIZATIONS:
        known = ", ".join(PARAMETERIZATIONS)
        raise ValueError(f"target must be one of {known}, got {target!r}")
    return PARAMETERIZATIONS[target]


def normal(x0: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of the shape and type of x0, from the generator's own device."""
    source = x0.device if generator is None else generator.device
    return torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=source).to(x0.device)
