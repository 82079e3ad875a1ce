"""The Triton kernels: what the backend launches for problems of each kind."""

from __future__ import annotations

import functools

import torch

from diffgen.backends.problem import CovarianceInputs, Problem
from diffgen.backends.triton.bytes_moments import SCRATCH_BYTES, BytesMoments
from diffgen.backends.triton.cases import KernelCase
from diffgen.backends.triton.covariance import covariance_product
from diffgen.backends.triton.float_moments import moments as float_moments
from diffgen.backends.triton.nearest import nearest

from .triton_launches import recording

# Of CIFAR-10's features; rows enough for several segments, the last of them not full.
FEATURES = 3_072
ROWS = 5_000

NEEDS = {
    "products": frozenset({"tensor", "async", "bits"}),
    "sum_whole_tiles": frozenset({"tensor", "bits"}),
    "screen_rows": frozenset({"tensor", "bits"}),
}
"""What the machine code of a kernel must have besides bits."""


def problem(
    storage: torch.dtype,
    *,
    batch: int,
    rows: int = ROWS,
    features: int = FEATURES,
    query: torch.dtype = torch.float32,
    everything: bool = False,
) -> Problem:
    """A problem without values on the GPU at hand.

    Args:
        storage: Type of the rows.
        batch: Queries.
        rows: Of the set.
        features: Of a row.
        query: Type of the queries.
        everything: With alpha, exclusions, weights and a subset of the rows.
    """

    def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    return Problem(
        query=numbers(batch, features, dtype=query),
        sigma=numbers(batch),
        alpha=numbers(batch) if everything else None,
        exclude=numbers(batch, dtype=torch.int64) if everything else None,
        data=numbers(rows, features, dtype=storage),
        norms=numbers(rows),
        log_weights=numbers(rows) if everything else None,
        rows=numbers(rows // 2, dtype=torch.int64) if everything else None,
        scale=2 / 255 if storage == torch.uint8 else 1.0,
        offset=-1.0 if storage == torch.uint8 else 0.0,
        check_values=False,
    )


def moments(of: Problem, functionals: bool = False) -> None:
    """Launches what the moments of a problem take."""
    dtype = of.query.dtype
    if of.data.dtype == torch.uint8:
        BytesMoments(of, functionals, dtype, SCRATCH_BYTES).run()
    else:
        float_moments(of, functionals, dtype)


def covariance(of: Problem) -> None:
    """Launches what the covariance product of a problem takes."""
    vectors = of.query.to(torch.float64)
    covariance_product(of, CovarianceInputs(vectors, of.sigma, vectors, None))


def launch_usual() -> None:
    """Launches what most calls do, for few queries and for many."""
    for batch in (1, 64, 256):
        moments(problem(torch.uint8, batch=batch))
    for storage in (torch.float32, torch.bfloat16):
        moments(problem(storage, batch=64))


def launch_rest() -> None:
    """Launches the variants with everything that is optional, and what is not of the moments."""
    moments(problem(torch.uint8, batch=64, everything=True), functionals=True)
    covariance(problem(torch.uint8, batch=64))
    nearest(problem(torch.uint8, batch=64), 5)
    nearest(problem(torch.uint8, batch=64, everything=True), 5)


@functools.lru_cache
def kernel_cases(target: str) -> list[KernelCase]:
    """What is launched on a target; variants and float64 kernels on one of them."""
    with recording(target, needs_of(target)) as found:
        launch_usual()
        if target == "sm_90":
            launch_rest()
    return list(found.cases.values())


def needs_of(target: str) -> dict[str, frozenset[str]]:
    """What kernels must have on a target: AMD's compiler copies through registers."""
    left_out = {"async"} if target.startswith("gfx") else set()
    return {name: needs - left_out for name, needs in NEEDS.items()}
