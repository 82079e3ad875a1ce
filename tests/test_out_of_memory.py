"""A thread of the kernels that gets no memory: an error in Python, and a process that goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from processes import ELSEWHERE, TESTS

from diffgen.backends import native

KEPT_MB = 63
"""What the segments of the script's rows take when they are kept apart: 40 x 64 x 3,072 x 8."""

SCRIPT = """
    import ctypes, dataclasses, resource, sys
    import problems, torch
    from streamed import place_over
    from diffgen.backends import cpu_pass
    from diffgen.backends.passes import PassOptions
    from diffgen.readers.rows import squared_norms

    torch.set_num_threads(int(sys.argv[1]))
    data = torch.randint(256, (40 * 1024, 3072), dtype=torch.uint8)
    query = torch.zeros(64, 3072, dtype=torch.float64)
    problem = problems.from_stored(data[:1], query, 80.0, torch.float32)
    problem = dataclasses.replace(problem, data=data, norms=squared_norms(data, problem.scale))
    options = PassOptions(False, 0, torch.float32, torch.get_num_threads(), keep_segments=True)

    def mean(rows=len(data)):
        place = place_over(problem, 1024, (0, rows))
        extent = place.extent(None)
        (only,) = place.run(lambda: (cpu_pass.CpuPass("auto", problem, extent, options),))
        only.merge_after(only.empty_state())
        return only.finish().moments[0]

    mean(2048)  # starts the threads
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as status:
        sizes = dict(line.split(":", 1) for line in status)
    used = int(sizes["VmData"].split()[0]) * 1024
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + (int(sys.argv[2]) << 20), most))
    try:
        mean()
        print("enough")
    except MemoryError:
        print("too little")
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    assert bool(mean().isfinite().all())
"""


def run(threads: int, spare_mb: int) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(threads), str(spare_mb)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ELSEWHERE,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.skipif(native.load_native() is None, reason=native.why_not_native() or "native core")
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("spare_mb", "said"), [(KEPT_MB // 2, "too little"), (1024, "enough")])
def test_a_pass_without_memory_is_an_error_and_the_next_one_works(threads, spare_mb, said):
    done = run(threads, spare_mb)
    assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr[-2000:]
