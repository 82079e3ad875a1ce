"""Segments into the result, from left to right, and the result into the outputs.

The rules are those of ``csrc/u8/posterior_rules.h``, operation by operation: launched without
contraction, the same bits on every device. Sets of every type merge by them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from diffgen.backends.triton.arithmetic import fixed_exp, fixed_log, sum_lanes
from diffgen.backends.triton.layout import (
    CHAIN,
    CONSTANT,
    FINITE,
    LOGITS,
    MARGIN,
    MASS,
    NEAREST_SQUARE,
    NORMS,
    QUANTISED,
    REFERENCE,
    SIGMA_IS_ZERO,
    SQUARED_WEIGHTS,
    WEIGHTS,
)

_TIE = tl.constexpr(1.0 + 1e-12)
_CHAIN = tl.constexpr(CHAIN)
_LANES = tl.constexpr(8)


@triton.jit
def _top(a, b):
    """The larger; of equals, as of NaN and anything, the first."""
    return tl.where(a < b, b, a)


@triton.jit(do_not_specialize=["batch", "queries", "segments", "begun"])
def segment_chain(
    totals,
    parts,
    factors,
    numbers,
    flags,
    batch,
    queries,
    segments,
    begun,
    QUERIES: tl.constexpr,
):
    """Merges states into the totals, but for their means: a wave's segments, or a segment's units.

    Lane b is of query b modulo ``queries``: the segments of a wave may be lanes side by side.

    Args:
        totals: ``(8, B)`` float64, the state before the wave if it has ``begun``; becomes that
            after it.
        parts: ``(8, W, B)`` float64, the segments' states.
        factors: ``(2, W, B)`` float64, output: what the mean so far and the segment's own are
            multiplied with; 1 and 0 where the segment's does not matter in the end.
        numbers: ``(NUMBERS, B)`` float64.
        flags: ``(FLAGS, B)`` int64.
        batch: B, the lanes.
        queries: Columns of ``numbers`` and ``flags``.
        segments: W.
        begun: 0 where nothing has been merged yet.
        QUERIES: Lanes of a program.
    """
    b = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    inside = b < batch
    stride = batch.to(tl.int64)
    plane = stride * segments
    query = b % queries
    margin = tl.load(numbers + MARGIN * queries + query, mask=inside, other=0.0)
    sigma_is_zero = tl.load(flags + SIGMA_IS_ZERO * queries + query, mask=inside, other=0) != 0
    # Beyond the batch, and at the beginning, all is empty.
    known = inside & (begun != 0)
    reference = tl.load(totals + REFERENCE * stride + b, mask=known, other=-float("inf"))
    nearest = tl.load(totals + NEAREST_SQUARE * stride + b, mask=known, other=float("inf"))
    quantised = tl.load(totals + QUANTISED * stride + b, mask=known, other=0.0)
    mass = tl.load(totals + MASS * stride + b, mask=known, other=0.0)
    weights = tl.load(totals + WEIGHTS * stride + b, mask=known, other=0.0)
    squares = tl.load(totals + SQUARED_WEIGHTS * stride + b, mask=known, other=0.0)
    logits = tl.load(totals + LOGITS * stride + b, mask=known, other=0.0)
    norms = tl.load(totals + NORMS * stride + b, mask=known, other=0.0)
    resumes = b * 0
    for s in range(segments):
        part = parts + s * stride + b
        its_reference = tl.load(part + REFERENCE * plane, mask=inside, other=-float("inf"))
        its_nearest = tl.load(part + NEAREST_SQUARE * plane, mask=inside, other=float("inf"))
        nothing = its_reference == -float("inf")
        empty = reference == -float("inf")
        its_too_far = tl.where(
            sigma_is_zero,
            its_nearest > nearest * tl.full((), _TIE, tl.float64),
            its_reference < reference - margin,
        )
        too_far = tl.where(
            sigma_is_zero,
            nearest > its_nearest * tl.full((), _TIE, tl.float64),
            reference < its_reference - margin,
        )
        keeps = nothing | (~empty & its_too_far)
        starts = ~keeps & (empty | too_far)
        top = tl.where(keeps, reference, tl.where(starts, its_reference, 0.0))
        top = tl.where(keeps | starts, top, _top(reference, its_reference))
        # Where both count both references are finite.
        both = ~(keeps | starts)
        old = fixed_exp(tl.where(both, reference - top, 0.0))
        fresh = fixed_exp(tl.where(both, its_reference - top, 0.0))
        old = tl.where(starts, 0.0, old)
        fresh = tl.where(keeps, 0.0, fresh)
        tl.store(factors + s * stride + b, old, mask=inside)
        tl.store(factors + plane + s * stride + b, fresh, mask=inside)
        resumes = tl.where(starts, resumes * 0 + s, resumes)

        joins = inside & ~keeps
        its_quantised = tl.load(part + QUANTISED * plane, mask=joins, other=0.0)
        its_mass = tl.load(part + MASS * plane, mask=joins, other=0.0)
        its_weights = tl.load(part + WEIGHTS * plane, mask=joins, other=0.0)
        its_squares = tl.load(part + SQUARED_WEIGHTS * plane, mask=joins, other=0.0)
        its_logits = tl.load(part + LOGITS * plane, mask=joins, other=0.0)
        its_norms = tl.load(part + NORMS * plane, mask=joins, other=0.0)
        to_old = tl.where(empty, 0.0, reference - top)
        to_fresh = its_reference - top
        joined = old * (logits + to_old * weights) + fresh * (its_logits + to_fresh * its_weights)
        logits = tl.where(keeps, logits, joined)
        quantised = tl.where(keeps, quantised, old * quantised + fresh * its_quantised)
        mass = tl.where(keeps, mass, old * mass + fresh * its_mass)
        weights = tl.where(keeps, weights, old * weights + fresh * its_weights)
        joined = old * old * squares + fresh * fresh * its_squares
        squares = tl.where(keeps, squares, joined)
        norms = tl.where(keeps, norms, old * norms + fresh * its_norms)
        closer = tl.where(its_nearest < nearest, its_nearest, nearest)
        nearest = tl.where(keeps, nearest, closer)
        reference = tl.where(keeps, reference, top)
    tl.store(totals + REFERENCE * stride + b, reference, mask=inside)
    tl.store(totals + NEAREST_SQUARE * stride + b, nearest, mask=inside)
    tl.store(totals + QUANTISED * stride + b, quantised, mask=inside)
    tl.store(totals + MASS * stride + b, mass, mask=inside)
    tl.store(totals + WEIGHTS * stride + b, weights, mask=inside)
    tl.store(totals + SQUARED_WEIGHTS * stride + b, squares, mask=inside)
    tl.store(totals + LOGITS * stride + b, logits, mask=inside)
    tl.store(totals + NORMS * stride + b, norms, mask=inside)
    # The stores of the first loop may have been other threads'.
    tl.debug_barrier()
    for s in range(segments):
        superseded = inside & (s < resumes)
        tl.store(factors + s * stride + b, resumes.to(tl.float64) * 0.0 + 1.0, mask=superseded)
        tl.store(factors + plane + s * stride + b, resumes.to(tl.float64) * 0.0, mask=superseded)


@triton.jit(do_not_specialize=["batch", "segments"])
def merge_means(total_means, part_means, factors, batch, segments, features, BLOCK: tl.constexpr):
    """Merges the segments' sums of weighted rows into the totals.

    Args:
        total_means: ``(B, D)`` float64; read only where a segment joins what was there before.
        part_means: ``(B, W, D)`` float64; read only where the segment's factor is not 0.
        factors: ``(2, W, B)`` float64 of ``segment_chain``.
        batch: B.
        segments: W.
        features: D.
        BLOCK: Features of a program; the grid is (query, block).
    """
    b = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = k < features
    stride = batch.to(tl.int64)
    plane = stride * segments
    total = tl.zeros((BLOCK,), tl.float64)
    known = 0
    for s in range(segments):
        old = tl.load(factors + s * stride + b)
        fresh = tl.load(factors + plane + s * stride + b)
        if fresh != 0.0:
            part = tl.load(part_means + (b * segments + s) * features + k, mask=inside, other=0.0)
            if old == 0.0:
                total = part
            else:
                before = inside & (known == 0)
                read = tl.load(total_means + b * features + k, mask=before, other=0.0)
                total = tl.where(before, read, total)
                total = old * total + fresh * part
            known = 1
    tl.store(total_means + b * features + k, total, mask=inside & (known != 0))


@triton.jit(do_not_specialize=["batch"])
def write_means(
    totals,
    total_means,
    flags,
    mean,
    batch,
    features,
    SCALE: tl.constexpr,
    ORIGIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Means in real units, rounded once to the output's type; NaN where there is no answer.

    Args:
        totals: ``(8, B)`` float64.
        total_means: ``(B, D)`` float64.
        flags: ``(FLAGS, B)`` int64.
        mean: ``(B, D)`` float32 or float64, output.
        batch: B.
        features: D.
        SCALE: Size of a stored unit.
        ORIGIN: What a stored value of no weight means.
        BLOCK: Features of a program; the grid is (query, block).
    """
    b = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = k < features
    stride = batch.to(tl.int64)
    finite = tl.load(flags + FINITE * stride + b) != 0
    known = finite & (tl.load(totals + REFERENCE * stride + b) > -float("inf"))
    quantised = tl.load(totals + QUANTISED * stride + b)
    factor = tl.full((), SCALE, tl.float64) / tl.where(known, quantised, 1.0)
    total = tl.load(total_means + b * features + k, mask=inside & known, other=0.0)
    value = tl.full((), ORIGIN, tl.float64) + factor * total
    value = tl.where(known, value, float("nan"))
    tl.store(mean + b * features + k, value.to(mean.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch"])
def write_numbers(totals, numbers, flags, logsumexp, batch, QUERIES: tl.constexpr):
    """Log-sum-exps ``(B,)``; NaN where there is no answer, -inf at sigma = 0 off the rows."""
    b = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    inside = b < batch
    stride = batch.to(tl.int64)
    finite = tl.load(flags + FINITE * stride + b, mask=inside, other=0) != 0
    reference = tl.load(totals + REFERENCE * stride + b, mask=inside, other=-float("inf"))
    known = finite & (reference > -float("inf"))
    constant = tl.load(numbers + CONSTANT * stride + b, mask=inside, other=0.0)
    nearest = tl.load(totals + NEAREST_SQUARE * stride + b, mask=inside, other=0.0)
    mass = tl.load(totals + MASS * stride + b, mask=inside, other=1.0)
    sigma_is_zero = tl.load(flags + SIGMA_IS_ZERO * stride + b, mask=inside, other=0) != 0
    value = (reference - constant) + fixed_log(tl.where(known, mass, 1.0))
    value = tl.where(sigma_is_zero & (nearest > 0.0), -float("inf"), value)
    tl.store(logsumexp + b, tl.where(known, value, float("nan")), mask=inside)


@triton.jit(do_not_specialize=["batch"])
def write_functionals(
    totals,
    total_means,
    flags,
    functionals,
    batch,
    features,
    SCALE: tl.constexpr,
    CHAINS: tl.constexpr,
):
    """Entropy, effective sample size and trace, ``(B, 3)``; NaN where there is no answer.

    The squared length of the mean is summed in the order of the CPU's: 8 lanes through a chain of
    512 features, folded as a tree, and the chains from left to right. Chains go side by side.
    """
    b = tl.program_id(0).to(tl.int64)
    stride = batch.to(tl.int64)
    finite = tl.load(flags + FINITE * stride + b) != 0
    known = finite & (tl.load(totals + REFERENCE * stride + b) > -float("inf"))
    quantised = tl.load(totals + QUANTISED * stride + b)
    factor = tl.full((), SCALE, tl.float64) / tl.where(known, quantised, 1.0)
    place = tl.arange(0, CHAINS)
    lane = tl.arange(0, _LANES)
    about_origin = factor * 0.0
    for first in range(0, features, CHAINS * _CHAIN):
        lanes = tl.zeros((CHAINS, _LANES), tl.float64)
        for step in range(0, _CHAIN, _LANES):
            k = first + (place.to(tl.int64) * _CHAIN)[:, None] + (step + lane)[None, :]
            read = (k < features) & known
            offset = factor * tl.load(total_means + b * features + k, mask=read, other=0.0)
            lanes += offset * offset
        chains = sum_lanes(lanes, CHAINS)
        for chain in range(CHAINS):
            about_origin += tl.sum(tl.where(place == chain, chains, 0.0), axis=0)
    weights = tl.where(known, tl.load(totals + WEIGHTS * stride + b), 1.0)
    squares = tl.where(known, tl.load(totals + SQUARED_WEIGHTS * stride + b), 1.0)
    logits = tl.load(totals + LOGITS * stride + b)
    norms = tl.load(totals + NORMS * stride + b)
    entropy = fixed_log(weights) - logits / weights
    entropy = tl.where(entropy > 0.0, entropy, 0.0)
    trace = norms / weights - about_origin
    trace = tl.where(trace > 0.0, trace, 0.0)
    nan = float("nan")
    tl.store(functionals + 3 * b, tl.where(known, entropy, nan))
    tl.store(functionals + 3 * b + 1, tl.where(known, weights * weights / squares, nan))
    tl.store(functionals + 3 * b + 2, tl.where(known, trace, nan))
