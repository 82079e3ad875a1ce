"""NumPy's .npz: a zip of .npy members, stored or deflated, read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import IO

import torch
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers.archive import Crc32, SafeZip
from diffgen.readers.limits import MAX_MEMBER_BYTES
from diffgen.readers.members import choose_data, choose_labels
from diffgen.readers.npy import Header, read_all, read_header, stored_type, to_labels
from diffgen.readers.pread import Layout, PreadFile, layout_source, swap_bytes
from diffgen.readers.random_access import FirstPass
from diffgen.readers.source import LabelRequest, Source, byte_view, check_shape, row_bytes


def open_npz(path: str, member: str | None, labels: LabelRequest) -> Source:
    """Open one array of an .npz file.

    Args:
        path: The file.
        member: Name of the array; None for the only one, ``images``, ``data`` or ``x``.
        labels: Name of the array of labels, or True for ``labels`` or ``y``.

    Raises:
        ValueError: No array of that name.
        DataError: A damaged or refused archive, or an array that cannot be a training set.
    """
    archive = SafeZip(path)
    files = {name.removesuffix(".npy"): name for name in archive.names() if name.endswith(".npy")}
    if not files:
        raise DataError(f"{path}: must hold an array, got members {archive.names()}")
    name = files[choose_data(path, list(files), member)]
    where = f"{path}: member {name!r}"
    label_name = choose_labels(path, list(files), labels)
    found = None if label_name is None else _read_labels(archive, files[label_name])

    with archive.open(name) as stream:
        header = read_header(stream, where)
        offset = stream.tell()
    check_shape(where, header.shape)
    if offset + header.nbytes != archive.size(name):
        raise DataError(
            f"{where} must have {offset + header.nbytes} bytes for shape {header.shape}, "
            f"got {archive.size(name)}"
        )
    dtype = stored_type(header, where)
    place = archive.stored_at(name)
    if place is not None:
        crc = archive.crc(name)
        return replace(
            _stored_source(archive.file, where, place, offset, header, dtype, crc),
            labels=found,
            close=archive.close,
        )

    def blocks(rows: int) -> Iterator[Tensor]:
        total = header.shape[0]
        buffer = torch.empty((min(rows, total), *header.shape[1:]), dtype=dtype)
        with archive.open(name) as stream:
            read_header(stream, where)
            for start in range(0, total, rows):
                block = buffer[: min(rows, total - start)]
                _fill(stream, byte_view(block), f"{where}, row {start}")
                if not header.dtype.isnative:
                    swap_bytes(block)
                yield block
            # Reading to the end makes zipfile compare the checksum.
            stream.read(1)

    return Source(path, header.shape, dtype, blocks, found, archive.close, check=archive.check)


def _stored_source(
    file: PreadFile,
    where: str,
    place: int,
    offset: int,
    header: Header,
    dtype: torch.dtype,
    crc: int,
) -> Source:
    """A member that is not deflated, read from the archive at any place.

    Its checksum is compared when its rows have been read in order for the first time.
    """

    def start() -> Crc32:
        return Crc32(file.read(place, offset))

    rows, width = header.shape[0], row_bytes(header.shape, dtype)
    bad = f"{where}: damaged archive: Bad CRC-32"
    layout = Layout(header.shape, dtype, place + offset, swapped=not header.dtype.isnative)
    return layout_source(file, layout, seen=FirstPass(bad, rows, width, start, f"{crc:08x}"))


def _read_labels(archive: SafeZip, name: str) -> Tensor:
    where = f"{archive.path}: member {name!r}"
    with archive.open(name) as stream:
        return to_labels(
            read_all(stream, read_header(stream, where), where, MAX_MEMBER_BYTES), where
        )


def _fill(stream: IO[bytes], buffer: memoryview, where: str) -> None:
    done = 0
    while done < len(buffer):
        content = stream.read(len(buffer) - done)
        if not content:
            raise DataError(f"{where}: truncated, {len(buffer) - done} bytes missing")
        buffer[done : done + len(content)] = content
        done += len(content)
