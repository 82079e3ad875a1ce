"""Progress on stderr: bars, and a line that says what is being done."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm.auto import tqdm

DELAY_S = 0.5
"""Work that is done within this shows no bar."""

T = TypeVar("T")


class Bar:
    """One bar over work that comes in several iterables; it goes away at the end.

    Use it as a context manager, and call it with each iterable to pass that through.
    """

    def __init__(self, description: str, total: int, unit: str, hidden: bool = False) -> None:
        """Shows nothing until the work has taken a moment, and nothing at all where hidden."""
        self._bar: Any = tqdm(
            total=total, desc=description, unit=unit, delay=DELAY_S, leave=False, disable=hidden
        )

    def __call__(self, items: Iterable[T]) -> Iterator[T]:
        """Passes the items through; each is a step once it is done with."""
        for item in items:
            yield item
            self._bar.update()

    def __enter__(self) -> Bar:
        """Nothing more."""
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the bar away."""
        self._bar.close()


class Line:
    """One line on a terminal that says what is being done, and goes away at the end."""

    def __init__(self) -> None:
        """Shows nothing yet."""
        self._shown = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Replaces what the line says."""
        if self._shown:
            # Erase to the end of the line, as the text before may have been longer.
            print(f"\r{text[:100]}\x1b[K", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Line:
        """Nothing more."""
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the line away."""
        self.say("")
