"""Stages in order, each kept as soon as it is done: a study that is stopped goes on where it was.

A stage is a function of the context, which gives it the settings, the data, its own source of
random numbers, and what the stages that it needs have found. Its key is a digest of all that:
settings, data, code, and the keys of the stages it needs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from diffgen.study.store import StageResult, StageStore, digest

C = TypeVar("C", bound="Found")

Output = tuple[dict[str, Any], dict[str, Tensor]]
"""Values for the JSON, and arrays for the stages to come."""

Say = Callable[[str], None]
"""Takes a line of progress."""


class Found:
    """What the stages have found so far; a context derives from it."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.found: dict[str, StageResult] = {}

    def values(self, stage: str) -> dict[str, Any]:
        """The numbers of a finished stage."""
        return self.found[stage].values

    def arrays(self, stage: str) -> dict[str, Tensor]:
        """The tensors of a finished stage."""
        return self.found[stage].arrays


@dataclass(frozen=True)
class Stage(Generic[C]):
    """One part of a study.

    Attributes:
        name: Its name in files and in the JSON.
        title: What it does, for the line of progress.
        run: From the context to values and arrays.
        needs: The stages whose results it takes up; they come before it.
        nominal_s: How long it takes by default, to estimate how much is left.
        shared: Whether it asks a large set alone, needs no other stage, and makes the same calls
            wherever it runs, so that processes that hold the set in parts can run it together.
    """

    name: str
    title: str
    run: Callable[[C], Output]
    needs: tuple[str, ...] = ()
    nominal_s: float = 1.0
    shared: bool = False


def run_stages(
    stages: Sequence[Stage[C]],
    context: C,
    store: StageStore,
    subject: Any,
    say: Say = print,
    *,
    size: float = 1.0,
) -> None:
    """Runs what is not in the store yet, in order; each result is kept before the next stage.

    Args:
        stages: The stages, each after those it needs.
        context: Given to each; ``context.found`` has the results, also when a stage raises.
        store: Where results are kept.
        subject: JSON-able, what the results depend on: settings, digest of the data.
        say: Takes the lines of progress.
        size: How much of the usual work is to be done, for the first estimates of the time.

    Raises:
        ValueError: If a stage needs one that does not come before it.
        OSError: If a result cannot be kept.

    Example:
        >>> import tempfile
        >>> count = Stage("count", "counting", lambda context: ({"n": 3}, {}))
        >>> square = Stage(
        ...     "square", "squaring", lambda c: ({"n": c.values("count")["n"] ** 2}, {}), ("count",)
        ... )
        >>> context = Found()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run_stages((count, square), context, StageStore(Path(folder)), {}, str)
        >>> context.values("square")
        {'n': 9}
    """
    keys = stage_keys(stages, subject)
    clock = _Clock(stages, size)
    for index, stage in enumerate(stages):
        head = f"[{index + 1}/{len(stages)}] {stage.title}"
        kept = store.read(stage.name, keys[stage.name])
        if kept is not None:
            context.found[stage.name] = kept
            clock.skip(stage)
            say(f"{head}: done before")
            continue
        say(f"{head} …{clock.left(index)}")
        started = time.perf_counter()
        values, arrays = stage.run(context)
        seconds = time.perf_counter() - started
        store.write(stage.name, keys[stage.name], StageResult(values, arrays, seconds))
        # As a resumed study reads it: rounded, and what JSON has.
        context.found[stage.name] = _read(store, stage.name, keys[stage.name])
        clock.done(stage, seconds)


def stage_keys(stages: Sequence[Stage[Any]], subject: Any) -> dict[str, str]:
    """The key of each stage: a digest of all that its result depends on.

    Raises:
        ValueError: If a stage needs one that does not come before it.
    """
    keys: dict[str, str] = {}
    for stage in stages:
        missing = [name for name in stage.needs if name not in keys]
        if missing:
            raise ValueError(f"stage {stage.name!r} needs {missing[0]!r} before it, got {[*keys]}")
        made_of = {"subject": subject, "stage": stage.name, "code": code_digest()}
        keys[stage.name] = digest({**made_of, "needs": [keys[name] for name in stage.needs]})
    return keys


@cache
def code_digest() -> str:
    """A sha256 of diffgen's Python sources: results of two versions are not mixed in one study."""
    root = Path(__file__).resolve().parent.parent
    sha256 = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        sha256.update(f"{path.relative_to(root).as_posix()}\0".encode())
        sha256.update(path.read_bytes())
    return sha256.hexdigest()


def _read(store: StageStore, name: str, key: str) -> StageResult:
    result = store.read(name, key)
    if result is None:
        raise OSError(f"{store.folder} does not give back what was written to it (stage {name})")
    return result


_TRUST_S = 60.0
"""Seconds of work after which the machine's own pace counts as much as the nominal one."""


class _Clock:
    """Elapsed time, and an estimate of what is left from how long the stages took so far."""

    def __init__(self, stages: Sequence[Stage[Any]], size: float) -> None:
        self._stages = stages
        self._size = size
        self._started = time.perf_counter()
        self._nominal = self._measured = 0.0
        self._skipped: set[str] = set()

    def skip(self, stage: Stage[Any]) -> None:
        self._skipped.add(stage.name)

    def done(self, stage: Stage[Any], seconds: float) -> None:
        self._nominal += stage.nominal_s
        self._measured += seconds

    def left(self, index: int) -> str:
        nominal = sum(stage.nominal_s for stage in self._stages[index:])
        pace = (self._measured + _TRUST_S * self._size) / (self._nominal + _TRUST_S)
        elapsed = time.perf_counter() - self._started
        return f" ({elapsed:.0f} s so far, about {pace * nominal:.0f} s left)"
