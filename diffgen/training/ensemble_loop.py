"""Training of K networks as one batched network: replicas for bounds, seeds and objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from diffgen.networks.initialization import drawn_from
from diffgen.objectives import Objective, Regression
from diffgen.training.ensemble import Ensemble, Stacked, run_stacked, stack
from diffgen.training.ensemble_draws import EnsembleDraws
from diffgen.training.errors import NonFiniteLossError
from diffgen.training.learning_rates import factor
from diffgen.training.seeds import derived_generator, derived_seed
from diffgen.training.settings import TrainingSettings
from diffgen.training_set import TrainingSet

Wrapper = Callable[[Iterable[int]], Iterable[int]]
"""Passes the steps through, as ``tqdm`` does."""

_AVERAGE_EVERY = 10
"""Steps between updates of the moving average, which would otherwise take a tenth of the time."""

_NORM_SLACK = 1e-6
"""What torch's ``clip_grad_norm_`` adds to a norm, so that a replica is clipped as it is alone."""


def train_ensemble(
    network_factory: Callable[[], nn.Module],
    sets: Sequence[TrainingSet] | Tensor,
    objectives: Objective | Sequence[Objective],
    *,
    num_steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    schedule: str = "cosine",
    warmup_steps: int = 0,
    max_grad_norm: float | None = 1.0,
    ema_decay: float | None = 0.999,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    checkpoints: Sequence[int] = (),
    log_every: int = 100,
    progress: Wrapper | None = None,
) -> Ensemble:
    """Train one network on each of K sets, all of them as one batched network.

    Replica k is what it would be by itself: its initial weights and draws follow from its own seed,
    its gradient is clipped by itself, and AdamW works element by element. Only the order of
    floating-point sums may depend on K.

    Sets may repeat: K seeds on one set are K times that set. Objectives may differ from replica to
    replica, with equal seeds where only the objective should.

    Args:
        network_factory: Makes a new network ``(x_t, t) -> prediction``, the same architecture each
            time. It draws its weights from PyTorch's global generator, which is seeded for each
            replica and as before afterwards. No dropout, no batch normalisation.
        sets: K training sets, or a tensor ``(K, n, *S)``, float32 or float64. Batches are drawn
            uniformly, with replacement.
        objectives: One for all replicas, or K.
        num_steps: Updates.
        batch_size: Points of an update of each replica.
        learning_rate: Of AdamW, the highest.
        weight_decay: Of AdamW.
        schedule: How the rate falls: ``"cosine"``, ``"linear"`` or ``"constant"``.
        warmup_steps: Steps in which it rises linearly before.
        max_grad_norm: Norm at which each replica's gradient is clipped; None for none.
        ema_decay: Decay per step of the moving average of the parameters, which is what the
            ensemble then holds; updated every 10 steps. None: the parameters themselves.
        seed: Replica k has a seed that follows from this and k.
        seeds: Seed of each replica instead, K.
        checkpoints: Numbers of steps whose networks are kept too, in ``[1, num_steps]``.
        log_every: Steps that a recorded loss is the mean of.
        progress: Wraps the steps, as ``tqdm`` does.

    Returns:
        The networks after ``num_steps`` and after each of the checkpoints, with their losses.

    Raises:
        ValueError: A setting out of range; sets of different sample shapes, with unequal weights,
            or none; another number of objectives or seeds than sets.
        NonFiniteLossError: The loss of a replica is NaN or infinite.

    Example:
        >>> from diffgen import processes
        >>> from diffgen.networks import MLP
        >>> from diffgen.objectives import NoisePrediction
        >>> ensemble = train_ensemble(
        ...     lambda: MLP((2,), width=16, depth=1),
        ...     torch.randn(4, 20, 2),
        ...     NoisePrediction(processes.DDPM()),
        ...     num_steps=20,
        ...     checkpoints=(10,),
        ... )
        >>> len(ensemble), ensemble.steps, ensemble.losses.shape
        (4, (10, 20), torch.Size([1, 4]))

    Source:
        Loshchilov, Hutter, Decoupled weight decay regularization (2019) (AdamW).
    """
    settings = TrainingSettings(
        num_steps=num_steps,
        batch_size=batch_size,
        optimizer="adamw",
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup_steps=warmup_steps,
        max_grad_norm=max_grad_norm,
        accumulation_steps=1,
        ema_decay=ema_decay,
        seed=seed,
    )
    if log_every < 1:
        raise ValueError(f"log_every must be at least 1, got {log_every}")
    for step in checkpoints:
        if not 1 <= step <= num_steps:
            raise ValueError(f"checkpoints must be in [1, {num_steps}], got {step}")
    points = _points(sets)
    count = len(points)
    of_each = [objectives] * count if isinstance(objectives, Objective) else list(objectives)
    if len(of_each) != count:
        raise ValueError(f"objectives must be 1 or {count}, one a set, got {len(of_each)}")
    own = [derived_seed(seed, "replica", k) for k in range(count)] if seeds is None else list(seeds)
    if len(own) != count:
        raise ValueError(f"seeds must be {count}, one a set, got {len(own)}")

    networks = [_new_network(network_factory, one).to(points[0].device) for one in own]
    run = _Run(networks, settings)
    draws = EnsembleDraws(points, of_each, batch_size, own)
    kept: dict[int, Stacked] = {}
    losses, loss_steps, since = [], [], torch.zeros(count, dtype=torch.float64)
    steps: Iterable[int] = range(1, num_steps + 1)
    logged = 0
    for step in progress(steps) if progress else steps:
        since += run.advance(draws.regression(step - 1))
        if step % log_every == 0 or step == num_steps:
            losses.append(since / (step - logged))
            loss_steps.append(step)
            _check_finite(losses[-1], step, learning_rate)
            since, logged = torch.zeros_like(since), step
        if step in checkpoints or step == num_steps:
            kept[step] = run.state()
    record = {
        **settings.record(),
        "seeds": own,
        "num_points": [len(of_set) for of_set in points],
        "objectives": [one.settings() for one in of_each],
        "average_every": None if ema_decay is None else _AVERAGE_EVERY,
    }
    return Ensemble(networks[0], kept, torch.stack(losses), torch.tensor(loss_steps), record)


class _Run:
    """The stacked parameters in training, their optimizer and their average."""

    def __init__(self, networks: Sequence[nn.Module], settings: TrainingSettings) -> None:
        self._network = networks[0]
        self._count = len(networks)
        self._settings = settings
        trained = {name for name, value in self._network.named_parameters() if value.requires_grad}
        self._leaves = {
            name: _swapped(value).contiguous().requires_grad_(name in trained)
            for name, value in stack(networks).items()
        }
        self._trained = [leaf for leaf in self._leaves.values() if leaf.requires_grad]
        if not self._trained:
            raise ValueError("network must have parameters that require a gradient, got none")
        self._optimizer = torch.optim.AdamW(
            self._trained,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._rate = factor(settings.schedule, settings.warmup_steps, settings.num_steps)
        self._average: list[Tensor] | None = None
        self._step = 0

    def advance(self, drawn: Regression) -> Tensor:
        """One update of every replica; returns their losses before it, ``(K,)`` float64."""
        x_t, t = (value.unflatten(0, (self._count, -1)) for value in (drawn.x_t, drawn.t))
        state = {name: _swapped(leaf) for name, leaf in self._leaves.items()}
        predicted = run_stacked(self._network, state, x_t, t)
        of_samples = drawn.losses(predicted.flatten(0, 1))
        losses: Tensor = of_samples.unflatten(0, (self._count, -1)).mean(1)
        # The gradient of the sum is each replica's own: no parameter is shared.
        losses.sum().backward()
        self._clip()
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.learning_rate * self._rate(self._step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        if self._settings.ema_decay is not None and self._step % _AVERAGE_EVERY == 0:
            self._update_average(self._settings.ema_decay)
        detached: Tensor = losses.detach().to("cpu", torch.float64)
        return detached

    def state(self) -> Stacked:
        """A copy of all tensors, averaged where there is an average."""
        averages = iter(self._average or self._trained)
        return {
            name: _swapped(next(averages) if leaf.requires_grad else leaf)
            .detach()
            .clone(memory_format=torch.contiguous_format)
            for name, leaf in self._leaves.items()
        }

    def _clip(self) -> None:
        """Scale down each replica's gradient whose norm is larger than allowed."""
        most = self._settings.max_grad_norm
        if most is None:
            return
        gradients = [value.grad for value in self._trained if value.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
        total = torch.linalg.vector_norm(norms, dim=0)  # (K,)
        shares = (most / (total + _NORM_SLACK)).clamp(max=1.0)
        if bool((shares < 1).any()):
            for gradient in gradients:
                gradient.mul_(shares.reshape(-1, *[1] * (gradient.ndim - 1)))

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        if self._average is None:
            self._average = [value.detach().clone() for value in self._trained]
            return
        updates = self._step // _AVERAGE_EVERY - 1  # since the first, which copied
        # The memory grows with the run, so that a short one does not keep its first parameters.
        kept = min(decay**_AVERAGE_EVERY, (1 + updates) / (10 + updates))
        for average, value in zip(self._average, self._trained, strict=True):
            average.lerp_(value, 1 - kept)


def _swapped(stacked: Tensor) -> Tensor:
    """Weights of linear layers, ``(K, out, in)``, with the last two axes swapped; others as are.

    A batched product's gradient comes as ``(K, in, out)``. Leaves of that layout take it as it is;
    others would copy it, transposed, in each step.
    """
    return stacked.mT if stacked.ndim == 3 else stacked


def _points(sets: Sequence[TrainingSet] | Tensor) -> list[Tensor]:
    """The points of each set, decoded; checked."""
    found = []
    for k, one in enumerate(sets):
        if isinstance(one, TrainingSet):
            log_weights = one.log_weight_of(torch.arange(len(one)))
            if bool((log_weights != log_weights[0]).any()):
                raise ValueError(f"sets must have equal weights, got others in set {k}")
        found.append(one[:].detach())
        if found[k].ndim < 2 or len(found[k]) == 0 or found[k].shape[1:] != found[0].shape[1:]:
            raise ValueError(
                f"sets must be (n, *S) with n >= 1 and one S, got {tuple(found[k].shape)} in set "
                f"{k} and {tuple(found[0].shape)} in set 0"
            )
    if not found:
        raise ValueError("sets must be at least one, got none")
    return found


def _new_network(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    with drawn_from(derived_generator(seed, "ensemble weights")):
        network = factory()
    if not isinstance(network, nn.Module):
        got = type(network).__name__
        raise TypeError(f"network_factory must return a torch.nn.Module, got {got}")
    return network.train()


def _check_finite(losses: Tensor, step: int, learning_rate: float) -> None:
    bad = ~losses.isfinite()
    if bool(bad.any()):
        k = int(bad.nonzero()[0])
        raise NonFiniteLossError(
            f"loss of replica {k} is {float(losses[k])} up to step {step}, with learning rate "
            f"{learning_rate:g}; a lower rate may help"
        )
