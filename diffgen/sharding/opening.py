"""One process's part of a set, as a store of the whole set."""

from __future__ import annotations

from torch import Tensor

from diffgen.sharding.cut import bounds
from diffgen.sharding.exchange import RanksExchange
from diffgen.sharding.ranks import Ranks
from diffgen.streaming.opening import in_memory_of, is_streamed
from diffgen.streaming.place import FilePlace, MemoryPlace, Place
from diffgen.streaming.store import StreamedStore


def part_of_memory(
    data: Tensor, norms: Tensor, scale: float, log_weights: Tensor | None, ranks: Ranks
) -> StreamedStore:
    """The own part of rows in memory, copied, so that the others can be let go of.

    Args:
        data: Stored rows of the whole set, ``(N, D)``.
        norms: Theirs, ``(N,)``.
        scale: Size of one stored unit.
        log_weights: ``(N,)`` on the CPU, or None.
        ranks: The processes.
    """
    first, stop = bounds(len(data), ranks.rank, ranks.size, data.dtype)
    own, lengths = data[first:stop].clone(), norms[first:stop].clone()
    place = MemoryPlace(own, lengths, len(data), first, scale, log_weights)
    return StreamedStore(place, RanksExchange(ranks, (first, stop)))


def part_of_file(whole: FilePlace, ranks: Ranks, in_memory: bool | None) -> StreamedStore:
    """The own part of rows in a file.

    Args:
        whole: All of them.
        ranks: The processes.
        in_memory: Whether the part is read into memory; None for what its size suggests.
    """
    own = bounds(whole.count, ranks.rank, ranks.size, whole.dtype)
    place: Place = FilePlace(whole.source, whole.scale, whole.log_weights, own)
    shape = (own[1] - own[0], whole.features)
    if not is_streamed(shape, whole.dtype, in_memory):
        place = in_memory_of(place)
    return StreamedStore(place, RanksExchange(ranks, own))
