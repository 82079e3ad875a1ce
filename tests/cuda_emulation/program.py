"""Builds ``csrc/tests/cuda_emulation.cpp`` and runs it over files of problems."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent.parent / "csrc"
SOURCES = ("cuda/moments.cu", "cuda/emulate/block.cpp", "tests/cuda_emulation.cpp")
FLAGS = ("-std=c++17", "-g", "-ffp-contract=off", "-Wall", "-Wextra")
FAST = ("-O2",)
SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def why_not() -> str:
    """Why the kernels cannot be emulated here, or nothing."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"the emulation switches stacks of x86-64, this is {platform.machine()}"
    if shutil.which(compiler()[0]) is None:
        return f"no C++ compiler: {compiler()[0]} not found"
    return ""


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def copy_sources(folder: Path) -> Path:
    """A copy of what the program is made from, to be changed."""
    for part in ("cuda", "u8"):
        shutil.copytree(CSRC / part, folder / part)
    (folder / "tests").mkdir()
    shutil.copy(CSRC / "tests" / "cuda_emulation.cpp", folder / "tests")
    for header in CSRC.glob("*.h"):
        shutil.copy(header, folder)
    return folder


def build(csrc: Path, program: Path, flags: Sequence[str]) -> Path:
    """Compiles the program from sources.

    Raises:
        subprocess.CalledProcessError: If they do not compile; the compiler has said why.
    """
    command = [*compiler(), *FLAGS, *flags]
    objects = []
    for source in SOURCES:
        target = program.with_name(f"{program.name}-{Path(source).stem}.o")
        # A .cu file is C++ to this compiler.
        compiled = [*command, "-x", "c++", "-c", str(csrc / source), "-o", str(target)]
        subprocess.run(compiled, check=True)
        objects.append(str(target))
    subprocess.run([*command, *objects, "-o", str(program)], check=True)
    return program


def run(
    program: Path, words: Sequence[str | Path], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs it; ``words`` are options and files, see the program."""
    settings = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run(
        [str(program), *map(str, words)],
        env={**os.environ, **settings, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
