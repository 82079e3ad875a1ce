"""Checkpoints: exact resuming after any death, and what is refused instead of going on wrongly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffgen import DataError, TrainingSet, processes
from diffgen.networks import MLP
from diffgen.objectives import NoisePrediction
from diffgen.training import (
    NonFiniteLossError,
    TrainingResult,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    load_network,
    train,
)
from diffgen.training.checkpoint import save_checkpoint
from diffgen.training.order import BatchOrder

pytest.importorskip("accelerate")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.usefixtures("one_thread")

PROCESSES = Path(__file__).parent / "training_processes.py"


class Stopped(Exception):
    """What ends a run in these tests, at a step."""


class Stopping:
    """An objective that raises at some step."""

    def __init__(self, at: int | None) -> None:
        self.inner = NoisePrediction(processes.DDPM())
        self.left = at

    def settings(self) -> dict:
        return self.inner.settings()

    def __call__(self, network: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        if self.left == 0:
            raise Stopped
        if self.left is not None:
            self.left -= 1
        return self.inner(network, x0, generator)


class Dropping(nn.Module):
    """A network that draws by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MLP((2,), width=16, depth=1, generator=torch.Generator().manual_seed(1))
        self.drop = nn.Dropout(0.3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(self.drop(x_t), t)


def mlp() -> MLP:
    return MLP((2,), width=16, depth=1, generator=torch.Generator().manual_seed(1))


def points(**more) -> TrainingSet:
    return TrainingSet(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), **more)


def fit(
    folder: Path | None,
    stop: int | None = None,
    *,
    make: Callable[[], nn.Module] = mlp,
    data: TrainingSet | None = None,
    **more,
) -> TrainingResult:
    more = {"num_steps": 12, "batch_size": 8, "log_every": 5, **more}
    if folder is not None:
        more = {"checkpoint_dir": folder, "checkpoint_every": 4, **more}
    return train(make(), points() if data is None else data, Stopping(stop), **more)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which left checkpoints of steps 8 and 12."""
    folder = tmp_path_factory.mktemp("finished")
    torch.set_num_threads(1)
    fit(folder)
    return folder


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(original, tmp_path / "run")


def stopped(folder: Path, at: int, **more) -> None:
    with pytest.raises(Stopped):
        fit(folder, at, **more)


def assert_same(first: TrainingResult, second: TrainingResult) -> None:
    for one, two in (
        (first.network, second.network),
        (first.ema_network or first.network, second.ema_network or second.network),
    ):
        own, other = one.state_dict(), two.state_dict()
        assert all(torch.equal(own[name], other[name]) for name in own)
    assert first.history == second.history
    assert first.evaluations == second.evaluations


def process(what: str, folder: Path) -> list[str]:
    command = [sys.executable, str(PROCESSES), what, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [path.read_text() for path in sorted(folder.glob("*.txt"))]


@pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="os.fork is of Unix")
def test_run_killed_six_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    killed, whole = process("kill", tmp_path)
    assert killed == whole
    histories = [(tmp_path / name / "history.csv").read_bytes() for name in ("killed", "whole")]
    assert histories[0] == histories[1]
    # Nothing is left of what was being written.
    names = [path.name for path in (tmp_path / "killed").iterdir()]
    assert sorted(names) == ["history.csv", "step-00000035", "step-00000040"]


@pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="os.fork is of Unix")
def test_two_processes_stay_equal_and_resume_exactly(tmp_path: Path) -> None:
    digests = process("pair", tmp_path)
    assert len(digests) == 4 and len(set(digests)) == 1
    drawn = [json.loads((tmp_path / f"whole{rank}.json").read_text()) for rank in range(2)]
    assert len(drawn[0]) == len(drawn[1]) == 40
    order = BatchOrder(points(), batch_size=8, seed=0)
    for step, ((first, one), (second, two)) in enumerate(zip(*drawn, strict=True)):
        # Each has its half of the batch of one process, and noise of its own.
        assert torch.equal(torch.tensor(first + second), points()[order.batch(step)])
        assert len(first) == len(second) == 4 and one != two


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"optimizer": "sgd", "schedule": "linear", "warmup_steps": 5},
        {"optimizer": "adam", "weight_decay": 0.1, "schedule": "constant"},
        {"ema_decay": None, "max_grad_norm": None},
        {"ema_decay": 0.15},
        {"accumulation_steps": 2, "batch_size": 32},
        {"make": Dropping},
        {"data": points(weights=torch.arange(30.0))},
        {"checkpoint_every": 1, "keep_checkpoints": 1},
    ],
    ids=lambda more: ",".join(more) or "default",
)
def test_resumed_run_has_the_bits_of_a_whole_one(tmp_path: Path, more: dict) -> None:
    whole = fit(None, **{k: v for k, v in more.items() if "checkpoint" not in k})
    steps = 10 * more.get("accumulation_steps", 1)
    stopped(tmp_path, steps, **more)
    resumed = fit(tmp_path, **more)
    assert resumed.resumed_from == (10 if more.get("checkpoint_every") == 1 else 8)
    assert_same(whole, resumed)


def test_layers_draw_anew_in_each_step_and_the_same_when_resumed(tmp_path: Path) -> None:
    class Drawing(Stopping):
        seen: list

        def __call__(self, *args) -> Tensor:
            self.seen.append(torch.rand(()).item())
            return super().__call__(*args)

    def draws(folder: Path | None, stop: int | None) -> list[float]:
        objective = Drawing(stop)
        objective.seen = []
        more = {} if folder is None else {"checkpoint_dir": folder, "checkpoint_every": 4}
        with suppress(Stopped):
            train(mlp(), points(), objective, num_steps=12, batch_size=8, **more)
        return objective.seen

    whole = draws(None, None)
    assert len(set(whole)) == 12
    assert draws(tmp_path, 9) == whole[:10]
    assert draws(tmp_path, None) == whole[8:]


def test_checkpoint_is_complete_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed, rename = [], os.rename

    def watched(source: Path, target: Path) -> None:
        if Path(target).name == "step-00000004":
            assert not target.exists()
            assert load_checkpoint(source).step == 4
        rename(source, target)
        renamed.append(Path(target).name)

    monkeypatch.setattr(os, "rename", watched)
    fit(tmp_path)
    assert [name for name in renamed if not name.endswith(".gone")] == [
        "step-00000004",
        "step-00000008",
        "step-00000012",
    ]


def test_evaluations_are_resumed_too(tmp_path: Path) -> None:
    objective = NoisePrediction(processes.DDPM())
    arguments = {"num_steps": 12, "batch_size": 8, "evaluate_every": 4, "evaluation_times": [300]}
    whole = train(mlp(), points(), objective, **arguments)

    class Interrupted(NoisePrediction):
        calls = 0

        def draw(self, *args, **more):
            Interrupted.calls += 1
            if Interrupted.calls == 10:
                raise Stopped
            return super().draw(*args, **more)

        def settings(self) -> dict:
            return objective.settings()

    arguments |= {"checkpoint_dir": tmp_path, "checkpoint_every": 4}
    with pytest.raises(Stopped):
        train(mlp(), points(), Interrupted(processes.DDPM()), **arguments)
    assert_same(train(mlp(), points(), objective, **arguments), whole)


def test_finished_run_returns_at_once_and_a_constant_rate_can_be_extended(tmp_path: Path) -> None:
    first = fit(tmp_path, schedule="constant")
    again = fit(tmp_path, 0, schedule="constant")  # the objective would raise
    assert again.resumed_from == 12
    assert_same(first, again)
    longer = fit(tmp_path, schedule="constant", num_steps=18)
    assert_same_weights(longer.network, fit(None, schedule="constant", num_steps=18).network)
    with pytest.raises(ValueError, match="num_steps must be at least the 18"):
        fit(tmp_path, schedule="constant", num_steps=15)


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@pytest.mark.parametrize(
    ("more", "different"),
    [
        ({"num_steps": 13}, "settings.num_steps = 13, not 12"),
        ({"learning_rate": 0.5}, "settings.learning_rate = 0.5, not 0.001"),
        ({"seed": 3, "batch_size": 4}, "settings.batch_size = 4, not 8; settings.seed = 3, not 0"),
        ({"ema_decay": None}, "settings.ema_decay = None, not 0.999"),
        ({"data": points(weights=torch.arange(30.0))}, "training_set.weights_sha256 = "),
        ({"data": points().subset(slice(0, 29))}, "training_set.num_points = 29, not 30"),
        ({"data": TrainingSet(torch.zeros(30, 2))}, "training_set.sha256 = "),
        ({"make": lambda: MLP((2,), width=8, depth=1)}, "network.arguments.width = 8, not 16"),
        ({"make": Dropping}, "network.name = None, not 'mlp'"),
    ],
)
def test_run_with_other_settings_is_refused(finished: Path, more: dict, different: str) -> None:
    before = sorted(path.name for path in finished.iterdir())
    with pytest.raises(ValueError) as error:
        fit(finished, **more)
    assert different in str(error.value)
    assert str(finished / "step-00000012" / "state.json") in str(error.value)
    assert sorted(path.name for path in finished.iterdir()) == before


def test_settings_that_change_no_weight_may_differ(tmp_path: Path) -> None:
    stopped(tmp_path, 10)
    resumed = fit(tmp_path, log_every=3, checkpoint_every=3, keep_checkpoints=1, logger="csv")
    assert_same_weights(resumed.network, fit(None).network)


def test_without_resume_checkpoints_must_not_be_there(tmp_path: Path) -> None:
    fit(tmp_path, resume=False)
    with pytest.raises(ValueError, match="must hold no checkpoints with resume=False, got 2 in"):
        fit(tmp_path, resume=False)


def test_resuming_elsewhere_warns(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.warns(UserWarning, match="another environment.*threads = 77, not 1"):
        fit(finished)


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def damage_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))


def damage_remove(path: Path) -> None:
    path.unlink()


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


FILES = ("network.safetensors", "average.safetensors", "optimizer.safetensors", "state.json")


@pytest.mark.parametrize("damage", [damage_cut, damage_byte, damage_remove, damage_empty])
@pytest.mark.parametrize("name", FILES)
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(
    finished: Path, name: str, damage: Callable[[Path], None]
) -> None:
    newest, older = checkpoints(finished)
    damage(newest / name)
    with pytest.raises(DataError) as error:
        load_checkpoint(newest)
    assert str(error.value).startswith(f"{newest / name}: ")
    with pytest.warns(UserWarning, match="checkpoint passed over"):
        found = latest_checkpoint(finished)
    assert found is not None and found[0] == older and found[1].step == 8


def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    original: Path, finished: Path
) -> None:
    damage_cut(finished / "step-00000012" / "network.safetensors")
    with pytest.warns(UserWarning, match="checkpoint passed over"):
        resumed = fit(finished)
    assert resumed.resumed_from == 8
    for name in FILES[:3]:
        made, first = (of / "step-00000012" / name for of in (finished, original))
        assert made.read_bytes() == first.read_bytes()


def test_damaged_checkpoints_alone_are_an_error_and_not_a_new_start(finished: Path) -> None:
    for path in checkpoints(finished):
        damage_cut(path / "network.safetensors")
    with pytest.warns(UserWarning), pytest.raises(DataError, match=r"step-00000012.*cut off"):
        fit(finished)


def test_keeping_one_never_removes_the_one_just_written(finished: Path) -> None:
    damage_cut(finished / "step-00000012" / "state.json")
    with pytest.warns(UserWarning), pytest.raises(Stopped):
        fit(finished, 2, keep_checkpoints=1, checkpoint_every=1)
    assert {path.name for path in checkpoints(finished)} == {"step-00000012", "step-00000010"}


def forge(path: Path, change: Callable[[dict], None]) -> None:
    """Change the JSON of a checkpoint and make its digest right."""
    state = json.loads((path / "state.json").read_text())
    del state["sha256"]
    change(state)
    state["sha256"] = sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (path / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(format=2), "format must be 1, got 2"),
        (lambda s: s.update(step="5"), "step must be of type int"),
        (lambda s: s["files"].update({"../../x.safetensors": "0"}), "files must be of network"),
        (lambda s: s["files"].pop("optimizer.safetensors"), "must have optimizer.safetensors"),
        (lambda s: s["record"].pop("identity"), "record.identity must be of type dict"),
    ],
)
def test_forged_state_is_refused(finished: Path, change, message: str) -> None:
    newest = checkpoints(finished)[0]
    forge(newest, change)
    with pytest.raises(DataError, match=message):
        load_checkpoint(newest)


def rewrite(folder: Path, change: Callable[[dict], None]) -> None:
    """Write the newest checkpoint again with other tensors."""
    checkpoint = load_checkpoint(checkpoints(folder)[0])
    tensors = {group: dict(of) for group, of in checkpoint.tensors.items()}
    change(tensors)
    save_checkpoint(folder, replace(checkpoint, tensors=tensors), keep=9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda t: t["network"].update({"leave.bias": torch.zeros(3)}),
            ValueError,
            r"network.safetensors: of another architecture.*'leave.bias' must be float32 \(2,\), "
            r"got float32 \(3,\)",
        ),
        (
            lambda t: t["average"].pop("leave.bias"),
            ValueError,
            "average.safetensors: of another architecture.*got absent",
        ),
        (
            lambda t: t["network"].update({"more": torch.zeros(3)}),
            ValueError,
            "'more' must be absent",
        ),
        (lambda t: t.pop("average"), DataError, "average.safetensors: missing"),
        (
            lambda t: t["optimizer"].update({"0.exp_avg": torch.zeros(3)}),
            DataError,
            "optimizer.safetensors: '0.exp_avg' must have the shape of its parameter",
        ),
        (
            lambda t: t["optimizer"].update({"999.step": torch.zeros(())}),
            DataError,
            "'999.step' must be of one of",
        ),
    ],
)
def test_foreign_tensors_are_refused_and_nothing_is_loaded(
    finished: Path, change, error: type, message: str
) -> None:
    rewrite(finished, change)
    network = mlp()
    with pytest.raises(error, match=message):
        fit(finished, make=lambda: network)
    assert_same_weights(network, mlp())


def test_trained_network_is_rebuilt_from_its_folder_or_a_checkpoint(tmp_path: Path) -> None:
    result = fit(tmp_path)
    network, identity = load_network(tmp_path)
    assert_same_weights(network, result.ema_network)
    assert not network.training and identity == result.settings
    plain, _ = load_network(tmp_path / "step-00000012", average=False)
    assert_same_weights(plain, result.network)
    x_t, t = torch.randn(4, 2), torch.arange(4)
    assert torch.equal(plain(x_t, t), result.network(x_t, t))


def test_trained_network_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_network(tmp_path)
    fit(tmp_path, make=Dropping)
    with pytest.raises(DataError, match=r"state.json: no description of a network of diffgen"):
        load_network(tmp_path)
    assert isinstance(load_network(tmp_path, Dropping())[0], Dropping)
    with pytest.raises(ValueError, match="of another architecture"):
        load_network(tmp_path, mlp())


def test_description_that_asks_for_much_memory_is_refused_before_it_is_taken(
    finished: Path,
) -> None:
    newest = checkpoints(finished)[0]
    # 65,536^2 weights a layer are 16 GiB each.
    forge(newest, lambda s: s["record"]["identity"]["network"]["arguments"].update(width=65_536))
    with pytest.raises(ValueError, match="of another architecture"):
        load_network(newest)


def test_checkpoint_holds_its_four_files_and_no_pickle(finished: Path) -> None:
    assert sorted(path.name for path in checkpoints(finished)[0].iterdir()) == sorted(FILES)


def test_no_checkpoint_has_weights_of_a_step_that_failed(tmp_path: Path) -> None:
    def broken(network: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        return network(x0, torch.zeros(len(x0))).mean() + float("inf")

    with pytest.raises(NonFiniteLossError):
        train(mlp(), points(), broken, num_steps=3, checkpoint_dir=tmp_path, checkpoint_every=1)
    assert checkpoints(tmp_path) == []
