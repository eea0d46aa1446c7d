"""Cutout shards come back as they were written, through gampen_ray, plain pyarrow and pandas."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gampen_ray import storage
from gampen_ray.data import shards, validation
from gampen_ray.data.dataset_info import schema_info
from gampen_ray.data.shards import DatasetInfo
from gampen_ray.data.sources import open_source
from gampen_ray.errors import UserError

INFO = DatasetInfo(
    bands=("g", "r"),
    cutout_size=6,
    pixel_scale_arcsec=0.2,
    zero_point_mag=27.0,
    target_units={"flux": "adu"},
    num_rows={"train": 5},
    fingerprint="abc",
)
LARGE_ID = 587722984439545906


def _columns(count: int = 5) -> dict:
    rng = np.random.default_rng(count)
    return {
        "object_id": np.arange(count) + LARGE_ID,
        "ra": np.linspace(0, 1, count),
        "image": rng.normal(size=(count, 2, 6, 6)).astype(np.float32),
        "flux": np.arange(count, dtype=np.float32) + 1,
        "field": [f"f{index % 2}" for index in range(count)],
    }


def _dataset(root: Path, count: int = 5) -> str:
    dataset = str(root / "dataset")
    shards.write_shard(shards.part_uri(dataset, "train", 0), _columns(count), INFO)
    shards.write_dataset_info(dataset, INFO)
    return dataset


@pytest.mark.parametrize("count", [0, 1, 5, 255, 256, 257, 600])
def test_round_trip(tmp_path: Path, count: int) -> None:
    uri, columns = str(tmp_path / "a.parquet"), _columns(count)
    shards.write_shard(uri, columns, INFO)
    table = shards.read_shard(uri)
    image_NCHW = shards.images(table)
    assert image_NCHW.dtype == np.float32
    np.testing.assert_array_equal(image_NCHW, columns["image"])
    assert table.column("object_id").to_pylist() == columns["object_id"].tolist()
    assert table.schema.field("flux").type == pa.float64()
    assert table.column("field").to_pylist() == columns["field"]
    assert pq.ParquetFile(uri).num_row_groups == max(1, -(-count // 256))


def test_storage_layout(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.parquet")
    shards.write_shard(uri, _columns(), INFO)
    image = next(
        c for c in map(pq.ParquetFile(uri).metadata.row_group(0).column, range(5)) if c.path_in_schema.startswith("image")
    )
    assert image.compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" in image.encodings
    assert "PLAIN_DICTIONARY" not in image.encodings
    schema = pq.read_schema(uri)
    assert schema.field("image").type == pa.fixed_shape_tensor(pa.float32(), (2, 6, 6))
    assert schema_info(uri, schema) == dataclasses.replace(INFO, num_rows={})


def test_pandas_reads_it(tmp_path: Path) -> None:
    uri, columns = str(tmp_path / "a.parquet"), _columns()
    shards.write_shard(uri, columns, INFO)
    frame = pd.read_parquet(uri)
    np.testing.assert_array_equal(np.stack(list(frame["image"])).reshape(-1, 2, 6, 6), columns["image"])


def test_images_are_a_view_of_the_table_slices_too(tmp_path: Path) -> None:
    uri, columns = str(tmp_path / "a.parquet"), _columns()
    shards.write_shard(uri, columns, INFO)
    table = shards.read_shard(uri, ["image"])
    first, again = shards.images(table), shards.images(table)
    assert np.shares_memory(first, again)
    assert not first.flags.writeable
    np.testing.assert_array_equal(shards.images(table.slice(1, 3)), columns["image"][1:4])
    np.testing.assert_array_equal(shards.images(pa.concat_tables([table, table])), np.tile(columns["image"], (2, 1, 1, 1)))


def test_columns_are_chosen_in_order(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.parquet")
    shards.write_shard(uri, _columns(), INFO)
    assert shards.read_shard(uri, ["flux", "object_id"]).column_names == ["flux", "object_id"]
    with pytest.raises(UserError, match=r"a.parquet: no column 'mass'; found: object_id, ra, image, flux, field"):
        shards.read_shard(uri, ["mass"])


def test_write_refuses_columns_that_differ_from_the_dataset(tmp_path: Path) -> None:
    uri, columns = str(tmp_path / "a.parquet"), _columns()
    with pytest.raises(UserError, match="no column 'flux'; found: object_id, image"):
        shards.write_shard(uri, {name: columns[name] for name in ("object_id", "image")}, INFO)
    with pytest.raises(UserError, match=r"images of shape \(2, 5, 6\)"):
        shards.write_shard(uri, columns | {"image": columns["image"][:, :, 1:]}, INFO)
    with pytest.raises(UserError, match="object_id must be integers or strings, not double"):
        shards.write_shard(uri, columns | {"object_id": np.arange(5) / 2}, INFO)
    assert not list(tmp_path.iterdir())


def test_damage_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    shards.write_shard(str(path), _columns(600), INFO)
    content = bytearray(path.read_bytes())
    content[20_000:20_050] = b"\xff" * 50
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a.parquet: damaged or not Parquet: .*CRC"):
        shards.read_shard(str(path))
    path.write_text("not Parquet")
    with pytest.raises(UserError, match=r"a.parquet: damaged or not Parquet"):
        shards.read_shard(str(path))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"image": np.zeros((5, 2, 5, 5), np.float32)},
            r"column image is float \[2, 5, 5\], but dataset.json says float \[2, 6, 6\]",
        ),
        (
            {"image": np.zeros((5, 1, 6, 6), np.float32)},
            r"column image is float \[1, 6, 6\], but dataset.json says float \[2, 6, 6\]",
        ),
        ({"image": np.zeros((5, 2, 6, 6))}, r"column image is double \[2, 6, 6\], but"),
        ({"image": None}, r"no column 'image'; found: object_id, ra, flux, field"),
        ({"image": list("abcde")}, r"column image is string \[\], but"),
        ({"object_id": np.arange(5) / 2}, r"column object_id is double, neither int64 nor string"),
        ({"flux": list("abcde")}, r"target column flux is string, not float64 \(double\)"),
        ({"flux": None}, r"no column 'flux'"),
    ],
)
def test_a_shard_of_another_schema_is_refused(changes: dict, match: str, tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    stranger = shards.part_uri(dataset, "train", 1)
    arrays = {name: values for name, values in (_columns() | changes).items() if values is not None}
    if isinstance(image := arrays.get("image"), np.ndarray):
        arrays["image"] = pa.FixedShapeTensorArray.from_numpy_ndarray(image)
    pq.write_table(pa.table({name: pa.array(v) if isinstance(v, list) else v for name, v in arrays.items()}), stranger)
    for call in (shards.read_shard, shards.read_footer):
        with pytest.raises(UserError, match=rf"part-000001.parquet: {match}"):
            call(stranger, info=INFO)
    with pytest.raises(UserError, match=match):
        validation.validate_dataset(dataset)
    with pytest.raises(UserError, match=match):
        open_source(dataset, split="train", bands=INFO.bands, size=6)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"bands": ("g", "i")}, r"bands is \('g', 'i'\), but dataset.json says \('g', 'r'\); take this file out"),
        ({"zero_point_mag": None}, r"zero_point_mag is None, but dataset.json says 27.0"),
        ({"pixel_scale_arcsec": 0.1}, r"pixel_scale_arcsec is 0.1, but dataset.json says 0.2"),
        ({"flux_unit": "nmgy"}, r"flux_unit is 'nmgy', but dataset.json says ''"),
    ],
)
def test_a_shard_whose_pixels_mean_something_else_is_refused(fields: dict, match: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "a.parquet")
    shards.write_shard(uri, _columns(), dataclasses.replace(INFO, **fields))
    with pytest.raises(UserError, match=rf"a.parquet: {match}"):
        shards.read_shard(uri, ["object_id"], info=INFO)
    # Without metadata, only the columns are compared.
    pq.write_table(pq.read_table(uri).replace_schema_metadata(None), uri)
    assert len(shards.read_shard(uri, info=INFO)) == 5


@pytest.mark.parametrize("kept", [0, 3, 5000, -1])
def test_a_truncated_shard_is_damaged(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    shards.write_shard(str(path), _columns(600), INFO)
    path.write_bytes(path.read_bytes()[:kept])
    for call in (shards.read_shard, shards.read_footer):
        with pytest.raises(UserError, match=r"a.parquet: damaged or not Parquet: [^\n]*$"):
            call(str(path), info=INFO)


@pytest.mark.parametrize("columns", [0, 3000])
def test_a_footer_tells_rows_ids_and_content(columns: int, tmp_path: Path) -> None:
    extra = {f"n{i}": np.arange(600) for i in range(columns)}
    paths = [str(tmp_path / name) for name in ("a", "b", "c")]
    for path in paths:
        shards.write_shard(path, _columns(600) | extra, INFO)
    changed = _columns(600)
    changed["image"][7, 0, 1, 1] += 0.5
    shards.write_shard(paths[2], changed | extra, INFO)
    a, b, c = (shards.read_footer(path, INFO) for path in paths)
    assert a == b
    assert (a.group_rows, a.id_type) == ([256, 256, 88], pq.read_schema(paths[0]).field("object_id").type)
    assert (c.group_rows, c.stamp == a.stamp) == (a.group_rows, False)


def test_quarantined_rows_are_joined_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = list(shards.QUARANTINE_SCHEMA)
    monkeypatch.setattr(shards, "QUARANTINE_SCHEMA", pa.schema(fields[::-1]))
    uri = str(tmp_path / "part.parquet")
    shards.write_quarantine(uri, reason=["why"], object_id=["1"], source=["a.fits"])
    assert pq.read_table(uri).to_pylist() == [{"object_id": "1", "source": "a.fits", "reason": "why"}]


def test_shards_are_found_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split, part in (("train", 1), ("train", 0), ("test", 0)):
        shards.write_shard(shards.part_uri("data", split, part), _columns(1), INFO)
    shards.write_quarantine(shards.part_uri("data", "quarantine", 0), object_id=["1"], source=["a.fits"], reason=["why"])
    root = str(tmp_path / "data")
    assert shards.shard_uris("data", "train") == [f"{root}/split=train/part-00000{part}.parquet" for part in (0, 1)]
    assert len(shards.shard_uris("data")) == 3
    with pytest.raises(UserError, match="data has no shards of split 'val'; found: test, train"):
        shards.shard_uris("data", "val")
    shards.write_shard(shards.part_uri("flat", shards.ALL, 0), _columns(1), INFO)
    assert shards.shard_uris("flat") == [f"{tmp_path}/flat/part-000000.parquet"]
    with pytest.raises(UserError, match="no shards; found: nothing"):
        shards.shard_uris("nowhere")


def test_every_fault_of_a_row_has_a_reason() -> None:
    image_NCHW = np.random.default_rng(0).normal(size=(7, 1, 4, 4)).astype(np.float32)
    image_NCHW[3, 0, 0, 0] = np.inf
    image_NCHW[4] = 2.5
    columns = {
        "object_id": pa.array([1, 2, 1, 4, 5, None, 7]),
        "image": image_NCHW,
        "flux": pa.array([1.0, None, 3.0, 4.0, 5.0, 6.0, np.nan]),
    }
    assert validation.validate_rows(columns, ["flux"]).tolist() == [
        "",
        "target flux is missing",
        "duplicate object_id: an earlier row has it",
        "1 of 16 pixels are not finite",
        "all pixels have the same value 2.5",
        "object_id is missing",
        "target flux is not finite",
    ]
    assert validation.validate_rows({"object_id": ["a", "", "a"]}).tolist()[1:] == [
        "object_id is missing",
        "duplicate object_id: an earlier row has it",
    ]
    with pytest.raises(UserError, match="no target column 'mass'; found: object_id, image, flux"):
        validation.validate_rows(columns, ["mass"])


def test_validate_dataset(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    assert validation.validate_dataset(dataset) == []
    columns = _columns()
    columns["image"][1] = 0
    shards.write_shard(shards.part_uri(dataset, "train", 1), columns, INFO)
    with pytest.raises(UserError, match=r"has the rows \{'train': 10\}, but its dataset.json says \{'train': 5\}"):
        validation.validate_dataset(dataset)
    storage.delete(shards.part_uri(dataset, "train", 0))
    assert validation.validate_dataset(dataset) == [
        (str(LARGE_ID + 1), storage.absolute(shards.part_uri(dataset, "train", 1)), "all pixels have the same value 0")
    ]
