"""The table of benchmark cases; a new case is one entry of ``CASES``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from benchmarks.datasets import DATASETS, Shape
from benchmarks.operations import LOW_SIGMAS, OPERATIONS

BYTES = {"uint8": 1, "bfloat16": 2, "float16": 2, "float32": 4}
"""Storage type to the size of an element."""

DENSE_PLANES = 6
"""Products of 8-bit planes where every point counts: three of the query, three of the weights."""

QUICK_POINTS = 512
QUICK_DIVISOR = 100
QUICK_SHAPE = (3, 4, 4)


@dataclass(frozen=True)
class Case:
    """One problem to be timed.

    Attributes:
        name: Unique in a run, as ``--case`` takes it.
        group: Cases of one group take their rounds in turn, so that their ratios hold.
        data: Key of ``DATASETS``.
        num_points: N.
        batch: B.
        sigma: Noise standard deviation, in the units of the data in [-1, 1].
        dtype: Storage type, a key of ``BYTES``; all hold the same images, each rounded to its own.
        contenders: Names out of ``contenders.table``; a final ``*`` stands for any ending.
        operation: Key of ``OPERATIONS``.
        shape: Channels, height and width; D is their product.
        seconds: Time for the rounds of each contender.
        timed: Whether there are rounds; without, one call tells the accuracy.
        full: Whether only ``--full`` runs it.
    """

    name: str
    group: str
    data: str
    num_points: int
    batch: int
    sigma: float
    dtype: str
    contenders: tuple[str, ...]
    operation: str = "denoise"
    shape: Shape = (3, 32, 32)
    seconds: float = 0.7
    timed: bool = True
    full: bool = False

    @property
    def num_features(self) -> int:
        """D."""
        channels, height, width = self.shape
        return channels * height * width

    @property
    def counted_bytes(self) -> int:
        """Bytes that any exact method must read."""
        reads = OPERATIONS[self.operation].reads
        return reads * self.num_points * self.num_features * BYTES[self.dtype]

    @property
    def one_product(self) -> int:
        """Additions and multiplications of a ``(B, D)``-by-``N`` product."""
        return 2 * self.batch * self.num_points * self.num_features

    @property
    def counted_operations(self) -> int:
        """Additions and multiplications in floating point of a method that skips nothing."""
        return OPERATIONS[self.operation].products * self.one_product

    @property
    def counted_integer_operations(self) -> int:
        """The same in 8-bit integers, for one call of the denoiser.

        At low noise the planes that screen the points are counted only: one up to sigma = 1, two
        up to 5.
        """
        planes = 1 if self.sigma <= 1 else 2 if self.sigma < 5 else DENSE_PLANES
        return planes * self.one_product

    def quick(self) -> Case:
        """The same case, small enough to try the machinery."""
        if self.num_points == OVERHEAD_POINTS:
            return replace(self, seconds=0.02)
        if self.data == "digits":
            return replace(self, num_points=QUICK_POINTS, seconds=0.02)
        scaled = self.num_points // QUICK_DIVISOR
        return replace(
            self,
            data="synthetic",
            num_points=scaled if self.group.startswith("scaling") else min(QUICK_POINTS, scaled),
            shape=QUICK_SHAPE,
            seconds=0.02,
        )


BATCHES = (1, 8, 64, 256)
SIGMAS = (0.02, 0.3, 2.0, 10.0, 80.0)
TIMED_SIGMAS = (0.3, 2.0, 80.0)
"""Noise levels that the default run times; it shows the accuracy at all, with B = 8."""

LARGEST_BATCH = max(BATCHES)
SCALING_POINTS = (12_500, 25_000, 50_000, 100_000, 200_000)
OVERHEAD_POINTS = 16
OVERHEAD_SHAPES: tuple[Shape, ...] = ((3, 4, 4), (3, 32, 32))

PEERS = (
    *("expanded", "expanded-compiled", "expanded-chunks", "cdist", "sdpa"),
    *("keops", "deepinv", "smalldiffusion"),
    *("faiss-top200", "faiss-top2000", "expanded-bf16", "expanded-float64"),
)
EVERYTHING = ("diffgen", *PEERS)
BACKENDS = ("diffgen", "diffgen-*")


def case_name(
    data: str, batch: int, sigma: float, dtype: str = "float32", operation: str = "denoise"
) -> str:
    """The name of a case out of the product of the axes."""
    return f"{_group(data, batch, sigma, operation)}-{dtype}"


def _group(data: str, batch: int, sigma: float, operation: str) -> str:
    return "-".join([data, f"b{batch}", f"sigma{sigma:g}", *_other(operation)])


def _other(operation: str) -> list[str]:
    return [] if operation == "denoise" else [operation]


def _case(name: str, group: str, data: str, *axes: object, **more: object) -> Case:
    """A case on a whole set."""
    found = DATASETS[data]
    return Case(name, group, data, found.count, *axes, shape=found.shape, **more)  # type: ignore[arg-type]


def _product(
    data: str,
    batches: Iterable[int],
    sigmas: Iterable[float],
    dtypes: Iterable[str],
    operation: str = "denoise",
    **more: object,
) -> list[Case]:
    """Every contender on the float32 set, diffgen alone on its other storage types.

    The peers of the float32 case decode beforehand, so they stand for the others too, which are
    timed in the same rounds.
    """
    return [
        _case(
            case_name(data, batch, sigma, dtype, operation),
            _group(data, batch, sigma, operation),
            data,
            batch,
            sigma,
            dtype,
            EVERYTHING if dtype == "float32" else ("diffgen",),
            operation,
            **more,
        )
        for batch in batches
        for sigma in sigmas
        for dtype in dtypes
    ]


def _backends(batches: Iterable[int], **more: object) -> list[Case]:
    return [
        _case(
            f"backends-b{batch}-{dtype}", f"backends-b{batch}", "cifar", batch, 2.0, dtype,
            BACKENDS, **more,
        )
        for batch in batches
        for dtype in ("uint8", "float32")
    ]  # fmt: skip


def _trajectory() -> list[Case]:
    contenders = {"uint8": ("diffgen",), "float32": ("diffgen", "sdpa", "expanded")}
    return [
        _case(
            f"trajectory-{dtype}", "trajectory", "cifar", 64, 80.0, dtype, names, "trajectory",
            seconds=10.0,
        )
        for dtype, names in contenders.items()
    ]  # fmt: skip


def _sweeps() -> list[Case]:
    """Many noise levels in one pass, against calls; one query, 8-bit storage."""
    highest = max(LOW_SIGMAS)
    kinds = (
        ("sweep-levels", "sweep", 2.0),
        ("sweep-calls", "calls", 2.0),
        ("sweep-below1", "sweep-below1", highest),
        ("sweep-onecall", "denoise", highest),
    )
    return [
        _case(name, "sweep", "cifar", 1, sigma, "uint8", ("diffgen",), operation)
        for name, operation, sigma in kinds
    ]


def _fields() -> list[Case]:
    return [
        _case(f"fields-{operation}", "fields", "cifar", 8, 2.0, "float32", ("diffgen",), operation)
        for operation in ("denoise", "posterior")
    ]


def _overhead() -> list[Case]:
    cases = []
    for shape in OVERHEAD_SHAPES:
        name = f"overhead-d{shape[0] * shape[1] * shape[2]}"
        contenders = ("diffgen", "expanded", "sdpa")
        axes = (OVERHEAD_POINTS, 1, 0.5, "float32", contenders)
        cases.append(Case(name, name, "synthetic", *axes, shape=shape))
    return cases


def _scaling() -> list[Case]:
    cases = []
    for dtype in ("uint8", "float32"):
        for batch in (1, 8):
            group = f"scaling-b{batch}-{dtype}"
            cases += [
                Case(f"{group}-n{n}", group, "synthetic", n, batch, 2.0, dtype, ("diffgen",))
                for n in SCALING_POINTS
            ]
    return cases


def _default() -> list[Case]:
    storage = ("uint8", "float32", "bfloat16")
    return [
        *_overhead(),
        *_product("digits", (8, 64), TIMED_SIGMAS, ("uint8", "float32"), seconds=0.1),
        *_product("mnist", (8, 64), TIMED_SIGMAS, ("uint8", "float32"), seconds=0.1),
        *_product("cifar", BATCHES, TIMED_SIGMAS, storage),
        *_product("cifar", (8,), (2.0,), ("float16",)),
        *_product("cifar", (8,), (0.02, 10.0), storage, timed=False),
        *_product("cifar", (8, 64), (2.0,), ("uint8", "float32"), "backward"),
        *_backends((8,)),
        *_sweeps(),
        *_fields(),
        *_trajectory(),
        *_scaling(),  # the largest sets
    ]


def _full(default: Iterable[Case]) -> list[Case]:
    """The product of all axes, what the default run times left out."""
    known = {case.name: case for case in default}
    cases = [
        case
        for data in ("digits", "mnist", "cifar", "celeba64")
        for operation in ("denoise", "backward")
        for case in _product(data, BATCHES, SIGMAS, BYTES, operation, full=True)
    ]
    cases += _backends((1, 64), full=True)
    return [case for case in cases if case.name not in known or not known[case.name].timed]


def _table() -> tuple[Case, ...]:
    default = _default()
    return (*default, *_full(default))


CASES = _table()


def chosen(full: bool) -> list[Case]:
    """The cases of a run, each name once.

    Args:
        full: Whether the whole product is run; a case that the default run does not time is
            replaced by the one that does.
    """
    if not full:
        return [case for case in CASES if not case.full]
    timed = {case.name: case for case in CASES}  # a later case of a name takes the earlier's place
    return sorted(timed.values(), key=lambda case: list(DATASETS).index(case.data))
