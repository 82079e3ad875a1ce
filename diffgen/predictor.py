"""Between networks of a noising process and denoisers, in both directions.

With ``x_t = alpha_t x0 + sigma_t epsilon``; ``y = x_t / alpha_t`` has noise ``sigma_t / alpha_t``:

* `Predictor`: ``m(x_t, t) = target(E[x0 | x_t], x_t)``, the optimum where a network would stand.
* `NetworkDenoiser`: ``D(y, sigma) = E[x0 | x_t = alpha_t y]`` out of what a network predicts at the
  time t where ``sigma_t / alpha_t = sigma``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffgen.checks import as_sigma
from diffgen.network_output import unwrapped
from diffgen.parameterizations import PARAMETERIZATIONS, Parameterization
from diffgen.process_base import Process


class ScaledDenoiser(Protocol):
    """What a predictor asks: the posterior mean at a signal scale, in float64."""

    def posterior_mean(
        self,
        x_t: Tensor,
        alpha: float | Tensor,
        sigma: float | Tensor,
        class_labels: Tensor | None = None,
        *,
        exclude: Tensor | None = None,
    ) -> Tensor:
        """``E[x0 | x_t]`` for ``x_t = alpha x0 + sigma epsilon``."""


class Predictor(nn.Module):
    """The optimal network of a noising process over a training set; made by ``predictor``.

    ``m(x_t, t) = target(E[x0 | x_t], x_t)``. At ``alpha_t = 0`` (pure noise) the posterior mean is
    that of the set, with no division by zero. At ``sigma_t = 0`` every target but x0 is NaN.

    Attributes:
        denoiser: The denoiser behind it; a submodule.
        process: The noising process.
        target: Name of what it predicts.
    """

    def __init__(self, denoiser: ScaledDenoiser, process: Process, target: str) -> None:
        """Keep the three; see the class."""
        super().__init__()
        self._parameterization = _parameterization(target)
        self.denoiser = denoiser
        self.process = process
        self.target = target

    def forward(
        self,
        x_t: Tensor,
        t: float | Tensor,
        class_labels: Tensor | None = None,
        *,
        exclude: Tensor | None = None,
    ) -> Tensor:
        """Predict the target.

        Args:
            x_t: Noisy points ``alpha_t x0 + sigma_t epsilon``, ``(B, *S)``.
            t: Time in the convention of the process, a number or 1 or B elements of any type.
            class_labels: As for the denoiser.
            exclude: As for the denoiser.

        Returns:
            ``(B, *S)`` in x_t's type, rounded once. Differentiable in x_t.

        Raises:
            TypeError: A type is wrong.
            ValueError: t is out of the process's range, or requires a gradient under a process
                whose alpha depends on it; or as for the denoiser.
        """
        time = as_sigma(t, x_t.shape[:1].numel(), x_t.device, "t")
        alpha = self.process.alpha(time)
        sigma = self.process.sigma(time)
        mean = self.denoiser.posterior_mean(x_t, alpha, sigma, class_labels, exclude=exclude)
        if self.target == "x0":
            return mean.to(x_t.dtype)
        return self._parameterization.from_posterior_mean(mean, x_t, alpha, sigma)

    def extra_repr(self) -> str:
        """What ``repr`` shows beside the denoiser."""
        return f"process={self.process!r}, target={self.target!r}"


class NetworkDenoiser(nn.Module):
    """A network of a noising process as ``(x, sigma) -> denoised``; made by `as_denoiser`.

    Attributes:
        network: The network; a submodule if it is one.
        process: The noising process it was trained under.
        target: Name of what it predicts.
        nearest: Whether times are rounded to those that the process has.
        sigma_min: Smallest noise level it takes, ``sigma_t / alpha_t`` at the first time.
        sigma_max: Largest.
    """

    def __init__(
        self, network: Callable[..., Any], process: Process, target: str, nearest: bool
    ) -> None:
        """Keep the network and its convention; see the class."""
        super().__init__()
        self._parameterization = _parameterization(target)
        self.network = network
        self.process = process
        self.target = target
        self.nearest = nearest
        self.sigma_min, self.sigma_max = process.ratio_range

    def forward(
        self,
        x: Tensor,
        sigma: float | Tensor,
        class_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Denoise.

        Args:
            x: Noisy points ``x0 + sigma epsilon``, ``(B, *S)``.
            sigma: Noise standard deviation in the units of the data, a number or 1 or B elements,
                in ``[sigma_min, sigma_max]``.
            class_labels: Passed to the network, where given.
            **kwargs: Passed to the network.

        Returns:
            The network's estimate of ``E[x0 | x]``, ``(B, *S)`` in x's type.

        Raises:
            TypeError: The network returns nothing that holds a tensor.
            ValueError: sigma is out of range, or the network's output has another shape than x.
        """
        levels = as_sigma(sigma, x.shape[:1].numel(), x.device)
        t = self.process.t_from_ratio(levels, nearest=self.nearest)
        alpha = self.process.alpha(t)
        shape = (-1, *[1] * (x.ndim - 1))
        x_t = alpha.reshape(shape) * x.to(torch.float64)
        kind = self._input_type(x)
        if class_labels is not None:
            kwargs["class_labels"] = class_labels
        time = t if self.nearest and not t.is_floating_point() else t.to(_time_type(kind))
        prediction = unwrapped(self.network(x_t.to(kind), time, **kwargs))
        # alpha sigma, not sigma(t): a rounded time must not change the noise that is removed.
        mean = self._parameterization.to_posterior_mean(prediction, x_t, alpha, alpha * levels)
        return mean.to(x.dtype)

    def round_sigma(self, sigma: float | Tensor) -> Tensor:
        """The noise levels nearest to the given ones that the network takes, float64."""
        t = self.process.t_from_ratio(sigma, nearest=self.nearest, clamp=True)
        return self.process.ratio(t)

    def extra_repr(self) -> str:
        """What ``repr`` shows beside the network."""
        return f"process={self.process!r}, target={self.target!r}, nearest={self.nearest}"

    def _input_type(self, x: Tensor) -> torch.dtype:
        """The type of the network's floating-point parameters; x's own without any."""
        if isinstance(self.network, nn.Module):
            for parameter in self.network.parameters():
                if parameter.is_floating_point():
                    return parameter.dtype
        return x.dtype


def as_denoiser(
    network: Callable[..., Any],
    process: Process,
    target: str = "epsilon",
    *,
    nearest: bool = False,
) -> NetworkDenoiser:
    """Any network as ``(x, sigma) -> denoised``, what samplers take.

    The network is called as ``network(x_t, t)`` with ``x_t = alpha_t x``, in the type of its
    parameters, and ``(B,)`` times t where ``sigma_t / alpha_t = sigma``. Its prediction is mapped
    to the posterior mean in float64.

    Args:
        network: ``(x_t, t) -> prediction``; with labels ``(x_t, t, class_labels=...)``. A tensor,
            or what diffusers' models return around one.
        process: The noising process it was trained under.
        target: What it predicts: ``"x0"``, ``"epsilon"``, ``"v"``, ``"score"`` or ``"velocity"``.
        nearest: Give the network the nearest time that the process has, as int64: for networks
            with a table of times. By default t lies between the steps of a discrete process.

    Returns:
        A module, with ``sigma_min``, ``sigma_max`` and ``round_sigma`` for samplers that ask.

    Raises:
        ValueError: If there is no such target.

    Example:
        >>> from diffgen import EmpiricalDenoiser, TrainingSet, processes
        >>> denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
        >>> process = processes.RectifiedFlow()
        >>> network = denoiser.predictor(process, "velocity")
        >>> as_denoiser(network, process, "velocity")(torch.tensor([[0.5]]), 1.0)
        tensor([[0.4621]])

    Source:
        Karras et al., Elucidating the design space of diffusion-based generative models (2022),
        table 1 (networks of other processes as denoisers).
    """
    return NetworkDenoiser(network, process, target, nearest)


def _parameterization(target: str) -> Parameterization:
    if target not in PARAMETERIZATIONS:
        known = ", ".join(PARAMETERIZATIONS)
        raise ValueError(f"target must be one of {known}, got {target!r}")
    return PARAMETERIZATIONS[target]


def _time_type(kind: torch.dtype) -> torch.dtype:
    """The type of times beside samples of a type: half types cannot tell 999 from 1000."""
    return torch.float64 if kind == torch.float64 else torch.float32
