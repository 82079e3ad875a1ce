"""The report: self-contained, escaped, and computed from the JSON alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from diffgen import TrainingSet
from diffgen.study.answer import Figure, Table
from diffgen.study.claims import STAGES
from diffgen.study.context import StudyData
from diffgen.study.drawing import render
from diffgen.study.estimates import number
from diffgen.study.markup import element, escape, table
from diffgen.study.report import answers, write_report
from diffgen.study.run import run_study
from diffgen.study.settings import StudySettings
from diffgen.study.stages import Stage

pytest.importorskip("matplotlib")

TINY = StudySettings(
    num_samples=24,
    optimum_samples=24,
    optimum_points=60,
    sampler_steps=(4, 8),
    model_steps=6,
    times=(50, 200, 600),
    level_points=16,
    replicas=4,
    replica_points=16,
    replica_train_steps=20,
    seeds=2,
    seed_points=8,
    seed_train_steps=20,
    checkpoints=2,
    batch_size=8,
    width=16,
    depth=2,
    known_draws=2,
    noised_points=8,
    noised_copies=4,
    noised_steps=8,
)
HOSTILE = "<script>alert('&')</script>"


class Page(HTMLParser):
    """What a page holds: cells of tables, what it refers to, its text without pictures."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.links, self.tags, self.words = [], [], [], []
        self._picture = self._cell = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._picture += tag in ("svg", "style")
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag == "td":
            self._cell = True
            self.cells.append("")

    def handle_endtag(self, tag):
        self._picture -= tag in ("svg", "style")
        if tag == "td":
            self._cell = False

    def handle_data(self, data):
        if not self._picture:
            self.words.append(data)
        if self._cell:
            self.cells[-1] += data


def blobs():
    """Two clusters of 3 x 3 images."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(124, 1, 3, 3, generator=generator)
    rows += 2 * torch.randint(2, (124, 1, 1, 1), generator=generator)
    return StudyData(HOSTILE, TrainingSet(rows[:100]), rows[100:], (-2.0, 4.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of blobs."""
    out = tmp_path_factory.mktemp("study")
    run_study(TINY, blobs(), out, say=lambda line: None)
    return out


@pytest.fixture(scope="module")
def record(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text())


def test_study_finishes_every_stage(record):
    assert record["finished"] is True
    assert record["missing"] == []
    assert list(record["stages"]) == [stage.name for stage in STAGES]


def test_every_text_of_the_answers_is_in_the_page(record, page):
    words = " ".join("".join(page.words).split())
    for answer in answers(record):
        assert answer.verdict
        assert not answer.missing
        for text in (*answer.verdict, answer.number, answer.control, *answer.method):
            assert " ".join(text.split()) in words
        for content in answer.tables:
            for row in content.rows:
                assert all(cell in page.cells for cell in row)


def test_page_loads_nothing_and_runs_nothing(page):
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not [link for link in page.links if not link.startswith(("#", "data:"))]


def test_name_of_the_data_is_escaped(folder):
    text = (folder / "report.html").read_text()
    assert HOSTILE not in text
    assert escape(HOSTILE) in text


def test_every_figure_is_in_the_page_and_a_file(folder, record, page):
    names = [figure.name for answer in answers(record) for figure in answer.figures]
    assert len(names) == len(set(names)) == page.tags.count("svg")
    for name in names:
        data = (folder / "figures" / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 2000


def test_figures_are_well_formed_with_ids_of_their_own(folder):
    pictures = re.findall(r"<svg.*?</svg>", (folder / "report.html").read_text(), re.DOTALL)
    clips = []
    for picture in pictures:
        # The prefix of links is declared on the element that the page has taken over.
        ElementTree.fromstring(picture)
        clips += re.findall(r'<clipPath id="([^"]+)"', picture)
    assert len(clips) == len(set(clips))


def test_report_is_a_function_of_the_json(folder, record, tmp_path):
    write_report(tmp_path / "again.html", record, tmp_path / "figures")
    assert (tmp_path / "again.html").read_text() == (folder / "report.html").read_text()


def test_tiny_samples_take_one_thread_and_give_the_others_back(tmp_path, monkeypatch):
    seen = []
    look = Stage("look", "", lambda context: seen.append(torch.get_num_threads()) or ({}, {}))
    monkeypatch.setattr("diffgen.study.run.STAGES", (look,))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_study(TINY, blobs(), tmp_path, say=lambda line: None)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_json_identifies_what_it_is_of(record):
    assert len(record["data"]["training_sha256"]) == 64
    assert record["settings"]["seed"] == 0
    assert {"diffgen", "torch", "python"} <= set(record["versions"])


def test_partial_study_is_reported_as_partial(record, tmp_path):
    first = next(iter(record["stages"]))
    rest = [name for name in record["stages"] if name != first]
    partial = {**record, "finished": False, "missing": rest}
    partial["stages"] = {first: record["stages"][first]}
    write_report(tmp_path / "partial.html", partial, tmp_path / "figures")
    words = "".join(Page((tmp_path / "partial.html").read_text()).words)
    assert "Partial: the study was stopped" in words
    assert all(name in words for name in rest)


@pytest.mark.parametrize("name", [stage.name for stage in STAGES])
def test_report_is_made_without_any_one_stage(record, tmp_path, name):
    stages = {key: value for key, value in record["stages"].items() if key != name}
    partial = {**record, "finished": False, "missing": [name], "stages": stages}
    given = answers(partial)
    assert any(name in answer.missing for answer in given)
    for answer in given:
        assert not answer.verdict or answer.number


def test_memorised_share_is_that_of_the_raw_distances(record):
    # By other code than the answers': a count by hand.
    found = record["stages"]["optimum_samples"]["values"]
    answer = next(a for a in answers(record) if "optimum" in a.title)
    for run, row in zip(found["runs"], answer.tables[0].rows, strict=False):
        hits = sum(3 * d1 < d2 for d1, d2 in zip(run["d1"], run["d2"], strict=True))
        assert row[2] == f"{hits / len(run['d1']):.3f}"


def test_information_bound_is_the_mean_of_its_terms(record):
    found = record["stages"]["information"]["values"]
    rows = next(a for a in answers(record) if "say about" in a.title).tables[0].rows
    assert len(rows) == len(found["attribution"])
    for row, of in zip(rows, found["attribution"], strict=True):
        terms = [term for model in of["terms"] for term in model]
        assert row[2].split()[0] == number(sum(terms) / len(terms))


def test_known_information_is_the_mean_of_its_draws(record):
    found = record["stages"]["known_information"]["values"]
    rows = next(a for a in answers(record) if "say about" in a.title).tables[1].rows
    assert abs(found["true"] - 1.27605) < 4 * (found["true_standard_error"] + 0.00087)
    for row in rows:
        bounds = [of["bound"] for of in found["rows"] if of["critic"] == row[0]]
        assert len(bounds) == int(row[1]) == 2
        assert row[2].split()[0] == number(sum(bounds) / 2)
        assert row[3] == number(sum(bounds) / 2 / found["true"])


def test_gap_is_the_mean_over_times_points_and_networks(record):
    found = record["stages"]["gaps"]["values"]
    rows = next(a for a in answers(record) if "difference" in a.title).tables[0].rows
    for step, row in zip(dict.fromkeys(r["step"] for r in found["rows"]), rows, strict=True):
        of_step = [r["train"]["gap"] for r in found["rows"] if r["step"] == step]
        values = [v for of_network in of_step for of_time in of_network for v in of_time]
        assert row[1].split()[0] == number(sum(values) / len(values))


def test_interrupted_study_leaves_a_partial_report_and_goes_on(tmp_path, monkeypatch):
    def stop(context):
        raise KeyboardInterrupt

    first, second = STAGES[:2]
    monkeypatch.setattr("diffgen.study.run.STAGES", (first, Stage(second.name, second.title, stop)))
    with pytest.raises(KeyboardInterrupt):
        run_study(TINY, blobs(), tmp_path, say=lambda line: None)
    partial = json.loads((tmp_path / "results.json").read_text())
    assert (partial["finished"], partial["missing"]) == (False, [second.name])
    assert "Partial: the study was stopped" in (tmp_path / "report.html").read_text()
    monkeypatch.setattr("diffgen.study.run.STAGES", (first, second))
    said = []
    whole = run_study(TINY, blobs(), tmp_path, say=said.append)
    assert whole["finished"] and f"[1/2] {first.title}: done before" in said
    assert whole["stages"][first.name] == partial["stages"][first.name]


def test_example_report_is_that_of_its_json():
    example = Path(__file__).resolve().parent.parent / "docs" / "example-report"
    record = json.loads((example / "results.json").read_text())
    page = Page((example / "report.html").read_text())
    assert record["finished"] is True
    words = " ".join("".join(page.words).split())
    for answer in answers(record):
        assert " ".join(" ".join(answer.verdict).split()) in words
        assert all(
            cell in page.cells for table in answer.tables for row in table.rows for cell in row
        )
        for figure in answer.figures:
            assert (example / "figures" / f"{figure.name}.png").exists()


def test_figure_is_the_same_for_the_same_numbers():
    figure = Figure("f", "", lambda canvas: canvas.subplots().plot([1, 2]))
    assert render(figure) == render(figure)


def test_table_with_a_short_row_is_refused():
    with pytest.raises(ValueError, match="a row must have 2 cells, got 1"):
        table(Table("", ("a", "b"), (("1",),)))


def test_attributes_are_escaped():
    assert element("p", "", title='"><script>') == '<p title="&quot;&gt;&lt;script&gt;"></p>'
