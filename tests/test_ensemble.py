"""Networks trained as one batched network: each is what it would be by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffgen import EmpiricalDenoiser, TrainingSet, as_denoiser, processes, sample, schedules
from diffgen.networks import MLP
from diffgen.objectives import ClosedFormTarget, ForwardTime, NoisePrediction
from diffgen.training.ensemble import Ensemble, stack
from diffgen.training.ensemble_draws import EnsembleDraws
from diffgen.training.ensemble_loop import train_ensemble
from diffgen.training.errors import NonFiniteLossError

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = torch.finfo(torch.float64).eps
DDPM = processes.DDPM()


def _sets(count: int = 3, size: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, size, 2, generator=generator, dtype=torch.float64)


def _network() -> nn.Module:
    return MLP((2,), width=16, depth=1).double()


def _train(sets, objectives=None, **changes):
    arguments = {"num_steps": 25, "batch_size": 8, "learning_rate": 1e-2, "seed": 3, "log_every": 1}
    return train_ensemble(
        _network, sets, objectives or NoisePrediction(DDPM), **arguments | changes
    )


def _plain_loop(points, seed, objective, steps, ema_decay, most_norm):
    """Replica by itself: torch's AdamW and gradients, without a batch of networks."""
    from diffgen.networks.initialization import drawn_from
    from diffgen.training.learning_rates import factor
    from diffgen.training.seeds import derived_generator

    with drawn_from(derived_generator(seed, "ensemble weights")):
        network = _network()
    draws = EnsembleDraws([points], [objective], 8, [seed])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
    average, losses = None, []
    for step in range(steps):
        drawn = draws.regression(step)
        loss = drawn.losses(network(drawn.x_t, drawn.t)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), most_norm)
        optimizer.param_groups[0]["lr"] = 1e-2 * factor("cosine", 0, steps)(step)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 10 == 0:
            current = [p.detach().clone() for p in network.parameters()]
            if average is None:
                average = current
            else:
                k = (step + 1) // 10 - 1
                decay = min(ema_decay**10, (1 + k) / (10 + k))
                average = [
                    decay * a + (1 - decay) * c for a, c in zip(average, current, strict=True)
                ]
    return losses, dict(zip(dict(network.named_parameters()), average, strict=True))


@pytest.mark.parametrize("most_norm", [0.05, 1e6])  # always clipped, never clipped
def test_replica_is_what_plain_training_gives(most_norm: float) -> None:
    sets, seeds = _sets(), [5, 6, 7]
    objectives = [
        NoisePrediction(DDPM),
        ForwardTime(DDPM, gap="uniform"),
        ClosedFormTarget(DDPM),
    ]
    ensemble = _train(sets, objectives, seeds=seeds, max_grad_norm=most_norm, ema_decay=0.9)
    for k in range(3):
        losses, average = _plain_loop(sets[k], seeds[k], objectives[k], 25, 0.9, most_norm)
        want = torch.tensor(losses, dtype=torch.float64)
        # Sums in another order differ by a few float64 roundings, which 25 steps of AdamW (whose
        # first steps divide gradients by their own size) may make 1e5 times larger; a wrong term
        # is of the size of the losses.
        torch.testing.assert_close(ensemble.losses[:, k], want, rtol=1e5 * EPS, atol=0)
        state = ensemble[k].state_dict()
        for name, value in average.items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e6 * EPS)


def test_replica_does_not_depend_on_the_others() -> None:
    sets = _sets()
    together, alone = _train(sets, seeds=[5, 6, 7]), _train(sets[1:2], seeds=[6])
    assert torch.equal(together.losses[:1, 1], alone.losses[:1, 0])  # same weights, same draws
    torch.testing.assert_close(together.losses[:, 1:2], alone.losses, rtol=1e5 * EPS, atol=0)
    assert not torch.equal(together.losses[:, 0], together.losses[:, 1])


def test_seeds_follow_from_seed_and_replica() -> None:
    sets = _sets()[:1].expand(3, -1, -1)
    first, again, other = _train(sets), _train(sets), _train(sets, seed=4)
    assert torch.equal(first.losses, again.losses)
    assert first.settings["seeds"] == again.settings["seeds"]
    assert len(set(first.settings["seeds"] + other.settings["seeds"])) == 6
    assert len(first.losses[0].unique()) == 3  # one set, three seeds


def test_equal_seeds_share_draws_under_different_objectives() -> None:
    sets = _sets()[:1].expand(2, -1, -1)
    objectives = [NoisePrediction(DDPM), ForwardTime(DDPM)]
    ensemble = _train(sets, objectives, seeds=[1, 1], num_steps=1, ema_decay=None)
    assert ensemble.settings["seeds"] == [1, 1]
    first, second = (ensemble[k].state_dict() for k in range(2))
    assert torch.equal(first["time.first.bias"].sign(), first["time.first.bias"].sign())
    assert first.keys() == second.keys()


def test_every_step_has_draws_of_its_own() -> None:
    def draws():
        return EnsembleDraws(list(_sets(2)), [NoisePrediction(DDPM)] * 2, 8, [1, 2])

    one = draws()
    steps = [one.regression(step).x_t for step in (0, 1, 31, 32, 33, 64)]
    assert all(x.shape == (16, 2) for x in steps)
    # A float64 normal draw does not come twice.
    assert len(torch.cat(steps)[:, 0].unique()) == 6 * 16
    # A step's draws are a function of the step alone, not of those asked for before.
    assert torch.equal(draws().regression(33).x_t, steps[4])


def test_caller_s_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    _train(_sets(), num_steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_checkpoints_are_those_of_shorter_looks() -> None:
    # A constant rate: what step 10 holds must not depend on how far the run goes on.
    long = _train(_sets(), checkpoints=(10, 20), schedule="constant")
    short = _train(_sets(), num_steps=10, schedule="constant")
    assert long.steps == (10, 20, 25) and long.step == 25
    for name, value in short.tensors().items():
        assert torch.equal(long.tensors()[name], value)
    assert not torch.equal(next(iter(long.at(20))).enter.weight, long.at(10)[0].enter.weight)
    with pytest.raises(ValueError, match="step must be one of 10, 20, 25, got 11"):
        long.at(11)


def test_batched_network_is_its_parts() -> None:
    ensemble = _train(_sets())
    x, t = torch.randn(3, 5, 2, dtype=torch.float64), torch.randint(0, 1000, (3, 5))
    found = ensemble(x, t)
    with torch.no_grad():
        want = torch.stack([ensemble[k](x[k], t[k]) for k in range(3)])
    # One forward pass with sums of at most 128 terms, in another order.
    torch.testing.assert_close(found, want, rtol=1e3 * EPS, atol=1e3 * EPS)
    assert torch.equal(ensemble.joint(x.flatten(0, 1), t.flatten()).reshape(3, 5, 2), found)
    taken = ensemble.take([2, 0])
    assert torch.equal(taken[0].state_dict()["leave.bias"], ensemble[2].state_dict()["leave.bias"])
    assert torch.equal(taken.losses, ensemble.losses[:, [2, 0]])


def test_all_networks_are_sampled_at_once() -> None:
    ensemble = _train(_sets())
    sigmas = schedules.from_process(DDPM, 5)
    start = sigmas[0] * torch.randn(3, 4, 2, dtype=torch.float64)
    joint = as_denoiser(ensemble.joint, DDPM, nearest=True)
    together = sample(joint, (12, 2), sigmas, x_init=start.flatten(0, 1)).reshape(3, 4, 2)
    for k, network in enumerate(ensemble):
        alone = sample(as_denoiser(network, DDPM, nearest=True), (4, 2), sigmas, x_init=start[k])
        # Predictions differ by 1e3 roundings, and the first levels multiply them by 150.
        torch.testing.assert_close(together[k], alone, rtol=1e6 * EPS, atol=1e6 * EPS)


def test_ensemble_goes_through_a_file(tmp_path) -> None:
    ensemble = _train(_sets(), checkpoints=(10,))
    torch.save(ensemble.tensors(), tmp_path / "tensors.pt")
    loaded = Ensemble.from_tensors(_network(), torch.load(tmp_path / "tensors.pt"))
    assert loaded.steps == (10, 25)
    x, t = torch.randn(3, 5, 2, dtype=torch.float64), torch.randint(0, 1000, (3, 5))
    assert torch.equal(loaded.at(10)(x, t), ensemble.at(10)(x, t))
    with pytest.raises(ValueError, match=r"tensors must be those of the network.*enter\.weight"):
        Ensemble.from_tensors(MLP((2,), width=8, depth=1), ensemble.tensors())
    with pytest.raises(ValueError, match="names like '0/weight', got 'weight'"):
        Ensemble.from_tensors(_network(), {"weight": torch.zeros(1)})


def test_training_lowers_the_loss_of_every_replica() -> None:
    # 300 steps on 12 points: the loss of a network that says 0 is 1 = E epsilon^2.
    sets = _sets(2).float()
    ensemble = train_ensemble(
        lambda: MLP((2,), width=64, depth=2), sets, NoisePrediction(DDPM), num_steps=300
    )
    assert ensemble.losses.shape == (3, 2) and ensemble.loss_steps.tolist() == [100, 200, 300]
    assert bool((ensemble.losses[-1] < 0.8).all())
    assert bool((ensemble.losses[-1] < ensemble.losses[0]).all())


def test_sets_may_be_training_sets_of_different_sizes() -> None:
    sets = [TrainingSet(_sets(1, size)[0]) for size in (5, 9)]
    objectives = [ClosedFormTarget(DDPM, EmpiricalDenoiser(one)) for one in sets]
    ensemble = _train(sets, objectives, num_steps=3)
    assert ensemble.settings["num_points"] == [5, 9]
    assert bool(ensemble.losses.isfinite().all())


class _Reference(ClosedFormTarget):
    """Keeps the batch that it was given."""

    def __init__(self) -> None:
        super().__init__(DDPM)
        self.sizes: list[int] = []

    def draw(self, x0, generator=None, **extra):
        self.sizes.append(len(x0))
        return super().draw(x0, generator, **extra)


def test_a_batch_that_is_the_reference_is_one_batch() -> None:
    objective = _Reference()
    _train(_sets(1), objective, num_steps=3)
    assert set(objective.sizes) == {8}


def test_bad_arguments_are_refused() -> None:
    sets = _sets()
    with pytest.raises(ValueError, match="objectives must be 1 or 3, one a set, got 2"):
        _train(sets, [NoisePrediction(DDPM)] * 2)
    with pytest.raises(ValueError, match="seeds must be 3, one a set, got 1"):
        _train(sets, seeds=[0])
    with pytest.raises(ValueError, match=r"checkpoints must be in \[1, 25\], got 26"):
        _train(sets, checkpoints=(26,))
    with pytest.raises(ValueError, match="sets must be at least one, got none"):
        _train([])
    with pytest.raises(ValueError, match=r"got \(3, 4\) in set 1 and \(3, 2\) in set 0"):
        _train([torch.zeros(3, 2), torch.zeros(3, 4)])
    with pytest.raises(ValueError, match="sets must have equal weights, got others in set 0"):
        _train([TrainingSet(sets[0], weights=torch.arange(1.0, 13.0))])
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        _train(sets, learning_rate=0.0)
    with pytest.raises(TypeError, match=r"must return a torch\.nn\.Module, got NoneType"):
        train_ensemble(lambda: None, sets, NoisePrediction(DDPM), num_steps=1)  # type: ignore
    with pytest.raises(ValueError, match=r"network must return the shape of x_t, \(8, 2\)"):
        train_ensemble(_Wrong, sets, NoisePrediction(DDPM), num_steps=1, batch_size=8)
    with pytest.raises(ValueError, match="networks must have one architecture, got another in"):
        stack([nn.Linear(1, 2), nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="networks must be at least one, got none"):
        Ensemble.of([])
    ensemble = Ensemble.of([_network(), _network()])
    with pytest.raises(ValueError, match=r"x_t must be \(2, B, \*S\) and t \(2, B\)"):
        ensemble(torch.zeros(3, 5, 2), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="multiple of 2 rows, got 5"):
        ensemble.joint(torch.zeros(5, 2), torch.zeros(5))
    with pytest.raises(IndexError, match=r"replica must be in \[0, 2\), got 2"):
        ensemble[2]
    with pytest.raises(ValueError, match=r"replicas must be in \[0, 2\), got -1"):
        ensemble.take([-1])


class _Wrong(nn.Module):
    """Returns another shape than it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x_t, t):
        return self.weight * x_t[:, :1]


def test_a_loss_that_is_not_finite_names_its_replica() -> None:
    # Weights so large that a sum of 8 losses overflows.
    heavy = NoisePrediction(
        DDPM, weighting=lambda t: torch.full(t.shape, 1e308, dtype=torch.float64)
    )
    with pytest.raises(NonFiniteLossError, match="loss of replica 1 is inf up to step 1"):
        _train(_sets(2), [NoisePrediction(DDPM), heavy])
