"""Every GPU kernel compiles for real chips, without one, and what comes out passes the gate."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gates import (
    cuda_build,
    disassembly,
    gate,
    inventory,
    launches,
    report,
    roofline,
    table,
    tools,
    triton_build,
)
from gates.inventory import Compiled
from gates.measured import Measured
from gates.occupancy import CHIPS, blocks_per_multiprocessor

from diffgen.backends.triton.cases import KernelCase

GOOD = Measured(
    kernel="triton/good",
    target="sm_90",
    compiler="triton 3.8.0",
    threads=128,
    registers=128,
    spilled=0,
    local=0,
    shared=32768,
    blocks=4,
    tensor=16,
    dot4=0,
    async_copies=8,
    wide_loads=4,
    fused=0,
    negative_fills=0,
)


def or_skip(compile_all, *arguments) -> Compiled:
    try:
        return compile_all(*arguments)
    except tools.Missing as missing:
        pytest.skip(str(missing))


def judged(compiled: Compiled, backend: str) -> list[str]:
    """All that the gate says of a backend's kernels."""
    assert compiled.rows or compiled.failures, f"no {backend} kernels"
    compilers = {row.compiler for row in compiled.rows}
    expected = [row for row in table.read() if row.kernel.startswith(f"{backend}/")]
    comparable = not expected or {row.compiler for row in expected} == compilers
    found = compiled.failures + gate.faults(compiled.rows, compiled.needs)
    if comparable:
        found += gate.regressions(compiled.rows, expected)
    elif not found:
        committed = report.compilers(expected)
        pytest.skip(f"no faults; the table is of {committed}, not of {', '.join(compilers)}")
    return found


# The kernels


def test_triton_kernels_pass_the_gate() -> None:
    compiled = or_skip(inventory.compile_triton)
    assert len(compiled.needs) <= inventory.MOST_COMBINATIONS
    assert not judged(compiled, "triton")


def test_cuda_kernels_pass_the_gate() -> None:
    assert not judged(or_skip(inventory.compile_cuda), "cuda")


def test_page_shows_the_committed_table() -> None:
    page = report.PAGE.read_text()
    stale = f"docs/gpu.md must be what {gate.UPDATE} writes"
    assert report.with_blocks(page, report.blocks(table.read())) == page, stale


# The gate itself


@pytest.fixture(scope="module")
def everything() -> Compiled:
    return or_skip(inventory.compile_triton, "gates.toys:kernel_cases")


def part(compiled: Compiled, names: Container[str]) -> Compiled:
    """The kernels of these names alone."""
    rows = [row for row in compiled.rows if row.kernel.removeprefix("triton/") in names]
    return Compiled(rows, [], compiled.needs)


@pytest.fixture
def toys(everything: Compiled) -> Compiled:
    return part(everything, {"product", "quotients", "roots", "filled"})


def test_kernels_without_a_fault_pass(toys: Compiled) -> None:
    assert not gate.faults(toys.rows, toys.needs)
    assert not gate.regressions(toys.rows, toys.rows)
    assert len(toys.rows) == 4 * len(CHIPS)


def test_tensor_cores_and_asynchronous_copies_are_counted(toys: Compiled) -> None:
    products = {row.target: row for row in toys.rows if row.kernel == "triton/product"}
    assert set(products) == set(CHIPS)
    # 64 x 64 x 64 by four warps: 16 mma.m16n8k32 each on sm_80, two wgmma of k = 32 on sm_90.
    assert products["sm_80"].tensor == 16 and products["sm_90"].tensor == 2
    assert products["sm_100"].tensor > 0 and products["gfx942"].tensor > 0
    assert all(products[name].async_copies > 0 for name in ("sm_80", "sm_90", "sm_100"))
    elementwise = [row for row in toys.rows if row.kernel == "triton/quotients"]
    assert len(elementwise) == 4
    assert all(row.tensor == 0 and row.wide_loads > 0 for row in elementwise)


@pytest.mark.parametrize(
    ("kernel", "need"),
    [
        ("spills for sm_80", "registers alone, got "),
        ("no tensor cores for sm_80", "tensor-core instructions, got none"),
        ("no tensor cores for gfx942", "tensor-core instructions, got none"),
        ("fuses for sm_80", "no fused multiply-add, got "),
        ("fuses for gfx942", "no fused multiply-add, got "),
        ("fills bytes with 128 for sm_80", "constants without the sign bit where masked loads "),
        ("fills bytes with 128 for gfx942", "constants without the sign bit where masked loads "),
        ("fills 16 bits with -2 for sm_80", "constants without the sign bit where masked loads "),
        ("fills 16 bits with -2 for gfx942", "constants without the sign bit where masked loads "),
        ("too much shared memory for sm_80", "at most 166912 bytes of shared memory on A100, got "),
        ("too much shared memory for gfx942", "at most 65536 bytes of shared memory on MI300X"),
    ],
)
def test_kernel_with_a_fault_turns_the_gate_red(
    everything: Compiled, kernel: str, need: str
) -> None:
    found = gate.faults(everything.rows, everything.needs)
    assert [said for said in found if said.startswith(f"triton/{kernel} needs {need}")]


def test_kernel_that_does_not_compile_is_named(everything: Compiled) -> None:
    (said,) = everything.failures
    assert said.startswith("triton/broken for sm_80 must compile, got CompilationError")
    assert not part(everything, {"broken"}).rows


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"registers": 129}, "at most 128 registers, got 129"),
        ({"shared": 32769}, "at most 32768 shared, got 32769"),
        ({"fused": 1}, "at most 0 fused, got 1"),
        ({"blocks": 3}, "at least 4 blocks, got 3"),
        ({"tensor": 15}, "at least 16 tensor, got 15"),
        ({"async_copies": 7}, "at least 8 async copies, got 7"),
        ({"wide_loads": 3}, "at least 4 wide loads, got 3"),
        ({"target": "sm_80"}, "a row in the table, got none"),
    ],
)
def test_kernel_worse_than_the_table_is_named(change: dict[str, object], said: str) -> None:
    found = gate.regressions([replace(GOOD, **change)], [GOOD])
    assert any(f" needs {said}" in sentence for sentence in found)


def test_kernel_better_than_the_table_passes() -> None:
    better = replace(GOOD, registers=127, blocks=5, tensor=17)
    assert not gate.regressions([better], [GOOD])


def test_kernel_that_is_gone_is_named() -> None:
    (said,) = gate.regressions([], [GOOD])
    assert said.startswith("triton/good for sm_90 needs to be compiled, being in the table")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 0}, "a bound on its threads, got none"),
        ({"spilled": 8}, "registers alone, got 8 bytes of stack and 0 instructions"),
        ({"local": 2}, "registers alone, got 0 bytes of stack and 2 instructions"),
        ({"shared": 227 * 1024 + 1}, "at most 232448 bytes of shared memory on H100, got 232449"),
        ({"blocks": 0}, "to fit on H100, got no block that fits"),
        ({"tensor": 0}, "tensor-core instructions, got none"),
        ({"fused": 3}, "no fused multiply-add, got 3"),
        (
            {"negative_fills": 2},
            "constants without the sign bit where masked loads of 8 or 16 bits fill, got 2 with it",
        ),
    ],
)
def test_fault_of_a_row_is_named(change: dict[str, int], said: str) -> None:
    needs = {("triton/good", "sm_90"): {"tensor", "bits"}}
    assert not gate.faults([GOOD], needs)
    (found,) = gate.faults([replace(GOOD, **change)], needs)
    assert found.startswith(f"triton/good for sm_90 needs {said}")


def test_launch_beyond_a_kernels_bound_is_named() -> None:
    lines = "f 128 4096\nf 64 8192\n"
    launched = launches.read(lines)
    assert launched == {"cuda/f": launches.Launch(128, 8192)}
    row = replace(GOOD, kernel="cuda/f")
    assert not inventory.misfits([row], launched)
    (said,) = inventory.misfits([replace(row, threads=64)], launched)
    assert said == "cuda/f for sm_90 needs launches of at most 64 threads, got 128"
    (said,) = inventory.misfits([replace(row, kernel="cuda/g")], launched)
    assert said == "cuda/g for sm_90 needs a launch among the recorded ones, got none"


# Launches


def test_launch_leaves_the_case_that_it_would_compile() -> None:
    or_skip(tools.triton)
    from gates import toys as kernels
    from gates.triton_launches import recording

    with recording("sm_90") as found:
        a = torch.empty(64, dtype=torch.int8, device="cuda")
        out = torch.empty(64, dtype=torch.int32, device="cuda")
        tiles = {"BM": 64, "BN": 64, "BK": 64}
        for k in (64, 64, 65):
            kernels.product[(1, 1)](
                a, a, out, 100, 128, k, **tiles, num_stages=3, enable_fp_fusion=False
            )
    plain, other = found.cases.values()
    expected = kernels.product_case("product[64x64x64]", (64, 64, 64), 3)
    assert plain == replace(expected, needs=frozenset({"bits"}))
    assert other.name == "product[64x64x64] / K: i32"
    assert other.aligned == ("a", "b", "out", "N")


def test_fake_gpu_has_shapes_and_a_capability_and_no_values() -> None:
    from gates.fake_gpu import fake_gpu

    with fake_gpu("sm_80"):
        tensor = torch.empty(4, 6, device="cuda")
        assert torch.cuda.get_device_capability() == (8, 0)
        assert tensor[:, 1:3].shape == (4, 2) and tensor[:, :2].stride() == (6, 1)
        assert tensor[:, :2].contiguous().stride() == (2, 1)
        with pytest.raises(RuntimeError):
            tensor.sum().item()


@pytest.mark.parametrize("grid", [(0,), (2**31,), (1, 65536), (1, 1, 65536)])
def test_grid_that_no_gpu_starts_is_refused(grid: tuple[int, ...]) -> None:
    from gates.triton_launches import check_grid

    check_grid("f", (2**31 - 1, 65535, 65535))
    with pytest.raises(ValueError, match=r"grid of f must be within .*, got \("):
        check_grid("f", grid)


# Reading


def test_machine_code_is_counted_by_kind() -> None:
    text = """
\t\tFunction : f
        /*0000*/                   MOV R1, c[0x0][0x28] ;            /* 0x00000a0000017a02 */
                                                                     /* 0x000fe40000000f00 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;  /* 0x0000000402047981 */
        /*0020*/                   LDG.E.64 R4, [R2.64] ;            /* 0x0000000402047981 */
        /*0030*/             @!UP0 UTCIMMA gdesc[UR4], tmem[UR6] ;   /* 0x0000000402047981 */
        /*0040*/                   IMMA.16832.S8.S8 R4, R2, R3, R4 ; /* 0x0000000402047981 */
        /*10050*/              @P1 STL.64 [R1], R4 ;                 /* 0x0000000402047981 */
        /*10060*/                  IDP.4A.S8.S8 R6, R0, R7, RZ ;     /* 0x0000000402047981 */
        /*10070*/                  LDGSTS.E.BYPASS.128 [R4], [R2] ;  /* 0x0000000402047981 */
\t\tFunction : g
        /*0000*/                   HGMMA.64x64x16.F32 R24, gdesc[UR8] ;  /* 0x00 */
"""
    counts = disassembly.sass_instructions(text)
    assert disassembly.sass_counts(counts["f"]) == {
        "local": 1,
        "tensor": 2,
        "dot4": 1,
        "async_copies": 1,
        "wide_loads": 1,
    }
    assert disassembly.sass_counts(counts["g"])["tensor"] == 1


def test_resource_usage_is_read_for_each_kernel() -> None:
    text = """
Resource usage:
 Common:
  GLOBAL:0
 Function _Z1fv:
  REG:32 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:552 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function g:
  REG:10 STACK:0 SHARED:0 LOCAL:4 CONSTANT[0]:540 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
    assert disassembly.resource_usage(text) == {
        "_Z1fv": {"registers": 32, "stack": 8, "shared": 1024, "local": 0},
        "g": {"registers": 10, "stack": 0, "shared": 0, "local": 4},
    }


def test_what_ptx_may_fuse_is_counted() -> None:
    text = """
.visible .entry f(
)
.maxntid 64, 2, 1
{
	fma.rn.f64 	%rd1, %rd2, %rd3, %rd4;
	@%p1 fma.rn.ftz.f32 	%r1, %r2, %r3, %r4;
	mul.f64 	%rd1, %rd2, %rd3;
	mul.rn.f64 	%rd1, %rd2, %rd3;
	add.ftz.f32 	%r1, %r2, %r3;
	mul.wide.s32 	%rd1, %r2, 8;
	div.rn.f64 	%rd1, %rd2, %rd3;
}
.visible .entry g(
)
.reqntid 128
{
	ret;
}
"""
    kernels = disassembly.ptx_kernels(text)
    assert {name: disassembly.ptx_fused(kernel) for name, kernel in kernels.items()} == {
        "f": 4,
        "g": 0,
    }
    assert {name: disassembly.ptx_threads(kernel) for name, kernel in kernels.items()} == {
        "f": 128,
        "g": 128,
    }
    assert disassembly.ptx_threads(".entry h()\n{ ret; }") == 0


def test_fills_with_a_sign_bit_are_counted_where_loads_use_them() -> None:
    text = """
  tt.func public @f(%a: !tt.ptr<i8> {tt.divisibility = 16 : i32}, %n: i32) {
    %cst = arith.constant dense<-128> : tensor<512xi8, #blocked> loc(#loc1)
    %cst_0 = arith.constant dense<0> : tensor<512xi8, #blocked> loc(#loc1)
    %cst_1 = arith.constant dense<-1> : tensor<512xi32, #blocked> loc(#loc1)
    %cst_2 = arith.constant dense<-2> : tensor<16x32xi16, #blocked1> loc(#loc1)
    %c-128_i8 = arith.constant -128 : i8 loc(#loc1)
    %0 = tt.load %p, %m, %cst : tensor<512x!tt.ptr<i8>, #blocked> loc(#loc2)
    %1 = tt.load %p, %m, %cst_0 {a = 1 : i32} : tensor<512x!tt.ptr<i8>, #blocked> loc(#loc2)
    %2 = tt.load %q, %m, %cst_1 : tensor<512x!tt.ptr<i32>, #blocked> loc(#loc2)
    %3 = arith.xori %1, %cst : tensor<512xi8, #blocked> loc(#loc3)
    %4 = ttg.async_copy_global_to_local %r, %s mask %m other %cst_2 : tensor<16x32x!tt.ptr<i16>>
    %5 = amdg.buffer_load %a[%k], %m, %cst {contiguity = 2 : i32} : tensor<512xi8, #blocked>
    %6 = tt.load %a, %one, %c-128_i8 : !tt.ptr<i8> loc(#loc2)
  }
  tt.func private @g(%a: !tt.ptr<i8>) {
    %cst = arith.constant dense<127> : tensor<512xi8, #blocked> loc(#loc1)
    %0 = tt.load %p, %m, %cst : tensor<512x!tt.ptr<i8>, #blocked> loc(#loc2)
  }
"""
    assert disassembly.negative_fills(text) == 4


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        ("void diffgen::cuda::(anonymous namespace)::sums<128, (bool)1>(Call)", "sums<128, 1>"),
        ("diffgen::cuda::(anonymous namespace)::prepare(diffgen::cuda::Call)", "prepare"),
        ("prepare", "prepare"),
    ],
)
def test_kernels_have_short_names(demangled: str, short: str) -> None:
    assert cuda_build.short_name(demangled) == short


# Occupancy


@pytest.mark.parametrize(
    ("target", "threads", "registers", "shared", "blocks"),
    [
        # The programming guide's limits, one at a time: blocks, warps, registers, shared memory.
        ("sm_80", 32, 16, 0, 32),
        ("sm_80", 1024, 32, 0, 2),
        ("sm_80", 256, 64, 0, 4),
        ("sm_80", 256, 65, 0, 3),
        ("sm_80", 128, 255, 0, 2),
        ("sm_80", 1024, 65, 0, 0),
        ("sm_80", 128, 32, 163 * 1024, 1),
        ("sm_80", 128, 32, 40 * 1024, 4),
        ("sm_90", 128, 32, 113 * 1024, 2),
        ("sm_90", 128, 32, 113 * 1024 + 1, 1),
        ("sm_100", 128, 32, 227 * 1024 + 1, 0),
        # 128 registers: 4 waves of each of 4 SIMDs; 64 KiB of shared memory; 16 barriers.
        ("gfx942", 256, 128, 0, 4),
        ("gfx942", 256, 129, 0, 3),
        ("gfx942", 256, 32, 16 * 1024, 4),
        ("gfx942", 64, 32, 0, 16),
    ],
)
def test_blocks_that_fit(target: str, threads: int, registers: int, shared: int, blocks: int):
    assert blocks_per_multiprocessor(CHIPS[target], threads, registers, shared) == blocks


def test_tensor_memory_limits_blocks() -> None:
    chip = CHIPS["sm_100"]
    fits = [blocks_per_multiprocessor(chip, 128, 32, 0, n) for n in (0, 128, 256, 512, 513)]
    assert fits == [16, 4, 2, 1, 0]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_occupancy_is_that_of_nvidias_header(target: str, tmp_path: Path) -> None:
    """Over a grid, against cuda_occupancy.h, which the toolkit brings."""
    try:
        nvcc = tools.cuda_build().find_toolkit().nvcc
    except tools.cuda_build().native.NativeBuildError as error:
        pytest.skip(f"needs cuda_occupancy.h: {error}")
    program = tmp_path / "occupancy"
    source = Path(__file__).parent / "gates" / "occupancy_check.cpp"
    tools.output(*nvcc, "-std=c++17", "-O1", source, "-o", program)
    chip = CHIPS[target]
    major, minor = divmod(int(target.removeprefix("sm_")), 10)
    arguments = [major, minor, chip.shared, chip.shared_of_block, chip.shared_reserved]
    lines = tools.output(program, *arguments).splitlines()
    assert len(lines) > 1000
    for line in lines:
        threads, registers, shared, blocks = map(int, line.split())
        got = blocks_per_multiprocessor(chip, threads, registers, shared)
        assert got == blocks, (threads, registers, shared)


# Roofline


def test_roofline_of_one_query_is_the_time_to_read_the_set() -> None:
    h100 = roofline.PEAKS[1]
    least = roofline.bound("CIFAR-10", "uint8", 1, "sparse", h100)
    # 50,000 x 3,072 bytes, as much again for each float64 norm of 8 bytes, 16 rows and a query.
    read = 50_000 * 3_072 + 8 * 50_000 + 16 * 3_072 + 8 * 3_072
    assert least == roofline.Bound(read / 3.35e12, "memory")


def test_roofline_of_many_queries_is_the_time_of_their_products() -> None:
    a100 = roofline.PEAKS[0]
    least = roofline.bound("ImageNet-64", "uint8", 256, "dense", a100)
    # Three planes of the query and three of the weights.
    assert least.resource == "int8"
    assert least.seconds == pytest.approx(6 * 2 * 256 * 1.28e6 * 12_288 / 624e12, rel=1e-12)


# Cases


def test_case_speaks_of_arguments_that_do_not_fit() -> None:
    class Kernel:
        arg_names = ("a", "n", "BLOCK")

    def case(**changes: object) -> KernelCase:
        fields = {"types": {"a": "*fp64", "n": "i64"}, "constexprs": {"BLOCK": 8}}
        return KernelCase(name="k", kernel=Kernel, **{**fields, **changes})

    good = case(aligned=("n",), num_warps=8)
    assert good.signature == {"a": "*fp64", "n": "i64", "BLOCK": "constexpr"}
    assert good.attributes == {(1,): [["tt.divisibility", 16]]}
    assert good.compile_options["num_warps"] == 8
    assert good.compile_options["enable_fp_fusion"] is False
    with pytest.raises(ValueError, match=r"missing \['BLOCK'\], unknown \[\]"):
        case(constexprs={})
    with pytest.raises(ValueError, match=r"unknown \['C'\]"):
        case(constexprs={"BLOCK": 8, "C": 1})
    with pytest.raises(ValueError, match=r"twice \['n'\]"):
        case(constexprs={"BLOCK": 8, "n": 1})
    with pytest.raises(ValueError, match=r"must be runtime arguments, got \['BLOCK'\]"):
        case(aligned=("BLOCK",))
    with pytest.raises(ValueError, match=r"needs of k must be of .*, got \['speed'\]"):
        case(needs=frozenset({"speed"}))


def test_results_are_remembered_until_the_kernel_changes(toys: Compiled) -> None:
    """The fixture compiled them: their keys are in the cache, and a changed case's is not."""
    from gates import jobs
    from gates import toys as kernels

    case = kernels.kernel_cases("sm_80")[0]
    key = triton_build.key_of(case, "sm_80")
    assert jobs._remembered(key) is not None
    changed = triton_build.key_of(replace(case, num_stages=5), "sm_80")
    assert changed != key and jobs._remembered(changed) is None


def test_needs_of_kernels_that_are_gone_are_named() -> None:
    rows = [replace(GOOD, kernel=f"cuda/{name}") for name in inventory.CUDA_NEEDS]
    assert not inventory.stale_needs(rows)
    (said,) = inventory.stale_needs([r for r in rows if "few" not in r.kernel])
    assert said == "few_products of CUDA_NEEDS needs to be a kernel, got none of that name"
    assert inventory.cuda_needs("cuda/sparse_sums<true>") == {"bits", "wide"}
    assert inventory.cuda_needs("cuda/sparse_sums<false>") == {"bits"}
    assert inventory.cuda_needs("cuda/few_products<true>") == {"bits", "dot4", "wide"}
