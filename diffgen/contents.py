"""Everything a training set knows: checked, on one device, and none of it computed on demand."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from diffgen.readers.class_index import (
    ArrayLike,
    log_totals,
    sort_by_class,
    to_labels,
    to_log_weights,
)
from diffgen.readers.origin import Origin
from diffgen.readers.rows import digest, squared_norms
from diffgen.readers.source import Source, assemble
from diffgen.set_arguments import affine, to_range
from diffgen.sharding.agreement import compare, description, probes
from diffgen.sharding.opening import part_of_file, part_of_memory
from diffgen.sharding.ranks import Ranks
from diffgen.stores import placeholder
from diffgen.streaming.opening import digest_of, in_memory_of, is_streamed, selected
from diffgen.streaming.place import FilePlace
from diffgen.streaming.store import StreamedStore


@dataclass(frozen=True, eq=False)
class Contents:
    """Rows and what belongs to them.

    Attributes:
        data: Stored rows, ``(N, *S)``, contiguous; without values where there is a ``store``.
        norms: See ``SetView``; likewise.
        labels: ``(N,)`` int64, or None.
        log_weights: See ``SetView``.
        order: See ``SetView``.
        class_offsets: See ``SetView``.
        num_classes: C; 0 without labels.
        value_range: Values of a stored 0 and 255; None for floats.
        flip: Whether the mirror images belong to the set.
        origin: Where the rows came from, or None.
        store: The rows, where they are not in memory; or None.
    """

    data: Tensor
    norms: Tensor
    labels: Tensor | None
    log_weights: Tensor | None
    order: Tensor | None
    class_offsets: Tensor | None
    num_classes: int
    value_range: tuple[float, float] | None
    flip: bool
    origin: Origin | None
    store: StreamedStore | None = None

    @property
    def affine(self) -> tuple[float, float]:
        """Size of one stored unit, and the value of a stored zero."""
        return affine(self.value_range)

    @property
    def rows_on_host(self) -> bool:
        """Whether the rows stayed in host memory when the set was moved."""
        return self.data.device != self.norms.device

    def with_norms(self) -> Contents:
        """The same with the norms of the data as it is now; ``DataError`` for NaN in a row.

        Rows of a file are measured, and searched for NaN, when they are first gone through.
        """
        if self.store is not None:
            return self
        where = "data" if self.origin is None else self.origin.path
        norms = squared_norms(self.data.reshape(len(self.data), -1), self.affine[0], where)
        return replace(self, norms=norms)

    def rows(self, ids: Tensor) -> Tensor:
        """Stored rows by id, ``(n,)`` int64 on the CPU; ``(n, *S)``, where the rows are."""
        if self.store is None:
            return self.data[ids.to(self.data.device)]
        return self.store.place.fetch(ids).reshape(-1, *self.data.shape[1:])

    def digest(self) -> str:
        """SHA-256 of the rows; from a file, they are read through."""
        if self.store is None:
            return digest(self.data, self.value_range)
        return digest_of(self._file(), self.value_range)

    def _file(self) -> FilePlace:
        assert self.store is not None
        place = self.store.place
        if not isinstance(place, FilePlace) or not self.store.exchange.alone:
            raise ValueError(
                "this needs all rows of the set, got a shard: ask the set it was cut from"
            )
        return place

    def _loaded(self, device: torch.device | str | int) -> Contents:
        """The same with the rows of its file on a device."""
        place = in_memory_of(self._file(), device)
        data = place.data.reshape(self.data.shape)
        return replace(self, data=data, norms=place.norms, store=None).to(device)

    def to(self, device: torch.device | str | int, rows_on_host: bool = False) -> Contents:
        """The same on another device, but for the rows if these are to stay where they are."""
        if self.store is not None and not rows_on_host and torch.device(device).type != "cpu":
            if self.store.exchange.alone:
                return self._loaded(device)
            place = in_memory_of(self.store.place, device)
            moved = replace(self, store=StreamedStore(place, self.store.exchange))
            return moved.to(device, rows_on_host=True)

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return replace(
            self,
            data=self._moved(device, rows_on_host),
            norms=self.norms.to(device),
            labels=move(self.labels),
            log_weights=move(self.log_weights),
            order=move(self.order),
        )

    def _moved(self, device: torch.device | str | int, rows_on_host: bool) -> Tensor:
        if self.store is not None:
            return self.data
        return _on_host(self.data, device) if rows_on_host else self.data.to(device)

    def take(self, rows: Tensor) -> Contents:
        """Some of the rows, copied, under the same classes.

        Args:
            rows: Ids, int64, on the CPU, at least one.

        Raises:
            ValueError: All of them have weight zero.
        """
        here = rows.to(self.data.device)
        log_weights = None if self.log_weights is None else self.log_weights[here]
        if log_weights is not None and not (log_weights > -inf).any():
            raise ValueError("indices must name a row with a positive weight, got none")
        labels = None if self.labels is None else self.labels[here]
        order, offsets = _index(labels, log_weights, self.num_classes)
        data, norms, store = self._taken(rows, log_weights)
        return replace(
            self,
            data=data,
            norms=norms,
            store=store,
            labels=labels,
            log_weights=log_weights,
            order=order,
            class_offsets=offsets,
            origin=None if self.origin is None else self.origin.take(rows),
        )

    def _taken(
        self, rows: Tensor, log_weights: Tensor | None
    ) -> tuple[Tensor, Tensor, StreamedStore | None]:
        """Data, norms and store of some rows; few enough are taken into memory."""
        if self.store is None:
            here = rows.to(self.data.device)
            return self.data[here], self.norms[here], None
        source = selected(self._file().source, rows)
        if is_streamed(source.shape, source.dtype, None):
            return streamed(source, self.affine[0], log_weights)
        data = assemble(source)
        norms = squared_norms(data.reshape(len(data), -1), self.affine[0], source.path)
        return data, norms, None

    def renewed(self) -> Contents:
        """The same after the rows were changed: measured anew, a file opened anew."""
        if self.store is None:
            return replace(self, origin=None).with_norms().to(self.norms.device, self.rows_on_host)
        self._file()
        return self.reopened(stays=True)

    def emptied(self) -> Contents:
        """The same without rows, for those that ``reopened`` can bring back."""
        return replace(self, data=torch.empty(0), norms=self.norms[:0].clone(), store=None)

    def reopened(self, stays: bool) -> Contents:
        """The same with the rows of its file.

        Args:
            stays: Whether they stay there.
        """
        assert self.origin is not None
        device, origin = self.norms.device, self.origin
        if not stays:
            data, norms = origin.load(), torch.empty(0)
            return replace(self, data=data, norms=norms).with_norms().to(device)
        source = origin.open() if origin.rows is None else selected(origin.open(), origin.rows)
        data, norms, store = streamed(source, self.affine[0], self.log_weights)
        return replace(self, data=data, norms=norms.to(device), store=store)

    def sharded(self, ranks: Ranks, rank: int, world_size: int, in_memory: bool | None) -> Contents:
        """The same with the part of the rows that this process holds.

        Args:
            ranks: The processes.
            rank: Part that this one is to hold.
            world_size: Number of parts.
            in_memory: Whether rows of a file are read into memory; None for what their size
                suggests.

        Raises:
            ShardError: Another process holds another set.
        """
        if self.store is not None:
            compared = digest(self.rows(probes(self.data.shape[0])), self.value_range)
        else:
            compared = self.digest()
        own = description(
            rank,
            world_size,
            tuple(self.data.shape),
            self.data.dtype,
            self.value_range,
            self.flip,
            self.labels,
            self.log_weights,
            compared,
        )
        compare(ranks.exchange("shard", json.dumps(own).encode()))
        weights = None if self.log_weights is None else self.log_weights.cpu()
        if self.store is None:
            rows = self.data.reshape(len(self.data), -1)
            store = part_of_memory(rows, self.norms, self.affine[0], weights, ranks)
        else:
            store = part_of_file(self._file(), ranks, in_memory)
        return replace(
            self,
            data=placeholder(tuple(self.data.shape), self.data.dtype),
            norms=placeholder((self.data.shape[0],), torch.float64, self.norms.device),
            origin=None,
            store=store,
        )

    def class_log_weights(self) -> Tensor:
        """Logarithm of the total weight of each class, ``(max(C, 1),)`` float64, on the CPU.

        Without labels all rows are one class. Mirror images are counted.
        """
        if self.labels is None:
            labels = torch.zeros(len(self.data), dtype=torch.int64)
        else:
            labels = self.labels.cpu()
        weights = None if self.log_weights is None else self.log_weights.cpu()
        return log_totals(labels, weights, max(self.num_classes, 1), 2 if self.flip else 1)


def _on_host(data: Tensor, device: torch.device | str | int) -> Tensor:
    """Rows in host memory, pinned for a GPU, which then copies them without the processor."""
    data = data.cpu()
    on_gpu = torch.empty(0, device=device).is_cuda
    return data.pin_memory() if on_gpu and not data.is_pinned() else data


def streamed(
    source: Source, scale: float, log_weights: Tensor | None
) -> tuple[Tensor, Tensor, StreamedStore]:
    """Data and norms without values, and the store, of rows that stay in their file."""
    weights = None if log_weights is None else log_weights.cpu()
    store = StreamedStore(FilePlace(source, scale, weights))
    norms = placeholder((source.shape[0],), torch.float64)
    return placeholder(source.shape, source.dtype), norms, store


def build(
    data: Tensor | Source,
    labels: ArrayLike | None,
    weights: ArrayLike | None,
    value_range: tuple[float, float],
    flip: bool,
    origin: Origin | None,
) -> Contents:
    """Check the arguments of a new set and compute what goes with its rows.

    Args:
        data: ``(N, *S)``, contiguous, one of the stored types; or an open source, whose rows stay
            in their file.
        labels: ``(N,)`` integers, or None.
        weights: ``(N,)`` raw weights, or None.
        value_range: ``(lo, hi)``; ``DEFAULT_RANGE`` for floats.
        flip: Whether the mirror images belong to the set.
        origin: Where the rows came from, or None.

    Raises:
        TypeError: Labels that are no integers.
        ValueError: A wrong shape or a value out of range.
        DataError: NaN or an infinity in a row.
    """
    count = data.shape[0]
    if flip and len(data.shape) < 3:
        raise ValueError(f"flip needs samples of shape (..., H, W), got {tuple(data.shape[1:])}")
    kept_range = to_range(data.dtype, value_range)
    numbers = None if labels is None else to_labels(labels, count)
    log_weights = None if weights is None else to_log_weights(weights, count)
    num_classes = 0 if numbers is None else int(numbers.max()) + 1
    order, offsets = _index(numbers, log_weights, num_classes)
    store = None
    if isinstance(data, Source):
        data, norms, store = streamed(data, affine(kept_range)[0], log_weights)
    else:
        norms = torch.empty(0, device=data.device)
    contents = Contents(
        data=data,
        norms=norms,
        store=store,
        labels=numbers,
        log_weights=log_weights,
        order=order,
        class_offsets=offsets,
        num_classes=num_classes,
        value_range=kept_range,
        flip=bool(flip),
        origin=origin,
    )
    return contents.with_norms().to(data.device)


def _index(
    labels: Tensor | None, log_weights: Tensor | None, num_classes: int
) -> tuple[Tensor | None, Tensor | None]:
    if labels is None:
        return None, None
    weights = None if log_weights is None else log_weights.cpu()
    order, offsets = sort_by_class(labels.cpu(), weights, num_classes)
    return order.to(labels.device), offsets
