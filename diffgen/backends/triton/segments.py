"""The segments of a problem's eligible rows on the device: the launch of ``set_kernels``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffgen.backends.problem import Problem
from diffgen.backends.triton.blocks import segments_of
from diffgen.backends.triton.launching import launch
from diffgen.backends.triton.set_kernels import measure_segments


@dataclass(frozen=True, slots=True)
class Segments:
    """Where segments begin among the eligible rows, and how long their rows are.

    Attributes:
        begins: ``(S + 1,)`` int64.
        lengths: Of each segment the largest and the sum of the squared lengths of its eligible
            rows, ``(2, S)`` float64; 0 where it has none.
        count: S.
        eligible: How many rows are eligible.
    """

    begins: Tensor
    lengths: Tensor
    count: int
    eligible: int


def measure(problem: Problem) -> Segments:
    """The segments of a problem that has all but its rows on the device of its queries."""
    count, segments = problem.data.shape[0], segments_of(problem)
    rows, device = problem.rows, problem.query.device
    eligible = count if rows is None else rows.shape[0]
    begins = torch.empty(segments + 1, dtype=torch.int64, device=device)
    lengths = torch.empty(2, segments, dtype=torch.float64, device=device)
    if segments == 0:
        return Segments(begins.zero_(), lengths, segments, eligible)
    launch(
        measure_segments,
        (segments,),
        problem.norms,
        begins if rows is None else rows,
        begins,
        lengths,
        count,
        eligible,
        segments,
        eligible.bit_length(),
        SUBSET=rows is not None,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return Segments(begins, lengths, segments, eligible)
