"""Rules of the source that no linter knows."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
from pathlib import Path

import pytest

import diffgen

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "diffgen").rglob("*.py"))
SUFFIXES = {".h", ".inl", ".cpp", ".cuh", ".cu", ".py"}
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in SUFFIXES)
EVERYTHING = [
    *SOURCES,
    *NATIVE,
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "benchmarks").rglob("*.py")),
    *sorted((ROOT / "examples").rglob("*.py")),
]
MOST_LINES = 400
# Modules that users import from by name, besides the package itself.
PUBLIC_MODULES = (
    "processes",
    "schedules",
    "parameterizations",
    "objectives",
    "noised",
    "networks",
    "training",
    "generalization",
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def public_names() -> list[tuple[str, object]]:
    """Every public class and function, under the name that users write."""
    found = [(f"diffgen.{name}", getattr(diffgen, name)) for name in diffgen.__all__]
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(f"diffgen.{module_name}")
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        found += [(f"{module_name}.{name}", getattr(module, name)) for name in names]
    return [(n, v) for n, v in found if isinstance(v, (type, types.FunctionType))]


def is_called_by_users(value: object) -> bool:
    """Functions and constructors; results, exceptions and base classes are not called."""
    if isinstance(value, types.FunctionType):
        return True
    result = dataclasses.is_dataclass(value) or issubclass(value, (BaseException, tuple))
    return not result and not inspect.isabstract(value)


def test_public_names_are_those_of_the_contract():
    expected = (
        "TrainingSet EmpiricalDenoiser Posterior as_denoiser sample hybrid mixture processes "
        "schedules parameterizations backends DataError BackendError __version__"
    )
    assert set(expected.split()) <= set(diffgen.__all__)


@pytest.mark.parametrize(
    ("name", "value"), public_names(), ids=lambda v: v if type(v) is str else ""
)
def test_public_name_is_documented(name, value):
    text = inspect.getdoc(value) or ""
    assert text.strip(), f"{name} has no docstring"
    if is_called_by_users(value):
        assert "Example:" in text and ">>>" in text, f"{name} has no Example"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_module_is_not_long(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_module_opens_with_docstring_and_annotations_import(path):
    text = path.read_text()
    assert text.startswith(('"""', 'r"""'))
    if re.search(r"^(def|class) |^    def ", text, re.MULTILINE):
        assert "from __future__ import annotations" in text


def test_nothing_is_left_to_do():
    # Written in pieces, or this file would be on its own list.
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")))
    left = [relative(path) for path in EVERYTHING if marks.search(path.read_text())]
    assert not left


def test_only_the_binding_knows_python():
    bindings = ("bindings.cpp", "cuda_bindings.cpp")
    native = [path for path in NATIVE if path.suffix != ".py" and path.name not in bindings]
    assert not [relative(p) for p in native if re.search("pybind11|Python.h|torch", p.read_text())]


def test_reference_shares_no_code_with_what_it_checks():
    text = (ROOT / "diffgen" / "backends" / "reference.py").read_text()
    imported = set(re.findall(r"^(?:from|import) (diffgen[\w.]*)", text, re.MULTILINE))
    assert imported <= {"diffgen.backends.problem", "diffgen.backends.registry"}
