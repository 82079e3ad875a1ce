"""Compiles every GPU kernel for real chips, without one, and judges the machine code.

``cases`` come from the kernels' own tables; ``triton_build`` and ``cuda_build`` compile,
``disassembly`` reads, ``occupancy`` says what fits on a chip, ``gate`` judges by ``table``, and
``report`` writes ``docs/gpu.md``.
"""
