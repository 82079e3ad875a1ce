"""What a training set says about itself: counts, shapes, types, labels."""

from __future__ import annotations

import torch
from torch import Tensor

from diffgen.contents import Contents
from diffgen.readers.source import type_name


class DescribedSet:
    """The base of a training set, over its contents."""

    _contents: Contents

    def __len__(self) -> int:
        """Number of points, mirror images counted."""
        return self.num_stored * (2 if self.flip else 1)

    @property
    def num_stored(self) -> int:
        """Number of stored rows, N."""
        return len(self._contents.data)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, S."""
        return tuple(self._contents.data.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the rows are stored."""
        return self._contents.data.dtype

    @property
    def device(self) -> torch.device:
        """Device of queries, and of the rows unless they stay in host memory."""
        return self._contents.norms.device

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Values of a stored 0 and 255; None for floats."""
        return self._contents.value_range

    @property
    def flip(self) -> bool:
        """Whether the mirror images belong to the set."""
        return self._contents.flip

    @property
    def path(self) -> str | None:
        """File or folder the rows came from, or None."""
        return None if self._contents.origin is None else self._contents.origin.path

    @property
    def num_classes(self) -> int:
        """One more than the largest label, C; 0 without labels."""
        return self._contents.num_classes

    @property
    def labels(self) -> Tensor | None:
        """Label of each point, ``(len(ts),)`` int64, a copy; None without labels."""
        labels = self._contents.labels
        if labels is None:
            return None
        return labels.repeat(2 if self.flip else 1)

    def __repr__(self) -> str:
        """What the set holds, in one line."""
        parts = [f"{self.num_stored} x {self.sample_shape}", type_name(self.dtype)]
        if self.value_range is not None:
            parts[-1] += " in [{:g}, {:g}]".format(*self.value_range)
        if self.num_classes:
            parts.append(f"{self.num_classes} classes")
        if self._contents.log_weights is not None:
            parts.append("weighted")
        if self.flip:
            parts.append("with mirror images")
        if self.path is not None:
            parts.append(f"from {self.path}")
        if self.device.type != "cpu":
            parts.append(f"on {self.device}")
        return f"TrainingSet({', '.join(parts)})"
