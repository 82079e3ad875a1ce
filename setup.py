"""Builds the optional native core; everything else is in pyproject.toml.

``DIFFGEN_NO_NATIVE=1`` leaves it out; ``DIFFGEN_REQUIRE_NATIVE=1`` makes a failure an error.
Without either a failure leaves a working, pure Python package that knows why.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

import native_build as native  # noqa: E402

# Read by the package: how its native core came about, or why there is none.
RECORD = "_native_build.txt"


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


class BuildNative(build_ext):
    """Compiles each source with its own flags and writes the record beside the module."""

    def build_extension(self, ext: Extension) -> None:
        """Builds the module, or notes why it could not be built."""
        module = Path(self.build_lib, self.get_ext_filename(ext.name))
        module.parent.mkdir(parents=True, exist_ok=True)
        try:
            record = f"native core built by {self._build(module)}"
        except (native.NativeBuildError, OSError) as error:
            if _asked("DIFFGEN_REQUIRE_NATIVE"):
                raise
            record = f"native core not built: {error}"
            module.unlink(missing_ok=True)
        print(f"diffgen: {record}", file=sys.stderr)
        module.with_name(RECORD).write_text(record + "\n", encoding="utf-8")

    def copy_extensions_to_source(self) -> None:
        """Brings an editable install's module and record into the source tree."""
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            in_place, built = map(Path, self._get_inplace_equivalent(build_py, ext))
            in_place.unlink(missing_ok=True)
            if built.exists():
                shutil.copy2(built, in_place)
            shutil.copy2(built.with_name(RECORD), in_place.with_name(RECORD))

    def _build(self, module: Path) -> str:
        if _asked("DIFFGEN_NO_NATIVE"):
            raise native.NativeBuildError("DIFFGEN_NO_NATIVE is set")
        if sys.platform == "win32":
            raise native.NativeBuildError("it is not built on Windows yet")
        compiler = native.find_compiler()
        folder = ROOT / "build" / "objects"
        binding = native.Source(native.CSRC / "bindings.cpp", tuple(_binding_flags()))
        objects = native.compile_objects(compiler, [binding, *native.core_sources()], folder)
        native.link(compiler, objects, module, native.module_flags())
        _drop_others(folder, objects)
        unknown = native.unknown_instruction_sets(compiler)
        levels = ", ".join(isa.name for isa in native.instruction_sets() if isa not in unknown)
        return f"{native.compiler_version(compiler)} for {levels}"


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
        ext_modules=[Extension("diffgen._native", sources=[], optional=True)],
        cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
    )
