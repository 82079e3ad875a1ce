"""The check of the GPU's kernels can fail: whatever barrier, wait or mask is taken out, it is red.

Results alone do not show a barrier that is missing: the emulation's shadow of shared memory does, a
sanitizer shows a step past an array, and bits show the rest. The kernels are built once, with every
mutation in place and a number that picks one.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import test_cuda_kernels as kernels
import test_integer_reproducibility as integers
from cuda_emulation import files, program

from diffgen.backends.problem import Problem

pytestmark = kernels.pytestmark

# Statements that order what threads do: every one in every kernel.
FENCE = re.compile(r"\b(?:sync_threads|commit_copies|wait_for_copies<[^>]*>)\(\);")
# Masks, bounds and who writes: a file, what stands there, and what stands there where the number is
# picked. Early exits that save work alone are not among them.
MASKS = [
    ("rows", "k + i < call.problem.features ?", "(MUTANT || k + i < call.problem.features) ?"),
    ("prepare", "if (segment > call.segments)", "if (!MUTANT && segment > call.segments)"),
    ("prepare", "at < call.eligible;", "at < call.eligible + MUTANT;"),
    ("prepare", "k < features ? query[k]", "MUTANT || k < features ? query[k]"),
    ("prepare", "if (k >= features) break", "if (!MUTANT && k >= features) break"),
    ("prepare", "if (k >= call.stride)", "if (!MUTANT && k >= call.stride)"),
    ("prepare", "k < call.problem.features ? x[k]", "(MUTANT || k < call.problem.features) ? x[k]"),
    ("prepare", "if (chain < chains &&", "if ((MUTANT || chain < chains) &&"),
    ("prepare", "thread_index() % kLanes == 0)", "(MUTANT || thread_index() % kLanes == 0))"),
    ("prepare", "if (thread_index() < kSplitSums)", "if (MUTANT || thread_index() < kSplitSums)"),
    ("prepare", "if (lane_index() == 0) room", "if (MUTANT || lane_index() == 0) room"),
    ("prepare", "if (lane_index() == 0) counts", "if (MUTANT || lane_index() == 0) counts"),
    ("prepare", "if (w < warp_index()) place", "if (MUTANT || w < warp_index()) place"),
    ("prepare", "if (listed) list", "if (MUTANT || listed) list"),
    ("nearest", "if (r >= pair.count)", "if (!MUTANT && r >= pair.count)"),
    ("nearest", "id == state.query.exclude ||", "(!MUTANT && id == state.query.exclude) ||"),
    (
        "nearest",
        "log_weight_of(call, id) == -INFINITY",
        "(!MUTANT && log_weight_of(call, id) == -INFINITY)",
    ),
    ("nearest", "near[i] != INFINITY &&", "(MUTANT || near[i] != INFINITY) &&"),
    ("nearest", "if (lane_index() == 0) {", "if (MUTANT || lane_index() == 0) {"),
    ("nearest", "if (lane_index() == 0) masks", "if (MUTANT || lane_index() == 0) masks"),
    ("nearest", "if (b >= call.problem.batch ||", "if ((!MUTANT && b >= call.problem.batch) ||"),
    (
        "nearest",
        "a.distance < b.distance : a.id < b.id",
        "a.distance < b.distance : (MUTANT != (a.id < b.id))",
    ),
    ("products_few", "if (first >= count)", "if (!MUTANT && first >= count)"),
    ("products_few", "first + i < count ?", "MUTANT || first + i < count ?"),
    ("products_few", "c + j < columns ?", "MUTANT || c + j < columns ?"),
    ("products_few", "if (j < columns) {", "if (MUTANT || j < columns) {"),
    ("products_many", "sources.rows[i] != nullptr &&", "(MUTANT || sources.rows[i] != nullptr) &&"),
    ("products_many", "k < call.problem.features;", "(MUTANT || k < call.problem.features);"),
    ("products_many", "sources.columns[i] != nullptr;", "MUTANT || sources.columns[i] != nullptr;"),
    ("products_many", "r < count ?", "MUTANT || r < count ?"),
    ("products_many", "c < columns ?", "MUTANT || c < columns ?"),
    ("products_many", "if (stage < steps)", "if (MUTANT || stage < steps)"),
    ("products_many", "if (next < steps)", "if (MUTANT || next < steps)"),
    ("products_many", "if (c >= columns)", "if (!MUTANT && c >= columns)"),
    ("tiles", "return r < pair.count &&", "return (MUTANT || r < pair.count) &&"),
    ("tiles", "!= state.query.exclude;", "!= state.query.exclude - MUTANT;"),
    (
        "tiles",
        "if ((lane_index() & (chunk_lanes(call) - 1)) == 0)",
        "if (MUTANT || (lane_index() & (chunk_lanes(call) - 1)) == 0)",
    ),
    (
        "screen",
        "if (thread_index() < tiles_of(call, pair))",
        "if (MUTANT || thread_index() < tiles_of(call, pair))",
    ),
    ("screen", "if (own_row() < pair.count) {", "if (MUTANT || own_row() < pair.count) {"),
    ("screen", "upper[i] != -INFINITY &&", "(MUTANT || upper[i] != -INFINITY) &&"),
    ("screen", "if (lane_index() == 0) counts", "if (MUTANT || lane_index() == 0) counts"),
    (
        "decide_rows",
        "if (thread_index() < tiles_of(call, pair))",
        "if (MUTANT || thread_index() < tiles_of(call, pair))",
    ),
    ("decide_rows", "if (lane_index() == 0) room", "if (MUTANT || lane_index() == 0) room"),
    ("decide_rows", "% kTileWarps == warp_index()", "% kTileWarps == (MUTANT ? 0 : warp_index())"),
    ("decide_rows", "if (j < missing) product", "if (MUTANT || j < missing) product"),
    ("decide_rows", "if (own_row() < pair.count) {", "if (MUTANT || own_row() < pair.count) {"),
    ("decide_rows", "if (!asked(i)) continue", "if (!MUTANT && !asked(i)) continue"),
    ("decide_rows", "if (thread_index() < kWords)", "if (MUTANT || thread_index() < kWords)"),
    ("decide_rows", "if (own_row() % 32 == 0)", "if (MUTANT || own_row() % 32 == 0)"),
    (
        "decide_rows",
        "if (log_weight_of(call, id) == -INFINITY)",
        "if (!MUTANT && log_weight_of(call, id) == -INFINITY)",
    ),
    ("decide_rows", "near[i] != INFINITY &&", "(MUTANT || near[i] != INFINITY) &&"),
    ("decide_rows", "if (own_row() >= pair.count)", "if (!MUTANT && own_row() >= pair.count)"),
    ("decide_rows", "distance < INFINITY &&", "(MUTANT || distance < INFINITY) &&"),
    ("decide", "if (own_row() < pair.count) {", "if (MUTANT || own_row() < pair.count) {"),
    (
        "decide",
        "if (thread_index() < tiles_of(call, pair))",
        "if (MUTANT || thread_index() < tiles_of(call, pair))",
    ),
    ("decide", "if (best == -INFINITY)", "if (!MUTANT && best == -INFINITY)"),
    ("decide", "best < run - query.margin", "!MUTANT && best < run - query.margin"),
    ("decide", "rows < call.tile ? rows", "!MUTANT && rows < call.tile ? rows"),
    ("decide", "return own_row() < pair.count ?", "return MUTANT || own_row() < pair.count ?"),
    (
        "decide",
        "!(logits[i] >= best - state.query.cut)",
        "(!MUTANT && !(logits[i] >= best - state.query.cut))",
    ),
    (
        "decide",
        "if (thread_index() < room.unit_total[0])",
        "if (MUTANT || thread_index() < room.unit_total[0])",
    ),
    ("decide", "if (lane_index() == 31) room", "if (MUTANT || lane_index() == 31) room"),
    ("decide", "& 1) == 0) continue", "& 1) == 0 && !MUTANT) continue"),
    ("decide", "end < rows ?", "MUTANT || end < rows ?"),
    ("decide", "if (thread_index() == 0) group", "if (MUTANT || thread_index() == 0) group"),
    ("sums_sparse", "if (k >= features ||", "if ((!MUTANT && k >= features) ||"),
    ("sums_sparse", "i < here ?", "MUTANT || i < here ?"),
    ("sums_sparse", "if (i >= here)", "if (!MUTANT && i >= here)"),
    ("sums_sparse", "if (k + i < features)", "if (MUTANT || k + i < features)"),
    ("sums_dense", "r < block.count;", "(MUTANT || r < block.count);"),
    ("sums_dense", "own_feature < features ?", "MUTANT || own_feature < features ?"),
    (
        "sums_dense",
        "return b < call.problem.batch &&",
        "return (MUTANT || b < call.problem.batch) &&",
    ),
    (
        "sums_dense",
        "const bool there = from != nullptr;",
        "const bool there = MUTANT || from != nullptr;",
    ),
    ("sums_dense", "cursor.row_end != end", "(!MUTANT && cursor.row_end != end)"),
    ("sums_dense", "g < groups; ++g", "g < groups + MUTANT; ++g"),
    ("sums_dense", "if (--left > 0)", "if (MUTANT || --left > 0)"),
    ("sums_dense", "if (stage < steps)", "if (MUTANT || stage < steps)"),
    ("sums_dense", "if (next < steps)", "if (MUTANT || next < steps)"),
    ("sums_dense", "if (k < features) out", "if (MUTANT || k < features) out"),
    ("merge", "if (at >= step) largest", "if (MUTANT || at >= step) largest"),
    ("merge", "if (local < call.here) part", "if (MUTANT || local < call.here) part"),
    ("merge", "if (local < call.here) {", "if (MUTANT || local < call.here) {"),
    ("merge", "if (at == 0) {", "if (MUTANT || at == 0) {"),
    ("merge", "if (at >= groups * call.here)", "if (!MUTANT && at >= groups * call.here)"),
    ("merge", "&& b < call.problem.batch; ++b", "&& b < call.problem.batch + MUTANT; ++b"),
    ("merge", "if (k >= features)", "if (!MUTANT && k >= features)"),
    ("merge", "if (joint.fresh == 0.0)", "if (!MUTANT && joint.fresh == 0.0)"),
    ("merge", "if (!known) total", "if (MUTANT || !known) total"),
]
KERNELS = sorted(
    path.stem for path in (program.CSRC / "cuda").glob("*.cuh") if path.stem != "intrinsics"
)
PICK = """
#include <cstdlib>
inline bool mutated(int number) {
    static const char* const picked = std::getenv("DIFFGEN_MUTANT");
    static const int the_one = picked ? std::atoi(picked) : -1;
    return number == the_one;
}
"""


@dataclasses.dataclass(frozen=True)
class Mutation:
    kernel: str
    at: int
    old: str
    new: str

    def __str__(self) -> str:
        line = source_of(self.kernel)[: self.at].count("\n") + 1
        return f"{self.kernel}:{line}: {self.old}"


def source_of(kernel: str) -> str:
    return (program.CSRC / "cuda" / f"{kernel}.cuh").read_text()


def _mutations() -> list[Mutation]:
    found = []
    for kernel in KERNELS:
        text = source_of(kernel)
        for fence in FENCE.finditer(text):
            found.append(Mutation(kernel, fence.start(), fence[0], f"if (!MUTANT) {fence[0]}"))
        for where, old, new in MASKS:
            if where == kernel:
                places = [match.start() for match in re.finditer(re.escape(old), text)]
                found += [Mutation(kernel, place, old, new) for place in places]
    return found


MUTATIONS = _mutations()


def mutate(csrc: Path) -> None:
    """Puts every mutation into a copy of the sources."""
    for kernel in KERNELS:
        path = csrc / "cuda" / f"{kernel}.cuh"
        text = path.read_text()
        mine = [(n, m) for n, m in enumerate(MUTATIONS) if m.kernel == kernel]
        for number, m in sorted(mine, key=lambda pair: pair[1].at, reverse=True):
            new = m.new.replace("MUTANT", f"mutated({number})")
            text = text[: m.at] + new + text[m.at + len(m.old) :]
        path.write_text(text)
    intrinsics = csrc / "cuda" / "emulate" / "intrinsics.h"
    intrinsics.write_text(intrinsics.read_text().replace("#pragma once", "#pragma once" + PICK, 1))


def _plain(count: int, features: int, picked: list[int]) -> Callable[[], Problem]:
    return lambda: integers.only(integers.plain(count, features), picked)


# Small problems that between them need every barrier and mask, and the plans they are run with. The
# cheapest come first: a mutation is done with at the first that shows it.
CASES: list[tuple[Callable[[], Problem], tuple[str, ...]]] = [
    (_plain(40, 72, [0, 1, 3, 5, 7]), ("", "few=0 dense=1 masked=1 screen=1")),
    (kernels.EDGES["equals"], ("",)),
    (kernels.EDGES["weightless_nearest"], ("",)),
    (kernels.EDGES["left_out"], ("", "few=0 dense=1")),
    (kernels.EDGES["nothing_eligible"], ("",)),
    (_plain(40, 16, [5] * 60), ("screen=1",)),
    (kernels.EDGES["units"], ("dense=1 screen=1",)),
    (kernels.EDGES["weightless_segments"], ("few=1 dense=0 wave=1", "dense=1")),
    (kernels.EDGES["small_tiles"], ("",)),
    (kernels.EDGES["bad_values"], ("dense=1",)),
    (_plain(130, 80, [*range(10), *range(8)]), ("", "few=0 dense=1 screen=2")),
    (_plain(70, 208, [0, 1, 2, 4, 6, 8]), ("few=0 dense=1 screen=1", "few=1 dense=0 screen=2")),
    (kernels.EDGES["empty_segments"], ("wave=1", "few=1 dense=1")),
    (_plain(300, 1000, [1, 2, 4, 5, 7]), ("wave=1 dense=1", "dense=0 masked=1")),
]


@pytest.fixture(scope="module")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutants")
    csrc = program.copy_sources(folder)
    mutate(csrc)
    return program.build(csrc, folder / "mutants", program.SANITIZED)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    folder = tmp_path_factory.mktemp("cases")
    words: list[str | Path] = ["stop=1"]
    for number, (make, plans) in enumerate(CASES):
        quiet = dataclasses.replace(make(), check_values=False)
        # The mean in float64 shows the smallest differences.
        mean = kernels.MEANS[number % 2]
        file = files.write(folder / f"{number}", quiet, mean)
        words += kernels.words_of(str(number), plans, file)
    return words


def outcome(
    mutants: Path, words: list[str | Path], number: int
) -> subprocess.CompletedProcess[str]:
    return program.run(mutants, words, {"DIFFGEN_MUTANT": str(number)})


def test_every_mask_of_the_list_is_in_its_file() -> None:
    for kernel, old, _ in MASKS:
        assert old in source_of(kernel), (kernel, old)


def test_sources_without_a_mutation_are_right(mutants: Path, words: list[str | Path]) -> None:
    done = outcome(mutants, words, -1)
    assert done.returncode == 0, done.stdout + done.stderr


def is_fence(number: int) -> bool:
    return FENCE.fullmatch(MUTATIONS[number].old) is not None


def assert_red(number: int, mutants: Path, words: list[str | Path]) -> None:
    done = outcome(mutants, words, number)
    assert done.returncode != 0, f"nothing shows that {MUTATIONS[number]} is gone"


def numbers(chosen: Callable[[int], bool]) -> pytest.MarkDecorator:
    picked = [number for number in range(len(MUTATIONS)) if chosen(number)]
    return pytest.mark.parametrize("number", picked, ids=lambda n: str(MUTATIONS[n]))


@numbers(is_fence)
def test_missing_barrier_or_wait_is_seen(
    number: int, mutants: Path, words: list[str | Path]
) -> None:
    assert_red(number, mutants, words)


@pytest.mark.slow
@numbers(lambda number: not is_fence(number))
def test_missing_mask_is_seen(number: int, mutants: Path, words: list[str | Path]) -> None:
    assert_red(number, mutants, words)
