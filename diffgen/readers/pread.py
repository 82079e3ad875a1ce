"""Files read with pread into buffers the caller owns, never through a memory map.

Touching a map of a file that has shrunk kills the process (SIGBUS); a short pread is an error
that names the file and the place.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers.source import Source, byte_view, check_shape, row_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer


class PreadFile:
    """A regular file, open for reading at given offsets."""

    def __init__(self, path: str) -> None:
        """Open the file and note its size.

        Args:
            path: Path of a regular file.

        Raises:
            FileNotFoundError: Nothing is there.
            DataError: It is not a regular file.
        """
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{path}: must be a regular file")
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the bytes from ``offset`` on.

        Args:
            buffer: Writable bytes.
            offset: Where to start, in bytes.

        Raises:
            DataError: The file ends before the buffer is full, or cannot be read.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
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

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

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

    def __del__(self) -> None:
        """Close a file that nobody closed."""
        if getattr(self, "_descriptor", -1) >= 0:
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


def layout_source(file: PreadFile, layout: Layout, labels: Tensor | None = None) -> Source:
    """Rows at a known place of a file, as a source.

    Args:
        file: The open file; the source closes it.
        layout: Where the rows are.
        labels: ``(N,)`` int64, or None.

    Returns:
        A source whose blocks share one buffer.

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

    def blocks(rows: int) -> Iterator[Tensor]:
        total = layout.shape[0]
        buffer = torch.empty((min(rows, total), *layout.shape[1:]), dtype=layout.dtype)
        memory = byte_view(buffer)
        for start in range(0, total, rows):
            count = min(rows, total - start)
            place = layout.offset + start * stride
            if stride == bytes_each:
                file.read_into(memory[: count * bytes_each], place)
            else:
                for row in range(count):
                    target = memory[row * bytes_each : (row + 1) * bytes_each]
                    file.read_into(target, place + row * stride)
            block = buffer[:count]
            if layout.swapped:
                swap_bytes(block)
            yield block

    return Source(file.path, layout.shape, layout.dtype, blocks, labels, file.close)


def swap_bytes(block: Tensor) -> None:
    """Reverse the bytes of each element, in place."""
    elements = block.reshape(-1).view(torch.uint8).view(-1, block.dtype.itemsize)
    elements.copy_(elements.flip(1))


def reopen(path: str, layout: Layout) -> Source:
    """Open a file whose layout is already known, such as that behind a memory map."""
    return layout_source(PreadFile(path), layout)
