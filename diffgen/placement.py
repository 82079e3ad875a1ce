"""The device on which a backend is given a problem, and the way there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffgen.backends import registry
from diffgen.backends.problem import CovarianceInputs, Problem
from diffgen.backends.registry import Backend

CPU = torch.device("cpu")

Parts = TypeVar("Parts", Problem, CovarianceInputs)


def device_for(
    backend: Backend, problems: Iterable[Problem], gpu: torch.device | None
) -> torch.device:
    """The GPU for a backend that takes none of the problems on the CPU; the CPU for others.

    Args:
        backend: Which.
        problems: On the CPU.
        gpu: The GPU; None where there is none.
    """
    if gpu is None or any(not registry.reasons_against(backend, one) for one in problems):
        return CPU
    return gpu


def placed(parts: Parts, device: torch.device) -> Parts:
    """A problem, or the further inputs of a covariance product, with all tensors on a device.

    On a GPU its values are not checked, which waits for it: a denoiser there does not either.
    """
    if device.type == "cpu":
        return parts
    moved: dict[str, Any] = {
        field.name: value.to(device)
        for field in fields(parts)
        if isinstance(value := getattr(parts, field.name), Tensor)
    }
    if isinstance(parts, Problem):
        moved["check_values"] = False
    return replace(parts, **moved)
