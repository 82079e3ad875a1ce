"""What training returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from diffgen.training.logs import Row


@dataclass(frozen=True)
class TrainingResult:
    """A trained network, and how it came to be.

    Attributes:
        network: The network that was given, trained.
        ema_network: A network of its own with the exponential moving average of the parameters;
            None without one.
        history: A row for each ``log_every`` steps: ``step`` (steps done), ``epoch``, ``loss`` and
            ``grad_norm`` (means over the steps of the row), ``learning_rate`` (of its last step).
        evaluations: Rows of the evaluations; see `Evaluation.rows`.
        settings: What determines the numbers: settings, objective, data with SHA-256, processes.
        environment: Versions, device and threads of this call.
        resumed_from: Steps that were done in the checkpoint that this call went on from, or None.
    """

    network: nn.Module
    ema_network: nn.Module | None
    history: list[Row]
    evaluations: list[Row]
    settings: dict[str, Any]
    environment: dict[str, Any]
    resumed_from: int | None

    @property
    def best_network(self) -> nn.Module:
        """What to sample from: the average where there is one."""
        return self.network if self.ema_network is None else self.ema_network
