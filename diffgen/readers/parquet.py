"""Parquet, as Hugging Face datasets are downloaded: columns in groups of rows."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from diffgen.errors import DataError
from diffgen.readers.arrow_package import arrow, check_names, refusing
from diffgen.readers.limits import check_expansion
from diffgen.readers.pread import PreadFile, PreadStream

BUFFER_BYTES = 1 << 20
"""Of the pages of a column that are read at a time."""


class ParquetFile:
    """The groups of rows of one file.

    Attributes:
        path: The file.
        schema: Its ``pyarrow.Schema``.
        counts: Rows of each group, positive.
    """

    def __init__(self, path: str) -> None:
        """Read the description at the end of the file.

        Args:
            path: The file.

        Raises:
            DataError: Not such a file, truncated, or a decompression bomb.
            ImportError: pyarrow is not installed.
        """
        self.path = path
        arrow()
        with refusing(path):
            parquet: Any = importlib.import_module("pyarrow.parquet")
            self._file = PreadFile(path)
            self.check = self._file.check
            self.close = self._file.close
            # Read as it is asked for, on this thread: nothing ahead, no map of the file.
            self._parquet = parquet.ParquetFile(
                PreadStream(self._file), pre_buffer=False, buffer_size=BUFFER_BYTES
            )
            self.schema = self._parquet.schema_arrow
            check_names(self.schema)
            groups = map(self._parquet.metadata.row_group, range(self._parquet.num_row_groups))
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
            if any(rows < 0 or nbytes < 0 for rows, nbytes in sizes):
                raise ValueError("groups of rows must have sizes of zero or more")
            check_expansion(path, sum(nbytes for _, nbytes in sizes), self._file.size)
        self._groups = [number for number, (rows, _) in enumerate(sizes) if rows > 0]
        self.counts = [rows for rows, _ in sizes if rows > 0]

    def scan(self, part: int, column: str, rows: int) -> Iterator[Any]:
        """The values of a column in a group of rows.

        Args:
            part: Number of the group, of those that hold rows.
            column: Name of the column.
            rows: Most values at a time.

        Yields:
            Consecutive ``pyarrow.Array``, validated.
        """
        done = 0
        with refusing(f"{self.path}: group {self._groups[part]}"):
            batches = self._parquet.iter_batches(
                batch_size=rows, row_groups=[self._groups[part]], columns=[column],
                use_threads=False,
            )  # fmt: skip
        while True:
            with refusing(f"{self.path}: group {self._groups[part]}"):
                batch = next(batches, None)
                if batch is None:
                    break
                values = batch.column(column)
                values.validate(full=True)
                done += len(values)
            yield values
        if done != self.counts[part]:
            raise DataError(
                f"{self.path}: group {self._groups[part]} must hold {self.counts[part]} rows, "
                f"got {done}"
            )
