"""What the ranks of ``test_ranks.py`` do, in their own processes."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from diffgen.sharding import Ranks, addresses, rendezvous
from diffgen.sharding import ranks as ranks_module

TIMEOUT_S = 2.0
SOON_S = 1.0
"""Allowance for a loaded machine where the promise is "at once"."""

MANY = 40_000_000
"""Bytes: more than goes through shared memory, or than the buffers of a connection hold."""

STEPS: dict[str, Callable[[Ranks], object]] = {
    "exchange": lambda ranks: ranks.exchange("the step", b"x"),
    "gather": lambda ranks: ranks.gather("the step", torch.zeros(3)),
    "pass_on": lambda ranks: ranks.pass_on("the step", torch.zeros(3), lambda sum: sum + 1),
    "agree": lambda ranks: ranks.agree("the step", None),
    "much": lambda ranks: ranks.exchange("the step", bytes(MANY)),
}


def me() -> int:
    return int(os.environ["RANK"])


def talk(ranks: Ranks) -> dict:
    """One of each step, each checked for what every rank should see."""
    rank, size = ranks.rank, ranks.size
    lengths = [0, 1, 1000, MANY + 3]
    messages = ranks.exchange("messages", bytes([rank]) * lengths[rank % 4])
    assert messages == [bytes([r]) * lengths[r % 4] for r in range(size)]
    for dtype in (torch.float64, torch.bfloat16, torch.uint8, torch.bool):
        parts = [(torch.arange(6).reshape(2, 3).t() + r).to(dtype) for r in range(size)]
        gathered = ranks.gather("tensors", parts[rank])
        assert all(map(torch.equal, gathered, parts))
        assert all(part.dtype == dtype for part in gathered)
    assert ranks.gather("a number", torch.tensor(rank)) == list(range(size))
    assert ranks.gather("nothing", torch.empty(0, 3))[0].shape == (0, 3)
    ranks.agree("all is well", None)
    # Another order of the ranks gives other numbers.
    start = torch.linspace(0, 1, 500_000, dtype=torch.float64)
    expected = start
    for r in range(size):
        expected = expected / 3 + r
    prefix = start if rank == 0 else torch.zeros_like(start)
    assert torch.equal(ranks.pass_on("sum", prefix, lambda sum: sum / 3 + rank), expected)
    before = ranks.bytes_sent
    ranks.gather("counted", start)
    return {"rank": rank, "size": size, "sent": ranks.bytes_sent - before}


def all_steps() -> dict:
    return talk(Ranks.join(None))


def watched(step: Callable[[], object]) -> dict:
    """What a step did to this rank, after how many seconds, and how many of a core."""
    begin, begin_cpu = time.monotonic(), time.process_time()
    error = ""
    try:
        step()
    except BaseException as raised:
        error = f"{type(raised).__name__}: {raised}"
    return {
        "error": error,
        "seconds": time.monotonic() - begin,
        "cpu_seconds": time.process_time() - begin_cpu,
    }


def with_fault(fault: str, culprit: int, step: str, patience_s: float = 100.0) -> dict:
    """A step in which one rank has a fault; then one more step."""
    # Those who do not wait for the culprit itself lose patience first, and must name it.
    if me() == culprit + 1:
        patience_s += 0.5
    ranks = Ranks.join(None, TIMEOUT_S, patience_s)
    ranks.exchange("a good step", b"")
    if me() == culprit:
        FAULTS[fault](ranks)
    elif fault == "kill_while_sending":
        # Until then its message stands still, with as much of it here as the connection holds.
        time.sleep(0.6)
    first = watched(lambda: STEPS[step](ranks))
    second = watched(lambda: ranks.exchange("another step", b""))
    return {"first": first, "second": second, "end": time.monotonic()}


def kill(ranks: Ranks) -> None:
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_while_sending(ranks: Ranks) -> None:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()


def kill_with_forked_child(ranks: Ranks) -> None:
    if os.fork() == 0:
        time.sleep(2 * SOON_S)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def stop(ranks: Ranks) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def leave(ranks: Ranks) -> None:
    ranks.close()


def slow(ranks: Ranks) -> None:
    time.sleep(1.2 * TIMEOUT_S)


def stay_away(ranks: Ranks) -> None:
    time.sleep(4)


def fail(ranks: Ranks) -> None:
    ranks.fail("its own work", KeyboardInterrupt())


def interrupt(ranks: Ranks) -> None:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()


def other_step(ranks: Ranks) -> None:
    ranks.exchange("some other step", b"")


def other_shape(ranks: Ranks) -> None:
    ranks.gather("the step", torch.zeros(3, 1, dtype=torch.float64))


def raise_in_absorb(ranks: Ranks) -> None:
    def absorb(sum: torch.Tensor) -> torch.Tensor:
        raise OSError("no more rows")

    ranks.pass_on("the step", torch.zeros(3), absorb)


def answer_other_shape(ranks: Ranks) -> None:
    ranks.pass_on("the step", torch.zeros(3), lambda sum: sum[:2])


FAULTS = {
    fault.__name__: fault
    for fault in (
        kill,
        kill_while_sending,
        kill_with_forked_child,
        stop,
        leave,
        slow,
        stay_away,
        fail,
        interrupt,
        other_step,
        other_shape,
        raise_in_absorb,
        answer_other_shape,
    )
}


def interrupted() -> dict:
    """Rank 0 is interrupted while it waits for rank 1, which comes later."""
    ranks = Ranks.join(None, TIMEOUT_S)
    ranks.exchange("a good step", b"")
    if me() == 0:
        interrupt(ranks)
    else:
        time.sleep(2)
    return watched(lambda: STEPS["exchange"](ranks))


def disagree() -> dict:
    """Two ranks have a problem; afterwards all go on."""
    ranks = Ranks.join(None, TIMEOUT_S)
    problem = f"DataError: bad row {me()}" if me() in (1, 3) else None
    first = watched(lambda: ranks.agree("reading", problem))
    return first | {"after": len(ranks.exchange("another step", b""))}


def leave_at_once() -> None:
    """The last step of one rank is done while others still read."""
    for _ in range(5):
        ranks = Ranks.join(None, TIMEOUT_S)
        messages = ranks.exchange("the last step", bytes([me()]) * 3_000_000)
        assert [message[-1] for message in messages] == list(range(ranks.size))
        ranks.close()
        ranks.close()


def stopped_between_steps() -> list:
    """This process may be stopped in the meantime; nobody waits for it."""
    ranks = Ranks.join(None, TIMEOUT_S)
    time.sleep(1.7 * TIMEOUT_S)
    return ranks.exchange("the step", b"x")


def meshes() -> dict:
    """A mesh with one dimension, a slice of one with two, and all of that."""
    line = init_device_mesh("cpu", (4,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("sets", "shards"))
    whole = watched(lambda: Ranks.join(square))
    return {
        "line": talk(Ranks.join(line))["size"],
        "shards": Ranks.join(square["shards"]).gather("ranks", torch.tensor(me())),
        "sets": Ranks.join(square["sets"]).gather("ranks", torch.tensor(me())),
        "whole": whole["error"],
    }


def two_groups() -> dict:
    """Pairs beside each other and within the world; one pair loses a member."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    world = Ranks.join(None, TIMEOUT_S)
    outside = watched(lambda: Ranks.join(pairs[1 - me() // 2]))
    pair = Ranks.join(pairs[me() // 2], TIMEOUT_S)
    both = talk(pair)["size"] + talk(world)["size"]
    if me() == 3:
        kill(pair)
    return {
        "both": both,
        "outside": outside["error"],
        "pair": watched(lambda: pair.exchange("pair step", b""))["error"],
        "world": watched(lambda: world.exchange("world step", b""))["error"],
    }


def without_group() -> dict:
    return watched(lambda: Ranks.join(None))


def bad_arguments() -> list[str]:
    return [
        watched(lambda: Ranks.join("world"))["error"],
        watched(lambda: Ranks.join(None, timeout_s=0))["error"],
        watched(lambda: Ranks.join(None, patience_s=float("nan")))["error"],
    ]


def missing_at_join() -> dict:
    """Rank 1 never joins."""
    if me() == 1:
        time.sleep(3)
        return {}
    return watched(lambda: Ranks.join(None, TIMEOUT_S, patience_s=1))


def killed_while_joining() -> dict:
    """Rank 1 dies when the others know its address."""
    if me() == 1:
        rendezvous._Meeting.call = lambda self, other, address: kill(None)
    return watched(lambda: Ranks.join(None, TIMEOUT_S))


def on_two_machines() -> dict:
    """Ranks 0, 1 and 2, 3 take each other for other machines, and strangers knock first."""
    strangers = []

    def listen_far(host: str | None, backlog: int) -> tuple:
        listener, address = addresses._listen_tcp("127.0.0.1", backlog)
        pretender = rendezvous.HELLO.pack(b"not the secret..", 3, 0)
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n and so on", pretender, None):
            strangers.append(socket.create_connection(tuple(address[1:])))
            if said is None:
                strangers[-1].close()
            else:
                strangers[-1].sendall(said)
        return listener, address

    rendezvous.machine_identity = lambda: str(me() // 2)
    rendezvous.listen_far = listen_far
    rendezvous.STRANGER_S = 0.2
    ranks = Ranks.join(None, TIMEOUT_S)
    families = {line.data.family.name for line in ranks._lines._lines.values()}
    told = talk(ranks) | {"families": families}
    if me() == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return told | watched(lambda: STEPS["exchange"](ranks))


def ends_without_close() -> list:
    return Ranks.join(None).exchange("the step", b"x")


class Endless:
    """What waits on a GPU for a rank that has ended."""

    def is_completed(self) -> bool:
        return False


def over_the_group(endless: bool) -> dict:
    """gloo in the part of NCCL, which needs a GPU for each rank; rank 2 dies in the middle."""
    ranks_module.carries = lambda group, device: True
    ranks = Ranks.join(None, TIMEOUT_S)
    own = torch.full((2,), float(me()))
    parts = ranks.gather("a good step", own)
    sent = ranks.bytes_sent
    if endless:
        dist.all_gather_into_tensor = lambda *_, **__: Endless()
    if me() == 2:
        dist.all_gather_into_tensor = lambda *_, **__: kill(ranks)
    told = watched(lambda: ranks.gather("the step", own))
    return told | {"parts": [part.tolist() for part in parts], "sent": sent}
