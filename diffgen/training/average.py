"""The exponential moving average of a network's parameters, with torch's ``AveragedModel``."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_Tensors = tuple[Tensor, ...] | list[Tensor]


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """An average whose memory grows to ``1 / (1 - decay)`` updates.

    The first update copies the parameters; update k + 1 (k counted from 1) is

        average = d average + (1 - d) parameters,    d = min(decay, (1 + k) / (10 + k))

    so that a short run does not keep its first parameters. Buffers are those of the network.

    Args:
        network: What is averaged; copied.
        decay: In [0, 1).

    Example:
        >>> network = nn.Linear(1, 1, bias=False)
        >>> average = moving_average(network, 0.9)
        >>> for value in (0.0, 11.0):
        ...     _ = nn.init.constant_(network.weight, value)
        ...     average.update_parameters(network)
        >>> average.module.weight.item()
        9.0

    Source:
        Polyak, Juditsky, Acceleration of stochastic approximation by averaging (1992); the growing
        memory as in TensorFlow's ``ExponentialMovingAverage``.
    """

    def update(average: _Tensors, parameters: _Tensors, count: Tensor | int) -> None:
        k = int(count)
        apply = get_ema_multi_avg_fn(min(decay, (1 + k) / (10 + k)))
        apply(average, parameters, count)

    # Parameters of the average are never trained, and evaluation needs no gradient of them.
    return AveragedModel(network, multi_avg_fn=update).requires_grad_(False)
