"""Configurations that were timed on a GPU: ``tuned/<architecture>.json``, above the defaults.

`benchmarks/gpu_tuning.py` writes them. Without a file for an architecture the defaults hold, so
that a launch never times anything, and the same release launches the same kernels everywhere.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffgen.backends.triton.configs import Config, Table, default

FOLDER = Path(__file__).parent / "tuned"

_tried: dict[str, Config] = {}


def chosen(table: Table, kernel: str, architecture: str) -> Config:
    """How a kernel is launched: as one is trying it, as it was tuned, or as its table says.

    Args:
        table: Where the kernel's default stands.
        kernel: Its name.
        architecture: Such as ``sm_90``, ``gfx942``, or ``cpu`` for the interpreter.
    """
    for found in (_tried, tuned(architecture)):
        if kernel in found:
            return found[kernel]
    return default(table, kernel, architecture)


@functools.cache
def tuned(architecture: str) -> dict[str, Config]:
    """The tuned configurations of an architecture by kernel; none where nobody tuned it.

    Raises:
        ValueError: The file is not what ``write`` writes.
    """
    path = FOLDER / f"{architecture}.json"
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text())["configs"].items()
        found = {
            kernel: Config(
                {str(block): int(size) for block, size in entry["blocks"].items()},
                int(entry["warps"]),
                int(entry["stages"]),
            )
            for kernel, entry in entries
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} must hold tuned configurations, got {error!r}") from error
    return found


def write(architecture: str, configs: dict[str, Config], settings: dict[str, str]) -> Path:
    """Makes configurations those of an architecture.

    Args:
        architecture: Whose.
        configs: Of each tuned kernel.
        settings: Where and when they were timed.

    Returns:
        The file.
    """
    entries = {
        kernel: {"blocks": config.blocks, "warps": config.warps, "stages": config.stages}
        for kernel, config in sorted(configs.items())
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{architecture}.json"
    path.write_text(json.dumps({"settings": settings, "configs": entries}, indent=2) + "\n")
    tuned.cache_clear()
    return path


@contextmanager
def trying(kernel: str, config: Config) -> Iterator[None]:
    """Launches a kernel with a configuration while the context is open, in this process."""
    before = _tried.get(kernel)
    _tried[kernel] = config
    try:
        yield
    finally:
        if before is None:
            del _tried[kernel]
        else:
            _tried[kernel] = before
