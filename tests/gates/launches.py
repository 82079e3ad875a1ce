"""What the CUDA part's launches ask for: found by running its host code without a GPU.

Dynamic shared memory is decided at a launch, so that the machine code does not tell. The host code
is linked with a runtime that writes launches down instead of starting them.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .cuda_build import SOURCES, short_names, sources
from .jobs import cache_folder
from .tools import ROOT, cuda_build, output

RECORDER = Path(__file__).with_name("record_launches.cpp")

# Of the runtime's functions, those that the recorder has in their place.
_REPLACED = (
    "__cudaRegisterFunction",
    "cudaLaunchKernel",
    "cudaFuncSetAttribute",
    "cudaMemsetAsync",
    "cudaGetLastError",
)


@dataclass(frozen=True)
class Launch:
    """What launches of one kernel ask for.

    Attributes:
        threads: Of a block, at most.
        shared: Bytes of dynamic shared memory of a block, at most.
    """

    threads: int
    shared: int


def recorded() -> dict[str, Launch]:
    """The launches of each kernel; one that is not in it has none for the recorder's shapes.

    Raises:
        RuntimeError: If the host code does not build, or fails on a shape.
    """
    place = cache_folder() / f"launches-{_digest()}.txt"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        lines = sorted(set(_record().splitlines()))
        place.write_text("\n".join(lines))
    return read(place.read_text())


def read(lines: str) -> dict[str, Launch]:
    """The launches of each kernel, of the recorder's lines."""
    launches = [line.split() for line in lines.splitlines()]
    names = short_names(sorted({mangled for mangled, _, _ in launches}))
    most: dict[str, Launch] = {}
    for mangled, threads, shared in launches:
        known = most.get(names[mangled], Launch(0, 0))
        most[names[mangled]] = Launch(
            max(known.threads, int(threads)), max(known.shared, int(shared))
        )
    return most


def _record() -> str:
    build = cuda_build()
    nvcc = build.find_toolkit().nvcc
    # No launch depends on how well device code is compiled, and this takes a quarter of the time.
    flags = [*build.DEVICE_FLAGS, "-Xcicc=-O0", "-Xptxas=-O0", '-DDIFFGEN_CUDA_TARGETS="sm_80"']
    wraps = [f"-Xlinker=--wrap={name}" for name in _REPLACED]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "record_launches")
        output(*nvcc, *flags, "-arch=sm_80", *wraps, RECORDER, *sources(), "-o", program)
        return output(program)


def _digest() -> str:
    build = cuda_build()
    digest = hashlib.sha256(repr((build.find_toolkit(), build.DEVICE_FLAGS)).encode())
    for path in [RECORDER, Path(__file__), *sorted((ROOT / "csrc").rglob("*"))]:
        if path.suffix in (*SOURCES, ".cpp", ".py"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:32]
