"""The GPU's kernels, executed on this processor, give the bits of the CPU backend.

The same source is built by a C++ compiler over ``csrc/cuda/emulate``: threads in a shuffled order,
shared memory with a shadow that finds races, reads of what nobody wrote and copies that nobody
waited for. Compiled and emulated: nothing here has run on a GPU.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable
from pathlib import Path

import problems
import pytest
import test_integer_reproducibility as integers
import torch
from cuda_emulation import files, program

from diffgen.backends import native
from diffgen.backends.problem import Problem

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        native.load_native() is None, reason=native.why_not_native() or "native core"
    ),
    pytest.mark.skipif(bool(program.why_not()), reason=program.why_not() or "emulation"),
]

# Each kernel that there is a choice of, each number of digits that screen, waves of one segment and
# of several, rows as they come, read byte by byte, and moved off an aligned place; rows that the
# screen leaves decided by products with all rows, and row by row.
PLANS = (
    "",
    "few=0 dense=1 screen=1 wave=1 rest=1",
    "few=1 dense=0 screen=2 masked=1 rest=1",
    "few=0 dense=0 screen=3 wave=2 rest=0",
    "few=1 dense=1 screen=4 wave=1 rest=0",
    "few=0 dense=1 screen=5 masked=1 shift=3",
    "few=1 dense=0 screen=1 shift=8 batch=4 rest=0",
    "few=0 dense=1 masked=1 wave=2 batch=3 rest=1",
)
EACH_QUERY = pytest.mark.parametrize("query", problems.QUERY)
MEANS = (torch.float32, torch.float64)


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program.build(program.CSRC, tmp_path_factory.mktemp("emulation") / "fast", program.FAST)


def words_of(name: str, plans: tuple[str, ...], file: Path) -> list[str | Path]:
    """One run for each plan, with an order of threads that follows from the name."""
    words: list[str | Path] = []
    for number, plan in enumerate(plans):
        seed = zlib.crc32(f"{name} {number}".encode()) % 1000
        defaults = [
            "screen=0",
            "batch=0",
            "wave=0",
            "few=-1",
            "dense=-1",
            "rest=-1",
            "masked=0",
            "shift=0",
        ]
        words += [*defaults, *plan.split(), f"seed={seed}", file]
    return words


def check(
    emulation: Path,
    folder: Path,
    name: str,
    problem: Problem,
    mean_dtype: torch.dtype,
    plans: tuple[str, ...],
) -> None:
    # A GPU answers a bad query with NaN: so does the CPU where it does not check.
    quiet = dataclasses.replace(problem, check_values=False)
    file = files.write(folder / name, quiet, mean_dtype)
    done = program.run(emulation, words_of(name, plans, file))
    assert done.returncode == 0, done.stdout + done.stderr


def some_plans(name: str) -> tuple[str, ...]:
    """The plan that is chosen by itself, and two others: all are met by some problem."""
    others = list(itertools.combinations(PLANS[1:], 2))
    return (PLANS[0], *others[zlib.crc32(name.encode()) % len(others)])


@EACH_QUERY
@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_named_problem_has_the_bits_of_the_cpu(
    name: str, query: torch.dtype, emulation: Path, tmp_path: Path
) -> None:
    problem = problems.PROBLEMS[name](0, torch.uint8, query)
    check(emulation, tmp_path, name, problem, query, some_plans(f"{name} {query}"))


@EACH_QUERY
@pytest.mark.parametrize("name", integers.SETS)
def test_set_of_segments_has_the_bits_of_the_cpu(
    name: str, query: torch.dtype, emulation: Path, tmp_path: Path
) -> None:
    problem = integers.problem_of(name, query)
    mean = MEANS[zlib.crc32(f"{name} {query}".encode()) % 2]
    check(emulation, tmp_path, name, problem, mean, some_plans(f"{name} {query}")[:2])


@pytest.mark.slow
@EACH_QUERY
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("name", integers.SETS)
def test_every_plan_has_the_bits_of_the_cpu(
    name: str, query: torch.dtype, mean: torch.dtype, emulation: Path, tmp_path: Path
) -> None:
    check(emulation, tmp_path, name, integers.problem_of(name, query), mean, PLANS)


@pytest.mark.parametrize(("count", "features"), integers.SIZES)
def test_size_at_an_edge_has_the_bits_of_the_cpu(
    count: int, features: int, emulation: Path, tmp_path: Path
) -> None:
    name = f"{count} x {features}"
    problem = integers.plain(count, features)
    plans = some_plans(name)[:2]
    if features > 10_000:
        problem, plans = integers.only(problem, [1, 3, 6]), plans[:1]
    check(emulation, tmp_path, name, problem, torch.float32, plans)


def _left_out() -> Problem:
    """Each query leaves out the row it was made from."""
    data = integers.photographs(60, 72, 14)
    exclude = [211 * b % 60 for b in range(4)]
    make = integers.near_rows(4, (0.002, 0.0), 14)
    return problems.from_stored(data, make, (0.002, 0.0), torch.float32, exclude=exclude)


def _weightless_nearest() -> Problem:
    """The rows that the queries were made from weigh nothing."""
    data = integers.photographs(60, 72, 14)
    weights = torch.ones(60)
    weights[[211 * b % 60 for b in range(4)]] = 0
    make = integers.near_rows(4, (0.002, 0.0), 14)
    return problems.from_stored(data, make, (0.002, 0.0), torch.float32, weights=weights)


def _equals() -> Problem:
    """Two rows as near as each other, exactly, and one that is a little further.

    The logit of the third is another in its last bit where the second is the anchor, not the first.
    """
    between = next(
        g
        for g in (0.4 - torch.linspace(1e-8, 4e-8, 50).double()).tolist()
        if ((9 - 6 * g) - 9) + (4 - 4 * g) != (9 - 6 * g) + ((4 - 4 * g) - 9)
    )
    data = torch.zeros(3, 600, dtype=torch.uint8)
    data[:, :72] = 128
    data[0, 0] += 3
    data[1, 3] += 3
    data[2, 1:3] += torch.tensor([2, 3], dtype=torch.uint8)
    point = data[:1].double() - 128
    point[0, :4] = torch.tensor([0, between, between, 0], dtype=torch.float64)
    return problems.from_stored(data, point, 1e-4, torch.float64, value_range=(-128.0, 127.0))


def _units() -> Problem:
    """A tile of few rows that count, one far from the query, again few, and some of a last few.

    The far one is dense: were it not out of reach, it would end the unit of the first and third.
    """
    rows, features = 256, 1000
    data = torch.randint(0, 256, (3 * rows + 20, features), generator=problems.generator(16))
    data[rows : 2 * rows] = data[rows]
    data[3 * rows :: 2] = data[0]
    half_way = problems.decode((data[:1] + data[2 * rows : 2 * rows + 1]) / 2, 2 / 255, -1.0)
    data = data.to(torch.uint8)
    return problems.from_stored(data, half_way, 0.3, torch.float32)


def _many_queries() -> Problem:
    """Columns of several blocks, groups of queries that end within a block."""
    return integers.only(integers.plain(1100, 80), [(7 * i) % 10 for i in range(37)])


def _one_query() -> Problem:
    return integers.only(integers.plain(2500, 96), [7])


def _no_queries() -> Problem:
    return integers.only(integers.plain(100, 16), [])


def _empty_segments() -> Problem:
    rows = [*range(1100, 1300, 3), *range(3072, 3079), 4095]
    data = integers.photographs(5000, 48, 11)
    return problems.from_stored(
        data, integers.near_rows(9, integers.SIGMAS, 11), integers.SIGMAS, torch.float32, rows=rows
    )


def _nothing_eligible() -> Problem:
    problem = problems.from_stored(
        integers.photographs(1, 20, 12),
        integers.near_rows(3, (0.0, 0.1, 1.0), 12),
        (0.0, 0.1, 1.0),
        torch.float32,
        exclude=[0, -1, 0],
    )
    return problem


def _bad_values() -> Problem:
    """Sigma, alpha and exclude as there cannot be, and queries that are not finite."""
    problem = integers.only(integers.plain(1100, 33), range(9))
    query = problem.query.clone()
    query[5, 3], query[6, 0], query[7, 32] = torch.nan, torch.inf, -torch.inf
    return dataclasses.replace(
        problem,
        query=query,
        sigma=torch.tensor([-1.0, torch.nan, 1, 1, 1, 1, 1, 0, torch.inf]).double(),
        alpha=torch.tensor([1.0, 1, -1, torch.nan, 1, 1, 1, 1, 1]).double(),
        exclude=torch.tensor([0, 0, 0, 0, 1100, 0, 0, 0, -1]),
    )


def _all_weights_zero_in_segments() -> Problem:
    problem = integers.only(integers.plain(2100, 40), [0, 1, 3, 5])
    log_weights = torch.zeros(2100).double()
    log_weights[:1200] = -torch.inf
    log_weights[1200::2] = -torch.inf
    log_weights[2048:2060] = -torch.inf
    return dataclasses.replace(problem, log_weights=log_weights)


def _small_tiles() -> Problem:
    """Tiles of fewer rows than a warp has lanes, several units of a segment."""
    return integers.only(integers.plain(45, 25_601), [2, 4, 7, 0])


def _most_features() -> Problem:
    """Sums of products as near to the end of 32 bits as there are."""
    features = 131_071
    data = torch.zeros(3, features, dtype=torch.uint8)
    data[1] = 255
    data[2, ::2] = 1
    # All lower digits are -128.
    query = torch.full((2, features), 127.0 - 2.0**-9)
    query[0, 0] = 127.0
    query[1] = -query[0]
    return problems.from_stored(data, query, (1e4, 1.0), torch.float64, value_range=(-128, 127))


EDGES: dict[str, Callable[[], Problem]] = {
    "left_out": _left_out,
    "weightless_nearest": _weightless_nearest,
    "equals": _equals,
    "units": _units,
    "many_queries": _many_queries,
    "one_query": _one_query,
    "no_queries": _no_queries,
    "empty_segments": _empty_segments,
    "nothing_eligible": _nothing_eligible,
    "bad_values": _bad_values,
    "weightless_segments": _all_weights_zero_in_segments,
    "small_tiles": _small_tiles,
    "most_features": _most_features,
}


# Plans that the dear ones are run with.
FEWER = {"most_features": 2, "many_queries": 4, "small_tiles": 4}


@pytest.mark.parametrize("name", EDGES)
def test_edge_has_the_bits_of_the_cpu(name: str, emulation: Path, tmp_path: Path) -> None:
    plans = PLANS[: FEWER.get(name, len(PLANS))]
    check(emulation, tmp_path, name, EDGES[name](), torch.float64, plans)


@pytest.mark.parametrize("sigma", [0.02, 2.0, 80.0])
def test_one_bit_more_or_less_is_seen(sigma: float, emulation: Path, tmp_path: Path) -> None:
    problem = problems.from_stored(
        integers.photographs(70, 33, 13), integers.near_rows(2, (sigma,), 13), sigma, torch.float32
    )
    file = files.write(tmp_path / "right", problem, torch.float64)
    assert program.run(emulation, [file]).returncode == 0
    # The last value of the mean and of logsumexp, each before the length of what follows.
    for place, what in ((-8 * 2 - 8 - 8, "mean"), (-8, "logsumexp")):
        wrong = bytearray(file.read_bytes())
        wrong[place] ^= 1
        (tmp_path / what).write_bytes(wrong)
        done = program.run(emulation, [tmp_path / what])
        assert done.returncode == 1 and f"1 values of {what}" in done.stdout.replace("the ", "")


def test_orders_of_threads_and_leftovers_in_memory_give_the_same_bits(
    emulation: Path, tmp_path: Path
) -> None:
    file = files.write(tmp_path / "plain", integers.plain(1100, 96), torch.float32)
    done = program.run(emulation, [word for seed in range(6) for word in (f"seed={seed}", file)])
    assert done.returncode == 0, done.stdout


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Reads and writes past any array, and undefined arithmetic."""
    sanitized = program.build(program.CSRC, tmp_path / "sanitized", program.SANITIZED)
    words: list[str | Path] = []
    for number, (name, make) in enumerate({**problems.PROBLEMS, **EDGES}.items()):
        if name.startswith("sizes") and number % 4:
            continue
        made = make() if name in EDGES else make(1, torch.uint8, torch.float32)
        file = files.write(
            tmp_path / name, dataclasses.replace(made, check_values=False), torch.float32
        )
        both = (PLANS[number % len(PLANS)], PLANS[(number + 3) % len(PLANS)])
        words += words_of(name, PLANS[:1] if name in FEWER else both, file)
    done = program.run(sanitized, words)
    assert done.returncode == 0, done.stdout + done.stderr
