"""The native core by itself: what its objects export, and the sanitizers over its own program."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "csrc" / "tests" / "native_test.cpp"


def load_native_build() -> ModuleType:
    path = ROOT / "csrc" / "native_build.py"
    spec = importlib.util.spec_from_file_location("native_build", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["native_build"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


native = load_native_build()


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    try:
        return native.find_compiler()
    except native.NativeBuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of objects that begins with those of the last build, where there was one."""
    folder = tmp_path_factory.mktemp("objects")
    if (ROOT / "build" / "objects").is_dir():
        shutil.copytree(ROOT / "build" / "objects", folder, dirs_exist_ok=True)
    yield folder
    shutil.rmtree(folder)


def global_symbols(object_file: Path) -> list[tuple[str, str]]:
    """Kind and name of the symbols that an object defines for others."""
    command = ["nm", "--extern-only", "--defined-only", "--format=posix", str(object_file)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [(line.split()[1], line.split()[0]) for line in listed.splitlines()]


def test_isa_list_is_read_for_each_architecture():
    assert [isa.name for isa in native.instruction_sets("x86_64")][:2] == ["portable", "avx2"]
    assert [isa.name for isa in native.instruction_sets("AMD64")][:2] == ["portable", "avx2"]
    assert "-mavx2" in native.instruction_sets("x86_64")[1].flags
    assert {isa.architecture for isa in native.instruction_sets("riscv64")} == {"any"}
    lines = (native.CSRC / "cpu" / "isa_list.h").read_text().count("\nDIFFGEN_ISA(")
    assert len(native.all_instruction_sets()) == lines


def test_each_instruction_set_has_a_source_and_each_source_a_line():
    named = {f"kernels_{isa.name}.cpp" for isa in native.all_instruction_sets()}
    assert {path.name for path in (native.CSRC / "cpu").glob("kernels_*.cpp")} == named


def test_common_flags_keep_infinities_and_the_baseline():
    assert "-ffast-math" not in native.COMMON_FLAGS
    assert not any(flag.startswith(("-march", "-mtune", "-mavx")) for flag in native.COMMON_FLAGS)
    assert "-ffp-contract=off" in native.COMMON_FLAGS


# A second symbol, above all a weak one, compiled with wide instructions may be the copy that the
# linker keeps for everybody: the program then crashes on a processor without them.
@pytest.mark.parametrize("isa", native.instruction_sets(), ids=lambda isa: isa.name)
def test_kernel_object_exports_one_symbol(isa, compiler, objects):
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    [built] = native.compile_objects(compiler, [native.kernel_source(isa)], objects)
    symbols = global_symbols(built)
    assert len(symbols) == 1, symbols
    kind, name = symbols[0]
    assert kind == "T" and f"kernels_{isa.name}" in name


def test_symbol_check_sees_a_weak_symbol(compiler, tmp_path):
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    source = tmp_path / "weak.cpp"
    source.write_text(
        "inline int twice(int x) { return 2 * x; }\nint (*f())(int) { return twice; }"
    )
    [built] = native.compile_objects(compiler, [native.Source(source)], tmp_path)
    assert "W" in {kind.upper() for kind, _ in global_symbols(built)}


def test_failed_compilation_names_source_and_error(compiler, tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text("int f() { return unknown_name; }")
    with pytest.raises(native.NativeBuildError, match=r"broken\.cpp does not compile: .*unknown"):
        native.compile_objects(compiler, [native.Source(source)], tmp_path)


def test_compiler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(
        native.NativeBuildError, match=r"no working C\+\+ compiler: tried /bin/false"
    ):
        native.find_compiler()


def test_compiler_that_lacks_an_instruction_set_builds_the_others(compiler, tmp_path):
    old = tmp_path / "old-compiler"
    old.write_text(
        "#!/bin/sh\n"
        'case " $* " in *" -mavxvnni "*|*" -mavx512vnni "*) exit 1;; esac\n'
        f'exec {" ".join(compiler)} "$@"\n'
    )
    old.chmod(0o755)
    here = {isa.name for isa in native.instruction_sets()}
    unknown = {isa.name for isa in native.unknown_instruction_sets([str(old)])}
    assert unknown == here & {"avxvnni", "avx512vnni"}
    sources = [*native.core_sources(), native.Source(PROGRAM)]
    objects = native.compile_objects([str(old)], sources, tmp_path / "objects", ["-O0"])
    native.link([str(old)], objects, tmp_path / "program", [])  # nothing refers to what is left out


SANITIZERS = {
    "address,undefined": {
        "ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
    # The program forks and starts threads in the child, which the sanitizer refuses by default.
    "thread": {"TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0"},
}


def build_sanitized(compiler: list[str], sanitizer: str, sources: list, folder: Path) -> Path:
    flags = ["-O1", "-g", "-fno-omit-frame-pointer"]
    flags += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    objects = native.compile_objects(compiler, sources, folder, flags)
    program = folder / "program"
    native.link(compiler, objects, program, [f"-fsanitize={sanitizer}"])
    return program


def fixed_layout() -> list[str]:
    """A prefix that lays memory out the same each time, where that is allowed.

    A random layout may put something where the thread sanitizer keeps its shadow memory.
    """
    prefix = ["setarch", "-R"]
    if shutil.which("setarch") is None:
        return []
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else []


def run_sanitized(program: Path, sanitizer: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*fixed_layout(), str(program)],
        env={**os.environ, **SANITIZERS[sanitizer]},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_narrow_form_of_vnni_gives_the_same_bits(compiler, objects):
    # The 256-bit loops, which AVX-VNNI runs, in the encoding that AVX-512 VNNI has for them.
    [wide] = [isa for isa in native.all_instruction_sets() if isa.name == "avx512vnni"]
    if wide not in native.instruction_sets():
        pytest.skip(f"needs {wide.architecture}")
    narrow = native.kernel_source(wide)
    narrow = native.Source(narrow.path, (*narrow.flags, "-DDIFFGEN_NARROW"))
    others = [source for source in native.core_sources() if source.path != narrow.path]
    sources = [*others, narrow, native.Source(PROGRAM)]
    program = objects / "narrow"
    native.link(compiler, native.compile_objects(compiler, sources, objects), program, [])
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300, check=False)
    if "not run here: avx512vnni" in done.stdout:
        pytest.skip("the processor lacks avx512vnni")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "ran avx512vnni" in done.stdout


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_native_core_is_clean_under(sanitizer, compiler, tmp_path):
    sources = [*native.core_sources(), native.Source(PROGRAM)]
    program = build_sanitized(compiler, sanitizer, sources, tmp_path)
    done = run_sanitized(program, sanitizer)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert done.stdout.strip(), "the native test program printed nothing"


FAULTS = {
    "address,undefined": (
        "int main(int n, char**) { int* p = new int[n]; return p[n]; }",
        "overflow",
    ),
    "thread": (
        "#include <thread>\nint shared;\n"
        "int main() { std::thread t([] { shared = 1; }); shared = 2; t.join(); }",
        "data race",
    ),
}


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sanitizer_sees_a_planted_fault(sanitizer, compiler, tmp_path):
    text, expected = FAULTS[sanitizer]
    source = tmp_path / "fault.cpp"
    source.write_text(text)
    program = build_sanitized(compiler, sanitizer, [native.Source(source)], tmp_path)
    done = run_sanitized(program, sanitizer)
    assert done.returncode != 0
    assert expected in done.stderr
