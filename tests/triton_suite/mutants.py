"""Copies of kernels with one mask dropped, put in the place of the originals."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import diffgen.backends.triton as package

FOLDER = Path(package.__file__).parent


@dataclass(frozen=True)
class Mask:
    """A load or store that has a mask.

    Attributes:
        module: Such as ``nearest_kernels``.
        kernel: The function that it is in.
        number: Its place among those of the function.
        text: The call, on one line.
        start: Where the call begins in the source.
        end: Where it ends.
    """

    module: str
    kernel: str
    number: int
    text: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """Stable as long as its function has the same accesses."""
        return f"{self.module}.{self.kernel}.{self.number}"


@functools.cache
def source_of(module: str) -> str:
    """As it was at first: places of masks are places in that."""
    return (FOLDER / f"{module}.py").read_text()


def _is_access(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("tl.load", "tl.store")
        and any(keyword.arg == "mask" for keyword in node.keywords)
    )


def masks_of(module: str) -> list[Mask]:
    """All masks of a module's kernels, in the order of its source."""
    source = source_of(module)
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line.encode()))
    found = []
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        calls = [node for node in ast.walk(function) if _is_access(node)]
        calls.sort(key=lambda call: (call.lineno, call.col_offset))
        for number, call in enumerate(calls):
            start = lines[call.lineno - 1] + call.col_offset
            end = lines[call.end_lineno - 1] + call.end_col_offset
            found.append(Mask(module, function.name, number, ast.unparse(call), start, end))
    return found


def without(mask: Mask) -> str:
    """The source of a module whose access has no mask."""
    call = ast.parse(mask.text, mode="eval").body
    assert isinstance(call, ast.Call)
    call.keywords = [key for key in call.keywords if key.arg not in ("mask", "other")]
    source = source_of(mask.module).encode()
    return (source[: mask.start] + ast.unparse(call).encode() + source[mask.end :]).decode()


class _Finder:
    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path)


@contextlib.contextmanager
def driver_with(mask: Mask | None, folder: Path) -> Iterator[ModuleType]:
    """A driver of the backend whose kernels lack a mask; afterwards all is as before.

    Args:
        mask: What to drop; None for nothing.
        folder: For the changed source, which Triton reads.
    """
    prefix = package.__name__ + "."
    before = {name: module for name, module in sys.modules.items() if name.startswith(prefix)}
    finder = None
    if mask is not None:
        changed = folder / f"{mask.module}.py"
        changed.write_text(without(mask))
        finder = _Finder(prefix + mask.module, changed)
        sys.meta_path.insert(0, finder)
    try:
        _forget(prefix)
        yield importlib.import_module(prefix + "driver")
    finally:
        if finder is not None:
            sys.meta_path.remove(finder)
        _forget(prefix)
        sys.modules.update(before)
        for name, module in before.items():
            setattr(package, name.removeprefix(prefix), module)


def _forget(prefix: str) -> None:
    for name in [name for name in sys.modules if name.startswith(prefix)]:
        del sys.modules[name]
        if hasattr(package, name.removeprefix(prefix)):
            delattr(package, name.removeprefix(prefix))
