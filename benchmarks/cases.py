"""The table of benchmark cases; a new case is one entry of ``CASES``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

SWEEP_SIGMAS = tuple(float(s) for s in torch.logspace(-1.7, 1.9, 16, dtype=torch.float64))
"""Noise levels of the sweep, 0.02 to 79."""

QUICK_DIVISOR = 100
QUICK_SHAPE = (3, 4, 4)


class Methods(Protocol):
    """What a contender can do once it has seen the data; see ``contenders.Prepared``."""

    denoise: Callable[[Tensor, float], Tensor]
    posterior: Callable[[Tensor, float], object] | None
    sweep: Callable[[Tensor, tuple[float, ...]], Tensor]


@dataclass(frozen=True)
class Operation:
    """What is timed, and the least work that it takes.

    Attributes:
        call: ``(methods, query, sigma)`` to the call that is timed.
        reads: Passes over the data.
        products: ``(B, D)``-by-``N`` products, each 2 B N D operations.
    """

    call: Callable[[Methods, Tensor, float], Callable[[], object]]
    reads: int
    products: int


def _denoise(methods: Methods, query: Tensor, sigma: float) -> Callable[[], object]:
    return lambda: methods.denoise(query, sigma)


def _backward(methods: Methods, query: Tensor, sigma: float) -> Callable[[], object]:
    leaf = query.clone().requires_grad_()
    cotangent = torch.randn(query.shape, generator=torch.Generator().manual_seed(0))
    return lambda: torch.autograd.grad(methods.denoise(leaf, sigma), leaf, cotangent)


def _posterior(methods: Methods, query: Tensor, sigma: float) -> Callable[[], object]:
    posterior = methods.posterior
    if posterior is None:
        raise NotImplementedError("gives the mean only")
    return lambda: posterior(query, sigma)


def _sweep(methods: Methods, query: Tensor, sigma: float) -> Callable[[], object]:
    return lambda: methods.sweep(query, SWEEP_SIGMAS)


OPERATIONS: dict[str, Operation] = {
    "denoise": Operation(_denoise, reads=1, products=2),
    # Forward, then logits, (y - m).v and the weighted sum over again.
    "backward": Operation(_backward, reads=2, products=5),
    "posterior": Operation(_posterior, reads=1, products=2),
    # The levels share the distances; each has a weighted sum of its own.
    "sweep": Operation(_sweep, reads=1, products=1 + len(SWEEP_SIGMAS)),
}


@dataclass(frozen=True)
class Case:
    """One problem to be timed.

    Attributes:
        name: Unique, as ``--case`` takes it.
        group: Cases of one group take their rounds in turn, so that their ratios hold.
        num_points: N.
        batch: B.
        sigma: Noise standard deviation, in the units of the data in [-1, 1].
        dtype: Storage type, ``"float32"`` or ``"uint8"``; both hold the same images.
        contenders: Names out of ``contenders.table``; a final ``*`` stands for any ending.
        operation: Key of ``OPERATIONS``.
        shape: Channels, height and width; D is their product.
        seconds: Time for the rounds of this case, shared with its group.
    """

    name: str
    group: str
    num_points: int
    batch: int
    sigma: float
    dtype: str
    contenders: tuple[str, ...]
    operation: str = "denoise"
    shape: tuple[int, int, int] = (3, 32, 32)
    seconds: float = 20.0

    @property
    def num_features(self) -> int:
        """D."""
        channels, height, width = self.shape
        return channels * height * width

    @property
    def counted_bytes(self) -> int:
        """Bytes that any exact method must read."""
        size = 1 if self.dtype == "uint8" else 4
        reads = OPERATIONS[self.operation].reads
        return reads * self.num_points * self.num_features * size

    @property
    def counted_operations(self) -> int:
        """Additions and multiplications of an exact method that skips nothing."""
        products = OPERATIONS[self.operation].products
        return 2 * products * self.batch * self.num_points * self.num_features

    def quick(self) -> Case:
        """The same case, small enough to try the machinery."""
        small = self.shape if self.num_points == OVERHEAD_POINTS else QUICK_SHAPE
        return replace(
            self,
            num_points=max(OVERHEAD_POINTS, self.num_points // QUICK_DIVISOR),
            shape=small,
            seconds=0.05,
        )


POINTS = 50_000
LARGEST_BATCH = 64
SCALING_POINTS = (12_500, 25_000, 50_000, 100_000, 200_000)
OVERHEAD_POINTS = 16
OVERHEAD_SHAPES = ((3, 4, 4), (3, 32, 32))

PEERS = ("expanded", "expanded-chunks", "cdist", "sdpa")
EVERYTHING = ("diffgen", *PEERS, "expanded-float64", "expanded-bf16")
BACKENDS = ("diffgen", "diffgen-*")


def _against_peers(
    batches: tuple[int, ...], sigmas: tuple[float, ...], rounds: float
) -> list[Case]:
    cases = []
    for batch in batches:
        for sigma in sigmas:
            group = f"b{batch}-sigma{sigma:g}"
            common = (group, POINTS, batch, sigma)
            cases += [
                Case(f"{group}-float32", *common, "float32", EVERYTHING, seconds=rounds),
                # The peers of the float32 twin decode beforehand, so they stand for this one too.
                Case(f"{group}-uint8", *common, "uint8", ("diffgen",), seconds=rounds / 5),
            ]
    return cases


def _backends() -> list[Case]:
    return [
        Case(
            f"backends-b{batch}-{dtype}",
            f"backends-b{batch}",
            POINTS,
            batch,
            2.0,
            dtype,
            BACKENDS,
            seconds=6,
        )
        for batch in (1, 8, 64)
        for dtype in ("float32", "uint8")
    ]


def _other_operations() -> list[Case]:
    fields = ("b8-fields", POINTS, 8, 2.0, "float32")
    peers = ("diffgen", "expanded", "sdpa")
    return [
        Case("b8-denoise", *fields, ("diffgen",), seconds=3),
        Case("b8-posterior", *fields, ("diffgen",), "posterior", seconds=3),
        Case("b8-backward", *fields, peers, "backward", seconds=10),
        Case("b8-sweep16", *fields, peers, "sweep", seconds=15),
    ]


def _overhead() -> list[Case]:
    contenders = ("diffgen", "expanded", "sdpa")
    cases = []
    for shape in OVERHEAD_SHAPES:
        name = f"overhead-d{shape[0] * shape[1] * shape[2]}"
        case = Case(name, name, OVERHEAD_POINTS, 1, 0.5, "float32", contenders, seconds=2)
        cases.append(replace(case, shape=shape))
    return cases


def _scaling() -> list[Case]:
    cases = []
    for dtype in ("float32", "uint8"):
        for batch in (1, 8):
            group = f"scaling-b{batch}-{dtype}"
            cases += [
                Case(
                    f"{group}-n{n}",
                    group,
                    n,
                    batch,
                    2.0,
                    dtype,
                    ("diffgen",),
                    seconds=3,
                )
                for n in SCALING_POINTS
            ]
    return cases


CASES: tuple[Case, ...] = (
    *_overhead(),
    *_against_peers((1, 8, 64), (2.0, 80.0), rounds=25),
    *_against_peers((8, 64), (0.02, 0.5, 5.0, 20.0), rounds=10),
    *_backends(),
    *_other_operations(),
    *_scaling(),  # last: the largest sets
)
