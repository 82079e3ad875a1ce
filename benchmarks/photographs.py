"""Crops of photographs: fetched from Debian packages, cut, and kept in a cache.

``python -m benchmarks.photographs``

Debian's packages of desktop backgrounds hold photographs under free licences. They are downloaded
with ``apt-get download`` and read without installing anything, which needs no root. Nothing of them
is part of this repository.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

CACHE = Path(__file__).parent.parent / ".benchmarks" / "photographs"

PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "lomiri-wallpapers-16.04": (
        *("*/Bridge_*", "*/Dragonfly_*", "*/Picture_0B_*", "*/Picture_1A_*", "*/Wine_*"),
        *("*/aitzgorri_*", "*/free_*", "*/friends_*", "*/greentock_*", "*/life_*"),
        *("*/picosdeeuropa_*", "*/seeding_*", "*/sunset_*"),
    ),
    "lomiri-wallpapers-20.04": ("*/Kleiber_*",),
    "mate-backgrounds": ("*/mate/nature/*.jpg",),
    "plasma-workspace-wallpapers": (
        *(
            f"*/{name}/contents/images/*00.*"
            for name in (
                *("BytheWater", "ColdRipple", "ColorfulCups", "EveningGlow", "FallenLeaf"),
                *("Grey", "Kite", "OneStandsOut", "Path", "summer_1am"),
            )
        ),
        "*/Volna/contents/images/5120x2880.*",
    ),
}
"""Package to the members that are photographs; the rest of what the packages hold is drawn."""

COUNTS = {32: 50_000, 64: 40_000}
"""Side of a crop to how many are cut: CIFAR-10's number, and what fits 24 GB (see README.md)."""

SEED = 20_260_101
CONTRAST = 20.0
"""Grey levels: a crop whose pixels deviate by s < CONTRAST is kept with probability (s/CONTRAST)^2.

Sky and blur give many nearly constant crops, which are rare in the sets that these stand for.
"""


class Unavailable(RuntimeError):
    """The photographs cannot be had here; the message says why."""


@dataclass(frozen=True)
class Source:
    """A photograph, as it was used."""

    package: str
    name: str
    sha256: str


def crops_path(side: int, cache: Path = CACHE) -> Path:
    """Where the crops of a side are kept, ``(N, 3, side, side)`` uint8."""
    return cache / f"crops-{side}.npy"


def load(side: int, cache: Path = CACHE) -> np.ndarray | None:
    """The crops of a side, or None where none are kept or the file is not what was written."""
    path = crops_path(side, cache)
    sidecar = path.with_suffix(".json")
    if not path.exists() or not sidecar.exists():
        return None
    crops = np.load(path)
    return crops if json.loads(sidecar.read_text())["sha256"] == _sha256(crops) else None


def make(
    counts: dict[int, int] = COUNTS, cache: Path = CACHE, say: Callable[[str], None] = print
) -> None:
    """Fetches the photographs and cuts the crops of each side that is not kept yet.

    Args:
        counts: Side of a crop to how many.
        cache: Folder for the packages and the crops.
        say: Told what happens.

    Raises:
        Unavailable: If the packages cannot be fetched or read.
    """
    missing = {side: count for side, count in counts.items() if load(side, cache) is None}
    if not missing:
        say("every set of crops is there already")
        return
    try:
        from PIL import Image
    except ImportError:
        raise Unavailable("cutting crops needs pillow: pip install pillow") from None
    cache.mkdir(parents=True, exist_ok=True)
    sources, photographs = [], []
    for package in PHOTOGRAPHS:
        say(f"fetching {package}")
        for name, content in _members(_fetch(package, cache), PHOTOGRAPHS[package]):
            sources.append(Source(package, name, hashlib.sha256(content).hexdigest()))
            photographs.append(content)
    for side, count in missing.items():
        say(f"cutting {count:,} crops of {side} x {side} from {len(photographs)} photographs")
        openers = [
            lambda c=content: Image.open(io.BytesIO(c)).convert("RGB") for content in photographs
        ]
        crops = cut(openers, side, count)
        _keep(crops, sources, crops_path(side, cache))


def cut(photographs: Sequence[Callable[[], object]], side: int, count: int) -> np.ndarray:
    """Random square crops at several scales, downsized with antialiasing.

    The window of a crop is between ``side`` and the whole height of its photograph, its logarithm
    uniform, so that details as well as scenes become images. Crop i depends on i alone: a shorter
    set begins a longer one.

    Args:
        photographs: Each opens one, as a PIL image; one is open at a time.
        side: Of the crops, in pixels.
        count: How many.

    Returns:
        ``(count, 3, side, side)`` uint8.
    """
    crops = np.empty((count, 3, side, side), dtype=np.uint8)
    streams = [np.random.default_rng((SEED, side, index)) for index in range(count)]
    chosen = np.array([stream.integers(len(photographs)) for stream in streams])
    for which, photograph in enumerate(photographs):
        levels = _pyramid(photograph())
        for index in np.flatnonzero(chosen == which):
            crops[index] = _crop(levels, side, streams[index])
    return crops


def _pyramid(image) -> list:
    """The image and its halvings: a crop is then resized from a window of a few ``side`` only."""
    levels = [image]
    while min(levels[-1].size) >= 128:
        levels.append(levels[-1].reduce(2))
    return levels


def _crop(levels: list, side: int, stream: np.random.Generator) -> np.ndarray:
    from PIL import Image

    width, height = levels[0].size
    while True:
        window = side * (min(width, height) / side) ** stream.random()
        left, top = stream.random() * (width - window), stream.random() * (height - window)
        # The coarsest halving that still has two pixels for each of the crop.
        depth = max(0, min(len(levels) - 1, int(np.log2(max(1, window / (2 * side))))))
        scale = np.array(levels[depth].size) / (width, height)
        box = (*(np.array([left, top]) * scale), *(np.array([left + window, top + window]) * scale))
        limits = (*levels[depth].size, *levels[depth].size)
        box = tuple(
            min(max(0.0, float(edge)), limit) for edge, limit in zip(box, limits, strict=True)
        )
        small = levels[depth].resize((side, side), Image.Resampling.LANCZOS, box=box)
        pixels = np.asarray(small).transpose(2, 0, 1)
        if stream.random() < (pixels.std() / CONTRAST) ** 2:
            return pixels


def _fetch(package: str, cache: Path) -> Path:
    """The package's file, downloaded unless it is there."""
    there = sorted(cache.glob(f"{package}_*.deb"))
    if there:
        return there[-1]
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"fetching photographs needs {tool}, of Debian and its relatives")
    # Downloaded elsewhere first: an interrupted download must not pass for a package.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        done = subprocess.run(
            ["apt-get", "download", package], cwd=folder, capture_output=True, text=True
        )
        found = list(Path(folder).glob("*.deb"))
        if done.returncode or not found:
            raise Unavailable(f"apt-get download {package}: {done.stderr.strip()[-300:]}")
        return Path(shutil.move(found[0], cache / found[0].name))


def _members(package: Path, patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the members of a package that a pattern names; nothing is unpacked."""
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True)
    if done.returncode:
        raise Unavailable(f"dpkg-deb {package.name}: {done.stderr.decode()[-300:]}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if member.isfile() and any(fnmatchcase(member.name, p) for p in patterns):
                content = archive.extractfile(member)
                assert content is not None
                yield member.name.removeprefix("./"), content.read()


def _keep(crops: np.ndarray, sources: Sequence[Source], path: Path) -> None:
    """Writes crops and sidecar under other names and moves them, so that no half of one is seen."""
    facts = {
        "shape": list(crops.shape),
        "sha256": _sha256(crops),
        "seed": SEED,
        "sources": [asdict(source) for source in sources],
    }
    sidecar = path.with_suffix(".json")
    sidecar.unlink(missing_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        np.save(file, crops)
    os.replace(part, path)
    part = sidecar.with_name(f"{sidecar.name}.part")
    part.write_text(json.dumps(facts, indent=1))
    os.replace(part, sidecar)


def _sha256(crops: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(crops).data).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Makes every set of crops."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs", description=__doc__)
    parser.parse_args(argv)
    try:
        make()
    except Unavailable as reason:
        print(f"no photographs: {reason}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
