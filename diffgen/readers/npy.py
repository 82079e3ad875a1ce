"""NumPy's .npy: the header is parsed, the elements are read, and nothing is ever unpickled."""

from __future__ import annotations

import io
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers.members import check_request, refuse_member
from diffgen.readers.pread import Layout, PreadFile, PreadStream, layout_source
from diffgen.readers.source import (
    STORED_TYPES,
    Array,
    LabelRequest,
    Source,
    to_stored_type,
    type_name,
)

MAX_HEADER_BYTES = 10_000
"""Longest header that is parsed; that of a plain array has 118 bytes."""


@dataclass(frozen=True)
class Header:
    """What the header of an .npy says.

    Attributes:
        shape: Shape of the array.
        dtype: NumPy type, without objects or fields.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes] | io.RawIOBase, where: str) -> Header:
    """Parse the header of an .npy, versions 1 to 3, and leave the stream at the first element.

    Args:
        stream: The file, at its start.
        where: File or member, for messages.

    Raises:
        DataError: Not an .npy, a header too long or malformed, objects or fields, or Fortran
            order.
    """
    numpy_format = np.lib.format
    try:
        version = numpy_format.read_magic(stream)
        # Version 3 differs from 2 in the encoding of field names only, and fields are refused.
        read = {
            (1, 0): numpy_format.read_array_header_1_0,
            (2, 0): numpy_format.read_array_header_2_0,
            (3, 0): numpy_format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(stream, max_header_size=MAX_HEADER_BYTES)
    except DataError:
        raise
    except Exception as error:  # a hostile header can fail anywhere in NumPy's parser
        raise DataError(f"{where}: not a readable .npy header: {error}") from error
    if dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None:
        raise DataError(f"{where}: must hold plain numbers, got {dtype}")
    if any(size < 0 for size in shape):
        raise DataError(f"{where}: shape must be positive, got {shape}")
    if fortran and len(shape) > 1:
        raise DataError(
            f"{where}: must be in C order, got Fortran order: save np.ascontiguousarray(array)"
        )
    return Header(tuple(int(size) for size in shape), dtype)


def stored_type(header: Header, where: str) -> torch.dtype:
    """The type in which the elements are kept; ``DataError`` when there is none."""
    dtype = to_stored_type(header.dtype)
    if dtype is None:
        names = ", ".join(map(type_name, STORED_TYPES))
        raise DataError(f"{where}: type must be one of {names}, got {header.dtype}")
    return dtype


def read_all(stream: IO[bytes], header: Header, where: str, limit: int) -> Array:
    """The whole array behind a header, for small ones such as labels and single images.

    Args:
        stream: The file, just behind the header.
        header: The header.
        where: File or member, for messages.
        limit: Most bytes that are read.

    Returns:
        The array, in this machine's byte order.

    Raises:
        DataError: Larger than ``limit``, or truncated.
    """
    if header.nbytes > limit:
        raise DataError(f"{where}: must have at most {limit} bytes, got {header.nbytes}")
    content = stream.read(header.nbytes)
    if len(content) != header.nbytes:
        raise DataError(f"{where}: truncated: {len(content)} of {header.nbytes} bytes")
    array = np.frombuffer(content, dtype=header.dtype).reshape(header.shape)
    return array.astype(header.dtype.newbyteorder("="))


def to_labels(array: Array, where: str) -> Tensor:
    """Integers of any width as labels, ``(N,)`` int64; ``DataError`` for anything else."""
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"{where}: labels must be integers (N,), got {array.dtype} of shape {array.shape}"
        )
    return torch.from_numpy(array.astype(np.int64))


def open_npy(path: str, member: str | None, labels: LabelRequest) -> Source:
    """Open an .npy file.

    Args:
        path: The file.
        member: Must be None.
        labels: The format holds none.

    Raises:
        DataError: See ``read_header``; or the file is truncated.
    """
    refuse_member(path, member)
    check_request(path, labels, found=False)
    file = PreadFile(path)
    stream = PreadStream(file)
    header = read_header(stream, path)
    layout = Layout(
        shape=header.shape,
        dtype=stored_type(header, path),
        offset=stream.tell(),
        swapped=not header.dtype.isnative,
    )
    return layout_source(file, layout)
