"""Hugging Face datasets of images on disk: saved by ``save_to_disk``, or folders of .parquet.

Only tables are read. No code of a dataset is run, and no path in a table is followed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any

from diffgen.errors import DataError
from diffgen.readers.arrow_stream import StreamFile
from diffgen.readers.image_table import (
    ImageCells,
    TableFile,
    image_column,
    label_column,
    read_labels,
)
from diffgen.readers.images import image_source
from diffgen.readers.parquet import ParquetFile
from diffgen.readers.pread import PreadFile
from diffgen.readers.source import LabelRequest, Source

SPLITS_FILE = "dataset_dict.json"
"""What ``DatasetDict.save_to_disk`` writes over the folders of the splits."""

STATE_FILE = "state.json"
"""What ``Dataset.save_to_disk`` writes beside the tables."""

PARQUET_FOLDERS = ("", "data")
"""Where the tables of a downloaded dataset lie, seen from its folder."""

MAX_JSON_BYTES = 16 << 20
_PLAIN_NAME = re.compile(r"[^/\\\0]+")
_NUMBERED = re.compile(
    r"(?:(?P<name>.*?)[-_.]?)(?P<number>\d+)(?:-of-(?P<count>\d+))?(?:-[0-9a-f]+)?"
)


def is_dataset(path: str) -> bool:
    """Whether a path looks like a Hugging Face dataset on disk."""
    if os.path.isfile(path):
        return path.lower().endswith(".parquet")
    names = (SPLITS_FILE, STATE_FILE)
    return any(os.path.isfile(os.path.join(path, name)) for name in names) or bool(_parquet(path))


def open_dataset(
    path: str, member: str | None, labels: LabelRequest, split: str | None = None
) -> Source:
    """Open a dataset of images.

    Args:
        path: A folder of ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``, a folder of
            .parquet or one with them in ``data``, or a .parquet.
        member: Name of the column of images; None for the only one.
        labels: Name of a column of integers; None for ``label`` or ``labels`` where there is one;
            True requires them; False passes over them.
        split: Which split of several, such as ``"train"``.

    Returns:
        Rows ``(N, C, H, W)`` uint8.

    Raises:
        ValueError: No such split or column.
        DataError: A file that is missing, damaged or no table of images; images of several sizes;
            with the file and the row.
        ImportError: pyarrow or Pillow is not installed.

    Source:
        https://huggingface.co/docs/datasets, ``Dataset.save_to_disk``; Arrow's Columnar Format,
        section Serialization and Interprocess Communication.
    """
    files = _open_files(path, split)
    try:
        first = files[0].schema
        column = image_column(path, first, member)
        numbers = label_column(path, first, labels)
        for file in files[1:]:
            _check_columns(file, files[0], [name for name in (column, numbers) if name])
        cells = ImageCells(files, column)
        found = read_labels(files, numbers) if numbers and len(cells) else None
        sizes = sum(os.path.getsize(file.path) for file in files)
        return image_source(path, cells, cells.read, sizes, found, *_ends(files))
    except BaseException:
        for file in files:
            file.close()
        raise


def _ends(files: Sequence[TableFile]) -> tuple[Any, Any]:
    """What closes the files, and what checks them."""

    def close() -> None:
        for file in files:
            file.close()

    def check() -> None:
        for file in files:
            file.check()

    return close, check


def _open_files(path: str, split: str | None) -> list[TableFile]:
    names = find_files(path, split)
    kind = ParquetFile if names[0].lower().endswith(".parquet") else StreamFile
    files: list[TableFile] = []
    try:
        for name in names:
            files.append(kind(name))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: {os.path.basename(name)} of its {STATE_FILE} is missing"
        ) from error
    return files


def find_files(path: str, split: str | None) -> list[str]:
    """The tables of a dataset, in the order of its rows.

    Raises:
        ValueError: No such split.
        DataError: Several splits and none named, or a file that the others say there is is missing.
    """
    if os.path.isfile(path):
        return [path]
    if os.path.isfile(os.path.join(path, SPLITS_FILE)):
        splits = _read_json(os.path.join(path, SPLITS_FILE)).get("splits")
        return find_files(os.path.join(path, _choose(path, split, splits)), None)
    if os.path.isfile(os.path.join(path, STATE_FILE)):
        state = _read_json(os.path.join(path, STATE_FILE))
        if split not in (None, state.get("_split")):
            raise ValueError(f"split must be {state.get('_split')!r} of {path}, got {split!r}")
        return _saved_files(path, state)
    groups = _groups(path)
    return groups[_choose(path, split, list(groups))]


def _saved_files(path: str, state: dict[str, Any]) -> list[str]:
    where = os.path.join(path, STATE_FILE)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(f"{where}: must not select rows: save the dataset after flatten_indices()")
    try:
        names = [entry["filename"] for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: must list the files of the dataset") from error
    for name in names:
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name) or name[0] == ".":
            raise DataError(f"{where}: a file must have a plain name, got {name!r:.80}")
    if not names:
        raise DataError(f"{path}: must hold at least one row, got an empty dataset")
    return [os.path.join(path, name) for name in names]


def _parquet(path: str) -> list[str]:
    """Paths of the .parquet of a folder, sorted."""
    for inside in PARQUET_FOLDERS:
        folder = os.path.join(path, inside)
        if os.path.isdir(folder):
            names = [name for name in os.listdir(folder) if name.lower().endswith(".parquet")]
            names = sorted(name for name in names if not name.startswith("."))
            if names:
                return [os.path.join(folder, name) for name in names]
    return []


def _groups(path: str) -> dict[str, list[str]]:
    """The .parquet of each split; files of one are numbered without gaps."""
    groups: dict[str, list[tuple[int, str]]] = {}
    counts: dict[str, int] = {}
    for file in _parquet(path):
        stem = os.path.basename(file)[: -len(".parquet")]
        match = _NUMBERED.fullmatch(stem)
        name, number = (match["name"], int(match["number"])) if match else (stem, 0)
        groups.setdefault(name, []).append((number, file))
        if match and match["count"]:
            counts[name] = int(match["count"])
    for name, files in groups.items():
        numbers = sorted(number for number, _ in files)
        wanted = list(range(numbers[0], numbers[0] + len(numbers)))
        if name in counts:
            wanted = list(range(counts[name]))
        if numbers != wanted:
            raise DataError(
                f"{path}: the files of {name or 'the dataset'!r} must be numbered {wanted[0]} to "
                f"{max(wanted[-1], numbers[-1])} once each, got {len(numbers)}: "
                f"{_first_difference(wanted, numbers)}"
            )
    return {name: [file for _, file in sorted(files)] for name, files in groups.items()}


def _first_difference(wanted: Sequence[int], numbers: Sequence[int]) -> str:
    missing = sorted(set(range(wanted[0], max(*wanted, *numbers) + 1)) - set(numbers))
    return f"number {missing[0]} is missing" if missing else "one is there twice"


def _choose(path: str, split: str | None, splits: Any) -> str:
    if not isinstance(splits, list) or not splits or not all(type(s) is str for s in splits):
        raise DataError(f"{path}: must hold splits, got {splits!r:.80}")
    if split is None and len(splits) > 1:
        raise DataError(
            f"{path}: holds the splits {', '.join(sorted(splits))}: name one (diffgen pack --split)"
        )
    if split is not None and split not in splits:
        raise ValueError(f"split must be one of {sorted(splits)} of {path}, got {split!r}")
    chosen = splits[0] if split is None else split
    if chosen in (".", "..") or not (chosen == "" or _PLAIN_NAME.fullmatch(chosen)):
        raise DataError(f"{path}: a split must have a plain name, got {chosen!r:.80}")
    return chosen


def _read_json(where: str) -> dict[str, Any]:
    with PreadFile(where) as file:
        content = file.read_all(MAX_JSON_BYTES)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: malformed: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: must be an object, got {type(found).__name__}")
    return found


def _check_columns(file: TableFile, first: TableFile, names: Sequence[str]) -> None:
    for name in names:
        expected = first.schema.field(name).type
        got = file.schema.field(name).type if file.schema.names.count(name) == 1 else "none"
        if got != expected:
            raise DataError(
                f"{file.path}: column {name!r} must be {expected} as in {first.path}, got {got}"
            )
