"""Passes of the C++ kernels over uint8 rows; see ``csrc/cpu/u8/pass.h``."""

from __future__ import annotations

from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from diffgen.backends.native import load_native
from diffgen.backends.native_arguments import address, arguments
from diffgen.backends.passes import BlockwiseMoments, Ending, PassOptions, UnreadableRows
from diffgen.backends.problem import Extent, Problem, RowBlock

REFERENCE, NEAREST_SQUARE = 0, 1
"""Columns of a state that are not zero before any row came."""


def _native() -> ModuleType:
    native = load_native()
    assert native is not None  # whoever chose the backend has asked
    return native


def _native_options(native: ModuleType, options: PassOptions) -> object:
    return native.PassOptions(
        options.top_k,
        options.functionals,
        options.mean_dtype == torch.float64,
        torch.get_num_threads(),
        options.segments_at_once,
        options.keep_segments,
    )


def _native_extent(native: ModuleType, extent: Extent) -> object:
    return native.Extent(extent.count, extent.eligible, extent.longest, extent.typical)


def undecided(isa: str, problem: Problem, extent: Extent, options: PassOptions) -> Tensor:
    """Which queries are decided by differences from a nearest row, ``(B,)`` bool.

    Raises:
        ValueError: For a bad sigma or exclude when the problem asks for the check.
    """
    native = _native()
    flags = torch.zeros(problem.query.shape[0], dtype=torch.bool)
    native.find_undecided(
        arguments(native, problem),
        _native_extent(native, extent),
        _native_options(native, options),
        isa,
        flags.data_ptr(),
        problem.check_values,
    )
    return flags


class CpuPass:
    """A pass of one instruction set; see ``passes.MomentsPass``.

    Attributes:
        reads_files: Its threads read the rows of a block that is in a file, each those that it
            computes with, so that these come through its cache and not through memory.
    """

    reads_files = True

    def __init__(
        self,
        isa: str,
        problem: Problem,
        extent: Extent,
        options: PassOptions,
        anchors: Tensor | None = None,
        squares: Tensor | None = None,
    ) -> None:
        """Start with no rows; see ``passes.BlockwiseMoments``."""
        native = _native()
        self._shape = tuple(problem.query.shape)
        self._options = options
        # The pass keeps their addresses.
        self._held = (anchors, squares)
        self._pass = native.Pass(
            arguments(native, problem),
            _native_extent(native, extent),
            _native_options(native, options),
            isa,
            address(anchors),
            address(squares),
        )

    def add(self, block: RowBlock) -> None:
        """Take rows: whole segments, in ascending order."""
        in_file = block.file >= 0
        read = self._pass.add(
            0 if in_file else block.data.data_ptr(),
            block.first,
            address(block.ids),
            block.norms.data_ptr(),
            address(block.log_weights),
            block.norms.shape[0],
            max(1, torch.get_num_threads() - block.spare),
            block.file,
            block.offset,
        )
        if not read:
            raise UnreadableRows

    def empty_state(self) -> Tensor:
        """What ``write_state`` gives before any row came."""
        states = torch.zeros((self._shape[0], self._pass.state_size()), dtype=torch.float64)
        states[:, REFERENCE], states[:, NEAREST_SQUARE] = -torch.inf, torch.inf
        return states

    def write_state(self) -> Tensor:
        """The posteriors so far, ``(B, n)`` float64."""
        states = torch.empty((self._shape[0], self._pass.state_size()), dtype=torch.float64)
        self._pass.write_state(states.data_ptr())
        return states

    def read_state(self, states: Tensor) -> None:
        """Put posteriors in place of the own ones."""
        self._pass.read_state(self._checked(states).data_ptr())

    def merge_after(self, states: Tensor) -> None:
        """Put the posteriors over earlier rows before the own ones."""
        self._pass.merge_after(self._checked(states).data_ptr())

    def _checked(self, states: Tensor) -> Tensor:
        assert states.shape == (self._shape[0], self._pass.state_size())
        assert states.dtype == torch.float64 and states.is_contiguous()
        return states

    def kept_bytes(self) -> int:
        """Bytes that the kept segments take."""
        return int(self._pass.kept_bytes())

    def finish(self) -> Ending:
        """End the pass."""
        batch, features = self._shape
        options = self._options
        mean = torch.empty((batch, features), dtype=options.mean_dtype)
        logsumexp = torch.empty((batch,), dtype=torch.float64)
        fields = torch.empty((batch, 3 if options.functionals else 0), dtype=torch.float64)
        indices = torch.empty((batch, options.top_k), dtype=torch.int64)
        distances = torch.empty((batch, options.top_k), dtype=torch.float64)
        is_empty, is_scarce, query, eligible = self._pass.finish(
            mean.data_ptr(),
            options.mean_dtype == torch.float64,
            logsumexp.data_ptr(),
            fields.data_ptr() if options.functionals else 0,
            options.top_k,
            indices.data_ptr(),
            distances.data_ptr(),
        )
        return Ending(
            (mean, logsumexp, fields, indices, distances),
            query if is_empty else -1,
            query if is_scarce else -1,
            eligible,
        )


def blockwise(isa: str) -> BlockwiseMoments:
    """How an instruction set goes through uint8 rows block by block."""
    return BlockwiseMoments(partial(undecided, isa), partial(CpuPass, isa))
