"""Queries of the 8-bit engine on the device: the launches of ``query_kernels``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.backends.problem import Problem
from diffgen.backends.triton import query_kernels
from diffgen.backends.triton.bytes_configs import bytes_config
from diffgen.backends.triton.launching import launch
from diffgen.backends.triton.layout import CHAIN, FLAGS, NUMBERS, QUERY_DIGITS, cdiv
from diffgen.backends.triton.segments import Segments

SHIFT = 128.0
"""What is taken from a stored byte."""

_PADDING = 64


def _most_digits(features: int) -> int:
    digits = QUERY_DIGITS
    while digits > 3 and features * 256.0 ** (digits + 1) > 2.0**62:
        digits -= 1
    return digits


@dataclass(frozen=True)
class Queries:
    """The queries in fixed point.

    Attributes:
        moved: Queries less alpha times the origin, ``(B, D)`` float64.
        digits: ``(5, B, padded)`` int8.
        numbers: ``(NUMBERS, B)`` float64.
        flags: ``(FLAGS, B)`` int64.
        anchors: A nearest row for each query that asks for one, ``(B, D)`` uint8.
        least: The anchors' squared distances, ``(B,)`` float64; infinite as long as there is none.
    """

    moved: Tensor
    digits: Tensor
    numbers: Tensor
    flags: Tensor
    anchors: Tensor
    least: Tensor


def prepare(
    problem: Problem, segments: Segments, functionals: bool, score: bool, architecture: str
) -> Queries:
    """The queries of a problem in fixed point, with what decides them; all but the anchors' rows.

    Args:
        problem: All but its rows on the device of its queries; at least one query.
        segments: Of its rows.
        functionals: Whether they are asked for.
        score: Whether the mean will be divided by sigma.
        architecture: Of the device, as ``configs`` names it.
    """
    batch, features = problem.query.shape
    device = problem.query.device
    padded = cdiv(features, _PADDING) * _PADDING

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def options(kernel: str) -> dict[str, Any]:
        return bytes_config(kernel, architecture).options()

    origin = problem.offset + SHIFT * problem.scale
    moved, units = empty(batch, features), empty(batch)
    launch(
        query_kernels.move,
        (batch,),
        problem.query,
        problem.alpha,
        moved,
        units,
        features,
        ORIGIN=origin,
        HAS_ALPHA=problem.alpha is not None,
        **options("move"),
    )
    chains = cdiv(padded, CHAIN)
    digits = empty(QUERY_DIGITS, batch, padded, dtype=torch.int8)
    sums = empty(chains, query_kernels.SPLIT_SUMS, batch)
    launch(
        query_kernels.split,
        (batch, chains),
        moved,
        units,
        digits,
        sums,
        batch,
        features,
        padded,
        **options("split"),
    )
    numbers = empty(NUMBERS, batch)
    flags = empty(FLAGS, batch, dtype=torch.int64)
    least = empty(batch)
    deciding = options("decide")
    launch(
        query_kernels.decide,
        (cdiv(batch, deciding["BLOCK"]),),
        numbers,
        flags,
        sums,
        units,
        problem.sigma,
        problem.alpha,
        problem.exclude,
        segments.lengths,
        least,
        batch,
        chains,
        features,
        problem.data.shape[0],
        segments.eligible,
        segments.count,
        _most_digits(features),
        ORIGIN=origin,
        SCALE=problem.scale,
        HAS_ALPHA=problem.alpha is not None,
        HAS_EXCLUDE=problem.exclude is not None,
        FUNCTIONALS=functionals,
        SCORE=score,
        **deciding,
    )
    anchors = empty(batch, features, dtype=torch.uint8)
    return Queries(moved, digits, numbers, flags, anchors, least)
