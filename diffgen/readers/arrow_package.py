"""pyarrow, which the table formats need: found, new enough, and its errors made ours."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from typing import Any

from diffgen.errors import DataError
from diffgen.optional import require

OLDEST = (14, 0, 1)
"""Versions before run code that is pickled in a file's schema (CVE-2023-47248)."""


def arrow() -> Any:
    """The module, with ``ipc``.

    Raises:
        ImportError: It is not installed, or too old to be shown a stranger's file.
    """
    module = require("pyarrow", "pyarrow", "arrow")
    version = tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:3])
    if version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(
            f"pyarrow must be {oldest} or newer, got {module.__version__}, which may run what a "
            "file holds: pip install -U pyarrow"
        )
    importlib.import_module("pyarrow.ipc")
    return module


def check_names(schema: Any) -> None:
    """Raise if the name of a column, or of a part of one, is not text.

    Args:
        schema: A ``pyarrow.Schema``, whose names are decoded only when they are asked for.
    """
    for field in schema:
        parts = range(field.type.num_fields if arrow().types.is_struct(field.type) else 0)
        for part in (field, *map(field.type.field, parts)):
            _ = part.name


@contextlib.contextmanager
def refusing(where: str) -> Iterator[None]:
    """Turn whatever is raised over a damaged file into a ``DataError`` with the place.

    Args:
        where: File and place, for the message.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # hostile bytes can fail anywhere in a parser
        message = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: {message[:300]}") from error
