"""The training loop: what a step is, its schedules and average, rows, and refusals."""

from __future__ import annotations

import csv
import signal
from math import cos, pi

import pytest
import torch
from torch import Tensor, nn

from diffgen import EmpiricalDenoiser, TrainingSet, processes
from diffgen.networks import MLP
from diffgen.objectives import NoisePrediction
from diffgen.training import Evaluation, NonFiniteLossError, TrainingResult, train
from diffgen.training.average import moving_average
from diffgen.training.evaluation import spread_times
from diffgen.training.learning_rates import SCHEDULES, factor
from diffgen.training.logs import CsvLog
from diffgen.training.order import BatchOrder
from diffgen.training.seeds import derived_seed

pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("one_thread")


def points(count: int = 50, size: int = 2, **more) -> TrainingSet:
    generator = torch.Generator().manual_seed(0)
    return TrainingSet(torch.randn(count, size, generator=generator), **more)


def network(size: int = 2) -> MLP:
    return MLP((size,), width=16, depth=1, generator=torch.Generator().manual_seed(1))


def ddpm() -> NoisePrediction:
    return NoisePrediction(processes.DDPM())


def fit(num_steps: int = 12, **more) -> TrainingResult:
    more = {"batch_size": 8, "log_every": 5, **more}
    return train(network(), points(), ddpm(), num_steps=num_steps, **more)


def parameters(of: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in of.parameters()])


class Weight(nn.Module):
    """One parameter, whose gradient an objective can choose."""

    def __init__(self, value: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=dtype))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.weight * x_t


def slope(network: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
    """A loss with gradient 1."""
    return network(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1)).sum()


def test_network_learns_the_mean_of_its_set() -> None:
    # Of one point x the optimum is known: epsilon* = (x_t - alpha x) / sigma.
    only = TrainingSet(torch.tensor([[0.5, -1.0]]))
    net = MLP((2,), width=64, depth=1, generator=torch.Generator().manual_seed(1))
    result = train(net, only, ddpm(), num_steps=150, batch_size=64, learning_rate=3e-3)
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < losses[0] / 5  # the irreducible loss is 0


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, second, other = fit(), fit(), fit(seed=1)
    assert torch.equal(parameters(first.network), parameters(second.network))
    assert first.history == second.history
    assert not torch.equal(parameters(first.network), parameters(other.network))


def test_steps_are_those_of_a_plain_loop() -> None:
    # The loop written out once more, with torch alone.
    result = fit(num_steps=7, learning_rate=0.01, warmup_steps=2, weight_decay=0.1, ema_decay=None)
    net, data, objective = network(), points(), ddpm()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    rate = factor("cosine", 2, 7)
    for step in range(7):
        generator = torch.Generator().manual_seed(derived_seed(0, "noise", step, 0))
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * rate(step)
        optimizer.zero_grad()
        objective(net, data[BatchOrder(data, 8, 0).batch(step)], generator).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    assert torch.equal(parameters(result.network), parameters(net))
    assert result.ema_network is None and result.best_network is result.network


def test_global_generator_is_as_before() -> None:
    before = torch.random.get_rng_state()
    fit()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_average_is_that_of_its_closed_form() -> None:
    net = Weight()
    average = moving_average(net, 0.7)
    values = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0, 5.0, -3.5, 8.0, 9.5, 7.0, 0.25]
    for value in values:
        nn.init.constant_(net.weight, value)
        average.update_parameters(net)
    # Unrolled: each value times (1 - d) of its own update and the d of all that follow.
    decays = [0.0] + [min(0.7, (1 + k) / (10 + k)) for k in range(1, len(values))]
    assert decays[-1] < 0.7 < (1 + 30) / (10 + 30)
    expected = 0.0
    for index, value in enumerate(values):
        kept = torch.tensor(decays[index + 1 :], dtype=torch.float64).prod().item()
        expected += (1 - decays[index]) * kept * value
    # Some 14 roundings of numbers up to 10 each way.
    assert abs(average.module.weight.item() - expected) <= 2 * 14 * 10 * 2.0**-53
    assert not average.module.weight.requires_grad


def test_average_of_a_run_is_that_of_its_weights() -> None:
    seen = []

    def objective(network: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(network.weight.item())
        return slope(network, x0, generator)

    data = points(size=1)
    result = train(
        Weight(),
        data,
        objective,
        num_steps=40,
        schedule="constant",
        optimizer="sgd",
        learning_rate=0.1,
        ema_decay=0.5,
    )
    weights = [*seen[1:], result.network.weight.item()]
    expected = weights[0]
    for k, weight in enumerate(weights[1:], start=1):
        decay = min(0.5, (1 + k) / (10 + k))
        expected += (1 - decay) * (weight - expected)
    scale = max(map(abs, weights))
    assert abs(result.ema_network.weight.item() - expected) <= 40 * 4 * scale * 2.0**-53


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rates_are_those_of_the_formulas(schedule: str) -> None:
    result = train(
        network(),
        points(),
        ddpm(),
        num_steps=10,
        batch_size=4,
        schedule=schedule,
        warmup_steps=3,
        learning_rate=0.5,
        log_every=1,
    )
    found = [row["learning_rate"] for row in result.history]
    after = {
        "cosine": [(1 + cos(pi * k / 7)) / 2 for k in range(7)],
        "linear": [1 - k / 7 for k in range(7)],
        "constant": [1.0] * 7,
    }[schedule]
    exact = [0.5 * value for value in (0.25, 0.5, 0.75, *after)]
    # A handful of float64 operations on numbers below 1 each.
    assert max(abs(a - b) for a, b in zip(found, exact, strict=True)) <= 8 * 2.0**-53


def test_the_optimizer_gets_the_scheduled_rate() -> None:
    # Momentum 0.9 on a gradient of 1: v_k = (1 - 0.9^(k+1)) / 0.1, w = -sum rate_k v_k.
    result = train(
        Weight(),
        points(size=1),
        slope,
        num_steps=6,
        optimizer="sgd",
        learning_rate=0.1,
        schedule="linear",
        warmup_steps=2,
        max_grad_norm=None,
    )
    rate = factor("linear", 2, 6)
    expected = -sum(0.1 * rate(k) * (1 - 0.9 ** (k + 1)) / 0.1 for k in range(6))
    # Some ten roundings a step of numbers below 4, and sums of at most 4.
    assert abs(result.network.weight.item() - expected) <= 6 * 10 * 4 * 2.0**-53


def test_gradients_are_clipped_and_their_norm_is_reported() -> None:
    def steep(network: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        return 7 * slope(network, x0, generator)

    common = {"num_steps": 1, "optimizer": "sgd", "learning_rate": 1.0, "schedule": "constant"}
    clipped = train(Weight(), points(size=1), steep, max_grad_norm=2.0, **common)
    free = train(Weight(), points(size=1), steep, max_grad_norm=None, **common)
    assert clipped.history[0]["grad_norm"] == free.history[0]["grad_norm"] == 7
    # torch divides by the norm plus 1e-6.
    assert clipped.network.weight.item() == pytest.approx(-2 * 7 / (7 + 1e-6), rel=2.0**-50)
    assert free.network.weight.item() == -7


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    sizes = []

    def mean(network: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        sizes.append(len(x0))
        return (network(x0, torch.zeros(len(x0))) - 3).square().mean()

    data = TrainingSet(torch.arange(8, dtype=torch.float64)[:, None])
    found = [
        train(
            Weight(),
            data,
            mean,
            num_steps=5,
            batch_size=8,
            accumulation_steps=parts,
            optimizer="sgd",
            learning_rate=0.01,
            max_grad_norm=None,
        )
        for parts in (1, 4)
    ]
    assert sizes == 5 * [8] + 20 * [2]
    one, four = (result.network.weight.item() for result in found)
    # The same 8 terms in another order: at most 8 roundings of numbers below 100, 5 times.
    assert abs(one - four) <= 5 * 8 * 100 * 0.01 * 2.0**-53
    losses = [result.history[0]["loss"] for result in found]
    assert losses[0] == pytest.approx(losses[1], rel=2.0**-20)  # kept in float32


def test_each_epoch_sees_every_point_once() -> None:
    order = BatchOrder(points(10), batch_size=4, seed=0)
    steps = [order.batch(step) for step in range(5)]
    seen = torch.cat(steps)
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(BatchOrder(points(10), 4, 0).batch(3), steps[3])
    assert not torch.equal(BatchOrder(points(10), 4, 1).batch(3), steps[3])
    large = BatchOrder(points(3), batch_size=7, seed=0).batch(0)
    assert sorted(large[:3].tolist()) == sorted(large[3:6].tolist()) == [0, 1, 2]


def test_mirror_images_are_points_of_the_order() -> None:
    mirrored = TrainingSet(torch.arange(6.0).reshape(3, 1, 2), flip=True)
    assert sorted(BatchOrder(mirrored, 6, 0).batch(0).tolist()) == list(range(6))


def test_weighted_points_are_drawn_by_their_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0])
    order = BatchOrder(points(3, weights=weights), batch_size=4000, seed=0)
    counts = order.batch(0).bincount(minlength=3)
    assert counts[0] == 0
    z = (float(counts[2]) - 3000) / (4000 * 0.75 * 0.25) ** 0.5
    assert abs(z) < 4
    assert not torch.equal(order.batch(0), order.batch(1))


def test_rows_are_the_means_of_their_steps() -> None:
    each, both = fit(log_every=1), fit(log_every=5)
    assert [row["step"] for row in both.history] == [5, 10, 12]
    assert [row["epoch"] for row in both.history] == [step * 8 / 50 for step in (5, 10, 12)]
    for name in ("loss", "grad_norm"):
        singles = [row[name] for row in each.history]
        assert both.history[0][name] == sum(singles[:5]) / 5
        assert both.history[2][name] == sum(singles[10:]) / 2


def test_a_loss_that_is_not_finite_names_step_and_rate(tmp_path) -> None:
    calls = []

    def broken(network: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(0)
        return slope(network, x0, generator) * (float("nan") if len(calls) == 4 else 1.0)

    with pytest.raises(
        NonFiniteLossError, match=r"got nan at step 3 with a learning rate of 0\.25"
    ):
        train(
            Weight(),
            points(size=1),
            broken,
            num_steps=9,
            optimizer="sgd",
            learning_rate=0.25,
            schedule="constant",
            checkpoint_dir=tmp_path,
            checkpoint_every=2,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_a_gradient_that_is_not_finite_is_found_though_the_loss_is() -> None:
    def broken(network: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        return slope(network, x0, generator).clamp(min=0).sqrt()  # sqrt has no slope at 0

    with pytest.raises(NonFiniteLossError, match="norm of the gradient must be finite"):
        train(Weight(), points(size=1), broken, num_steps=1)


def test_evaluations_stand_beside_the_irreducible_loss() -> None:
    data = points(40)
    test = torch.randn(30, 2, generator=torch.Generator().manual_seed(5))
    result = train(
        network(),
        data,
        ddpm(),
        num_steps=6,
        batch_size=8,
        test_set=test,
        evaluate_every=4,
        evaluation_times=[100, 500],
        evaluation_samples=40,
    )
    rows = result.evaluations
    assert [(r["step"], r["split"], r["t"]) for r in rows[:4]] == [
        (4, split, t) for split in ("train", "test") for t in (100.0, 500.0)
    ]
    assert {row["step"] for row in rows} == {4, 6}
    for row in rows:
        assert row["gap_low"] <= row["gap"] <= row["gap_high"]
        assert row["loss"] >= 0 and 0 <= row["irreducible_loss"] <= 2
    # The irreducible loss is of the set alone, and the same noise is drawn every time.
    for name in ("irreducible_loss", "optimum_loss"):
        assert [r[name] for r in rows[:4]] == [r[name] for r in rows[4:]]
    # Evaluations change nothing of the training.
    plain = train(network(), data, ddpm(), num_steps=6, batch_size=8)
    assert torch.equal(parameters(plain.network), parameters(result.network))


def test_evaluation_of_the_optimum_finds_no_gap() -> None:
    class Optimum(nn.Module):
        def __init__(self, data: TrainingSet) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.predictor = EmpiricalDenoiser(data).predictor(processes.DDPM(), "epsilon")

        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return self.scale * self.predictor(x_t, t)

    data = points(40)
    rows = Evaluation(processes.DDPM(), "epsilon", data, data, [100, 400]).rows(Optimum(data), 0)
    for row in rows:
        # Predictions are rounded to float32: relative 2^-24 of numbers below 8, squared.
        assert row["gap"] <= 2 * (8 * 2.0**-24) ** 2
        assert row["loss"] == pytest.approx(row["optimum_loss"], rel=1e-5)


def test_spread_times_are_equally_spaced_in_log_noise() -> None:
    for make in processes.PROCESSES.values():
        process = make()
        ratios = process.ratio(spread_times(process, 6)).log().diff()
        if not isinstance(process, processes.DDPM):  # which rounds to whole times
            assert float(ratios.max() - ratios.min()) < 1e-6 * float(ratios.mean())
        assert (ratios > 0).all()


def test_csv_log_holds_the_rows(tmp_path) -> None:
    result = fit(logger="csv", log_dir=tmp_path, evaluate_every=12, evaluation_times=[300])
    for name, rows in (("history", result.history), ("evaluations", result.evaluations)):
        with (tmp_path / f"{name}.csv").open() as file:
            found = list(csv.DictReader(file))
        assert [{k: str(v) for k, v in row.items()} for row in rows] == found


def test_csv_log_drops_what_a_resumed_run_does_again(tmp_path) -> None:
    log = CsvLog(tmp_path, {"history": []})
    log.write("history", [{"step": 1}, {"step": 2}])
    CsvLog(tmp_path, {"history": [{"step": 1}]}).write("history", [{"step": 2}])
    assert (tmp_path / "history.csv").read_text() == "step\n1\n2\n"


def test_tensorboard_log_holds_the_rows(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = fit(logger="tensorboard", log_dir=tmp_path, evaluate_every=12, evaluation_times=[300])
    events = EventAccumulator(str(tmp_path)).Reload()
    found = [(event.step, event.value) for event in events.Scalars("history/loss")]
    exact = [(row["step"], torch.tensor(row["loss"]).item()) for row in result.history]
    assert found == exact  # event files hold float32
    assert "evaluations/gap/train/t=300" in events.Tags()["scalars"]


def test_first_interrupt_writes_a_checkpoint_and_raises(tmp_path) -> None:
    def pressed(network: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        if not list(tmp_path.iterdir()) and pressed.calls == 4:
            signal.raise_signal(signal.SIGINT)
        pressed.calls += 1
        return slope(network, x0, generator)

    pressed.calls = 0
    before = signal.getsignal(signal.SIGINT)
    arguments = {"num_steps": 9, "optimizer": "sgd", "checkpoint_dir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        train(Weight(), points(size=1), pressed, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert signal.getsignal(signal.SIGINT) == before
    result = train(Weight(), points(size=1), pressed, **arguments)
    assert result.resumed_from == 5 and pressed.calls == 9


def test_interrupt_without_checkpoints_raises_at_once() -> None:
    def pressed(network: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        train(Weight(), points(size=1), pressed, num_steps=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number, 1 or more, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"optimizer": "lion"}, "optimizer must be one of adamw, adam, sgd, got 'lion'"),
        ({"schedule": "step"}, "schedule must be one of cosine, linear, constant"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1"),
        ({"warmup_steps": 12}, "warmup_steps must be less than num_steps = 12, got 12"),
        ({"accumulation_steps": 3}, "batch_size must be divisible by 1 processes x 3"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"checkpoint_every": 2}, "checkpoint_every needs a checkpoint_dir"),
        ({"logger": "wandb", "log_dir": "x"}, "logger must be one of csv, tensorboard"),
        ({"logger": "csv"}, "logger needs a log_dir or a checkpoint_dir"),
    ],
)
def test_bad_settings_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(**arguments)


def test_bad_objectives_and_networks_are_refused() -> None:
    data = points(size=1)
    with pytest.raises(TypeError, match="objective must return a tensor, got float"):
        train(Weight(), data, lambda network, x0, generator: 1.0, num_steps=1)
    for bad in (torch.zeros(()), torch.zeros(2, requires_grad=True)):
        with pytest.raises(ValueError, match="objective must return a scalar that depends"):
            train(Weight(), data, lambda network, x0, generator, bad=bad: bad, num_steps=1)
    with pytest.raises(ValueError, match="network must have parameters"):
        train(nn.Identity(), data, slope, num_steps=1)
    with pytest.raises(ValueError, match="evaluate_every needs an objective with a process"):
        train(Weight(), data, slope, num_steps=1, evaluate_every=1)
    with pytest.raises(ValueError, match="network must return the shape of x_t"):
        train(nn.Bilinear(2, 1, 3), points(), _pair(ddpm()), num_steps=1)
    with pytest.raises(ValueError, match="test_set must have samples"):
        fit(test_set=torch.zeros(3, 5), evaluate_every=1)


def _pair(objective: NoisePrediction):
    """Calls a bilinear layer as it wants to be called."""

    def loss(network: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        return objective(lambda x_t, t: network(x_t, t[:, None].float()), x0, generator)

    return loss
