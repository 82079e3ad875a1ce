"""Where the rows of a run go as they come: CSV files, or TensorBoard."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from diffgen.optional import require

Row = dict[str, Any]


class Log(Protocol):
    """Takes rows of named tables: ``history`` and ``evaluations``."""

    def write(self, table: str, rows: Sequence[Row]) -> None:
        """Take more rows."""

    def close(self) -> None:
        """Finish."""


class CsvLog:
    r"""A file ``<table>.csv`` for each table; a resumed run continues it.

    Args:
        folder: Where to; made if it is not there.
        before: The rows of each table so far. What else a file holds, of steps that a resumed run
            does again, is dropped.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = CsvLog(Path(folder), {"history": []})
        ...     log.write("history", [{"step": 1, "loss": 0.5}])
        ...     (Path(folder) / "history.csv").read_text()
        'step,loss\n1,0.5\n'
    """

    def __init__(self, folder: Path, before: dict[str, list[Row]]) -> None:
        """Write what there is so far; see the class."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        for table, rows in before.items():
            path = self._path(table)
            path.unlink(missing_ok=True)
            if rows:
                part = path.with_name(path.name + ".part")
                part.write_text(_lines(rows, head=True), encoding="utf-8")
                os.replace(part, path)

    def write(self, table: str, rows: Sequence[Row]) -> None:
        """Append rows, and hand them to the system."""
        path = self._path(table)
        head = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            file.write(_lines(rows, head))

    def close(self) -> None:
        """Nothing is open."""

    def _path(self, table: str) -> Path:
        return self._folder / f"{table}.csv"


class TensorBoardLog:
    """Event files for TensorBoard: ``<table>/<column>`` over steps.

    Args:
        folder: Where to; made if it is not there.
        before: The rows of each table so far, which are in event files already.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, before: dict[str, list[Row]]) -> None:
        """Open an event file; see the class."""
        module = require("torch.utils.tensorboard", "tensorboard", "study")
        last = max((row["step"] for rows in before.values() for row in rows), default=-1)
        # Steps of a run that was killed and does them again are not shown twice.
        self._writer = module.SummaryWriter(str(folder), purge_step=last + 1)

    def write(self, table: str, rows: Sequence[Row]) -> None:
        """Take more rows."""
        for row in rows:
            series = f"/{row['split']}/t={row['t']:g}" if "split" in row else ""
            for name, value in row.items():
                if name not in ("step", "t", "split") and isinstance(value, int | float):
                    self._writer.add_scalar(f"{table}/{name}{series}", value, row["step"])

    def close(self) -> None:
        """Write out what is left."""
        self._writer.close()


LOGGERS: dict[str, Callable[[Path, dict[str, list[Row]]], Log]] = {
    "csv": CsvLog,
    "tensorboard": TensorBoardLog,
}
"""Every kind of log by its name."""


def _lines(rows: Sequence[Row], head: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    if head:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
