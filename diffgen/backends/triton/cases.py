"""What one Triton kernel is compiled with: the launch, without its tensors.

Launches and the compile gates of the tests read the same cases, so that what is checked without a
GPU is what runs on one. Nothing here imports Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
"""The architectures that the kernels are compiled for without a GPU."""

DIVISIBILITY = 16
"""What Triton assumes of an aligned argument: bytes of a pointer, or a factor of an integer."""

NEEDS = {
    "tensor": "tensor-core instructions",
    "dot4": "four-way 8-bit dot products",
    "async": "asynchronous copies",
    "wide": "128-bit global loads",
    "bits": "no fused multiply-add",
}
"""What a case may insist on finding in its machine code."""


@dataclass(frozen=True)
class KernelCase:
    """One kernel with all that its machine code depends on.

    Attributes:
        name: The kernel and its configuration, such as ``products[128x64x128]``; unique.
        kernel: What ``triton.jit`` made.
        types: Triton's type of each runtime argument, such as ``{"rows": "*u8", "count": "i64"}``.
        constexprs: The value of each other argument: ``tl.constexpr`` parameters, and integers
            that are 1 at the launch, such as strides, for Triton specializes on those.
        aligned: Arguments divisible by 16; without it there are no vector loads and no
            asynchronous copies.
        num_warps: Warps of a block.
        num_stages: Depth of the software pipeline.
        fuse: May products and sums be fused into multiply-adds? Never where bits are promised.
        needs: What the machine code must have, keys of ``NEEDS``.
        options: Further options of the compiler, such as ``{"maxnreg": 128}``.
    """

    name: str
    kernel: object
    types: Mapping[str, str]
    constexprs: Mapping[str, object] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    fuse: bool = False
    needs: frozenset[str] = frozenset({"bits"})
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks what Triton would misread or refuse with another's words."""
        unknown = sorted(self.needs - set(NEEDS))
        if unknown:
            raise ValueError(f"needs of {self.name} must be of {sorted(NEEDS)}, got {unknown}")
        strangers = sorted(set(self.aligned) - set(self.types))
        if strangers:
            raise ValueError(
                f"aligned arguments of {self.name} must be runtime arguments, got {strangers}"
            )
        given, wanted = {*self.types, *self.constexprs}, {*self.arguments}
        if given != wanted or len(given) != len(self.types) + len(self.constexprs):
            raise ValueError(
                f"types and constexprs of {self.name} must be its arguments, each once: "
                f"missing {sorted(wanted - given)}, unknown {sorted(given - wanted)}, "
                f"twice {sorted({*self.types} & {*self.constexprs})}"
            )

    @property
    def arguments(self) -> list[str]:
        """The kernel's arguments in their order."""
        return list(getattr(self.kernel, "arg_names"))  # noqa: B009 - Triton's class is not typed

    @property
    def signature(self) -> dict[str, str]:
        """The type of each argument in the kernel's order, as ``ASTSource`` takes it."""
        return {name: self.types.get(name, "constexpr") for name in self.arguments}

    @property
    def attributes(self) -> dict[tuple[int], list[list[object]]]:
        """The alignment of each aligned argument, as ``ASTSource`` takes it."""
        places = {name: place for place, name in enumerate(self.arguments)}
        return {(places[name],): [["tt.divisibility", DIVISIBILITY]] for name in self.aligned}

    @property
    def compile_options(self) -> dict[str, object]:
        """The options of ``triton.compile``, which are also those of a launch."""
        fixed = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return {**self.options, **fixed, "enable_fp_fusion": self.fuse}
