"""Times and noise levels as float64 tensors: conversion, range check, shape.

Ranges are checked where looking at a value is free: on the CPU, in eager mode. On an accelerator
(where it would be a synchronisation), under ``torch.compile`` and under functorch transforms a
value out of range becomes NaN instead, so that it spoils its own row and no other.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = Any
"""A number, or whatever ``torch.as_tensor`` reads: tensor, array, sequence of numbers."""


def within(value: Number, low: float, high: float, name: str) -> Tensor:
    """Value as a float64 tensor of the same shape, checked to lie in ``[low, high]``.

    Args:
        value: Number or tensor of any shape, on any device.
        low: Smallest value allowed.
        high: Largest value allowed.
        name: What the message calls the value.

    Returns:
        A float64 tensor on the value's device.

    Raises:
        ValueError: A value is NaN or out of range (CPU tensors in eager mode; NaN elsewhere).

    Example:
        >>> within(3, 0, 10, "t")
        tensor(3., dtype=torch.float64)
    """
    tensor = torch.as_tensor(value, dtype=torch.float64)
    good = (tensor >= low) & (tensor <= high)
    if not _readable(tensor):
        return torch.where(good, tensor, torch.nan)
    if not bool(good.all()):
        index = int((~good.reshape(-1)).nonzero()[0])
        place = f" at index {index}" if tensor.ndim else ""
        got = float(tensor.detach().reshape(-1)[index])
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {got:g}{place}")
    return tensor


def per_sample(value: Number, x: Tensor, name: str) -> Tensor:
    """One float64 value, or one per sample, in a shape that broadcasts against the samples.

    Args:
        value: A number, or a tensor of any shape with 1 or B elements.
        x: The samples, ``(B, *S)``.
        name: What the message calls the value.

    Returns:
        A float64 tensor on x's device: 0-dim, or ``(B, 1, ..., 1)`` with as many axes as x.

    Raises:
        ValueError: The number of elements is neither 1 nor B.

    Example:
        >>> per_sample([1, 2], torch.zeros(2, 3, 8, 8), "sigma").shape
        torch.Size([2, 1, 1, 1])
    """
    tensor = torch.as_tensor(value, dtype=torch.float64, device=x.device)
    if tensor.numel() == 1:
        return tensor.reshape(())
    if x.ndim == 0 or tensor.numel() != x.shape[0]:
        batch = x.shape[0] if x.ndim else 1
        raise ValueError(f"{name} must have 1 or {batch} elements, got {tensor.numel()}")
    return tensor.reshape(-1, *[1] * (x.ndim - 1))


def _readable(tensor: Tensor) -> bool:
    """Whether a value can be looked at for free: eager mode, on the CPU, no transform."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )
