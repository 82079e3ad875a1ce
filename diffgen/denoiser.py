"""The empirical-optimal denoiser: the best denoiser of a finite training set, in closed form.

For ``x = x0 + sigma epsilon`` with x0 drawn from the training points ``x_i`` with weights ``W_i``,

    D(x, sigma) = E[x0 | x] = sum_i w_i x_i,   w = softmax_i(log W_i - |x - x_i|^2 / (2 sigma^2))

No function of ``(x, sigma)`` has a smaller mean squared error on the noised training set. The sum
runs over all points, over one class (class labels), or over all but one (``exclude``). Its Jacobian
is ``Cov_w(x0) / sigma^2``, symmetric and positive semidefinite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from diffgen import functional, posterior
from diffgen.backends import registry
from diffgen.checks import as_exclude, as_labels, as_sigma, check_query, check_top_k, check_vectors
from diffgen.functional import Moments
from diffgen.posterior import Posterior
from diffgen.predictor import Predictor
from diffgen.process_base import Process
from diffgen.training_set import TrainingSet

Level: TypeAlias = float | Tensor
"""A noise level or signal scale: a number, or a tensor of any shape with 1 or B elements."""

Ids: TypeAlias = Tensor | None
"""Classes or points, one for each query."""

Problem: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Query ``(B, D)``; sigma, alpha, labels and exclude, ``(B,)``: what the ops take."""


class EmpiricalDenoiser(nn.Module):
    """The posterior mean over a training set, where a denoising network would stand.

    ``D(x, sigma) = sum_i w_i x_i``, ``w = softmax_i(log W_i - |x - x_i|^2 / (2 sigma^2))``

    It has no parameters, no buffers and nothing in its ``state_dict``. ``.to(device)`` moves the
    training set; no dtype conversion (``.half()``, ``.to(torch.bfloat16)``, autocast) touches it.
    A ``deepcopy`` shares the data; a pickle carries what the set's own pickle carries.

    Samplers written for EDM and k-diffusion take it as their network: they read the attributes
    below, and what they pass beyond ``(x, sigma, class_labels)`` is ignored.

    Args:
        training_set: The training points.
        backend: Name of the backend to run, or ``"auto"``; see ``diffgen.backends()``.
        check_values: Whether a bad value in sigma, class labels or exclude raises. Otherwise it
            gives a row of NaN. None: it raises on the CPU, and not on an accelerator, where
            looking at a value waits for the device.

    Attributes:
        sigma_min: Smallest noise level it takes, 0.
        sigma_max: Largest, infinity.
        label_dim: Number of classes, 0 without labels.
        img_channels: C, where samples are square images ``(C, H, H)``; absent otherwise.
        img_resolution: H, likewise.

    Raises:
        TypeError: If ``training_set`` is not a ``TrainingSet``.
        ValueError: If no backend has the name.

    Example:
        >>> from diffgen import EmpiricalDenoiser, TrainingSet
        >>> denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
        >>> denoiser(torch.tensor([[0.0], [0.5]]), 1.0)
        tensor([[0.0000],
                [0.4621]])

    Source:
        Yi, Sun, Li, On the Generalization of Diffusion Model (2023), arXiv:2305.14712; Karras et
        al., Elucidating the design space of diffusion-based generative models (2022), equation 57.
    """

    sigma_min = 0.0
    sigma_max = inf
    img_channels: int
    img_resolution: int

    def __init__(
        self, training_set: TrainingSet, *, backend: str = "auto", check_values: bool | None = None
    ) -> None:
        """Keep the set, without registering it; see the class."""
        super().__init__()
        if not isinstance(training_set, TrainingSet):
            got = type(training_set).__name__
            raise TypeError(f"training_set must be a diffgen.TrainingSet, got {got}")
        if backend != "auto":
            registry.get(backend)
        self.training_set = training_set
        self.backend = backend
        self.check_values = check_values
        self.label_dim = training_set.num_classes
        shape = training_set.sample_shape
        if len(shape) == 3 and shape[1] == shape[2]:
            self.img_channels, self.img_resolution = shape[:2]

    def forward(
        self,
        x: Tensor,
        sigma: Level,
        class_labels: Ids = None,
        *,
        exclude: Ids = None,
        **ignored: Any,
    ) -> Tensor:
        """Denoise: ``E[x0 | x]`` for ``x = x0 + sigma epsilon``.

        Args:
            x: Noisy points, ``(B, *S)``, floating point. float64 takes the float64 path.
            sigma: Noise standard deviation in the units of the data, at least 0: a number or any
                shape with 1 or B elements. Used in float64. At 0 the result is the weighted
                average of all nearest points; at infinity that of the whole set.
            class_labels: int ``(B,)``, or one-hot ``(B, C)``; -1 or a row of zeros means the whole
                set. None means the whole set for all.
            exclude: The point that each query leaves out, int ``(B,)``; -1 for none.
            **ignored: What samplers pass to networks beyond these.

        Returns:
            ``(B, *S)`` in x's type, rounded once. Differentiable in x and sigma. A query that is
            not finite gives NaN in its own row.

        Raises:
            TypeError: A type is wrong.
            ValueError: A shape or device does not fit; with ``check_values``, sigma is negative or
                NaN, a label is out of range or its class empty, or ``exclude`` is out of range or
                leaves no point.
            BackendError: No backend, or not the one named, can run the problem.
        """
        problem = self._flatten(x, sigma, class_labels, exclude)
        mean = self._moments(problem, mean_dtype=x.dtype).mean
        return mean.view(x.shape)

    def posterior(
        self,
        x: Tensor,
        sigma: Level,
        class_labels: Ids = None,
        *,
        exclude: Ids = None,
        top_k: int = 0,
    ) -> Posterior:
        """Everything about the posterior over the training points, in one pass over the data.

        Args:
            x: Noisy points, ``(B, *S)``.
            sigma: Noise standard deviation.
            class_labels: As in ``forward``.
            exclude: As in ``forward``.
            top_k: How many of the nearest points to return, at most the number of eligible ones.

        Returns:
            The mean, its noise and score, log-density, spread and nearest points.

        Raises:
            ValueError, TypeError, BackendError: As in ``forward``; or ``top_k`` is out of range.

        Example:
            >>> denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0], [3.0]])))
            >>> posterior = denoiser.posterior(torch.tensor([[0.9]]), 1.0, top_k=2)
            >>> posterior.top_indices, posterior.top_weights
            (tensor([[1, 0]]), tensor([[0.7836, 0.1295]], dtype=torch.float64))
        """
        check_top_k(top_k, len(self.training_set))
        problem = self._flatten(x, sigma, class_labels, exclude)
        moments = self._moments(problem, functionals=True, top_k=top_k)
        _, levels, _, labels, ids = problem
        return posterior.from_moments(self.training_set, moments, x, levels, labels, ids)

    def covariance_vector_product(
        self,
        x: Tensor,
        sigma: Level,
        v: Tensor,
        class_labels: Ids = None,
        *,
        exclude: Ids = None,
    ) -> Tensor:
        """The posterior covariance times a vector: ``Cov_w(x0) v``, in two passes over the data.

        Divided by ``sigma^2`` it is the Jacobian of the denoiser times v, from either side.

        Args:
            x: Noisy points, ``(B, *S)``.
            sigma: Noise standard deviation.
            v: Vectors, of x's shape, floating point.
            class_labels: As in ``forward``.
            exclude: As in ``forward``.

        Returns:
            ``(B, *S)`` in x's type, rounded once; NaN at ``sigma = 0``. It has no derivative:
            asking for one raises.

        Raises:
            ValueError, TypeError, BackendError: As in ``forward``; or v does not go with x.

        Example:
            >>> denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
            >>> denoiser.covariance_vector_product(torch.zeros(1, 1), 0.5, torch.full((1, 1), 3.0))
            tensor([[3.]])
        """
        problem = self._flatten(x, sigma, class_labels, exclude)
        check_vectors(v, x)
        moments = self._moments(problem)
        product, _ = functional.covariance_product(
            self.training_set.view(),
            *problem,
            moments.mean,
            moments.logsumexp,
            v.reshape(moments.mean.shape),
            backend=self.backend,
            check_values=False,
            flip=self._flip,
        )
        return product.view(x.shape).to(x.dtype)

    def divergence(
        self, x: Tensor, sigma: Level, class_labels: Ids = None, *, exclude: Ids = None
    ) -> Tensor:
        """Exact divergence of the denoiser: ``trace Cov_w(x0) / sigma^2``.

        What Hutchinson's estimator approaches with random vectors, from one pass without any.
        Arguments and errors are those of ``forward``.

        Returns:
            ``(B,)`` float64; NaN at ``sigma = 0``. It has no derivative: asking for one raises.

        Example:
            >>> denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
            >>> denoiser.divergence(torch.zeros(1, 1), 0.5)
            tensor([4.], dtype=torch.float64)
        """
        problem = self._flatten(x, sigma, class_labels, exclude)
        moments = self._moments(problem, functionals=True)
        scale = posterior.positive_or_nan(problem[1])
        return moments.functionals[:, posterior.TRACE] / scale / scale

    def sweep(
        self,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        class_labels: Ids = None,
        *,
        exclude: Ids = None,
    ) -> Tensor:
        """Denoise the same points at many noise levels, in one pass over the data.

        Args:
            x: Noisy points, ``(B, *S)``.
            sigmas: Noise standard deviations, ``(S,)``, or ``(S, B)`` with levels for each point.
            class_labels: As in ``forward``.
            exclude: As in ``forward``.

        Returns:
            ``(S, B, *S)`` in x's type: entry s is ``denoiser(x, sigmas[s])``.

        Raises:
            ValueError, TypeError, BackendError: As in ``forward``; or sigmas has another shape.

        Example:
            >>> denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
            >>> denoiser.sweep(torch.tensor([[0.5]]), torch.tensor([0.1, 1.0, 10.0])).flatten()
            tensor([1.0000, 0.4621, 0.0050])
        """
        query, _, _, labels, ids = self._flatten(x, 0.0, class_labels, exclude)
        levels = torch.as_tensor(sigmas, dtype=torch.float64, device=x.device)
        batch = x.shape[0]
        if levels.ndim not in (1, 2) or (levels.ndim == 2 and levels.shape[1] != batch):
            need = f"(S,) or (S, {batch})"
            raise ValueError(f"sigmas must have shape {need}, got {tuple(levels.shape)}")
        steps = levels.shape[0]
        levels = levels if levels.ndim == 2 else levels[:, None].expand(steps, batch)
        labels, ids = (None if given is None else given.repeat(steps) for given in (labels, ids))
        # Unlike `repeat`, small copies leave OpenMP's threads asleep: they would spin meanwhile.
        repeated = torch.cat([query] * steps) if steps else query[:0]
        problem = repeated, levels.reshape(-1), None, labels, ids
        return self._moments(problem, mean_dtype=x.dtype).mean.view(steps, *x.shape)

    def posterior_mean(
        self,
        x_t: Tensor,
        alpha: Level,
        sigma: Level,
        class_labels: Ids = None,
        *,
        exclude: Ids = None,
    ) -> Tensor:
        """``E[x0 | x_t]`` for ``x_t = alpha x0 + sigma epsilon``, unrounded.

        Equals ``D(x_t / alpha, sigma / alpha)``, but without the division: alpha = 0 (pure noise)
        gives the mean of the set.

        Args:
            x_t: Noisy points, ``(B, *S)``.
            alpha: Signal scale, at least 0, a number or 1 or B elements; it has no gradient.
            sigma: Noise standard deviation.
            class_labels: As in ``forward``.
            exclude: As in ``forward``.

        Returns:
            ``(B, *S)`` float64.

        Raises:
            ValueError, TypeError, BackendError: As in ``forward``; or alpha requires a gradient.

        Example:
            >>> denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [2.0]])))
            >>> denoiser.posterior_mean(torch.tensor([[0.3]]), alpha=0.0, sigma=1.0)
            tensor([[0.5000]], dtype=torch.float64)
        """
        problem = self._flatten(x_t, sigma, class_labels, exclude, alpha)
        return self._moments(problem).mean.view(x_t.shape)

    def predictor(self, process: Process, target: str = "epsilon") -> Predictor:
        """The optimal network of a noising process: ``m(x_t, t, class_labels=None)``.

        Args:
            process: Gives ``alpha_t`` and ``sigma_t``; see ``diffgen.processes``.
            target: What it predicts: ``"x0"``, ``"epsilon"``, ``"v"``, ``"score"``, ``"velocity"``.

        Returns:
            A module that shares this denoiser.

        Raises:
            ValueError: If there is no such target.

        Example:
            >>> from diffgen import processes
            >>> denoiser = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
            >>> network = denoiser.predictor(processes.DDPM(), "epsilon")
            >>> network(torch.tensor([[0.5]]), 999)
            tensor([[0.5000]])
        """
        return Predictor(self, process, target)

    def round_sigma(self, sigma: Level) -> Tensor:
        """The noise levels it takes that are nearest to the given ones: themselves."""
        return torch.as_tensor(sigma)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.training_set!r}, backend={self.backend!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EmpiricalDenoiser:
        """Follow a move to another device, and nothing else that ``fn`` does to tensors."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0, device=self.training_set.device)).device
        if device != self.training_set.device:
            self.training_set = self.training_set.to(device)
        return self

    @property
    def _flip(self) -> tuple[int, ...] | None:
        return self.training_set.sample_shape if self.training_set.flip else None

    def _flatten(
        self, x: Tensor, sigma: Level, class_labels: Ids, exclude: Ids, alpha: Level | None = None
    ) -> Problem:
        training_set = self.training_set
        device = training_set.device
        check_query(x, training_set.sample_shape, device)
        batch = x.shape[0]
        if self.label_dim == 0 and getattr(class_labels, "shape", None) == (batch, 0):
            class_labels = None  # one-hot labels of no classes: EDM's for a set without labels
        return (
            x.reshape(batch, training_set.view().data.shape[1]),
            as_sigma(sigma, batch, device),
            None if alpha is None else as_sigma(alpha, batch, device, "alpha"),
            as_labels(class_labels, batch, self.label_dim, device),
            as_exclude(exclude, batch, device),
        )

    def _moments(
        self,
        problem: Problem,
        *,
        functionals: bool = False,
        top_k: int = 0,
        mean_dtype: torch.dtype = torch.float64,
    ) -> Moments:
        check_values = self.check_values
        if check_values is None:
            check_values = problem[0].device.type == "cpu"
        return functional.moments(
            self.training_set.view(),
            *problem,
            functionals=functionals,
            top_k=top_k,
            mean_dtype=mean_dtype,
            backend=self.backend,
            check_values=check_values,
            flip=self._flip,
        )
