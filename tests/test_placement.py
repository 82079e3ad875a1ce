"""Where a backend is given a problem: on the CPU, or on a GPU that is not there."""

from __future__ import annotations

import dataclasses

import problems
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from diffgen.backends import registry
from diffgen.backends.problem import CovarianceInputs, Problem
from diffgen.placement import CPU, device_for, placed

GPU = torch.device("cuda", 0)


def whole() -> Problem:
    """A problem with every tensor that one may have."""
    problem = problems.PROBLEMS["weighted_class"](0, torch.uint8, torch.float32)
    assert all(getattr(problem, field.name) is not None for field in dataclasses.fields(problem))
    return problem


def test_all_tensors_come_to_the_device_and_values_are_not_checked_there() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = placed(whole(), GPU)
    for field in dataclasses.fields(there):
        before, after = getattr(whole(), field.name), getattr(there, field.name)
        if isinstance(after, Tensor):
            assert after.device == GPU and after.shape == before.shape
        elif field.name == "check_values":
            assert before and not after
        else:
            assert after == before


def test_inputs_of_a_covariance_product_come_along() -> None:
    made = CovarianceInputs(torch.ones(2, 3), torch.ones(2), torch.ones(2, 3), None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = placed(made, GPU)
    assert there.radial is None
    assert {there.mean.device, there.logsumexp.device, there.v.device} == {GPU}
    problem = whole()
    assert placed(made, CPU) is made and placed(problem, CPU) is problem


@pytest.mark.parametrize(
    ("name", "gpu", "device"),
    [
        ("eager", GPU, CPU),  # takes them on the CPU
        ("triton", GPU, GPU),
        ("cuda", GPU, GPU),
        ("triton", None, CPU),
    ],
)
def test_a_backend_that_takes_none_on_the_cpu_gets_them_on_the_gpu(
    name: str, gpu: torch.device | None, device: torch.device
) -> None:
    assert device_for(registry.get(name), [whole()], gpu) == device
