"""What ``diffgen info`` says of GPUs, in a line each: devices, the CUDA part, Triton."""

from __future__ import annotations

from diffgen.gpu_state import CudaPart, GpuState


def gpu_lines(state: GpuState) -> list[str]:
    """The lines, each with its subject in the first column."""
    return [
        *(f"gpu      {line}" for line in _devices(state)),
        f"cuda     {_cuda(state.cuda)}",
        f"triton   {_triton(state)}",
    ]


def _devices(state: GpuState) -> list[str]:
    if state.devices:
        return [
            f"{index}: {device.name}, capability {device.capability}, "
            f"{device.memory_bytes / 2**30:.1f} GiB"
            for index, device in enumerate(state.devices)
        ]
    if state.torch_cuda is None and state.torch_hip is None:
        return [f"none: torch {state.torch_version} is built for the CPU"]
    made_for = f"CUDA {state.torch_cuda}" if state.torch_cuda else f"ROCm {state.torch_hip}"
    return [f"none that torch {state.torch_version}, built for {made_for}, sees"]


def _cuda(part: CudaPart) -> str:
    if part.why_not is not None:
        return part.why_not
    machine_code = ", ".join(name for name in part.targets if name.startswith("sm_"))
    ptx = " (+PTX)" if any(name.startswith("compute_") for name in part.targets) else ""
    return f"built with CUDA {part.version} for {machine_code}{ptx}; {_cuda_devices(part)}"


def _cuda_devices(part: CudaPart) -> str:
    if part.why_no_device is not None:
        return part.why_no_device
    found = f"{part.device_count} device{'' if part.device_count == 1 else 's'}"
    return f"driver for CUDA {part.driver_version}, {found}"


def _triton(state: GpuState) -> str:
    if state.triton_version is None:
        return "not installed"
    return f"{state.triton_version} installed{'' if state.devices else '; needs a GPU'}"
