"""The estimator of claim 1 where the information is known, as a table."""

from __future__ import annotations

from math import log

from diffgen.study.answer import Record, Table
from diffgen.study.estimates import number, over_seeds

STAGE = "known_information"


def known_table(found: Record) -> Table:
    """The bound by each critic beside the true value."""
    of_critic: dict[str, list[Record]] = {}
    for row in found["rows"]:
        of_critic.setdefault(row["critic"], []).append(row)
    true = found["true"]
    rows = []
    for critic, draws in of_critic.items():
        bound = over_seeds([row["bound"] for row in draws])
        control = over_seeds([row["control"] for row in draws])
        share = number(bound.value / true)
        rows.append([critic, str(len(draws)), str(bound), share, str(control)])
    return Table(
        "The same estimator where the information is known: copies of one of "
        f"{found['num_points']} standard normal points in {found['features']} dimensions with "
        f"noise {found['noise']:g} say {number(true)} nats (standard error "
        f"{number(found['true_standard_error'])}) about these points. K = {found['num_sets']}, "
        f"log K = {number(log(found['num_sets']))}. Intervals: 95%, Student, over draws of all "
        "sets and samples.",
        ("critic", "draws", "I at least", "of the true value", "permuted labels"),
        rows,
    )
