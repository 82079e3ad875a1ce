"""A problem as the native modules take it: addresses and sizes."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from diffgen.backends.problem import Problem

STORAGE = {
    torch.uint8: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.float32: 3,
    torch.float64: 4,
}
"""The numbers of the storage types in ``csrc/problem.h``."""


def address(tensor: Tensor | None) -> int:
    """Where a tensor begins; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def arguments(native: ModuleType, problem: Problem) -> object:
    """The ``Arguments`` of a native module; they do not keep the tensors alive."""
    query, data, rows = problem.query, problem.data, problem.rows
    batch, features = query.shape
    return native.Arguments(
        query.data_ptr(),
        query.dtype == torch.float64,
        batch,
        features,
        problem.sigma.data_ptr(),
        address(problem.alpha),
        address(problem.exclude),
        data.data_ptr(),
        STORAGE[data.dtype],
        data.shape[0],
        problem.norms.data_ptr(),
        address(problem.log_weights),
        address(rows),
        0 if rows is None else rows.shape[0],
        problem.scale,
        problem.offset,
    )
