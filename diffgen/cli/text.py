"""Plain text for terminals: aligned tables, bars, units."""

from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def table(rows: Sequence[Sequence[str]], align: str, indent: int = 2) -> str:
    """Rows of cells under each other.

    Args:
        rows: All of one length; the first is the head.
        align: A letter for each column, ``<`` or ``>``.
        indent: Spaces before each line.

    Example:
        >>> print(table([["name", "ms"], ["a", "12.5"]], "<>"))
          name    ms
          a     12.5
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(align))]
    lines = []
    for row in rows:
        cells = [
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)
        ]
        lines.append((" " * indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def bar(share: float, width: int) -> str:
    """A bar of up to ``width`` characters, in eighths of one.

    Example:
        >>> bar(0.5, 4), len(bar(2.0, 4))
        ('██', 4)
    """
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return (_EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8]).strip()


def count(number: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun.

    Example:
        >>> count(1, "image"), count(1797, "image")
        ('1 image', '1,797 images')
    """
    noun = singular if number == 1 else (plural or singular + "s")
    return f"{number:,} {noun}"


def seconds(value: float) -> str:
    """A time in the unit that suits it.

    Example:
        >>> seconds(0.0123), seconds(4.56), seconds(125.0)
        ('12.3 ms', '4.6 s', '2 min 5 s')
    """
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    if value < 100:
        return f"{value:.1f} s"
    return f"{round(value) // 60} min {round(value) % 60} s"


def percent(share: float) -> str:
    """A share in percent.

    Example:
        >>> percent(0.123), percent(0.002), percent(0.0)
        ('12%', '0.2%', '0%')
    """
    value = 100 * share
    return f"{value:.1g}%" if 0 < value < 1 else f"{value:.0f}%"
