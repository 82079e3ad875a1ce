"""Tables with a column of images: encoded files, decoded one by one as rows."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Protocol, overload

import numpy as np
import torch
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers.arrow_package import arrow
from diffgen.readers.source import LabelRequest, Progress

LABEL_COLUMNS = ("label", "labels")
"""Columns of integers taken for the labels."""

VALUES_AT_ONCE = 64
LABELS_AT_ONCE = 1 << 16


class TableFile(Protocol):
    """One file of a table, in parts that can be read alone.

    Attributes:
        path: The file.
        schema: Its ``pyarrow.Schema``.
        counts: Rows of each part, positive.
        check: See ``Source``.
        close: Lets go of the file.
    """

    path: str
    schema: Any
    counts: list[int]
    check: Callable[[], None]
    close: Callable[[], None]

    def scan(self, part: int, column: str, rows: int) -> Iterator[Any]:
        """Consecutive values of a column in a part, about ``rows`` at a time, validated."""


def image_column(path: str, schema: Any, name: str | None) -> str:
    """The column of images.

    Args:
        path: The table, for messages.
        schema: Its ``pyarrow.Schema``.
        name: The one asked for; None for the only one.

    Raises:
        ValueError: There is no column of that name.
        DataError: It is no column of images, or there is not exactly one.
    """
    if name is not None:
        if name not in schema.names:
            raise ValueError(f"member must be one of {schema.names} of {path}, got {name!r}")
        if schema.names.count(name) > 1:
            raise DataError(f"{path}: must have one column {name!r}, got several")
        if not (_is_files(schema.field(name).type) or _is_binary(schema.field(name).type)):
            raise DataError(
                f"{path}: column {name!r} must hold image files, a struct with bytes or bytes "
                f"alone, got {schema.field(name).type}"
            )
        return name
    said = _said_kinds(schema)
    found = [f.name for f in schema if _is_files(f.type) and said.get(f.name, "Image") == "Image"]
    if not found:
        found = [f.name for f in schema if _is_binary(f.type) and f.name not in said]
    if len(found) != 1:
        raise DataError(
            f"{path}: must have one column of images, got {found or 'none'} of {schema.names}: "
            "name it (member=, or --image-column)"
        )
    return image_column(path, schema, found[0])


def label_column(path: str, schema: Any, labels: LabelRequest) -> str | None:
    """The column of labels, or None.

    Args:
        path: The table, for messages.
        schema: Its ``pyarrow.Schema``.
        labels: A name; None or True for ``label`` or ``labels``; False for none.

    Raises:
        ValueError: Labels were asked for, and there is no such column.
        DataError: The column asked for does not hold integers.
    """
    if labels is False:
        return None
    integer = arrow().types.is_integer
    if isinstance(labels, str):
        if schema.names.count(labels) != 1:
            raise ValueError(f"labels must be one of {schema.names} of {path}, got {labels!r}")
        if not integer(schema.field(labels).type):
            raise DataError(
                f"{path}: column {labels!r} must hold integers, got {schema.field(labels).type}"
            )
        return labels
    for name in LABEL_COLUMNS:
        if schema.names.count(name) == 1 and integer(schema.field(name).type):
            return name
    if labels is True:
        raise ValueError(
            f"labels must be a column of integers, {' or '.join(LABEL_COLUMNS)}, or a name, of "
            f"{path}, got {schema.names}"
        )
    return None


def read_labels(files: Sequence[TableFile], column: str) -> Tensor:
    """All labels, ``(N,)`` int64; ``DataError`` where one is missing."""
    found = []
    with Progress(sum(sum(file.counts) for file in files), "reading labels") as bar:
        for file in files:
            for part in range(len(file.counts)):
                for values in file.scan(part, column, LABELS_AT_ONCE):
                    if values.null_count:
                        raise DataError(f"{file.path}: column {column!r} must have no empty cell")
                    found.append(values.to_numpy(zero_copy_only=False).astype(np.int64))
                    bar.update(len(values))
    return torch.from_numpy(np.concatenate(found))


class ImageCells(Sequence[str]):
    """The cells of a column of images over several files, by their numbers.

    As a sequence it is the cells' names in messages, ``row 0`` to the last. The place reached is
    kept, so that reading in order reads each part of a file once.
    """

    def __init__(self, files: Sequence[TableFile], column: str) -> None:
        """Read nothing yet.

        Args:
            files: At least one part with rows among them.
            column: Name of the column.
        """
        self._parts = [(file, part) for file in files for part in range(len(file.counts))]
        self._column = column
        self._starts = list(
            accumulate((file.counts[part] for file, part in self._parts), initial=0)
        )
        self._cells: Iterator[bytes] | None = None
        self._next = 0

    def __len__(self) -> int:
        """Number of cells."""
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Name of a cell."""
        if isinstance(index, slice):
            return [f"row {row}" for row in range(len(self))[index]]
        return f"row {range(len(self))[index]}"

    def read(self, name: str) -> bytes:
        """The image file in a cell.

        Raises:
            DataError: An empty cell, an image that is not in the table but somewhere else, or a
                damaged file; with the row.
        """
        row = int(name.removeprefix("row "))
        cells = self._cells if row == self._next else None
        # Whatever stops the reading, the place reached is not known any more.
        self._cells = None
        if cells is None:
            cells = self._from(row)
        content = next(cells)
        self._cells, self._next = cells, row + 1
        return content

    def _from(self, first: int) -> Iterator[bytes]:
        """The cells from one on, to the last."""
        number = bisect_right(self._starts, first) - 1
        row = self._starts[number]
        for file, part in self._parts[number:]:
            for values in file.scan(part, self._column, VALUES_AT_ONCE):
                if row + len(values) > first:
                    yield from _contents(
                        values.slice(max(0, first - row)), file.path, max(first, row)
                    )
                row += len(values)


def _contents(values: Any, path: str, row: int) -> Iterator[bytes]:
    files = values.field("bytes") if _is_files(values.type) else values
    if values.null_count or files.null_count:
        cells = range(len(values))
        bad = next(i for i in cells if not (values[i].is_valid and files[i].is_valid))
        raise DataError(
            f"{path}: row {row + bad}: must hold the bytes of an image, got an empty cell or a "
            "path: save the dataset with its images"
        )
    for cell in files:
        yield cell.as_py()


def _is_binary(kind: Any) -> bool:
    types = arrow().types
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_files(kind: Any) -> bool:
    """Whether a type is that of Hugging Face's images: a struct with bytes and a path."""
    if not arrow().types.is_struct(kind):
        return False
    fields = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
    return "bytes" in fields and set(fields) <= {"bytes", "path"} and _is_binary(fields["bytes"])


def _said_kinds(schema: Any) -> dict[str, str]:
    """What Hugging Face's own description calls the columns, where there is one."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: str(feature.get("_type")) for name, feature in features.items()}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return {}
