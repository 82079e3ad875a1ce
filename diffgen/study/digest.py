"""The answers in few lines of Markdown: what the command prints, and READMEs quote."""

from __future__ import annotations

from typing import Any

from diffgen.study.report import answers


def digest(record: dict[str, Any]) -> str:
    """One row a claim: what was measured, with its 95% interval, and what to compare it with.

    Args:
        record: The contents of ``results.json``.

    Returns:
        A Markdown table, and a line that says of which data, by what.
    """
    rows = ["| | measured (95% interval) | control |", "|---|---|---|"]
    for index, answer in enumerate(answers(record), 1):
        found = (answer.number, answer.control) if answer.number else ("not finished", "")
        rows.append(f"| {index}. {answer.title} | {found[0]} | {found[1]} |")
    data, versions = record["data"], record["versions"]
    rows += [
        "",
        f"{data['name']}, {data['num_training']:,} training and {data['num_held_out']:,} held-out "
        f"images, seed {record['settings']['seed']}; diffgen {versions['diffgen']}, PyTorch "
        f"{versions['torch']}, {record['elapsed_s']:.0f} s on {record['machine']['cpu']}.",
    ]
    return "\n".join(rows)
