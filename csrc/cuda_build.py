"""Compiles the CUDA part of diffgen: standard library only, no setuptools, no torch.

It is a module of its own, so that a process on the CPU never loads anything of CUDA. nvcc is all
that it needs: a machine without a GPU builds it too. Device code is compiled by nvcc for each
architecture, the Python binding by the C++ compiler alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import native_build as native

OLDEST = 80
"""The kernels use mma.sync on 8-bit integers of 32 columns and cp.async: compute capability 8.0."""

USUAL = (80, 90, 100)
"""The architectures that are compiled for where nothing else is asked for."""

# No fused multiply-add, as on the CPU: where a product and a sum are fused, the source says so.
DEVICE_FLAGS = (
    "-std=c++17",
    "-O3",
    "--fmad=false",
    "--threads=0",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra",
)


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that answers.

    Attributes:
        nvcc: The command.
        version: Of the toolkit, such as ``13.0``.
        known: The architectures that it compiles for, ascending.
    """

    nvcc: tuple[str, ...]
    version: str
    known: tuple[int, ...]


def find_toolkit() -> Toolkit:
    """The toolkit of ``CUDACXX``, else of ``CUDA_HOME``, of ``PATH``, of ``/usr/local/cuda``.

    Raises:
        NativeBuildError: If there is none, or the one that is named does not answer.
    """
    named = os.environ.get("CUDACXX")
    if named:
        toolkit = _toolkit(tuple(shlex.split(named)))
        if toolkit is None:
            raise native.NativeBuildError(f"CUDACXX must name a working nvcc, got {named!r}")
        return toolkit
    home = os.environ.get("CUDA_HOME")
    candidates = [str(Path(home, "bin", "nvcc"))] if home else []
    for candidate in [*candidates, "nvcc", "/usr/local/cuda/bin/nvcc"]:
        toolkit = _toolkit((candidate,))
        if toolkit is not None:
            return toolkit
    raise native.NativeBuildError(
        "nvcc not found: tried CUDACXX, CUDA_HOME, PATH and /usr/local/cuda"
    )


def _toolkit(nvcc: tuple[str, ...]) -> Toolkit | None:
    if shutil.which(nvcc[0]) is None:
        return None
    version = re.search(r"release (\d+\.\d+)", _output(nvcc, "--version"))
    known = re.findall(r"^compute_(\d+)$", _output(nvcc, "--list-gpu-arch"), re.MULTILINE)
    return Toolkit(nvcc, version[1], tuple(sorted(map(int, known)))) if version else None


def _output(command: Sequence[str], option: str) -> str:
    asked = subprocess.run([*command, option], capture_output=True, text=True, check=False)
    return asked.stdout if asked.returncode == 0 else ""


def architectures(toolkit: Toolkit) -> list[int]:
    """What to compile for: ``DIFFGEN_CUDA_ARCHS``, such as ``80;90``, or the usual ones.

    Args:
        toolkit: Those that it does not know are left out of the usual ones, and refused where
            they are asked for.

    Returns:
        Compute capabilities times ten, ascending.

    Raises:
        NativeBuildError: For one that is no number, too old for the kernels or unknown to nvcc.
    """
    possible = [number for number in toolkit.known if number >= OLDEST]
    asked = os.environ.get("DIFFGEN_CUDA_ARCHS", "").strip()
    if not asked:
        usual = [number for number in USUAL if number in possible]
        if not usual:
            wanted = ", ".join(map(str, USUAL))
            raise native.NativeBuildError(
                f"nvcc {toolkit.version} knows none of the architectures {wanted}"
            )
        return usual
    words = [word.strip() for word in asked.split(";") if word.strip()]
    numbers = sorted({int(word) for word in words if word.isdecimal()})
    refused = [word for word in words if not word.isdecimal() or int(word) not in possible]
    if refused or not numbers:
        raise native.NativeBuildError(
            f"DIFFGEN_CUDA_ARCHS must be numbers that nvcc {toolkit.version} knows, {OLDEST} or "
            f"more ({', '.join(map(str, possible))}), separated by semicolons, got {asked!r}"
        )
    return numbers


def targets(numbers: Sequence[int]) -> list[str]:
    """What the objects hold: machine code for each, and PTX of the highest for later devices."""
    return [*(f"sm_{number}" for number in numbers), f"compute_{max(numbers)}"]


def device_sources() -> list[Path]:
    """The device code.

    Raises:
        NativeBuildError: If there is none.
    """
    sources = sorted((native.CSRC / "cuda").rglob("*.cu"))
    if not sources:
        raise native.NativeBuildError("no CUDA sources in csrc/cuda")
    return sources


def compile_device(
    toolkit: Toolkit,
    compiler: Sequence[str],
    sources: Iterable[Path],
    folder: Path,
    numbers: Sequence[int],
) -> list[Path]:
    """Compiles device code, side by side, and returns its objects.

    Args:
        toolkit: Whose nvcc compiles.
        compiler: The C++ compiler, which nvcc hands the host code to.
        sources: What to compile.
        folder: Where the objects go; one that is there already and is made from the same is taken.
        numbers: The architectures, see ``architectures``.

    Raises:
        NativeBuildError: If a source does not compile; the message has the first error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = [*DEVICE_FLAGS, *_host_compiler(compiler), *_define(numbers)]
    for number in numbers:
        code = f"sm_{number},compute_{number}" if number == max(numbers) else f"sm_{number}"
        options.append(f"-gencode=arch=compute_{number},code=[{code}]")
    versions = native.compiler_version(toolkit.nvcc) + toolkit.version
    state = versions + native.state_of(compiler, whole=True)

    def build(source: Path) -> Path:
        digest = hashlib.sha256(f"{state}\n{options}".encode() + source.read_bytes())
        target = folder / f"{source.stem}-{digest.hexdigest()[:16]}.o"
        if not target.exists():
            unfinished = target.with_suffix(f".{os.getpid()}.tmp")
            command = [*toolkit.nvcc, *options, "-c", str(source), "-o", str(unfinished)]
            native.run_command(command, f"{source.name} does not compile")
            unfinished.replace(target)
        return target

    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        return list(pool.map(build, sources))


def build_module(
    binding_flags: Sequence[str], folder: Path, module: Path
) -> tuple[str, list[Path]]:
    """Builds the extension module.

    Args:
        binding_flags: Where the headers of Python and pybind11 are.
        folder: Where the objects go.
        module: The module to write.

    Returns:
        What was built, in words, and the objects.

    Raises:
        NativeBuildError: If it cannot be built here.
    """
    sources = device_sources()
    toolkit = find_toolkit()
    numbers = architectures(toolkit)
    compiler = native.find_compiler()
    flags = (*binding_flags, *_define(numbers), f'-DDIFFGEN_CUDA_VERSION="{toolkit.version}"')
    binding = native.Source(native.CSRC / "cuda_bindings.cpp", flags)
    objects = native.compile_objects(compiler, [binding], folder)
    objects += compile_device(toolkit, compiler, sources, folder, numbers)
    _link(toolkit, compiler, objects, module)
    return f"CUDA {toolkit.version} for {words(targets(numbers))}", objects


def words(built: Sequence[str]) -> str:
    """Targets for people.

    Example:
        >>> words(["sm_80", "sm_90", "compute_90"])
        'sm_80, sm_90 (+PTX)'
    """
    return f"{', '.join(name for name in built if name.startswith('sm_'))} (+PTX)"


def _link(toolkit: Toolkit, compiler: Sequence[str], objects: Iterable[Path], module: Path) -> None:
    """Links by nvcc, which knows where its runtime is.

    The runtime is linked in and kept to the module: PyTorch brings one of its own, perhaps of
    another version, and its symbols must not be taken for ours.
    """
    module.parent.mkdir(parents=True, exist_ok=True)
    options = ["-shared", "--cudart=static", "-Xlinker=--exclude-libs,ALL", "-Xcompiler=-pthread"]
    command = [*toolkit.nvcc, *options, *_host_compiler(compiler), *map(str, objects)]
    native.run_command([*command, "-o", str(module)], f"{module.name} does not link")


def _host_compiler(compiler: Sequence[str]) -> list[str]:
    path = shutil.which(compiler[0]) or compiler[0]
    return [f"-ccbin={path}", *(f"-Xcompiler={word}" for word in compiler[1:])]


def _define(numbers: Sequence[int]) -> list[str]:
    return [f'-DDIFFGEN_CUDA_TARGETS="{";".join(targets(numbers))}"']
