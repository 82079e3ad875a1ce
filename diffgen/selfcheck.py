"""How accurate and how fast each backend is on this machine: what ``diffgen info`` shows.

Accuracy is the worst error, in units of the promise, over a compact set of hard problems: images
with the smooth spectrum of photographs, near-duplicates one step of the storage type apart, queries
half-way between two points and far outside, noise from 0.002 to 80, every storage type, two sizes,
float64 queries. Tests go through many more; these find a backend that is broken *here*: another
processor, compiler or library.

Speed is the time of one pass over a set that is larger than the caches, beside the floor that the
machine's own rates set (`diffgen.machine`, `diffgen.gpu_rates`).

A backend that takes no problem on the CPU gets them on the GPU, where there is one; its answers are
judged on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffgen import accuracy, gpu_rates
from diffgen.backends import registry
from diffgen.backends.problem import MEAN_ONLY, CovarianceInputs, Demands, Problem
from diffgen.backends.registry import Backend, Moments
from diffgen.machine import OPERATIONS, Ceilings
from diffgen.placement import CPU, placed
from diffgen.set_view import origin

REFERENCE = "reference"
"""The backend that defines what is right; it is not checked against itself."""

SIGMAS = (0.002, 0.02, 0.5, 2.0, 10.0, 80.0)
STORAGE_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)

SIZES = ((250, 3, 8), (40, 3, 32))
"""Points, channels and side of the images of the accuracy problems; the first size also meets
float64 queries."""

SPEED_SIZE = (10_000, 3, 32)
"""The same for the timed pass in float32: 123 MB."""

TOP_K = 2

TRACE = 2
"""Column of the functionals."""

_DROPPED = 1e-3
"""Weight that may be missing from a covariance product, in tolerances of the mean."""

EVERYTHING = Demands(functionals=True, top_k=TOP_K)
COVARIANCE = Demands(covariance=True)
_SCALE, _OFFSET = 2 / 255, -1.0
_SECONDS = 0.2
"""A timed pass is repeated for this long."""

_GPU_PASSES = 5
"""Passes that a GPU is given at once: it works on one while the next is launched."""


@dataclass(frozen=True)
class Case:
    """A problem with its answer.

    Attributes:
        name: Type and size of the set, and noise level.
        problem: What a backend is given.
        inputs: The further inputs of its covariance product.
        moments: The right outputs of the moments op.
        product: The right covariance product.
    """

    name: str
    problem: Problem
    inputs: CovarianceInputs
    moments: Moments
    product: Tensor


@dataclass(frozen=True)
class Accuracy:
    """How far a backend is from the definition.

    Attributes:
        worst: Largest error in units of the promise; at most 1 keeps it.
        where: The quantity and the problem where that is.
        num_problems: Problems that it ran.
        refusals: Why it did not run others, each reason once.
    """

    worst: float
    where: str
    num_problems: int
    refusals: tuple[str, ...]


@dataclass(frozen=True)
class Speed:
    """One timed pass.

    Attributes:
        name: Storage type and number of queries.
        time_ms: The best of the repetitions.
        read_bytes: What it reads at least: the stored set, once.
        operations: float32 operations that the definition needs.
    """

    name: str
    time_ms: float
    read_bytes: int
    operations: int

    def share(self, ceilings: Ceilings) -> float:
        """The machine's floor for the pass over the time it took."""
        return ceilings.floor_ms(self.read_bytes, self.operations) / self.time_ms


def cases(seed: int = 0) -> list[Case]:
    """The problems of the accuracy check, solved by the reference.

    Args:
        seed: Of the images and the noise.

    Returns:
        Every storage type, size and noise level.
    """
    threads = torch.get_num_threads()
    # Its many small steps gain nothing from threads, and where another program keeps one of them
    # waiting they all wait, at each step.
    torch.set_num_threads(1)
    try:
        return list(_solved(seed))
    finally:
        torch.set_num_threads(threads)


def _solved(seed: int) -> Iterator[Case]:
    reference = registry.get(REFERENCE)
    for count, channels, side in SIZES:
        for storage in STORAGE_TYPES:
            data = _with_near_duplicates(stored_images(count, channels, side, storage, seed))
            for sigma in SIGMAS:
                query = _hard_queries(data, sigma, seed)
                # The reference takes queries of either type as the same real numbers.
                problem = _problem(data, query.float(), sigma)
                moments = reference.moments(problem, True, TOP_K, torch.float64)
                inputs = CovarianceInputs(moments[0], moments[1], _noise(query, seed), None)
                product, _ = reference.covariance_product(problem, inputs)
                name = f"{_name(storage)} {count} x {data.shape[1]}, sigma {sigma:g}"
                yield Case(name, problem, inputs, moments, product)
                if storage.itemsize >= 4 and (count, channels, side) == SIZES[0]:
                    exact = replace(problem, query=query)
                    yield Case(f"{name}, float64 queries", exact, inputs, moments, product)


def check(backend: Backend, problems: Sequence[Case], device: torch.device = CPU) -> Accuracy:
    """The worst error of a backend over some problems.

    Args:
        backend: One that is available.
        problems: From ``cases``.
        device: Where the backend gets them.

    Returns:
        The worst error, infinite where the backend raised, and where it is. A backend that gives
        mean and logsumexp alone is judged by these.
    """
    worst, where, ran = 0.0, "", 0
    refusals: dict[str, None] = {}
    for case in problems:
        problem = placed(case.problem, device)
        reasons = registry.reasons_against(backend, problem)
        if reasons:
            refusals.update(dict.fromkeys(reasons))
            continue
        ran += 1
        for demands in (EVERYTHING, COVARIANCE):
            refusals.update(dict.fromkeys(registry.reasons_against(backend, problem, demands)))
        for quantity, units in _units(backend, case, problem).items():
            if units > worst or not where:
                worst, where = units, f"{quantity}, {case.name}"
    return Accuracy(worst, where, ran, tuple(refusals))


def speeds(
    backend: Backend,
    sets: Sequence[Tensor],
    device: torch.device = CPU,
    clock: gpu_rates.Clock = gpu_rates.event_seconds,
) -> list[Speed]:
    """Timed passes of a backend over sets, with one query and, where floats are stored, with 64.

    Args:
        backend: One that is available.
        sets: Stored rows, ``(N, D)``, of ``speed_sets``.
        device: Where the backend gets them. A GPU has to be the current one.
        clock: How calls on a GPU are timed.

    Returns:
        Speeds; passes that the backend refuses are left out.
    """
    found = []
    for data in sets:
        for batch in (1, 64) if data.dtype == torch.float32 else (1,):
            rows = _decoded(data[torch.arange(batch) * 97 % len(data)])
            problem = _problem(data, (rows + 80.0 * _noise(rows, batch)).float(), 80.0)
            problem = placed(problem, device)
            if registry.reasons_against(backend, problem):
                continue
            name = f"{_name(data.dtype)}, {batch} {'query' if batch == 1 else 'queries'}"

            def call(problem: Problem = problem) -> None:
                backend.moments(problem, False, 0, torch.float32)

            on_cpu = device.type == "cpu"
            time_ms = 1e3 * (_best_seconds(call) if on_cpu else _best_gpu_seconds(call, clock))
            operations = OPERATIONS * batch * data.numel()
            found.append(Speed(name, time_ms, data.numel() * data.element_size(), operations))
    return found


def speed_sets(seed: int = 0) -> list[Tensor]:
    """The sets of the timed passes: images in float32, and four times as many in uint8.

    Both have as many bytes, more than caches hold.
    """
    stored = stored_images(*SPEED_SIZE, torch.uint8, seed)
    return [stored.float().mul_(_SCALE).add_(_OFFSET), stored.repeat(4, 1)]


def stored_images(
    count: int, channels: int, side: int, dtype: torch.dtype, seed: int = 0
) -> Tensor:
    """Smooth random images, 1/f in amplitude as photographs are, clipped to ``[-1, 1]``.

    White noise would put all points at nearly one distance from each other, where a wrong weight
    does not show; images do not.

    Args:
        count: How many.
        channels: Colours, which share most of what they show.
        side: Height and width.
        dtype: Storage type; uint8 is 256 levels over ``[-1, 1]``.
        seed: The same seed gives the same images.

    Returns:
        ``(count, channels * side * side)`` in ``dtype``.

    Example:
        >>> stored_images(2, 3, 8, torch.uint8).shape
        torch.Size([2, 192])
    """
    generator = torch.Generator().manual_seed(seed)
    modes = min(side, 8)
    spot = (torch.arange(side) + 0.5) * math.pi / side
    waves = torch.cos(torch.arange(modes)[:, None] * spot)  # (modes, side)
    frequency = (torch.arange(modes)[:, None] ** 2 + torch.arange(modes) ** 2).sqrt()
    amplitude = 0.7 / (1 + frequency)
    basis = (
        amplitude[..., None, None] * waves[:, None, :, None] * waves[None, :, None, :]
    ).flatten(2)
    shared = torch.randn((count, 1, modes * modes), generator=generator)
    own = torch.randn((count, channels, modes * modes), generator=generator)
    pixels = ((shared + 0.3 * own) @ basis.flatten(0, 1)).clamp_(-1, 1).flatten(1)
    if dtype == torch.uint8:
        return ((pixels + 1) * 127.5).round_().to(torch.uint8)
    return pixels.to(dtype)


def _with_near_duplicates(data: Tensor) -> Tensor:
    """Makes the last rows copies of the first, apart in one feature by one step of the type."""
    copies = data[:4].clone()
    for row in range(len(copies)):
        value = copies[row, row]
        if data.dtype == torch.uint8:
            copies[row, row] = value - 1 if value > 0 else value + 1
        else:
            copies[row, row] = torch.nextafter(value, torch.zeros_like(value))
    return torch.cat([data[:-4], copies])


def _hard_queries(data: Tensor, sigma: float, seed: int) -> Tensor:
    """Noised points, a noised near-duplicate, half-way between two points, and far outside."""
    points = _decoded(data[[0, 7, 7, 11, len(data) // 2]])
    noise = _noise(points, seed)
    between = (points[1] + points[3]) / 2
    queries = torch.stack(
        [
            points[0] + sigma * noise[0],  # row 0 has a near-duplicate
            points[1] + sigma * noise[1],
            points[4] + sigma * noise[2],
            between,
            between + 1e-3 * sigma * noise[3],
            points[0],
            5 * points[3],
        ]
    )
    # What a float32 query can hold, so that float32 and float64 queries pose the same problem.
    return queries.float().double()


def _noise(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


def _problem(data: Tensor, query: Tensor, sigma: float) -> Problem:
    integers = data.dtype == torch.uint8
    scale, offset = (_SCALE, _OFFSET) if integers else (1.0, 0.0)
    middle = origin(data.dtype, scale, offset)
    norms = torch.cat([(_decoded(rows) - middle).square().sum(1) for rows in data.split(1024)])
    sigmas = torch.full((len(query),), sigma, dtype=torch.float64)
    return Problem(query, sigmas, None, None, data, norms, None, None, scale, offset)


def _decoded(rows: Tensor) -> Tensor:
    return rows.double() * _SCALE + _OFFSET if rows.dtype == torch.uint8 else rows.double()


def _units(backend: Backend, case: Case, problem: Problem) -> dict[str, float]:
    """Errors in units of the promise, by quantity; a backend that raises is infinitely off.

    Args:
        backend: Which.
        case: The answer.
        problem: The problem of the case, where the backend takes it.
    """
    demands = MEAN_ONLY if registry.reasons_against(backend, problem, EVERYTHING) else EVERYTHING
    product = None
    try:
        outputs = backend.moments(problem, demands.functionals, demands.top_k, torch.float64)
        mean, logsumexp, functionals, indices, distances = (part.cpu() for part in outputs)
        if not registry.reasons_against(backend, problem, COVARIANCE):
            inputs = placed(case.inputs, problem.query.device)
            product = backend.covariance_product(problem, inputs)[0].cpu()
    except Exception as error:
        return {f"{type(error).__name__}: {' '.join(str(error).split())[:120]}": math.inf}
    moments = mean, logsumexp, functionals, indices, distances
    units = accuracy.units_of_promise(moments, case.moments, case.problem)
    if product is not None:
        units["covariance product"] = _product_units(product, case)
    return units


def _product_units(product: Tensor, case: Case) -> float:
    # |Cov v| <= trace |v|. A backend may drop points of next to no weight, which are all that a
    # covariance is made of where the others coincide.
    rule = accuracy.promises(case.problem)["covariance_product"].relative
    reach = (_decoded(case.problem.data)[None] - case.inputs.mean[:, None]).square().sum(2).amax(1)
    spread = (
        rule * case.moments[2][:, TRACE] + _DROPPED * accuracy.mean_tolerance(case.problem) * reach
    )
    share = (product - case.product).norm(dim=1) / (spread * case.inputs.v.norm(dim=1))
    return float(share.nan_to_num(nan=math.inf).amax())


def _best_seconds(call: Callable[[], None]) -> float:
    best, spent = math.inf, 0.0
    while spent < _SECONDS:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
    return best


def _best_gpu_seconds(call: Callable[[], None], clock: gpu_rates.Clock) -> float:
    call()  # compiles, where that is yet to be done
    best, spent = math.inf, 0.0
    while spent < _SECONDS:
        seconds = clock(call, _GPU_PASSES)
        best, spent = min(best, seconds), spent + _GPU_PASSES * seconds
    return best


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
