"""Builds the optional native modules; everything else is in pyproject.toml.

``diffgen._native`` is the CPU core, ``diffgen._native_cuda`` the CUDA part, built wherever nvcc is,
GPU or not. ``DIFFGEN_NO_NATIVE=1`` leaves both out, ``DIFFGEN_NO_CUDA=1`` the second;
``DIFFGEN_REQUIRE_NATIVE=1`` and ``DIFFGEN_REQUIRE_CUDA=1`` make a failure an error. Without them a
failure leaves a working package that knows why. ``DIFFGEN_CUDA_ARCHS``, such as ``80;90``, chooses
what the CUDA part is compiled for.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

import cuda_build as cuda  # noqa: E402
import native_build as native  # noqa: E402


@dataclass(frozen=True)
class Part:
    """One native module.

    Attributes:
        words: What messages call it.
        record: Read by the package: how the module came about, or why there is none.
        declined: Variables that leave it out.
        required: The variable that makes a failure an error.
        build: Writes the module and returns what it was built by.
    """

    words: str
    record: str
    declined: tuple[str, ...]
    required: str
    build: Callable[[Path], str]


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


def _build_core(module: Path) -> str:
    compiler = native.find_compiler()
    folder = ROOT / "build" / "objects"
    binding = native.Source(native.CSRC / "bindings.cpp", tuple(_binding_flags()))
    objects = native.compile_objects(compiler, [binding, *native.core_sources()], folder)
    native.link(compiler, objects, module, native.module_flags())
    _drop_others(folder, objects)
    unknown = native.unknown_instruction_sets(compiler)
    levels = ", ".join(isa.name for isa in native.instruction_sets() if isa not in unknown)
    return f"{native.compiler_version(compiler)} for {levels}"


def _build_cuda(module: Path) -> str:
    folder = ROOT / "build" / "cuda_objects"
    built, objects = cuda.build_module(_binding_flags(), folder, module)
    _drop_others(folder, objects)
    return built


PARTS = {
    "diffgen._native": Part(
        "native core",
        "_native_build.txt",
        ("DIFFGEN_NO_NATIVE",),
        "DIFFGEN_REQUIRE_NATIVE",
        _build_core,
    ),
    "diffgen._native_cuda": Part(
        "CUDA part",
        "_native_cuda_build.txt",
        ("DIFFGEN_NO_NATIVE", "DIFFGEN_NO_CUDA"),
        "DIFFGEN_REQUIRE_CUDA",
        _build_cuda,
    ),
}


class BuildNative(build_ext):
    """Compiles each source with its own flags and writes a record beside each module."""

    def build_extension(self, ext: Extension) -> None:
        """Builds the module, or notes why it could not be built."""
        part = PARTS[ext.name]
        module = Path(self.build_lib, self.get_ext_filename(ext.name))
        module.parent.mkdir(parents=True, exist_ok=True)
        try:
            record = f"{part.words} built by {_build(part, module)}"
        except (native.NativeBuildError, OSError) as error:
            if _asked(part.required):
                raise
            record = f"{part.words} not built: {error}"
            module.unlink(missing_ok=True)
        print(f"diffgen: {record}", file=sys.stderr)
        module.with_name(part.record).write_text(record + "\n", encoding="utf-8")

    def copy_extensions_to_source(self) -> None:
        """Brings an editable install's modules and records into the source tree."""
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            in_place, built = map(Path, self._get_inplace_equivalent(build_py, ext))
            in_place.unlink(missing_ok=True)
            if built.exists():
                shutil.copy2(built, in_place)
            record = PARTS[ext.name].record
            shutil.copy2(built.with_name(record), in_place.with_name(record))


def _build(part: Part, module: Path) -> str:
    for variable in part.declined:
        if _asked(variable):
            raise native.NativeBuildError(f"{variable} is set")
    if sys.platform == "win32":
        raise native.NativeBuildError("it is not built on Windows yet")
    return part.build(module)


def _binding_flags() -> list[str]:
    try:
        import pybind11
    except ImportError as error:
        raise native.NativeBuildError(f"{error} (a build requirement)") from error
    # -isystem: warnings of headers that are not ours are not ours.
    folders = [pybind11.get_include(), sysconfig.get_path("include")]
    return [flag for folder in folders for flag in ("-isystem", folder)]


def _drop_others(folder: Path, objects: list[Path]) -> None:
    for path in set(folder.iterdir()) - set(objects):
        path.unlink()


class BuildPython(build_py):
    """Starts from an empty folder: what an earlier build left there would get into the wheel."""

    def run(self) -> None:
        """Copies the package."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "diffgen"), ignore_errors=True)
        super().run()


if __name__ == "__main__":
    setup(
        ext_modules=[Extension(name, sources=[], optional=True) for name in PARTS],
        cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
    )
