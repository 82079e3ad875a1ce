"""Writes the tables of docs/gpu.md from the committed table and the roofline.

``python -m tests.gates.report`` compiles every kernel and prints what the gate says;
``--write`` then makes the result the committed table and brings the page up to date.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Sequence

from . import gate, inventory, table
from .measured import Measured
from .occupancy import CHIPS
from .roofline import BATCHES, PEAKS, REGIMES, SETS, WORK, bound
from .tools import ROOT, Missing

PAGE = ROOT / "docs" / "gpu.md"

# What a cell of the roofline names its resource by.
RESOURCES = {"memory": "m", "int8": "i", "bf16": "b", "tf32": "t", "dmma": "d", "fp64": "f"}


def occupancy(row: Measured) -> float:
    """The share of a multiprocessor's warps that its blocks have."""
    chip = CHIPS[row.target]
    return row.blocks * -(-row.threads // chip.lanes) / chip.warps


def cell(row: Measured) -> str:
    """What one kernel compiles to for one target; counts that are 0 are left out."""
    parts = [f"{row.registers} r", f"{row.shared / 1024:.3g} K" if row.shared else ""]
    parts.append(f"{row.blocks} b ({occupancy(row):.0%})")
    counts = {"t": row.tensor, "d": row.dot4, "a": row.async_copies, "w": row.wide_loads}
    parts += [f"{count} {name}" if count else "" for name, count in counts.items()]
    return ", ".join(part for part in parts if part)


def kernel_table(rows: Sequence[Measured]) -> str:
    """A line for each kernel, a column for each target."""
    targets = [name for name in CHIPS if any(row.target == name for row in rows)]
    heads = [f"{name} ({CHIPS[name].name})" for name in targets]
    lines = [f"| kernel | threads | {' | '.join(heads)} |", f"|---|---:|{'---|' * len(heads)}"]
    for kernel in sorted({row.kernel for row in rows}):
        own = {row.target: row for row in rows if row.kernel == kernel}
        threads = "/".join(map(str, sorted({row.threads for row in own.values()})))
        cells = " | ".join(cell(own[name]) if name in own else "" for name in targets)
        lines.append(f"| `{kernel.partition('/')[2]}` | {threads} | {cells} |")
    return "\n".join(lines)


def roofline_table() -> str:
    """A line for each set, storage type and regime; a column for each chip and batch."""
    heads = [f"{peak.name}, {batch}" for peak in PEAKS for batch in BATCHES]
    lines = [f"| set | storage | rows | {' | '.join(heads)} |"]
    lines.append(f"|---|---|---|{'---:|' * len(heads)}")
    for name, storage, regime in itertools.product(SETS, WORK, REGIMES):
        cells = []
        for peak, batch in itertools.product(PEAKS, BATCHES):
            least = bound(name, storage, batch, regime, peak)
            cells.append(f"{_three_digits(least.seconds * 1e3)} {RESOURCES[least.resource]}")
        lines.append(f"| {name} | {storage} | {regime} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _three_digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def blocks(rows: Sequence[Measured]) -> dict[str, str]:
    """The generated parts of the page, by the name between their marks."""
    parts = {"roofline": roofline_table()}
    for backend in ("triton", "cuda"):
        own = [row for row in rows if row.kernel.startswith(f"{backend}/")]
        made = kernel_table(own) if own else "No kernels."
        parts[backend] = f"Machine code of {compilers(own)}.\n\n{made}" if own else made
    return parts


def compilers(rows: Iterable[Measured]) -> str:
    """Whose machine code that is."""
    return " and ".join(sorted({row.compiler for row in rows}))


def with_blocks(page: str, parts: dict[str, str]) -> str:
    """The page with its generated parts replaced.

    Raises:
        ValueError: If the page lacks the marks of one.
    """
    for name, text in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{PAGE.name} must have {begin} and {end}, got none")
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles, judges and, if asked, writes."""
    parser = argparse.ArgumentParser(prog="python -m tests.gates.report", description=__doc__)
    parser.add_argument("--write", action="store_true", help="make this the committed table")
    arguments = parser.parse_args(argv)
    kept: list[Measured] = []
    said: list[str] = []
    for prefix, compile_all in (
        ("triton/", inventory.compile_triton),
        ("cuda/", inventory.compile_cuda),
    ):
        committed = [row for row in table.read() if row.kernel.startswith(prefix)]
        try:
            compiled = compile_all()
        except Missing as missing:
            print(f"{prefix.rstrip('/')} stays as it is: {missing}")
            kept += committed
            continue
        said += compiled.failures + gate.faults(compiled.rows, compiled.needs)
        if not arguments.write:
            said += gate.regressions(compiled.rows, committed)
        kept += compiled.rows
    if said:
        print("\n".join(said))
        return 1
    if arguments.write:
        table.write(kept)
        PAGE.write_text(with_blocks(PAGE.read_text(), blocks(kept)))
        print(f"wrote {table.PATH.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
