"""The ways a message takes from one rank to all."""

from __future__ import annotations


def star(rank: int, size: int, root: int) -> tuple[int | None, list[int]]:
    """From the root to each: for memory that all can read. See ``tree``."""
    if rank == root:
        return None, [other for other in range(size) if other != root]
    return root, []


def tree(rank: int, size: int, root: int) -> tuple[int | None, list[int]]:
    """Neighbours of a rank in a binomial tree: no rank sends more than log2(size) times.

    Args:
        rank: The rank asked for.
        size: Number of ranks.
        root: The rank that has the message.

    Returns:
        Whom it gets the message from, None for the root; and to whom it sends it on, those with
        most ranks below them first.

    Example:
        >>> tree(0, 4, 0), tree(2, 4, 0), tree(3, 4, 0)
        ((None, [2, 1]), (0, [3]), (2, []))
    """
    own = (rank - root) % size
    # A rank's parent lacks its lowest bit; its children have one more, below that.
    lowest = own & -own if own else 1 << size.bit_length()
    parent = (own - lowest + root) % size if own else None
    bits = [1 << bit for bit in reversed(range(size.bit_length())) if 1 << bit < lowest]
    return parent, [(own + bit + root) % size for bit in bits if own + bit < size]
