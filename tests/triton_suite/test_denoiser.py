"""The public denoiser over Triton: what a user calls, on a device."""

from __future__ import annotations

import problems
import pytest
import torch
from op_cases import all_apart
from placing import placed

from diffgen import EmpiricalDenoiser, TrainingSet
from diffgen.backends import registry
from diffgen.backends.triton import driver

# Where there is a device; the interpreter has a backend of its own name.
ON_DEVICE = pytest.mark.only("ttsem", "gpu")


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (50, 1, 3, 3), generator=generator, dtype=torch.uint8)


def noisy() -> torch.Tensor:
    return torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(1))


def check_posterior(device: torch.device, rows_on_host: bool) -> None:
    here = TrainingSet(images(), labels=torch.arange(50) % 2)
    there = here.to(device, rows_on_host=rows_on_host)
    sigma, labels = torch.tensor([0.3, 1.0, 5.0]), torch.tensor([0, 1, 0])
    want = EmpiricalDenoiser(here, backend="cpu").posterior(noisy(), sigma, labels, top_k=3)
    got = EmpiricalDenoiser(there, backend="triton").posterior(
        noisy().to(device), sigma.to(device), labels.to(device), top_k=3
    )
    assert torch.equal(got.mean.cpu(), want.mean)
    assert torch.equal(got.logsumexp.cpu(), want.logsumexp)
    assert torch.equal(got.entropy.cpu(), want.entropy)
    assert torch.equal(got.top_indices.cpu(), want.top_indices)


@ON_DEVICE
def test_posterior_on_a_device_is_that_on_the_cpu(device: torch.device) -> None:
    check_posterior(device, rows_on_host=False)


# To ttsem all memory is one.
@pytest.mark.only("gpu")
def test_posterior_of_rows_in_host_memory_is_that_on_the_cpu(device: torch.device) -> None:
    check_posterior(device, rows_on_host=True)


@pytest.mark.only("interpreter")
def test_interpreted_backend_is_taken_by_name_alone() -> None:
    training_set = TrainingSet(images())
    want = EmpiricalDenoiser(training_set)(noisy(), 1.0)
    got = EmpiricalDenoiser(training_set, backend="triton:interpreted")(noisy(), 1.0)
    assert torch.equal(got, want)
    assert registry.get("triton:interpreted") not in registry._RANKED


@pytest.mark.parametrize(("functionals", "top_k"), [(False, 0), (True, 2)])
def test_no_two_outputs_share_a_storage(
    functionals: bool, top_k: int, device: torch.device
) -> None:
    flat = images().flatten(1)
    for data in (flat, flat.float()):
        problem = placed(problems.from_stored(data, noisy().flatten(1), 1.0, torch.float32), device)
        assert all_apart(driver.moments(problem, functionals, top_k, torch.float32))


@ON_DEVICE
def test_gradients_flow_on_a_device(device: torch.device) -> None:
    denoiser = EmpiricalDenoiser(TrainingSet(images()).to(device), backend="triton")
    x = noisy().to(device).requires_grad_()
    denoiser(x, 1.0).sum().backward()
    again = noisy().requires_grad_()
    EmpiricalDenoiser(TrainingSet(images()), backend="cpu")(again, 1.0).sum().backward()
    assert x.grad is not None and again.grad is not None
    assert torch.allclose(x.grad.cpu(), again.grad, rtol=1e-5, atol=1e-5)


@ON_DEVICE
def test_auto_takes_a_gpu_backend_where_there_is_one(device: torch.device) -> None:
    names = [b.name for b in registry._RANKED if b.unavailable() is None]
    assert names[0] in ("cuda", "triton")
