"""What a claim's part of the report consists of: question, method, tables, figures, verdict.

Everything in it is computed from the JSON of the study alone, so that every number of the report
can be computed again from that file, by `diffgen.study.answers` or by other means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]
"""The values of a stage, as JSON has them."""


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        caption: What its numbers are: units, what the intervals cover.
        columns: Heads of the columns; the first column names the rows.
        rows: Cells, each row as long as ``columns``.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A figure, drawn when the report is made.

    Attributes:
        name: Its file without the suffix.
        caption: What it shows, and for whom the picture is not there.
        draw: Draws on an empty matplotlib figure.
        size: Width and height in inches.
    """

    name: str
    caption: str
    draw: Callable[[Any], None]
    size: tuple[float, float] = (9.0, 3.4)


@dataclass(frozen=True)
class Answer:
    """The answer to one claim.

    Attributes:
        title: The claim in a few words.
        question: What is asked.
        method: How it is measured, a text for each paragraph.
        verdict: What was found, in sentences that their intervals allow, the most important one
            first; empty before anything was.
        number: The number of the summary, with its interval.
        control: The number to compare it with.
        tables: All numbers.
        figures: Pictures of them.
        limits: What the measurements do not show.
        missing: Stages that have not been finished.
    """

    title: str
    question: str
    method: Sequence[str]
    verdict: Sequence[str] = ()
    number: str = ""
    control: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    limits: Sequence[str] = ()
    missing: Sequence[str] = field(default_factory=tuple)
