"""Where novelty is lost: samples of the optimum and a network, put together in all ways.

* ``optimum_first``: the optimum down to sigma, the network from there on.
* ``network_first``: the network down to sigma, the optimum from there on.
* ``mixture``: ``(1 - weight)`` of the optimum and ``weight`` of the network at all levels.

All start from the same noise, so that each sample can be compared with the network's own sample and
with the optimum's. The optimum ends on training points: its memorisation ratio is 1. Where along
the sweep the ratio falls is where the difference between network and optimum matters.

Source: Yi, Sun, Li, On the Generalization of Diffusion Model (2023), arXiv:2305.14712 (a slight
difference to the optimum is critical); Bertrand et al., On the closed form of flow matching (2025),
arXiv:2506.03719 (the hybrid sampler).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.compositions import hybrid, mixture
from diffgen.denoiser import EmpiricalDenoiser
from diffgen.generalization.copies.memorization import Memorization, memorization_ratio
from diffgen.generalization.copies.similarity import l2
from diffgen.generalization.over_noise.forward import Wrapper, check_counts, unit_noise
from diffgen.generalization.statistics.bootstrap import NUM_BOOTSTRAP, bootstrap_interval
from diffgen.sampling import Denoiser, sample


@dataclass(frozen=True)
class NoveltyRow:
    """Samples of one composition.

    Attributes:
        kind: ``"optimum_first"``, ``"network_first"`` or ``"mixture"``; ``"network"`` or
            ``"optimum"`` for one alone.
        value: The level of the switch, or the weight of the network; None for one alone.
        memorization: Ratio, interval, d1/d2 and distances of the samples.
        distance_to_network: l2 distance to the network's own sample of the same noise, ``(M,)``
            float64.
        distance_to_optimum: The same to the optimum's sample.
        network_interval: Bootstrap interval of the mean of ``distance_to_network``.
        optimum_interval: The same of ``distance_to_optimum``.
    """

    kind: str
    value: float | None
    memorization: Memorization
    distance_to_network: Tensor
    distance_to_optimum: Tensor
    network_interval: tuple[float, float]
    optimum_interval: tuple[float, float]


@dataclass(frozen=True)
class Novelty:
    """A sweep over compositions.

    Attributes:
        rows: One for each composition, in the order they were asked for.
        network: The network alone.
        optimum: The optimum alone.
        settings: What determines the numbers beside the network and the set.
    """

    rows: list[NoveltyRow]
    network: NoveltyRow
    optimum: NoveltyRow
    settings: dict[str, Any]

    def table(self) -> list[dict[str, Any]]:
        """The numbers of every row, the network and the optimum alone first, as plain values."""
        return [
            {
                "kind": row.kind,
                "value": row.value,
                "memorization_ratio": row.memorization.ratio,
                "memorization_interval": list(row.memorization.interval),
                "median_distance_ratio": float(row.memorization.distance_ratios.quantile(0.5)),
                "distance_to_network": float(row.distance_to_network.mean()),
                "distance_to_network_interval": list(row.network_interval),
                "distance_to_optimum": float(row.distance_to_optimum.mean()),
                "distance_to_optimum_interval": list(row.optimum_interval),
            }
            for row in (self.network, self.optimum, *self.rows)
        ]


def novelty_sweep(
    network: Denoiser,
    optimum: EmpiricalDenoiser,
    sigmas: Tensor | Sequence[float],
    *,
    switch_sigmas: Sequence[float] = (),
    weights: Sequence[float] = (),
    num_samples: int = 256,
    sampler: str = "ddim",
    num_bootstrap: int = NUM_BOOTSTRAP,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: Wrapper | None = None,
) -> Novelty:
    """Memorisation of every composition of a network with the optimum.

    Args:
        network: ``(x, sigma) -> denoised``; a network of a process through `as_denoiser`.
        optimum: Over the network's training set.
        sigmas: Noise levels of the sampler, ``(n + 1,)``.
        switch_sigmas: Levels of the hybrids, each taken in both orders.
        weights: Weights of the network in the mixtures.
        num_samples: M, at least 2.
        sampler: Name of the sampler. One that draws noise draws the same for all compositions.
        num_bootstrap: Resamples of the intervals.
        generator: Source of noise and resamples, on the CPU; None is PyTorch's own.
        batch_size: Samples drawn at a time.
        progress: Wraps the compositions, as ``tqdm`` does.

    Returns:
        A row for each composition. Intervals cover other noises, not other networks.

    Raises:
        ValueError: An argument out of range; an output of another shape.
        BackendError: If no backend can run the problem.

    Example:
        >>> from diffgen import EmpiricalDenoiser, TrainingSet
        >>> optimum = EmpiricalDenoiser(TrainingSet(torch.tensor([[-1.0], [1.0]])))
        >>> found = novelty_sweep(lambda x, sigma: x * 0, optimum, [10.0, 1.0, 0.1, 0.0],
        ...     switch_sigmas=[0.5])
        >>> [(row.kind, round(row.memorization.ratio)) for row in found.rows]
        [('optimum_first', 0), ('network_first', 1)]

    Source:
        Bertrand et al. (2025), arXiv:2506.03719.
    """
    check_counts(batch_size=batch_size, num_bootstrap=num_bootstrap)
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2 for an interval, got {num_samples}")
    points = optimum.training_set
    like = torch.empty(0, device=points.device)
    noise = unit_noise((num_samples, *points.sample_shape), generator, like).to(torch.float32)
    start = float(torch.as_tensor(sigmas, dtype=torch.float64)[0])
    seed = int(torch.randint(1 << 62, (), generator=generator))
    made: list[tuple[str, float | None, Denoiser]] = [
        ("network", None, network),
        ("optimum", None, optimum),
        *(("optimum_first", s, hybrid(optimum, network, s)) for s in switch_sigmas),
        *(("network_first", s, hybrid(network, optimum, s)) for s in switch_sigmas),
        *(("mixture", weight, mixture(optimum, network, weight)) for weight in weights),
    ]
    drawn: list[Tensor] = []
    work: Iterable[tuple[str, float | None, Denoiser]] = made
    for _, _, denoiser in progress(work) if progress else work:
        steps = torch.Generator().manual_seed(seed)
        parts = [
            sample(
                denoiser, part.shape, sigmas, sampler=sampler, x_init=start * part, generator=steps
            )
            for part in noise.split(batch_size)
        ]
        drawn.append(torch.cat(parts))
    rows = [
        _row(kind, value, samples, drawn, optimum, num_bootstrap, generator, batch_size)
        for (kind, value, _), samples in zip(made, drawn, strict=True)
    ]
    return Novelty(
        rows=rows[2:],
        network=rows[0],
        optimum=rows[1],
        settings={
            "sampler": sampler,
            "num_steps": len(sigmas) - 1,
            "sigma_max": start,
            "num_samples": num_samples,
            "num_points": len(points),
            "num_bootstrap": num_bootstrap,
            "threshold": rows[0].memorization.settings["threshold"],
            "backend": optimum.backend,
        },
    )


def _row(
    kind: str,
    value: float | None,
    samples: Tensor,
    drawn: list[Tensor],
    optimum: EmpiricalDenoiser,
    num_bootstrap: int,
    generator: torch.Generator | None,
    batch_size: int,
) -> NoveltyRow:
    distances = [l2(samples, own).cpu() for own in drawn[:2]]
    low, high = bootstrap_interval(
        torch.stack(distances, 1), num_bootstrap=num_bootstrap, generator=generator
    )
    return NoveltyRow(
        kind=kind,
        value=None if value is None else float(value),
        memorization=memorization_ratio(
            samples,
            optimum,
            num_bootstrap=num_bootstrap,
            generator=generator,
            batch_size=batch_size,
        ),
        distance_to_network=distances[0],
        distance_to_optimum=distances[1],
        network_interval=(float(low[0]), float(high[0])),
        optimum_interval=(float(low[1]), float(high[1])),
    )
