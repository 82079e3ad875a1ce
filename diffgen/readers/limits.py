"""What is refused of a stranger's archive: unsafe names and decompression bombs."""

from __future__ import annotations

import re

from diffgen.errors import DataError

FREE_BYTES = 256 << 20
"""Nothing that unpacks to less than this is called a bomb."""

MAX_RATIO = 200
"""Largest ratio of unpacked to packed bytes above ``FREE_BYTES``. Photographs reach 3, drawings
30; deflate ends at 1,032."""

MAX_MEMBER_BYTES = 256 << 20
"""Largest member that is read into memory as a whole: an image, a batch of CIFAR-10."""


def check_name(archive: str, name: str) -> None:
    """Refuse a member whose name could point outside the archive.

    Args:
        archive: Path of the archive, for the message.
        name: Name of the member.

    Raises:
        DataError: The name is absolute, has a drive, or has ``..`` among its parts.

    Example:
        >>> check_name("a.zip", "../b.png")
        Traceback (most recent call last):
        ...
        diffgen.errors.DataError: a.zip: member name must stay inside the archive, got '../b.png'
    """
    parts = re.split(r"[/\\]", name)
    if not name or "\0" in name or parts[0] == "" or ".." in parts or parts[0].endswith(":"):
        raise DataError(f"{archive}: member name must stay inside the archive, got {name!r}")


def check_expansion(path: str, unpacked: int, packed: int) -> None:
    """Refuse what unpacks to far more than is stored.

    Args:
        path: File or member, for the message.
        unpacked: Bytes after unpacking.
        packed: Bytes in the file.

    Raises:
        DataError: More than ``FREE_BYTES`` and more than ``MAX_RATIO`` times what is stored.

    Example:
        >>> check_expansion("a.zip", 1 << 40, 1 << 20)
        Traceback (most recent call last):
        ...
        diffgen.errors.DataError: a.zip: decompression bomb: 1048576 bytes unpack to 1099511627776
    """
    if unpacked > FREE_BYTES and unpacked > MAX_RATIO * packed:
        raise DataError(f"{path}: decompression bomb: {packed} bytes unpack to {unpacked}")
