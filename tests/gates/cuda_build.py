"""Compiles the CUDA kernels as the build does, and measures what came out."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from . import disassembly
from .measured import Measured
from .occupancy import CHIPS, blocks_per_multiprocessor
from .tools import ROOT, Missing, cuda_build, cuobjdump, output

TARGETS = ("sm_80", "sm_90", "sm_100")

SOURCES = (".h", ".cuh", ".cu")

# Since compute capability 9.0 static shared memory is reported with what the chip reserves.
_REPORTED_RESERVE = {"sm_80": 0, "sm_90": 1024, "sm_100": 1024}


def check() -> None:
    """Looks for the tools.

    Raises:
        Missing: If nvcc, one that knows the targets, or a disassembler is not here.
    """
    try:
        toolkit = cuda_build().find_toolkit()
    except cuda_build().native.NativeBuildError as error:
        raise Missing(f"the gate needs nvcc: {error}") from None
    unknown = [name for name in TARGETS if int(name.removeprefix("sm_")) not in toolkit.known]
    if unknown:
        raise Missing(
            f"the gate needs an nvcc that knows {', '.join(TARGETS)}, got {toolkit.version}, which "
            f"does not know {', '.join(unknown)}"
        )
    cuobjdump()


def compiler() -> str:
    """Whose machine code it is, as the table names it."""
    return f"nvcc {cuda_build().find_toolkit().version}"


def sources() -> list[Path]:
    """What is compiled: the device code."""
    return sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))


def key_of(source: Path, target: str, dynamic_shared: Mapping[str, int]) -> str:
    """Digest of all that the machine code depends on, and of what is known of the launches."""
    build = cuda_build()
    digest = hashlib.sha256(
        repr((build.find_toolkit(), build.DEVICE_FLAGS, target, sorted(dynamic_shared.items())))
        .encode()
    )  # fmt: skip
    for path in [source, *sorted((ROOT / "csrc").rglob("*"))]:
        if path.suffix in SOURCES:
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def measure(source: str, target: str, dynamic_shared: Mapping[str, int]) -> list[Measured]:
    """Compiles one file for one target.

    Args:
        source: The file.
        target: Of ``TARGETS``.
        dynamic_shared: Bytes of shared memory that launches ask for, most of all, by kernel.

    Returns:
        A row for each kernel in it.

    Raises:
        RuntimeError: If it does not compile.
    """
    build = cuda_build()
    toolkit = build.find_toolkit()
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        flags = [*build.DEVICE_FLAGS, f'-DDIFFGEN_CUDA_TARGETS="{target}"', f"-arch={target}"]
        keep = ["--keep", f"--keep-dir={folder}"]
        output(*toolkit.nvcc, *flags, *keep, "-cubin", source, "-o", cubin)
        usage = disassembly.resource_usage(output(cuobjdump(), "-res-usage", cubin))
        sass = disassembly.sass_instructions(output(cuobjdump(), "-sass", cubin))
        (ptx,) = Path(folder).glob("*.ptx")
        kernels = disassembly.ptx_kernels(ptx.read_text())
    names = short_names(list(usage))
    found = []
    for mangled, used in usage.items():
        name = names[mangled]
        threads = disassembly.ptx_threads(kernels[mangled])
        shared = used["shared"] - _REPORTED_RESERVE[target] + dynamic_shared.get(name, 0)
        found.append(
            Measured(
                kernel=name,
                target=target,
                compiler=compiler(),
                threads=threads,
                registers=used["registers"],
                spilled=used["stack"] + used["local"],
                shared=shared,
                blocks=blocks_per_multiprocessor(
                    CHIPS[target], threads or 1024, used["registers"], shared
                ),
                fused=disassembly.ptx_fused(kernels[mangled]),
                negative_fills=0,
                **disassembly.sass_counts(sass[mangled]),
            )
        )
    return sorted(found, key=lambda row: row.kernel)


def short_names(mangled: list[str]) -> dict[str, str]:
    """Names for people, such as ``cuda/products_few<8>``; as they are where c++filt is missing."""
    if not mangled:
        return {}
    plain = mangled
    if shutil.which("c++filt"):
        plain = output("c++filt", *mangled).splitlines()
    return {name: f"cuda/{short_name(text)}" for name, text in zip(mangled, plain, strict=True)}


def short_name(demangled: str) -> str:
    """A kernel's name and template arguments, without namespaces, result and parameters.

    Example:
        >>> short_name("void diffgen::cuda::(anonymous namespace)::sums<128, (bool)1>(Call)")
        'sums<128, 1>'
    """
    text = re.sub(r"\((?:anonymous namespace|bool|int|long|unsigned int)\)", "", demangled)
    text = text.partition("(")[0].removeprefix("void ")
    return re.sub(r"\w*::", "", text).strip()
