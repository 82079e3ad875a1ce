"""A GPU that is not there: its tensors have shapes and no values, and its capability is told.

Host code runs through as on the device, at any size, as long as it never waits for a value; where
it does, it fails, as it would under a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def fake_gpu(target: str) -> Iterator[None]:
    """Makes ``device="cuda"`` a GPU of that architecture, for tensors that are made inside.

    Args:
        target: Such as ``sm_90`` or ``gfx942``.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    amd = target.startswith("gfx")
    major, minor = (9, 4) if amd else divmod(int(target.removeprefix("sm_")), 10)
    properties = SimpleNamespace(major=major, minor=minor, gcnArchName=target, name=target)
    with (
        mock.patch("torch.cuda.is_available", lambda: True),
        mock.patch("torch.cuda.get_device_capability", lambda *_: (major, minor)),
        mock.patch("torch.cuda.get_device_properties", lambda *_: properties),
        mock.patch("torch.version.hip", "6.0" if amd else None),
        FakeTensorMode(),
        _WithoutGuards(),
    ):
        yield


class _WithoutGuards(TorchFunctionMode):
    """What PyTorch's bindings do under a guard of the device, which asks for a GPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__getitem__:
            tensor, index = args
            return _like(tensor, _meta(tensor)[_meta(index)])
        if func is Tensor.__setitem__:
            tensor, index, _ = args
            _meta(tensor)[_meta(index)]
            return None
        if func is Tensor.copy_:
            _meta(args[0]).copy_(_meta(args[1]))
            return args[0]
        if func is Tensor.__invert__:
            return torch.bitwise_not(*args)
        if func is Tensor.contiguous:
            return torch.clone(args[0], memory_format=torch.contiguous_format)
        return func(*args, **(kwargs or {}))


def _meta(value: Any) -> Any:
    """A tensor's shape and strides alone; tuples item by item."""
    if isinstance(value, tuple):
        return tuple(map(_meta, value))
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _like(tensor: Tensor, shape: Tensor) -> Tensor:
    return torch.empty_strided(
        shape.shape, shape.stride(), dtype=tensor.dtype, device=tensor.device
    )
