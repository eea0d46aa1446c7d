"""Mutated datasets of cutouts: ``dataset.json`` and a shard, read as training and inference read them."""

import functools
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gampen_ray.data import shards
from gampen_ray.data.sources import open_source
from gampen_ray.training.reading import Columns, Rows, read_unit
from tests.fuzz.mutations import damaged, document
from tests.networks import bundle, dataset

_METADATA = b"gampen_ray"


@functools.cache
def _intact() -> tuple[dict[str, Any], bytes]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(dataset(folder, {"train": 40}))
        (shard,) = root.rglob("*.parquet")
        return json.loads((root / shards.DATASET_JSON).read_bytes()), shard.read_bytes()


def descriptions(rng: np.random.Generator, number: int, folder: Path) -> tuple[str, Callable[[], Any]]:
    """Mutate ``dataset.json``."""
    description, shard = _intact()
    return "dataset.json", _written(folder, document(description, rng), shard)


def shard_files(rng: np.random.Generator, number: int, folder: Path) -> tuple[str, Callable[[], Any]]:
    """Mutate a shard: its bytes, its footer, its columns or its metadata."""
    description, shard = _intact()
    name = ("bytes", "footer", "columns", "metadata")[number % 4]
    if name == "bytes":
        shard = damaged(shard, rng)
    elif name == "footer":
        # A Parquet file ends with its footer, the length of that, and four letters.
        at = len(shard) - 8 - int.from_bytes(shard[-8:-4], "little")
        footer = shard[at:-8]
        for _ in range(rng.integers(1, 4)):
            footer = damaged(footer, rng)
        shard = shard[:at] + footer + len(footer).to_bytes(4, "little") + shard[-4:]
    else:
        table = pq.read_table(io.BytesIO(shard))
        if name == "columns":
            for _ in range(rng.integers(1, 3)):
                table = _other_columns(table, rng)
        else:
            text = json.loads(table.schema.metadata[_METADATA])
            table = table.replace_schema_metadata({_METADATA: document(text, rng)})
        sink = io.BytesIO()
        compression = str(rng.choice(["zstd", "snappy", "none", "gzip"]))
        pq.write_table(table, sink, row_group_size=int(rng.choice([7, 20, 100])), compression=compression)
        shard = sink.getvalue()
    return name, _written(folder, json.dumps(description).encode(), shard)


def _written(folder: Path, description: bytes, shard: bytes) -> Callable[[], Any]:
    (folder / shards.DATASET_JSON).write_bytes(description)
    path = Path(shards.part_uri(str(folder), "train", 0))
    path.parent.mkdir(parents=True)
    path.write_bytes(shard)

    def read() -> None:
        info = shards.read_dataset_info(str(folder))
        source, units = open_source(str(folder), split="train", bands=("r",), size=20)
        for unit in units:
            for rows, _ in source.read(unit, 16):
                assert rows["image"].dtype == np.float32 and len(rows["reason"]) == len(rows["object_id"])
        if info.num_rows.get("train"):
            targets = bundle().targets
            shards.columns(str(folder), "train", info)
            Rows.concatenate([read_unit(Columns(targets=targets), unit) for unit in units])

    return read


def _other_columns(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    at = int(rng.integers(table.num_columns))
    name, column = table.column_names[at], table.column(at)
    kind = rng.choice(["remove", "rename", "nulls", "all null", "type", "rows", "double"])
    if kind == "remove":
        return table.remove_column(at)
    if kind == "rename":
        return table.rename_columns([f"{one}x" if one == name else one for one in table.column_names])
    if kind == "rows":
        return table.slice(0, int(rng.choice([0, 1, 3])))
    if kind == "double":
        return table.append_column(name, column)
    if kind == "nulls":
        other = pa.array(
            [None if i % 3 == 0 else one for i, one in enumerate(column.combine_chunks().to_pylist())], _storage(column.type)
        )
    elif kind == "all null":
        other = pa.nulls(len(table), column.type if rng.random() < 0.5 else None)
    else:
        values: list[Any] = [
            [str(i) for i in range(len(table))],
            list(range(len(table))),
            [float(mutated_number) for mutated_number in rng.choice([np.nan, np.inf, -1.0, 0.0, 1e300], len(table))],
            [[1.0, 2.0]] * len(table),
            [{"a": 1}] * len(table),
            [b"\xff"] * len(table),
            [True] * len(table),
        ]
        other = pa.array(values[int(rng.integers(len(values)))])
        if pa.types.is_integer(other.type):
            kinds = [pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.date32() if rng.random() < 0 else pa.int64()]
            other = other.cast(kinds[int(rng.integers(len(kinds)))])
    return table.set_column(at, name, other)


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.ExtensionType | pa.FixedShapeTensorType) else kind
