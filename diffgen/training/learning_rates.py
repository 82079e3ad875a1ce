"""Learning rates over training, as factors of the highest.

With w the steps of the warm-up, T all steps and ``p = (step - w) / (T - w)``:

    step < w      (step + 1) / (w + 1)
    cosine        (1 + cos(pi p)) / 2
    linear        1 - p
    constant      1
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 + cos(pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
"""The factor by the share of the steps after the warm-up that are done."""


def factor(schedule: str, warmup_steps: int, num_steps: int) -> Callable[[int], float]:
    """The factor of each step, for torch's ``LambdaLR``.

    Args:
        schedule: A name of `SCHEDULES`.
        warmup_steps: Steps of the linear rise, at least 0.
        num_steps: All steps.

    Returns:
        From a step, counted from 0, to its factor; 0 is only reached after the last step.

    Example:
        >>> [factor("linear", 1, 5)(step) for step in range(5)]
        [0.5, 1.0, 0.75, 0.5, 0.25]
    """
    shape = SCHEDULES[schedule]

    def of_step(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return shape((step - warmup_steps) / max(1, num_steps - warmup_steps))

    return of_step
