"""Functions run as the ranks of a process group, each in a process of its own.

    outcomes = run_ranks("module:work", 4, arguments={"n": 3})

starts four processes, each of which initialises a gloo group and calls ``work(n=3)`` of the
module, and answers with what each rank did. A function may kill or stop its own process: that
rank's outcome says so. The processes are forked from one that has only imported what they need,
before any thread has been started.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
ELSEWHERE = tempfile.gettempdir()
"""Where other processes start: in a checkout they would import its sources, which nothing was built
in, and not the package that is tested."""


@dataclass(frozen=True)
class Outcome:
    """What a rank did.

    Attributes:
        value: What the function returned; None if it did not.
        error: Type and text of what it raised; empty for nothing.
        status: Exit status of the process; negative for the signal that ended it.
        seconds: How long the process lived; infinite when it had to be killed.
        stderr: What it wrote.
    """

    value: Any
    error: str
    status: int
    seconds: float
    stderr: str

    def result(self) -> Any:
        """The value; where there is none, an error that shows what happened."""
        assert self.status == 0 and not self.error, f"{self.error}\n{self.stderr}"
        return self.value


def run_ranks(
    function: str,
    world_size: int,
    *,
    arguments: Mapping[str, Any] | None = None,
    init: str = "file",
    timeout_s: float = 60,
    survivors: Sequence[int] | None = None,
    whole_exit: bool = False,
    outside: Callable[[Sequence[int]], None] | None = None,
) -> list[Outcome]:
    """Run a function as the ranks of a gloo group.

    Args:
        function: ``module:name``, importable from the tests' folder. Arguments and value are
            pickled.
        world_size: Number of ranks.
        arguments: Keywords, the same for all ranks.
        init: How the ranks find each other: ``file``; ``env``, as under torchrun; ``none``, when
            the function initialises the group itself, or not.
        timeout_s: After so long all that still run are killed.
        survivors: Ranks to wait for; the others are killed when these have ended. None: all.
        whole_exit: Let the interpreter take itself down, which takes a second with torch in it;
            else only what is registered with ``atexit`` is done.
        outside: Called with the process ids while they run.

    Returns:
        The outcomes, in rank order.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "arguments").write_bytes(pickle.dumps(dict(arguments or {})))
        request = {
            "function": function,
            "world_size": world_size,
            "init": init,
            "folder": name,
            "timeout_s": timeout_s,
            "whole_exit": whole_exit,
            "survivors": list(range(world_size) if survivors is None else survivors),
        }
        forks = nursery()
        forks.stdin.write(json.dumps(request) + "\n")
        forks.stdin.flush()
        children = json.loads(forks.stdout.readline())
        if outside is not None:
            outside(children)
        ended = json.loads(forks.stdout.readline())
        return [outcome(folder, rank, *ended[rank]) for rank in range(world_size)]


def outcome(folder: Path, rank: int, status: int, seconds: float) -> Outcome:
    value, error = None, f"ended with status {status} and left no value"
    if (folder / f"value{rank}").exists():
        value, error = pickle.loads((folder / f"value{rank}").read_bytes())
    return Outcome(
        value, error, status, seconds, (folder / f"stderr{rank}").read_text(errors="replace")
    )


@cache
def nursery() -> subprocess.Popen:
    """The process from which ranks are forked, one for all calls."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        process.kill()
        process.wait()

    atexit.register(end)
    return process


def raise_children() -> None:
    """Answer requests; returns in the forked processes alone, when they have done their work."""
    for line in sys.stdin:
        request = json.loads(line)
        module, name = request["function"].split(":")
        # Imported before the fork, once for all ranks and calls.
        function = getattr(importlib.import_module(module), name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = []
        begin = time.monotonic()
        for rank in range(request["world_size"]):
            child = os.fork()
            if child == 0:
                be_rank(rank, port, request, function)
                return
            children.append(child)
        print(json.dumps(children), flush=True)
        limit = begin + request["timeout_s"]
        ended: dict[int, tuple[int, float]] = {}
        while set(request["survivors"]) - ended.keys() and time.monotonic() < limit:
            for rank in set(range(len(children))) - ended.keys():
                found, status = os.waitpid(children[rank], os.WNOHANG)
                if found:
                    seconds = time.monotonic() - begin
                    ended[rank] = os.waitstatus_to_exitcode(status), seconds
            time.sleep(0.005)
        for rank in set(range(len(children))) - ended.keys():
            os.kill(children[rank], signal.SIGKILL)
            status = os.waitpid(children[rank], 0)[1]
            ended[rank] = os.waitstatus_to_exitcode(status), float("inf")
        print(json.dumps([ended[rank] for rank in range(len(children))]), flush=True)
    os._exit(0)


def be_rank(rank: int, port: int, request: dict, function: Callable) -> None:
    """Call the function as one rank, and leave what it did in a file."""
    folder = Path(request["folder"])
    for stream, place in ((0, os.devnull), (1, folder / f"stderr{rank}"), (2, "")):
        opened = os.open(place, os.O_RDWR | os.O_CREAT) if place else 1
        os.dup2(opened, stream)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(request["world_size"]),
        "LOCAL_WORLD_SIZE": str(request["world_size"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    signal.signal(signal.SIGINT, signal.default_int_handler)
    value, error = None, ""
    try:
        initialise(request["init"], folder)
        value = function(**pickle.loads((folder / "arguments").read_bytes()))
    except BaseException as raised:
        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}"
    place = folder / f"value{rank}"
    place.with_suffix(".part").write_bytes(pickle.dumps((value, error)))
    place.with_suffix(".part").rename(place)
    if not request["whole_exit"]:
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(0)


def initialise(init: str, folder: Path) -> None:
    if init == "file":
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        where = f"file://{folder / 'store'}"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=size)
    elif init == "env":
        dist.init_process_group("gloo")


if __name__ == "__main__":
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    raise_children()
