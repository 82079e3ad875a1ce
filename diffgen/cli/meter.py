"""Counts what a denoiser is asked for while it is used, and how long that takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.backends import registry
from diffgen.backends.problem import Problem
from diffgen.cli import ranks
from diffgen.denoiser import EmpiricalDenoiser
from diffgen.machine import OPERATIONS, Ceilings
from diffgen.training_set import TrainingSet


@dataclass
class Meter:
    """A denoiser that keeps count.

    Attributes:
        denoiser: What answers.
        calls: Calls so far.
        queries: Noisy points in them.
        seconds: Time in them.
    """

    denoiser: EmpiricalDenoiser
    calls: int = 0
    queries: int = 0
    seconds: float = 0.0

    def __call__(self, x: Tensor, sigma: Tensor, *class_labels: Tensor) -> Tensor:
        """Denoises."""
        start = time.perf_counter()
        denoised: Tensor = self.denoiser(x, sigma, *class_labels)
        if denoised.is_cuda:
            torch.cuda.synchronize(denoised.device)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        self.queries += len(x)
        return denoised

    def report(self, ceilings: Ceilings) -> dict[str, Any]:
        """The counts, and which share of the machine's ceiling they are.

        Bytes are those of one reading of the stored set for each call, operations those of all
        queries against all points (mirror images included). Of several processes each does an
        equal part, which is what its share is taken of; the ceilings are those of the processor.
        """
        data = self.denoiser.training_set.view().data
        read_bytes = self.calls * data.numel() * data.element_size()
        passes = 2 if self.denoiser.training_set.flip else 1
        operations = OPERATIONS * passes * self.queries * data.numel()
        parts = ranks.count()
        on_cpu = self.denoiser.training_set.device.type == "cpu"
        floor_s = ceilings.floor_ms(read_bytes / parts, operations / parts) / 1e3
        return {
            "backend": chosen_backend(self.denoiser),
            "calls": self.calls,
            "queries": self.queries,
            "seconds": self.seconds,
            "counted_bytes": read_bytes,
            "counted_operations": operations,
            "bound": ceilings.bound(read_bytes, operations),
            "ceilings": vars(ceilings),
            "share_of_ceiling": floor_s / self.seconds if on_cpu and self.seconds > 0 else None,
        }


def chosen_backend(denoiser: EmpiricalDenoiser) -> str:
    """The backend that a denoiser runs float32 queries on."""
    training_set: TrainingSet = denoiser.training_set
    view = training_set.view()
    data = view.data
    if view.store:  # a block of rows as the backend will get it
        data = torch.empty((1, data.shape[1]), dtype=data.dtype, device=view.norms.device)
    query = view.norms.new_zeros((1, view.data.shape[1])).float()
    sigma = view.norms.new_ones(1)
    problem = Problem(
        query, sigma, None, None, data, view.norms, view.log_weights, None,
        view.scale, view.offset,
    )  # fmt: skip
    return registry.choose(problem, denoiser.backend).name
