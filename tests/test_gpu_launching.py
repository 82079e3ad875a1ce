"""Launches that do not ask Triton again: what starts is what Triton would have started.

Kernels are compiled for a GPU that is not there, by a driver that writes launches down.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from gates import tools

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from diffgen.backends.triton import launching
from diffgen.backends.triton.launching import launch

OPTIONS = {"num_warps": 1, "num_stages": 2, "enable_fp_fusion": False}
ROOM = torch.zeros(64, dtype=torch.float64)


@triton.jit(do_not_specialize=["count"])
def scale(source, target, extra, count, width, BLOCK: tl.constexpr, FACTOR: tl.constexpr):
    place = tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(source + place * width, mask=inside, other=0.0)
    if extra is not None:
        value += tl.load(extra + place, mask=inside, other=0.0)
    tl.store(target + place, value * FACTOR, mask=inside)


class Driver:
    """Of an sm_90: loads nothing, and writes launches down."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.utils = self

    @staticmethod
    def get_current_device() -> int:
        return 0

    @staticmethod
    def get_current_stream(_: int) -> int:
        return 7

    @staticmethod
    def get_current_target() -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    @staticmethod
    def get_device_properties(_: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448}

    @staticmethod
    def load_binary(_: str, binary: bytes, *__: object) -> tuple[object, bytes, int, int, int]:
        return object(), binary, 1, 0, 1024

    def unload_module(self, _: object) -> None:
        """Nothing was loaded."""

    def launcher_cls(self, *_: object) -> Any:
        def start(*arguments: Any) -> None:
            self.launches.append(arguments[:5] + arguments[9:])

        return start


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    try:
        tools.triton()
    except tools.Missing as missing:
        pytest.skip(str(missing))
    if not triton.__version__.startswith(launching.KNOWN):
        pytest.skip(f"launches of triton {triton.__version__} are its own")
    monkeypatch.setattr(launching, "_launchers", {})
    made = Driver()
    monkeypatch.setattr(driver, "_active", made)
    scale.device_caches.clear()
    yield made
    # While this driver is there to unload them.
    launching._launchers.clear()
    scale.device_caches.clear()
    gc.collect()


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and all(
        a is b if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


VARIANTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((ROOM, ROOM, None, 5, 3), {}),
    ((ROOM[1:], ROOM, None, 5, 3), {}),
    ((ROOM[2:], ROOM, None, 5, 3), {}),
    ((ROOM.float(), ROOM, None, 5, 3), {}),
    ((ROOM, ROOM, ROOM, 5, 3), {}),
    ((ROOM, ROOM, ROOM[1:], 5, 3), {}),
    ((ROOM, ROOM, None, 5, 1), {}),
    ((ROOM, ROOM, None, 5, 16), {}),
    ((ROOM, ROOM, None, 5, 2**31 - 1), {}),
    ((ROOM, ROOM, None, 5, 2**31), {}),
    ((ROOM, ROOM, None, 5, 2**31 + 1), {}),
    ((ROOM, ROOM, None, 1, 3), {}),
    ((ROOM, ROOM, None, 16, 3), {}),
    ((ROOM, ROOM, None, 2**40, 3), {}),
    ((ROOM, ROOM, None, -(2**31), 3), {}),
    ((ROOM, ROOM, None, 5, -(2**31) - 1), {}),
    ((ROOM, ROOM, None, 5, 3), {"BLOCK": 32}),
    ((ROOM, ROOM, None, 5, 3), {"FACTOR": 0.25}),
    ((ROOM, ROOM, None, 5, 3), {"num_warps": 2}),
    ((ROOM, ROOM, None, 5, 3), {"enable_fp_fusion": True}),
]


def test_what_starts_is_what_triton_starts(watched: Driver) -> None:
    for arguments, changes in [*VARIANTS, *VARIANTS]:
        keywords = {"BLOCK": 16, "FACTOR": 0.5, **OPTIONS, **changes}
        scale[(3, 2)](*arguments, **keywords)
        launch(scale, (3, 2), *arguments, **keywords)
        own, ours = watched.launches[-2:]
        assert same(own, ours), (arguments[3:], changes)
    assert len(watched.launches) == 4 * len(VARIANTS)


def test_triton_is_asked_once_for_arguments_of_a_kind(watched: Driver) -> None:
    asked = mock.Mock(side_effect=JITFunction.run, autospec=True)
    with mock.patch.object(JITFunction, "run", lambda *a, **k: asked(*a, **k)):
        for count in (5, 7, 9):
            for target in (ROOM, ROOM.clone()):
                launch(scale, (1,), ROOM, target, None, count, 3, BLOCK=16, FACTOR=2.0, **OPTIONS)
        assert asked.call_count == 1
        launch(scale, (1,), ROOM, target=ROOM, extra=None, count=3, width=3, BLOCK=16, FACTOR=2.0,
               **OPTIONS)  # fmt: skip
        assert asked.call_count == 1
        launch(scale, (1,), ROOM, ROOM[1:], None, 5, 3, BLOCK=16, FACTOR=2.0, **OPTIONS)
        assert asked.call_count == 2
    assert len(watched.launches) == 8


def test_other_versions_are_asked_each_time(
    watched: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "KNOWN", ("0.",))
    asked = mock.Mock(side_effect=JITFunction.run, autospec=True)
    with mock.patch.object(JITFunction, "run", lambda *a, **k: asked(*a, **k)):
        for _ in range(3):
            launch(scale, (1,), ROOM, ROOM, None, 5, 3, BLOCK=16, FACTOR=2.0, **OPTIONS)
    assert asked.call_count == len(watched.launches) == 3


def test_options_that_are_not_told_apart_are_refused(watched: Driver) -> None:
    with pytest.raises(ValueError, match=r"options of a launch must be of .*, got \['maxnreg'\]"):
        launch(scale, (1,), ROOM, ROOM, None, 5, 3, BLOCK=16, FACTOR=2.0, maxnreg=64, **OPTIONS)


def test_constants_come_last_and_in_capitals() -> None:
    try:
        tools.triton()
    except tools.Missing as missing:
        pytest.skip(str(missing))
    from gates.triton_problems import kernel_cases

    kernel_cases("sm_90")
    known = [*launching._launchers.values()]
    assert len(known) >= 25
    for launcher in known:
        constants = [bool(parameter.is_constexpr) for parameter in launcher.kernel.params]
        assert constants == [name.isupper() for name in launcher.names] == sorted(constants)
