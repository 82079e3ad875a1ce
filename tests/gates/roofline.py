"""The least time that a chip needs for a case, from counted bytes and operations.

A bound, not a measurement: peak rates, nothing in the way of anything else, scratch that never
leaves the cache.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Published peak rates of a chip, without sparsity.

    Attributes:
        name: For people.
        bytes: Of device memory, a second.
        operations: Additions and multiplications a second, by the unit that does them.
    """

    name: str
    bytes: float
    operations: dict[str, float]


def _rates(**tera: float) -> dict[str, float]:
    return {unit: rate * 1e12 for unit, rate in tera.items()}


PEAKS = (
    Peak("A100", 2.039e12, _rates(int8=624, bf16=312, tf32=156, dmma=19.5, fp64=9.7)),
    Peak("H100", 3.35e12, _rates(int8=1979, bf16=990, tf32=494, dmma=67, fp64=34)),
)


@dataclass(frozen=True)
class Work:
    """How a storage type is worked on.

    Attributes:
        itemsize: Bytes of a value.
        screens: What does the products of a screen.
        decides: And those where all rows count.
        screen: Products of the query with all rows where few rows count.
        dense: Products where all rows count: of the query with the rows.
        sums: And of the weights with the rows.
    """

    itemsize: int
    screens: str
    decides: str
    screen: int
    dense: int
    sums: int


# 8 bits: one plane of the query screens, three and three of the weights are the least that decide.
# Others: one term of the query screens, in bf16 or TF32; float64 on tensor cores decides and sums.
WORK = {
    "uint8": Work(1, "int8", "int8", screen=1, dense=3, sums=3),
    "bf16": Work(2, "bf16", "dmma", screen=1, dense=1, sums=1),
    "float32": Work(4, "tf32", "dmma", screen=1, dense=1, sums=1),
}

SETS = {
    "CIFAR-10": (50_000, 3_072),
    "CelebA-64": (200_000, 12_288),
    "ImageNet-64": (1_280_000, 12_288),
}

BATCHES = (1, 8, 64, 256)

REGIMES = ("sparse", "dense")

# Float64 operations on one logit: its assembly from the planes (10), the exponential (34), and what
# takes it into mass and weights (6).
LOGIT_OPERATIONS = {"sparse": 10, "dense": 50}

# Rows of each query that survive a screen, read again and decided by float64 differences.
SURVIVORS = 16
# A difference, a product and a sum.
SURVIVOR_OPERATIONS = 3


@dataclass(frozen=True)
class Bound:
    """The least time, and what takes it."""

    seconds: float
    resource: str


def bound(set_name: str, storage: str, batch: int, regime: str, peak: Peak) -> Bound:
    """The largest of the times of memory, of the units that multiply and of those for float64.

    Args:
        set_name: Of ``SETS``.
        storage: Of ``WORK``.
        batch: Queries.
        regime: Of ``REGIMES``: a screen after which few rows count, or all rows count.
        peak: The chip.
    """
    count, features = SETS[set_name]
    work = WORK[storage]
    product = 2 * batch * count * features
    survivors = SURVIVORS * batch if regime == "sparse" else 0
    passes = 1 if regime == "sparse" else 2
    unit = work.screens if regime == "sparse" else work.decides
    products = work.screen if regime == "sparse" else work.dense + work.sums
    read = (passes * count + survivors) * features * work.itemsize
    # Norms are float64; queries and results float32.
    read += 8 * count + 8 * batch * features
    exact = LOGIT_OPERATIONS[regime] * batch * count
    exact += SURVIVOR_OPERATIONS * survivors * features
    times = {
        "memory": read / peak.bytes,
        unit: products * product / peak.operations[unit],
        "fp64": exact / peak.operations["fp64"],
    }
    resource = max(times, key=lambda name: times[name])
    return Bound(times[resource], resource)
