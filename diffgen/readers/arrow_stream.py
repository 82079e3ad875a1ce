"""Arrow's IPC stream, as Hugging Face datasets are saved: batches of rows behind a schema.

The places of the batches are found by hopping from header to header, so that opening a file reads
none of its rows, and a batch anywhere is one read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diffgen.readers.arrow_package import arrow, check_names, refusing
from diffgen.readers.pread import PreadFile

MAX_HEADER_BYTES = 16 << 20
MAX_BATCH_BYTES = 1 << 30
"""Largest batch that is read: one is held in memory at a time."""

_CONTINUATION = 0xFFFFFFFF
_SCHEMA, _RECORD_BATCH = 1, 3


@dataclass(frozen=True)
class _Batch:
    offset: int
    nbytes: int
    rows: int


class StreamFile:
    """The batches of one file.

    Attributes:
        path: The file.
        schema: Its ``pyarrow.Schema``.
        counts: Rows of each batch, positive.
    """

    def __init__(self, path: str) -> None:
        """Read the schema and the headers of all batches.

        Args:
            path: The file.

        Raises:
            DataError: Not such a stream, truncated, or with compressed batches or dictionaries.
            ImportError: pyarrow is not installed.
        """
        self.path = path
        self._arrow = arrow()
        self._file = PreadFile(path)
        self.check = self._file.check
        self.close = self._file.close
        with refusing(path):
            self._batches = list(self._index())
        self.counts = [batch.rows for batch in self._batches]

    def scan(self, part: int, column: str, rows: int) -> Iterator[Any]:
        """The values of a column in a batch.

        Args:
            part: Number of the batch.
            column: Name of the column.
            rows: Unused: a batch is the least that can be read.

        Yields:
            One ``pyarrow.Array``, validated.
        """
        batch = self._batches[part]
        with refusing(f"{self.path}: batch {part}"):
            ipc = self._arrow.ipc
            content = self._arrow.py_buffer(self._file.read(batch.offset, batch.nbytes))
            found = ipc.read_record_batch(ipc.read_message(content), self.schema)
            if found.num_rows != batch.rows:
                raise ValueError(f"must hold {batch.rows} rows, got {found.num_rows}")
            values = found.column(column)
            values.validate(full=True)
        yield values

    def _index(self) -> Iterator[_Batch]:
        place = self._read_schema()
        # The end is a header of no length; the file may also simply end, as the format allows.
        while place < self._file.size and (header := self._header(place)):
            kind, table = _kind(header)
            if kind != _RECORD_BATCH:
                raise ValueError(f"must hold batches of rows only, got message {kind} at {place}")
            if _field(header, table, 3) is not None:
                raise ValueError(f"must not be compressed, got a compressed batch at {place}")
            rows, body = _number(header, table, 0), _body_bytes(header)
            nbytes = 8 + len(header) + body
            if rows < 0 or not 0 <= body <= MAX_BATCH_BYTES:
                raise ValueError(f"a batch must have at most {MAX_BATCH_BYTES} bytes, got {body}")
            if place + nbytes > self._file.size:
                raise ValueError(f"ends inside the batch at byte {place}: truncated")
            if rows > 0:
                yield _Batch(place, nbytes, rows)
            place += nbytes

    def _read_schema(self) -> int:
        """Read the first message, and return where the next one starts."""
        header = self._header(0)
        kind, _ = _kind(header)
        if kind != _SCHEMA:
            raise ValueError(f"must begin with a schema, got message {kind}")
        content = self._file.read(0, 8 + len(header))
        self.schema = self._arrow.ipc.read_schema(self._arrow.py_buffer(content))
        check_names(self.schema)
        return len(content)

    def _header(self, place: int) -> bytes:
        mark, length = struct.unpack("<Ii", self._file.read(place, 8))
        if mark != _CONTINUATION or not 0 <= length <= MAX_HEADER_BYTES:
            raise ValueError(f"must be an Arrow IPC stream, got no message at byte {place}")
        return self._file.read(place + 8, length)


# A header is a FlatBuffers table, which starts with the distance back to its list of fields: that
# holds the distance from the table to each field, or 0 for one that is left out.


def _field(header: bytes, table: int, field: int) -> int | None:
    """Place of a field of a table, or None."""
    fields = table - _unpack("<i", header, table)
    entry = 4 + 2 * field
    if entry + 2 > _unpack("<H", header, fields):
        return None
    distance = _unpack("<H", header, fields + entry)
    return table + distance if distance else None


def _number(header: bytes, table: int, field: int) -> int:
    """A 64-bit field of a table; 0 when it is left out."""
    place = _field(header, table, field)
    return 0 if place is None else _unpack("<q", header, place)


def _kind(header: bytes) -> tuple[int, int]:
    """Kind of a message, and the place of the table that describes it."""
    root = _unpack("<I", header, 0)
    kind, table = _field(header, root, 1), _field(header, root, 2)
    if kind is None or table is None:
        raise ValueError("must be an Arrow IPC stream, got an empty message")
    return header[kind], table + _unpack("<I", header, table)


def _body_bytes(header: bytes) -> int:
    return _number(header, _unpack("<I", header, 0), 3)


def _unpack(form: str, header: bytes, place: int) -> int:
    if place < 0:
        raise ValueError(f"malformed header: place {place}")
    value: int = struct.unpack_from(form, header, place)[0]
    return value
