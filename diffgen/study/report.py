"""The report: one HTML page out of the JSON of a study, and each figure as a PNG file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffgen.study.answer import Answer, Table
from diffgen.study.answers import ANSWERS, own
from diffgen.study.drawing import render
from diffgen.study.markup import bullets, element, escape, figure, page, paragraphs, table
from diffgen.study.store import write_whole

TITLE = "Does it generalise? A study of a diffusion model and its empirical optimum"


def answers(record: dict[str, Any]) -> list[Answer]:
    """The answers to the four claims, computed from the JSON of a study.

    Args:
        record: The contents of ``results.json``.

    Returns:
        One answer a claim, in their order, and one for the user's own network where there is one;
        what was not finished says so.
    """
    stages = {name: stage["values"] for name, stage in record["stages"].items()}
    given = [answer(stages) for answer in ANSWERS]
    if record["checkpoint"] is not None:
        given.append(own.answer(stages))
    return given


def write_report(path: Path, record: dict[str, Any], figures: Path) -> None:
    """Writes the page, and each figure as a PNG file.

    Args:
        path: The HTML file.
        record: The contents of ``results.json``.
        figures: Folder of the PNG files; made where it is missing.

    Raises:
        ImportError: Without matplotlib.
        OSError: If a file cannot be written.
    """
    figures.mkdir(parents=True, exist_ok=True)
    given = answers(record)
    parts = [_head(record), _summary(given)]
    parts += [_section(index + 1, answer, figures) for index, answer in enumerate(given)]
    parts.append(_appendix(record))
    text = page(f"{TITLE}: {record['data']['name']}", "\n".join(parts))
    write_whole(path, lambda file: file.write(text.encode()))


def _head(record: dict[str, Any]) -> str:
    data = record["data"]
    shape = " x ".join(map(str, data["sample_shape"]))
    versions, threads = record["versions"], record["machine"]["threads"]
    lines = [
        f"{data['name']}: {data['num_training']:,} training and {data['num_held_out']:,} held-out "
        f"images, {shape}, {data['dtype']}. Seed {record['settings']['seed']}. "
        f"diffgen {versions['diffgen']}, PyTorch {versions['torch']}; "
        f"{record['elapsed_s']:.0f} s on {record['machine']['cpu']}, "
        f"{threads} thread{'s' if threads != 1 else ''}."
    ]
    head = element("h1", escape(TITLE)) + paragraphs(lines, class_="faint")
    if not record["finished"]:
        missing = ", ".join(record["missing"])
        words = f"Partial: the study was stopped. Not finished: {missing}. Run it again to go on."
        head += element("p", escape(words), class_="partial")
    return head


def _summary(given: Sequence[Answer]) -> str:
    rows = [
        [f"{index + 1}. {answer.title}", (*answer.verdict, "not finished")[0], answer.number,
         answer.control]
        for index, answer in enumerate(given)
    ]  # fmt: skip
    columns = ("claim", "what was found", "measured (95% interval)", "control")
    return element("h2", "In short") + table(Table("", columns, rows), class_="text")


def _section(index: int, answer: Answer, figures: Path) -> str:
    parts = [element("h2", escape(f"{index}. {answer.title}"))]
    parts.append(paragraphs([answer.question]))
    if answer.verdict:
        parts.append(element("p", escape(" ".join(answer.verdict)), class_="verdict"))
    if answer.missing:
        words = f"Not finished: {', '.join(answer.missing)}."
        parts.append(element("p", escape(words), class_="partial"))
    parts += [element("h3", "How it is measured"), paragraphs(answer.method)]
    for shown in answer.figures:
        svg = render(shown, figures / f"{shown.name}.png")
        parts.append(figure(svg, shown.caption))
    parts += [table(content) for content in answer.tables]
    if answer.limits:
        parts += [element("h3", "What this does not show"), bullets(answer.limits)]
    return "\n".join(parts)


def _appendix(record: dict[str, Any]) -> str:
    def listed(title: str, values: dict[str, Any]) -> str:
        rows = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in
                values.items()]  # fmt: skip
        content = table(Table("", ("name", "value"), rows), class_="text")
        return element("h3", escape(title)) + content

    seconds = {name: f"{stage['seconds']:.1f} s" for name, stage in record["stages"].items()}
    return "\n".join(
        [
            element("h2", "Settings, versions, data"),
            paragraphs(["Every number above is computed from results.json beside this page."]),
            listed("Settings", record["settings"]),
            listed("Data", record["data"]),
            listed("Versions", record["versions"]),
            listed("Machine", record["machine"]),
            listed("Time of each stage", seconds),
        ]
    )
