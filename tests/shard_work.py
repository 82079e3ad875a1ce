"""What the ranks of ``test_shard`` do, each in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable

import problems
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from diffgen import EmpiricalDenoiser, TrainingSet, sample, schedules
from diffgen.streaming import exact

SHAPE = (3, 4, 4)
COUNT = 5000
SIGMAS = (0.0, 0.002, 0.05, 0.3, 1.0, 5.0, 80.0)


def rows(storage: torch.dtype = torch.uint8, count: int = COUNT, seed: int = 0) -> Tensor:
    """Rows with near-copies in other parts, ``(count, *SHAPE)``."""
    data = torch.randint(0, 256, (count, *SHAPE), generator=problems.generator(seed))
    data = data.to(torch.uint8)
    for at in range(0, count - 3, 900):
        data[at + 1], data[at + 2] = data[0], data[0]
        data[at + 2, 0, 0, 0] ^= 1
    return data if storage == torch.uint8 else (data / 127.5 - 1).to(storage)


def special(name: str) -> dict:
    """Arguments of a set by what is special about it."""
    weights = torch.rand(COUNT, generator=problems.generator(1))
    weights[::5] = 0
    return {
        "plain": {},
        "flip": {"flip": True},
        "classes": {"labels": torch.arange(COUNT) % 7, "weights": weights},
    }[name]


def sharded(points: TrainingSet, **more) -> TrainingSet:
    return points.shard(dist.get_rank(), dist.get_world_size(), timeout_s=10, **more)


def queries(batch: int = 5, seed: int = 2) -> Tensor:
    points = rows()[torch.arange(batch) * 901 % COUNT] / 127.5 - 1
    return points + 0.3 * torch.randn(batch, *SHAPE, generator=problems.generator(seed))


def answers(points: TrainingSet) -> list[Tensor]:
    """All that a denoiser says of some queries."""
    denoiser = EmpiricalDenoiser(points)
    x = queries()
    classes = torch.tensor([0, 1, -1, 6, 0]) if points.num_classes else None
    exclude = torch.tensor([0, 901, -1, 4999, 3])
    results: list[Tensor] = []
    for sigma in SIGMAS:
        results += denoiser.posterior(x, sigma, classes, exclude=exclude, top_k=3)
        results.append(denoiser(x, sigma, classes))
    results.append(denoiser.sweep(x, [0.1, 1.0]))
    results.append(denoiser.posterior_mean(x, 0.0, 1.0, classes))
    return results


def all_answers(
    name: str, storage: torch.dtype, folder: str = "", in_memory: bool | None = False
) -> list[Tensor]:
    torch.set_num_threads(1)
    points = TrainingSet(rows(storage), **special(name))
    if folder:
        points = TrainingSet.open(f"{folder}/rows.npy", in_memory=False, **special(name))
    return answers(sharded(points, in_memory=in_memory))


def answers_without_room() -> list[Tensor]:
    """With no room to keep segments apart."""
    exact.KEPT_BYTES = 0
    return answers(sharded(TrainingSet(rows())))


def derivatives(points: TrainingSet) -> list[Tensor]:
    denoiser = EmpiricalDenoiser(points)
    x = queries().double().requires_grad_()
    sigma = torch.full((len(x),), 0.5, dtype=torch.float64, requires_grad=True)
    value = denoiser(x, sigma).square().sum() + denoiser.posterior(x, sigma).logsumexp.sum()
    found = list(torch.autograd.grad(value, (x, sigma)))
    tangent = torch.ones_like(x)
    found += torch.func.jvp(lambda given: denoiser(given, 0.5), (x.detach(),), (tangent,))
    found.append(denoiser.covariance_vector_product(x.detach(), 0.5, tangent))
    return found


def all_derivatives(storage: torch.dtype) -> list[Tensor]:
    return derivatives(sharded(TrainingSet(rows(storage))))


def answers_on_gpus() -> list[Tensor]:
    """Means and logsumexps of parts that lie on the GPUs, as many as there are."""
    device = torch.device("cuda", dist.get_rank() % torch.cuda.device_count())
    denoiser = EmpiricalDenoiser(sharded(TrainingSet(rows()).to(device)))
    x = queries().to(device)
    levels = [sigma for sigma in SIGMAS if sigma > 0]
    return [part.cpu() for sigma in levels for part in denoiser.posterior(x, sigma)[:2]]


def own_queries() -> list[Tensor]:
    """Each rank asks something else, and a different number of things."""
    rank = dist.get_rank()
    denoiser = EmpiricalDenoiser(sharded(TrainingSet(rows(), **special("classes"))))
    x = queries(2 + rank, seed=rank).requires_grad_()
    classes = torch.arange(2 + rank) - 1
    mean = denoiser(x, 0.4, classes)
    (gradient,) = torch.autograd.grad(mean.square().sum(), x)
    return [mean.detach(), gradient, denoiser.posterior(x.detach(), 0.4, classes).logsumexp]


def samples(steps: int = 6) -> Tensor:
    denoiser = EmpiricalDenoiser(sharded(TrainingSet(rows())))
    return drawn(denoiser, steps)


def drawn(denoiser: Callable[[Tensor, Tensor], Tensor], steps: int) -> Tensor:
    generator = problems.generator(3)
    return sample(
        denoiser, (4, *SHAPE), schedules.karras(steps), sampler="heun", generator=generator
    )


def on_a_mesh() -> list[Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    points = TrainingSet(rows())
    return answers(points.shard(dist.get_rank(), dist.get_world_size(), mesh, timeout_s=10))


def of_another_rank() -> str:
    points = sharded(TrainingSet(rows()))
    own, other = (0, COUNT - 1) if dist.get_rank() == 0 else (COUNT - 1, 0)
    assert torch.equal(points[own], TrainingSet(rows())[own])
    try:
        points[other]
    except IndexError as error:
        return str(error)
    return ""


def disagree(what: str) -> None:
    """The last rank holds something else, or calls something else."""
    odd = dist.get_rank() == dist.get_world_size() - 1
    data, more = rows(), {}
    rank, size = dist.get_rank(), dist.get_world_size()
    if odd and what == "rows":
        data[COUNT // 2, 0, 0, 0] ^= 1
    if odd and what == "dtype":
        data = rows(torch.float32)
    if odd and what == "shape":
        data = data.reshape(COUNT, 48)
    if odd and what == "labels":
        more = {"labels": torch.zeros(COUNT, dtype=torch.int64)}
    if odd and what == "the same shard twice":
        rank = 0
    if odd and what == "world_size":
        size += 1
    points = TrainingSet(data, **more).shard(rank, size, timeout_s=10)
    denoiser = EmpiricalDenoiser(points)
    x = queries()
    if what == "the same call":
        denoiser.posterior(x, 1.0, top_k=2 if odd else 3)
    elif what == "the same arguments":
        exclude = torch.zeros(len(x), dtype=torch.int64) if odd else None
        denoiser(x, 1.0, exclude=exclude)
    else:
        denoiser(x, 1.0)


def fail_in_a_pass(how: str, folder: str) -> None:
    """Something happens to the last rank in the middle of a pass over its file."""
    path = shutil.copy(f"{folder}/rows.npy", f"{folder}/rows-{dist.get_rank()}.npy")
    points = sharded(TrainingSet.open(path, in_memory=False), in_memory=False)
    denoiser = EmpiricalDenoiser(points)
    place = points._contents.store.place
    place.block_rows = 1024
    denoiser(queries(), 1.0)
    if dist.get_rank() == dist.get_world_size() - 1:
        read = place._read

        def fail(out: Tensor, first: int) -> None:
            if first > place.first:
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                os.truncate(path, 200)
            read(out, first)

        place._read = fail
        place.in_files = lambda: None
    denoiser(queries(), 1.0)


def alone() -> None:
    TrainingSet(rows()).shard(0, 1)


def bad_sigma() -> None:
    points = sharded(TrainingSet(rows()))
    denoiser = EmpiricalDenoiser(points)
    try:
        denoiser(queries(), -1.0)
    except ValueError as error:
        assert "sigma must be zero or positive, got -1.0 at index 0" in str(error)
    # The set is of use still: all ranks made the same mistake.
    denoiser(queries(), 1.0)
