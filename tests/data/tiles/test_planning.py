from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gampen_ray.data.quarantine import read_quarantine
from gampen_ray.data.tiles import surveys
from gampen_ray.data.tiles.assignment import assign
from gampen_ray.data.tiles.planning import Planning, assign_batch, batches, plan_locally, sampled
from gampen_ray.data.tiles.units import read_unit, units
from gampen_ray.errors import UserError
from tests.data.tiles.layouts import LAYOUTS, Sky, write_sky
from tests.data.tiles.test_surveys import made_footprint

SIZE = 16


@pytest.fixture(scope="module")
def hsc(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Sky]:
    folder = tmp_path_factory.mktemp("hsc")
    sky = write_sky(folder / "tiles", LAYOUTS["hsc"])
    return made_footprint(folder / "tiles", folder / "footprint", surveys.TILE_SURVEYS["hsc"]).uri, sky


def catalog(sky: Sky, repeats: int = 1) -> pa.Table:
    """Return the sources in no order, each several times, with others far away."""
    rng = np.random.default_rng(1)
    row_N = rng.permutation(np.repeat(np.arange(len(sky.ra_N)), repeats))
    ra_N, dec_N = np.append(sky.ra_N[row_N], [10.0, np.nan]), np.append(sky.dec_N[row_N], [10.0, 0.0])
    ids = np.arange(len(ra_N))
    return pa.table({"object_id": ids, "ra": ra_N, "dec": dec_N, "mag": np.append(sky.mag_NC[row_N, 0], [0.0, 0.0])})


@pytest.mark.parametrize("format_", ["parquet", "csv"])
def test_each_source_is_once_in_the_plan_or_in_quarantine(format_: str, hsc: tuple[str, Sky], tmp_path: Path) -> None:
    footprint, sky = hsc
    table = catalog(sky, 7)
    uri = tmp_path / f"catalog.{format_}"
    if format_ == "csv":
        pa.csv.write_csv(table, uri)
    else:
        pq.write_table(table, uri, row_group_size=100)
    planning = Planning(
        footprint=footprint, bands=("g", "r"), size=SIZE, output=str(tmp_path / "plan"), id_column="object_id", columns=("mag",)
    )
    summary = plan_locally(str(uri), planning, batch_rows=200, part_rows=300, unit_rows=64)
    found = [read_unit(unit) for unit in units(planning.output)]
    # A row group holds one tile, and no more rows than asked for.
    assert {pa.compute.count_distinct(one["tile"]).as_py() for one in found} == {1}
    assert max(map(len, found)) == 64
    assert len({unit.uri for unit in units(planning.output)}) > 1
    plan = pa.concat_tables(found)
    assert summary["num_sources"] == len(plan) == len(table) - 2
    assert summary["num_quarantined"] == 2
    assert sorted(plan["object_id"].to_pylist()) == list(range(len(table) - 2))
    assert Counter(reason for _, reason in read_quarantine(planning.output)) == {
        "in no tile of the footprint": 1,
        "the position is missing": 1,
    }
    expected = assign(table["ra"].to_numpy(), table["dec"].to_numpy(), planning.selection, size=SIZE)
    ids = plan["object_id"].to_numpy()
    np.testing.assert_array_equal(plan["tile"].to_numpy(), planning.selection.names[expected.tile_N[ids]])
    np.testing.assert_array_equal(plan["x"].to_numpy(), expected.x_N[ids])
    np.testing.assert_array_equal(plan["mag"].to_numpy(), table["mag"].to_numpy()[ids])
    # In the order of the catalogue within a tile.
    for tile in np.unique(plan["tile"].to_numpy()):
        assert (np.diff(ids[plan["tile"].to_numpy() == tile]) > 0).all()


def test_an_interrupted_plan_is_taken_up_and_is_the_same(hsc: tuple[str, Sky], tmp_path: Path) -> None:
    footprint, sky = hsc
    pq.write_table(catalog(sky), tmp_path / "catalog.parquet", row_group_size=30)
    plans = {name: Planning(footprint=footprint, bands=("r",), size=SIZE, output=str(tmp_path / name)) for name in ("a", "b")}
    first = list(batches(str(tmp_path / "catalog.parquet"), rows=30))
    assert len(first) > 2
    assign_batch(first[1], plans["b"])
    for planning in plans.values():
        plan_locally(str(tmp_path / "catalog.parquet"), planning, batch_rows=30)
    contents = [{path.name: path.read_bytes() for path in sorted((tmp_path / name).rglob("*.parquet"))} for name in ("a", "b")]
    assert contents[0] == contents[1]
    assert len(contents[0]) > 1


def test_a_batch_without_any_source_on_a_tile_is_all_quarantine(hsc: tuple[str, Sky], tmp_path: Path) -> None:
    footprint, sky = hsc
    away = pa.table({"object_id": np.arange(30) + 1000, "ra": np.full(30, 10.0), "dec": np.full(30, 10.0)})
    with pq.ParquetWriter(tmp_path / "catalog.parquet", away.schema) as writer:
        for table in (away, catalog(sky).select(away.column_names)):
            writer.write_table(table)
    planning = Planning(footprint=footprint, bands=("r",), size=SIZE, output=str(tmp_path / "plan"))
    summary = plan_locally(str(tmp_path / "catalog.parquet"), planning, batch_rows=30)
    assert (summary["num_sources"], summary["num_quarantined"]) == (len(sky.ra_N), 32)


def test_a_sample_has_all_sources_of_its_tiles_and_no_others(hsc: tuple[str, Sky], tmp_path: Path) -> None:
    footprint, sky = hsc
    pq.write_table(catalog(sky), tmp_path / "catalog.parquet", row_group_size=30)
    every = list(batches(str(tmp_path / "catalog.parquet"), rows=30))
    planning = Planning(footprint=footprint, bands=("r",), size=SIZE, output=str(tmp_path / "plan"))
    there = sampled(every, planning, 100)
    assert len(there) == 4
    two = sampled(every, planning, 2)
    assert len(two) == 2
    assert set(two) < set(there)
    plan_locally(str(tmp_path / "catalog.parquet"), replace(planning, only=two), batch_rows=30)
    kept = pa.concat_tables(read_unit(unit) for unit in units(planning.output))
    tile_N = assign(sky.ra_N, sky.dec_N, planning.selection, size=SIZE).tile_N
    assert sorted(kept["tile"].to_pylist()) == sorted(planning.selection.names[tile_N[np.isin(tile_N, two)]].tolist())
    assert read_quarantine(planning.output) == []


def test_repeated_and_secondary_sources_go_to_quarantine(hsc: tuple[str, Sky], tmp_path: Path) -> None:
    footprint, sky = hsc
    table = pa.table(
        {
            "object_id": ["a", "b", "a", "c", None],
            "ra": sky.ra_N[[30, 31, 30, 32, 33]],
            "dec": sky.dec_N[[30, 31, 30, 32, 33]],
            "isPrimary": [True, False, True, True, True],
        }
    )
    pq.write_table(table, tmp_path / "catalog.parquet")
    planning = Planning(footprint=footprint, bands=("r",), size=SIZE, output=str(tmp_path / "plan"))
    plan_locally(str(tmp_path / "catalog.parquet"), planning)
    kept = pa.concat_tables(read_unit(unit) for unit in units(planning.output))
    assert sorted(kept["object_id"].to_pylist()) == ["a", "c"]
    assert sorted(reason for _, reason in read_quarantine(planning.output)) == [
        "duplicate object_id: an earlier row has it",
        "not primary: by the column isPrimary",
        "object_id is missing",
    ]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"id": [1], "ra": [0.0], "dec": [0.0]}, {}, "id_column: .* has no column 'object_id'"),
        ({"object_id": [1], "lon": [0.0], "lat": [0.0]}, {}, "ra_column: the catalogue has no positions"),
        (
            {"object_id": [1], "ra": [0.0], "dec": [0.0], "x": [1.0]},
            {"columns": ("x",)},
            "columns: x is a column of every plan",
        ),
        ({"object_id": [1], "ra": [0.0], "dec": [0.0]}, {"bands": ("z",)}, "bands: no tile of .* has z; there are g, r"),
    ],
)
def test_mistakes_are_named(columns: dict, options: dict, message: str, hsc: tuple[str, Sky], tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "catalog.parquet")
    planning = Planning(**{"footprint": hsc[0], "bands": ("r",), "size": SIZE, "output": str(tmp_path / "plan")} | options)
    with pytest.raises(UserError, match=message):
        plan_locally(str(tmp_path / "catalog.parquet"), planning)
