"""What the ops read of a training set: flat tensors and two numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

UINT8_SHIFT = 128
"""Stored value about which the norms of uint8 rows are taken."""


@dataclass(frozen=True)
class SetView:
    """A training set as the ops see it.

    Attributes:
        data: Stored rows, ``(N, D)``, contiguous, uint8 or floating point. A row means
            ``offset + scale * stored``.
        scale: Size of one stored unit in the units of the data; 1 for floats.
        offset: Value of a stored zero; 0 for floats.
        norms: ``|x_i - origin|^2`` in the units of the data, ``(N,)`` float64.
        log_weights: Logarithms of the raw weights, ``(N,)`` float64, or None for equal weights.
        order: Ids of the rows with a positive weight, stably sorted by label, int64, or None
            without labels.
        class_offsets: Rows of class ``c`` are ``order[class_offsets[c]:class_offsets[c + 1]]``,
            ``(C + 1,)`` int64 on the CPU, or None without labels.
        store: Name of the rows in ``diffgen.stores`` where they are not in ``data``: then ``data``
            and ``norms`` have their shape and type, and no values. Empty where they are.
    """

    data: Tensor
    scale: float
    offset: float
    norms: Tensor
    log_weights: Tensor | None = None
    order: Tensor | None = None
    class_offsets: Tensor | None = None
    store: str = ""

    @property
    def origin(self) -> float:
        """The value about which ``norms`` are taken, the same for every feature."""
        return origin(self.data.dtype, self.scale, self.offset)


def origin(dtype: torch.dtype, scale: float, offset: float) -> float:
    """The value about which row norms are taken: mid-grey for uint8, zero for floats."""
    return offset + UINT8_SHIFT * scale if dtype == torch.uint8 else 0.0
