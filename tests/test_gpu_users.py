"""What users do on a GPU: files that stay on disk, gradients, samplers, graphs, several processes.

``make gpu`` runs these after ``test_gpu_device``. Without a GPU every one is skipped, and says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import problems
import pytest
import shard_work
import torch
from benchmark_suite import load_suite
from processes import run_ranks
from torch import Tensor

from diffgen import EmpiricalDenoiser, TrainingSet, sample, schedules, selfcheck
from diffgen.backends import registry
from diffgen.cli.main import main

load_suite()

from benchmarks.gate import LOGSUMEXP_PROMISE, LOGSUMEXP_RELATIVE, MEAN_PROMISE  # noqa: E402

DEVICE = torch.device("cuda", 0)
SIGMAS = (0.002, 0.05, 0.3, 1.0, 5.0, 80.0)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


def promised(mean: Tensor, logsumexp: Tensor, want: Sequence[Tensor]) -> bool:
    """Whether a GPU's answer and the CPU's are each within the promise of the truth."""
    allowed = (LOGSUMEXP_RELATIVE * want[1].abs()).clamp(min=LOGSUMEXP_PROMISE)
    return bool(
        ((mean.cpu() - want[0]).abs() <= 2 * MEAN_PROMISE).all()
        and ((logsumexp.cpu() - want[1]).abs() <= 2 * allowed).all()
    )


@pytest.mark.parametrize("storage", [torch.uint8, torch.float32], ids=str)
def test_a_file_is_answered_on_the_gpu(tmp_path: Path, storage: torch.dtype) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, shard_work.rows(storage).numpy())
    # With queries on a GPU rows are copied there a block at a time.
    streamed = TrainingSet.open(path, in_memory=False)
    there = EmpiricalDenoiser(streamed.to(DEVICE, rows_on_host=True))
    here = EmpiricalDenoiser(TrainingSet.open(path, in_memory=True))
    x = shard_work.queries(9)
    for sigma in SIGMAS:
        want = here.posterior(x, sigma)
        got = there.posterior(x.to(DEVICE), sigma)
        assert got.mean.device == DEVICE
        assert promised(got.mean, got.logsumexp, (want.mean, want.logsumexp)), sigma


@pytest.mark.parametrize("storage", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["plain", "flip", "classes"])
def test_all_answers_are_those_of_the_cpu(name: str, storage: torch.dtype) -> None:
    points = TrainingSet(shard_work.rows(storage), **shard_work.special(name))
    here, there = EmpiricalDenoiser(points), EmpiricalDenoiser(points.to(DEVICE))
    x = shard_work.queries()
    classes = torch.tensor([0, 1, -1, 6, 0]) if points.num_classes else None
    classes_there = None if classes is None else classes.to(DEVICE)
    exclude = torch.tensor([0, 901, -1, 4999, 3])
    for sigma in SIGMAS:
        want = here.posterior(x, sigma, classes, exclude=exclude, top_k=3)
        got = there.posterior(
            x.to(DEVICE), sigma, classes_there, exclude=exclude.to(DEVICE), top_k=3
        )
        assert promised(got.mean, got.logsumexp, (want.mean, want.logsumexp)), sigma
        assert torch.equal(got.top_indices.cpu(), want.top_indices), sigma


@pytest.mark.parametrize("storage", [torch.uint8, torch.float32], ids=str)
def test_gradients_are_those_of_the_cpu(storage: torch.dtype) -> None:
    points = TrainingSet(shard_work.rows(storage))
    found = []
    for place in (points, points.to(DEVICE)):
        x = shard_work.queries().to(place.device).requires_grad_()
        EmpiricalDenoiser(place)(x, 0.7).square().sum().backward()
        assert x.grad is not None
        found.append(x.grad.cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ["heun", "ddim"])
def test_a_sampler_memorises_and_repeats(sampler: str) -> None:
    points = TrainingSet(shard_work.rows()).to(DEVICE)
    denoiser = EmpiricalDenoiser(points)

    def draw() -> Tensor:
        generator = problems.generator(3)
        shape = (4, *shard_work.SHAPE)
        return sample(denoiser, shape, schedules.karras(12), sampler=sampler,
                      generator=generator, device=DEVICE)  # fmt: skip

    first = draw()
    assert first.device == DEVICE and torch.equal(first, draw())
    nearest = torch.cdist(first.flatten(1).cpu(), shard_work.rows().flatten(1) / 127.5 - 1)
    assert float(nearest.min(dim=1).values.max()) < 0.05


def test_a_compiled_denoiser_is_one_graph() -> None:
    denoiser = EmpiricalDenoiser(TrainingSet(shard_work.rows()).to(DEVICE))
    x = shard_work.queries().to(DEVICE)
    sigma = torch.full((len(x),), 0.5, device=DEVICE)
    graph = torch.compile(lambda x, sigma: denoiser(x, sigma) * 2, fullgraph=True)
    assert torch.equal(graph(x, sigma), denoiser(x, sigma) * 2)


@pytest.mark.parametrize("size", [2, 4])
def test_processes_share_a_set_on_gpus(size: int) -> None:
    outcomes = run_ranks("shard_work:answers_on_gpus", size, timeout_s=120)
    whole = TrainingSet(shard_work.rows())
    want = [part for sigma in SIGMAS for part in
            EmpiricalDenoiser(whole).posterior(shard_work.queries(), sigma)[:2]]  # fmt: skip
    for outcome in outcomes:
        got = outcome.result()
        assert len(got) == len(want)
        for mean, logsumexp, *pair in zip(got[::2], got[1::2], want[::2], want[1::2], strict=True):
            assert promised(mean, logsumexp, pair)


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_info_checks_and_times_a_backend_on_the_gpu(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if (reason := registry.get(name).unavailable()) is not None:
        pytest.skip(f"{name}: {reason}")
    monkeypatch.setattr(selfcheck, "SIZES", selfcheck.SIZES[:1])
    assert main(["info", "--backend", name, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    [found] = record["backends"]
    assert found["device"] == str(DEVICE) and found["accuracy"]["num_problems"] > 0
    assert {"uint8, 1 query"} <= {speed["name"] for speed in found["speeds"]}
    # Between a millionth of a chip's rates and ten times what any of today does.
    assert all(1e-6 < speed["share_of_ceiling"] < 10 for speed in found["speeds"])
    assert 10 < record["gpu_ceilings"]["read_gb_s"] < 1e5
