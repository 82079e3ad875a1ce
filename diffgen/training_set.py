"""The training set: rows in their stored type, with labels, weights and mirror images."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from math import inf, log
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from diffgen.contents import Contents, build
from diffgen.described_set import DescribedSet
from diffgen.errors import DataError
from diffgen.readers import memory, open_source
from diffgen.readers.class_index import ArrayLike
from diffgen.readers.origin import Origin
from diffgen.readers.rows import decode
from diffgen.readers.source import LabelRequest, assemble
from diffgen.set_arguments import DEFAULT_RANGE, Index, to_rows
from diffgen.set_view import SetView
from diffgen.sharding.ranks import Ranks
from diffgen.streaming.opening import is_streamed


class TrainingSet(DescribedSet):
    """Training points of an empirical-optimal denoiser.

    A uint8 value u means exactly the real number ``lo + u (hi - lo) / 255``; floats mean
    themselves. The rows stay in the type they came in, and nothing converts them.

    With ``flip`` the mirror image of every row (along the last axis) is a point of the set too:
    point ``N + i`` is the mirror image of row i, with the same label and weight. It is not stored.

    A contiguous tensor or array is shared, not copied: it must not be changed in place afterwards,
    or ``refresh`` must be called. Apart from that a set never changes, and ``copy.deepcopy``
    returns the set itself. A pickle of a set that came from a file holds its path and SHA-256; the
    file is read again and compared. Other pickles hold the rows.

    The rows of a file larger than 160 MiB stay there, and every pass reads them again, block by
    block, with what it takes to compute in about 200 MiB of memory, whatever N is.

    Example:
        >>> ts = TrainingSet(torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8))
        >>> ts[1]
        tensor([-0.6000, -0.2000])
        >>> len(ts), ts.sample_shape, ts.dtype
        (2, (2,), torch.uint8)
    """

    def __init__(
        self,
        data: memory.Data,
        *,
        labels: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        value_range: tuple[float, float] = DEFAULT_RANGE,
        flip: bool = False,
        in_memory: bool | None = None,
    ) -> None:
        """Take the rows, check them and compute their norms once.

        Args:
            data: ``(N, *S)`` with N >= 1, uint8, float16, bfloat16, float32 or float64: a tensor,
                an array (a memory map is read from its file, not through the map), or a torch
                Dataset or DataLoader of ``x`` or ``(x, y)``, y the label.
            labels: Class numbers, ``(N,)`` integers, zero or more; they replace those of a
                dataset.
            weights: Raw weights, ``(N,)``, finite, zero or more, with a positive sum.
            value_range: Values ``(lo, hi)`` of a stored 0 and 255; for uint8 only.
            flip: Whether the mirror images belong to the set; needs samples ``(..., H, W)``.
            in_memory: Whether the rows of a memory map are read into memory once, or stay in their
                file; None for what their size suggests.

        Raises:
            TypeError: Another kind of data, or labels that are no integers.
            ValueError: No rows, a wrong shape, or a value out of range.
            DataError: NaN or an infinity in a row, or a file that cannot be read.
        """
        loaded = memory.load(data, partial(is_streamed, in_memory=in_memory))
        mapped = loaded.mapped
        origin = None if mapped is None else Origin(mapped[0], layout=mapped[1])
        found = loaded.labels if labels is None else labels
        self._set(build(loaded.data, found, weights, value_range, flip, origin))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        member: str | None = None,
        labels: ArrayLike | LabelRequest = None,
        weights: ArrayLike | None = None,
        value_range: tuple[float, float] = DEFAULT_RANGE,
        flip: bool = False,
        in_memory: bool | None = None,
    ) -> TrainingSet:
        """Open a training set in a file or folder.

        Formats: .npy, .npz, .safetensors, a folder of images, CIFAR-10 (folder or .tar.gz, binary
        or Python version), an EDM dataset (.zip or folder), a packed set, a folder of shards in
        one of these formats, a Hugging Face dataset on disk (``member``: its column of images;
        ``labels``: that of labels). Nothing in a file is ever run, and nothing is unpacked to disk.

        Args:
            path: The file or folder.
            member: Which array of an .npz or .safetensors file (default: the only one,
                ``images``, ``data`` or ``x``); ``"train"`` (default) or ``"test"`` of CIFAR-10.
            labels: An array ``(N,)``; None for the labels the format defines (CIFAR-10, EDM,
                packed, subfolders of images); True to require them (``labels`` or ``y`` of an .npz
                or .safetensors file); False for none; or the name of the array with them.
            weights: See the constructor.
            value_range: See the constructor.
            flip: See the constructor.
            in_memory: Whether the rows are read into memory once, or stay in the file and are read
                in every pass; None for what their size suggests. Results are the same.

        Raises:
            FileNotFoundError: Nothing is at the path.
            ValueError: An argument does not fit the file.
            DataError: No known format, or a damaged or refused file; with file and place.

        Example:
            >>> import tempfile, numpy as np
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     np.save(folder + "/x.npy", np.eye(3, dtype=np.float32))
            ...     len(TrainingSet.open(folder + "/x.npy"))
            3
        """
        name = os.path.abspath(os.fspath(path))
        given = None if labels is None or isinstance(labels, bool | str) else labels
        request = False if given is not None else cast(LabelRequest, labels)
        source = open_source(name, member, request)
        found = source.labels if given is None else given
        origin = Origin(name, member)
        if is_streamed(source.shape, source.dtype, in_memory):
            return _make(cls, build(source, found, weights, value_range, flip, origin))
        with source:
            data = assemble(source)
        return _make(cls, build(data, found, weights, value_range, flip, origin))

    def _set(self, contents: Contents, sha256: str | None = None) -> None:
        self._contents = contents
        self._sha256 = sha256
        self._view: SetView | None = None
        self._totals: Tensor | None = None

    def _class_totals(self) -> Tensor:
        if self._totals is None:
            self._totals = self._contents.class_log_weights()
        return self._totals

    @property
    def log_total_weight(self) -> float:
        """Logarithm of the total raw weight of all points; ``log len(ts)`` without weights."""
        if self._contents.log_weights is None:
            return log(len(self))
        return float(self._class_totals().logsumexp(0))

    @property
    def class_log_weights(self) -> Tensor | None:
        """Logarithm of the total raw weight of each class, ``(C,)`` float64; None without labels.

        ``-inf`` for a class without members, or whose members all have weight zero.
        """
        if self._contents.labels is None:
            return None
        return self._class_totals().clone().to(self.device)

    def log_weight_of(self, indices: Tensor) -> Tensor:
        """Logarithm of the raw weight of points.

        Args:
            indices: Any shape, int64, in ``[0, len(ts))``; -1 for no point.

        Returns:
            The same shape, float64, on the device of the indices; ``-inf`` for no point.

        Raises:
            ValueError: An index out of range.
        """
        bad = (indices < -1) | (indices >= len(self))
        if bad.any():
            raise ValueError(
                f"indices must be in [-1, {len(self)}), got {int(indices[bad].flatten()[0])}"
            )
        log_weights = self._contents.log_weights
        if log_weights is None:
            values = torch.zeros(indices.shape, dtype=torch.float64, device=indices.device)
        else:
            rows = indices.remainder(self.num_stored).to(log_weights.device)
            values = log_weights[rows].to(indices.device)
        return values.masked_fill(indices < 0, -inf)

    def view(self) -> SetView:
        """The set as the ops read it: flat stored rows, norms, weights, the class index."""
        if self._view is None:
            contents = self._contents
            scale, offset = contents.affine
            self._view = SetView(
                data=contents.data.reshape(self.num_stored, -1),
                scale=scale,
                offset=offset,
                norms=contents.norms,
                log_weights=contents.log_weights,
                order=contents.order,
                class_offsets=contents.class_offsets,
                store="" if contents.store is None else contents.store.name,
            )
        return self._view

    def __getitem__(self, index: int | Index) -> Tensor:
        """Decoded points, rounded once to float32; float64 for a float64 set.

        Args:
            index: A number for one sample; a slice, a mask or integers of any shape for many.
                Negative numbers count from the end.

        Returns:
            ``(*S)`` or ``(*index.shape, *S)``, a copy.

        Raises:
            IndexError: Out of range.
            TypeError: Not integers.
        """
        points = to_rows(index, len(self)).to(self.device)
        rows = points.reshape(-1).remainder(self.num_stored)
        samples = decode(self._contents.rows(rows.cpu()), *self._contents.affine).to(self.device)
        if self.flip:
            mirrored = (points.reshape(-1) >= self.num_stored).nonzero()[:, 0]
            samples[mirrored] = samples[mirrored].flip(-1)
        return samples.reshape((*points.shape, *self.sample_shape))

    def to(self, device: torch.device | str | int, *, rows_on_host: bool = False) -> TrainingSet:
        """The set on a device; the set itself when it is there already.

        Args:
            device: Where to. There is no argument for a type: the storage is never converted.
            rows_on_host: Whether the rows stay where they are, in pinned host memory or in their
                file, and are copied in blocks at each call: for sets larger than a GPU.
        """
        target = torch.empty(0, device=device).device
        stay = rows_on_host and target.type != "cpu"
        if target == self.device and self._contents.rows_on_host == stay:
            return self
        return _make(type(self), self._contents.to(target, stay), self._sha256)

    @property
    def sha256(self) -> str:
        """SHA-256 of the rows: over shape, type, value range and the digests of fixed shards.

        It is the same however the rows were loaded. Labels, weights and ``flip`` are not in it.
        Computed when first asked for.
        """
        if self._sha256 is None:
            self._sha256 = self._contents.digest()
        return self._sha256

    def subset(self, indices: Index) -> TrainingSet:
        """The set of some stored rows, with their labels and weights, copied.

        Of a set that stays in its file, few enough rows are taken into memory; else they stay.
        ``flip`` and ``num_classes`` stay as they are: an image goes together with its mirror.

        Args:
            indices: Integers in ``[-N, N)``, a mask ``(N,)`` or a slice, at least one row; a row
                may occur twice.

        Raises:
            IndexError: Out of range.
            ValueError: No rows, or rows of weight zero only.
        """
        rows = to_rows(indices, self.num_stored).reshape(-1)
        if len(rows) == 0:
            raise ValueError("indices must name at least one row, got none")
        return _make(type(self), self._contents.take(rows))

    def split(self, k: int, generator: torch.Generator | None = None) -> list[TrainingSet]:
        """Disjoint random parts of equal size, ``N // k`` rows each; ``N % k`` rows are left out.

        Args:
            k: Number of parts, in ``[1, N]``.
            generator: Source of the random order; None for torch's own.

        Returns:
            k sets, rows ascending in each.

        Raises:
            ValueError: k out of range, or a part without weight.
        """
        if not 1 <= k <= self.num_stored:
            raise ValueError(f"k must be in [1, {self.num_stored}], got {k}")
        size = self.num_stored // k
        order = torch.randperm(self.num_stored, generator=generator)
        return [self.subset(part.sort().values) for part in order[: k * size].split(size)]

    def shard(
        self,
        rank: int,
        world_size: int,
        group: ProcessGroup | DeviceMesh | None = None,
        *,
        timeout_s: float = 60.0,
        patience_s: float = 1800.0,
        in_memory: bool | None = None,
    ) -> TrainingSet:
        """The set, of which this process holds one part and the others the rest.

        All processes of the group call it, each with its rank, on the same set; afterwards the
        others' rows can be let go of. A denoiser over the result gives the posterior of the whole
        set, by one exact merge, with the same bits in every process; ids are those of the whole
        set. All processes make the same calls in the same order, backward passes too. Where they
        pass different queries, each gets the answers to its own.

        A process that dies, hangs, fails or makes another call is an error in all others, never a
        partial result: at once where its connection closes, else within the limits below of the
        moment they began to wait for it. Then the sharded set is of no more use.

        Args:
            rank: Part that this process holds: its rank in the group.
            world_size: Number of parts: the size of the group.
            group: A process group or a one-dimensional ``DeviceMesh``; None for the default group.
            timeout_s: Seconds without a sign of life after which another process counts as dead; a
                process that computes gives signs.
            patience_s: Seconds that a process which lives may stay away from a call, this one too.
            in_memory: Whether the own part of a set in a file is read into memory once; None for
                what its size suggests.

        Raises:
            ValueError: No process group is initialised.
            ShardError: Another process holds another set or the same part, or does not answer.
        """
        ranks = Ranks.join(group, timeout_s, patience_s)
        contents = self._contents.sharded(ranks, rank, world_size, in_memory)
        return _make(type(self), contents, self._sha256)

    def refresh(self) -> None:
        """Compute norms and SHA-256 anew after the rows were changed in place.

        A set in memory lets go of its file, which no longer holds these rows; one that stays in
        its file opens it anew.

        Raises:
            DataError: NaN or an infinity in a row; the set is as before.
        """
        self._set(self._contents.renewed())

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingSet:
        """The set itself: it does not change."""
        return self

    def __copy__(self) -> TrainingSet:
        """The set itself: it does not change."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and SHA-256 of rows from a file, and the rows otherwise."""
        contents = self._contents
        stays = contents.store is not None
        if contents.store is not None and not contents.store.exchange.alone:
            raise TypeError("a shard cannot be pickled: it belongs to its process group")
        if contents.origin is None:
            # A tensor pickles its whole storage, of which the rows may be a small part.
            data = contents.data
            if data.untyped_storage().nbytes() > data.nbytes:
                contents = replace(contents, data=data.clone())
            return _restore, (type(self), contents, self._sha256, stays)
        return _restore, (type(self), contents.emptied(), self.sha256, stays)


def _make(kind: type[TrainingSet], contents: Contents, sha256: str | None = None) -> TrainingSet:
    """A set of contents that are checked already."""
    made = kind.__new__(kind)
    made._set(contents, sha256)
    return made


def _restore(
    kind: type[TrainingSet], contents: Contents, sha256: str | None, stays: bool
) -> TrainingSet:
    """Undo ``TrainingSet.__reduce__``."""
    if contents.origin is None:
        return _make(kind, contents, sha256)
    made = _make(kind, contents.reopened(stays))
    if made.sha256 != sha256:
        raise DataError(
            f"{made.path}: changed since the set was pickled: sha256 must be {sha256}, got "
            f"{made.sha256}"
        )
    return made
