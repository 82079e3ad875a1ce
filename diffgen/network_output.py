"""What networks return, as one tensor: plain tensors, diffusers' outputs and tuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def prediction(network: Callable[..., Any], x_t: Tensor, t: Any, **kwargs: Any) -> Tensor:
    """A network's prediction at noisy points: called, unwrapped, its shape checked.

    Args:
        network: ``(x_t, t, **kwargs) -> prediction``; see `unwrapped` for what it may return.
        x_t: Noisy points, ``(B, *S)``.
        t: Time in the convention of the network's process; passed on as it is.
        **kwargs: Passed to the network (class labels).

    Returns:
        ``(B, *S)``, in the type the network computes in, with its gradient.

    Raises:
        TypeError: The network returns nothing that holds a tensor.
        ValueError: The prediction has another shape than x_t.

    Example:
        >>> import torch
        >>> prediction(lambda x_t, t: (x_t / 2,), torch.ones(2, 1), torch.tensor([3, 4])).tolist()
        [[0.5], [0.5]]
    """
    output = unwrapped(network(x_t, t, **kwargs))
    if output.shape != x_t.shape:
        raise ValueError(
            f"network must return the shape of x_t, {tuple(x_t.shape)}, got {tuple(output.shape)}"
        )
    return output


def unwrapped(output: Any) -> Tensor:
    """The tensor in what a network returned.

    Args:
        output: A tensor; an object whose ``sample`` is a tensor, as diffusers' models return; or
            a tuple or list that begins with a tensor, as these do with ``return_dict=False``.

    Returns:
        The tensor itself.

    Raises:
        TypeError: None of these.

    Example:
        >>> import torch
        >>> unwrapped((torch.ones(1), "more"))
        tensor([1.])
    """
    if isinstance(output, Tensor):
        return output
    inner = getattr(output, "sample", None)
    if isinstance(output, tuple | list) and output and not isinstance(inner, Tensor):
        inner = output[0]
    if isinstance(inner, Tensor):
        return inner
    raise TypeError(
        "network must return a tensor, an object with a tensor `sample`, or a tuple that begins "
        f"with a tensor, got {type(output).__name__}"
    )
