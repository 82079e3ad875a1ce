"""K networks of one architecture that run as one: every parameter has a leading axis of replicas.

Small networks leave a machine waiting between small operations; K of them, batched by
``torch.func``, are as many times larger operations. Replica k computes with its own parameters
alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffgen.network_output import unwrapped

Stacked = dict[str, Tensor]
"""Parameters and buffers by name, each ``(K, *shape)``."""

_SEPARATOR = "/"
"""Between step and name in the keys of `Ensemble.tensors`; no module's name has it."""


class Ensemble:
    """Networks of one architecture, trained or new; see `diffgen.training.train_ensemble`.

    ``ensemble(x_t, t)`` with ``x_t (K, B, *S)`` and ``t (K, B)`` runs network k on batch k.
    ``ensemble[k]`` is network k by itself.

    Args:
        network: One network of the architecture; copied, its values are not used.
        states: The tensors of all networks after each number of steps; the largest is current.
        losses: Mean training loss of each network over the steps up to each of ``loss_steps``,
            ``(L, K)``.
        loss_steps: ``(L,)`` int64.
        settings: What determines the networks.

    Attributes:
        steps: Numbers of steps whose networks are kept, ascending.
        step: The current one.
        losses: As above.
        loss_steps: As above.
        settings: As above.

    Raises:
        ValueError: If there is no state.

    Example:
        >>> from diffgen.networks import MLP
        >>> ensemble = Ensemble.of([MLP((2,), width=8, depth=1) for _ in range(3)])
        >>> ensemble(torch.zeros(3, 5, 2), torch.zeros(3, 5)).shape, len(ensemble)
        (torch.Size([3, 5, 2]), 3)
        >>> ensemble[1](torch.zeros(5, 2), torch.zeros(5)).shape
        torch.Size([5, 2])

    Source:
        PyTorch's tutorial on model ensembling with ``torch.func`` (the batching).
    """

    def __init__(
        self,
        network: nn.Module,
        states: Mapping[int, Stacked],
        losses: Tensor | None = None,
        loss_steps: Tensor | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the states; see the class."""
        if not states:
            raise ValueError("states must have at least one entry, got none")
        self._network = copy.deepcopy(network).requires_grad_(False).eval()
        self._states = {step: states[step] for step in sorted(states)}
        self._current = states[max(states)]
        self.step = max(states)
        self.losses = torch.empty(0, len(self)) if losses is None else losses
        self.loss_steps = torch.empty(0, dtype=torch.int64) if loss_steps is None else loss_steps
        self.settings = dict(settings or {})

    @classmethod
    def of(cls, networks: Sequence[nn.Module]) -> Ensemble:
        """The ensemble of networks as they are, copied.

        Raises:
            ValueError: If there are none, or their tensors differ in name or shape.
        """
        return cls(networks[0] if networks else nn.Identity(), {0: stack(networks)})

    @classmethod
    def from_tensors(cls, network: nn.Module, tensors: Mapping[str, Tensor]) -> Ensemble:
        """The ensemble that `tensors` came from, without its losses and settings.

        Args:
            network: One network of the architecture.
            tensors: What `tensors` returned.

        Raises:
            ValueError: If the names or shapes are not those of the network.
        """
        states: dict[int, Stacked] = {}
        for key, value in tensors.items():
            step, separator, name = key.partition(_SEPARATOR)
            if not separator or not step.isdigit():
                raise ValueError(f"tensors must have names like '0{_SEPARATOR}weight', got {key!r}")
            states.setdefault(int(step), {})[name] = value
        for state in states.values():
            _check_fits(network, state)
        return cls(network, states)

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of steps whose networks are kept, ascending."""
        return tuple(self._states)

    def at(self, step: int) -> Ensemble:
        """The networks after a number of steps.

        Args:
            step: One of ``steps``.

        Raises:
            ValueError: If it was not kept.
        """
        if step not in self._states:
            kept = ", ".join(map(str, self._states))
            raise ValueError(f"step must be one of {kept}, got {step}")
        found = copy.copy(self)
        found.step, found._current = step, self._states[step]
        return found

    def take(self, replicas: Sequence[int]) -> Ensemble:
        """Some of the networks, at all steps.

        Args:
            replicas: Their indices, at least one.

        Raises:
            ValueError: If there are none, or one is out of range.
        """
        for k in replicas:
            self._check_replica(k)
        if len(replicas) == 0:
            raise ValueError("replicas must be at least one, got none")
        rows = torch.tensor(list(replicas))
        states = {
            step: {name: value[rows.to(value.device)] for name, value in state.items()}
            for step, state in self._states.items()
        }
        found = Ensemble(
            self._network, states, self.losses[:, rows], self.loss_steps, self.settings
        )
        return found.at(self.step)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that `from_tensors` needs, to be kept in a file: ``step/name`` to tensor."""
        return {
            f"{step}{_SEPARATOR}{name}": value
            for step, state in self._states.items()
            for name, value in state.items()
        }

    def __len__(self) -> int:
        """Number of networks, K."""
        return len(next(iter(self._current.values())))

    def __getitem__(self, replica: int) -> nn.Module:
        """Network k by itself, in evaluation mode; a copy.

        Raises:
            IndexError: Out of range.
        """
        if not -len(self) <= replica < len(self):
            raise IndexError(f"replica must be in [0, {len(self)}), got {replica}")
        network = copy.deepcopy(self._network)
        network.load_state_dict({name: value[replica] for name, value in self._current.items()})
        return network

    def __iter__(self) -> Iterator[nn.Module]:
        """The networks, one after the other."""
        return (self[k] for k in range(len(self)))

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Run network k on batch k; without gradient.

        Args:
            x_t: ``(K, B, *S)``.
            t: ``(K, B)``.

        Returns:
            ``(K, B, *S)``.

        Raises:
            ValueError: If the first axes are not K and B.
        """
        if x_t.ndim < 2 or len(x_t) != len(self) or t.shape != x_t.shape[:2]:
            raise ValueError(
                f"x_t must be ({len(self)}, B, *S) and t ({len(self)}, B), "
                f"got {tuple(x_t.shape)} and {tuple(t.shape)}"
            )
        with torch.no_grad():
            return run_stacked(self._network, self._current, x_t, t)

    def joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Run all networks on one flat batch: a network for `as_denoiser` and samplers.

        Rows ``[k B, (k + 1) B)`` go to network k.

        Args:
            x_t: ``(K B, *S)``.
            t: ``(K B,)``, or one time for all.

        Returns:
            ``(K B, *S)``.

        Raises:
            ValueError: If the rows do not divide among the networks.

        Example:
            >>> from diffgen import as_denoiser, processes, sample, schedules
            >>> from diffgen.networks import MLP
            >>> ensemble = Ensemble.of([MLP((2,), width=8, depth=1) for _ in range(3)])
            >>> process = processes.DDPM()
            >>> denoiser = as_denoiser(ensemble.joint, process, nearest=True)
            >>> sigmas = schedules.from_process(process, 4)
            >>> sample(denoiser, (3 * 10, 2), sigmas).reshape(3, 10, 2).shape
            torch.Size([3, 10, 2])
        """
        count = len(self)
        if len(x_t) % count:
            raise ValueError(f"x_t must have a multiple of {count} rows, got {len(x_t)}")
        times = t.expand(len(x_t)).reshape(count, -1)
        return self(x_t.unflatten(0, (count, -1)), times).flatten(0, 1)

    def _check_replica(self, k: int) -> None:
        if not 0 <= k < len(self):
            raise ValueError(f"replicas must be in [0, {len(self)}), got {k}")


def stack(networks: Sequence[nn.Module]) -> Stacked:
    """Parameters and buffers of networks of one architecture, each ``(K, *shape)``.

    Raises:
        ValueError: If there are none, or their tensors differ in name, shape or type.

    Example:
        >>> stack([nn.Linear(2, 3), nn.Linear(2, 3)])["weight"].shape
        torch.Size([2, 3, 2])
    """
    if not networks:
        raise ValueError("networks must be at least one, got none")
    states = [network.state_dict() for network in networks]
    first = {name: (value.shape, value.dtype) for name, value in states[0].items()}
    for k, state in enumerate(states):
        if {name: (value.shape, value.dtype) for name, value in state.items()} != first:
            raise ValueError(f"networks must have one architecture, got another in network {k}")
    return {name: torch.stack([state[name].detach() for state in states]) for name in first}


def run_stacked(network: nn.Module, state: Mapping[str, Tensor], x_t: Tensor, t: Tensor) -> Tensor:
    """Network k on batch k, differentiable in the stacked tensors.

    Args:
        network: One network of the architecture.
        state: Its tensors, each ``(K, *shape)``.
        x_t: ``(K, B, *S)``.
        t: ``(K, B)``.

    Returns:
        ``(K, B, *S)``.

    Raises:
        ValueError: If the output has another shape than x_t.
    """

    def run(one: Mapping[str, Tensor], x: Tensor, times: Tensor) -> Tensor:
        return unwrapped(functional_call(network, dict(one), (x, times)))

    batched: Callable[..., Tensor] = torch.vmap(run)
    output = batched(dict(state), x_t, t)
    if output.shape != x_t.shape:
        raise ValueError(
            f"network must return the shape of x_t, {tuple(x_t.shape[1:])}, "
            f"got {tuple(output.shape[1:])}"
        )
    return output


def _check_fits(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    need = {name: value.shape for name, value in network.state_dict().items()}
    got = {name: value.shape[1:] for name, value in state.items()}
    if got != need or len({len(value) for value in state.values()}) != 1:
        wrong = sorted(name for name in need.keys() | got.keys() if need.get(name) != got.get(name))
        raise ValueError(
            "tensors must be those of the network, one row a replica, got another "
            f"{', '.join(wrong) or 'number of rows'}"
        )
