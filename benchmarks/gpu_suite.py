"""What `make gpu` runs: the tests of the GPU, the sanitizers, the benchmark.

Without a GPU it says what is missing and succeeds: there is nothing to run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
# An installed diffgen has its compiled parts, the checkout may not.
if __name__ == "__main__" and str(ROOT) in sys.path:
    sys.path.remove(str(ROOT))
    sys.path.append(str(ROOT))

import torch  # noqa: E402

from diffgen.cli.gpu_text import gpu_lines  # noqa: E402
from diffgen.gpu_state import gpu_state  # noqa: E402

TESTS = ("-m", "gpu", "tests/test_gpu_device.py", "tests/test_gpu_users.py")
SUBSET = "test_small"
"""Tests that a sanitizer runs, which slows them down a hundredfold."""

TOOLS: dict[str, tuple[str, ...]] = {
    # Triton and PyTorch ask the driver for what they then do without.
    "memcheck": ("--report-api-errors", "no"),
    "racecheck": (),
    "synccheck": (),
    "initcheck": (),
}
"""The sanitizer's tools, and what each is told."""


def commands(sanitizer: str | None) -> list[list[str]]:
    """What is run, in this order.

    Args:
        sanitizer: The program ``compute-sanitizer``, or None where there is none.
    """
    python = sys.executable
    # The script, not `python -m pytest`, which would import the checkout's diffgen.
    tests = [python, str(Path(python).with_name("pytest")), *TESTS]
    checks = [
        [sanitizer, "--tool", tool, *more, "--error-exitcode", "9", *tests, "-k", SUBSET]
        for tool, more in TOOLS.items()
        if sanitizer is not None
    ]
    times = [[python, "-m", f"benchmarks.{name}"] for name in ("gpu", "gpu_profile")]
    return [tests, *checks, *times]


def find_sanitizer() -> str | None:
    """The program ``compute-sanitizer`` of ``PATH``, or of the toolkit."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which(f"{home}/bin/compute-sanitizer")


def main(argv: Sequence[str] = ()) -> int:
    """Runs everything, up to the first that fails."""
    print("\n".join(gpu_lines(gpu_state())), flush=True)
    if not torch.cuda.is_available():
        print("SKIPPED GPU tests, sanitizers and benchmark: PyTorch sees no GPU")
        return 0
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print("SKIPPED sanitizers: compute-sanitizer is neither on PATH nor in CUDA_HOME")
    for command in commands(sanitizer):
        print("+", " ".join(command), flush=True)
        # Each allocation by itself: a sanitizer sees no step past the end of a piece of a pool.
        pool = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if command[0] == sanitizer else {}
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **pool}, check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
