"""The contracts on arguments: one function each, the only place that raises for a bad one.

What a function can tell from shapes, types and devices is checked here, in Python. Values (the
sign of ``sigma``, the range of labels and ``exclude``) are checked inside the ops, so that
``torch.compile`` and accelerators do not have to wait for them.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

QUERY_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""The types that noisy points may have."""

INTEGER_TYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""The types that ids and labels may have."""

NO_CLASS = -1
"""The label of a query that is compared with the whole set."""

BAD_CLASS = -2
"""What a row that is not one-hot becomes, for the op to refuse where it checks values."""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_query(x: Tensor, sample_shape: Sequence[int], device: torch.device) -> None:
    """Checks that ``x`` holds noisy points for samples of one shape.

    Args:
        x: Noisy points, ``(B, *sample_shape)``.
        sample_shape: Shape of one training point.
        device: Where the training set is.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If its shape or device differs.

    Example:
        >>> check_query(torch.zeros(2, 3), (3,), torch.device("cpu"))
        >>> check_query(torch.zeros(2, 4), (3,), torch.device("cpu"))
        Traceback (most recent call last):
            ...
        ValueError: x must have shape (B, 3), got (2, 4)
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dtype not in QUERY_TYPES:
        known = ", ".join(map(_name, QUERY_TYPES))
        raise TypeError(f"x must be one of {known}, got {_name(x.dtype)}")
    if x.shape[1:] != sample_shape or x.ndim == 0:
        need = ", ".join(map(str, ("B", *sample_shape)))
        raise ValueError(f"x must have shape ({need}), got {tuple(x.shape)}")
    if x.device != device:
        raise ValueError(f"x must be on {device}, where the training set is, got {x.device}")


def check_vectors(v: Tensor, x: Tensor) -> None:
    """Checks that ``v`` holds one vector for each noisy point.

    Raises:
        TypeError: If ``v`` is not a floating-point tensor.
        ValueError: If its shape or device is not that of ``x``.
    """
    if not isinstance(v, Tensor):
        raise TypeError(f"v must be a tensor, got {type(v).__name__}")
    if not v.dtype.is_floating_point:
        raise TypeError(f"v must be floating point, got {_name(v.dtype)}")
    if v.shape != x.shape:
        raise ValueError(f"v must have the shape of x, {tuple(x.shape)}, got {tuple(v.shape)}")
    if v.device != x.device:
        raise ValueError(f"v must be on {x.device}, where x is, got {v.device}")


def as_sigma(
    sigma: float | Tensor, batch: int, device: torch.device, name: str = "sigma"
) -> Tensor:
    """One noise standard deviation for each of ``batch`` queries, in float64.

    Args:
        sigma: A number, or a real tensor of any shape with 1 or ``batch`` elements, in the units
            of the data. Its value is not checked here.
        batch: Number of queries.
        device: Where they are. A tensor with one element may also be on the CPU.
        name: What messages call it.

    Returns:
        ``(batch,)`` float64 on ``device``; gradients flow back to ``sigma``.

    Raises:
        TypeError: If it is neither a real number nor a real tensor.
        ValueError: If it has another number of elements, or is elsewhere.

    Example:
        >>> as_sigma(0.5, 2, torch.device("cpu"))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    if isinstance(sigma, Tensor):
        return _tensor_sigma(sigma, batch, device, name)
    return torch.full((batch,), _number(sigma, name), dtype=torch.float64, device=device)


def _number(value: object, name: str) -> float:
    if isinstance(value, float):
        return value
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")


def _tensor_sigma(sigma: Tensor, batch: int, device: torch.device, name: str) -> Tensor:
    if sigma.dtype.is_complex or sigma.dtype == torch.bool:
        raise TypeError(f"{name} must be real, got {_name(sigma.dtype)}")
    count = sigma.numel()
    if count != batch and count != 1:
        need = "1 element" if batch == 1 else f"1 element or {batch}, one for each query"
        raise ValueError(f"{name} must have {need}, got shape {tuple(sigma.shape)}")
    if sigma.device != device:
        # A 0-dim CPU tensor is a number to every PyTorch operation.
        if sigma.ndim != 0 or sigma.device.type != "cpu":
            raise ValueError(f"{name} must be on {device}, where x is, got {sigma.device}")
        sigma = sigma.to(device)
    if sigma.dtype != torch.float64:
        sigma = sigma.to(torch.float64)
    if count != batch:
        return sigma.reshape(1).expand(batch).contiguous()
    return sigma if sigma.ndim == 1 else sigma.reshape(batch)


def as_labels(
    class_labels: Tensor | None, batch: int, num_classes: int, device: torch.device
) -> Tensor | None:
    """One class for each of ``batch`` queries, -1 for the whole set.

    Args:
        class_labels: Classes, ``(batch,)`` integers, or one-hot rows ``(batch, num_classes)`` of
            any type, where a row of zeros means the whole set; or None.
        batch: Number of queries.
        num_classes: Classes in the training set, 0 for a set without labels.
        device: Where the queries are.

    Returns:
        ``(batch,)`` int64, or None.

    Raises:
        TypeError: If it is no tensor, or ``(batch,)`` but not of integers.
        ValueError: If the set has no labels, or the shape or device differs.

    Example:
        >>> as_labels(torch.tensor([[0, 1], [0, 0]]), 2, 2, torch.device("cpu"))
        tensor([ 1, -1])
    """
    if class_labels is None:
        return None
    if not isinstance(class_labels, Tensor):
        raise TypeError(f"class_labels must be a tensor, got {type(class_labels).__name__}")
    if num_classes == 0:
        raise ValueError("class_labels need a training set with labels, got one without")
    if class_labels.device != device:
        raise ValueError(f"class_labels must be on {device}, where x is, got {class_labels.device}")
    shape = tuple(class_labels.shape)
    if shape == (batch, num_classes):
        return _from_one_hot(class_labels)
    if shape != (batch,):
        raise ValueError(
            f"class_labels must have shape ({batch},), or ({batch}, {num_classes}) with one-hot "
            f"rows, got {shape}"
        )
    if class_labels.dtype not in INTEGER_TYPES:
        raise TypeError(f"class_labels must be integers, got {_name(class_labels.dtype)}")
    return class_labels.to(torch.int64)


def _from_one_hot(rows: Tensor) -> Tensor:
    members = rows != 0
    count = members.sum(1)
    labels = members.to(torch.uint8).argmax(1)
    one_hot = (count == 1) & (rows == 1).any(1)
    none = torch.where(count == 0, NO_CLASS, BAD_CLASS)
    return torch.where(one_hot, labels, none)


def as_exclude(exclude: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
    """The id of the training point that each of ``batch`` queries leaves out.

    Args:
        exclude: Ids, ``(batch,)`` integers, -1 for none; or None.
        batch: Number of queries.
        device: Where they are.

    Returns:
        ``(batch,)`` int64, or None.

    Raises:
        TypeError: If it is not a tensor of integers.
        ValueError: If its shape or device differs.

    Example:
        >>> as_exclude(torch.tensor([3, -1], dtype=torch.int32), 2, torch.device("cpu"))
        tensor([ 3, -1])
    """
    if exclude is None:
        return None
    if not isinstance(exclude, Tensor):
        raise TypeError(f"exclude must be a tensor, got {type(exclude).__name__}")
    if exclude.dtype not in INTEGER_TYPES:
        raise TypeError(f"exclude must be integers, got {_name(exclude.dtype)}")
    if tuple(exclude.shape) != (batch,):
        raise ValueError(f"exclude must have shape ({batch},), got {tuple(exclude.shape)}")
    if exclude.device != device:
        raise ValueError(f"exclude must be on {device}, where x is, got {exclude.device}")
    return exclude.to(torch.int64)


def check_top_k(top_k: int, count: int) -> None:
    """Checks the number of nearest training points that is asked for.

    Args:
        top_k: How many.
        count: Training points in the set.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is negative or more than ``count``.
    """
    if not isinstance(top_k, int) or isinstance(top_k, bool):
        raise TypeError(f"top_k must be an integer, got {type(top_k).__name__}")
    if not 0 <= top_k <= count:
        raise ValueError(f"top_k must be between 0 and {count}, the training points, got {top_k}")


def check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    """Checks that random numbers can be drawn on a device.

    Raises:
        TypeError: If it is not a generator.
        ValueError: If it belongs to another type of device.
    """
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != device.type:
        raise ValueError(f"generator must be on {device}, got {generator.device}")


def check_no_gradient(alpha: Tensor | None) -> None:
    """Checks that no gradient is asked of the signal scale, which has none here.

    Raises:
        ValueError: If ``alpha`` requires a gradient that would be recorded.
    """
    if alpha is not None and alpha.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "alpha must not require a gradient: the ops differentiate in query and sigma only; "
            "divide x and sigma by alpha instead, got alpha.requires_grad=True"
        )
