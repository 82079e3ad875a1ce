"""Tensors that go from GPU to GPU, over the process group itself.

NCCL waits on the GPU, for ever, for a rank that does not come; so all say beforehand that they
come, and this process looks after the others while it waits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from diffgen.errors import ShardError
from diffgen.sharding.lines import Lines

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SHORTEST_NAP_S = 2e-5
LONGEST_NAP_S = 1e-3

GRACE_S = 0.5
"""How long what a rank has begun may take after the rank has ended: it may have been done there."""


def carries(group: ProcessGroup, device: torch.device) -> bool:
    """Whether a group moves tensors between devices of this type without the CPU.

    gloo takes CUDA tensors too, but copies them through the CPU.
    """
    return device.type == "cuda" and "cuda:nccl" in dist.get_backend_config(group)


def gather_on_devices(group: ProcessGroup, lines: Lines, what: str, tensor: Tensor) -> list[Tensor]:
    """Give every rank's tensor to every rank.

    Args:
        group: It carries tensors of this device.
        lines: The connections to the other ranks, in a step.
        what: Type and shape, the same on all ranks.
        tensor: Contiguous.

    Returns:
        The tensors, in rank order.

    Raises:
        ShardError: A rank failed. What waits on the GPU is then left to PyTorch's own watchdog.
    """
    lines.transfer(f"{what} over the group", b"", lines.others, dict.fromkeys(lines.others))
    held = tensor.new_empty((lines.size, *tensor.shape))
    try:
        work = dist.all_gather_into_tensor(
            held.view(-1), tensor.view(-1), group=group, async_op=True
        )
        assert work is not None
        nap = SHORTEST_NAP_S
        last_complete = time.monotonic()
        while not work.is_completed():
            time.sleep(nap)
            nap = min(2 * nap, LONGEST_NAP_S)
            lines.check()
            now = time.monotonic()
            if not lines.gone():
                last_complete = now
            elif now - last_complete > GRACE_S:
                raise lines.loss()
        work.wait()
    except ShardError:
        raise
    except RuntimeError as error:
        raise lines.loss(f"the process group failed: {error}") from error
    lines.bytes_sent += tensor.nbytes * len(lines.others)
    return list(held.unbind())
