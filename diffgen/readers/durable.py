"""Files that appear under their name only when all their bytes are on the disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

PART = ".part"
"""What ends the name of a file while it is being written."""


@contextlib.contextmanager
def written_whole(path: str) -> Iterator[BinaryIO]:
    """A new file under ``path`` + ``PART``, which gets its name at the end of the block.

    Bytes, then name: after a power cut a file has its name only if it has its bytes. A block that
    raises leaves neither the file nor the part, which on a full disk would take the room.

    Args:
        path: The name; a file that has it already is replaced.

    Raises:
        OSError: The disk is full, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_whole(folder + "/a") as stream:
        ...         count = stream.write(b"rows")
        ...         before = os.listdir(folder)
        ...     before, os.listdir(folder)
        (['a.part'], ['a'])
    """
    part = path + PART
    try:
        with open(part, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
        sync_folder(os.path.dirname(path) or ".")
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise


def sync_folder(folder: str) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
