"""The processes that each hold a part of one set, and the steps they take together.

A step is collective: every rank calls it, with the same name, in the same order. It ends on a
rank with all that the rank needs from the others, or with an error; it never waits for a rank
that has ended, that is stopped, or that has failed:

=================================  ==========================================================
another rank                       this rank gets a ``ShardError`` that names it
=================================  ==========================================================
has ended (killed, or by itself)   at once
raised an error in the step        at once, with the error
is stopped, or cut off             within ``timeout_s``: it gave no sign of life
lives and does not come            within ``patience_s``
=================================  ==========================================================

Signs of life come from a thread beside the work, so that work which takes longer than
``timeout_s`` is no failure.

gloo's own collectives fall short of this: a wait cannot be interrupted, one with a time limit
closes the connections to innocent ranks, errors name ports, and 1 KB between 4 ranks takes five
times as long. The group serves to find each other, and NCCL moves tensors between GPUs.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from diffgen.errors import ShardError
from diffgen.readers.source import byte_view, type_name
from diffgen.sharding.board import Board
from diffgen.sharding.devices import carries, gather_on_devices
from diffgen.sharding.groups import process_group, store_of
from diffgen.sharding.lines import Lines
from diffgen.sharding.rendezvous import meet
from diffgen.sharding.ways import star, tree
from diffgen.sharding.words import named

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

TIMEOUT_S = 60.0
PATIENCE_S = 1800.0


class Ranks:
    """The processes that each hold a part of one set.

    Attributes:
        rank: Of this process.
        size: Number of processes.
        timeout_s: Limit for a process that gives no sign of life, in seconds.
        patience_s: Limit for one that lives and does not come to a step, in seconds.
    """

    def __init__(
        self, group: ProcessGroup, lines: Lines, timeout_s: float, patience_s: float
    ) -> None:
        """Use ``join``.

        Args:
            group: The process group.
            lines: The connections.
            timeout_s: See the class.
            patience_s: See the class.
        """
        self.rank = lines.rank
        self.size = lines.size
        self.timeout_s = timeout_s
        self.patience_s = patience_s
        self._group = group
        self._lines = lines
        self._lock = threading.Lock()
        self._broken: str | None = None
        self._close = weakref.finalize(self, lines.close)
        _OPEN.add(lines)

    @classmethod
    def join(
        cls,
        group: ProcessGroup | DeviceMesh | None = None,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> Ranks:
        """Connect the processes of a group; each of them calls it.

        Args:
            group: A process group, a mesh with one dimension, or None for the default group.
            timeout_s: See the class; also the limit for connecting once all have come.
            patience_s: See the class; also the limit for all to come, since a process that has
                not come cannot give a sign of life.

        Returns:
            The ranks, until ``close`` or the end of the object.

        Raises:
            ValueError: No process group is initialised, this process is not of the group, or a
                limit is not positive.
            ShardError: Others did not come, or cannot be reached.
        """
        for name, value in (("timeout_s", timeout_s), ("patience_s", patience_s)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        group = process_group(group)
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        board = Board(store_of(group), rank, size)
        lines, region = meet(board, rank, size, timeout_s, patience_s)
        opened = Lines(rank, lines, region, timeout_s, patience_s)
        return cls(group, opened, timeout_s, patience_s)

    @property
    def bytes_sent(self) -> int:
        """Bytes that this process has sent to the others so far."""
        return self._lines.bytes_sent

    def exchange(self, step: str, message: bytes) -> list[bytes]:
        """Give every rank's message to every rank.

        Args:
            step: Name of the step.
            message: Of any length.

        Returns:
            The messages, in rank order.

        Raises:
            ShardError: Another rank failed; see the module.
        """
        with self._taking(step):
            others = self._lines.others
            got = self._lines.transfer("a message", message, others, dict.fromkeys(others))
            return [message if r == self.rank else bytes(got[r]) for r in range(self.size)]

    def agree(self, step: str, problem: str | None) -> None:
        """Tell each other who has failed in what came before.

        A rank with a problem returns, and raises its own error. All ranks are still in step
        afterwards and can go on.

        Args:
            step: Name of the step.
            problem: What went wrong on this rank; None for nothing.

        Raises:
            ShardError: Other ranks have a problem and this one has none.
        """
        problems = self.exchange(step, (problem or "").encode())
        if problem:
            return
        told = [
            f"{named([rank], self.size)} failed in step '{step}': {text.decode()}"
            for rank, text in enumerate(problems)
            if text
        ]
        if told:
            raise ShardError("; ".join(told))

    def gather(self, step: str, tensor: Tensor) -> list[Tensor]:
        """Give every rank's tensor to every rank.

        Args:
            step: Name of the step.
            tensor: Of the same shape and type on all ranks.

        Returns:
            The tensors, in rank order, on the device of ``tensor``, without gradients. This rank's
            may be ``tensor`` itself.

        Raises:
            ShardError: Another rank failed, or has another shape or type.
        """
        tensor = tensor.detach().contiguous()
        with self._taking(step):
            if self.size > 1 and carries(self._group, tensor.device):
                return gather_on_devices(self._group, self._lines, _described(tensor), tensor)
            own = tensor.cpu()
            # One allocation: of several, the C library gives the pages back each time.
            held = torch.empty((self.size - 1, *own.shape), dtype=own.dtype)
            parts = dict(zip(self._lines.others, held, strict=True))
            places = {other: byte_view(part) for other, part in parts.items()}
            self._lines.transfer(_described(tensor), byte_view(own), parts, places)
            return [
                tensor if rank == self.rank else parts[rank].to(tensor.device)
                for rank in range(self.size)
            ]

    def pass_on(self, step: str, prefix: Tensor, absorb: Callable[[Tensor], Tensor]) -> Tensor:
        """Let each rank add its part to a tensor, in rank order, and give the sum to all.

        Args:
            step: Name of the step.
            prefix: What rank 0 starts from; on other ranks only its shape, type and device count.
            absorb: Returns the tensor with this rank's part, in the shape and type of ``prefix``.
                It may work in place: on rank 0 that is ``prefix`` itself.

        Returns:
            The tensor of the last rank, the same bits on all ranks, without gradients.

        Raises:
            ShardError: Another rank failed, or has another shape or type.
        """
        prefix = prefix.detach()
        what = _described(prefix)
        with self._taking(step):
            place = torch.empty(prefix.shape, dtype=prefix.dtype)
            received = byte_view(place)
            if self.rank > 0:
                self._lines.transfer(what, b"", [], {self.rank - 1: received})
            result = absorb(prefix if self.rank == 0 else place.to(prefix.device)).detach()
            if (result.shape, result.dtype) != (prefix.shape, prefix.dtype):
                raise ValueError(f"absorb must return {what}, got {_described(result)}")
            own = byte_view(result.cpu().contiguous())
            last = self.size - 1
            if self.rank < last:
                self._lines.transfer(what, own, [self.rank + 1], {})
            way = star if self._lines.on_one_machine else tree
            parent, children = way(self.rank, self.size, last)
            if parent is None:
                self._lines.transfer(what, own, children, {})
                return result
            self._lines.transfer(what, b"", [], {parent: received})
            self._lines.transfer(what, received, children, {})
            return place.to(prefix.device)

    def fail(self, step: str, error: BaseException) -> None:
        """Tell the others of an error, without waiting for them: for an interrupt.

        This ends the use of the object, here and on the other ranks.

        Args:
            step: What this rank was doing.
            error: Why it stops.
        """
        with self._lock:
            if self._broken is None:
                self._lines.begin(step)
                self._break(step, error)

    def close(self) -> None:
        """Leave: a rank that waits for this one gets an error. A second time does nothing."""
        self._broken = self._broken or "it is closed"
        self._close()

    @contextmanager
    def _taking(self, step: str) -> Iterator[None]:
        """A step: an error in it is told to the others, and ends the use of the object."""
        with self._lock:
            if self._broken is not None:
                raise ShardError(
                    f"step '{step}' needs ranks that are in step, but these are not: {self._broken}"
                )
            try:
                self._lines.begin(step)
                self._lines.check()
                yield
            except BaseException as error:
                self._break(step, error)
                raise

    def _break(self, step: str, error: BaseException) -> None:
        reason = str(error)
        if not isinstance(error, ShardError):
            what = f"{type(error).__name__}: {error}".removesuffix(": ")
            reason = f"{named([self.rank], self.size)} failed in step '{step}': {what}"
        self._broken = reason
        self._lines.tell(reason)
        self._close()


def _described(tensor: Tensor) -> str:
    return f"{type_name(tensor.dtype)} of shape {tuple(tensor.shape)}"


_OPEN: weakref.WeakSet[Lines] = weakref.WeakSet()


def _abandon_in_child() -> None:
    # A forked child that kept the connections open would hide the death of its parent.
    for lines in list(_OPEN):
        lines.abandon()


os.register_at_fork(after_in_child=_abandon_in_child)
