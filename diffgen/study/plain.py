"""Values as JSON has them, and back."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DIGITS = 7
"""Significant digits of what is written: a float32's, and enough for every number of a report.

The report is computed from what is written, so that it and the JSON agree to the last digit.
"""


def plain(value: Any) -> Any:
    """A value as JSON has it: tensors as lists, numbers with seven digits, null for no number.

    Args:
        value: Numbers, texts, tensors, dataclasses, mappings and sequences of them. Anything else
            becomes its ``str``.

    Example:
        >>> plain({"gap": torch.tensor([0.1, float("nan")]), "n": 3})
        {'gap': [0.1, None], 'n': 3}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return str(value)


def pack_images(images: Tensor, limits: tuple[float, float]) -> dict[str, Any]:
    """Images for a figure: 8 bits an element, in base64.

    Args:
        images: ``(M, *S)``.
        limits: The values that become 0 and 255; what lies outside is clipped.

    Returns:
        Shape and text, for `unpack_images`.

    Example:
        >>> packed = pack_images(torch.tensor([[-1.0, 1.0]]), (-1.0, 1.0))
        >>> unpack_images(packed)
        tensor([[  0, 255]], dtype=torch.uint8)
    """
    low, high = limits
    levels = ((images.double() - low) / (high - low)).nan_to_num(nan=0.0).clamp(0, 1) * 255
    data = levels.round().to(torch.uint8).cpu().contiguous().numpy().tobytes()
    return {"shape": list(images.shape), "uint8_base64": base64.b64encode(data).decode("ascii")}


def unpack_images(packed: Mapping[str, Any]) -> Tensor:
    """The images of `pack_images`, ``(M, *S)`` uint8."""
    data = bytearray(base64.b64decode(packed["uint8_base64"]))
    return torch.frombuffer(data, dtype=torch.uint8).reshape(packed["shape"])
