"""The committed example of a study: page, figures and README are of its JSON."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from diffgen.study import answers, digest, write_report

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "docs" / "example-report"
BEGIN, END = "<!-- study:begin -->\n", "<!-- study:end -->"
FIGURE = "information"


class Cells(HTMLParser):
    """The texts of a page's table cells and paragraphs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(" ".join(data.split()))


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXAMPLE / "results.json").read_text())
    return found


def values(record: dict[str, Any], stage: str) -> dict[str, Any]:
    found: dict[str, Any] = record["stages"][stage]["values"]
    return found


def deviation(rest: list[float]) -> float:
    return stdev(rest) / math.sqrt(len(rest))


def z_of(rest: list[float]) -> float:
    return fmean(rest) / deviation(rest)


def expected_readme(record: dict[str, Any]) -> str:
    figure = f"docs/example-report/figures/{FIGURE}.png"
    [caption] = [f.caption for a in answers(record) for f in a.figures if f.name == FIGURE]
    return f"{digest(record)}\n![{caption}]({figure})\n"


def test_readme_is_of_the_example(record: dict[str, Any]) -> None:
    found = (ROOT / "README.md").read_text().split(BEGIN)[1].split(END)[0]
    assert found == expected_readme(record), f"README.md should have:\n{expected_readme(record)}"


def test_page_is_made_of_the_json(record: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_report(tmp_path / "report.html", record, tmp_path / "figures")
    made, kept = (
        Cells((folder / "report.html").read_text()).texts for folder in (tmp_path, EXAMPLE)
    )
    assert made == kept
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == sorted(path.name for path in (EXAMPLE / "figures").iterdir())
    assert f"{FIGURE}.png" in names


def test_study_is_whole_and_took_the_time_it_may(record: dict[str, Any]) -> None:
    assert record["finished"] and record["missing"] == []
    assert record["elapsed_s"] < 600


def test_optimum_memorises_with_every_sampler_and_real_images_do_not(
    record: dict[str, Any],
) -> None:
    found = values(record, "optimum_samples")
    assert {(run["sampler"], run["steps"]) for run in found["runs"]} >= {
        (sampler, steps) for sampler in ("ddim", "ddpm") for steps in (10, 50, 200, 1000)
    }
    for run in found["runs"]:
        assert all(3 * d1 < d2 for d1, d2 in zip(run["d1"], run["d2"], strict=True))
    real = found["held_out"]
    assert not any(3 * d1 < d2 for d1, d2 in zip(real["d1"], real["d2"], strict=True))


def test_identities_hold(record: dict[str, Any]) -> None:
    levels = values(record, "optimum_levels")
    for squared, norms in zip(levels["loss_squared_error"], levels["loss_from_norms"], strict=True):
        assert abs(z_of([a - b for a, b in zip(squared, norms, strict=True)])) < 4
    pairs = zip(
        levels["decrease"],
        levels["integral"],
        levels["quadrature_error"],
        strict=True,
    )
    for decrease, integral, error in pairs:
        rest = [a - b for a, b in zip(decrease, integral, strict=True)]
        assert abs(fmean(rest)) < error + 4 * deviation(rest) + 1e-12
    gaps = [z for row in values(record, "gaps")["rows"] for z in row["identity_z"]]
    assert max(map(abs, gaps)) < 4


def test_attribution_finds_most_of_a_known_information(record: dict[str, Any]) -> None:
    found = values(record, "known_information")
    assert found["num_sets"] == 16
    assert math.isclose(found["true"], 1.276, abs_tol=4 * found["true_standard_error"])
    for critic in ("nearest", "log_density", "trained"):
        bounds = [row["bound"] for row in found["rows"] if row["critic"] == critic]
        assert 0.75 < sum(bounds) / len(bounds) / found["true"] < 1.0
