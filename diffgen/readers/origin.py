"""Where the rows of a training set came from, so that a pickle need not carry them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from diffgen.readers import open_source
from diffgen.readers.pread import Layout, reopen
from diffgen.readers.source import Source, assemble


@dataclass(frozen=True, eq=False)
class Origin:
    """A file, and which of its rows.

    Attributes:
        path: Absolute path of the file or folder.
        member: Which array of it.
        layout: Place of the rows behind a memory map; None for a file in a known format.
        rows: Ids of the rows that were kept, int64; None for all.
    """

    path: str
    member: str | None = None
    layout: Layout | None = None
    rows: Tensor | None = None

    def load(self) -> Tensor:
        """Read the rows again, ``(N, *S)`` on the CPU."""
        with self.open() as source:
            data = assemble(source)
        return data if self.rows is None else data[self.rows]

    def take(self, rows: Tensor) -> Origin:
        """The origin of some of these rows."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def open(self) -> Source:
        """Open the file again, with all its rows."""
        if self.layout is not None:
            return reopen(self.path, self.layout)
        return open_source(self.path, self.member, labels=False)
