"""One command in several processes, as ``torchrun`` starts them.

Every process makes the same calls with the same seeds and holds a part of the training set. The
first one alone prints and writes files.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from diffgen.errors import ShardError
from diffgen.set_arguments import Index
from diffgen.sharding import PATIENCE_S
from diffgen.sharding.groups import process_group, store_of
from diffgen.sharding.words import named
from diffgen.training_set import TrainingSet

ONE, SHARED, OWN = "one", "shared", "own"
"""What a command does in several processes: it refuses; they share the training set; or it sees
to them itself."""

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR")


def count() -> int:
    """How many processes were started together."""
    if any(name not in os.environ for name in _VARIABLES):
        return 1
    return int(os.environ["WORLD_SIZE"])


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return count() == 1 or int(os.environ["RANK"]) == 0


def who() -> str:
    """How messages begin: with the rank, except in the first process.

    Example:
        >>> who()
        ''
    """
    return "" if is_first() else f"{named([int(os.environ['RANK'])], count())}: "


def local_device(name: str) -> torch.device:
    """The device of a name; of several GPUs, that which belongs to this process.

    Raises:
        ValueError: There is no such device.

    Example:
        >>> local_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device must be a device of torch, got {name!r}") from None
    if device.type == "cuda":
        if device.index is None and count() > 1:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        found = torch.cuda.device_count()
        if (device.index or 0) >= found:
            raise ValueError(f"--device must be a GPU that is there, got {device} of {found}")
    return device


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that is printed shows, progress bars included, but in the first process."""
    if is_first():
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """The process group of a command, where several processes run it.

    Args:
        args: Its arguments, with what ``add_command`` set in ``group``.

    Raises:
        ValueError: The command runs in one process.
        ShardError: The others did not come.
    """
    if count() == 1 or args.group == OWN:
        yield
        return
    if args.group == ONE:
        raise ValueError(f"diffgen {args.command} runs in one process, got {count()}")
    _join(local_device(getattr(args, "device", "cpu")))
    try:
        with _terminable():
            yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, which torchrun sends when another process has failed, lets finished work be kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave_in_order(number: int, frame: object) -> None:
        # One that is leaving for another reason is just writing what was finished.
        if sys.exc_info()[0] is None:
            raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave_in_order)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _join(device: torch.device) -> None:
    if not dist.is_available():
        raise ValueError("several processes need torch.distributed, which this torch lacks")
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=PATIENCE_S))
    except RuntimeError as error:  # what torch's own errors of groups are
        raise ShardError(f"{count()} processes could not find each other: {error}") from error


def leave() -> bool:
    """Leave the others, to go on alone; whether this process is the one that does.

    What the first process starts afterwards finds one process, as if there had been no others.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    if not is_first():
        return False
    for name in (*_VARIABLES, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    return True


def says(message: str) -> bool:
    """Whether this process is to print an error: the first one that has it does.

    Errors of one process show, and what all of them run into shows once.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return True
    name = hashlib.sha256(message.encode()).hexdigest()
    try:
        return store_of(process_group(None)).add(f"diffgen/said/{name}", 1) == 1
    except RuntimeError:  # the store has ended, with the process that kept it
        return True


def agreed(value: Any) -> Any:
    """The value of the first process, in all of them.

    Args:
        value: Picklable; counts in the first process.

    Raises:
        ShardError: The first process has ended.
    """
    if is_alone():
        return value
    found = [value]
    try:
        dist.broadcast_object_list(found, src=0)
    except RuntimeError as error:
        raise ShardError(f"rank 0 of {count()} has ended: {error}") from error
    return found[0]


def is_alone() -> bool:
    """Whether no process shares the training set with this one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def shared(
    training_set: TrainingSet,
    in_memory: bool | None,
    device: torch.device,
    rows_on_host: bool,
) -> TrainingSet:
    """The set for a denoiser: of several processes, each holds a part.

    All processes call it. The set that is given goes on to serve rows, which it must hold.

    Args:
        training_set: The whole set.
        in_memory: Whether the own part is read into memory; None for what its size suggests.
        device: Where to.
        rows_on_host: Whether the rows stay where they are and are copied in every pass.

    Raises:
        ShardError: Another process has another set.
    """
    if is_alone():
        return training_set.to(device, rows_on_host=rows_on_host)
    shard = training_set.shard(dist.get_rank(), dist.get_world_size(), in_memory=in_memory)
    return _Shard.beside(training_set, shard.to(device, rows_on_host=rows_on_host))


class _Shard(TrainingSet):
    """A shard beside the whole set: rows by number, and the digest, come from there."""

    _whole: TrainingSet

    @classmethod
    def beside(cls, whole: TrainingSet, shard: TrainingSet) -> _Shard:
        """The shard, with the set it was cut from."""
        made = cls.__new__(cls)
        made._set(shard._contents)
        made._whole = whole
        return made

    def __getitem__(self, index: int | Index) -> torch.Tensor:
        """Points, as the whole set has them."""
        return self._whole[index].to(self.device)

    @property
    def sha256(self) -> str:
        """That of the whole set."""
        return self._whole.sha256
