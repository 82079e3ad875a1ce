"""From the times of a sample to the time of a call."""

from __future__ import annotations

from dataclasses import dataclass

from diffgen.cost.counts import CallCost


@dataclass(frozen=True)
class Timing:
    """What a backend took for a sample of the rows.

    Attributes:
        rows: Rows of the sample.
        queries: Queries that went through them together.
        fixed_s: Seconds of a pass over next to no rows.
        compute_s: Seconds beyond that for the rows of the sample, in memory.
        overlap: Seconds of reading them and computing at once, over the longer of both alone; 1 is
            perfect. Of rows in memory, 1.
        second_pass: Whether there are queries that need a part of the rows again.
    """

    rows: int
    queries: int
    fixed_s: float
    compute_s: float
    overlap: float = 1.0
    second_pass: bool = False


@dataclass(frozen=True)
class Estimate:
    """The time of a call.

    Attributes:
        seconds: Of the call.
        at_most_s: The same when a second pass reads all rows again; else ``seconds``.
        read_s: Of reading alone.
        compute_s: Of computing alone: the time over rows in memory.
        bound: What takes longer, ``"reading"`` or ``"arithmetic"``.
        rows: Rows that were timed.
        overlap: As measured.
    """

    seconds: float
    at_most_s: float
    read_s: float
    compute_s: float
    bound: str
    rows: int
    overlap: float


def overlap_of(
    together_s: float, read_s: float, compute_s: float, blocks: int | None = None
) -> float:
    """How far reading hides behind computing, or the other way round.

    Where blocks are read ahead, nothing is computed while the first one is read, which is left
    out: of a whole set it is next to nothing, of a sample it is much.

    Args:
        together_s: Seconds of both at once.
        read_s: Of reading alone.
        compute_s: Of computing alone.
        blocks: In so many parts that are read ahead; None where none are.

    Returns:
        At least 1, at most what one after the other takes.

    Example:
        >>> overlap_of(together_s=1.75, read_s=1.0, compute_s=1.0, blocks=4)
        1.5
    """
    longer = max(read_s, compute_s)
    if longer <= 0:
        return 1.0
    most = (read_s + compute_s) / longer
    lead_s = 0.0 if blocks is None else read_s / max(blocks, 1)
    return min(max((together_s - lead_s) / longer, 1.0), most)


def estimate(timing: Timing, cost: CallCost, count: int, read_bytes_s: float | None) -> Estimate:
    """The time of a call over all rows.

    Time grows with rows and with queries. A pass takes the longer of reading and computing, times
    the overlap.

    Args:
        timing: Of a sample.
        cost: Of the call.
        count: Rows of the set, N.
        read_bytes_s: Bytes a second of the file; None for rows in memory.

    Example:
        >>> timing = Timing(rows=100, queries=8, fixed_s=0.5, compute_s=0.01)
        >>> cost = CallCost(queries=8, queries_of_pass=8, read_bytes=4_000_000, operations=0)
        >>> estimate(timing, cost, 10_000, read_bytes_s=2e6).seconds
        2.5
    """
    reading = 0.0 if read_bytes_s is None else cost.read_bytes / read_bytes_s
    of_query = timing.compute_s / timing.queries / timing.rows * count
    fixed = timing.fixed_s / timing.queries * cost.queries
    seconds = fixed
    for begin in range(0, max(cost.queries, 1), cost.queries_of_pass):
        queries = min(cost.queries_of_pass, cost.queries - begin)
        seconds += timing.overlap * max(reading / cost.passes, of_query * queries)
    computing = fixed + of_query * cost.queries
    return Estimate(
        seconds=seconds,
        at_most_s=seconds + (reading if timing.second_pass else 0.0),
        read_s=reading,
        compute_s=computing,
        bound="reading" if reading > computing else "arithmetic",
        rows=timing.rows,
        overlap=timing.overlap,
    )
