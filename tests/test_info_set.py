"""``diffgen info PATH``: what it prints of a set, and that it does not read it through."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffgen import EmpiricalDenoiser, TrainingSet, machine
from diffgen.cli import set_text
from diffgen.cli.main import main
from diffgen.cost import reading, survey, timing
from diffgen.readers.source import Source
from diffgen.streaming import opening, store

CEILINGS = machine.Ceilings(20.0, 200.0, 2, "by hand")


@pytest.fixture(autouse=True)
def quick(monkeypatch, one_thread):
    monkeypatch.setattr(machine, "measure", lambda: CEILINGS)
    monkeypatch.setattr(timing, "ENOUGH_S", 0.005)


@pytest.fixture
def packed(tmp_path, capsys) -> Path:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2500, 3, 8, 8), dtype=torch.uint8, generator=generator)
    np.savez(tmp_path / "rows.npz", images=images.numpy(), labels=np.arange(2500) % 7)
    assert main(["pack", str(tmp_path / "rows.npz"), str(tmp_path / "packed"), "--labels"]) == 0
    capsys.readouterr()
    return tmp_path / "packed"


def told(capsys, *arguments: object) -> dict:
    assert main(["info", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_counts_are_those_of_a_run(packed, capsys, monkeypatch):
    monkeypatch.setattr(opening, "MOST_BYTES_IN_MEMORY", 1000)
    monkeypatch.setattr(store, "STATE_BYTES", 6 * store.STATE_BYTES_EACH * 192)
    record = told(capsys, packed, "--batch", 10, "--flip")
    call = record["call"]
    ts = TrainingSet.open(packed, flip=True)
    denoiser = EmpiricalDenoiser(ts)
    denoiser(torch.zeros(1, 3, 8, 8), 1.0)
    place = ts._contents.store.place
    held = sum(buffer.nbytes for buffer in place._buffers._buffers)
    before, read = place._shared.passes, []
    whole = Source.read
    monkeypatch.setattr(
        Source, "read", lambda self, out, first: (read.append(out.nbytes), whole(self, out, first))
    )
    directly = place._go_direct

    def spied(pieces, take):
        read.extend(192 * piece.count for piece in pieces)
        directly(pieces, take)

    monkeypatch.setattr(place, "_go_direct", spied)
    denoiser(torch.zeros(10, 3, 8, 8), 1.0)
    assert call["passes"] == place._shared.passes - before == 4
    assert call["read_bytes"] == sum(read) == 4 * 2500 * 192
    assert (call["queries"], call["queries_of_pass"]) == (20, 6)
    norms = place.norms.nbytes + place.source.norms.nbytes
    assert (record["memory"]["rows"], record["memory"]["norms"]) == (held, norms)
    assert not call["measuring_pass"]
    found = record["set"]
    assert (found["num_points"], found["sample_shape"]) == (len(ts) // 2, [3, 8, 8])
    assert (found["dtype"], found["num_classes"], found["flip"]) == ("uint8", 7, True)
    assert found["value_range"] == list(ts.value_range)
    assert record["place"] == "file"


def test_text_says_what_the_record_says(packed, capsys):
    assert main(["info", str(packed), "--batch", "3", "--sigma", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "2,500 x (3 x 8 x 8) uint8, D = 192; 480.0 kB of rows; labels of 7 classes" in printed
    assert re.search(
        r"sha256 +not computed \(reads all bytes\); of meta.json.*[0-9a-f]{64}", printed
    )
    assert "rows     are read into memory once" in printed
    assert "3 queries: 1 pass a call\n" in printed
    assert "480.0 kB of rows and 5.76e+06 operations a call" in printed
    assert "a call with 3 noisy points at sigma 0.5, estimated from a sample of the rows" in printed
    assert re.search(r"\n  eager +[\d.]+ m?s +- +[\d.]+ m?s +[\d,]+ +arithmetic", printed)
    assert re.search(r"\n  triton +- +\S.*(GPU|triton)", printed)
    assert re.search(r"\n  reference +- +not timed", printed)


def test_a_streamed_set_shows_reading(packed, capsys, monkeypatch):
    monkeypatch.setattr(opening, "MOST_BYTES_IN_MEMORY", 1000)
    assert main(["info", str(packed), "--backend", "eager"]) == 0
    printed = capsys.readouterr().out
    assert "stay in the file, read in each pass" in printed
    assert "1 pass a call; the first call checks what the file says of the rows" in printed
    assert "checking in the first pass takes about" in printed
    row = next(line for line in printed.splitlines() if line.startswith("  eager"))
    assert len(re.findall(r"[\d.]+ m?s", row)) == 3
    assert "cpu" not in printed.split("backend")[1].split("a call takes")[0]


def test_a_file_without_norms_is_measured_first(packed, capsys):
    rows = packed.parent / "rows.npz"
    arguments = ["info", str(rows), "--member", "images", "--no-in-memory", "--backend", "eager"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "1 pass a call; the first call one more, which measures the rows" in printed
    assert "; the first pass takes about" in printed
    record = told(capsys, *arguments[1:], "--no-speed")
    assert record["call"]["measuring_pass"] and record["memory"]["norms"] == 8 * 2500


def test_where_the_rows_stay_can_be_chosen(packed, capsys):
    for option, place in (("--in-memory", "memory"), ("--no-in-memory", "file")):
        record = told(capsys, packed, option, "--no-speed", "--batch", 2)
        assert record["place"] == place
    assert record["memory"]["rows"] == 480_000  # one buffer holds all


def test_estimates_are_made_of_what_was_timed(packed, capsys, monkeypatch):
    """Injected: 1 ms a row and call, and 1 MB/s of reading."""
    monkeypatch.setattr(opening, "MOST_BYTES_IN_MEMORY", 1000)
    monkeypatch.setattr(timing, "measure", lambda run, most, each: (100, 0.5, 0.1))
    monkeypatch.setattr(timing, "overlap_of", lambda *times: 1.25)
    first_pass = reading.Reading(1000, 1e5, 2e5, 48e3)
    whole = reading.take_sample

    def take(*arguments):
        return reading.Sample(**{**vars(whole(*arguments)), "reading": first_pass})

    monkeypatch.setattr(survey, "take_sample", take)
    record = told(capsys, packed, "--backend", "eager", "--batch", 4)
    found = record["backends"][0]["estimate"]
    assert found["read_s"] == pytest.approx(4.8)
    assert found["compute_s"] == pytest.approx(0.5 + 2.5)
    assert found["seconds"] == pytest.approx(0.5 + 1.25 * 4.8)
    assert (found["bound"], found["rows"], found["overlap"]) == ("reading", 100, 1.25)
    assert record["reading"]["first_pass_s"] == pytest.approx(10.0)
    floor = CEILINGS.floor_ms(480_000, 4 * 4 * 480_000)
    assert record["ceilings"]["floor_ms"] == pytest.approx(floor)


def test_without_times_nothing_is_read(packed, capsys, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("rows were read")

    monkeypatch.setattr(Source, "read", refuse)
    record = told(capsys, packed, "--no-speed")
    assert record["reading"] is None and record["ceilings"] is None
    assert all(backend["estimate"] is None for backend in record["backends"])
    reasons = {backend["name"]: backend["reasons"] for backend in record["backends"]}
    assert not reasons["eager"] and reasons["triton"] and reasons["reference"]
    assert main(["info", str(packed), "--no-speed"]) == 0
    assert "can run it; not timed" in capsys.readouterr().out


def test_json_has_settings_and_versions(packed, capsys):
    record = told(capsys, packed, "--no-speed", "--batch", 5, "--value-range", 0, 1)
    assert record["command"] == "info" and record["settings"]["batch"] == 5
    assert record["versions"]["torch"] == torch.__version__
    assert record["set"]["value_range"] == [0, 1]
    assert record["set"]["sha256"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs files with holes")
def test_a_file_larger_than_memory_takes_seconds(tmp_path, capsys, monkeypatch):
    count = 2_000_000  # 24.6 GB, of which the disk holds a few pages
    with open(tmp_path / "holes.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (count, 12_288)}
        )
        file.truncate(file.tell() + count * 12_288)
    read: list[int] = []
    whole = Source.read
    monkeypatch.setattr(
        Source, "read", lambda self, out, first: (read.append(out.nbytes), whole(self, out, first))
    )
    monkeypatch.setattr(reading, "SAMPLE_BYTES", 16 << 20)
    monkeypatch.setattr(reading, "KEPT_BYTES", 8 << 20)
    monkeypatch.setattr(reading, "FIRST_PASS_BYTES", 4 << 20)
    record = told(capsys, tmp_path / "holes.npy", "--batch", 2, "--backend", "eager")
    assert sum(read) < 100 << 20
    assert record["call"]["read_bytes"] == count * 12_288
    assert record["backends"][0]["estimate"]["read_s"] > 0


def test_mistakes_are_one_line(tmp_path, packed, capsys):
    np.save(tmp_path / "flat.npy", np.zeros((3, 4), np.float32))
    for arguments, message in (
        ([tmp_path / "none.npy"], "path must exist"),
        ([tmp_path / "flat.npy", "--flip"], "flip needs samples of shape"),
        ([tmp_path / "flat.npy", "--value-range", "0", "1"], "value_range must be left out"),
        ([packed, "--batch", "0"], "must be at least 1, got 0"),
        ([packed, "--sigma", "-1"], "must be positive and finite"),
        ([packed, "--backend", "nothing"], "backend must be one of"),
    ):
        assert main(["info", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_sizes_and_rates_are_read_easily():
    assert set_text._size(15_742_980_096) == "15.7 GB"
    assert set_text._size(31_457_280) == "31.5 MB" and set_text._size(999) == "1.0 kB"
    assert set_text._rate(8.19e9) == "8.19 GB/s"
