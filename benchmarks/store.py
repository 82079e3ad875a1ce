"""What outlives a group: images, exact results, contenders that have seen the data."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases import LARGEST_BATCH, Case
from benchmarks.contender import Contender, Prepared
from benchmarks.datasets import Options, Shape, load
from benchmarks.gate import QUERIES, reference
from benchmarks.images import decode, noisy_queries

DTYPES = {
    "uint8": torch.uint8,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


class Store:
    """Images, exact results and contenders of one set at a time."""

    def __init__(self, seed: int = 0, options: Options | None = None) -> None:
        """Starts empty.

        Args:
            seed: Another one draws other queries.
            options: Where images may come from.
        """
        self._seed = seed
        self._options = options or Options()
        self._set: tuple[str, Shape] | None = None
        self._loaded: tuple[Tensor, str] | None = None
        self._stored: dict[str, Tensor] = {}
        self._exact: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}
        self._prepared: dict[tuple[object, ...], Prepared] = {}

    def open(self, cases: Sequence[Case]) -> str:
        """Makes the set of a group ready, and lets go of the one before if it is another.

        Args:
            cases: Of one set and shape.

        Returns:
            What the images are, for the column ``data``.
        """
        wanted = (cases[0].data, cases[0].shape)
        count = max(case.num_points for case in cases)
        if self._set != wanted:
            self._prepared.clear()
            self._stored.clear()
            self._loaded = None
            self._set = wanted
        if self._loaded is None or self._loaded[0].shape[0] < count:
            self._prepared.clear()
            self._stored.clear()
            self._loaded = load(cases[0].data, self._options, count, cases[0].shape)
        for dtype in {case.dtype for case in cases}:
            largest = max(case.num_points for case in cases if case.dtype == dtype)
            if dtype not in self._stored or self._stored[dtype].shape[0] < largest:
                self._stored[dtype] = _stored_as(dtype, self._loaded[0][:largest])
        return self._loaded[1]

    def images(self, case: Case) -> Tensor:
        """``(N, *S)`` images in the storage type of the case; shorter sets begin longer ones."""
        return self._stored[case.dtype][: case.num_points]

    def queries(self, case: Case) -> Tensor:
        """``(B, *S)`` noisy points; smaller batches begin larger ones."""
        assert self._loaded is not None
        seed = zlib.crc32(f"queries at sigma {case.sigma:g}, seed {self._seed}".encode())
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(case.num_points, (LARGEST_BATCH,), generator=generator)
        return noisy_queries(decode(self._loaded[0][chosen]), case.sigma, seed)[: case.batch]

    def exact(self, case: Case) -> tuple[Tensor, Tensor]:
        """Mean and logsumexp of the first queries of the case, by the definition."""
        key = (case.data, case.shape, case.num_points, case.dtype, case.sigma)
        if key not in self._exact:
            several = self.queries(replace(case, batch=QUERIES))
            self._exact[key] = reference(self.images(case), several, case.sigma)
        mean, logsumexp = self._exact[key]
        return mean[: case.batch], logsumexp[: case.batch]

    def prepared(self, contender: Contender, case: Case) -> Prepared:
        """The contender, after it has seen the images of the case."""
        key = (case.num_points, case.dtype, contender.name)
        if key not in self._prepared:
            self._prepared[key] = contender.prepare(self.images(case))
        return self._prepared[key]


def _stored_as(dtype: str, images: Tensor) -> Tensor:
    return images if dtype == "uint8" else decode(images).to(DTYPES[dtype])
