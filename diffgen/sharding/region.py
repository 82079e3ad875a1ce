"""Memory that the processes of one machine share: a message is written once, and read by each.

Through a socket the kernel copies a message for every receiver, in and out again, which takes
half as long again. The memory has no name, so that nothing is left behind by a process
that is killed; and its size is sealed, so that no process can make another's reading fail.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

LEAST_BYTES = 32 << 10
"""A shorter message goes through the socket together with its header."""

MOST_BYTES = 32 << 20
"""A longer message goes through the socket. Only as much is used as the longest message."""


class Region:
    """Memory into which this process writes, and from which others read."""

    def __init__(self, descriptor: int) -> None:
        """Map the memory.

        Args:
            descriptor: Of the memory; ``close`` closes it.
        """
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, MOST_BYTES)
        self._reserved = 0

    @classmethod
    def create(cls) -> Region | None:
        """New memory; None where the system has none of this kind."""
        if sys.platform != "linux":
            return None
        try:
            descriptor = os.memfd_create("diffgen", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            return None
        try:
            os.ftruncate(descriptor, MOST_BYTES)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            return cls(descriptor)
        except OSError:
            os.close(descriptor)
            return None

    def write(self, message: Buffer) -> bool:
        """Put a message there, in place of the last one; False when it does not go there."""
        view = memoryview(message).cast("B")
        if not LEAST_BYTES <= len(view) <= MOST_BYTES:
            return False
        if len(view) > self._reserved:
            try:
                # Memory that is not there when it is touched would kill the process.
                os.posix_fallocate(self.descriptor, 0, len(view))
            except OSError:
                return False
            self._reserved = len(view)
        self._memory[: len(view)] = view
        return True

    def read(self, place: memoryview) -> None:
        """Fill a place with the first bytes."""
        with memoryview(self._memory) as memory:
            place[:] = memory[: len(place)]

    def close(self) -> None:
        """Let go of the memory; a second time does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self._memory.close()
            self.descriptor = -1
