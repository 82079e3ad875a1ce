"""The settings of a training run: their checks, and which of them a resumed run must share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from diffgen.training.learning_rates import SCHEDULES
from diffgen.training.optimizers import OPTIMIZERS

_LONGEST = 80
"""Characters of a value in a message: betas may be a thousand numbers."""


@dataclass(frozen=True)
class TrainingSettings:
    """The numbers that determine a run, beside network, data and objective; see `train`.

    Raises:
        ValueError: A number out of its range, or a name of no table.
    """

    num_steps: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    schedule: str
    warmup_steps: int
    max_grad_norm: float | None
    accumulation_steps: int
    ema_decay: float | None
    seed: int

    def __post_init__(self) -> None:
        """Check every setting."""
        for name, least in (
            ("num_steps", 1),
            ("batch_size", 1),
            ("accumulation_steps", 1),
            ("warmup_steps", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
        for name, table in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in table:
                raise ValueError(
                    f"{name} must be one of {', '.join(table)}, got {getattr(self, name)!r}"
                )
        positive = [("learning_rate", self.learning_rate)]
        if self.max_grad_norm is not None:
            positive.append(("max_grad_norm", self.max_grad_norm))
        for name, number in positive:
            if not (number > 0 and isfinite(number)):
                raise ValueError(f"{name} must be positive and finite, got {number:g}")
        if not (self.weight_decay >= 0 and isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay:g}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay:g}")
        if self.warmup_steps >= self.num_steps:
            raise ValueError(
                f"warmup_steps must be less than num_steps = {self.num_steps}, "
                f"got {self.warmup_steps}"
            )

    def record(self) -> dict[str, Any]:
        """Every setting, as JSON has it."""
        return asdict(self)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two records: ``name = ours, not theirs`` for each leaf.

    Example:
        >>> differences({"seed": 1, "data": {"n": 2}}, {"seed": 1, "data": {"n": 3}})
        ['data.n = 2, not 3']
    """
    found = []
    for name in dict.fromkeys((*ours, *theirs)):
        mine, other = ours.get(name), theirs.get(name)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            found += differences(mine, other, f"{prefix}{name}.")
        elif mine != other:
            found.append(f"{prefix}{name} = {_short(mine)}, not {_short(other)}")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
