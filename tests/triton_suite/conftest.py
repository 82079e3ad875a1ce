"""Settings of the suites that execute Triton kernels.

They run in processes of their own, which ``tests/test_triton.py`` starts: Triton reads
``TRITON_INTERPRET`` when it makes a kernel, and ttsem takes over launches and torch's devices.
``DIFFGEN_TRITON_SUITE`` names what executes the kernels: ``interpreter`` (Triton's own, tensors on
the CPU), ``ttsem`` (the compiled IR, tensors that pass for CUDA's) or ``gpu``.
"""

from __future__ import annotations

import os

import pytest
import torch

SUITES = ("interpreter", "ttsem", "gpu")
SUITE = os.environ.get("DIFFGEN_TRITON_SUITE", "")

collect_ignore_glob = [] if SUITE else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker, and refuses a suite that nothing executes."""
    config.addinivalue_line(
        "markers", "only(*suites): a claim that only some executions of a kernel can bear out"
    )
    if SUITE and SUITE not in SUITES:
        names = ", ".join(SUITES)
        raise pytest.UsageError(f"DIFFGEN_TRITON_SUITE must be one of {names}, got {SUITE!r}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes out what is marked for other suites: a skip would be a hole in this one."""
    other = []
    for item in items:
        mark = item.get_closest_marker("only")
        if mark is not None and SUITE not in mark.args:
            unknown = sorted({*mark.args} - {*SUITES})
            if unknown:
                raise pytest.UsageError(f"{item.nodeid} is marked for unknown suites: {unknown}")
            other.append(item)
    if other:
        config.hook.pytest_deselected(items=other)
        items[:] = [item for item in items if item not in other]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tensors of a launch are."""
    if SUITE == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a GPU, got none")
    return torch.device("cpu" if SUITE == "interpreter" else "cuda")
