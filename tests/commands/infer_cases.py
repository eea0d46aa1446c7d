"""A config of `infer` and its catalogue, for several test files."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gampen_ray.commands.infer import InferConfig
from gampen_ray.config import ActorResources

# A second actor would only take its time to start.
ON_RAY = ActorResources(num_workers=1)


def config(inputs: Path, output: Path, **fields: object) -> InferConfig:
    base = InferConfig(
        bundle=str(inputs / "model"),
        dataset=str(inputs / "data"),
        output=str(output),
        num_passes=4,
        posterior="mixture",
        resources=ActorResources(engine="local"),
    )
    return dataclasses.replace(base, **fields)


def catalog(output: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(output.glob("catalog/*.parquet"))).sort_by("object_id")
