"""What is found of GPUs, and how ``diffgen info`` says it."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffgen import gpu_state
from diffgen.backends import native_cuda
from diffgen.cli.gpu_text import gpu_lines
from diffgen.cli.main import main
from diffgen.gpu_state import CudaPart, Device, GpuState

BUILT = CudaPart(None, "13.0", ("sm_80", "sm_90", "compute_90"), "13.0", 1)
NOTHING = GpuState("2.13.0+cpu", None, None, (), CudaPart("built without CUDA (no nvcc)"), None)
H100 = Device("NVIDIA H100", "9.0", 80 * 2**30)


def native(driver: int, count: int, error: str | None) -> Any:
    return SimpleNamespace(
        version=lambda: "13.0",
        targets=lambda: "sm_80;compute_80",
        device_state=lambda: {"driver_version": driver, "device_count": count, "error": error},
    )


def test_state_of_this_machine_is_told_by_torch() -> None:
    state = gpu_state.gpu_state()
    assert state.torch_cuda == torch.version.cuda
    assert len(state.devices) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert (state.cuda.why_not is None) == (native_cuda.load_native_cuda() is not None)
    assert json.loads(json.dumps(dataclasses.asdict(state)))["torch_version"] == torch.__version__


@pytest.mark.parametrize(
    ("module", "part"),
    [
        (native(13000, 2, None), ("13.0", 2, None)),
        (native(0, 0, "E, 35"), (None, 0, "no driver (E, 35)")),
        (native(12060, 0, "E, 35"), ("12.6", 0, "driver for CUDA 12.6 (E, 35)")),
        (native(12060, 0, None), ("12.6", 0, "no CUDA device")),
    ],
)
def test_cuda_part_says_what_it_sees(
    monkeypatch: pytest.MonkeyPatch, module: Any, part: tuple[Any, ...]
) -> None:
    monkeypatch.setattr(gpu_state, "load_native_cuda", lambda: module)
    found = gpu_state.cuda_part()
    assert (found.driver_version, found.device_count, found.why_no_device) == part
    assert (found.why_not, found.version, found.targets) == (
        None,
        "13.0",
        ("sm_80", "compute_80"),
    )


def test_cuda_part_that_is_missing_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_state, "load_native_cuda", lambda: None)
    monkeypatch.setattr(gpu_state, "why_not_native_cuda", lambda: "built without CUDA (no nvcc)")
    assert gpu_state.cuda_part() == NOTHING.cuda


def test_devices_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name=H100.name, major=9, minor=0, total_memory=H100.memory_bytes)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert gpu_state.gpu_state().devices == (H100, H100)


def test_a_torch_for_the_cpu_is_not_asked_for_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> bool:
        raise AssertionError

    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", asked)
    assert gpu_state.gpu_state().devices == ()


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {},
            [
                "gpu      none: torch 2.13.0+cpu is built for the CPU",
                "cuda     built without CUDA (no nvcc)",
                "triton   not installed",
            ],
        ),
        (
            {"torch_cuda": "12.8", "cuda": BUILT, "triton_version": "3.8.0"},
            [
                "gpu      none that torch 2.13.0+cpu, built for CUDA 12.8, sees",
                "cuda     built with CUDA 13.0 for sm_80, sm_90 (+PTX); driver for CUDA 13.0, "
                "1 device",
                "triton   3.8.0 installed; needs a GPU",
            ],
        ),
        (
            {
                "torch_hip": "6.4",
                "cuda": dataclasses.replace(BUILT, why_no_device="no driver (E, 35)"),
            },
            [
                "gpu      none that torch 2.13.0+cpu, built for ROCm 6.4, sees",
                "cuda     built with CUDA 13.0 for sm_80, sm_90 (+PTX); no driver (E, 35)",
                "triton   not installed",
            ],
        ),
        (
            {"devices": (H100, H100), "triton_version": "3.8.0"},
            [
                "gpu      0: NVIDIA H100, capability 9.0, 80.0 GiB",
                "gpu      1: NVIDIA H100, capability 9.0, 80.0 GiB",
                "cuda     built without CUDA (no nvcc)",
                "triton   3.8.0 installed",
            ],
        ),
    ],
)
def test_lines_say_what_there_is(changes: dict[str, Any], lines: list[str]) -> None:
    assert gpu_lines(dataclasses.replace(NOTHING, **changes)) == lines


def test_info_says_it_in_text_and_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["info", "--backend", "reference", "--no-speed"]
    assert main(quick) == 0
    printed = capsys.readouterr().out
    for line in gpu_lines(gpu_state.gpu_state()):
        assert f"\n{line}\n" in printed
    assert main([*quick, "--json"]) == 0
    gpu = json.loads(capsys.readouterr().out)["gpu"]
    assert gpu["torch_version"] == torch.__version__
    assert set(gpu) == {field.name for field in dataclasses.fields(GpuState)}
