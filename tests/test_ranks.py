"""Steps of several processes: what they bring, and what they say when one of them fails."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from processes import Outcome, run_ranks
from rank_steps import SOON_S, TIMEOUT_S

from diffgen.errors import ShardError
from diffgen.sharding import addresses, watch
from diffgen.sharding.board import Board
from diffgen.sharding.devices import GRACE_S
from diffgen.sharding.ways import star, tree


def values(outcomes: list[Outcome]) -> list:
    return [outcome.result() for outcome in outcomes]


@pytest.mark.parametrize(("size", "init"), [(1, "file"), (2, "file"), (3, "env"), (4, "env")])
def test_steps_bring_what_they_should(size: int, init: str) -> None:
    told = values(run_ranks("rank_steps:all_steps", size, init=init))
    assert [each["rank"] for each in told] == list(range(size))
    payload = 8 * 500_000 * (size - 1)
    assert all(payload <= each["sent"] <= payload + 100 * size for each in told)


def run_with_fault(fault: str, step: str, culprit: int = 2, **arguments: object) -> list[dict]:
    """What the ranks without the fault tell, of 4."""
    outcomes = run_ranks(
        "rank_steps:with_fault",
        4,
        arguments={"fault": fault, "culprit": culprit, "step": step, **arguments},
        survivors=[rank for rank in range(4) if rank != culprit],
    )
    return [outcome.result() for rank, outcome in enumerate(outcomes) if rank != culprit]


def check_failure(told: list[dict], message: str, limit_s: float) -> None:
    """All have the error in time; and again, at once, with the reason."""
    for each in told:
        assert each["first"]["error"].startswith(f"ShardError: {message}"), each
        assert each["first"]["seconds"] < limit_s
        assert message in each["second"]["error"]
        assert each["second"]["error"].startswith("ShardError: step 'another step' needs ranks")
        assert each["second"]["seconds"] < 0.1


ENDED = "rank 2 of 4 has ended (or its connection) in step 'the step'"


@pytest.mark.parametrize("step", ["exchange", "gather", "pass_on", "agree"])
def test_killed_rank_is_an_error_at_once(step: str) -> None:
    check_failure(run_with_fault("kill", step), ENDED, 0.3 + SOON_S)


@pytest.mark.parametrize("fault", ["kill_while_sending", "kill_with_forked_child"])
def test_rank_killed_in_a_message_is_an_error(fault: str) -> None:
    check_failure(run_with_fault(fault, "much"), ENDED, 0.3 + SOON_S)


def test_rank_that_leaves_says_so() -> None:
    message = "rank 2 of 4 has left: it let go of its part"
    told = run_with_fault("leave", "exchange")
    check_failure(told, message, SOON_S)


@pytest.mark.parametrize("step", ["exchange", "pass_on"])
def test_stopped_rank_is_an_error_within_the_timeout(step: str) -> None:
    message = f"rank 2 of 4 gave no sign of life for {TIMEOUT_S:g} s in step 'the step'"
    told = run_with_fault("stop", step)
    check_failure(told, message, TIMEOUT_S)
    assert all(each["first"]["cpu_seconds"] < 0.1 for each in told)


def test_slow_rank_is_waited_for_without_work() -> None:
    outcomes = run_ranks(
        "rank_steps:with_fault", 4, arguments={"fault": "slow", "culprit": 1, "step": "pass_on"}
    )
    for rank, told in enumerate(values(outcomes)):
        assert not told["first"]["error"] and not told["second"]["error"]
        if rank != 1:
            assert told["first"]["seconds"] > TIMEOUT_S
            assert told["first"]["cpu_seconds"] < 0.1


@pytest.mark.parametrize("step", ["exchange", "pass_on"])
def test_living_rank_that_does_not_come_is_an_error_after_patience(step: str) -> None:
    message = "rank 2 of 4 lives but has not come to step 'the step' within 1.5 s"
    told = run_with_fault("stay_away", step, patience_s=1.5)
    check_failure(told, message, 1.5 + SOON_S)
    assert all(each["first"]["seconds"] > 1.4 for each in told)


@pytest.mark.parametrize(
    ("fault", "step", "message"),
    [
        ("raise_in_absorb", "pass_on", "OSError: no more rows"),
        (
            "answer_other_shape",
            "pass_on",
            "ValueError: absorb must return float32 of shape (3,), got float32 of shape (2,)",
        ),
    ],
)
def test_error_in_a_step_is_told_to_all(fault: str, step: str, message: str) -> None:
    check_failure(
        run_with_fault(fault, step), f"rank 2 of 4 failed in step 'the step': {message}", SOON_S
    )


def test_failure_in_own_work_is_told_without_waiting() -> None:
    message = "rank 2 of 4 failed in step 'its own work': KeyboardInterrupt"
    check_failure(run_with_fault("fail", "exchange"), message, SOON_S)


def test_interrupt_ends_a_wait_within_a_second() -> None:
    waiting, other = values(run_ranks("rank_steps:interrupted", 2))
    assert waiting["error"] == "KeyboardInterrupt: "
    assert waiting["seconds"] < 0.3 + SOON_S
    assert other["error"] == (
        "ShardError: rank 0 of 2 failed in step 'the step': KeyboardInterrupt"
    )


def test_agreed_problems_leave_the_ranks_in_step() -> None:
    told = values(run_ranks("rank_steps:disagree", 4))
    for rank, each in enumerate(told):
        assert each["error"] == (
            ""
            if rank in (1, 3)
            else "ShardError: rank 1 of 4 failed in step 'reading': DataError: bad row 1; "
            "rank 3 of 4 failed in step 'reading': DataError: bad row 3"
        )
        assert each["after"] == 4


def test_ranks_in_different_steps_are_an_error() -> None:
    for each in run_with_fault("other_step", "exchange"):
        error = each["first"]["error"]
        assert "rank 2 of 4 is in step 'some other step' (its call 2), rank" in error or (
            "is in step 'the step' (its call 2), rank 2 in step 'some other step'" in error
        )
        assert error.endswith(": all ranks must make the same calls in the same order")


def test_ranks_with_different_tensors_are_an_error() -> None:
    for each in run_with_fault("other_shape", "gather"):
        error = each["first"]["error"]
        assert re.search(r"rank 2 (of 4 brings )?float64 of shape \(3, 1\)", error)
        assert re.search(r"rank [013] (of 4 brings )?float32 of shape \(3,\)", error)


def test_rank_may_leave_while_others_still_read() -> None:
    values(run_ranks("rank_steps:leave_at_once", 4))


def test_process_stopped_between_steps_goes_on() -> None:
    def stop_for_a_while(children: list[int]) -> None:
        time.sleep(0.8)
        os.kill(children[1], signal.SIGSTOP)
        time.sleep(1.1 * TIMEOUT_S)
        os.kill(children[1], signal.SIGCONT)

    outcomes = run_ranks("rank_steps:stopped_between_steps", 2, outside=stop_for_a_while)
    assert values(outcomes) == [[b"x", b"x"]] * 2


def test_time_in_which_all_processes_were_stopped_is_no_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(monotonic=time.monotonic)
    monkeypatch.setattr(watch, "time", clock)
    own, other = socket.socketpair()
    own.setblocking(False)
    watching = watch.Watch(2, {1: own}, 4.0)
    with other:
        time.sleep(0.1)
        clock.monotonic = lambda: time.monotonic() + 100
        time.sleep(1.0)
        assert watching.trouble("the step") is None
        watching.leave()


def test_mesh_with_one_dimension_is_a_group() -> None:
    for rank, told in enumerate(values(run_ranks("rank_steps:meshes", 4, init="none"))):
        assert told["line"] == 4
        assert told["shards"] == [rank // 2 * 2, rank // 2 * 2 + 1]
        assert told["sets"] == [rank % 2, rank % 2 + 2]
        assert told["whole"] == (
            "ValueError: group must be a mesh with one dimension, such as mesh['sets'], got 2 "
            "dimensions"
        )


def test_groups_beside_each_other_do_not_meet() -> None:
    outcomes = run_ranks("rank_steps:two_groups", 4, survivors=[0, 1, 2])
    for rank, told in enumerate(outcome.result() for outcome in outcomes[:3]):
        assert told["both"] == 6
        assert told["outside"] == (
            "ValueError: group must contain this process, got a group of other processes"
        )
        ended = "ShardError: rank 1 of 2 has ended (or its connection) in step 'pair step'"
        assert told["pair"] == (ended if rank == 2 else "")
        assert told["world"] == (
            "ShardError: rank 3 of 4 has ended (or its connection) in step 'world step'"
        )


def test_bad_groups_and_limits_are_refused() -> None:
    (told,) = values(run_ranks("rank_steps:without_group", 1, init="none"))
    assert told["error"].startswith("ValueError: group needs an initialised process group: run ")
    (told,) = values(run_ranks("rank_steps:bad_arguments", 1))
    assert told == [
        "TypeError: group must be a ProcessGroup, a DeviceMesh or None, got str",
        "ValueError: timeout_s must be positive and finite, got 0",
        "ValueError: patience_s must be positive and finite, got nan",
    ]


def test_rank_that_does_not_join_is_an_error() -> None:
    outcomes = run_ranks("rank_steps:missing_at_join", 3, survivors=[0, 2])
    for told in (outcomes[0].result(), outcomes[2].result()):
        assert told["error"] == "ShardError: rank 1 of 3 did not come to step 'join' within 1 s"
        assert told["seconds"] < 1 + SOON_S


def test_rank_killed_while_joining_is_an_error() -> None:
    outcomes = run_ranks("rank_steps:killed_while_joining", 3, survivors=[0, 2])
    for told in (outcomes[0].result(), outcomes[2].result()):
        assert told["error"].startswith(
            "ShardError: rank 1 of 3 could not be reached in step 'join'"
        )
        assert told["seconds"] < TIMEOUT_S + SOON_S


def test_ranks_of_different_machines_talk_over_tcp() -> None:
    outcomes = run_ranks("rank_steps:on_two_machines", 4, survivors=[0, 1, 2])
    for told in (outcome.result() for outcome in outcomes[:3]):
        assert told["families"] == {"AF_UNIX", "AF_INET"}
        assert told["error"] == (
            "ShardError: rank 3 of 4 has ended (or its connection) in step 'the step'"
        )


def test_interpreter_ends_quietly_without_close() -> None:
    outcomes = run_ranks("rank_steps:ends_without_close", 2, whole_exit=True)
    assert values(outcomes) == [[b"x", b"x"]] * 2
    assert all(outcome.seconds < 20 for outcome in outcomes)
    assert not any("diffgen" in outcome.stderr for outcome in outcomes)


class BrokenStore:
    def __init__(self, add: Callable[[str, int], int]) -> None:
        self.add = add

    def set(self, key: str, value: str) -> None:
        pass


def refuse(key: str, amount: int) -> int:
    raise RuntimeError("connection reset by peer")


def never_answer(key: str, amount: int) -> int:
    threading.Event().wait()
    return amount


def test_store_that_does_not_answer_is_an_error() -> None:
    begin = time.monotonic()
    with pytest.raises(ShardError, match="ranks 0, 1 of 2 did not come to step 'join'"):
        Board(BrokenStore(never_answer), 0, 2).collect("subject", "text", 0.2)
    assert time.monotonic() - begin < SOON_S
    with pytest.raises(ShardError, match=r"store .* failed in step 'join': connection reset"):
        Board(BrokenStore(refuse), 0, 2).collect("subject", "text", 5)


def test_address_for_other_machines_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with pytest.raises(ShardError, match=r"GLOO_SOCKET_IFNAME, got lo: 127.0.0.1 is this machine"):
        addresses.listen_far("example.invalid", 4)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(addresses, "_is_loopback", lambda address: False)
    listener, address = addresses.listen_far("127.0.0.1", 4)
    with listener, addresses.connect(address, 1) as line:
        assert line.getpeername() == listener.getsockname()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("way", [star, tree])
def test_way_reaches_every_rank_once(way: Callable, size: int) -> None:
    for root in range(size):
        steps = [way(rank, size, root) for rank in range(size)]
        reached = sorted(child for _, children in steps for child in children)
        assert reached == sorted(set(range(size)) - {root})
        for rank, (parent, children) in enumerate(steps):
            assert (parent is None) == (rank == root)
            assert parent is None or rank in steps[parent][1]
            assert way is star or len(children) <= (size - 1).bit_length()


@pytest.mark.parametrize("endless", [False, True])
def test_tensors_of_devices_go_over_the_group(endless: bool) -> None:
    outcomes = run_ranks(
        "rank_steps:over_the_group", 3, arguments={"endless": endless}, survivors=[0, 1]
    )
    for told in (outcome.result() for outcome in outcomes[:2]):
        assert told["parts"] == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
        assert told["sent"] == 2 * 8
        assert told["error"] == (
            "ShardError: rank 2 of 3 has ended (or its connection) in step 'the step'"
        )
        assert told["seconds"] < 0.3 + GRACE_S + SOON_S
