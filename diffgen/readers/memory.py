"""Data that is handed over in memory: tensors, arrays, memory maps, datasets, loaders."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffgen.readers import pread
from diffgen.readers.items import gather
from diffgen.readers.pread import Layout
from diffgen.readers.source import (
    STORED_TYPES,
    Array,
    Source,
    assemble,
    to_stored_type,
    type_name,
)

Data: TypeAlias = Tensor | Array | Dataset[Any] | DataLoader[Any]


@dataclass(frozen=True)
class Loaded:
    """Rows in memory.

    Attributes:
        data: ``(N, *S)``, contiguous, one of the stored types; shared with the caller where the
            caller's was so already. Or the open file behind a memory map, where its rows stay.
        labels: Labels that came with the rows, ``(N,)`` int64, or None.
        mapped: File and layout behind a memory map, or None.
    """

    data: Tensor | Source
    labels: Tensor | None = None
    mapped: tuple[str, Layout] | None = None


def load(data: Data, stays: Callable[[tuple[int, ...], torch.dtype], bool]) -> Loaded:
    """Bring data of any accepted kind into one contiguous tensor.

    Args:
        data: ``(N, *S)`` tensor or array; or a dataset or loader of ``x`` or ``(x, y)``.
        stays: Whether rows of this shape and type stay in the file of a memory map.

    Raises:
        TypeError: Another kind of object or another element type.
        ValueError: No rows, no features, or a map that cannot be read from its file.
        DataError: Items of different shapes, or a file that is shorter than its map.
    """
    if isinstance(data, Tensor):
        return Loaded(_checked(data.detach()).contiguous())
    if isinstance(data, np.ndarray):
        return _load_array(data, stays)
    if isinstance(data, Dataset | DataLoader):
        rows, labels = gather(data)
        return Loaded(_checked(rows), labels)
    raise TypeError(
        "data must be a Tensor, an ndarray, a torch Dataset or a DataLoader, got "
        f"{type(data).__name__}"
    )


def _checked(data: Tensor) -> Tensor:
    if data.dtype not in STORED_TYPES:
        names = ", ".join(map(type_name, STORED_TYPES))
        raise TypeError(f"data must be {names}, got {type_name(data.dtype)}")
    if data.layout != torch.strided or data.device.type == "meta":
        raise TypeError(f"data must be a dense tensor, got {data.layout} on {data.device}")
    if data.ndim == 0 or data.numel() == 0:
        raise ValueError(
            f"data must hold at least one row and one feature, got shape {tuple(data.shape)}"
        )
    return data


def _load_array(array: Array, stays: Callable[[tuple[int, ...], torch.dtype], bool]) -> Loaded:
    mapped = _behind(array)
    if mapped is not None and array.size > 0 and array.ndim > 0:
        path, layout = mapped
        if stays(layout.shape, layout.dtype):
            return Loaded(pread.reopen(path, layout), mapped=mapped)
        with pread.reopen(path, layout) as source:
            return Loaded(_checked(assemble(source)), mapped=mapped)
    if array.dtype.name == "bfloat16":  # of ml_dtypes: NumPy has none of its own
        bits = np.ascontiguousarray(array).view(np.uint16)
        return Loaded(_checked(_share(bits).view(torch.bfloat16)))
    if to_stored_type(array.dtype) is None:
        names = ", ".join(map(type_name, STORED_TYPES))
        raise TypeError(f"data must be {names}, got {array.dtype}")
    native = array.dtype.newbyteorder("=")
    return Loaded(_checked(_share(np.ascontiguousarray(array, dtype=native))))


def _share(array: Array) -> Tensor:
    """A tensor over the memory of an array, writable or not: a training set never writes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(np.asarray(array))


def _behind(array: Array) -> tuple[str, Layout] | None:
    """File and layout behind an array that looks into a memory map; None if it does not.

    The map itself is never touched: its pages may be gone from the file, and that kills.
    """
    owner: Any = array
    while owner is not None and getattr(owner, "_mmap", None) is None:
        owner = getattr(owner, "base", None)
    if owner is None:
        return None
    if owner.mode == "c":
        raise ValueError(
            "data must not be a copy-on-write memory map, whose changes are not in the file: "
            "pass np.array(data)"
        )
    if owner.filename is None:
        raise ValueError("data is a memory map without a file name: pass np.array(data)")
    dtype = to_stored_type(array.dtype)
    if dtype is None:
        names = ", ".join(map(type_name, STORED_TYPES))
        raise TypeError(f"data must be {names}, got {array.dtype}")
    if array.ndim == 0 or array.size == 0:
        return None
    row = prod(array.shape[1:]) * array.itemsize
    stride = array.strides[0] if len(array) > 1 else row
    if not array[:1].flags.c_contiguous or stride < 0:
        raise ValueError(
            f"data must be a memory map with rows in C order, got strides {array.strides}: pass "
            "np.ascontiguousarray(data)"
        )
    # A slice keeps the offset of the array it was cut from, so the place follows from addresses.
    # NumPy maps from the last multiple of the granularity at or below the offset.
    mapped_from = owner.offset - owner.offset % mmap.ALLOCATIONGRANULARITY
    offset = mapped_from + _address(array) - _address(np.frombuffer(owner._mmap, np.uint8))
    layout = Layout(tuple(array.shape), dtype, offset, stride, not array.dtype.isnative)
    return str(owner.filename), layout


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
