"""The study: the four claims about diffusion models and generalisation, answered on a data set.

Stages measure (`diffgen.study.claims`) and leave raw values in ``results.json``; the answers
(`diffgen.study.answers`) are computed from that file alone, and the report is made of them.

Source: Yi, Sun, Li, On the Generalization of Diffusion Model (2023), arXiv:2305.14712.
"""

from __future__ import annotations

from diffgen.study.context import StudyData
from diffgen.study.digest import digest
from diffgen.study.report import answers, write_report
from diffgen.study.run import run_shared_stages, run_study
from diffgen.study.settings import StudySettings, large, quick

__all__ = [
    "StudyData",
    "StudySettings",
    "answers",
    "digest",
    "large",
    "quick",
    "run_shared_stages",
    "run_study",
    "write_report",
]
