"""Problems and results on their way to a device and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")


def placed(value: T, device: torch.device) -> T:
    """A dataclass such as ``Problem`` with all its tensors on the device."""
    parts = {
        field.name: part.to(device)
        for field in dataclasses.fields(value)  # type: ignore[arg-type]
        if isinstance(part := getattr(value, field.name), Tensor)
    }
    return dataclasses.replace(value, **parts)  # type: ignore[type-var]


def brought(results: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Results on the CPU."""
    return tuple(result.cpu() for result in results)


class NoWaiting(TorchDispatchMode):
    """Refuses the operations by which the host reads a tensor, or needs its values for a shape."""

    WAITING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))
