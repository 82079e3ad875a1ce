"""Training in processes of their own: killed at chosen moments, or two that train together.

Run as ``python training_processes.py kill|pair FOLDER``. It imports once and forks a process for
each run, before any thread has been started; each leaves the digest of its weights in a file.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path

# What training imports when it starts, here once for all that are forked.
import accelerate  # noqa: F401
import safetensors.torch
import torch
import torch._dynamo
from torch import Tensor, nn

from diffgen import TrainingSet, processes
from diffgen.networks import MLP
from diffgen.objectives import NoisePrediction
from diffgen.training import TrainingResult, train

NUM_STEPS = 40
EVERY = 7


def fit(
    folder: Path, before_step: Callable[[int], None], drawn: list | None = None
) -> TrainingResult:
    """Train; ``drawn`` gets the points and the seed of each step."""
    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    network = MLP((2,), width=16, depth=1, generator=torch.Generator().manual_seed(1))
    noise = NoisePrediction(processes.DDPM())
    done = max((int(p.name[5:]) for p in folder.glob("step-????????")), default=0)

    def objective(network: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal done
        before_step(done)
        done += 1
        if drawn is not None:
            drawn.append((x0.tolist(), generator.initial_seed()))
        return noise(network, x0, generator)

    arguments = {"num_steps": NUM_STEPS, "batch_size": 8, "checkpoint_every": EVERY, "log_every": 5}
    arguments |= {"checkpoint_dir": folder, "logger": "csv"}
    return train(network, TrainingSet(points), objective, **arguments)


def digest(result: TrainingResult) -> str:
    """Of the weights, of their average, and of the rows."""
    whole = sha256(repr(result.history).encode())
    for network in (result.network, result.ema_network):
        for tensor in network.state_dict().values():
            whole.update(tensor.numpy().tobytes())
    return whole.hexdigest()


def forked(act: Callable[[], None]) -> int:
    """Run in a process of its own; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        act()
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended_by(child: int) -> int:
    """The signal that ended a process; 0 for none."""
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill(folder: Path) -> None:
    """A run that nobody kills, and one that is killed again and again."""

    def run(name: str, before_step: Callable[[int], None], patch: tuple = ()) -> int:
        def act() -> None:
            for owner, attribute, value in patch:
                setattr(owner, attribute, value)
            result = fit(folder / name, before_step)
            (folder / f"{name}.txt").write_text(digest(result))

        return ended_by(forked(act))

    def nothing(step: int) -> None:
        pass

    def at(last: int) -> Callable[[int], None]:
        return lambda step: die() if step == last else None

    assert run("whole", nothing) == 0
    # Before the first checkpoint, in a step, and while a checkpoint is being written, put in its
    # place, and an old one removed.
    assert run("killed", at(3)) == signal.SIGKILL
    assert run("killed", at(17)) == signal.SIGKILL
    assert run("killed", nothing, [(safetensors.torch, "save", die)]) == signal.SIGKILL
    assert run("killed", nothing, [(os, "rename", die)]) == signal.SIGKILL
    assert run("killed", nothing, [(shutil, "rmtree", half_removed)]) == signal.SIGKILL
    assert run("killed", at(33)) == signal.SIGKILL
    assert run("killed", nothing) == 0


def half_removed(path: Path) -> None:
    next(iter(path.iterdir())).unlink()
    die()


def pair(folder: Path) -> None:
    """Two processes that train together: at a stretch, and resumed after some steps."""

    class Stopped(Exception):
        pass

    def stop(step: int) -> None:
        if step == 18:
            raise Stopped

    def run(name: str, port: int, rank: int) -> None:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }
        if name == "resumed":
            with suppress(Stopped):
                fit(folder / name, stop)
        drawn: list = []
        result = fit(folder / name, lambda step: None, drawn)
        (folder / f"{name}{rank}.json").write_text(json.dumps(drawn))
        assert result.settings["num_processes"] == 2
        assert result.resumed_from == (14 if name == "resumed" else None)
        (folder / f"{name}{rank}.txt").write_text(digest(result))
        torch.distributed.destroy_process_group()

    for name in ("whole", "resumed"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = [forked(partial(run, name, port, rank)) for rank in range(2)]
        assert [ended_by(child) for child in children] == [0, 0]


if __name__ == "__main__":
    {"kill": kill, "pair": pair}[sys.argv[1]](Path(sys.argv[2]))
