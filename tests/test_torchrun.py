"""Commands in several processes: what they write, what they print, and how they end.

Most run in ranks that are forked (`processes.run_ranks`), some under ``torchrun`` itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from processes import ELSEWHERE, Outcome, run_ranks

from diffgen import TrainingSet, machine, selfcheck
from diffgen.cli import demo, ranks, study
from diffgen.cli import main as command_line
from diffgen.cli import sample as sample_command
from diffgen.cli.main import main
from diffgen.study import StudyData, StudySettings, run_shared_stages

ROOT = Path(__file__).resolve().parent.parent
ROWS = 2_500
"""Two segments of 1,024 rows and a part of a third: a rank has one, the other two."""

SETTINGS = StudySettings(
    optimum_samples=8, optimum_points=1_200, sampler_steps=(4,), level_points=8, times=(100, 500)
)


def quick() -> contextlib.ExitStack:
    """Commands without what only takes time here."""
    patches = contextlib.ExitStack()
    ceilings = machine.Ceilings(10.0, 100.0, 1, "by hand")
    for thing, name, value in (
        (machine, "measure", lambda: ceilings),
        (demo, "MOST_NOISED", 10),
        (demo, "NUM_LEVELS", 4),
        (demo.figures, "draw", lambda *arguments: None),
        (study, "settings", lambda *arguments: SETTINGS),
    ):
        patches.enter_context(mock.patch.object(thing, name, value))
    return patches


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit status of a command, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with quick(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    return status, out.getvalue(), err.getvalue()


def rank() -> int:
    return int(os.environ["RANK"])


def stopped(*arguments: str) -> tuple[int, str, str]:
    """A command that Ctrl-C reaches in the second batch: rank 1 at once, rank 0 a moment later."""
    draw, batches = sample_command.sample, []

    def drawn(*given: Any, **settings: Any) -> torch.Tensor:
        batches.append(1)
        if len(batches) == 2 and rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)
        elif len(batches) == 2:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return draw(*given, **settings)

    with (
        mock.patch.object(sample_command, "sample", drawn),
        mock.patch.object(command_line, "GRACE_S", 20),
    ):
        return run(*arguments)


def killed(*arguments: str) -> tuple[int, str, str]:
    """A command of which rank 1 is killed in the second batch."""
    draw, batches = sample_command.sample, []

    def drawn(*given: Any, **settings: Any) -> torch.Tensor:
        batches.append(1)
        if len(batches) == 2 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(*given, **settings)

    def measure() -> machine.Ceilings:
        # torchrun tells the others to end; they write what was finished all the same.
        os.kill(os.getpid(), signal.SIGTERM)
        return machine.Ceilings(10.0, 100.0, 1, "by hand")

    with (
        mock.patch.object(sample_command, "sample", drawn),
        mock.patch.object(sample_command.machine, "measure", measure),
        mock.patch("test_torchrun.quick", contextlib.nullcontext),
    ):
        return run(*arguments)


def terminated(*arguments: str) -> tuple[int, str, str]:
    """A command that is told to end in the second batch, as torchrun does; its exit status."""
    draw, batches = sample_command.sample, []

    def drawn(*given: Any, **settings: Any) -> torch.Tensor:
        batches.append(1)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*given, **settings)

    with mock.patch.object(sample_command, "sample", drawn):
        try:
            return run(*arguments)
        except SystemExit as ended:
            return int(ended.code or 0), "", ""


def unlike(first: str, second: str, *arguments: str) -> tuple[int, str, str]:
    """A command over another set in rank 1."""
    return run("sample", second if rank() else first, *arguments)


def studied(*arguments: str) -> tuple[tuple[int, str, str], list[Any]]:
    """A study that does not train, and how the part of it that does would have run."""
    alone: list[Any] = []

    def run_study(*given: Any, **settings: Any) -> dict[str, Any]:
        alone.append((torch.distributed.is_initialized(), os.environ.get("WORLD_SIZE")))
        return {}

    with (
        mock.patch.object(study, "run_study", run_study),
        mock.patch.object(study, "digest", lambda record: "the end"),
    ):
        return run(*arguments), alone


def example() -> list[str]:
    """The lines of the example."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(str(ROOT / "examples" / "sharded_sampling.py"), run_name="__main__")
    return out.getvalue().splitlines()


def held(*arguments: str) -> tuple[tuple[int, str, str], list[Any]]:
    """A command, with the rows that this process holds, where, and whether it has all of them."""
    places: list[Any] = []

    def shared(*given: Any, **settings: Any) -> TrainingSet:
        made = share(*given, **settings)
        place = made._contents.store.place
        in_memory = given[0]._contents.store is None
        places.append((place.first, place.stop, type(place).__name__, in_memory))
        return made

    share = ranks.shared
    with mock.patch.object(ranks, "shared", shared):
        return run(*arguments), places


def in_two(*arguments: str, function: str = "run", **others: Any) -> list[Outcome]:
    """What two ranks did with a command, in which RANK is the rank of each."""
    return run_ranks(
        "test_torchrun:as_rank",
        2,
        arguments={"function": function, "given": [str(word) for word in arguments]},
        init="none",
        **others,
    )


def as_rank(function: str, given: list[str]) -> Any:
    torch.set_num_threads(1)
    return globals()[function](*(word.replace("RANK", str(rank())) for word in given))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "x.npy"
    pixels = selfcheck.stored_images(ROWS, 1, 8, torch.uint8).reshape(ROWS, 1, 8, 8)
    # Each image twice, in the parts of different ranks: measures read rows to see what is the same.
    pixels[ROWS // 2 :] = pixels[: ROWS // 2]
    np.save(path, pixels.numpy())
    np.savez(path.with_suffix(".npz"), images=pixels.numpy(), labels=np.arange(ROWS) % 3)
    packed = path.with_name("packed")
    assert main(["pack", str(path.with_suffix(".npz")), str(packed), "--labels"]) == 0
    return path


def silent(outcome: Outcome, status: int = 0) -> bool:
    return outcome.result() == (status, "", "") and outcome.stderr == ""


@pytest.mark.usefixtures("one_thread")
def test_demo_of_two_processes_is_that_of_one(source: Path, tmp_path: Path) -> None:
    command = ["demo", "--data", str(source), "--steps", "4", "--samples", "6", "--out"]
    first, second = in_two(*command, str(tmp_path / "two-RANK"))
    status, printed, _ = first.result()
    assert status == 0 and "1 thread, 2 processes" in printed and "Finished" in printed
    assert silent(second)
    assert run(*command, str(tmp_path / "one"))[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two-0"]
    folders = tmp_path / "one", tmp_path / "two-0"
    one, two = (json.loads((folder / "demo.json").read_text()) for folder in folders)
    for name in ("ddim.npy", "heun.npy"):
        first_bytes, second_bytes = ((folder / name).read_bytes() for folder in folders)
        assert first_bytes == second_bytes
    for part in ("data", "memorization", "neighbors", "backend", "sigmas"):
        assert one[part] == two[part]
    assert (one["processes"], two["processes"]) == (1, 2)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("memory", ["--in-memory", "--no-in-memory"])
def test_samples_of_two_processes_are_those_of_one(
    source: Path, tmp_path: Path, memory: str
) -> None:
    command = ["sample", str(source.with_name("packed")), "--num", "5", "--batch", "3"]
    command += ["--steps", "5", "--sampler", "ddpm", "--class-label", "2", memory, "--out"]
    outcomes = in_two(*command, str(tmp_path / "two-RANK.npy"), function="held")
    (first, of_first), (second, of_second) = (outcome.result() for outcome in outcomes)
    out = tmp_path / "two-0.npy"
    assert first[:2] == (0, f"5 samples in {out}, settings in {out}.json\n")
    assert second == (0, "", "")
    place = {"--in-memory": "MemoryPlace", "--no-in-memory": "FilePlace"}[memory]
    assert (of_first, of_second) == ([(0, 1024, place, False)], [(1024, ROWS, place, False)])
    assert run(*command, str(tmp_path / "one.npy"))[0] == 0
    assert (tmp_path / "one.npy").read_bytes() == out.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.npy{suffix}" for name in ("one", "two-0") for suffix in ("", ".json")
    ]


def test_study_of_two_processes_samples_the_optimum_together(source: Path, tmp_path: Path) -> None:
    command = ["study", "--data", str(source), "--held-out", "50", "--out", str(tmp_path / "two")]
    (first, alone), (second, idle) = (
        outcome.result() for outcome in in_two(*command, function="studied")
    )
    assert first[0] == 0 and first[1].count("together: ") == 2 and "the end" in first[1]
    assert second == (0, "", "")
    # Training in the first process finds one process.
    assert (alone, idle) == ([(False, None)], [])
    # By hand and alone, under the same keys: the second time nothing is left to do.
    assert run_stages_alone(source, tmp_path / "one") == 2
    assert run_stages_alone(source, tmp_path / "two") == 0
    kept = sorted((tmp_path / "two" / "stages").glob("*.json"))
    assert len(kept) == 2
    for path in kept:
        two = json.loads(path.read_text())
        one = json.loads((tmp_path / "one" / "stages" / path.name).read_text())
        assert one["values"] == two["values"]


def run_stages_alone(source: Path, out: Path) -> int:
    """The shared stages by the same split in this process; how many there were to run."""
    said: list[str] = []

    def share(whole: TrainingSet) -> TrainingSet:
        return whole

    def stages(settings: StudySettings, data: StudyData, folder: Path, **others: Any) -> Any:
        run_shared_stages(
            settings, data, folder, share=share, agree=lambda names: names, first=True,
            say=said.append,
        )  # fmt: skip
        return {}

    with mock.patch.object(study, "run_study", stages), mock.patch.object(study, "digest", str):
        held_out = ["--held-out", "50"]
        assert run("study", "--data", str(source), *held_out, "--out", str(out))[0] == 0
    return len(said)


def test_ctrl_c_ends_all_processes_with_130(source: Path, tmp_path: Path) -> None:
    command = ["sample", str(source), "--num", "6", "--batch", "2", "--steps", "4", "--out"]
    first, second = in_two(*command, str(tmp_path / "x.npy"), function="stopped")
    assert first.result()[0] == 130 and first.result()[2].endswith("\ndiffgen: stopped\n")
    assert "Traceback" not in first.result()[2] + first.stderr
    assert silent(second, 130)
    assert len(np.load(tmp_path / "x.npy")) == 2


def test_killed_process_is_an_error_in_the_other(source: Path, tmp_path: Path) -> None:
    command = ["sample", str(source), "--num", "6", "--batch", "2", "--steps", "4", "--out"]
    first, second = in_two(*command, str(tmp_path / "x.npy"), function="killed", survivors=[0])
    status, _, errors = first.result()
    assert status == 2 and second.status == -signal.SIGKILL
    assert errors.startswith("diffgen: rank 1 of 2 ") and errors.count("\n") == 1
    # What was finished is kept.
    assert len(np.load(tmp_path / "x.npy")) == 2
    assert json.loads((tmp_path / "x.npy.json").read_text())["finished"] is False


def test_terminated_processes_keep_what_was_finished(source: Path, tmp_path: Path) -> None:
    command = ["sample", str(source), "--num", "6", "--batch", "2", "--steps", "4", "--out"]
    outcomes = in_two(*command, str(tmp_path / "x.npy"), function="terminated")
    assert [outcome.result()[0] for outcome in outcomes] == [143, 143]
    assert len(np.load(tmp_path / "x.npy")) == 2


def test_other_set_in_one_process_is_refused(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npy"
    np.save(other, np.load(source)[::-1])
    outcomes = in_two(str(source), str(other), "--out", str(tmp_path / "x.npy"), function="unlike")
    results = [outcome.result() for outcome in outcomes]
    assert [status for status, _, _ in results] == [2, 2]
    assert "all ranks must hold the same set, but its rows differs" in "".join(
        errors for _, _, errors in results
    )
    assert not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize("number", ["0", "1"])
@pytest.mark.parametrize("name", ["bench", "info"])
def test_commands_of_one_process_refuse_several(
    name: str, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (("RANK", number), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(variable, value)
    said = f"diffgen: diffgen {name} runs in one process, got 2\n" if number == "0" else ""
    assert run(name) == (2, "", said)
    # Nor is a mistake in the arguments told twice.
    assert (run(name, "--no-such")[2] == "") is (number == "1")


def test_device_that_is_not_there_is_refused(source: Path, tmp_path: Path) -> None:
    for device, said in (("gpu", "must be a device of torch"), ("cuda:99", "a GPU that is there")):
        out = str(tmp_path / "x.npy")
        status, _, errors = run("sample", str(source), "--out", out, "--device", device)
        assert status == 2 and said in errors and device in errors


@pytest.mark.parametrize("name", ["demo", "sample", "study", "train"])
def test_torchrun_leaves_every_option_to_the_command(name: str) -> None:
    from torch.distributed.run import get_args_parser

    def passes(option: str) -> bool:
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
            line = ["--nproc-per-node", "2", "-m", "diffgen", name, option, "1"]
            return get_args_parser().parse_args(line).training_script_args == [name, option, "1"]
        return False

    assert not passes("--num")
    commands = command_line.parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for action in commands[name]._actions:  # type: ignore[call-overload, index]
        assert not action.option_strings or any(map(passes, action.option_strings)), action


def torchrun(*arguments: Any, timeout_s: float = 120) -> tuple[int, str, str]:
    """Exit status and output of two processes under torchrun; none of them outlives it."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*line, "--nproc-per-node", "2", *map(str, arguments)],
        cwd=ELSEWHERE,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException:
            # Its processes have sessions of their own.
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for leader in (process.pid, *map(int, children)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(leader, signal.SIGKILL)
            raise
    return process.returncode, out, err


@pytest.mark.usefixtures("one_thread")
def test_demo_runs_under_torchrun(source: Path, tmp_path: Path) -> None:
    command = ["demo", "--data", str(source), "--steps", "3", "--samples", "4", "--out"]
    status, out, err = torchrun("-m", "diffgen", *command, tmp_path / "two")
    assert status == 0, err
    assert out.count("Finished") == 1 and "2 processes" in out
    assert (tmp_path / "two" / "demo.png").exists()
    assert run(*command, str(tmp_path / "one"))[0] == 0
    for name in ("ddim.npy", "heun.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_common_mistake_is_told_once_under_torchrun(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.npy"
    status, out, err = torchrun("-m", "diffgen", "sample", path, "--out", tmp_path / "x.npy")
    told = [line for line in err.splitlines() if "nowhere.npy" in line and "diffgen: " in line]
    assert status != 0 and out == ""
    assert len(told) == 1 and "exitcode  : 2" in err


def test_example_prints_the_same_in_two_processes() -> None:
    first, second = in_two(function="example")
    (alone,) = example()
    assert alone.startswith("16 of 16 samples are copies of training images; sha256 ")
    assert (first.result(), second.result()) == ([alone], [])
