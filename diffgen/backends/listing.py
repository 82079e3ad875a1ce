"""What ``diffgen.backends()`` returns: which backends can run here, and why the others cannot."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from diffgen.backends import registry


class BackendStatus(NamedTuple):
    """A backend on this machine.

    Attributes:
        name: What ``backend=`` takes.
        usable: Whether it can run here at all; one problem may still be refused.
        reason: Why not; None when it is usable.
        automatic: Whether ``backend="auto"`` may choose it; others run when named.
        arithmetic: How it computes, in a few words.
    """

    name: str
    usable: bool
    reason: str | None
    automatic: bool
    arithmetic: str


def describe() -> list[BackendStatus]:
    """Every backend, the ones that ``"auto"`` prefers first.

    Example:
        >>> [backend.usable for backend in describe() if backend.name == "eager"]
        [True]
    """
    found = []
    for name in registry.names():
        backend = registry.get(name)
        reason = backend.unavailable()
        automatic = backend.priority >= 0
        found.append(BackendStatus(name, reason is None, reason, automatic, backend.arithmetic))
    return found


class CallableModule(ModuleType):
    """The class of the package ``diffgen.backends``: called, it lists the backends.

    The package and the public function have one name. A function put over the package would hide
    ``diffgen.backends.registry`` from whoever writes it out; a module that can be called hides
    nothing.
    """

    def __call__(self) -> list[BackendStatus]:
        """Every backend, the ones that ``"auto"`` prefers first."""
        return describe()
