"""Exact, fast empirical-optimal denoisers.

A diffusion model trained to perfection on a finite set has a closed form: its denoiser is the
posterior mean over the training points,

    D(x; sigma) = sum_i w_i x_i,    w = softmax_i(log_weight_i - |x - x_i|^2 / (2 sigma^2)).

Example:
    >>> import torch
    >>> import diffgen
    >>> denoiser = diffgen.EmpiricalDenoiser(diffgen.TrainingSet(torch.tensor([[-1.0], [1.0]])))
    >>> denoiser(torch.tensor([[0.9]]), 0.1)
    tensor([[1.]])
"""

from diffgen import backends, objectives, parameterizations, processes, schedules
from diffgen._version import __version__
from diffgen.compositions import hybrid, mixture
from diffgen.denoiser import EmpiricalDenoiser
from diffgen.errors import BackendError, DataError, ShardError
from diffgen.noised import NoisedTrainingSet
from diffgen.posterior import Posterior
from diffgen.predictor import as_denoiser
from diffgen.sampling import sample
from diffgen.training import train
from diffgen.training_set import TrainingSet

__all__ = [
    "BackendError",
    "DataError",
    "EmpiricalDenoiser",
    "NoisedTrainingSet",
    "Posterior",
    "ShardError",
    "TrainingSet",
    "__version__",
    "as_denoiser",
    "backends",
    "hybrid",
    "mixture",
    "objectives",
    "parameterizations",
    "processes",
    "sample",
    "schedules",
    "train",
]
