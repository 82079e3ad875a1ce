"""Judges what was compiled: hard rules first, then the committed table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from diffgen.backends.triton.cases import NEEDS

from .measured import Measured
from .occupancy import CHIPS

# Fields that may not grow, and fields that may not shrink: register counts are those of a pinned
# compiler, so that there is no slack.
AT_MOST = ("registers", "shared", "fused")
AT_LEAST = ("blocks", "tensor", "dot4", "async_copies", "wide_loads")

UPDATE = "python -m tests.gates.report --write"


def faults(rows: Sequence[Measured], needs: Mapping[tuple[str, str], Collection[str]]) -> list[str]:
    """What no table excuses.

    Args:
        rows: What was compiled.
        needs: What the machine code must have, by kernel and target; keys of ``NEEDS``.

    Returns:
        A sentence for each fault: kernel, target, need, got.
    """
    found = []
    for row in rows:
        chip = CHIPS[row.target]
        where = f"{row.kernel} for {row.target}"
        if row.threads == 0:
            found.append(f"{where} needs a bound on its threads, got none")
        if row.spilled or row.local:
            found.append(
                f"{where} needs registers alone, got {row.spilled} bytes of stack and "
                f"{row.local} instructions that access it"
            )
        if row.shared > chip.shared_of_block:
            found.append(
                f"{where} needs at most {chip.shared_of_block} bytes of shared memory on "
                f"{chip.name}, got {row.shared}"
            )
        elif row.blocks == 0:
            found.append(f"{where} needs to fit on {chip.name}, got no block that fits")
        if row.negative_fills:
            found.append(
                f"{where} needs constants without the sign bit where masked loads of 8 or 16 bits "
                f"fill, got {row.negative_fills} with it"
            )
        for need in sorted(needs.get((row.kernel, row.target), ())):
            if not row.has(need):
                got = f"{row.fused}" if need == "bits" else "none"
                found.append(f"{where} needs {NEEDS[need]}, got {got}")
    return found


def regressions(rows: Sequence[Measured], table: Sequence[Measured]) -> list[str]:
    """Where a kernel is worse than the committed table, or one of them lacks it.

    Args:
        rows: What was compiled, by the compilers that the table names.
        table: What is committed, for the same compilers.
    """
    expected = {(row.kernel, row.target): row for row in table}
    present = {(row.kernel, row.target) for row in rows}
    found = [
        f"{kernel} for {target} needs to be compiled, being in the table, got nothing; if it is "
        f"gone for good: {UPDATE}"
        for kernel, target in expected
        if (kernel, target) not in present
    ]
    for row in rows:
        where = f"{row.kernel} for {row.target}"
        known = expected.get((row.kernel, row.target))
        if known is None:
            found.append(f"{where} needs a row in the table, got none: {UPDATE}")
            continue
        for names, sign, word in ((AT_MOST, 1, "most"), (AT_LEAST, -1, "least")):
            for name in names:
                limit, got = getattr(known, name), getattr(row, name)
                if sign * got > sign * limit:
                    said = name.replace("_", " ")
                    found.append(f"{where} needs at {word} {limit} {said}, got {got}")
    return found
