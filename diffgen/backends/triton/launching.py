"""Launches of kernels that Triton has compiled, without asking it again which one fits.

``kernel[grid](...)`` specializes each argument, makes a key of them all and compares the constants
that the kernel reads: with twenty arguments that takes longer than a small kernel runs. What it
returns can be launched itself. Here it is kept under a key that tells apart all that Triton's own
does: of each tensor the type and where its address lies between multiples of 16, of each integer
whether it is 1, whether it is a multiple of 16 and how wide it is, and constants by value.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel

KNOWN = ("3.8.",)
"""Versions of Triton whose key is known. Others, and AMD's devices, are asked at each launch."""

_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Launcher:
    """One kernel, launched by what Triton compiled for such arguments before.

    Constants are its last arguments, and have names in capitals.
    """

    def __init__(self, kernel: Any) -> None:
        """Takes what ``triton.jit`` made."""
        self.kernel = kernel
        self.compiled: dict[tuple[object, ...], Any] = {}
        self.names = tuple(kernel.arg_names)
        self.variables = sum(not name.isupper() for name in self.names)
        self.keeps = (
            isinstance(kernel, triton.JITFunction)
            and triton.__version__.startswith(KNOWN)
            and torch.version.hip is None
        )

    def __call__(
        self, grid: tuple[int, ...], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        """Launches the kernel; see ``launch``."""
        if not self.keeps:
            self.kernel[grid](*arguments, **keywords)
            return
        values = [*arguments, *[keywords[name] for name in self.names[len(arguments) :]]]
        variables = self.variables
        key: list[object] = values[variables:]
        key += [keywords.get(name) for name in _OPTIONS]
        device = None
        for value in values[:variables]:
            if type(value) is Tensor:
                if device is None:
                    device = value.get_device()
                key.append(value.dtype)
                key.append(value.data_ptr() & 15)
            elif type(value) is int and value >= 0:
                width = value.bit_length() >> 5
                key.append(4 * width + 2 * (value & 15 == 0) + (value == 1))
            elif value is None:
                key.append(None)
            else:
                self.kernel[grid](*arguments, **keywords)
                return
        key.append(device)
        found = tuple(key)
        known = self.compiled.get(found)
        if known is not None:
            known[(*grid, 1, 1)[:3]](*values)
            return
        unknown = {*keywords} - {*self.names, *_OPTIONS}
        if unknown:
            raise ValueError(f"options of a launch must be of {_OPTIONS}, got {sorted(unknown)}")
        made = self.kernel[grid](*arguments, **keywords)
        if isinstance(made, CompiledKernel):
            self.compiled[found] = made


_launchers: dict[int, Launcher] = {}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **keywords: Any) -> None:
    """Launches a kernel on the current stream, as ``kernel[grid](*arguments, **keywords)`` does.

    Args:
        kernel: What ``triton.jit`` made.
        grid: Programs along each axis, up to three.
        arguments: The first arguments of the kernel.
        keywords: The others, and warps, stages and whether to fuse products with sums.
    """
    launcher = _launchers.get(id(kernel))
    if launcher is None:
        launcher = _launchers[id(kernel)] = Launcher(kernel)
    launcher(grid, arguments, keywords)
