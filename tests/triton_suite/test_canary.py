"""Whether the kernels of this suite are executed by what the suite says, which sees what it shall.

Toy kernels, each with one fault that values alone may not show.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
import triton
import triton.language as tl

BLOCK = 16


@triton.jit
def add_one(source, target, count, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    values = tl.load(source + places, mask=inside, other=0.0)
    if MASKED:
        tl.store(target + places, values + 1.0, mask=inside)
    else:
        tl.store(target + places, values + 1.0)


@triton.jit
def number_all(target, BLOCK: tl.constexpr):
    tl.store(target + tl.arange(0, BLOCK), tl.full((BLOCK,), 0.0, tl.float32) + tl.program_id(0))


@triton.jit
def accumulate(source, target, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + places, tl.load(target + places) + tl.load(source + places))


@triton.jit
def narrow(source, target, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(target + places, tl.load(source + places).to(tl.bfloat16).to(tl.float32))


@contextlib.contextmanager
def faults(message: str) -> Iterator[None]:
    """Asserts that ttsem finds a fault; its class is that of the module that pytest runs under."""
    with pytest.raises(Exception, match=message) as raised:
        yield
    assert raised.type.__name__ == "KernelFault"


def test_a_right_kernel_is_right(device: torch.device) -> None:
    source = torch.arange(21.0, device=device)
    target = torch.empty_like(source)
    add_one[(2,)](source, target, 21, BLOCK, True)
    assert torch.equal(target.cpu(), torch.arange(1.0, 22.0))


@pytest.mark.only("interpreter")
def test_the_interpreter_is_on(device: torch.device) -> None:
    assert triton.knobs.runtime.interpret
    assert type(add_one).__name__ == "InterpretedFunction"
    assert device.type == "cpu"


@pytest.mark.only("ttsem")
def test_tensors_pass_for_those_of_a_gpu(device: torch.device) -> None:
    tensor = torch.zeros(1).to(device)
    assert tensor.is_cuda
    assert tensor.device.type == "cuda"
    assert not triton.knobs.runtime.interpret


@pytest.mark.only("ttsem")
def test_a_forgotten_mask_is_a_fault(device: torch.device) -> None:
    source = torch.arange(21.0, device=device)
    with faults(r"writes 11 element\(s\) past the end .* `target`"):
        add_one[(2,)](source, torch.empty_like(source), 21, BLOCK, False)


@pytest.mark.only("ttsem")
def test_programs_that_write_one_element_are_a_fault(device: torch.device) -> None:
    with faults("both touch element"):
        number_all[(2,)](torch.zeros(BLOCK, device=device), BLOCK)


@pytest.mark.only("ttsem")
def test_memory_that_nobody_wrote_shows(device: torch.device) -> None:
    source = torch.zeros(BLOCK, device=device)
    target = torch.empty_like(source)
    accumulate[(1,)](source, target, BLOCK)
    assert bool(target.isnan().all())


@pytest.mark.only("ttsem", "gpu")
def test_bfloat16_rounds_to_nearest_even(device: torch.device) -> None:
    # Half-way between neighbours, and beside that: truncation or ties away from zero would differ.
    source = torch.tensor([1.0 + 2.0**-8 * k for k in range(BLOCK)]).add_(2.0**-20).to(device)
    source[::2] -= 2.0**-20
    target = torch.empty_like(source)
    narrow[(1,)](source, target, BLOCK)
    assert torch.equal(target.cpu(), source.cpu().bfloat16().float())
