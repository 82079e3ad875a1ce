"""Triton kernels that the gate is tried on: good ones, and one of each fault it must find."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import triton
import triton.language as tl

from diffgen.backends.triton.cases import KernelCase


@triton.jit
def product(a, b, out, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """out = a b^T of 8-bit integers, in int32."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.int32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        in_a = (rows[:, None] < M) & (k[None, :] < K)
        in_b = (columns[None, :] < N) & (k[:, None] < K)
        left = tl.load(a + rows[:, None].to(tl.int64) * K + k[None, :], mask=in_a, other=0)
        right = tl.load(b + columns[None, :].to(tl.int64) * K + k[:, None], mask=in_b, other=0)
        total = tl.dot(left, right, total)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(out + rows[:, None].to(tl.int64) * N + columns[None, :], total, mask=inside)


@triton.jit
def arithmetic(a, b, out, count, BLOCK: tl.constexpr, ROOTS: tl.constexpr):
    """Sums, products, conversions and quotients or square roots: what float64 rounds correctly."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(a + i, mask=i < count, other=1.0)
    y = tl.load(b + i, mask=i < count, other=1.0)
    total = x * y + (x + y).to(tl.int64).to(tl.float64)
    if ROOTS:
        total += tl.sqrt(x)
    else:
        total += x / y
    tl.store(out + i, total, mask=i < count)


@triton.jit
def widened(a, out, count, BLOCK: tl.constexpr, FILL: tl.constexpr):
    """Integers in int32, and FILL past their end."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(a + i, mask=i < count, other=FILL).to(tl.int32))


@triton.jit
def broken(a, BLOCK: tl.constexpr):
    """Stores what has another shape."""
    tl.store(a + tl.arange(0, BLOCK), tl.zeros((2 * BLOCK,), tl.float32))


def product_case(name: str, block: tuple[int, int, int], stages: int) -> KernelCase:
    """A product with tiles of that size."""
    types = {"a": "*i8", "b": "*i8", "out": "*i32", "M": "i32", "N": "i32", "K": "i32"}
    return KernelCase(
        name=name,
        kernel=product,
        types=types,
        constexprs=dict(zip(("BM", "BN", "BK"), block, strict=True)),
        aligned=("a", "b", "out", "N", "K"),
        num_stages=stages,
        needs=frozenset({"tensor", "bits"}),
    )


def arithmetic_case(name: str, roots: bool, **changes: Any) -> KernelCase:
    """Elementwise float64."""
    case = KernelCase(
        name=name,
        kernel=arithmetic,
        types={"a": "*fp64", "b": "*fp64", "out": "*fp64", "count": "i64"},
        constexprs={"BLOCK": 512, "ROOTS": roots},
        aligned=("a", "b", "out", "count"),
    )
    return replace(case, **changes)


def widened_case(name: str, stored: str, fill: int) -> KernelCase:
    """Small integers from a masked load."""
    return KernelCase(
        name=name,
        kernel=widened,
        types={"a": stored, "out": "*i32", "count": "i64"},
        constexprs={"BLOCK": 512, "FILL": fill},
        aligned=("a", "out", "count"),
    )


def good_cases() -> list[KernelCase]:
    """Kernels without a fault."""
    return [
        product_case("product", (64, 64, 64), 3),
        arithmetic_case("quotients", roots=False),
        arithmetic_case("roots", roots=True),
        widened_case("filled", "*u8", 127),
    ]


def faulty_cases(target: str) -> list[KernelCase]:
    """Kernels with a fault, which their names say."""
    cases = [
        arithmetic_case("no tensor cores", roots=False, needs=frozenset({"tensor", "bits"})),
        arithmetic_case("fuses", roots=False, fuse=True),
        product_case("too much shared memory", (64, 64, 512), 6),
        widened_case("fills bytes with 128", "*u8", 128),
        widened_case("fills 16 bits with -2", "*i16", -2),
    ]
    if target == "sm_80":
        cases.append(product_case("spills", (128, 256, 32), 1))
        cases.append(KernelCase("broken", broken, {"a": "*fp32"}, {"BLOCK": 64}))
    return cases


def kernel_cases(target: str) -> list[KernelCase]:
    """All of them; the faulty ones for one chip of either maker."""
    return good_cases() + (faulty_cases(target) if target in ("sm_80", "gfx942") else [])
