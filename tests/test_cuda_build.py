"""How the CUDA part is built: which nvcc, which architectures, what the module exports."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
KNOWN = "75 80 86 90 100 120"


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


native = load("native_build", CSRC / "native_build.py")
cuda = load("cuda_build", CSRC / "cuda_build.py")


@pytest.fixture
def make_nvcc(tmp_path: Path) -> Callable[..., str]:
    """Makes programs that answer as nvcc does."""

    def make(name: str = "nvcc", version: str = "13.0", known: str = KNOWN) -> str:
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        listed = "".join(f"echo compute_{number}; " for number in known.split())
        program.write_text(
            "#!/bin/sh\n"
            f'case "$1" in --version) echo "tools, release {version}, V{version}.1";; '
            f"--list-gpu-arch) {listed};; *) exit 1;; esac\n"
        )
        program.chmod(0o755)
        return str(program)

    return make


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CUDACXX", "CUDA_HOME", "DIFFGEN_CUDA_ARCHS"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def toolkit(monkeypatch: pytest.MonkeyPatch, make_nvcc: Callable[..., str]) -> object:
    monkeypatch.setenv("CUDACXX", make_nvcc())
    return cuda.find_toolkit()


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    try:
        return native.find_compiler()
    except native.NativeBuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def real_toolkit() -> object:
    try:
        return cuda.find_toolkit()
    except native.NativeBuildError as error:
        pytest.skip(str(error))


def test_toolkit_tells_version_and_architectures(toolkit):
    assert toolkit.version == "13.0"
    assert toolkit.known == (75, 80, 86, 90, 100, 120)


def test_nvcc_is_looked_for_in_order(monkeypatch, make_nvcc):
    on_path = make_nvcc("path/nvcc", version="11.8")
    monkeypatch.setenv("PATH", f"{Path(on_path).parent}:/usr/bin:/bin")
    assert cuda.find_toolkit().version == "11.8"
    home = make_nvcc("home/bin/nvcc", version="12.4")
    monkeypatch.setenv("CUDA_HOME", str(Path(home).parents[1]))
    assert cuda.find_toolkit().version == "12.4"
    monkeypatch.setenv("CUDACXX", make_nvcc("named/nvcc", version="13.1"))
    assert cuda.find_toolkit().version == "13.1"


def test_named_nvcc_that_does_not_answer_is_an_error(monkeypatch):
    monkeypatch.setenv("CUDACXX", "/bin/false")
    needs = "CUDACXX must name a working nvcc, got '/bin/false'"
    with pytest.raises(native.NativeBuildError, match=f"^{needs}$"):
        cuda.find_toolkit()


def test_no_nvcc_says_where_it_was_looked_for(monkeypatch):
    monkeypatch.setattr(cuda, "_toolkit", lambda nvcc: None)
    tried = "nvcc not found: tried CUDACXX, CUDA_HOME, PATH and /usr/local/cuda"
    with pytest.raises(native.NativeBuildError, match=f"^{tried}$"):
        cuda.find_toolkit()


def test_usual_architectures_are_those_that_nvcc_knows(toolkit, monkeypatch, make_nvcc):
    assert cuda.architectures(toolkit) == [80, 90, 100]
    monkeypatch.setenv("CUDACXX", make_nvcc(known="50 75 80 86 90"))
    assert cuda.architectures(cuda.find_toolkit()) == [80, 90]
    monkeypatch.setenv("CUDACXX", make_nvcc(version="10.2", known="50 75"))
    with pytest.raises(native.NativeBuildError, match=r"nvcc 10\.2 knows none .* 80, 90, 100"):
        cuda.architectures(cuda.find_toolkit())


@pytest.mark.parametrize(
    ("asked", "built"), [("90", [90]), ("120; 80;", [80, 120]), ("86;86", [86]), ("", None)]
)
def test_architectures_can_be_asked_for(toolkit, monkeypatch, asked, built):
    monkeypatch.setenv("DIFFGEN_CUDA_ARCHS", asked)
    assert cuda.architectures(toolkit) == (built or [80, 90, 100])


@pytest.mark.parametrize("asked", ["8O", "75", "80,90", "sm_80", "91", ";", "80;-90"])
def test_bad_architectures_are_refused(toolkit, monkeypatch, asked):
    monkeypatch.setenv("DIFFGEN_CUDA_ARCHS", asked)
    with pytest.raises(native.NativeBuildError) as error:
        cuda.architectures(toolkit)
    assert str(error.value) == (
        "DIFFGEN_CUDA_ARCHS must be numbers that nvcc 13.0 knows, 80 or more (80, 86, 90, 100, "
        f"120), separated by semicolons, got {asked!r}"
    )


def test_objects_hold_machine_code_and_ptx_of_the_highest():
    assert cuda.targets([80, 90]) == ["sm_80", "sm_90", "compute_90"]
    assert cuda.words(["sm_80", "sm_90", "compute_90"]) == "sm_80, sm_90 (+PTX)"


def test_products_and_sums_are_not_fused():
    assert "--fmad=false" in cuda.DEVICE_FLAGS
    assert not any("fast" in flag for flag in cuda.DEVICE_FLAGS)


def test_a_change_of_cuda_sources_leaves_the_cpu_objects(compiler, tmp_path, monkeypatch):
    shutil.copytree(CSRC, tmp_path / "csrc")
    monkeypatch.setattr(native, "CSRC", tmp_path / "csrc")
    core, whole = (native.state_of(compiler, whole=whole) for whole in (False, True))
    (tmp_path / "csrc" / "cuda").mkdir(exist_ok=True)
    (tmp_path / "csrc" / "cuda" / "more.cuh").write_text("int more;")
    assert native.state_of(compiler, whole=False) == core
    assert native.state_of(compiler, whole=True) != whole
    (tmp_path / "csrc" / "more.h").write_text("int more;")
    assert native.state_of(compiler, whole=False) != core


def test_device_code_is_compiled_once(real_toolkit, compiler, tmp_path):
    source = tmp_path / "kernel.cu"
    source.write_text("__global__ void twice(int* x) { x[threadIdx.x] *= 2; }\n")
    oldest = [number for number in real_toolkit.known if number >= cuda.OLDEST][:1]
    asked = real_toolkit, compiler, [source], tmp_path / "objects", oldest
    [first] = cuda.compile_device(*asked)
    made = first.stat().st_mtime_ns
    [again] = cuda.compile_device(*asked)
    assert again == first and again.stat().st_mtime_ns == made
    source.write_text("__global__ void thrice(int* x) { x[threadIdx.x] *= 3; }\n")
    [changed] = cuda.compile_device(*asked)
    assert changed != first


def test_failed_compilation_names_source_and_error(real_toolkit, compiler, tmp_path):
    source = tmp_path / "broken.cu"
    source.write_text("__global__ void f() { unknown_name; }\n")
    oldest = [number for number in real_toolkit.known if number >= cuda.OLDEST][:1]
    with pytest.raises(native.NativeBuildError, match=r"broken\.cu does not compile: .*unknown"):
        cuda.compile_device(real_toolkit, compiler, [source], tmp_path, oldest)


@pytest.fixture(scope="module")
def asked(real_toolkit: object) -> list[int]:
    """The architectures that the environment of the tests asks for."""
    return cuda.architectures(real_toolkit)


@pytest.fixture(scope="module")
def module(
    asked: list[int], compiler: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The module of this checkout, from the objects of the last build where there was one."""
    pybind11 = pytest.importorskip("pybind11")
    folder = tmp_path_factory.mktemp("cuda")
    if (ROOT / "build" / "cuda_objects").is_dir():
        shutil.copytree(ROOT / "build" / "cuda_objects", folder / "objects")
    built = folder / f"_native_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    headers = [pybind11.get_include(), sysconfig.get_path("include")]
    flags = [flag for header in headers for flag in ("-isystem", header)]
    cuda.build_module(flags, folder / "objects", built)
    yield built
    shutil.rmtree(folder)


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_native_cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runtime_is_linked_in_and_kept_to_the_module(module):
    # PyTorch brings a runtime of its own, whose symbols are global: ours must not be among them.
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("nm or readelf is not installed")
    listed = subprocess.run(["nm", "-D", module], capture_output=True, text=True, check=True).stdout
    assert "PyInit__native_cuda" in listed
    assert not [line for line in listed.splitlines() if " cuda" in line or " cu" in line]
    needed = subprocess.run(["readelf", "-d", module], capture_output=True, text=True, check=True)
    assert "cudart" not in needed.stdout


def test_module_says_what_it_is_for(module, asked, real_toolkit):
    built = load_module(module)
    assert built.targets().split(";") == cuda.targets(asked)
    assert built.version() == real_toolkit.version
    assert built.MOST_FEATURES > 2**16


def test_without_a_driver_the_error_has_name_number_and_act(module):
    built = load_module(module)
    state = built.device_state()
    if state["error"] is None:
        pytest.skip("there is a CUDA device")
    assert state["device_count"] == 0
    assert state["runtime_version"] // 1000 == int(built.version().partition(".")[0])
    problem = built.Arguments(0, False, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1.0, 0.0)
    size = built.smallest_scratch_bytes(problem)
    assert 0 < size <= built.scratch_bytes(problem)
    with pytest.raises(RuntimeError) as error:
        built.moments(problem, 0, False, 0, 0, size, 0)
    for said in (state["error"], str(error.value)):
        assert "cudaErrorInsufficientDriver" in said or "cudaErrorNoDevice" in said
        assert "35" in said or "100" in said
