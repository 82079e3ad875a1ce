"""Segments into the result, and the result into the outputs: the launches of ``merge_kernels``."""

from __future__ import annotations

import torch
from torch import Tensor

from diffgen.backends.triton.launching import launch
from diffgen.backends.triton.layout import NEAREST_SQUARE, REFERENCE, STATE, cdiv
from diffgen.backends.triton.merge_kernels import (
    merge_means,
    segment_chain,
    write_functionals,
    write_means,
    write_numbers,
)

CHAIN_QUERIES = 32
"""Queries of a program of ``segment_chain`` and ``write_numbers``, one a lane."""

FEATURES = 256
"""Features of a program of ``merge_means`` and ``write_means``."""

CHAINS_AT_ONCE = 8
"""Chains of features that ``write_functionals`` sums side by side."""

WARPS = {"segment_chain": 1, "merge_means": 4, "write_means": 4, "write_numbers": 1}
WARPS["write_functionals"] = 2


def _launch(name: str) -> dict[str, object]:
    return {"num_warps": WARPS[name], "enable_fp_fusion": False}


def room_for_totals(batch: int, features: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Room for a state, ``(8, B)``, and for the mean's sums, ``(B, D)``, both float64."""
    totals = torch.empty(STATE, batch, dtype=torch.float64, device=device)
    return totals, torch.empty(batch, features, dtype=torch.float64, device=device)


def empty_totals(batch: int, features: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same with the state of no rows: what a call without segments ends with."""
    totals, means = room_for_totals(batch, features, device)
    totals.zero_()
    totals[REFERENCE.value].fill_(-torch.inf)
    totals[NEAREST_SQUARE.value].fill_(torch.inf)
    return totals, means


def chain_segments(
    totals: Tensor, parts: Tensor, numbers: Tensor, flags: Tensor, *, begun: bool
) -> Tensor:
    """Merges a wave's segments, or a segment's units, into the totals in place.

    Args:
        totals: ``(8, ...)`` float64, the last dimension B.
        parts: ``(8, W, ...)`` float64.
        numbers: ``(NUMBERS, B)`` float64.
        flags: ``(FLAGS, B)`` int64.
        begun: Whether the totals hold a state; otherwise they are taken for that of no rows.

    Returns:
        Factors ``(2, W, ...)`` float64; the mean of a segment whose second factor is 0 is not
        needed.
    """
    segments = parts.shape[1]
    batch = totals[0].numel()
    factors = torch.empty(2, *parts.shape[1:], dtype=torch.float64, device=parts.device)
    if batch > 0:
        grid = (cdiv(batch, CHAIN_QUERIES),)
        launch(
            segment_chain,
            grid,
            totals,
            parts,
            factors,
            numbers,
            flags,
            batch,
            numbers.shape[1],
            segments,
            int(begun),
            QUERIES=CHAIN_QUERIES,
            **_launch("segment_chain"),
        )
    return factors


def add_means(total_means: Tensor, part_means: Tensor, factors: Tensor) -> None:
    """Merges a wave's sums ``(B, W, D)`` into ``(B, D)`` in place, by the factors of the chain."""
    batch, segments, features = part_means.shape
    if batch > 0:
        launch(
            merge_means,
            (batch, cdiv(features, FEATURES)),
            total_means,
            part_means,
            factors,
            batch,
            segments,
            features,
            BLOCK=FEATURES,
            **_launch("merge_means"),
        )


def finish(
    totals: Tensor,
    total_means: Tensor,
    numbers: Tensor,
    flags: Tensor,
    *,
    scale: float,
    origin: float,
    functionals: bool,
    mean_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of a whole set.

    Args:
        totals: ``(8, B)`` float64.
        total_means: ``(B, D)`` float64.
        numbers: ``(NUMBERS, B)`` float64.
        flags: ``(FLAGS, B)`` int64.
        scale: Size of a stored unit.
        origin: What the sums are about, in real units.
        functionals: Whether they are asked for.
        mean_dtype: float32 or float64.

    Returns:
        Mean ``(B, D)``, logsumexp ``(B,)`` float64, functionals ``(B, 3)`` or ``(B, 0)`` float64.
    """
    batch, features = total_means.shape
    mean = torch.empty(batch, features, dtype=mean_dtype, device=totals.device)
    logsumexp = torch.empty(batch, dtype=torch.float64, device=totals.device)
    fields = torch.empty(batch, 3 if functionals else 0, dtype=torch.float64, device=totals.device)
    if batch == 0:
        return mean, logsumexp, fields
    launch(
        write_means,
        (batch, cdiv(features, FEATURES)),
        totals,
        total_means,
        flags,
        mean,
        batch,
        features,
        SCALE=scale,
        ORIGIN=origin,
        BLOCK=FEATURES,
        **_launch("write_means"),
    )
    launch(
        write_numbers,
        (cdiv(batch, CHAIN_QUERIES),),
        totals,
        numbers,
        flags,
        logsumexp,
        batch,
        QUERIES=CHAIN_QUERIES,
        **_launch("write_numbers"),
    )
    if functionals:
        launch(
            write_functionals,
            (batch,),
            totals,
            total_means,
            flags,
            fields,
            batch,
            features,
            SCALE=scale,
            CHAINS=CHAINS_AT_ONCE,
            **_launch("write_functionals"),
        )
    return mean, logsumexp, fields
