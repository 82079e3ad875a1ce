"""Packages of the extras: what only some parts of diffgen need."""

from __future__ import annotations

import importlib
from typing import Any


class MissingDependencyError(ImportError):
    """A package that comes with one of diffgen's extras is not installed."""


def require(module: str, package: str, extra: str) -> Any:
    """Imports a module of an optional package.

    Args:
        module: What to import.
        package: What the package is called where it is installed from.
        extra: The extra of diffgen that brings it.

    Returns:
        The module.

    Raises:
        MissingDependencyError: If it is not installed; the message says how to install it.

    Example:
        >>> require("no_such_module", "no-such-package", "demo")
        Traceback (most recent call last):
            ...
        diffgen.optional.MissingDependencyError: this needs no-such-package: pip install ...
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"this needs {package}: pip install 'diffgen[{extra}]'"
        raise MissingDependencyError(message) from error
