"""The C++ backend as a guest in a Python process: threads, forks, signals, memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from processes import ELSEWHERE
from torch import Tensor

from diffgen import EmpiricalDenoiser, TrainingSet, functional
from diffgen.backends import native, reference, registry
from diffgen.backends.problem import Problem

pytestmark = pytest.mark.skipif(
    native.load_native() is None, reason=native.why_not_native() or "native core"
)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def rows(count: int, features: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, features, generator=generator) * 2 - 1


def run_script(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ELSEWHERE,
    )


# About ten seconds of work on one thread.
LONG_CALL = """
    import torch
    from diffgen import EmpiricalDenoiser, TrainingSet
    torch.set_num_threads(2)
    denoiser = EmpiricalDenoiser(TrainingSet(torch.rand(40_000, 1024)), backend="cpu")
    x = torch.rand(4096, 1024)
    with torch.no_grad():
        denoiser(x[:1], 10.0)
        print("started", flush=True)
        denoiser(x, 10.0)
    print("finished", flush=True)
"""


def test_interrupt_ends_a_long_call_within_a_second():
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LONG_CALL)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ELSEWHERE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    time.sleep(0.3)
    sent = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    elapsed = time.monotonic() - sent
    assert "finished" not in out
    assert "KeyboardInterrupt" in err
    # A second for the call, and what the interpreter takes to go down on a busy machine.
    assert elapsed < 2.5


def moments_of(seed: int) -> tuple[Tensor, ...]:
    view = TrainingSet(rows(3000, 300)).view()
    sigma = torch.full((20,), 0.7, dtype=torch.float64)
    return functional.moments(view, rows(20, 300, seed), sigma, functionals=True, backend="cpu")


def same_in_child(denoiser: EmpiricalDenoiser, x: Tensor, want: Tensor, queue) -> None:
    queue.put(bool(torch.equal(denoiser(x, 0.7), want)))


def test_forked_child_computes_the_same(two_threads):
    # The set and the queries come from the parent: torch's own OpenMP hangs in a forked child.
    denoiser = EmpiricalDenoiser(TrainingSet(rows(3000, 300)), backend="cpu")
    x = rows(20, 300, 5)
    want = denoiser(x, 0.7)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=same_in_child, args=(denoiser, x, want, queue))
    child.start()
    assert queue.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0


class Noised(torch.utils.data.Dataset):
    """Denoised samples, computed in the worker."""

    def __init__(self, denoiser: EmpiricalDenoiser) -> None:
        self.denoiser = denoiser

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return self.denoiser(rows(1, 300, index), 0.5)[0]


def test_data_loader_workers_run_it(two_threads):
    data = Noised(EmpiricalDenoiser(TrainingSet(rows(3000, 300)), backend="cpu"))
    want = torch.stack([data[i] for i in range(8)])
    loader = torch.utils.data.DataLoader(
        data, batch_size=4, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    got = torch.cat(list(loader))
    # Workers run one thread, the parent two: the merge differs in its last digits.
    assert (got - want).abs().max() < 1e-5


def test_calls_from_several_threads_are_right(two_threads):
    wants = [moments_of(seed) for seed in range(6)]
    wrong: list[int] = []

    def call(seed: int) -> None:
        for _ in range(5):
            got = moments_of(seed)
            if not all(torch.equal(a, b) for a, b in zip(got, wants[seed], strict=True)):
                wrong.append(seed)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_the_interpreter_runs_on_meanwhile():
    denoiser = EmpiricalDenoiser(TrainingSet(rows(40_000, 512)), backend="cpu")
    x = rows(256, 512, 1)
    beats: list[float] = []
    done = threading.Event()

    def beat() -> None:
        while not done.is_set():
            beats.append(time.monotonic())
            time.sleep(0.005)

    thread = threading.Thread(target=beat)
    thread.start()
    start = time.monotonic()
    denoiser(x, 5.0)
    end = time.monotonic()
    done.set()
    thread.join()
    # A held lock would leave no beat inside the call but those that it began and ended with.
    assert end - start > 0.05
    assert sum(start + 0.02 < beat < end - 0.02 for beat in beats) > 2


def test_threads_follow_torch():
    script = """
        import os, torch
        from diffgen import EmpiricalDenoiser, TrainingSet
        denoiser = EmpiricalDenoiser(TrainingSet(torch.rand(4000, 400)), backend="cpu")
        torch.set_num_threads(1)
        before = len(os.listdir("/proc/self/task"))
        denoiser(torch.rand(8, 400), 1.0)
        one = len(os.listdir("/proc/self/task")) - before
        torch.set_num_threads(4)
        before = len(os.listdir("/proc/self/task"))
        denoiser(torch.rand(8, 400), 1.0)
        print(one, len(os.listdir("/proc/self/task")) - before)
    """
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("needs /proc to count threads")
    result = run_script(script)
    assert result.stdout.split() == ["0", "3"], result.stderr


MEMORY = """
    import resource, sys, torch
    from diffgen import TrainingSet, functional
    torch.set_num_threads(2)
    count, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
    view = TrainingSet(torch.rand(count, 3072)).view()
    x, sigma = torch.rand(200, 3072, dtype=dtype), torch.full((200,), 9.0, dtype=torch.float64)
    functional.moments(view, x[:1], sigma[:1], functionals=True, backend="cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    functional.moments(view, x, sigma, functionals=True, backend="cpu")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extra_memory_does_not_grow_with_the_set(dtype):
    # 64 MiB, and for each thread and each of at most 64 queries at once 32 bytes a feature:
    # the sums, the queries and, for float64 queries, what they are anchored to.
    bound = 64 * 2**20 + 2 * 64 * 3072 * 32
    for count in (2_000, 20_000):
        result = run_script(MEMORY, str(count), dtype)
        assert result.returncode == 0, result.stderr
        assert int(result.stdout) * 1024 < bound


def test_weights_on_long_rows_are_still_in_the_promise():
    """Tiles whose mean row is short pass for precise; the few long rows then get the weights."""
    count, features = 4000, 3072
    data = rows(count, features) * 0.02
    long = torch.arange(7, count, 97)
    data[long] = rows(len(long), features, 1).sign()
    query = data[long[:6]] * 6 + 5 * torch.randn(
        6, features, generator=torch.Generator().manual_seed(2)
    )
    problem = Problem(
        query=query,
        sigma=torch.full((6,), 20.0, dtype=torch.float64),
        alpha=None,
        exclude=None,
        data=data,
        norms=data.double().square().sum(1),
        log_weights=None,
        rows=None,
        scale=1.0,
        offset=0.0,
    )
    mean, logsumexp, *_ = registry.get("cpu").moments(problem, False, 0, torch.float64)
    want_mean, want_logsumexp, *_ = reference.moments(problem, False, 0, torch.float64)
    assert (mean - want_mean).abs().max() < 1e-5
    assert (logsumexp - want_logsumexp).abs().max() < 1e-3


def test_results_are_the_same_bits_again(two_threads):
    first, second = moments_of(3), moments_of(3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
