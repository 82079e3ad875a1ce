"""``diffgen pack``: any set of 8-bit rows as a packed set, in shards that are checked when read."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from typing import Any

from diffgen.cli import report, text
from diffgen.cli.options import add_command, integer
from diffgen.cli.progress import Line
from diffgen.readers import open_source
from diffgen.readers.fingerprint import fingerprint
from diffgen.readers.hugging_face import is_dataset, open_dataset
from diffgen.readers.packing import SHARD_BYTES, Packed, rows_per_shard, write
from diffgen.readers.source import LabelRequest, Source, row_bytes


def add_parser(subparsers: Any) -> None:
    """Adds ``diffgen pack``."""
    parser = add_command(
        subparsers,
        "pack",
        run,
        "pack images into 8-bit shards with checksums",
        """Packs a set of 8-bit rows into a folder of shards: a folder of images, CIFAR-10, an EDM
        dataset, .npy, .npz or .safetensors of uint8 and folders of them, or a Hugging Face dataset
        on disk (a folder of save_to_disk, or of .parquet). Images are decoded once, and reading
        the shards checks them against their SHA-256. When it is stopped, by Ctrl-C, a full disk or
        a power cut, the whole shards stay, and the same command continues after them.""",
        """
        diffgen pack my-images/ packed/
        diffgen pack cifar-10-python.tar.gz cifar-10/ --member train
        diffgen pack imagenet-64x64.zip imagenet-64/ --shard-mib 256
        diffgen pack my-dataset/ packed/ --split train --image-column img --label-column fine_label
        """,
    )
    parser.add_argument("source", metavar="SOURCE", help="what to pack: a file or folder")
    parser.add_argument("out", metavar="OUT", help="folder to make, or to continue")
    parser.add_argument(
        "--member",
        "--image-column",
        metavar="NAME",
        help="which array of an .npz or .safetensors, column of a Hugging Face dataset, or part of "
        "CIFAR-10, train or test (default: the only one, images, data or x; train)",
    )
    parser.add_argument(
        "--labels",
        action=argparse.BooleanOptionalAction,
        help="require labels, or leave them out (default: those the format has)",
    )
    parser.add_argument(
        "--label-column",
        metavar="NAME",
        help="the column or array of the labels (default: label or labels)",
    )
    parser.add_argument(
        "--split", metavar="NAME", help="which split of a Hugging Face dataset with several"
    )
    parser.add_argument(
        "--shard-mib",
        type=integer(1),
        default=SHARD_BYTES >> 20,
        metavar="M",
        help="most MiB of a shard, which holds a multiple of 1,024 rows where so many fit "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=integer(0), default=0, metavar="N", help="unused: nothing is drawn"
    )


def run(args: argparse.Namespace) -> int:
    """Packs; what is whole when it is stopped stays."""
    _refuse_overlap(args.source, args.out)
    started = time.perf_counter()
    with Line() as line:
        line.say(f"opening {args.source}")
        source = _open(args)
        # After it was opened: a change from here on is found by the source itself.
        files = fingerprint(args.source)
    with source:
        shard_bytes = args.shard_mib << 20
        print(_plan(source, args, rows_per_shard(source.shape, shard_bytes)), flush=True)
        rows = {"member": args.member, "split": args.split}
        settings = {**rows, "labels": _request(args), "shard_mib": args.shard_mib}
        made = {
            "command": args.command,
            "settings": settings,
            "versions": report.versions(),
            "source": {"path": os.path.abspath(args.source), "files_sha256": files},
        }
        try:
            packed = write(
                args.out,
                source,
                shard_bytes=shard_bytes,
                identity={**rows, "source": files},
                made=made,
            )
        except KeyboardInterrupt:
            print(
                f"\ndiffgen pack: the whole shards stay in {args.out}; the same command continues",
                file=sys.stderr,
            )
            raise
    print(_summary(packed, args.out, time.perf_counter() - started))
    return 0


def _open(args: argparse.Namespace) -> Source:
    if is_dataset(args.source):
        return open_dataset(args.source, args.member, _request(args), args.split)
    if args.split is not None:
        raise ValueError(
            f"--split is for Hugging Face datasets, got {args.source}; the parts of CIFAR-10 are "
            "--member train and --member test"
        )
    return open_source(args.source, args.member, _request(args))


def _request(args: argparse.Namespace) -> LabelRequest:
    """What the reader is asked for."""
    if args.label_column is None:
        labels: bool | None = args.labels
        return labels
    if args.labels is False:
        raise ValueError("--label-column and --no-labels exclude each other")
    return str(args.label_column)


def _refuse_overlap(source: str, out: str) -> None:
    inner, outer = os.path.realpath(out), os.path.realpath(source)
    if os.path.isdir(outer) and os.path.commonpath([inner, outer]) == outer:
        raise ValueError(f"OUT must not be inside SOURCE, got {out} in {source}")


def _plan(source: Source, args: argparse.Namespace, per_shard: int) -> str:
    """What will be packed, and whether there is room for it."""
    count, nbytes = source.shape[0], source.shape[0] * row_bytes(source.shape, source.dtype)
    shards = -(-count // per_shard)
    plan = (
        f"{args.source}: {text.count(count, 'row')} of {_shape(source.shape[1:])}, "
        f"{nbytes / 1e6:,.1f} MB, "
        f"{'without' if source.labels is None else 'with'} labels; "
        f"{text.count(shards, 'shard')} of up to {text.count(per_shard, 'row')}"
    )
    place = os.path.abspath(args.out)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if free < nbytes and not os.path.exists(args.out):
        plan += f"\nonly {free / 1e6:,.1f} MB are free there: it will stop when the disk is full"
    return plan


def _summary(packed: Packed, out: str, seconds: float) -> str:
    """What was packed, and how fast."""
    new = packed.nbytes * (packed.shape[0] - packed.found) // packed.shape[0]
    found = f"continued after {text.count(packed.found, 'row')}: " if packed.found else ""
    return (
        f"{found}packed {text.count(packed.shape[0], 'row')} of {_shape(packed.shape[1:])} uint8, "
        f"{packed.nbytes / 1e6:,.1f} MB in {text.count(packed.shards, 'shard')}, "
        f"{'with' if packed.labels else 'without'} labels, in {text.seconds(seconds)} "
        f"({new / 1e6 / max(seconds, 1e-9):,.1f} MB/s); in {out}"
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
