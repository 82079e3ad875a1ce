"""Which array of a file with several is the data, and which the labels."""

from __future__ import annotations

from collections.abc import Sequence

from diffgen.errors import DataError
from diffgen.readers.source import LabelRequest

DATA_NAMES = ("images", "data", "x")
"""Members taken for the data where there are several, first found first."""

LABEL_NAMES = ("labels", "y")
"""Members taken for the labels when labels are asked for."""


def choose_data(path: str, names: Sequence[str], member: str | None) -> str:
    """The member that holds the rows.

    Args:
        path: File, for messages.
        names: Members of the file.
        member: The one asked for, or None for the only one, ``images``, ``data`` or ``x``.

    Raises:
        ValueError: The member asked for does not exist.
        DataError: No member, or several and none has a known name.

    Example:
        >>> choose_data("a.npz", ["x", "y"], None)
        'x'
    """
    if member is not None:
        if member not in names:
            raise ValueError(f"member must be one of {sorted(names)} in {path}, got {member!r}")
        return member
    if len(names) == 1:
        return names[0]
    known = [name for name in DATA_NAMES if name in names]
    rest = [name for name in names if name not in LABEL_NAMES]
    if not known and len(rest) != 1:
        raise DataError(f"{path}: name the array with member=, one of {sorted(names)}")
    return known[0] if known else rest[0]


def choose_labels(path: str, names: Sequence[str], labels: LabelRequest) -> str | None:
    """The member that holds the labels, or None when they are not asked for.

    Args:
        path: File, for messages.
        names: Members of the file.
        labels: A name, or True for ``labels`` or ``y``; None and False ask for none.

    Raises:
        ValueError: Labels are asked for and are not there.
    """
    if labels is None or labels is False:
        return None
    wanted = LABEL_NAMES if labels is True else (labels,)
    for name in wanted:
        if name in names:
            return name
    raise ValueError(
        f"labels must be among the members {sorted(names)} of {path}, got {' or '.join(wanted)}"
    )


def refuse_member(path: str, member: str | None) -> None:
    """Refuse ``member`` for a format that has one array only."""
    if member is not None:
        raise ValueError(
            f"member must be None for {path}: the format holds one set, got {member!r}"
        )


def check_request(path: str, labels: LabelRequest, found: bool) -> None:
    """Refuse labels by name, or required labels, where the format has none to give.

    Args:
        path: File, for messages.
        labels: What was asked.
        found: The format holds labels for this set.

    Raises:
        ValueError: Labels were asked for and cannot be given.
    """
    if isinstance(labels, str):
        raise ValueError(f"labels must be an array, True or False for {path}, got {labels!r}")
    if labels is True and not found:
        raise ValueError(f"labels must be passed as an array: {path} holds none")
