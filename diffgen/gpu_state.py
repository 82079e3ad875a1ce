"""Which GPUs are here and what of diffgen can use them: facts, gathered when somebody asks.

Asking starts no GPU: PyTorch is asked about devices only where it is built for them, and the CUDA
part for the versions of driver and runtime and the number of devices.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

import torch

from diffgen.backends.native_cuda import (
    cuda_version,
    load_native_cuda,
    why_no_device,
    why_not_native_cuda,
)

_TRITON_NAMES = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows")


@dataclass(frozen=True)
class Device:
    """A GPU that PyTorch sees.

    Attributes:
        name: As its maker calls it.
        capability: Such as ``9.0``.
        memory_bytes: All that it has.
    """

    name: str
    capability: str
    memory_bytes: int


@dataclass(frozen=True)
class CudaPart:
    """The native module of CUDA kernels.

    Attributes:
        why_not: Why there is none; None when it is built and loads.
        version: Of the toolkit that compiled it, such as ``13.0``.
        targets: What it is compiled for, such as ``sm_90`` and, for PTX, ``compute_90``.
        driver_version: The latest CUDA that the driver runs, such as ``12.6``; None without one.
        device_count: Devices that it sees.
        why_no_device: Why it sees none; None when it does.
    """

    why_not: str | None
    version: str | None = None
    targets: tuple[str, ...] = ()
    driver_version: str | None = None
    device_count: int = 0
    why_no_device: str | None = None


@dataclass(frozen=True)
class GpuState:
    """All of it.

    Attributes:
        torch_version: Of PyTorch.
        torch_cuda: CUDA that PyTorch is built with, such as ``12.8``; None for a CPU build.
        torch_hip: The same for ROCm.
        devices: GPUs that PyTorch sees.
        cuda: The CUDA part of diffgen.
        triton_version: Of the Triton that is installed; None without.
    """

    torch_version: str
    torch_cuda: str | None
    torch_hip: str | None
    devices: tuple[Device, ...]
    cuda: CudaPart
    triton_version: str | None


def gpu_state() -> GpuState:
    """The state of this machine.

    Example:
        >>> state = gpu_state()
        >>> state.torch_cuda is not None or state.torch_hip is not None or state.devices == ()
        True
    """
    return GpuState(
        torch_version=str(torch.__version__),
        torch_cuda=torch.version.cuda,
        torch_hip=torch.version.hip,
        devices=_devices(),
        cuda=cuda_part(),
        triton_version=_triton_version(),
    )


def _devices() -> tuple[Device, ...]:
    if torch.version.cuda is None and torch.version.hip is None:
        return ()
    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return tuple(Device(p.name, f"{p.major}.{p.minor}", p.total_memory) for p in found)


def cuda_part() -> CudaPart:
    """The CUDA part of diffgen on this machine."""
    native = load_native_cuda()
    if native is None:
        return CudaPart(why_not_native_cuda())
    state = native.device_state()
    return CudaPart(
        why_not=None,
        version=native.version(),
        targets=tuple(native.targets().split(";")),
        driver_version=cuda_version(state["driver_version"]),
        device_count=state["device_count"],
        why_no_device=why_no_device(native),
    )


def _triton_version() -> str | None:
    for name in _TRITON_NAMES:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
