"""What the demo prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from diffgen import machine
from diffgen.cli import ranks, text
from diffgen.cli.splits import Split
from diffgen.generalization import Memorization, Neighbors

SHOWN_EVERY = 3
"""Of the noise levels of the curve of neighbours, every how many are printed."""

_BAR = 24


def introduction(split: Split, backend: str, seed: int) -> str:
    """What is about to run, on what."""
    training = split.training
    shape = " x ".join(map(str, training.sample_shape))
    dtype = str(training.dtype).removeprefix("torch.")
    count = text.count(training.num_stored, "training image")
    threads = text.count(torch.get_num_threads(), "thread")
    if ranks.count() > 1:
        threads += f", {ranks.count()} processes"
    flips = " and their mirror images" if training.flip else ""
    return "\n".join(
        [
            "The empirical-optimal model: the best denoiser of a finite training set",
            "",
            f"  data     {split.name}, {shape} {dtype}",
            f"           {count}{flips}, {len(split.held_out):,} held out",
            f"  backend  {backend}, {threads}",
            f"  seed     {seed}",
            "",
        ]
    )


def memorization(names: Mapping[str, str], found: Mapping[str, Memorization]) -> str:
    """The memorisation ratios under each other."""
    rows = [["", "samples", "memorised", "95% interval", "median d1/d2", "median d1"]]
    for key, of_kind in found.items():
        low, high = of_kind.interval
        rows.append(
            [
                names[key],
                f"{len(of_kind.distances):,}",
                f"{of_kind.ratio:.3f}",
                f"{low:.3f} - {high:.3f}",
                f"{float(of_kind.distance_ratios.median()):.3f}",
                f"{float(of_kind.distances[:, 0].median()):.3f}",
            ]
        )
    return (
        "\nMemorised: d1/d2 < 1/3, the distances to the nearest and second nearest\n"
        f"training image\n\n{text.table(rows, '<>>>>>')}"
    )


def neighbors(found: Mapping[str, Neighbors]) -> str:
    """The numbers of neighbours over the noise, with a bar on a log scale."""
    curves = list(found.values())
    total = curves[0].settings["num_points"]
    scale = torch.tensor(float(total)).double().log()
    rows = [["sigma", *found, ""]]
    for level in range(0, len(curves[0].sigmas), SHOWN_EVERY):
        rows.append(
            [
                f"{float(curves[0].sigmas[level]):.3g}",
                *(f"{float(curve.count[level]):,.1f}" for curve in curves),
                text.bar(float(curves[0].count[level].log() / scale), _BAR),
            ]
        )
    return (
        f"\nEffective neighbours: training images, of {total:,}, that a noised image could\n"
        "have come from (exp of the entropy of the posterior weights; bars in log scale)\n\n"
        f"{text.table(rows, '>' * (len(curves) + 1) + '<')}"
    )


def what_ran(ran: Mapping[str, Any], num_samples: int) -> str:
    """The backend, its time, and its share of the machine's ceiling."""
    ceilings = ran["ceilings"]
    share = text.percent(ran["share_of_ceiling"]) if ran["share_of_ceiling"] is not None else "-"
    return "\n".join(
        [
            "",
            "What ran",
            "",
            f"  {machine.cpu_name()}, {text.count(ceilings['threads'], 'thread')}",
            f"  backend {ran['backend']}: {ran['calls']} calls for {num_samples} samples each, "
            f"{text.seconds(ran['seconds'])} in all,",
            f"  {text.seconds(ran['seconds'] / ran['calls'])} a call, {share} of the machine's "
            f"ceiling for this work ({ran['bound']}:",
            f"  {ceilings['fma_gf_s']:.0f} GF/s float32, {ceilings['read_gb_s']:.0f} GB/s)",
        ]
    )
