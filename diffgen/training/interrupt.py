"""Ctrl-C between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Inside, a first Ctrl-C only sets ``requested``; a second one raises at once, as usual.

    Outside of the main thread, where Python has no handlers, or when not ``active``, nothing is
    changed.

    Example:
        >>> with Interrupt() as interrupt:
        ...     signal.raise_signal(signal.SIGINT)
        ...     interrupt.requested
        True
    """

    def __init__(self, active: bool = True) -> None:
        """Not requested so far."""
        self.requested = False
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        """Take over."""
        if self._active:
            self._before = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give back."""
        if self._active:
            self._give_back()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._give_back()

    def _give_back(self) -> None:
        # None: a handler that was not set from Python, which Python cannot set again.
        if signal.getsignal(signal.SIGINT) == self._request and self._before is not None:
            signal.signal(signal.SIGINT, self._before)
