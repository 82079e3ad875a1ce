"""Reads what compilers write: resource usage, machine code, PTX and LLVM's assembly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

# An instruction of NVIDIA's machine code behind its address and, perhaps, a predicate.
_SASS = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)")
_FUNCTION = re.compile(r"^\s+Function : (\S+)")
_USAGE = re.compile(
    r"^ Function (\S+):\n\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", re.MULTILINE
)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(")
_THREADS = re.compile(r"^\.(?:reqntid|maxntid)\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?", re.MULTILINE)

# tcgen05 is UTCHMMA, UTCIMMA, ...; wgmma is HGMMA, IGMMA, ...; mma.sync is HMMA, IMMA, ...
_TENSOR = re.compile(r"UTC\w*MMA|[A-Z]?GMMA|[BDHIOQ]MMA")
_ASYNC = re.compile(r"LDGSTS|UTMALDG|UBLKCP|LDTM")
_FUSED_PTX = re.compile(r"^\s*(?:@%\w+\s+)?fma\.\S*f(?:32|64)\S*\s", re.MULTILINE)
# The assembler may fuse a product and a sum that do not name their rounding, and never others.
_FUSABLE_PTX = re.compile(
    r"^\s*(?:@%\w+\s+)?(?:mul|add|sub)\.(?!r[nzmp])(?:\w+\.)*f(?:32|64)\s", re.MULTILINE
)
_FUSED_AMD = re.compile(r"v_(?:pk_)?fmac?_f(?:32|64)")
# What LLVM makes of one division, one square root and one conversion to a 64-bit integer.
_AMD_SEQUENCES = {"v_div_fixup_f64": 5, "v_div_fixup_f32": 5, "v_rsq_f64": 7}
_TO_INTEGER_LLVM = re.compile(r"= fpto[su]i (?:float|double) [^\n]* to i64")
_TTGIR_FUNCTION = re.compile(r"\btt\.func\b")
# Constants of 8 or 16 bits whose sign bit is set, alone or as all of a tensor.
_TTGIR_NEGATIVE = re.compile(
    r"(%[\w$.-]+) = arith\.constant (?:dense<-\d+> : tensor<[\dx]+x|-\d+ : )i(?:8|16)\b"
)
# Operands of loads, asynchronous ones and AMD's included, up to attributes or types.
_TTGIR_LOAD = re.compile(
    r"\b(?:tt\.load|\w+\.async_copy_global_to_local|\w+\.buffer_load\w*) ([^{:\n]*)"
)
_AMD = re.compile(r"^\t([a-z]\w+)([^\n]*)", re.MULTILINE)


def resource_usage(text: str) -> dict[str, dict[str, int]]:
    """Registers, stack, shared and local bytes of each kernel of ``cuobjdump -res-usage``."""
    names = ("registers", "stack", "shared", "local")
    return {
        found[0]: dict(zip(names, map(int, found[1:]), strict=True))
        for found in _USAGE.findall(text)
    }


def sass_instructions(text: str) -> dict[str, Counter[str]]:
    """How often each instruction, suffixes included, is in each kernel of ``cuobjdump -sass``."""
    counts: dict[str, Counter[str]] = {}
    current: Counter[str] = Counter()
    for line in text.splitlines():
        if function := _FUNCTION.match(line):
            current = counts.setdefault(function[1], Counter())
        elif instruction := _SASS.match(line):
            current[instruction[1]] += 1
    return counts


def sass_counts(instructions: Mapping[str, int]) -> dict[str, int]:
    """The kinds that the gate asks for, of the instructions of one NVIDIA kernel."""

    def total(wanted: Callable[[str], object]) -> int:
        return sum(count for name, count in instructions.items() if wanted(name))

    return {
        "local": total(lambda name: name.startswith(("LDL", "STL"))),
        "tensor": total(lambda name: _TENSOR.fullmatch(name.split(".")[0])),
        "dot4": total(lambda name: name.startswith("IDP.4A")),
        "async_copies": total(lambda name: _ASYNC.fullmatch(name.split(".")[0])),
        "wide_loads": total(lambda name: re.fullmatch(r"LDG\..*(128|256)(\..*)?", name)),
    }


def ptx_kernels(text: str) -> dict[str, str]:
    """The text of each kernel of a PTX file."""
    starts = list(_ENTRY.finditer(text))
    ends = [*(start.start() for start in starts[1:]), len(text)]
    return {start[1]: text[start.start() : end] for start, end in zip(starts, ends, strict=False)}


def ptx_threads(kernel: str) -> int:
    """Threads of a block, as the kernel requires or bounds them; 0 where it does neither."""
    found = _THREADS.search(kernel)
    if found is None:
        return 0
    x, y, z = (int(size or 1) for size in found.groups())
    return x * y * z


def ptx_fused(kernel: str) -> int:
    """Multiply-adds of floating point, and what the assembler may make one of.

    Machine code does not tell: division and square root are sequences of multiply-adds there.
    """
    return len(_FUSED_PTX.findall(kernel)) + len(_FUSABLE_PTX.findall(kernel))


def amd_fused(assembly: str, representation: str) -> int:
    """Multiply-adds of AMD's assembly beyond those of divisions, square roots and conversions.

    AMD's compiler fuses last of all, so that only machine code tells; what its sequences for these
    operations hold is known.

    Args:
        assembly: AMD's assembly.
        representation: LLVM's representation of the same, which still has the conversions.
    """
    names = [name for name, _ in _AMD.findall(assembly)]
    found = sum(1 for name in names if _FUSED_AMD.match(name))
    explained = sum(
        count
        for sequence, count in _AMD_SEQUENCES.items()
        for name in names
        if name.startswith(sequence)
    )
    explained += len(_TO_INTEGER_LLVM.findall(representation))
    return max(0, found - explained)


def negative_fills(ttgir: str) -> int:
    """Loads that fill what is masked with a constant of 8 or 16 bits whose sign bit is set.

    Triton 3.8.0 fills a word with it as with a signed number, for NVIDIA: right for the first of
    several values in the word, all ones for the others.

    Args:
        ttgir: Triton's representation of a kernel before LLVM's.
    """
    count = 0
    for function in _TTGIR_FUNCTION.split(ttgir):
        negative = set(_TTGIR_NEGATIVE.findall(function))
        for operands in _TTGIR_LOAD.findall(function):
            count += not negative.isdisjoint(re.findall(r"%[\w$.-]+", operands))
    return count


def amd_usage(text: str) -> dict[str, int]:
    """Registers of a thread and what was spilled, from the metadata of AMD's assembly."""

    def field(name: str) -> int:
        found = re.search(rf"^\s*(?:- )?\.{name}:\s+(\d+)", text, re.MULTILINE)
        if found is None:
            raise ValueError(f"AMD metadata must have .{name}, got none")
        return int(found[1])

    # Accumulators lie behind the others in one file; .vgpr_count is both, spills are registers.
    spills = 4 * (field("vgpr_spill_count") + field("sgpr_spill_count"))
    return {
        "registers": field("vgpr_count"),
        "spilled": max(spills, field("private_segment_fixed_size")),
    }


def amd_counts(text: str) -> dict[str, int]:
    """The kinds that the gate asks for, of AMD's assembly."""
    instructions = _AMD.findall(text)

    def total(wanted: Callable[[str, str], object]) -> int:
        return sum(1 for name, rest in instructions if wanted(name, rest))

    def is_async(name: str, rest: str) -> object:
        return "_load_lds" in name or (
            name.startswith("buffer_load") and re.search(r"\blds\b", rest)
        )

    return {
        "local": total(lambda name, _: name.startswith(("scratch_load", "scratch_store"))),
        "tensor": total(lambda name, _: name.startswith(("v_mfma", "v_smfmac"))),
        "dot4": total(lambda name, _: name.startswith("v_dot4")),
        "async_copies": total(is_async),
        "wide_loads": total(lambda name, _: re.match(r"(global|buffer)_load_dwordx4", name)),
    }
