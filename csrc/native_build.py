"""Compiles the native core: standard library only, no setuptools, no torch.

``setup.py`` builds the extension with it; tests build single objects and the sanitized test
program with it, so that both see the same flags.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parent

# No fast-math: online softmax lives on infinities. No -march=native: the build runs elsewhere.
# Contraction off: where a product and a sum are fused, the source says so.
COMMON_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-fast-math",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-pthread",
    "-Wall",
    "-Wextra",
)

_ISA_LINE = re.compile(r'^DIFFGEN_ISA\(\s*(\w+)\s*,\s*(\w+)\s*,\s*"([^"]*)"\s*\)', re.MULTILINE)
_ARCHITECTURES = {"amd64": "x86_64", "aarch64": "arm64"}


class NativeBuildError(Exception):
    """The native core cannot be built here; the message says why."""


@dataclass(frozen=True)
class InstructionSet:
    """One line of ``cpu/isa_list.h``."""

    name: str
    architecture: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """One file to compile, and the flags that only this file gets."""

    path: Path
    flags: tuple[str, ...] = ()


def all_instruction_sets() -> list[InstructionSet]:
    """The lines of ``cpu/isa_list.h``, for every architecture."""
    text = (CSRC / "cpu" / "isa_list.h").read_text()
    return [
        InstructionSet(name, architecture, tuple(shlex.split(flags)))
        for name, architecture, flags in _ISA_LINE.findall(text)
    ]


def instruction_sets(machine: str | None = None) -> list[InstructionSet]:
    """The instruction sets of one architecture; of this machine's unless named."""
    here = (machine or platform.machine()).lower()
    here = _ARCHITECTURES.get(here, here)
    return [isa for isa in all_instruction_sets() if isa.architecture in ("any", here)]


def unknown_instruction_sets(compiler: Sequence[str]) -> list[InstructionSet]:
    """The instruction sets of this machine whose flags the compiler does not know."""

    def knows(flags: Sequence[str]) -> bool:
        command = [*compiler, *flags, "-x", "c++", "-fsyntax-only", os.devnull]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    return [isa for isa in instruction_sets() if not knows(isa.flags)]


def kernel_source(isa: InstructionSet) -> Source:
    """The source of one instruction set, with the flags of its line."""
    return Source(CSRC / "cpu" / f"kernels_{isa.name}.cpp", isa.flags)


def core_sources(machine: str | None = None) -> list[Source]:
    """All but the Python binding: the kernels of this architecture, then what drives them."""
    kernels = [kernel_source(isa) for isa in instruction_sets(machine)]
    drivers = [
        Source(path)
        for path in sorted((CSRC / "cpu").rglob("*.cpp"))
        if not path.name.startswith("kernels_")
    ]
    return kernels + drivers


def find_compiler() -> list[str]:
    """The C++ compiler: ``CXX`` where it is set, else the first that answers.

    Raises:
        NativeBuildError: If none answers.
    """
    named = os.environ.get("CXX")
    candidates = [named] if named else ["c++", "g++", "clang++"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if shutil.which(command[0]) and _answers(command):
            return command
    tried = " or ".join(candidates)
    raise NativeBuildError(f"no working C++ compiler: tried {tried}")


def _answers(command: list[str]) -> bool:
    asked = subprocess.run([*command, "--version"], capture_output=True, check=False)
    return asked.returncode == 0


def compiler_version(compiler: Sequence[str]) -> str:
    """The first line of the compiler's ``--version``."""
    asked = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True)
    return asked.stdout.splitlines()[0]


def compile_objects(
    compiler: Sequence[str], sources: Iterable[Source], folder: Path, flags: Sequence[str] = ()
) -> list[Path]:
    """Compiles the sources, side by side, and returns their objects.

    An object's name carries a digest of all that it is made from; one that is there already is
    taken as it is. Instruction sets that the compiler does not know are left out.

    Raises:
        NativeBuildError: If a source does not compile; the message has the first error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    core, whole = state_of(compiler, whole=False), state_of(compiler, whole=True)
    unknown = unknown_instruction_sets(compiler)
    left_out = {kernel_source(isa).path for isa in unknown}
    flags = [*flags, *(f"-DDIFFGEN_WITHOUT_{isa.name}" for isa in unknown)]

    def build(source: Source) -> Path:
        options = [*shlex.split(os.environ.get("CXXFLAGS", "")), *COMMON_FLAGS]
        options += [*source.flags, *flags]
        ours = CSRC in source.path.parents and not _of_cuda(source.path)
        state = core if ours else whole
        digest = hashlib.sha256(f"{state}\n{options}".encode() + source.path.read_bytes())
        target = folder / f"{source.path.stem}-{digest.hexdigest()[:16]}.o"
        if not target.exists():
            unfinished = target.with_suffix(f".{os.getpid()}.tmp")
            command = [*compiler, *options, "-c", str(source.path), "-o", str(unfinished)]
            run_command(command, f"{source.path.name} does not compile")
            unfinished.replace(target)
        return target

    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        return list(pool.map(build, (source for source in sources if source.path not in left_out)))


def state_of(compiler: Sequence[str], whole: bool) -> str:
    """Digest of the compiler and of the native sources.

    The CPU core includes nothing of CUDA, so that a change there does not compile it again; the
    sources of others, tests for one, may include anything.
    """
    digest = hashlib.sha256(compiler_version(compiler).encode())
    for path in sorted(CSRC.rglob("*")):
        if path.suffix in {".h", ".inl", ".cpp", ".cuh", ".cu"} and (whole or not _of_cuda(path)):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _of_cuda(path: Path) -> bool:
    return any(part.startswith("cuda") for part in path.relative_to(CSRC).parts)


def link(
    compiler: Sequence[str], objects: Iterable[Path], target: Path, flags: Sequence[str]
) -> None:
    """Links objects into a program or, with the flags for it, a library.

    Raises:
        NativeBuildError: If they do not link.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    options = [*flags, "-pthread", *shlex.split(os.environ.get("LDFLAGS", ""))]
    command = [*compiler, *map(str, objects), "-o", str(target), *options]
    run_command(command, f"{target.name} does not link")


def module_flags() -> list[str]:
    """The flags that make a Python extension module."""
    if sys.platform == "darwin":
        return ["-bundle", "-undefined", "dynamic_lookup"]
    return ["-shared"]


def run_command(command: Sequence[str], what: str) -> None:
    """Runs one build command and passes on what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout + done.stderr, end="", file=sys.stderr)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        said = errors[0].strip() if errors else f"exit status {done.returncode}"
        raise NativeBuildError(f"{what}: {said}")
