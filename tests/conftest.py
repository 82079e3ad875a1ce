"""Settings of all tests: Hypothesis profiles and poisoned memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

_COMMON = {"deadline": None, "max_examples": 25}
hypothesis.settings.register_profile("local", **_COMMON)
hypothesis.settings.register_profile("ci", derandomize=True, **_COMMON)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

# What torch.empty returns is NaN, or the largest integer: an output that is not written shows.
torch.utils.deterministic.fill_uninitialized_memory = True
torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For problems so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
