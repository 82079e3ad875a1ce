"""Rows in blocks: the bits of one call for uint8, what is promised for all."""

from __future__ import annotations

import dataclasses
import itertools

import problems
import pytest
import torch
from streamed import place_over, store_over, without_rows
from torch import Tensor

from diffgen import EmpiricalDenoiser, TrainingSet, accuracy
from diffgen.backends import cpu, cpu_pass, native, reference
from diffgen.backends.passes import PassOptions
from diffgen.backends.problem import CovarianceInputs, Problem
from diffgen.backends.registry import Moments
from diffgen.readers.rows import squared_norms
from diffgen.streaming import exact, merged, plan, store

pytestmark = pytest.mark.usefixtures("one_thread")

needs_native = pytest.mark.skipif(
    native.load_native() is None, reason=native.why_not_native() or "native core"
)
SIGMAS = (0.0, 0.002, 0.01, 0.05, 0.3, 1.0, 5.0, 80.0)
ASKED = ((False, 0, torch.float32), (False, 2, torch.float64), (True, 5, torch.float64))
ROWS = (1, 2, 1023, 1024, 1025, 2048, 3500)


def same_bits(first: Moments, second: Moments) -> bool:
    return all(
        a.shape == b.shape
        and a.dtype == b.dtype
        and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
        for a, b in zip(first, second, strict=True)
    )


def photographs(count: int, seed: int = 0) -> Tensor:
    """Rows with copies and near-copies in every segment, ``(count, 48)`` uint8."""
    data = problems.encode(problems.natural(count, 4, seed), torch.uint8, (-1.0, 1.0))
    data = data.reshape(count, -1)
    for at in range(0, count - 7, 500):
        data[at + 1 : at + 7] = data[0]
        data[at + 3, 0] ^= 1
    return data


def problem_at(
    count: int, sigmas: tuple[float, ...] = SIGMAS, query_dtype: torch.dtype = torch.float32, **more
) -> Problem:
    """Queries near rows, between near-copies and far from all, at each noise level."""
    data = photographs(count)

    def queries(values: Tensor) -> Tensor:
        noise = torch.randn(len(sigmas), values.shape[1], generator=problems.generator(1)).double()
        level = torch.tensor(sigmas, dtype=torch.float64)[:, None]
        near = values[torch.arange(len(sigmas)) * 97 % count] + level * noise
        between = values[[0, min(3, count - 1)]].mean(0).expand(len(sigmas), -1)
        return torch.cat((near, between, near + 100))

    made = problems.from_stored(data, queries, sigmas * 3, query_dtype, **more)
    # The norms of a training set, from integers: bits depend on them.
    return dataclasses.replace(made, norms=squared_norms(data, made.scale))


def more_of(name: str, count: int) -> dict:
    """Arguments of a problem by what is special about it."""
    weights = torch.rand(count, generator=problems.generator(2))
    weights[::7] = 0
    weights[0] = 1
    batch = 3 * len(SIGMAS)
    return {
        "plain": {},
        "weighted": {"weights": weights},
        "left out": {"exclude": [(i * 97) % count if i % 2 else -1 for i in range(batch)]},
        "class": {"rows": list(range(0, count, 3))},
        "scaled": {"alpha": 0.7},
        "noise alone": {"alpha": 0.0},
    }[name]


SPECIAL = ("plain", "weighted", "left out", "class", "scaled", "noise alone")


@needs_native
@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("name", SPECIAL)
def test_uint8_has_the_bits_of_one_call(name, asked):
    for count in ROWS if name == "plain" else (3500,):
        functionals, top_k, mean_dtype = asked
        top_k = min(top_k, count)
        problem = problem_at(count, **more_of(name, count))
        want = cpu.moments("auto", problem, functionals, top_k, mean_dtype)
        for block_rows in (1024, 2048):
            rows = store_over(problem, block_rows)
            given = without_rows(problem)
            got = rows.moments(given, functionals, top_k, mean_dtype, "cpu")
            assert same_bits(got, want), (count, block_rows)


@needs_native
def test_uint8_has_the_bits_of_one_call_on_two_threads_and_every_instruction_set():
    problem = problem_at(3500)
    want = cpu.moments("portable", problem, True, 3, torch.float64)
    torch.set_num_threads(2)
    for level in ("portable", "avx2", "avxvnni", "avx512", "avx512vnni"):
        if cpu._unavailable(level) is None:
            rows = store_over(problem, 1024)
            got = rows.moments(without_rows(problem), True, 3, torch.float64, f"cpu:{level}")
            assert same_bits(got, want), level


@needs_native
def test_float64_queries_have_the_bits_of_one_call():
    problem = problem_at(3500, query_dtype=torch.float64)
    want = cpu.moments("auto", problem, True, 3, torch.float64)
    got = store_over(problem, 1024).moments(without_rows(problem), True, 3, torch.float64, "auto")
    assert same_bits(got, want)


@needs_native
def test_many_queries_take_several_passes_with_the_same_bits(monkeypatch):
    problem = problem_at(3500)
    want = cpu.moments("auto", problem, True, 3, torch.float64)
    monkeypatch.setattr(store, "STATE_BYTES", 7 * 48 * store.STATE_BYTES_EACH)
    rows = store_over(problem, 1024)
    got = rows.moments(without_rows(problem), True, 3, torch.float64, "cpu")
    assert same_bits(got, want)
    assert rows.place._shared.passes == -(-len(problem.query) // 7)


def second_passes(problem: Problem, monkeypatch) -> list[int]:
    """How many segments each second pass reads."""
    read = []
    find = exact.ExactMoments._segments_that_matter

    def spy(*arguments):
        wanted = find(*arguments)
        read.append(int(wanted.sum()))
        return wanted

    monkeypatch.setattr(exact.ExactMoments, "_segments_that_matter", spy)
    store_over(problem, 1024).moments(without_rows(problem), False, 0, torch.float32, "cpu")
    return read


@needs_native
def test_small_sigma_reads_again_only_the_segments_that_matter(monkeypatch):
    data = photographs(8 * 1024)
    near = problems.from_stored(
        data, lambda values: values[[1500, 5000]] + 1e-4, 0.0005, torch.float32
    )
    assert second_passes(near, monkeypatch) == [2]


@needs_native
def test_a_second_pass_that_misses_a_segment_is_seen(monkeypatch):
    problem = problem_at(3500)
    want = cpu.moments("auto", problem, False, 0, torch.float64)
    find = exact.ExactMoments._segments_that_matter

    def miss(*arguments):
        wanted = find(*arguments)
        wanted[int(wanted.nonzero()[0])] = False
        return wanted

    monkeypatch.setattr(exact.ExactMoments, "_segments_that_matter", miss)
    got = store_over(problem, 1024).moments(without_rows(problem), False, 0, torch.float64, "cpu")
    assert not same_bits(got, want)


@pytest.mark.parametrize("storage", problems.STORAGE, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_blocks_keep_the_promise(name, storage, backend):
    if backend == "cpu" and native.load_native() is None:
        pytest.skip(native.why_not_native() or "native core")
    problem = problems.PROBLEMS[name](3, storage, torch.float32)
    count = len(problem.data)
    top_k = min(3, _fewest(problem))
    want = reference.moments(problem, True, top_k, torch.float64)
    rows = store_over(problem, max(1, count // 3))
    if storage == torch.uint8 and backend == "cpu":
        rows.place.block_rows = 1024
    got = rows.moments(without_rows(problem), True, top_k, torch.float64, backend)
    assert accuracy.error_in_promises(got, want, problem) <= 1


def _fewest(problem: Problem) -> int:
    count = len(problem.data) if problem.rows is None else len(problem.rows)
    return count - (problem.exclude is not None)


@pytest.mark.parametrize("dropped", ["spread", "entropy", "tie"])
def test_a_fault_in_the_merge_is_seen(dropped, monkeypatch):
    problem = problem_at(300, (0.0, 0.3, 5.0))
    want = reference.moments(problem, True, 2, torch.float64)
    if dropped == "tie":
        monkeypatch.setattr(
            merged.MergedMoments, "_tied_masses", lambda self, p, c, mass, near: mass * 0
        )
    else:
        right = merged.merge_functionals

        def wrong(first, second, u, v, spread):
            merged_fields = right(first, second, u, v, spread * (dropped != "spread"))
            if dropped == "entropy":
                merged_fields[:, 0] -= torch.special.entr(u)
            return merged_fields

        monkeypatch.setattr(merged, "merge_functionals", wrong)
    got = store_over(problem, 100).moments(without_rows(problem), True, 2, torch.float64, "eager")
    assert accuracy.error_in_promises(got, want, problem) > 1


def test_rows_too_large_for_whole_segments_keep_the_promise(monkeypatch):
    monkeypatch.setattr(plan, "MOST_SEGMENT_BYTES", 48 * 1024 - 1)
    monkeypatch.setattr(plan, "BLOCK_BYTES", 48 * 100)
    problem = problem_at(1500)
    want = reference.moments(problem, True, 2, torch.float64)
    rows = store_over(problem, plan.rows_of_block(48))
    assert rows.place.block_rows == 100
    got = rows.moments(without_rows(problem), True, 2, torch.float64, "auto")
    assert accuracy.error_in_promises(got, want, problem) <= 1


@pytest.mark.parametrize("storage", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["plain", "weighted", "left out", "class"])
def test_products_of_blocks_add_up(name, storage):
    count, sigmas = 2500, (0.05, 0.3, 1.0, 5.0)
    special = more_of(name, count)
    if "exclude" in special:
        special["exclude"] = special["exclude"][: 2 * len(sigmas)]
    data = photographs(count)
    if storage != torch.uint8:
        data = data.float() / 127.5 - 1
    noise = problems.noised(sigmas * 2, 2 * len(sigmas), 3)
    problem = problems.from_stored(data, noise, sigmas * 2, torch.float32, **special)
    mean, logsumexp, *_ = reference.moments(problem, False, 0, torch.float64)
    v = torch.randn(mean.shape, generator=problems.generator(4), dtype=torch.float64)
    inputs = CovarianceInputs(mean, logsumexp, v, torch.rand(len(mean)).double())
    want = reference.covariance_product(problem, inputs)
    rows = store_over(problem, 1024)
    got = rows.covariance_product(without_rows(problem), inputs, "auto")
    tolerance = accuracy.covariance_tolerance(problem, inputs, 2.0**-24)
    for part, expected, limit in zip(got, want, tolerance, strict=True):
        assert ((part - expected).abs() <= limit).all()


@needs_native
@pytest.mark.parametrize("cuts", [(1024,), (2048,), (1024, 2048, 3072), (0, 2048)], ids=str)
@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_parts_in_turn_have_the_bits_of_the_whole(cuts, asked):
    """What several processes do, in one: each keeps its segments until it knows what is before."""
    functionals, top_k, mean_dtype = asked
    sigmas = tuple(sigma for sigma in SIGMAS if sigma == 0 or sigma > 0.1)
    problem = problem_at(3500, sigmas, weights=more_of("weighted", 3500)["weights"])
    want = cpu.moments("auto", problem, functionals, top_k, mean_dtype)
    extent = place_over(problem, 1024).extent(None)
    states = None
    for first, stop in itertools.pairwise((0, *cuts, 3500)):
        options = PassOptions(functionals, top_k, mean_dtype, 1, keep_segments=first > 0)
        assert not cpu_pass.undecided("auto", problem, extent, options).any()
        place = place_over(problem, 1024, (first, stop))
        make = lambda given=options: (cpu_pass.CpuPass("auto", problem, extent, given),)  # noqa: E731
        (own,) = place.run(make)
        if states is not None:
            kept = own.kept_bytes()
            assert (kept > 0) == (options.keep_segments and stop > first)
            own.merge_after(states)
            assert own.kept_bytes() == 0
        states = own.write_state()
    last = cpu_pass.CpuPass("auto", problem, extent, options)
    last.read_state(states)
    assert same_bits(last.finish().moments, want)


@needs_native
def test_parts_merged_out_of_order_are_seen():
    problem = problem_at(3500, (1.0, 5.0, 80.0))
    want = cpu.moments("auto", problem, False, 0, torch.float64)
    options = PassOptions(False, 0, torch.float64, 1, keep_segments=True)
    extent = place_over(problem, 1024).extent(None)
    parts = []
    for own in ((0, 2048), (2048, 3500)):
        make = lambda: (cpu_pass.CpuPass("auto", problem, extent, options),)  # noqa: E731
        parts.extend(place_over(problem, 1024, own).run(make))
    nothing = parts[1].empty_state()
    fresh = cpu_pass.CpuPass("auto", problem, extent, options).write_state()
    # Whatever the means hold, their weight is zero.
    assert torch.equal(nothing[:, :9], fresh[:, :9])
    parts[1].merge_after(nothing)
    parts[0].merge_after(parts[1].write_state())
    assert not same_bits(parts[0].finish().moments, want)


def sets(tmp_path, count: int = 3000, shape: tuple[int, ...] = (3, 4, 4), **more):
    """The same set from its file and in memory."""
    import numpy as np

    path = tmp_path / "rows.npy"
    np.save(path, photographs(count).reshape(count, *shape).numpy())
    return (
        TrainingSet.open(path, in_memory=False, **more),
        TrainingSet.open(path, in_memory=True, **more),
    )


@needs_native
@pytest.mark.parametrize("flip", [False, True])
def test_a_denoiser_over_a_file_is_that_in_memory(tmp_path, flip):
    labels = torch.arange(3000) % 4
    weights = torch.rand(3000, generator=problems.generator(0))
    on_file, in_memory = sets(tmp_path, flip=flip, labels=labels, weights=weights)
    assert on_file._contents.store is not None and in_memory._contents.store is None
    ours, theirs = EmpiricalDenoiser(on_file), EmpiricalDenoiser(in_memory)
    x = in_memory[:6] + 0.3 * torch.randn(6, 3, 4, 4, generator=problems.generator(1))
    classes = torch.tensor([0, 1, 2, 3, -1, 0])
    exclude = torch.tensor([0, 1, -1, 3, 4, 4])
    for sigma in SIGMAS:
        assert same_bits(
            ours.posterior(x, sigma, classes, exclude=exclude, top_k=3),
            theirs.posterior(x, sigma, classes, exclude=exclude, top_k=3),
        )
    assert torch.equal(ours.sweep(x, SIGMAS), theirs.sweep(x, SIGMAS))
    assert torch.equal(ours.posterior_mean(x, 0.0, 1.0), theirs.posterior_mean(x, 0.0, 1.0))
    assert torch.equal(ours.divergence(x, 0.5, classes), theirs.divergence(x, 0.5, classes))


def test_derivatives_over_a_file_are_those_in_memory(tmp_path):
    on_file, in_memory = sets(tmp_path, 1500)
    x = (in_memory[:4] + 0.4).double().requires_grad_()
    v = torch.randn(x.shape, generator=problems.generator(1), dtype=torch.float64)
    sigma = torch.full((4,), 0.5, dtype=torch.float64, requires_grad=True)
    results = []
    for points in (on_file, in_memory):
        denoiser = EmpiricalDenoiser(points)
        value = (denoiser(x, sigma) * v).sum() + denoiser.posterior(x, sigma).logsumexp.sum()
        backward = torch.autograd.grad(value, (x, sigma))
        _, forward = torch.func.jvp(lambda given, d=denoiser: d(given, 0.5), (x.detach(),), (v,))
        batched = torch.vmap(lambda one, d=denoiser: d(one[None], 0.5)[0])(x.detach())
        product = denoiser.covariance_vector_product(x.detach(), 0.5, v)
        results.append((*backward, forward, batched, product))
    for got, want in zip(*results, strict=True):
        # Sums over the same rows in float64, in another order.
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)


@needs_native
def test_a_compiled_denoiser_over_a_file_has_the_same_bits(tmp_path):
    on_file, in_memory = sets(tmp_path, 1500)
    denoiser, compiled = (
        EmpiricalDenoiser(on_file),
        torch.compile(EmpiricalDenoiser(on_file), fullgraph=True),
    )
    x = (in_memory[:4] + 0.4).requires_grad_()
    assert torch.equal(compiled(x, torch.tensor(0.5)), EmpiricalDenoiser(in_memory)(x, 0.5))
    (got,) = torch.autograd.grad(compiled(x, torch.tensor(0.5)).square().sum(), x)
    (want,) = torch.autograd.grad(denoiser(x, 0.5).square().sum(), x)
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-7)
