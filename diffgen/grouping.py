"""Queries of one class at a time, so that a class query reads only the rows of that class."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Outputs = TypeVar("Outputs", bound=tuple[Tensor, ...])

EXCLUDE = 3
"""Place of ``exclude`` among the tensors with a row for each query."""


def by_class(
    run: Callable[..., Outputs],
    queries: tuple[Tensor | None, ...],
    labels: Tensor,
    order: Tensor | None,
    class_offsets: Tensor | None,
    outputs: Outputs,
    num_rows: int,
    check_values: bool,
) -> Outputs:
    """Runs each class's queries against that class's rows.

    Args:
        run: ``(rows, *queries)`` to outputs with a row for each query.
        queries: Tensors with a row for each of the B queries, or None.
        labels: Class of each query, ``(B,)`` int64, -1 for the whole set.
        order: See :class:`diffgen.set_view.SetView`.
        class_offsets: See :class:`diffgen.set_view.SetView`.
        outputs: What a query with a bad class is given; written in place.
        num_rows: Rows of the set.
        check_values: Whether such a query raises instead.

    Returns:
        ``outputs``, or what ``run`` returned where one class holds all queries.

    Raises:
        ValueError: If the set has no labels, a label is out of range, a class has no member, or
            leaving a point out leaves a query without any.
    """
    if order is None or class_offsets is None:
        raise ValueError("labels need a training set with labels, got one without")
    offsets = class_offsets.tolist()
    groups = _members(labels.tolist(), offsets, check_values)
    rows_of = {
        label: None if label < 0 else order[offsets[label] : offsets[label + 1]] for label in groups
    }
    if check_values and len(groups) > 1:
        # A backend counts the queries it is given, so its message would name the wrong one.
        _check_queries(queries, rows_of, groups, num_rows)
    if len(groups) == 1:
        ((label, members),) = groups.items()
        if len(members) == labels.shape[0]:
            return run(rows_of[label], *queries)
    for label, members in groups.items():
        index = torch.tensor(members, dtype=torch.int64, device=labels.device)
        part = [None if tensor is None else tensor.index_select(0, index) for tensor in queries]
        for output, result in zip(outputs, run(rows_of[label], *part), strict=True):
            output.index_copy_(0, index, result)
    return outputs


def _members(labels: list[int], offsets: list[int], check_values: bool) -> dict[int, list[int]]:
    """Which queries ask for each class, without those whose class cannot be used."""
    num_classes = len(offsets) - 1
    groups: dict[int, list[int]] = {}
    for query, label in enumerate(labels):
        if not -1 <= label < num_classes:
            if check_values:
                raise ValueError(
                    f"class_labels must be in [-1, {num_classes}), or one-hot rows, "
                    f"got {label} at index {query}"
                )
        elif label >= 0 and offsets[label] == offsets[label + 1]:
            if check_values:
                raise ValueError(
                    f"class_labels must name classes with training points, got {label} "
                    f"at index {query}, which has none"
                )
        else:
            groups.setdefault(label, []).append(query)
    return groups


def _check_queries(
    queries: tuple[Tensor | None, ...],
    rows_of: dict[int, Tensor | None],
    groups: dict[int, list[int]],
    num_rows: int,
) -> None:
    sigma, exclude = queries[1], queries[EXCLUDE]
    assert sigma is not None
    for query, value in enumerate(sigma.tolist()):
        if not value >= 0:
            raise ValueError(f"sigma must be zero or more, got {value} at index {query}")
    if exclude is None:
        return
    left_out = exclude.tolist()
    for query, row in enumerate(left_out):
        if not -1 <= row < num_rows:
            raise ValueError(f"exclude must be in [-1, {num_rows}), got {row} at index {query}")
    for label, rows in rows_of.items():
        if rows is None or rows.shape[0] > 1:
            continue
        only = int(rows[0])
        for query in groups[label]:
            if left_out[query] == only:
                raise ValueError(f"exclude leaves no training point for query {query}")
