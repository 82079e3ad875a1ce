"""The noised points of one time, made block by block from their place.

No noised point is stored. Blocks of them are made when a pass needs them, with the noise of
`diffgen.noised.counter_noise`: keyed by the seed, counted by point, copy, step and element. So they
are the same for any block size, order and device. The scales are rounded to float32, so that the
last bit of a library's exponential does not matter, and the points to the type of the decoded set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffgen.noised import counter_noise
from diffgen.noised.steps import scales_at
from diffgen.process_base import Process
from diffgen.processes import DDPM
from diffgen.training_set import TrainingSet


@dataclass(frozen=True)
class PointsAt:
    """The noised points ``alpha_s x_i + sigma_s e`` of one time s; made by `points_at`.

    Attributes:
        training_set: The x_i.
        seed: Of the noise.
        block_elements: Elements of a block.
        s: int64 in discrete time; otherwise float64, of a float32 number. 0-dim, on the CPU.
        word: The same as a word: the number itself, or its bits as float32.
        alpha: Signal scale, rounded to float32.
        sigma: Noise scale, likewise.
        copies: Of each training point; 1 without noise.
    """

    training_set: TrainingSet
    seed: int
    block_elements: int
    s: Tensor
    word: int
    alpha: float
    sigma: float
    copies: int

    def starts(self, ids: Tensor) -> range:
        """Where the blocks of the copies of some training points begin.

        Args:
            ids: Training points, ``(P,)`` int64.
        """
        features = self.training_set.view().data.shape[1]
        return range(0, len(ids) * self.copies, max(1, self.block_elements // features))

    def rows(self, ids: Tensor, start: int) -> Tensor:
        """Point and copy of each row of a block, ``(R, 2)`` int64, by point and then copy."""
        starts = self.starts(ids)
        places = torch.arange(start, min(start + starts.step, starts.stop), device=ids.device)
        return torch.stack([ids[places // self.copies], places % self.copies], 1)

    def points(self, rows: Tensor) -> Tensor:
        """The noised points of some rows, ``(R, D)`` in the type of the decoded set.

        Args:
            rows: Point and copy of each, ``(R, 2)`` int64.

        Raises:
            IndexError: No such training point.
            ValueError: Rows are no words.
        """
        x0 = self.training_set[rows[:, 0]].reshape(len(rows), -1)
        if self.sigma == 0:
            return x0.mul_(self.alpha)
        noise = counter_noise.standard_normal(self.seed, self.word, rows, x0.shape[1])
        return noise.mul_(self.sigma).add_(x0.to(torch.float64) * self.alpha).to(x0.dtype)


def points_at(
    training_set: TrainingSet,
    process: Process,
    s: float,
    *,
    copies: int,
    seed: int,
    block_elements: int,
) -> PointsAt:
    """The noised points of a time.

    Args:
        training_set: The training points.
        process: The noising process.
        s: Time, in the convention of the process (a float32 number in continuous time); -1 is the
            data of one in discrete time.
        copies: Of each training point.
        seed: Of the noise.
        block_elements: Elements of a block; at least one point is in it.

    Raises:
        ValueError: s is out of range, or not whole in discrete time.
    """
    s = float(s)
    if isinstance(process, DDPM):
        if not s.is_integer():
            raise ValueError(f"s must be whole in discrete time, got {s:g}")
        time, word = torch.tensor(int(s)), int(s)
    else:
        narrow = torch.tensor(s, dtype=torch.float32)
        time, word = narrow.double(), int(narrow.view(torch.int32))
    alpha, sigma = (float(scale.float()) for scale in scales_at(process, time))
    some = copies if sigma > 0 else 1
    return PointsAt(training_set, seed, block_elements, time, word, alpha, sigma, some)
