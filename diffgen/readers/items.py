"""Items of torch datasets and loaders, gathered into one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from diffgen.errors import DataError
from diffgen.readers.images import to_array
from diffgen.readers.source import Progress

Items: TypeAlias = Dataset[Any] | DataLoader[Any]


def gather(items: Items) -> tuple[Tensor, Tensor | None]:
    """Read a dataset or a loader to its end.

    With a dataset of known length the rows are written to their final place as they come.

    Args:
        items: A dataset of ``x`` or ``(x, y)``, or a loader of batches of them. ``x`` is a tensor,
            an array or a Pillow image, ``y`` an integer.

    Returns:
        Rows ``(N, *S)`` on the CPU, and labels ``(N,)`` int64 or None.

    Raises:
        TypeError: Items of another kind.
        ValueError: No items.
        DataError: Items that differ in shape or type, or are labelled only in part; with the row.
    """
    collected = _Collector(_length(items))
    batched = isinstance(items, DataLoader) and items.batch_size is not None
    batched = batched or (isinstance(items, DataLoader) and items.batch_sampler is not None)
    with Progress(collected.expected, "reading the dataset") as bar:
        for item in _iterate(items):
            x, y = _split(item)
            rows = _to_rows(x, collected.count)
            if not batched:
                rows = rows[None]
            collected.add(rows, None if y is None else _to_labels(y, collected.count))
            bar.update(len(rows))
    return collected.finish()


def _length(items: Items) -> int:
    dataset = items.dataset if isinstance(items, DataLoader) else items
    return len(dataset) if isinstance(dataset, Sized) else 0


def _iterate(items: Items) -> Iterator[Any]:
    if isinstance(items, DataLoader | IterableDataset):
        yield from items
        return
    if not isinstance(items, Sized):
        raise TypeError(f"data must be a dataset with a length, got {type(items).__name__}")
    for index in range(len(items)):
        yield items[index]


def _split(item: Any) -> tuple[Any, Any]:
    if isinstance(item, tuple | list):
        if len(item) == 1:
            return item[0], None
        if len(item) == 2:
            return item[0], item[1]
        raise TypeError(f"items of data must be x or (x, y), got {len(item)} values")
    return item, None


def _to_rows(x: Any, row: int) -> Tensor:
    if isinstance(x, Tensor):
        return x.detach().cpu()
    if isinstance(x, np.ndarray):
        return torch.from_numpy(np.array(x))
    if type(x).__module__.startswith("PIL."):
        return torch.from_numpy(to_array(x, f"row {row} of data"))
    raise TypeError(
        f"x of row {row} must be a tensor, an array or an image, got {type(x).__name__}"
    )


def _to_labels(y: Any, row: int) -> Tensor:
    labels = torch.as_tensor(y) if isinstance(y, Tensor | np.ndarray | np.generic | int) else None
    if (
        labels is None
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        raise TypeError(
            f"y of row {row} must be an integer, got {type(y).__name__}: map the dataset to x "
            "or (x, label)"
        )
    return labels.detach().cpu().reshape(-1).to(torch.int64)


class _Collector:
    """Rows and labels that arrive in parts, in tensors that grow when the guess was short."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.count = 0
        self._rows = torch.empty(0)
        self._labels: list[Tensor] = []

    def add(self, rows: Tensor, labels: Tensor | None) -> None:
        if self.count == 0:
            self._rows = torch.empty(
                (max(self.expected, len(rows)), *rows.shape[1:]), dtype=rows.dtype
            )
        if rows.shape[1:] != self._rows.shape[1:] or rows.dtype != self._rows.dtype:
            raise DataError(
                f"row {self.count} of data must have shape {tuple(self._rows.shape[1:])} and type "
                f"{self._rows.dtype} of row 0, got {tuple(rows.shape[1:])} and {rows.dtype}"
            )
        if (labels is None) == bool(self._labels) and self.count > 0:
            raise DataError(f"row {self.count} of data must have a label if row 0 has one, or none")
        if labels is not None and len(labels) != len(rows):
            raise DataError(f"row {self.count} of data: {len(labels)} labels for {len(rows)} rows")
        end = self.count + len(rows)
        if end > len(self._rows):
            grown = torch.empty((max(end, end * 3 // 2), *rows.shape[1:]), dtype=rows.dtype)
            grown[: self.count] = self._rows[: self.count]
            self._rows = grown
        self._rows[self.count : end] = rows
        if labels is not None:
            self._labels.append(labels)
        self.count = end

    def finish(self) -> tuple[Tensor, Tensor | None]:
        if self.count == 0:
            raise ValueError("data must hold at least one row, got an empty dataset")
        rows = self._rows
        if self.count < len(rows):
            rows = rows[: self.count].clone()
        return rows, torch.cat(self._labels) if self._labels else None
