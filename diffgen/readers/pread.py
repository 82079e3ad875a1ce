"""Files read with pread into buffers the caller owns, never through a memory map.

Touching a map of a file that has shrunk kills the process (SIGBUS); a short pread is an error
that names the file and the place.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers.descriptors import Descriptor, Identity
from diffgen.readers.random_access import FirstPass, Stretch, blocks_of
from diffgen.readers.source import Source, byte_view, check_shape, row_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer


MAX_CALL_BYTES = 64 << 20
"""Most bytes asked of the system at once: between two calls Ctrl-C is heard, and macOS refuses
2 GiB."""

ROWS_PER_CALL = 256
"""Rows with gaps between them that are read by one call; systems take 1,024 pieces."""

MAX_GAP_BYTES = 4096
"""Longest gap between rows that is read along with them: a page, which the disk reads anyway."""


class PreadFile:
    """A regular file, open for reading at given offsets from any thread.

    Attributes:
        path: Its name.
        descriptor: The open file.
        size: Bytes that it had when it was opened.
    """

    def __init__(self, path: str) -> None:
        """Open the file and note its size.

        Args:
            path: Path of a regular file.

        Raises:
            FileNotFoundError: Nothing is there.
            DataError: It is not a regular file.
        """
        self.path = path
        self.descriptor = Descriptor(path)
        self.size = self.descriptor.identity.size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the bytes from ``offset`` on, without the interpreter's lock.

        Args:
            buffer: Writable bytes.
            offset: Where to start, in bytes.

        Raises:
            DataError: The file ends before the buffer is full, or cannot be read.
        """
        with self.descriptor.held() as number:
            self._fill(number, buffer, offset)

    def read_rows(self, buffer: memoryview, offset: int, row_bytes: int, stride: int) -> None:
        """Fill a buffer with rows that lie apart.

        Args:
            buffer: Writable bytes, a multiple of ``row_bytes``.
            offset: Where the first row starts, in bytes.
            row_bytes: Bytes of a row.
            stride: Bytes from the start of a row to that of the next, at least 0.

        Raises:
            DataError: The file ends before the last row does, or cannot be read.
        """
        gap_bytes = stride - row_bytes
        gap = memoryview(bytearray(gap_bytes if 0 < gap_bytes <= MAX_GAP_BYTES else 0))
        with self.descriptor.held() as descriptor:
            for start in range(0, len(buffer), row_bytes * ROWS_PER_CALL):
                part = buffer[start : start + row_bytes * ROWS_PER_CALL]
                place = offset + start // row_bytes * stride
                rows = [part[at : at + row_bytes] for at in range(0, len(part), row_bytes)]
                if gap and self._fill_pieces(descriptor, rows, gap, place):
                    continue
                for number, row in enumerate(rows):
                    self._fill(descriptor, row, place + number * stride)

    def _fill_pieces(
        self, descriptor: int, rows: list[memoryview], gap: memoryview, offset: int
    ) -> bool:
        """Rows and the short gaps between them in one call; False where it did not do it all."""
        pieces = [piece for row in rows for piece in (row, gap)][:-1]
        try:
            return os.preadv(descriptor, pieces, offset) == sum(map(len, pieces))
        except OSError:
            return False

    def _fill(self, descriptor: int, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(descriptor, [buffer[done : done + MAX_CALL_BYTES]], offset + done)
            except OSError as error:
                raise DataError(f"{self.path}: {error} at byte {offset + done}") from error
            if count == 0:
                raise DataError(
                    f"{self.path}: ends at byte {offset + done}, needs bytes up to "
                    f"{offset + len(buffer)}: truncated, or it shrank while open"
                )
            done += count

    def read(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes from ``offset`` on; for headers and small files."""
        if offset + count > self.size:
            raise DataError(
                f"{self.path}: ends at byte {self.size}, needs bytes up to {offset + count}"
            )
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_all(self, limit: int) -> bytes:
        """Return the whole file; ``DataError`` when it has more than ``limit`` bytes."""
        if self.size > limit:
            raise DataError(f"{self.path}: must have at most {limit} bytes, got {self.size}")
        return self.read(0, self.size)

    @property
    def identity(self) -> Identity:
        """What the file was when it was opened."""
        return self.descriptor.identity

    def check(self) -> None:
        """``DataError`` when the file is not any more the one that was opened."""
        self.descriptor.check()

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self.descriptor.close()

    def __enter__(self) -> PreadFile:
        """Return the file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()


class PreadStream(io.RawIOBase):
    """A seekable stream over a ``PreadFile``, for the readers of the standard library.

    It keeps the size the file had when it was opened, so that shrinking is an error and not an
    early end.
    """

    def __init__(self, file: PreadFile) -> None:
        """Start at the first byte.

        Args:
            file: The open file; closing the stream does not close it.
        """
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        """Streams can be read."""
        return True

    def seekable(self) -> bool:
        """Streams can be positioned."""
        return True

    def tell(self) -> int:
        """The position, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, and return the new position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise OSError(f"{self._file.path}: seek before the first byte")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Fill the buffer, up to the end of the file, and return the number of bytes."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._file.size - self._position))
        self._file.read_into(view[:count], self._position)
        self._position += count
        return count


@dataclass(frozen=True)
class Layout:
    """Where rows lie in a file, uncompressed.

    Attributes:
        shape: ``(N, *S)``; a row is contiguous.
        dtype: Stored type.
        offset: Byte of the first row.
        stride: Bytes from one row to the next; None when they touch.
        swapped: The bytes of an element are in the order that is not this machine's.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    stride: int | None = None
    swapped: bool = False


def layout_source(
    file: PreadFile,
    layout: Layout,
    labels: Tensor | None = None,
    seen: FirstPass | None = None,
) -> Source:
    """Rows at a known place of a file, as a source.

    Args:
        file: The open file; the source closes it.
        layout: Where the rows are.
        labels: ``(N,)`` int64, or None.
        seen: Called with the number of the first row and the bytes of every read, as they are in
            the file; None where nothing is to be verified.

    Returns:
        A source whose rows are read straight to where they are wanted, at any place.

    Raises:
        DataError: The file is too short for the layout, or holds no rows.
    """
    check_shape(file.path, layout.shape)
    bytes_each = row_bytes(layout.shape, layout.dtype)
    stride = bytes_each if layout.stride is None else layout.stride
    end = layout.offset + (layout.shape[0] - 1) * stride + bytes_each
    if end > file.size:
        raise DataError(
            f"{file.path}: ends at byte {file.size}, but an array of shape {layout.shape} and "
            f"{layout.dtype.itemsize}-byte elements needs bytes up to {end}: truncated"
        )

    def fill(out: Tensor, first: int) -> None:
        memory = byte_view(out)
        place = layout.offset + first * stride
        if stride == bytes_each:
            file.read_into(memory, place)
        else:
            file.read_rows(memory, place, bytes_each, stride)
        if seen is not None:
            seen(first, memory)
        if layout.swapped:
            swap_bytes(out)

    def stretches() -> tuple[Stretch, ...] | None:
        if stride != bytes_each or layout.swapped or not (seen is None or seen.verified):
            return None
        return (Stretch(file.descriptor, layout.offset, layout.shape[0]),)

    blocks = blocks_of(fill, layout.shape, layout.dtype)
    return Source(
        file.path,
        layout.shape,
        layout.dtype,
        blocks,
        labels,
        file.close,
        fill,
        file.check,
        stretches=stretches,
    )


def swap_bytes(block: Tensor) -> None:
    """Reverse the bytes of each element, in place and without a copy."""
    elements = block.reshape(-1).view(torch.uint8).numpy().view(f"u{block.dtype.itemsize}")
    elements.byteswap(inplace=True)


def reopen(path: str, layout: Layout) -> Source:
    """Open a file whose layout is already known, such as that behind a memory map."""
    return layout_source(PreadFile(path), layout)
