"""One set in several processes: the bits, the promise and the errors of all of them."""

from __future__ import annotations

import itertools
import pickle
import re

import numpy as np
import pytest
import shard_work
import torch
from processes import run_ranks
from torch import Tensor

from diffgen import EmpiricalDenoiser, TrainingSet
from diffgen.backends import native
from diffgen.sharding.cut import bounds
from diffgen.streaming.exchange import Exchange

pytestmark = pytest.mark.usefixtures("one_thread")

needs_native = pytest.mark.skipif(
    native.load_native() is None, reason=native.why_not_native() or "native core"
)
SIZES = (2, 4)
ANSWERS_S = 20.0
"""Seconds after which a rank that waits for another must have an error: twice its limit."""


def same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(
        a.shape == b.shape and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
        for a, b in zip(first, second, strict=True)
    )


def ran(function: str, size: int, **arguments) -> list:
    outcomes = run_ranks(f"shard_work:{function}", size, arguments=arguments, timeout_s=120)
    return [outcome.result() for outcome in outcomes]


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "rows.npy", shard_work.rows().numpy())
    return str(tmp_path)


@needs_native
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["plain", "flip", "classes"])
def test_uint8_has_the_bits_of_one_process(name, size):
    want = shard_work.answers(TrainingSet(shard_work.rows(), **shard_work.special(name)))
    for got in ran("all_answers", size, name=name, storage=torch.uint8):
        assert same_bits(got, want)


@needs_native
@pytest.mark.parametrize("in_memory", [False, None])
def test_parts_of_a_file_have_the_bits_of_one_process(folder, in_memory):
    want = shard_work.answers(TrainingSet(shard_work.rows()))
    given = {"name": "plain", "storage": torch.uint8, "folder": folder, "in_memory": in_memory}
    for got in ran("all_answers", 2, **given):
        assert same_bits(got, want)


def close(got: Tensor, want: Tensor) -> bool:
    """Up to the merge of parts in float64, and one rounding to float32.

    A merge is off by 2^-52 of the largest log-sum-exp, 6e5 here, in nats, so the weights by 2e-10;
    what is smaller than the rows themselves keeps the rounding of sums over these.
    """
    relative = 1e-6 if want.dtype == torch.float32 else 1e-9
    finite = want.masked_fill(~want.isfinite(), 0)
    absolute = relative * float(finite.abs().max()) + 2.0**-40
    return torch.allclose(got, want, relative, absolute, equal_nan=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["plain", "flip", "classes"])
def test_floats_agree_with_one_process_and_between_ranks(name, size):
    points = TrainingSet(shard_work.rows(torch.float32), **shard_work.special(name))
    want = shard_work.answers(points)
    first, *others = ran("all_answers", size, name=name, storage=torch.float32)
    assert all(same_bits(first, other) for other in others)
    assert all(map(close, first, want))


@needs_native
def test_without_room_for_segments_parts_are_merged_whole():
    want = shard_work.answers(TrainingSet(shard_work.rows()))
    first, *others = ran("answers_without_room", 2)
    assert all(same_bits(first, other) for other in others)
    assert not same_bits(first, want) and all(map(close, first, want))


@pytest.mark.parametrize("storage", [torch.uint8, torch.float32], ids=str)
def test_derivatives_agree_with_one_process_and_between_ranks(storage):
    want = shard_work.derivatives(TrainingSet(shard_work.rows(storage)))
    first, *others = ran("all_derivatives", 2, storage=storage)
    assert all(same_bits(first, other) for other in others)
    assert all(map(close, first, want))


@needs_native
def test_each_rank_gets_the_answers_to_its_own_queries():
    points = TrainingSet(shard_work.rows(), **shard_work.special("classes"))
    denoiser = EmpiricalDenoiser(points)
    for rank, (mean, gradient, logsumexp) in enumerate(ran("own_queries", 4)):
        x = shard_work.queries(2 + rank, seed=rank).requires_grad_()
        classes = torch.arange(2 + rank) - 1
        want = denoiser(x, 0.4, classes)
        (want_gradient,) = torch.autograd.grad(want.square().sum(), x)
        assert torch.equal(mean, want) and close(gradient, want_gradient)
        assert torch.equal(logsumexp, denoiser.posterior(x.detach(), 0.4, classes).logsumexp)


@needs_native
def test_a_sampler_runs_unchanged():
    want = shard_work.drawn(EmpiricalDenoiser(TrainingSet(shard_work.rows())), 6)
    assert all(torch.equal(got, want) for got in ran("samples", 2))


@needs_native
def test_a_device_mesh_is_a_group():
    want = shard_work.answers(TrainingSet(shard_work.rows()))
    assert all(same_bits(got, want) for got in ran("on_a_mesh", 2))


def test_rows_of_another_rank_cannot_be_read():
    first, second = ran("of_another_rank", 2)
    assert first == "row 4999 is held by another process: this one holds rows 0 to 2047"
    assert second == "row 0 is held by another process: this one holds rows 2048 to 4999"


DISAGREEMENTS = {
    "rows": "its rows differs",
    "dtype": "its (shape|dtype) differs: uint8 in rank 0, float32 in rank 1",
    "shape": r"its shape differs: \[5000, 3, 4, 4\] in rank 0, \[5000, 48\] in rank 1",
    "labels": "its labels differs: None in rank 0",
    "the same shard twice": "got 0 in processes 0, 1: the same shard twice",
    "world_size": "world_size must be the size of the group, 2, got 3 in rank 1",
    "the same call": "all ranks must make the same call: .*top_k=3.* in rank 0, .*top_k=2",
    "the same arguments": "all ranks must pass the same arguments: .*None.* in rank 0, .*int64",
}


@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_ranks_that_disagree_all_say_so(what):
    for outcome in run_ranks("shard_work:disagree", 2, arguments={"what": what}):
        assert re.search(f"ShardError: .*{DISAGREEMENTS[what]}", outcome.error), outcome


@pytest.mark.parametrize("size", SIZES)
def test_a_rank_that_is_killed_in_a_pass_is_an_error_in_the_others(size, folder):
    outcomes = run_ranks(
        "shard_work:fail_in_a_pass", size, arguments={"how": "killed", "folder": folder}
    )
    assert outcomes[-1].status == -9
    for outcome in outcomes[:-1]:
        assert re.search(f"ShardError: .*rank {size - 1}", outcome.error), outcome
        assert outcome.seconds < ANSWERS_S


def test_a_rank_that_cannot_read_its_rows_is_an_error_in_the_others(folder):
    outcomes = run_ranks(
        "shard_work:fail_in_a_pass", 2, arguments={"how": "truncated", "folder": folder}
    )
    assert "DataError" in outcomes[1].error and "rows-1.npy" in outcomes[1].error
    assert re.search("ShardError: .*rank 1.*DataError.*rows-1.npy", outcomes[0].error)


def test_a_mistake_of_all_ranks_leaves_the_set_whole():
    ran("bad_sigma", 2)


def test_a_process_group_is_needed():
    (outcome,) = run_ranks("shard_work:alone", 1, init="none")
    assert re.search("ValueError: .*initialised process group", outcome.error), outcome


@pytest.mark.parametrize("count", [1, 1023, 5000, 50_000])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_parts_are_all_rows_cut_at_segments(count, size):
    parts = [bounds(count, rank, size, torch.uint8) for rank in range(size)]
    assert parts[0][0] == 0 and parts[-1][1] == count
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert all(first % 1024 == 0 or first == count for first, _ in parts)
    floats = [bounds(count, rank, size, torch.float32) for rank in range(size)]
    sizes = [stop - first for first, stop in floats]
    assert sum(sizes) == count and max(sizes) - min(sizes) <= 1


def test_a_shard_cannot_be_pickled():
    points = TrainingSet(shard_work.rows())
    contents = points._contents
    from diffgen.contents import streamed
    from diffgen.readers.source import tensor_source

    data, norms, store = streamed(tensor_source(contents.data), contents.affine[0], None)
    store.exchange = type("Others", (Exchange,), {"alone": False})()
    points._contents = type(contents)(
        **{**vars(contents), "data": data, "norms": norms, "store": store}
    )
    with pytest.raises(TypeError, match="belongs to its process group"):
        pickle.dumps(points)
