"""Tables of images as Hugging Face's datasets are on disk, written with pyarrow alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROWS_PER_BATCH = 3


def arrow() -> Any:
    """pyarrow, or a skip."""
    return pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'diffgen[arrow]'")


def png(image: np.ndarray) -> bytes:
    """A PNG of a (C, H, W) array."""
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def table(data: np.ndarray, labels: np.ndarray | None, **columns: Any) -> Any:
    """Columns ``image`` and ``label``, described as ``datasets`` does, and others."""
    pa = arrow()
    cells = [{"bytes": png(image), "path": f"{row}.png"} for row, image in enumerate(data)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    made = {"image": pa.array(cells, kind)}
    features = {"image": {"_type": "Image"}}
    if labels is not None:
        made["label"] = pa.array(labels, pa.int64())
        features["label"] = {"names": ["a", "b"], "_type": "ClassLabel"}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table({**made, **columns}).replace_schema_metadata(told)


def save_stream(rows: Any, path: Path, options: Any = None) -> None:
    """An Arrow stream in small batches."""
    pa = arrow()
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(str(path), rows.schema, options=options) as writer:
        writer.write_table(rows, max_chunksize=ROWS_PER_BATCH)


def save_dataset(rows: Any, folder: Path, num_shards: int = 2, **state: Any) -> Path:
    """What ``Dataset.save_to_disk`` leaves."""
    names = [f"data-{shard:05d}-of-{num_shards:05d}.arrow" for shard in range(num_shards)]
    cuts = np.linspace(0, len(rows), num_shards + 1).astype(int)
    for start, end, name in zip(cuts[:-1], cuts[1:], names, strict=True):
        save_stream(rows.slice(start, end - start), folder / name)
    files = [{"filename": name} for name in names]
    record = {"_data_files": files, "_split": None, "_fingerprint": "0", **state}
    (folder / "state.json").write_text(json.dumps(record))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def save_parquet(rows: Any, path: Path) -> Path:
    """A .parquet in small groups of rows."""
    arrow()
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(rows, str(path), row_group_size=ROWS_PER_BATCH)
    return path


def write_saved_dataset(folder: Path, data: np.ndarray, labels: np.ndarray) -> Path:
    return save_dataset(table(data, labels), folder / "dataset")


def write_dataset_of_splits(folder: Path, data: np.ndarray, labels: np.ndarray) -> Path:
    save_dataset(table(data, labels), folder / "splits" / "train")
    (folder / "splits" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return folder / "splits"


def write_parquet_folder(folder: Path, data: np.ndarray, labels: np.ndarray) -> Path:
    rows = table(data, labels)
    for number, start in enumerate((0, len(data) // 2)):
        name = f"train-{number:05d}-of-00002-0123456789abcdef.parquet"
        part = rows.slice(start, None if number else len(data) // 2)
        save_parquet(part, folder / "hub" / "data" / name)
    (folder / "hub" / "README.md").write_text("images")
    return folder / "hub"


def write_parquet_file(folder: Path, data: np.ndarray, labels: np.ndarray) -> Path:
    return save_parquet(table(data, labels), folder / "x.parquet")


WRITERS = {
    name.removeprefix("write_"): function
    for name, function in globals().copy().items()
    if name.startswith("write_")
}
