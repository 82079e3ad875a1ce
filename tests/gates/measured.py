"""What the compiler made of one kernel for one chip."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """One row of the table.

    Attributes:
        kernel: ``triton/`` or ``cuda/``, then the kernel and its configuration.
        target: The architecture, such as ``sm_90``.
        compiler: Whose machine code this is, such as ``triton 3.8.0``.
        threads: Of a block; 0 where the kernel states no bound.
        registers: Of a thread, 32 bits each; vector registers on AMD.
        spilled: Bytes of a thread's stack, which is what does not fit in registers.
        local: Instructions that access the stack.
        shared: Bytes of shared memory of a block, static and dynamic.
        blocks: How many fit on a multiprocessor at once.
        tensor: Tensor-core instructions.
        dot4: Four-way 8-bit dot products.
        async_copies: Copies from global to shared memory that bypass registers.
        wide_loads: Loads of at least 128 bits a thread from global memory.
        fused: Floating-point multiply-adds, and products and sums that may become one.
        negative_fills: Masked loads of 8 or 16 bits filled with a constant whose sign bit is set.
    """

    kernel: str
    target: str
    compiler: str
    threads: int
    registers: int
    spilled: int
    local: int
    shared: int
    blocks: int
    tensor: int
    dot4: int
    async_copies: int
    wide_loads: int
    fused: int
    negative_fills: int

    def has(self, need: str) -> bool:
        """Is that in the machine code?"""
        if need == "bits":
            return self.fused == 0
        counts = {
            "tensor": self.tensor,
            "dot4": self.dot4,
            "async": self.async_copies,
            "wide": self.wide_loads,
        }
        return counts[need] > 0
