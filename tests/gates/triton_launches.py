"""Kernel cases from launches: what a run on a GPU would compile, found without one.

While ``recording``, tensors on the device ``cuda`` have shapes and no values, and Triton's launches
compile and start nothing; each leaves a case with exactly the types, alignments and constants that
Triton's own specialization finds in its arguments. Host code that never waits for a result runs
through as it would; where it waits, it fails.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from diffgen.backends.triton.cases import KernelCase

from .fake_gpu import fake_gpu
from .tools import triton
from .triton_build import chip_of

BITS = frozenset({"bits"})

MOST_BLOCKS = (2**31 - 1, 65_535, 65_535)
"""Of a grid, by dimension."""


class Recorded:
    """The launches so far.

    Attributes:
        cases: One for each kernel and specialization, by name.
        needs: What the machine code of a kernel must have, by the kernel's name.
    """

    def __init__(self, target: str, needs: Mapping[str, frozenset[str]]) -> None:
        """Starts with none."""
        self.cases: dict[str, KernelCase] = {}
        self.needs = needs
        self._chip = chip_of(target)

    def add(self, kernel: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Notes one launch."""
        from triton.compiler.compiler import make_backend
        from triton.runtime.jit import create_function_from_signature

        backend = make_backend(self._chip)
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        arguments = tuple(map(_stand_in, arguments))
        keywords = {name: _stand_in(value) for name, value in keywords.items()}
        bound, specialization, given = bind(*arguments, **keywords)
        types, constexprs, aligned = {}, {}, []
        for (name, value), (kind, mark) in zip(bound.items(), specialization, strict=True):
            if kind == "constexpr":
                constexprs[name] = value
            else:
                types[name] = kind
                if mark and "D" in mark:
                    aligned.append(name)
        options = backend.parse_options(dict(given))
        known = ("num_warps", "num_stages", "enable_fp_fusion")
        case = KernelCase(
            name="",
            kernel=kernel,
            types=types,
            constexprs=constexprs,
            aligned=tuple(aligned),
            num_warps=options.num_warps,
            num_stages=options.num_stages,
            fuse=options.enable_fp_fusion,
            needs=self.needs.get(kernel.__name__, BITS),
            options={name: value for name, value in given.items() if name not in known},
        )
        self._keep(case)

    def _keep(self, case: KernelCase) -> None:
        """Names the case, by what differs where several would have one name."""
        plain = plain_name(case)
        alike = [known for name, known in self.cases.items() if name.split(" / ")[0] == plain]
        if any(replace(known, name="") == case for known in alike):
            return
        name = f"{plain} / {difference(alike[0], case)}" if alike else plain
        self.cases[name] = replace(case, name=name)


@contextmanager
def recording(target: str, needs: Mapping[str, frozenset[str]] | None = None) -> Iterator[Recorded]:
    """Notes launches instead of starting them.

    Args:
        target: The architecture whose specialization is taken.
        needs: See ``Recorded``; bits alone where a kernel is not in it.
    """
    triton()
    from triton.runtime.jit import JITFunction

    found = Recorded(target, needs or {})

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        check_grid(kernel.__name__, grid(keywords) if callable(grid) else grid)
        found.add(kernel, arguments, keywords)

    with mock.patch.object(JITFunction, "run", run), fake_gpu(target):
        yield found


def check_grid(name: str, grid: Sequence[int]) -> None:
    """Refuses a grid that no GPU starts.

    Raises:
        ValueError: For one that is empty or beyond the limits of CUDA.
    """
    wrong = [size for size, most in zip(grid, MOST_BLOCKS, strict=False) if not 1 <= size <= most]
    if wrong:
        raise ValueError(f"grid of {name} must be within {MOST_BLOCKS}, got {tuple(grid)}")


class _Pointer:
    """A tensor as specialization sees it: its type, and an address that is aligned."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    @staticmethod
    def data_ptr() -> int:
        return 0

    @staticmethod
    def ptr_range() -> int:
        """Beyond what 32-bit offsets reach, as a large set is."""
        return 2**40


def _stand_in(value: object) -> object:
    return _Pointer(value.dtype) if isinstance(value, torch.Tensor) else value


def plain_name(case: KernelCase) -> str:
    """A kernel's name, its numbers, and its switches that are on."""
    values = case.constexprs
    numbers = "x".join(str(v) for v in values.values() if type(v) is int)
    switches = [name.lower() for name, value in values.items() if value is True]
    words = [str(v) for v in values.values() if isinstance(v, str)]
    inside = " ".join(part for part in (numbers, *switches, *words) if part)
    return f"{case.kernel.__name__}[{inside}]" if inside else str(case.kernel.__name__)


def difference(first: KernelCase, case: KernelCase) -> str:
    """What tells a case from another of the same name."""

    def kinds(of: KernelCase) -> dict[str, str]:
        found = {name: of.types.get(name, str(of.constexprs.get(name))) for name in of.arguments}
        return {name: found[name] + _aligned(name, of.aligned) for name in found}

    ours, theirs = kinds(case), kinds(first)
    parts = [f"{name}: {ours[name]}" for name in ours if ours[name] != theirs[name]]
    if case.num_warps != first.num_warps:
        parts.append(f"{case.num_warps} warps")
    return ", ".join(parts)


def _aligned(name: str, aligned: Collection[str]) -> str:
    return " by 16" if name in aligned else ""
