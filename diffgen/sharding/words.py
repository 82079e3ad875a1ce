"""How messages name ranks."""

from __future__ import annotations

from collections.abc import Iterable


def named(ranks: Iterable[int], size: int) -> str:
    """Ranks in words.

    Example:
        >>> named([2], 4), named({3, 1}, 4)
        ('rank 2 of 4', 'ranks 1, 3 of 4')
    """
    listed = sorted(ranks)
    return f"rank{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed))} of {size}"
