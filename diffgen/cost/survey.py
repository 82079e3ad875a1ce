"""What a set in a file is, what a call on it costs, and how long it would take here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import diffgen.ops  # noqa: F401  (fills the registry)
from diffgen import machine
from diffgen.backends import registry
from diffgen.backends.problem import Problem
from diffgen.contents import Contents, build
from diffgen.cost.counts import CallCost, SetSize, call_cost, memory_of_pass
from diffgen.cost.offers import Offer, offer
from diffgen.cost.reading import Sample, take_sample
from diffgen.cost.timing import problem_of, queries_of, queries_timed
from diffgen.readers import open_source
from diffgen.readers.origin import Origin
from diffgen.readers.packed import MAX_META_BYTES, META_FILE
from diffgen.readers.pread import PreadFile
from diffgen.readers.source import type_name
from diffgen.set_arguments import DEFAULT_RANGE

NO_SHA256 = "not computed (reads all bytes)"


@dataclass(frozen=True)
class Request:
    """What is asked about a set.

    Attributes:
        path: The file or folder.
        batch: Noisy points of a call.
        sigma: Their noise.
        member: Which array of the file; see ``TrainingSet.open``.
        value_range: What a stored 0 and 255 mean; None for the default.
        flip: Whether the mirror images belong to the set.
        in_memory: Whether the rows are read into memory; see ``TrainingSet.open``.
        backends: Names of those that are asked.
        timed: Whether a sample is read and timed.
        seed: Of the noise, and of the order in which the sample is read.
    """

    path: str
    batch: int
    sigma: float
    member: str | None = None
    value_range: tuple[float, float] | None = None
    flip: bool = False
    in_memory: bool | None = None
    backends: Sequence[str] = ()
    timed: bool = True
    seed: int = 0


def survey(request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything about a set that can be said without reading it through.

    Args:
        request: What is asked.
        say: Is told what is being done.

    Returns:
        Numbers, texts, lists and dictionaries of them.

    Raises:
        FileNotFoundError: Nothing is at the path.
        ValueError: An argument does not fit the file.
        DataError: No known format, or a damaged file.
    """
    say(f"opening {request.path}")
    path = os.path.abspath(request.path)
    with open_source(path, request.member) as source:
        value_range = DEFAULT_RANGE if request.value_range is None else request.value_range
        origin = Origin(path, request.member)
        contents = build(source, source.labels, None, value_range, request.flip, origin)
        size = SetSize(
            shape=source.shape,
            dtype=source.dtype,
            labelled=source.labels is not None,
            flip=request.flip,
            measured=source.norms is not None,
            in_memory=request.in_memory,
        )
        sample = None
        if request.timed:
            say(f"reading a part of {request.path}")
            generator = torch.Generator().manual_seed(request.seed)
            sample = take_sample(source, contents.affine, generator)
        return _record(request, size, contents, sample, say)


def available_bytes() -> int | None:
    """Memory that programs and the page cache could take, or None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return None


def _record(
    request: Request,
    size: SetSize,
    contents: Contents,
    sample: Sample | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    cost = call_cost(size, request.batch, size.stays)
    memory = memory_of_pass(size, request.batch, size.stays)
    record: dict[str, Any] = {
        "set": _described(request.path, size, contents),
        "place": "file" if size.stays else "memory",
        "memory": {**memory, "total": sum(memory.values())},
        "available_bytes": available_bytes(),
        "call": {"batch": request.batch, "sigma": request.sigma, **asdict(cost)},
        "reading": None,
        "ceilings": None,
    }
    record["call"] |= {"passes": cost.passes, "second_pass": None}
    record["call"]["measuring_pass"] = size.stays and not size.measured
    if sample is not None:
        say("measuring the machine")
        ceilings = machine.measure()
        record["ceilings"] = {
            **asdict(ceilings),
            "floor_ms": ceilings.floor_ms(cost.read_bytes, cost.operations),
            "bound": ceilings.bound(cost.read_bytes, cost.operations),
        }
        first_pass_s = size.rows_bytes / sample.reading.first_pass_bytes_s
        record["reading"] = {**asdict(sample.reading), "first_pass_s": first_pass_s}
    offers = _offers(request, size, contents, sample, cost, say)
    record["backends"] = [asdict(made) for made in offers]
    seconds = [made.estimate for made in offers if made.estimate is not None]
    if size.stays and seconds:
        record["call"]["second_pass"] = any(found.at_most_s > found.seconds for found in seconds)
    return record


def _offers(
    request: Request,
    size: SetSize,
    contents: Contents,
    sample: Sample | None,
    cost: CallCost,
    say: Callable[[str], None],
) -> list[Offer]:
    generator = torch.Generator().manual_seed(request.seed)
    if sample is None:
        data = torch.zeros((1, size.features), dtype=size.dtype)
        norms, query = torch.zeros(1, dtype=torch.float64), torch.zeros((1, size.features))
    else:
        data, norms = sample.data, sample.norms
        query = queries_of(sample, queries_timed(cost), request.sigma, generator)

    def problem_on(device: str) -> Problem:
        return problem_of(data, norms, contents.affine, query, request.sigma, device)

    here = problem_on("cpu")
    on_gpu = problem_on("cuda") if torch.cuda.is_available() else None
    offers = []
    for name in request.backends:
        say(f"timing {name} on rows of {request.path}")
        offers.append(offer(registry.get(name), size, request.batch, here, on_gpu, sample))
    return offers


def _described(path: str, size: SetSize, contents: Contents) -> dict[str, Any]:
    """What the set is, as far as it is known without reading its rows."""
    meta = os.path.join(path, META_FILE)
    digest = None
    if os.path.isfile(meta):
        with PreadFile(meta) as file:
            digest = hashlib.sha256(file.read_all(MAX_META_BYTES)).hexdigest()
    return {
        "path": path,
        "num_points": size.count,
        "sample_shape": list(size.shape[1:]),
        "features": size.features,
        "dtype": type_name(size.dtype),
        "value_range": contents.value_range,
        "flip": size.flip,
        "num_classes": contents.num_classes,
        "rows_bytes": size.rows_bytes,
        "sha256": None,
        "sha256_why_not": NO_SHA256,
        "meta_sha256": digest,
    }
