"""The CUDA part of diffgen, where it was built; and why not, where it was not.

It is loaded when a problem on a GPU asks for it, or somebody asks what runs here: a process on the
CPU never loads it.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType

_NOT_BUILT = "CUDA part not built: "


@cache
def _import() -> ModuleType | ImportError:
    try:
        return importlib.import_module("diffgen._native_cuda")
    except ImportError as error:
        return error


def load_native_cuda() -> ModuleType | None:
    """The module ``diffgen._native_cuda``, or None where it is not built or does not load."""
    found = _import()
    return found if isinstance(found, ModuleType) else None


def why_not_native_cuda() -> str | None:
    """Why there is no CUDA part, in the words of the build; None when there is one."""
    found = _import()
    if isinstance(found, ModuleType):
        return None
    record = cuda_build_record()
    if record is None:
        return "built without CUDA (no record of a build)"
    if record.startswith(_NOT_BUILT):
        return f"built without CUDA ({record.removeprefix(_NOT_BUILT)})"
    return f"the CUDA part does not load: {found}"


def cuda_build_record() -> str | None:
    """What the build wrote about the CUDA part: what it is for, or the reason of its failure."""
    path = Path(__file__).parents[1] / "_native_cuda_build.txt"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def why_no_device(native: ModuleType) -> str | None:
    """Why CUDA finds no device here; None when it does. Asks the driver, where there is one.

    Args:
        native: Of ``load_native_cuda``.
    """
    state = native.device_state()
    if state["error"] is not None:
        driver = cuda_version(state["driver_version"])
        here = "no driver" if driver is None else f"driver for CUDA {driver}"
        return f"{here} ({state['error']})"
    return None if state["device_count"] else "no CUDA device"


def cuda_version(number: int) -> str | None:
    """CUDA's 12060 as 12.6; it has 0 for none."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None
