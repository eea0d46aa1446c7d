"""dataset.json comes back as it was written; one that holds anything else is refused by its field."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gampen_ray.data.dataset_info import (
    DATASET_JSON,
    DatasetInfo,
    read_dataset_info,
    schema_info,
    schema_metadata,
    write_dataset_info,
)
from gampen_ray.errors import UserError

INFO = DatasetInfo(
    bands=("g", "r"), cutout_size=6, zero_point_mag=27.0, target_units={"flux": "adu"}, num_rows={"train": 5}, fingerprint="abc"
)
INTACT = json.loads(json.dumps(dataclasses.asdict(INFO)))


def test_round_trip(tmp_path: Path) -> None:
    write_dataset_info(str(tmp_path), INFO)
    assert read_dataset_info(str(tmp_path)) == INFO


def test_shards_have_what_holds_for_each_of_them() -> None:
    schema = pa.schema([], metadata=schema_metadata(dataclasses.replace(INFO, source={"seed": 1})))
    assert schema_info("a.parquet", schema) == dataclasses.replace(INFO, num_rows={})
    assert schema_info("a.parquet", schema.remove_metadata()) is None
    with pytest.raises(UserError, match=r"^a.parquet: not a dataset of gampen_ray: not valid JSON: .*; take this file out"):
        schema_info("a.parquet", pa.schema([], metadata={"gampen_ray": "{"}))


def test_there_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent does not exist: no dataset.json; make it with"):
        read_dataset_info(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"is not complete: no dataset.json"):
        read_dataset_info(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"format_version": 99, "news": 1}, "format version 99, this gampen_ray reads up to 1; install a newer gampen_ray"),
        ({"a": 1}, "not a dataset of gampen_ray: format_version is missing; make the dataset again"),
        ([1], "not a dataset of gampen_ray: .* is not allowed"),
        ({"format_version": 1, "cutout_size": 6}, "bands is missing; make the dataset again"),
        (INTACT | {"unknown": 1}, "unknown: unknown field; make the dataset again"),
        (INTACT | {"bands": 3}, "bands: 3 is not allowed: Input should be a valid array; make"),
        (INTACT | {"bands": []}, r"bands: \[\] is not allowed"),
        (INTACT | {"bands": ["g", 1]}, r"bands.1: 1 is not allowed: Input should be a valid string"),
        (INTACT | {"cutout_size": 0}, "cutout_size: 0 is not allowed: Input should be greater than or equal to 1"),
        (INTACT | {"cutout_size": "6"}, "cutout_size: '6' is not allowed"),
        (INTACT | {"zero_point_mag": float("nan")}, "zero_point_mag: nan is not allowed: Input should be a finite number"),
        (INTACT | {"pixel_scale_arcsec": -0.2}, r"pixel_scale_arcsec: -0.2 is not allowed: Input should be greater than 0"),
        (INTACT | {"num_rows": {"train": -1}}, "num_rows.train: -1 is not allowed"),
        (INTACT | {"num_rows": None}, "num_rows: None is not allowed"),
        (INTACT | {"target_units": {"flux": None}}, "target_units.flux: None is not allowed"),
        (INTACT | {"survey": "x" * 5000 + "\n" * 9 + "y" * 5, "source": 7}, "source: 7 is not allowed"),
    ],
)
def test_a_wrong_document_is_refused_in_one_line(content: Any, match: str, tmp_path: Path) -> None:
    (tmp_path / DATASET_JSON).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"^{tmp_path}/dataset.json: {match}") as error:
        read_dataset_info(str(tmp_path))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format_version": 1' + b"0" * 5000 + b"}"])
def test_a_damaged_document_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / DATASET_JSON).write_bytes(content)
    with pytest.raises(
        UserError, match=r"dataset.json: not a dataset of gampen_ray: not valid JSON: [^\n]*; make the dataset again"
    ):
        read_dataset_info(str(tmp_path))
