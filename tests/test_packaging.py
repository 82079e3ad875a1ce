"""Installation in each of its forms: from the sdist, editable, and without a compiler.

Every build runs on a copy, so that the checkout stays as it is.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import diffgen

ROOT = Path(__file__).resolve().parent.parent
RECORD = "_native_build.txt"
CODE_THAT_USES_IT = """
import torch, diffgen
ts = diffgen.TrainingSet(torch.zeros(3, 2))
print(diffgen.EmpiricalDenoiser(ts)(torch.ones(1, 2), 1.0).tolist())
"""

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="needs the checkout, not only its tests"
)


def environment(**extra: str) -> dict[str, str]:
    """This environment without what a developer or CI may have set for a build or an import."""
    ours = ("DIFFGEN_", "PYTHONPATH", "CC", "CXX", "CFLAGS", "LDFLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "OMP_NUM_THREADS": "1", **extra}


def run(*arguments: object, cwd: Path, **extra: str) -> str:
    """Output of one Python command; fails the test with all that it printed."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment(**extra), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def pip(verb: str, *arguments: object, cwd: Path, **extra: str) -> str:
    offline = ("--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check")
    return run("-m", "pip", verb, "-v", *offline, *arguments, cwd=cwd, **extra)


def what_the_package_says(target: Path, cwd: Path) -> str:
    """What a package that lies in `target` says of its backends."""
    code = "import diffgen; print(diffgen.__file__, *diffgen.backends(), sep='\\n')"
    said = run("-c", code, cwd=cwd, PYTHONPATH=str(target))
    assert said.startswith(str(target)), said
    return said


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = tmp_path_factory.mktemp("checkout") / "diffgen"
    unwanted = shutil.ignore_patterns(".*_cache", ".git", ".benchmarks", "build", "dist", ".venv")
    shutil.copytree(ROOT, checkout, ignore=unwanted)
    (checkout / "diffgen" / RECORD).write_text("left by an editable install")
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    run("-c", code, cwd=checkout)
    [made] = (checkout / "dist").iterdir()
    return made


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist's content: from here on the checkout is out of reach."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    [content] = folder.iterdir()
    return content


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--wheel-dir", folder, unpacked, cwd=folder)
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture
def native_compiler() -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")


def test_suite_runs_against_the_installed_package():
    try:
        installed = importlib.metadata.distribution("diffgen")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("diffgen is not installed, it is imported from the checkout")
    editable = "editable" in (installed.read_text("direct_url.json") or "")
    if editable or "PYTHONPATH" in os.environ:
        pytest.skip("the checkout is imported on purpose")
    expected = Path(installed.locate_file("diffgen"))
    assert Path(diffgen.__file__).parent == expected, "start the suite with `pytest` alone"


def test_sdist_has_native_sources_and_nothing_built(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    native = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.suffix != ".pyc"}
    assert {name for name in native if not name.endswith("__pycache__")} <= names
    assert {"pyproject.toml", "setup.py", "LICENSE", "README.md", "diffgen/py.typed"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc", RECORD))]


def test_wheel_has_the_package_and_no_sources(wheel):
    assert wheel.name.startswith(f"diffgen-{diffgen.__version__}-")
    names = zipfile.ZipFile(wheel).namelist()
    assert "diffgen/py.typed" in names and f"diffgen/{RECORD}" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"diffgen"}
    assert not [name for name in names if name.endswith((".cpp", ".h", ".inl", ".o"))]


def test_wheel_from_sdist_has_a_native_core_that_runs(wheel, tmp_path, native_compiler):
    target = tmp_path / "target"
    pip("install", "--target", target, wheel, cwd=tmp_path)
    assert "native core built by" in (target / "diffgen" / RECORD).read_text()
    code = "import diffgen._native as native; print(native.__file__)"
    assert run("-c", code, cwd=tmp_path, PYTHONPATH=str(target)).startswith(str(target))
    assert "[[0.0, 0.0]]" in run("-c", CODE_THAT_USES_IT, cwd=tmp_path, PYTHONPATH=str(target))


def test_install_without_compiler_works_and_says_why(unpacked, tmp_path):
    target = tmp_path / "target"
    without = {"CC": "/bin/false", "CXX": "/bin/false"}
    pip("install", "--target", target, unpacked, cwd=tmp_path, **without)
    why = "no working C++ compiler: tried /bin/false"
    assert why in (target / "diffgen" / RECORD).read_text()
    assert not list((target / "diffgen").glob("*.so"))
    assert why in what_the_package_says(target, tmp_path)
    info = ("-m", "diffgen", "info", "--backend", "reference", "--no-speed")
    assert why in run(*info, cwd=tmp_path, PYTHONPATH=str(target))
    assert "[[0.0, 0.0]]" in run("-c", CODE_THAT_USES_IT, cwd=tmp_path, PYTHONPATH=str(target))


def test_native_core_can_be_required(unpacked, tmp_path):
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    with pytest.raises(AssertionError, match="no working C"):
        run("-c", code, cwd=unpacked, CXX="/bin/false", DIFFGEN_REQUIRE_NATIVE="1")


def test_native_core_can_be_declined(unpacked, tmp_path):
    target = tmp_path / "target"
    pip("install", "--target", target, unpacked, cwd=tmp_path, DIFFGEN_NO_NATIVE="1")
    assert "DIFFGEN_NO_NATIVE is set" in (target / "diffgen" / RECORD).read_text()
    assert not list((target / "diffgen").glob("*.so"))


def test_editable_install_builds_in_place(unpacked, wheel, tmp_path, native_compiler):
    target = tmp_path / "target"
    pip("install", "--target", target, "--editable", unpacked, cwd=tmp_path)
    assert list((unpacked / "diffgen").glob("_native*.so"))
    assert "native core built by" in (unpacked / "diffgen" / RECORD).read_text()
    # The installation is a link: a .pth file, or the finder that it starts, names the folder.
    links = [path.read_text() for path in target.glob("__editable__*") if path.is_file()]
    assert any(str(unpacked) in text for text in links), links
    code = "import diffgen._native as native; print(native.__file__)"
    assert run("-c", code, cwd=tmp_path, PYTHONPATH=str(unpacked)).startswith(str(unpacked))
    # Once more without the core: what the first build left must not stay in use.
    declined = {"DIFFGEN_NO_NATIVE": "1"}
    pip("install", "--target", target, "--upgrade", "-e", unpacked, cwd=tmp_path, **declined)
    assert not list((unpacked / "diffgen").glob("_native*.so"))
    assert "DIFFGEN_NO_NATIVE is set" in (unpacked / "diffgen" / RECORD).read_text()
