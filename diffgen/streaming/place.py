"""Where the rows of this process are, and how they are gone through."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from math import sqrt

import torch
from torch import Tensor

from diffgen.backends.passes import UnreadableRows
from diffgen.backends.problem import Extent, RowBlock
from diffgen.errors import DataError
from diffgen.readers.rows import squared_norms
from diffgen.readers.source import Progress, Source
from diffgen.streaming.ahead import Buffers, fill, read_ahead
from diffgen.streaming.direct import FilePiece, fetch_ahead, pieces_in_files
from diffgen.streaming.plan import (
    SEGMENT_ROWS,
    Piece,
    pieces_of_ids,
    pieces_of_range,
    pieces_of_segments,
    rows_of_block,
)
from diffgen.streaming.sharing import Consumer, Made, SharedPasses

Take = Callable[[RowBlock], None]


class Place(ABC):
    """Consecutive rows of a set.

    Attributes:
        count: Rows of the set, N.
        first: Id of the first row that is here.
        stop: Id after the last.
        features: D.
        dtype: Stored type.
        scale: Size of one stored unit.
        log_weights: Of all rows of the set, ``(N,)`` float64 on the CPU, or None.
    """

    def __init__(
        self,
        count: int,
        own: tuple[int, int],
        features: int,
        dtype: torch.dtype,
        scale: float,
        log_weights: Tensor | None,
    ) -> None:
        """Say what is here; see the class."""
        self.count, (self.first, self.stop) = count, own
        self.features, self.dtype, self.scale = features, dtype, scale
        self.log_weights = log_weights
        self.block_rows = rows_of_block(features * dtype.itemsize)
        self._shared = SharedPasses(self._go_through)

    @property
    @abstractmethod
    def norms(self) -> Tensor:
        """Squared lengths of the rows here about the origin, ``(stop - first,)`` float64."""

    def _go_through(self, take: Take, consumers: Sequence[Consumer]) -> None:
        """Hand all rows to ``take``, block by block, for these consumers."""
        self._go(self._all_pieces(), take)

    @abstractmethod
    def _go(self, pieces: Sequence[Piece], take: Take) -> None:
        """Hand the rows of the pieces to ``take``, block by block."""

    @abstractmethod
    def _fetch(self, ids: Tensor) -> Tensor:
        """Rows by id, ascending, all of them here, ``(n, D)``."""

    def run(
        self, make: Callable[[], Made], ids: Tensor | None = None, segments: Tensor | None = None
    ) -> Made:
        """Go through rows once.

        Args:
            make: Makes the consumers when the pass begins.
            ids: Ids of the rows wanted, ascending, on the CPU; None for all that are here.
            segments: Which segments are wanted, ``(segments of the set,)`` bool; None for all.

        Returns:
            The consumers, which took all blocks.

        Raises:
            DataError: If the rows cannot be read.
        """
        if ids is None and segments is None:
            return self._shared.run(make)
        pieces = self._all_pieces()
        if ids is not None:
            pieces = pieces_of_ids(self.own(ids), self.block_rows)
        if segments is not None:
            pieces = pieces_of_segments(pieces, segments)
        consumers = make()
        self._go(pieces, lambda block: _hand(block, consumers))
        return consumers

    def own(self, ids: Tensor) -> Tensor:
        """Those of the ids, ascending, whose rows are here."""
        borders = torch.tensor([self.first, self.stop])
        begin, end = torch.searchsorted(ids, borders).tolist()
        return ids[begin:end]

    def fetch(self, ids: Tensor) -> Tensor:
        """Rows by id.

        Args:
            ids: ``(n,)`` int64 on the CPU, all of them here, in any order, repeated or not.

        Returns:
            ``(n, D)``, stored, on the CPU.
        """
        wanted, place = ids.unique(return_inverse=True)
        return self._fetch(wanted)[place]

    def extent(self, ids: Tensor | None) -> Extent:
        """The extent of the rows here, as a part of the set's.

        Args:
            ids: Ids of the eligible rows, ascending, on the CPU; None for all.
        """
        norms = self.norms if ids is None else self.norms[self.own(ids) - self.first]
        if len(norms) == 0:
            return Extent(self.count, 0, 0.0, 0.0)
        return Extent(self.count, len(norms), sqrt(float(norms.max())), sqrt(float(norms.mean())))

    def _all_pieces(self) -> list[Piece]:
        return pieces_of_range(self.first, self.stop, self.block_rows)

    def _block(self, piece: Piece, data: Tensor) -> RowBlock:
        begin = piece.first - self.first
        weights = self.log_weights
        if piece.ids is None:
            norms = self.norms[begin : begin + piece.count]
            if weights is not None:
                weights = weights[piece.first : piece.first + piece.count]
        else:
            norms = self.norms[piece.ids - self.first]
            weights = None if weights is None else weights[piece.ids]
        return RowBlock(data, piece.first, piece.ids, norms, weights)


def _hand(block: RowBlock, consumers: Sequence[Consumer]) -> None:
    for consumer in consumers:
        consumer.add(block)


class MemoryPlace(Place):
    """Rows in the memory of this process."""

    def __init__(
        self, data: Tensor, norms: Tensor, count: int, first: int, scale: float,
        log_weights: Tensor | None,
    ) -> None:  # fmt: skip
        """Take the rows.

        Args:
            data: Rows ``first`` to ``first + n`` of the set, ``(n, D)``, contiguous.
            norms: Theirs, ``(n,)``.
            count: Rows of the set.
            first: Id of the first row.
            scale: Size of one stored unit.
            log_weights: Of all rows of the set, or None.
        """
        own = (first, first + len(data))
        super().__init__(count, own, data.shape[1], data.dtype, scale, log_weights)
        self.data = data
        self._norms = norms

    @property
    def norms(self) -> Tensor:
        """Squared lengths of the rows."""
        return self._norms

    def _all_pieces(self) -> list[Piece]:
        # Nothing is read: all rows are one block.
        return [Piece(self.first, self.stop - self.first)]

    def _go(self, pieces: Sequence[Piece], take: Take) -> None:
        for piece in pieces:
            if piece.ids is None:
                begin = piece.first - self.first
                data = self.data[begin : begin + piece.count]
            else:
                data = self.data[(piece.ids - self.first).to(self.data.device)]
            take(self._block(piece, data))

    def _fetch(self, ids: Tensor) -> Tensor:
        elsewhere = ids[(ids < self.first) | (ids >= self.stop)]
        if len(elsewhere):
            raise IndexError(
                f"row {int(elsewhere[0])} is held by another process: this one holds rows "
                f"{self.first} to {self.stop - 1}"
            )
        return self.data[(ids - self.first).to(self.data.device)].cpu()


class FilePlace(Place):
    """Rows of a file that stays open; they are read again in each pass."""

    def __init__(
        self, source: Source, scale: float, log_weights: Tensor | None,
        own: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        """Take the file.

        Args:
            source: The rows of the whole set; kept open.
            scale: Size of one stored unit.
            log_weights: Of all rows, or None.
            own: Ids of the first row to use and after the last; None for all.
        """
        count = source.shape[0]
        features = 1
        for size in source.shape[1:]:
            features *= size
        super().__init__(
            count, (0, count) if own is None else own, features, source.dtype, scale, log_weights
        )
        self.source = source
        self._buffers = Buffers(features, source.dtype)
        self._norms: Tensor | None = None
        # What the file says of its rows; compared with them in the first full pass.
        self._claimed = source.norms
        if self._claimed is not None:
            self._claimed = self._claimed[self.first : self.stop]
        # The buffers and the source serve one reader at a time.
        self._reading = threading.RLock()

    def _read(self, out: Tensor, first: int) -> None:
        self.source.read(out.view(len(out), *self.source.shape[1:]), first)

    @property
    def norms(self) -> Tensor:
        """Squared lengths of the rows; the first time, they are read through, and checked."""
        with self._reading:
            if self._norms is None and self._claimed is not None:
                self._norms = self._claimed.to(torch.float64).mul_(self.scale * self.scale)
            if self._norms is None:
                self._norms = self._measure()
            return self._norms

    def _measure(self) -> Tensor:
        norms = torch.empty(self.stop - self.first, dtype=torch.float64)

        def take(piece: Piece, data: Tensor, _: int) -> None:
            part = squared_norms(data, self.scale, self.source.path, piece.first)
            norms[piece.first - self.first :][: piece.count] = part

        self._through(self._all_pieces(), take, "measuring")
        return norms

    def run(
        self, make: Callable[[], Made], ids: Tensor | None = None, segments: Tensor | None = None
    ) -> Made:
        """Go through rows once; see ``Place.run``."""
        try:
            return super().run(make, ids, segments)
        except UnreadableRows:
            # Reading them here says which file, and where.
            self.read_through(lambda _: None, "checking")
            raise DataError(f"{self.source.path}: rows could not be read") from None

    def _go_through(self, take: Take, consumers: Sequence[Consumer]) -> None:
        alone = len(consumers) == 1 and getattr(consumers[0], "reads_files", False)
        pieces = self.in_files() if alone else None
        if pieces is None:
            super()._go_through(take, consumers)
        else:
            self._go_direct(pieces, take)

    def in_files(self) -> list[FilePiece] | None:
        """Which files the rows are in, for a consumer that reads them itself.

        None where rows are still to be compared with what the file says of them, where they do not
        lie in files as they are, or where blocks take less memory.
        """
        _ = self.norms
        threads = torch.get_num_threads()
        # Each thread has room for the rows of a segment, in place of two blocks that suffice.
        if self._claimed is not None or threads * SEGMENT_ROWS > 2 * self.block_rows:
            return None
        stretches = self.source.stretches()
        if stretches is None:
            return None
        return pieces_in_files(stretches, self.features, self.first, self.stop, threads)

    def _go_direct(self, pieces: Sequence[FilePiece], take: Take) -> None:
        """Hand out blocks that are in files, which the system is told to read ahead."""
        nothing = torch.empty((0, self.features), dtype=self.dtype)
        # Their place is that of the rows that threads keep.
        self._buffers.clear()
        with (
            self._reading,
            ThreadPoolExecutor(1, thread_name_prefix="diffgen-read") as reader,
            Progress(self.stop - self.first, f"reading {self.source.path}") as bar,
        ):
            self.source.check()
            for number, piece in enumerate(pieces):
                for later in pieces[number + 1 : number + 2]:
                    reader.submit(fetch_ahead, later, self.features)
                block = self._block(Piece(piece.first, piece.count), nothing)
                with piece.file.held() as file:
                    take(replace(block, file=file, offset=piece.offset))
                bar.update(piece.count)

    def read_through(self, take: Callable[[Tensor], None], what: str) -> None:
        """Hand all rows to ``take``, in order, block by block.

        Args:
            take: Takes ``(n, D)`` stored rows, valid until it returns.
            what: What is done, in a word, for the progress bar.

        Raises:
            DataError: If the rows cannot be read.
        """
        self._through(self._all_pieces(), lambda _, data, __: take(data), what)

    def _go(self, pieces: Sequence[Piece], take: Take) -> None:
        _ = self.norms

        def hand(piece: Piece, data: Tensor, spare: int) -> None:
            if self._claimed is not None:
                self._compare(piece, data, self._claimed)
            take(replace(self._block(piece, data), spare=spare))

        self._through(pieces, hand, "reading")
        if sum(piece.count for piece in pieces) == self.stop - self.first:
            self._claimed = None

    def _compare(self, piece: Piece, data: Tensor, claimed: Tensor) -> None:
        """Check what the file says of the lengths of rows."""
        if piece.ids is None:
            begin = piece.first - self.first
            said = claimed[begin : begin + piece.count]
        else:
            said = claimed[piece.ids - self.first]
        wrong = (squared_norms(data, 1.0) != said).nonzero()[:, 0]
        if len(wrong):
            at = int(wrong[0])
            row = piece.first + at if piece.ids is None else int(piece.ids[at])
            raise DataError(
                f"{self.source.path}: its norms do not belong to its rows: row {row} differs"
            )

    def _through(
        self, pieces: Sequence[Piece], take: Callable[[Piece, Tensor, int], None], what: str
    ) -> None:
        total = sum(piece.count for piece in pieces)
        with self._reading, Progress(total, f"{what} {self.source.path}") as bar:
            self.source.check()
            blocks = read_ahead(self._read, pieces, self._buffers)
            with closing(blocks):
                for piece, data, spare in blocks:
                    take(piece, data, spare)
                    bar.update(piece.count)

    def _fetch(self, ids: Tensor) -> Tensor:
        out = torch.empty((len(ids), self.features), dtype=self.dtype)
        if len(ids):
            with self._reading:
                self.source.check()
                fill(self._read, Piece(int(ids[0]), len(ids), ids), out)
        return out
