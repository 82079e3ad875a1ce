"""What documents show runs: examples in docstrings, code in README.md and docs/."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import diffgen

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
# One runs when it is imported, the other is compiled and may be missing.
NOT_EXAMINED = ("diffgen.__main__", "diffgen._native")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

MODULES = ["diffgen", *sorted(m.name for m in pkgutil.walk_packages(diffgen.__path__, "diffgen."))]
MODULES = [name for name in MODULES if name not in NOT_EXAMINED]
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        torch.manual_seed(0)
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_docstrings_have_examples():
    finder = doctest.DocTestFinder()
    tests = [t for name in MODULES for t in finder.find(importlib.import_module(name), name)]
    assert sum(bool(test.examples) for test in tests) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_pages_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": page.stem}
    for block in code_blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_pages_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [
        target
        for target in targets
        if "://" not in target and not (page.parent / target).resolve().exists()
    ]
    assert not missing


def test_readme_is_short_and_starts_with_code():
    lines = README.read_text().splitlines()
    assert len(lines) < 120
    assert "```python" in lines[:15]
    assert code_blocks(README, "python")


def test_readme_has_both_commands():
    commands = "\n".join(code_blocks(README, "console"))
    assert "pip install '.[demo]' && diffgen demo" in commands
    assert "pip install '.[test]' && pytest" in commands


def test_changelog_names_the_version():
    assert diffgen.__version__ in (ROOT / "CHANGELOG.md").read_text()
