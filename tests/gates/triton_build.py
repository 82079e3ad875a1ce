"""Compiles Triton kernels for chips that are not here, and measures what came out."""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import disassembly
from .measured import Measured
from .occupancy import CHIPS, blocks_per_multiprocessor
from .tools import TRITON_VERSION, cuobjdump, output, triton

Cases = Callable[[str], Iterable[Any]]


def provider(path: str) -> Cases:
    """The function ``kernel_cases`` that is named ``module:function``."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def chip_of(target: str) -> Any:
    """A target as Triton names it."""
    triton()
    from triton.backends.compiler import GPUTarget

    if target.startswith("gfx"):
        return GPUTarget("hip", target, 64)
    return GPUTarget("cuda", int(target.removeprefix("sm_")), 32)


def source_of(case: Any) -> Any:
    """A case as Triton's ahead-of-time compiler takes it."""
    triton()
    from triton.compiler import ASTSource

    constexprs = dict(case.constexprs)
    return ASTSource(case.kernel, case.signature, constexprs, case.attributes)


def key_of(case: Any, target: str) -> str:
    """Digest of all that the machine code depends on; equal where nothing is to be done again."""
    parts = (TRITON_VERSION, target, source_of(case).hash(), sorted(case.compile_options.items()))
    return hashlib.sha256(repr((case.name, *parts)).encode()).hexdigest()


def measure(path: str, target: str, name: str) -> list[Measured]:
    """Compiles one case of a provider for one target.

    Raises:
        RuntimeError: If it does not compile; the message names kernel and target.
    """
    case = next(case for case in provider(path)(target) if case.name == name)
    return [measure_case(case, target)]


def measure_case(case: Any, target: str) -> Measured:
    """Compiles one case for one target.

    Raises:
        RuntimeError: If it does not compile; the message names kernel and target.
    """
    chip, options = chip_of(target), case.compile_options
    try:
        compiled = triton().compile(source_of(case), target=chip, options=options)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise RuntimeError(f"triton/{case.name} for {target} must compile, got {said}") from error
    read = _amd if target.startswith("gfx") else _nvidia
    fields = read(compiled)
    limits = CHIPS[target]
    columns = getattr(compiled.metadata, "tmem_size", 0)
    blocks = blocks_per_multiprocessor(
        limits, fields["threads"], fields["registers"], fields["shared"], columns
    )
    fields["negative_fills"] = disassembly.negative_fills(compiled.asm["ttgir"])
    compiler = f"triton {TRITON_VERSION}"
    return Measured(f"triton/{case.name}", target, compiler, blocks=blocks, **fields)


def _nvidia(compiled: Any) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        (usage,) = disassembly.resource_usage(output(cuobjdump(), "-res-usage", cubin)).values()
        (sass,) = disassembly.sass_instructions(output(cuobjdump(), "-sass", cubin)).values()
    (kernel,) = disassembly.ptx_kernels(compiled.asm["ptx"]).values()
    return {
        "threads": disassembly.ptx_threads(kernel),
        "registers": usage["registers"],
        "spilled": usage["stack"] + usage["local"],
        "shared": compiled.metadata.shared,
        "fused": disassembly.ptx_fused(kernel),
        **disassembly.sass_counts(sass),
    }


def _amd(compiled: Any) -> dict[str, int]:
    assembly = compiled.asm["amdgcn"]
    metadata = compiled.metadata
    return {
        "threads": metadata.num_warps * metadata.warp_size,
        "shared": metadata.shared,
        "fused": disassembly.amd_fused(assembly, compiled.asm["llir"]),
        **disassembly.amd_usage(assembly),
        **disassembly.amd_counts(assembly),
    }
