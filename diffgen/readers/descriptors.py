"""Files that are open only while they are used: a set of thousands of shards needs few descriptors.

A file keeps its descriptor until it is closed, or until ``limit()`` others have been used since.
It is opened again by name when it is needed, and must then still be the file it was.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from diffgen.errors import DataError

MAX_OPEN = 64
"""Most descriptors that are kept open by all readers together."""

MIN_OPEN = 4
"""As many are kept under the lowest limit of the system."""


class Identity(NamedTuple):
    """What tells a file from another, and from itself after a change."""

    size: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """The identity of a file of this status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


def compare(path: str, opened: Identity, now: Identity) -> None:
    """Refuse a file that is not any more the one that was opened.

    Args:
        path: Its name.
        opened: Its identity when it was opened.
        now: Its identity now.

    Raises:
        DataError: It was replaced or written to; naming it.
    """
    if now == opened:
        return
    if (now.inode, now.device) != (opened.inode, opened.device):
        change = "replaced by another file"
    elif now.size != opened.size:
        change = f"{opened.size} bytes then, {now.size} now"
    else:
        change = "written to"
    raise DataError(f"{path}: must not change while it is open: {change}")


def limit() -> int:
    """How many descriptors may be kept: at most a quarter of what the process may open."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return MAX_OPEN
    return max(MIN_OPEN, min(MAX_OPEN, allowed // 4))


class Descriptor:
    """A descriptor of a regular file, there when it is needed.

    While it is ``held``, by any thread, it is not closed.
    """

    def __init__(self, path: str) -> None:
        """Open the file and note what it is.

        Args:
            path: Path of a regular file.

        Raises:
            FileNotFoundError: Nothing is there.
            DataError: It is not a regular file.
        """
        self.path = path
        # The folder may be another by the time that the file is opened again.
        self._place = os.path.abspath(path)
        self._number = -1
        self._users = 0
        self._closed = False
        # Before it is opened: opening a pipe waits for a writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{path}: must be a regular file")
        self._number = _open(path)
        self.identity = Identity.of(os.fstat(self._number))
        _kept.use(self)

    @contextmanager
    def held(self) -> Iterator[int]:
        """The number of the descriptor, which stays open meanwhile.

        Raises:
            ValueError: It was closed.
            DataError: The file is gone, or is not the one that was opened first.
        """
        number = self._acquire()
        try:
            yield number
        finally:
            self._release()

    def _acquire(self) -> int:
        with _kept.lock:
            if self._closed:
                raise ValueError(f"{self.path}: must be open to be read, got a closed file")
            if self._number < 0:
                self._reopen()
            self._users += 1
            _kept.use(self)
            return self._number

    def _release(self) -> None:
        with _kept.lock:
            self._users -= 1
            if self._closed:
                self._let_go()

    def close(self) -> None:
        """Close the file for good, once nobody reads it; a second time does nothing."""
        with _kept.lock:
            self._closed = True
            self._let_go()

    def check(self) -> None:
        """Refuse a file that is gone, or is not any more the one that was opened.

        Raises:
            DataError: Naming it, and what changed.
        """
        try:
            now = Identity.of(os.stat(self._place))
        except OSError as error:
            raise DataError(f"{self.path}: cannot be found any more: {error.strerror}") from error
        compare(self.path, self.identity, now)

    def rest(self) -> None:
        """Give up the descriptor until the next use, unless it is in use."""
        with _kept.lock:
            self._let_go()

    def _let_go(self) -> None:
        if self._number >= 0 and self._users == 0:
            _kept.forget(self)
            os.close(self._number)
            self._number = -1

    def _reopen(self) -> None:
        try:
            number = _open(self._place)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be opened again: {error.strerror}") from error
        try:
            compare(self.path, self.identity, Identity.of(os.fstat(number)))
        except DataError:
            os.close(number)
            raise
        self._number = number

    def __del__(self) -> None:
        """Close a file that nobody closed."""
        if getattr(self, "_number", -1) >= 0:
            self._users = 0
            self.close()


class _Kept:
    """The descriptors that are open, the one used longest ago first."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may close a file while another is being opened.
        self.lock = threading.RLock()
        self._used: OrderedDict[int, weakref.ref[Descriptor]] = OrderedDict()

    def use(self, descriptor: Descriptor) -> None:
        """Note a use; those used longest ago are closed where there are too many."""
        with self.lock:
            key = id(descriptor)
            if key in self._used:
                self._used.move_to_end(key)
                return
            self._used[key] = weakref.ref(descriptor)
            self.shrink(limit())

    def forget(self, descriptor: Descriptor) -> None:
        """Note that it is closed."""
        self._used.pop(id(descriptor), None)

    def shrink(self, count: int) -> None:
        """Close those used longest ago until ``count`` are left; those in use stay."""
        with self.lock:
            for reference in list(self._used.values())[: max(0, len(self._used) - count)]:
                descriptor = reference()
                if descriptor is not None:
                    descriptor.rest()


_kept = _Kept()


def _reset_lock() -> None:
    _kept.lock = threading.RLock()


# A fork may come while another thread holds the lock, which nobody in the child would give back.
os.register_at_fork(after_in_child=_reset_lock)


def _open(path: str) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        _kept.shrink(0)
        return os.open(path, flags)
