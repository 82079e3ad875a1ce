"""Pickles of strangers, read without building an object or calling a function of theirs.

A pickle is a program. This reader accepts the few instructions that plain containers and NumPy
arrays need, and answers every name in it with a ``Recipe``: an inert note of what was asked for.
The caller then makes arrays of the recipes it recognises.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np

from diffgen.errors import DataError
from diffgen.readers.source import Array

ALLOWED_NAMES = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
        ("_codecs", "encode"),
    }
)
"""What NumPy writes for an array, and Python 3 for bytes in protocol 2."""

# fmt: off
ALLOWED_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT",
    "MEMOIZE", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
    "BININT2", "LONG1", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "BINUNICODE", "SHORT_BINUNICODE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
})
# fmt: on
"""Instructions of protocols 2 to 5 that those need."""


class Recipe:
    """What a pickle says of an object it wants: a name, arguments, a state. Nothing is run."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        """Note a name and its arguments."""
        self.name = name
        self.arguments = arguments
        self.state: Any = None

    def __call__(self, *arguments: Any) -> Recipe:
        """Note a call."""
        return Recipe(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        """Note a state."""
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return Recipe(name)


def load(content: bytes, where: str) -> Any:
    """Read a pickle of containers, numbers, strings and recipes.

    Args:
        content: The pickle.
        where: File, for messages.

    Returns:
        Containers, numbers, strings as bytes where Python 2 wrote them, and recipes.

    Raises:
        DataError: It names anything but NumPy's arrays, or is damaged. Nothing of it has run.

    Example:
        >>> load(pickle.dumps(print), "a.pickle")
        Traceback (most recent call last):
        ...
        diffgen.errors.DataError: a.pickle: refused pickle: builtins.print is not allowed
    """
    try:
        _check_opcodes(content)
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a hostile pickle can fail anywhere
        raise DataError(f"{where}: refused pickle: {error}") from error


def _check_opcodes(content: bytes) -> None:
    """Refuse instructions that are not needed, and memo places that would allocate gigabytes."""
    for count, (opcode, argument, position) in enumerate(pickletools.genops(content)):
        if opcode.name not in ALLOWED_OPCODES:
            raise pickle.UnpicklingError(f"{opcode.name} at byte {position} is not allowed")
        if opcode.name == "GLOBAL" and tuple(str(argument).split(" ")) not in ALLOWED_NAMES:
            raise pickle.UnpicklingError(f"{str(argument).replace(' ', '.')} is not allowed")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise pickle.UnpicklingError(f"memo place {argument} at byte {position} is too large")


def to_array(value: Any, where: str) -> Array:
    """Make the array that a recipe of unsigned bytes describes.

    Args:
        value: A recipe.
        where: File, for messages.

    Returns:
        A read-only uint8 array in C order.

    Raises:
        DataError: Not a recipe of such an array.
    """
    recipe = value if isinstance(value, Recipe) else Recipe("")
    if recipe.name == "_reconstruct" and _is_tuple(recipe.state, 5):
        _, shape, dtype, fortran, content = recipe.state
    elif recipe.name == "_frombuffer" and len(recipe.arguments) == 4:
        content, dtype, shape, order = recipe.arguments
        fortran = order not in ("C", b"C")
    else:
        raise DataError(f"{where}: must be a NumPy array of bytes, got {type(value).__name__}")
    content = to_bytes(content)
    is_bytes = (
        isinstance(dtype, Recipe)
        and dtype.name == "dtype"
        and dtype.arguments[:1] in (("u1",), (b"u1",))
    )
    sizes = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
    if not is_bytes or not sizes or fortran is not False or not isinstance(content, bytes):
        raise DataError(f"{where}: must be a C-ordered NumPy array of unsigned bytes")
    try:
        return np.frombuffer(content, np.uint8).reshape(shape)
    except ValueError as error:
        raise DataError(f"{where}: {len(content)} bytes for shape {shape}") from error


def to_bytes(value: Any) -> Any:
    """Bytes of what stands for bytes in some protocol; anything else as it is."""
    if isinstance(value, bytearray):
        return bytes(value)
    if (
        isinstance(value, Recipe)
        and value.name == "encode"
        and len(value.arguments) == 2
        and isinstance(value.arguments[0], str)
        and value.arguments[1] in ("latin1", b"latin1")
    ):
        return value.arguments[0].encode("latin1", errors="replace")
    return value


def _is_tuple(value: Any, length: int) -> bool:
    return isinstance(value, tuple) and len(value) == length
