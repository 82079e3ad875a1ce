"""The answers to the claims, computed from the raw values of the JSON alone."""

from __future__ import annotations

from collections.abc import Callable

from diffgen.study.answer import Answer, Record
from diffgen.study.answers import comparison, gap, information, optimum

ANSWERS: tuple[Callable[[dict[str, Record]], Answer], ...] = (
    information.answer,
    optimum.answer,
    gap.answer,
    comparison.answer,
)
"""From the values of the finished stages to an answer, one a claim, in the order of the report."""
