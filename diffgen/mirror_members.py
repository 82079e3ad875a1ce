"""Which points each half of a mirrored set offers each query."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from diffgen.set_view import SetView


class Eligible:
    """The points that the stored half and the mirrored half offer B queries: 2B rows, in turn.

    Attributes:
        exclude: Stored id left out of each row, ``(2B,)`` int64, -1 for none; or None.
        counts: Points that each row may use, ``(2B,)`` int64.
        empty: Rows that are left without a point, ``(2B,)`` bool; or None for none. Their
            ``exclude`` is -1, as a half may lose its only point while the other keeps its own:
            the row is to be left out of the merge.
    """

    def __init__(
        self,
        view: SetView,
        batch: int,
        labels: Tensor | None,
        exclude: Tensor | None,
        check_values: bool,
    ) -> None:
        """Looks at the labels and splits ``exclude``, whose ids are those of the whole set.

        Raises:
            ValueError: With ``check_values``, if an id of ``exclude`` is out of range.
        """
        self.view = view
        self.labels = None if labels is None else torch.cat((labels, labels))
        self.counts = self._members().expand(2 * batch)
        self.exclude: Tensor | None = None
        self.empty: Tensor | None = None
        if exclude is not None:
            if check_values:
                self._check_exclude(exclude)
            count = view.data.shape[0]
            ids = torch.cat(
                (
                    torch.where(exclude < count, exclude, -1),
                    torch.where(exclude >= count, exclude - count, exclude.clamp(max=-1)),
                )
            )
            self.counts = self.counts - self._contains(ids).to(torch.int64)
            self.empty = self.counts == 0
            self.exclude = torch.where(self.empty, -1, ids)

    def _members(self) -> Tensor:
        """Points of each row's class, before ``exclude``: ``(2B,)`` or one element."""
        view = self.view
        device = view.data.device
        if view.log_weights is None:
            whole = torch.full((1,), view.data.shape[0], device=device)
        else:
            whole = (view.log_weights > -inf).sum().reshape(1)
        if self.labels is None or view.class_offsets is None:
            return whole
        sizes = view.class_offsets.diff().to(device)
        known = self.labels.clamp(0, sizes.shape[0] - 1)
        return torch.where(self.labels < 0, whole, sizes[known])

    def _contains(self, ids: Tensor) -> Tensor:
        """Whether each row may use the point with its id."""
        view = self.view
        count = view.data.shape[0]
        inside = (ids >= 0) & (ids < count)
        known = ids.clamp(0, count - 1)
        if view.log_weights is not None:
            inside = inside & (view.log_weights[known] > -inf)
        if self.labels is None or view.order is None or view.class_offsets is None:
            return inside
        device = view.order.device
        sizes = view.class_offsets.diff().to(device)
        classes = torch.arange(sizes.shape[0], device=device).repeat_interleave(
            sizes, output_size=view.order.shape[0]
        )
        class_of = torch.full((count,), -1, device=device).scatter(0, view.order, classes)
        return inside & ((self.labels < 0) | (class_of[known] == self.labels))

    def _check_exclude(self, exclude: Tensor) -> None:
        count = 2 * self.view.data.shape[0]
        outside = (exclude < -1) | (exclude >= count)
        if bool(outside.any()):
            at = int(outside.nonzero()[0])
            raise ValueError(
                f"exclude must be in [-1, {count}), got {int(exclude[at])} at index {at}"
            )

    def fewest_and_most(self) -> tuple[int, int]:
        """The smallest and the largest number of points, rows that have none left out."""
        counts = self.counts if self.empty is None else self.counts[~self.empty]
        # A class without members counts as one here: the op names it in its message.
        return max(int(counts.min()), 1), int(counts.max())

    def check_top_k(self, top_k: int) -> None:
        """Checks that every query has ``top_k`` points in its two halves.

        Raises:
            ValueError: If one has fewer.
        """
        first, second = self.counts.chunk(2)
        fewest, at = (first + second).min(0)
        if top_k > int(fewest) > 0:
            raise ValueError(
                f"top_k must be at most {int(fewest)}, the eligible points of query {int(at)}, "
                f"got {top_k}"
            )
