"""Messages that the members of a group leave for each other in the group's store."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from diffgen.errors import ShardError
from diffgen.sharding.words import named

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

LONGEST_NAP_S = 0.05


class Board:
    """A part of a store for one meeting of a group."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        """Begin the next meeting of the group.

        Args:
            store: The group's, the same for all members.
            rank: Of this process.
            size: Number of members.
        """
        self._store = store
        self._rank = rank
        self._size = size
        self._meeting: int | None = None

    def host(self) -> str | None:
        """The machine the store is on; None when it is not behind the network."""
        store: Any = self._store
        while hasattr(store, "underlying_store"):
            store = store.underlying_store
        host = getattr(store, "host", None)
        return host if isinstance(host, str) else None

    def collect(self, subject: str, message: str, limit_s: float) -> list[str]:
        """Leave a message, and read those of all members.

        Args:
            subject: What the message is about; once in a meeting.
            message: Not empty.
            limit_s: How long to wait for the others, in seconds.

        Returns:
            The messages, in rank order.

        Raises:
            ShardError: Some left none, or the store does not answer.
        """
        messages: dict[int, str] = {}
        errors: list[Exception] = []
        ended = threading.Event()
        given_up = threading.Event()

        def look() -> None:
            try:
                self._store.set(self._key(subject, self._rank), message)
                nap = 0.001
                while len(messages) < self._size and not given_up.is_set():
                    for other in set(range(self._size)) - messages.keys():
                        key = self._key(subject, other)
                        if self._store.check([key]):
                            messages[other] = self._store.get(key).decode()
                    if len(messages) < self._size:
                        time.sleep(nap)
                        nap = min(2 * nap, LONGEST_NAP_S)
            except Exception as error:
                errors.append(error)
            ended.set()

        # A store whose process is stopped never answers, and cannot be interrupted.
        threading.Thread(target=look, name="diffgen-join", daemon=True).start()
        try:
            ended.wait(limit_s)
        finally:
            given_up.set()
        if errors:
            raise ShardError(
                f"the store of the process group failed in step 'join': {errors[0]}"
            ) from errors[0]
        missing = set(range(self._size)) - messages.keys()
        if missing:
            raise ShardError(
                f"{named(missing, self._size)} did not come to step 'join' within {limit_s:g} s"
            )
        return [messages[other] for other in range(self._size)]

    def _key(self, subject: str, rank: int) -> str:
        if self._meeting is None:
            # Counted in the store: a member that starts again meets those who do so too.
            self._meeting = self._store.add(f"diffgen/meetings/{self._rank}", 1)
        return f"diffgen/{self._meeting}/{subject}/{rank}"
