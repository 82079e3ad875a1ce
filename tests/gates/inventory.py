"""Which kernels there are, what each must have, and the compilation of them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from diffgen.backends.triton.cases import TARGETS

from . import cuda_build, launches, triton_build
from .jobs import Job, run_all
from .measured import Measured

TRITON = f"{__package__}.triton_problems:kernel_cases"
"""Where the Triton kernels are listed: a function of the target."""

MOST_COMBINATIONS = 160
"""Of Triton cases and targets: more would take CI minutes."""

CUDA_NEEDS = {
    "many_products": frozenset({"tensor", "async"}),
    "few_products": frozenset({"dot4", "wide"}),
    "dense_sums": frozenset({"tensor", "async"}),
    "sparse_sums<true>": frozenset({"wide"}),
    "decide_segments": frozenset({"dot4"}),
}
"""What CUDA kernels must have besides bits, by the name with or without template arguments."""

Needs = dict[tuple[str, str], frozenset[str]]


@dataclass
class Compiled:
    """What came out.

    Attributes:
        rows: Of each kernel and target that compiled.
        failures: Of what did not.
        needs: What the machine code must have, by kernel and target.
    """

    rows: list[Measured] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    needs: Needs = field(default_factory=dict)


def compile_triton(path: str = TRITON, targets: Iterable[str] = TARGETS) -> Compiled:
    """Compiles every case of a provider for every target.

    Raises:
        Missing: If the pinned Triton is not here.
    """
    cases = triton_build.provider(path)
    pairs = [(case, target) for target in targets for case in cases(target)]
    jobs = [
        Job(triton_build.key_of(case, target), triton_build.measure, (path, target, case.name))
        for case, target in pairs
    ]
    rows, failures = run_all(jobs)
    needs = {(f"triton/{case.name}", target): case.needs for case, target in pairs}
    return Compiled(rows, failures, needs)


def compile_cuda() -> Compiled:
    """Compiles every CUDA source for every target.

    Raises:
        Missing: If nvcc or a disassembler is not here.
    """
    cuda_build.check()
    launched = launches.recorded()
    shared = {name: launch.shared for name, launch in launched.items()}
    jobs = [
        Job(
            cuda_build.key_of(source, target, shared),
            cuda_build.measure,
            (str(source), target, shared),
        )
        for source in cuda_build.sources()
        for target in cuda_build.TARGETS
    ]
    rows, failures = run_all(jobs)
    needs = {(row.kernel, row.target): cuda_needs(row.kernel) for row in rows}
    failures += misfits(rows, launched)
    # Where something does not compile, its kernels are not there to be looked for.
    return Compiled(rows, failures or stale_needs(rows), needs)


def misfits(rows: Iterable[Measured], launched: Mapping[str, launches.Launch]) -> list[str]:
    """Kernels that no launch starts, or that one starts with more threads than they allow."""
    found = []
    for row in rows:
        launch = launched.get(row.kernel)
        where = f"{row.kernel} for {row.target}"
        if launch is None:
            found.append(f"{where} needs a launch among the recorded ones, got none")
        elif launch.threads > row.threads:
            found.append(
                f"{where} needs launches of at most {row.threads} threads, got {launch.threads}"
            )
    return found


def cuda_needs(kernel: str) -> frozenset[str]:
    """What one CUDA kernel must have: all of them promise bits."""
    name = kernel.removeprefix("cuda/")
    found = frozenset({"bits"})
    for known in {name, name.partition("<")[0]}:
        found |= CUDA_NEEDS.get(known, frozenset())
    return found


def stale_needs(rows: Iterable[Measured]) -> list[str]:
    """Names of ``CUDA_NEEDS`` that no kernel has."""
    names = {row.kernel.removeprefix("cuda/") for row in rows}
    names |= {name.partition("<")[0] for name in names}
    return [
        f"{name} of CUDA_NEEDS needs to be a kernel, got none of that name"
        for name in sorted(set(CUDA_NEEDS) - names)
    ]
