"""Problems and their results as files that ``csrc/tests/cuda_emulation.cpp`` reads."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch import Tensor

from diffgen.backends import cpu
from diffgen.backends.problem import Problem


def _array(tensor: Tensor | None) -> bytes:
    """Its bytes, after their number; -1 for none."""
    if tensor is None:
        return struct.pack("q", -1)
    data = tensor.contiguous().numpy().tobytes()
    return struct.pack("q", len(data)) + data


def write(path: Path, problem: Problem, mean_dtype: torch.dtype) -> Path:
    """Writes a problem with the CPU backend's mean and logsumexp."""
    mean, logsumexp = cpu.moments("auto", problem, False, 0, mean_dtype)[:2]
    batch, features = problem.query.shape
    rows = problem.rows
    head = struct.pack(
        "6q2d",
        problem.query.dtype == torch.float64,
        mean_dtype == torch.float64,
        batch,
        features,
        len(problem.data),
        0 if rows is None else len(rows),
        problem.scale,
        problem.offset,
    )
    arrays = [
        problem.query,
        problem.sigma,
        problem.alpha,
        problem.exclude,
        problem.data,
        problem.norms,
        problem.log_weights,
        rows,
        mean,
        logsumexp,
    ]
    path.write_bytes(head + b"".join(map(_array, arrays)))
    return path
