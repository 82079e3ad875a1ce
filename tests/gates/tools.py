"""What compiles and disassembles, and why it cannot where it cannot."""

from __future__ import annotations

import functools
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent

TRITON_VERSION = "3.8.0"
"""The one whose machine code the committed table describes."""


class Missing(Exception):
    """A tool is not here; the message says which, and what is needed."""


def triton() -> ModuleType:
    """Triton, of the version that the table describes.

    Raises:
        Missing: If it is not installed, or another is.
    """
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        raise Missing(f"the gate needs triton {TRITON_VERSION}, got none") from None
    if version != TRITON_VERSION:
        raise Missing(f"the gate needs triton {TRITON_VERSION}, got {version}")
    import triton as module

    return module


def cuobjdump() -> str:
    """Triton's own, which knows all that Triton compiles for; else that of a CUDA toolkit.

    Raises:
        Missing: If there is neither.
    """
    try:
        own = Path(str(triton().__file__)).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    except Missing:
        own = Path()
    for candidate in (str(own) if own.is_file() else "", shutil.which("cuobjdump")):
        if candidate:
            return candidate
    raise Missing("the gate needs cuobjdump: that of triton or of a CUDA toolkit, got none")


@functools.cache
def cuda_build() -> ModuleType:
    """The part of the build that runs nvcc."""
    sys.path.insert(0, str(ROOT / "csrc"))
    try:
        import cuda_build as module
    finally:
        sys.path.remove(str(ROOT / "csrc"))
    return module


def output(*command: object) -> str:
    """What a command writes.

    Raises:
        RuntimeError: If it fails, with what it said.
    """
    line = [str(word) for word in command]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(line[0]).name} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
