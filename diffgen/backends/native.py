"""The native core, where it was built; and why not, where it was not."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType


@cache
def _import() -> ModuleType | ImportError:
    try:
        return importlib.import_module("diffgen._native")
    except ImportError as error:
        return error


def load_native() -> ModuleType | None:
    """The module ``diffgen._native``, or None where it is not built or does not load."""
    found = _import()
    return found if isinstance(found, ModuleType) else None


def why_not_native() -> str | None:
    """Why there is no native core, in the words of the build; None when there is one."""
    found = _import()
    if isinstance(found, ModuleType):
        return None
    record = build_record()
    if record is None or "not built" not in record:
        return f"the native core does not load: {found}"
    return record


def build_record() -> str | None:
    """What the build wrote about itself: compiler and levels, or the reason of its failure."""
    path = Path(__file__).parents[1] / "_native_build.txt"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None
