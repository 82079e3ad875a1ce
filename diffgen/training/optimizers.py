"""torch's optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": AdamW,
    "adam": Adam,
    "sgd": lambda parameters, **arguments: SGD(parameters, momentum=0.9, **arguments),
}
"""From parameters, ``lr`` and ``weight_decay`` to an optimizer; what is not said is torch's."""


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> Optimizer:
    """An optimizer of those parameters that are trained.

    Raises:
        ValueError: There are none.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise ValueError("network must have parameters that require a gradient, got none")
    return OPTIMIZERS[name](trained, lr=learning_rate, weight_decay=weight_decay)
