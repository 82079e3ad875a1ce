"""Rows that are not in one tensor: in files, or in the memories of several processes.

Such a set is handed to the ops as a name, beside a ``data`` tensor that has its shape and type and
no values of its own. The name is looked up here while the op runs, so that the ops keep one schema
and compiled graphs hold a constant.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from diffgen.backends.problem import CovarianceInputs, Problem
from diffgen.backends.registry import Moments

Outputs = TypeVar("Outputs", bound=tuple[Tensor, ...])

_STORES: WeakValueDictionary[str, RowStore] = WeakValueDictionary()
_NUMBERS = itertools.count()


class RowStore(ABC):
    """Rows that the ops reach by name.

    Attributes:
        name: What the ops take as ``store``.
    """

    def __init__(self) -> None:
        """Take a name; it is found under it for as long as something holds it."""
        self.name = f"rows-{next(_NUMBERS)}"
        _STORES[self.name] = self

    @abstractmethod
    def moments(
        self,
        problem: Problem,
        functionals: bool,
        top_k: int,
        mean_dtype: torch.dtype,
        backend: str,
    ) -> Moments:
        """The moments op over these rows; ``problem.data`` and ``norms`` hold no values.

        Raises:
            ValueError: For a bad value when the problem asks for the check.
            BackendError: If no backend, or not the one named, can run the problem.
            DataError: If the rows cannot be read.
        """

    @abstractmethod
    def covariance_product(
        self, problem: Problem, inputs: CovarianceInputs, backend: str
    ) -> tuple[Tensor, Tensor]:
        """The covariance product op over these rows; see ``moments``."""

    def share(
        self,
        queries: tuple[Tensor | None, ...],
        call: str,
        compute: Callable[[tuple[Tensor | None, ...]], Outputs],
    ) -> Outputs:
        """Outputs for the queries of one call.

        Args:
            queries: Tensors with a row for each query, or None.
            call: What is asked of them, in words: the same in every process of a sharded set.
            compute: From such tensors to outputs with a row for each query; it calls the ops' code
                above, once for each class that is asked for.
        """
        return compute(queries)


def find(name: str) -> RowStore:
    """The store of that name.

    Raises:
        RuntimeError: If nothing holds it any more.
    """
    store = _STORES.get(name)
    if store is None:
        raise RuntimeError(
            f"store {name!r} is gone: keep the training set for as long as its view is used"
        )
    return store


def placeholder(shape: tuple[int, ...], dtype: torch.dtype, device: Any = "cpu") -> Tensor:
    """A tensor of a shape that takes the memory of one element.

    Floating-point elements are NaN, so that whoever reads them by mistake sees it.

    Example:
        >>> placeholder((2, 3), torch.float32).stride()
        (0, 0)
    """
    fill = torch.nan if dtype.is_floating_point else 0
    return torch.full((1,) * len(shape), fill, dtype=dtype, device=device).expand(shape)
