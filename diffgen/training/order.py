"""Which training points a step sees: a function of the seed and the step alone."""

from __future__ import annotations

import torch
from torch import Tensor

from diffgen.training.seeds import derived_generator
from diffgen.training_set import TrainingSet


class BatchOrder:
    """The points of every step's batch, with nothing to keep between steps.

    Without weights the steps run through one random order of the set after the other (an epoch
    each), so that in any epoch every point is seen once. With weights each point of a batch is
    drawn with its weight, with replacement: the loss is then that of the weighted set.

    Args:
        training_set: The points; mirror images are points of their own.
        batch_size: Points of a step, all processes together, at least 1.
        seed: Seed of the order.

    Example:
        >>> order = BatchOrder(TrainingSet(torch.eye(4)), batch_size=2, seed=0)
        >>> sorted(order.batch(0).tolist() + order.batch(1).tolist())
        [0, 1, 2, 3]
    """

    def __init__(self, training_set: TrainingSet, batch_size: int, seed: int) -> None:
        """Read the weights; see the class."""
        self._count = len(training_set)
        self._batch_size = batch_size
        self._seed = seed
        log_weights = training_set.log_weight_of(torch.arange(self._count)).cpu()
        uniform = bool((log_weights == log_weights[0]).all())
        self._cumulative = None if uniform else log_weights.softmax(0).cumsum(0)
        self._epoch: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> Tensor:
        """The points of a step, ``(batch_size,)`` int64 on the CPU; steps count from 0."""
        if self._cumulative is not None:
            generator = derived_generator(self._seed, "order", step)
            shape = (self._batch_size,)
            draws = torch.rand(shape, dtype=torch.float64, generator=generator)
            # The last sum may round to less than 1, or a draw to the sum itself.
            found = torch.searchsorted(self._cumulative, draws * self._cumulative[-1], right=True)
            return found.clamp(max=self._count - 1)
        parts = []
        start, end = step * self._batch_size, (step + 1) * self._batch_size
        while start < end:
            epoch, place = divmod(start, self._count)
            parts.append(self._order(epoch)[place : place + end - start])
            start += len(parts[-1])
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            generator = derived_generator(self._seed, "order", epoch)
            self._epoch = epoch, torch.randperm(self._count, generator=generator)
        return self._epoch[1]
