"""Losses since the last row of the history: kept on their device until a row needs them."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from diffgen.training.errors import NonFiniteLossError


class Meter:
    """Losses and gradient norms of the steps since the last row.

    They are read in one go when a row or a checkpoint is due, so that an accelerator is not waited
    for at each step. The accelerator that trains makes them those of all processes.

    Args:
        accelerator: The ``accelerate.Accelerator``.
        settled: Pairs of loss and norm that a checkpoint holds.
    """

    def __init__(self, accelerator: Any, settled: list[list[float]] | None = None) -> None:
        """Start from what a checkpoint holds; see the class."""
        self._accelerator = accelerator
        self._settled = [] if settled is None else [list(pair) for pair in settled]
        self._open: list[tuple[Tensor, Tensor]] = []

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Take the loss of a step, and the norm of its gradient before it was clipped."""
        self._open.append((loss.detach(), norm.detach()))

    def settle(self, step: int, learning_rate: Callable[[int], float]) -> list[list[float]]:
        """Read what is open.

        Args:
            step: Steps that are done.
            learning_rate: From a step, counted from 0, to its learning rate.

        Returns:
            Loss and norm of every step since the last row.

        Raises:
            NonFiniteLossError: One of them is NaN or infinite.
        """
        if self._open:
            values = torch.stack([torch.stack(pair).to(torch.float32) for pair in self._open])
            pairs = self._accelerator.reduce(values, "mean").tolist()
            for offset, (loss, norm) in enumerate(pairs):
                if not (isfinite(loss) and isfinite(norm)):
                    at = step - len(pairs) + offset
                    what = "loss" if not isfinite(loss) else "norm of the gradient"
                    got = loss if not isfinite(loss) else norm
                    raise NonFiniteLossError(
                        f"{what} must be finite, got {got} at step {at} "
                        f"with a learning rate of {learning_rate(at):g}"
                    )
            self._settled += pairs
            self._open = []
        return self._settled

    def row(self) -> dict[str, float]:
        """The means over the steps since the last row, which start anew."""
        losses, norms = zip(*self._settled, strict=True)
        self._settled = []
        return {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms)}
