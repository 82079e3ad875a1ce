from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def run(name, capsys):
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_quickstart_finds_every_point_at_low_noise_and_all_of_them_at_high(capsys):
    lines = run("quickstart.py", capsys)
    assert len(lines) == 3
    assert lines[0].endswith("[0, 1, 2, 3]")
    # Between random images of 192 uniform bytes |x_i - x_j|^2 is about 128, so the weights differ
    # by e^(128 / (2 * 0.04)) at sigma = 0.2 and by a factor near 1 at sigma = 20.
    assert "error 0.000, effective neighbours    1.0 of 1000" in lines[0]
    assert float(lines[2].split("neighbours")[1].split()[0]) > 500


def test_sampling_with_heun_copies_the_training_set(capsys):
    lines = run("sample_with_heun.py", capsys)
    assert lines == ["(16, 3, 8, 8): 16 of 16 samples are copies of training images"]


def test_a_training_loop_closes_the_gap_to_the_optimum(capsys):
    lines = run("in_a_training_loop.py", capsys)
    gaps = [float(line.split("gap ")[1].split()[0]) for line in lines]
    assert gaps[-1] < gaps[0] / 5


def test_training_closes_the_gap(capsys):
    lines = run("train_a_network.py", capsys)
    gaps = [float(line.split("them ")[1]) for line in lines if "train" in line]
    assert len(gaps) == 3 and gaps[-1] < gaps[0]


def test_sampling_in_parts_runs_in_one_process(capsys):
    (line,) = run("sharded_sampling.py", capsys)
    assert line.startswith("16 of 16 samples are copies of training images; sha256 ")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_examples_are_short(script):
    assert len(script.read_text().splitlines()) < 40


def test_every_example_is_run_here():
    run_here = Path(__file__).read_text()
    assert SCRIPTS and all(f'run("{script.name}"' in run_here for script in SCRIPTS)
