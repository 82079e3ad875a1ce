"""How many blocks of a kernel a multiprocessor holds, from the published limits of the chips."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """The limits of one multiprocessor (a compute unit, on AMD) that bound occupancy.

    Attributes:
        name: For people.
        lanes: Threads of a warp.
        partitions: Schedulers; a warp stays on one of them, which has its share of the registers.
        warps: Most warps at once.
        blocks: Most blocks at once.
        registers: For each thread of a warp and each partition, 32 bits each.
        register_unit: Registers of a thread are given in multiples of this.
        block_registers: Most registers of a block, all threads together.
        shared: Bytes of shared memory.
        shared_of_block: Most that one block may have.
        shared_reserved: Bytes that each block takes besides.
        shared_unit: Shared memory is given in multiples of this.
        tensor_columns: Columns of tensor memory, where there is one.
        source: Where the limits are published.
    """

    name: str
    lanes: int
    partitions: int
    warps: int
    blocks: int
    registers: int
    register_unit: int
    block_registers: int
    shared: int
    shared_of_block: int
    shared_reserved: int
    shared_unit: int
    tensor_columns: int
    source: str


def _nvidia(name: str, shared_kib: int, source: str, tensor_columns: int = 0) -> Chip:
    # 65,536 registers over 4 partitions of 32 lanes, given to warps by 256.
    return Chip(
        name=name,
        lanes=32,
        partitions=4,
        warps=64,
        blocks=32,
        registers=65536 // 4 // 32,
        register_unit=256 // 32,
        block_registers=65536,
        shared=shared_kib * 1024,
        shared_of_block=(shared_kib - 1) * 1024,
        shared_reserved=1024,
        shared_unit=128,
        tensor_columns=tensor_columns,
        source=source,
    )


CHIPS = {
    "sm_80": _nvidia("A100", 164, "CUDA C++ Programming Guide, compute capability 8.0"),
    "sm_90": _nvidia("H100", 228, "CUDA C++ Programming Guide, compute capability 9.0"),
    "sm_100": _nvidia("B200", 228, "CUDA C++ Programming Guide, compute capability 10.0", 512),
    # 8 waves of a SIMD, 512 vector registers by 8; a block takes a barrier, of which there are 16.
    "gfx942": Chip(
        name="MI300X",
        lanes=64,
        partitions=4,
        warps=32,
        blocks=16,
        registers=512,
        register_unit=8,
        block_registers=4 * 512 * 64,
        shared=64 * 1024,
        shared_of_block=64 * 1024,
        shared_reserved=0,
        shared_unit=512,
        tensor_columns=0,
        source="LLVM, AMDGPU usage, gfx942",
    ),
}


def blocks_per_multiprocessor(
    chip: Chip, threads: int, registers: int, shared: int, tensor_columns: int = 0
) -> int:
    """How many blocks fit at once; 0 where not even one does.

    Args:
        chip: Of ``CHIPS``.
        threads: Of a block.
        registers: Of a thread.
        shared: Bytes of a block, without what the chip reserves.
        tensor_columns: Columns of tensor memory that a block allocates.
    """
    warps = -(-threads // chip.lanes)
    given = _up(max(registers, 1), chip.register_unit)
    # The launch is checked as if every partition had as many warps as the fullest.
    if given * chip.lanes * _up(warps, chip.partitions) > chip.block_registers:
        return 0
    if shared > chip.shared_of_block or tensor_columns > chip.tensor_columns:
        return 0
    resident = min(chip.warps, chip.partitions * (chip.registers // given))
    limits = [chip.blocks, resident // warps]
    memory = _up(shared + chip.shared_reserved, chip.shared_unit)
    if memory:
        limits.append(chip.shared // memory)
    if tensor_columns:
        limits.append(chip.tensor_columns // tensor_columns)
    return min(limits)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
