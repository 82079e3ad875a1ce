"""The committed table of what each kernel compiles to."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from .measured import Measured

PATH = Path(__file__).with_name("expected.csv")

COLUMNS = tuple(field.name for field in dataclasses.fields(Measured))
TEXT = ("kernel", "target", "compiler")


def read(path: Path = PATH) -> list[Measured]:
    """The rows of the table; none where there is no table."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Measured(**{name: row[name] if name in TEXT else int(row[name]) for name in COLUMNS})
            for row in csv.DictReader(file)
        ]


def write(rows: Iterable[Measured], path: Path = PATH) -> None:
    """Replaces the table."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, rows))
