"""The study's machinery: stages that are kept, keys, resuming; settings and data."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from diffgen import TrainingSet
from diffgen.cli import study as cli_study
from diffgen.networks import MLP, TimeScale
from diffgen.objectives import NoisePrediction
from diffgen.processes import DDPM, RectifiedFlow
from diffgen.study.answers import own as own_answer
from diffgen.study.claims.fleets import REPLICAS, fleet_of, train_replicas
from diffgen.study.claims.own import measure_own_network, open_checkpoint
from diffgen.study.context import Context, StudyData
from diffgen.study.estimates import Estimate, memorised, share
from diffgen.study.plain import pack_images, plain, unpack_images
from diffgen.study.settings import StudySettings, large, quick
from diffgen.study.stages import Found, Stage, run_stages, stage_keys
from diffgen.study.store import StageResult, StageStore
from diffgen.training import train


class Ran:
    """Two stages that count how often they run; the second can be told to fail."""

    def __init__(self):
        self.ran = []
        self.fails = False
        self.stages = (
            Stage("first", "one", self.first),
            Stage("second", "two", self.second, needs=("first",)),
        )

    def first(self, context):
        self.ran.append("first")
        return {"values": [1.0, 2.0]}, {"x": torch.arange(3)}

    def second(self, context):
        self.ran.append("second")
        if self.fails:
            raise KeyboardInterrupt
        return {"sum": sum(context.values("first")["values"])}, {}


def silent(line):
    pass


def run(ran, folder, subject=None):
    context = Found()
    run_stages(ran.stages, context, StageStore(folder), subject or {"seed": 0}, silent)
    return context


def test_finished_stage_does_not_run_again(tmp_path):
    ran = Ran()
    first = run(ran, tmp_path)
    second = run(ran, tmp_path)
    assert ran.ran == ["first", "second"]
    assert second.values("second") == first.values("second") == {"sum": 3.0}
    assert torch.equal(second.arrays("first")["x"], torch.arange(3))


def test_interrupted_study_goes_on_where_it_was(tmp_path):
    ran = Ran()
    ran.fails = True
    with pytest.raises(KeyboardInterrupt):
        run(ran, tmp_path)
    ran.fails = False
    assert run(ran, tmp_path).values("second") == {"sum": 3.0}
    assert ran.ran == ["first", "second", "second"]


def test_other_subject_is_another_study_in_the_same_folder(tmp_path):
    ran = Ran()
    run(ran, tmp_path, {"seed": 0})
    run(ran, tmp_path, {"seed": 1})
    assert ran.ran == ["first", "second"] * 2
    run(ran, tmp_path, {"seed": 0})
    assert len(ran.ran) == 4


def test_key_depends_on_what_is_needed():
    a = Stage("a", "", lambda c: ({}, {}))
    other = Stage("other", "", lambda c: ({}, {}))
    alone = Stage("b", "", lambda c: ({}, {}))
    after = Stage("b", "", lambda c: ({}, {}), needs=("a",))
    keys = [stage_keys((a, other, b), {})["b"] for b in (alone, after)]
    assert keys[0] != keys[1]
    assert stage_keys((a,), {"seed": 0}) != stage_keys((a,), {"seed": 1})


def test_stage_before_what_it_needs_is_refused():
    late = Stage("late", "", lambda c: ({}, {}), needs=("early",))
    with pytest.raises(ValueError, match="stage 'late' needs 'early' before it"):
        stage_keys((late,), {})


@pytest.mark.parametrize("suffix", ["json", "npz"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_damaged_stage_runs_again(tmp_path, suffix, damage):
    ran = Ran()
    run(ran, tmp_path)
    (path,) = tmp_path.glob(f"first-*.{suffix}")
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    else:
        path.unlink()
    context = run(ran, tmp_path)
    assert ran.ran == ["first", "second", "first"]
    assert context.values("first") == {"values": [1.0, 2.0]}


def test_half_written_stage_is_not_there(tmp_path):
    # What a kill between the two files leaves: the arrays without the JSON.
    store = StageStore(tmp_path)
    store.write("s", "0" * 64, StageResult({"a": 1}, {}, 0.0))
    next(tmp_path.glob("*.json")).unlink()
    assert store.read("s", "0" * 64) is None


def test_store_does_not_take_pickles(tmp_path):
    store = StageStore(tmp_path)
    store.write("s", "0" * 64, StageResult({}, {"x": torch.ones(2)}, 0.0))
    for path in tmp_path.iterdir():
        assert b"pickle" not in path.read_bytes()
    assert torch.equal(store.read("s", "0" * 64).arrays["x"], torch.ones(2))


def test_plain_values_survive_json():
    values = {"a": torch.tensor([1 / 3, float("inf")]), "b": [None, True, 2, "text"]}
    assert json.loads(json.dumps(plain(values), allow_nan=False)) == plain(values)
    assert plain(plain(values)) == plain(values)
    assert plain(1 / 3) == 0.3333333


def test_packed_images_come_back():
    images = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
    back = unpack_images(pack_images(images, (-1.0, 1.0)))
    # Half a step of 255.
    assert float((back / 255 * 2 - 1 - images).abs().max()) <= 1 / 255 + 1e-6


def binomial_tail(count, trials, p, upper):
    from math import comb

    ks = range(count, trials + 1) if upper else range(count + 1)
    return sum(comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in ks)


@pytest.mark.parametrize(("count", "trials"), [(0, 20), (3, 20), (20, 20), (57, 64)])
def test_share_interval_is_that_of_clopper_and_pearson(count, trials):
    found = share([True] * count + [False] * (trials - count))
    assert found.value == count / trials
    # At its ends the tails have 2.5%. 60 halvings leave an error of float rounding.
    if count > 0:
        assert binomial_tail(count, trials, found.low, upper=True) == pytest.approx(0.025, rel=1e-9)
    if count < trials:
        assert binomial_tail(count, trials, found.high, upper=False) == pytest.approx(
            0.025, rel=1e-9
        )
    assert (found.low == 0) == (count == 0)
    assert (found.high == 1) == (count == trials)


def test_memorised_is_strict():
    assert memorised([1.0, 0.9999, 0.0], [3.0, 3.0, 1.0]) == [False, True, True]


def test_estimate_prints_with_its_interval():
    assert str(Estimate(12.3456, 11.0, 13.0)) == "12.3 (11.0 to 13.0)"


def study_data(count=60, held_out=8):
    rows = torch.randn(count + held_out, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    return StudyData("noise", TrainingSet(rows[:count]), rows[count:], (-2.0, 2.0))


def test_replica_sets_are_disjoint():
    settings = StudySettings(replicas=5, replica_points=12)
    sets = Context(settings, study_data()).replica_sets()
    rows = torch.cat([s[torch.arange(12)] for s in sets]).flatten(1)
    assert len(rows.unique(dim=0)) == 60


def test_too_few_images_for_replicas_are_named():
    settings = StudySettings(replicas=5, replica_points=14)
    with pytest.raises(ValueError, match="5 disjoint sets of 14 need 70 training images, got 60"):
        Context(settings, study_data()).replica_sets()


def test_purposes_have_their_own_random_numbers():
    context = Context(StudySettings(), study_data())
    assert not torch.equal(context.noise("a", 3), context.noise("b", 3))
    assert torch.equal(context.noise("a", 3), context.noise("a", 3))


def test_networks_of_larger_samples_are_kept_in_folders(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    pytest.importorskip("safetensors")
    # The way of large samples, on small ones.
    monkeypatch.setattr("diffgen.study.claims.fleets.TINY", 4)
    data = study_data(16)
    settings = StudySettings(
        replicas=2, replica_points=8, replica_train_steps=2, batch_size=4, checkpoints=1
    )
    context = Context(settings, data, tmp_path)
    values, arrays = train_replicas(context)
    assert arrays == {}
    context.found[REPLICAS] = StageResult(plain(values), arrays, 0.0)
    fleet = fleet_of(context, REPLICAS)
    assert (len(fleet), fleet.steps) == (2, (2,))
    x, t = torch.randn(6, 1, 3, 3), torch.full((6,), 500)
    together = fleet.joint(x, t)
    alone = torch.cat([fleet[0](x[:3], t[:3]), fleet[1](x[3:], t[3:])])
    assert torch.equal(together, alone)
    # Another call takes up what is there, to the bit.
    assert train_replicas(context)[0] == values
    assert torch.equal(fleet_of(context, REPLICAS).joint(x, t), together)


def parsed(*words):
    top = argparse.ArgumentParser()
    cli_study.add_parser(top.add_subparsers())
    return top.parse_args(["study", *words])


def test_command_line_changes_the_settings_it_names():
    args = parsed("--quick", "--samples", "9", "--steps", "7", "--seed", "3")
    settings = cli_study.settings(args, study_data())
    assert (settings.num_samples, settings.optimum_samples) == (9, 9)
    assert settings.replica_train_steps == settings.seed_train_steps == 7
    assert (settings.seed, settings.replicas) == (3, quick(StudySettings()).replicas)
    assert cli_study.settings(parsed(), study_data()) == StudySettings()


def test_larger_samples_have_settings_of_their_own():
    rows = torch.zeros(4, 1, 20, 20)
    data = StudyData("large", TrainingSet(rows[:3]), rows[3:], (0.0, 1.0))
    assert cli_study.settings(parsed(), data) == large(StudySettings())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The run of a network on the training part of the data, predicting v of a flow."""
    pytest.importorskip("accelerate")
    pytest.importorskip("safetensors")
    folder = tmp_path_factory.mktemp("run")
    train(
        MLP((1, 3, 3), width=8, depth=1, time_scale=TimeScale.of(RectifiedFlow())),
        study_data().training,
        NoisePrediction(RectifiedFlow(), "velocity"),
        num_steps=2,
        batch_size=4,
        checkpoint_dir=folder,
    )
    return folder


def test_own_network_is_measured_in_its_own_convention(checkpoint):
    data = study_data()
    settings = StudySettings(num_samples=8, level_points=8, model_steps=4, times=(100, 400))
    own = open_checkpoint(checkpoint, data)
    assert (own.process, own.target) == (RectifiedFlow(), "velocity")
    values, _ = measure_own_network(Context(settings, data), own)
    # The study's noise levels at the times of the flow, sigma = t / (1 - t).
    levels = DDPM().ratio(torch.tensor([100, 400]))
    assert torch.allclose(values["times"].double(), levels / (1 + levels), rtol=2**-22)
    given = own_answer.answer({"own_network": plain(values)})
    assert given.verdict and len(given.tables[1].rows) == 2


def test_own_network_of_other_data_is_refused(checkpoint):
    with pytest.raises(ValueError, match="checkpoint must be of a network trained on this study"):
        open_checkpoint(checkpoint, study_data(59))


def test_folder_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_checkpoint(tmp_path, study_data())


@pytest.mark.parametrize(
    ("name", "value"), [("replicas", 1), ("num_samples", 7), ("replica_points", 5)]
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        StudySettings(**{name: value})
