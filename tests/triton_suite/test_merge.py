"""Merging segments: the bits of ``csrc/u8/posterior_rules.h``, in Python's own float64."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from torch import Tensor

from diffgen.backends.triton import layout, merge

TIE = 1.0 + 1e-12
STATES = ("reference", "nearest", "quantised", "mass", "weights", "squares", "logits", "norms")


def exponential(x: float) -> float:
    """The fixed sequence of ``csrc/fixed_math.h``."""
    whole = 6755399441055744.0
    bounded = min(max(x, -700.0), 700.0)
    shifted = bounded * 1.4426950408889634074 + whole
    n = shifted - whole
    f = (bounded - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
    p = 1.0 / 6227020800.0
    for k in range(12, -1, -1):
        p = p * f + 1.0 / math.factorial(k)
    bits = struct.unpack("<q", struct.pack("<d", shifted))[0]
    power = ((bits + 1023) << 52) & (2**64 - 1)
    return p * struct.unpack("<d", struct.pack("<Q", power))[0]


def merged(total: list[float], part: list[float], margin: float, zero: bool) -> tuple[float, float]:
    """Joins a state to the total in place; returns the two factors."""
    mine, theirs = total[0], part[0]
    if theirs == -math.inf:
        return 1.0, 0.0
    if mine == -math.inf:
        old, fresh, top = 0.0, 1.0, theirs
    elif (zero and part[1] > total[1] * TIE) or (not zero and theirs < mine - margin):
        return 1.0, 0.0
    elif (zero and total[1] > part[1] * TIE) or (not zero and mine < theirs - margin):
        old, fresh, top = 0.0, 1.0, theirs
    else:
        top = max(mine, theirs)
        old, fresh = exponential(mine - top), exponential(theirs - top)
    to_old = 0.0 if mine == -math.inf else mine - top
    total[6] = old * (total[6] + to_old * total[4]) + fresh * (part[6] + (theirs - top) * part[4])
    for field in (2, 3, 4, 7):
        total[field] = old * total[field] + fresh * part[field]
    total[5] = old * old * total[5] + fresh * fresh * part[5]
    total[0], total[1] = top, min(total[1], part[1])
    return old, fresh


def states(segments: int, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parts with what rules tell apart: empty ones, dropped ones, ties; numbers and flags."""
    rng = torch.Generator().manual_seed(seed)
    parts = torch.rand(layout.STATE, segments, batch, generator=rng, dtype=torch.float64) + 0.5
    parts[0] = (parts[0] - 1.0) * 60
    parts[1] = torch.randint(1, 3, (segments, batch), generator=rng).double()
    parts[1] *= 1 + 4e-13 * torch.randint(0, 4, (segments, batch), generator=rng)
    empty = torch.rand(segments, batch, generator=rng) < 0.3
    fresh = torch.tensor([-math.inf, math.inf, *[0.0] * 6], dtype=torch.float64)
    parts = torch.where(empty, fresh[:, None, None], parts)
    numbers = torch.zeros(layout.NUMBERS, batch, dtype=torch.float64)
    numbers[layout.MARGIN.value] = 20.0
    flags = torch.zeros(layout.FLAGS, batch, dtype=torch.int64)
    flags[layout.FINITE.value] = 1
    flags[layout.SIGMA_IS_ZERO.value, ::3] = 1
    return parts, numbers, flags, empty


@pytest.mark.parametrize("batch", [1, 31, 33])
def test_chain_and_means_have_the_bits_of_the_rules(device: torch.device, batch: int) -> None:
    features, waves, segments = 261, 3, 4
    totals, means = merge.room_for_totals(batch, features, device)
    totals.fill_(math.nan)
    means.fill_(math.nan)
    want = [[-math.inf, math.inf, *[0.0] * 6] for _ in range(batch)]
    sums = torch.full((batch, features), math.nan, dtype=torch.float64)
    for wave in range(waves):
        parts, numbers, flags, _ = states(segments, batch, 10 * batch + wave)
        rng = torch.Generator().manual_seed(wave)
        rows = torch.randn(batch, segments, features, generator=rng, dtype=torch.float64)
        factors = merge.chain_segments(
            totals, parts.to(device), numbers.to(device), flags.to(device), begun=wave > 0
        )
        unread = (factors[1] == 0).T.cpu()
        given = rows.masked_fill(unread[..., None], math.nan)
        merge.add_means(means, given.to(device), factors)
        for b in range(batch):
            for s in range(segments):
                zero = bool(flags[layout.SIGMA_IS_ZERO.value, b])
                old, fresh = merged(want[b], parts[:, s, b].tolist(), 20.0, zero)
                if fresh and not old:
                    sums[b] = rows[b, s]
                elif fresh:
                    sums[b] = old * sums[b] + fresh * rows[b, s]
    assert torch.equal(totals.cpu(), torch.tensor(want, dtype=torch.float64).T)
    assert torch.equal(means.cpu().nan_to_num(), sums.nan_to_num())
    known = totals[0].cpu() > -math.inf
    assert not means.cpu()[known].isnan().any()


def test_segments_that_a_later_one_replaces_are_not_read(device: torch.device) -> None:
    parts, numbers, flags, _ = states(5, 3, 1)
    parts[0] = torch.tensor([-5.0, 0.0, 100.0, -math.inf, 99.0], dtype=torch.float64)[:, None]
    parts[1] = torch.tensor([9.0, 5.0, 1.0, math.inf, 1.0], dtype=torch.float64)[:, None]
    totals, _ = merge.room_for_totals(3, 1, device)
    totals.fill_(math.nan)
    factors = merge.chain_segments(
        totals, parts.to(device), numbers.to(device), flags.to(device), begun=False
    )
    assert factors[1, :4].cpu().tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3, [0.0] * 3]
    assert (factors[1, 4] > 0).all()
    assert (factors[0, :2] == 1).all()


@pytest.mark.parametrize("features", [1, 9, 513, 4609])
def test_functionals_are_summed_in_the_order_of_the_cpu(
    device: torch.device, features: int
) -> None:
    rng = torch.Generator().manual_seed(features)
    sums = torch.randn(2, features, generator=rng, dtype=torch.float64)
    totals = torch.rand(layout.STATE, 2, generator=rng, dtype=torch.float64) + 1.0
    totals[layout.NORMS.value] *= 2 * features
    numbers = torch.zeros(layout.NUMBERS, 2, dtype=torch.float64)
    flags = torch.ones(layout.FLAGS, 2, dtype=torch.int64)
    flags[layout.SIGMA_IS_ZERO.value] = 0
    scale, origin = 2 / 255, 1 / 255
    mean, logsumexp, fields = merge.finish(
        *(part.to(device) for part in (totals, sums, numbers, flags)),
        scale=scale,
        origin=origin,
        functionals=True,
        mean_dtype=torch.float64,
    )
    for b in range(2):
        state = dict(zip(STATES, totals[:, b].tolist(), strict=True))
        factor = scale / state["quantised"]
        about_origin = 0.0
        for begin in range(0, features, 512):
            lane = [0.0] * 8
            for k in range(begin, min(begin + 512, features)):
                offset = factor * float(sums[b, k])
                lane[k % 8] += offset * offset
                assert float(mean[b, k]) == origin + offset
            even = (lane[0] + lane[4]) + (lane[2] + lane[6])
            about_origin += even + ((lane[1] + lane[5]) + (lane[3] + lane[7]))
        w = state["weights"]
        assert float(fields[b, 1]) == w * w / state["squares"]
        assert float(fields[b, 2]) == max(0.0, state["norms"] / w - about_origin)
        # The logarithm is within 3e-16 of the larger of itself and 1.
        assert abs(float(logsumexp[b]) - state["reference"] - math.log(state["mass"])) < 1e-15
        entropy = max(0.0, math.log(w) - state["logits"] / w)
        assert abs(float(fields[b, 0]) - entropy) < 1e-15


@pytest.mark.parametrize("mean_dtype", [torch.float32, torch.float64])
def test_query_without_an_answer_is_nan_alone(
    device: torch.device, mean_dtype: torch.dtype
) -> None:
    totals, means = merge.empty_totals(4, 3, device)
    means.fill_(2.0)
    totals[:, 1:] = 1.0
    numbers = torch.zeros(layout.NUMBERS, 4, dtype=torch.float64, device=device)
    flags = torch.ones(layout.FLAGS, 4, dtype=torch.int64, device=device)
    flags[layout.SIGMA_IS_ZERO.value, :3] = 0
    flags[layout.FINITE.value, 1] = 0
    outputs = merge.finish(
        totals,
        means,
        numbers,
        flags,
        scale=1.0,
        origin=0.0,
        functionals=True,
        mean_dtype=mean_dtype,
    )
    assert outputs[0].dtype == mean_dtype
    assert outputs[0].cpu().isnan().all(1).tolist() == [True, True, False, False]
    assert outputs[1].cpu().tolist()[2:] == [1.0, -math.inf]
    assert outputs[1].cpu().isnan().tolist() == [True, True, False, False]
    assert outputs[2].cpu().isnan().all(1).tolist() == [True, True, False, False]
