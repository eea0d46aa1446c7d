"""Truths, columns and subsets of an evaluation, of a catalogue that `infer` made in this process."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import gampen_ray
from gampen_ray import cli
from gampen_ray.commands.infer import InferConfig, infer
from gampen_ray.config import ActorResources
from gampen_ray.data import shards
from gampen_ray.errors import UserError
from tests.networks import SIZE, bundle, galaxies

COUNT = 300
UNITS = {"flux": "Jy", "concentration": ""}


def columns() -> dict[str, Any]:
    """Galaxies with identifiers beyond 2^53, on two tiles."""
    rng, found = np.random.default_rng(0), galaxies(COUNT)
    found["object_id"] = 2**60 + rng.permutation(COUNT)
    tile = np.where(np.arange(COUNT) % 3 == 0, "west", "east")
    position = {"ra": np.where(tile == "west", 10.0, 40.0), "dec": np.full(COUNT, 5.0)}
    return found | position | {"tile": tile, "magnitude": rng.uniform(18, 22, COUNT), "seeing": rng.uniform(0.5, 0.9, COUNT)}


def predicted(root: Path, table: dict[str, Any] | None = None, posterior: Any = "mixture", **units: str) -> Path:
    """Write a model, a dataset (of `columns`, or others) and a catalogue of it."""
    table = table or columns()
    bundle().save(str(root / "model"))
    info = shards.DatasetInfo(bands=("r",), cutout_size=SIZE, target_units=units, num_rows={"all": COUNT}, fingerprint="f")
    for part, rows in enumerate((slice(0, 100), slice(100, COUNT))):
        shards.write_shard(
            shards.part_uri(str(root / "data"), shards.ALL, part), {name: y[rows] for name, y in table.items()}, info
        )
    shards.write_dataset_info(str(root / "data"), info)
    resources = ActorResources(engine="local", num_workers=1)
    paths = {"bundle": str(root / "model"), "dataset": str(root / "data"), "output": str(root / "catalog")}
    infer(InferConfig(**paths, num_passes=4, posterior=posterior, resources=resources))
    return root


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predicted(tmp_path_factory.mktemp("inputs"), **UNITS)


def evaluated(inputs: Path, output: Path, **fields: Any) -> dict[str, Any]:
    return gampen_ray.evaluate(catalog=str(inputs / "catalog"), output=str(output), seed_galaxies=5, **fields)


def test_columns_a_subset_and_maps_reach_the_page(inputs: Path, tmp_path: Path) -> None:
    found = evaluated(inputs, tmp_path / "e", bins=("magnitude", "tile"), where="seeing < 0.85 and tile != 'north'")
    table = columns()
    kept = table["seeing"] < 0.85
    assert (found["num_galaxies"], found["where"]) == (kept.sum(), "seeing < 0.85 and tile != 'north'")
    assert found["subset"]["num_galaxies"] == kept.sum()
    rows = found["columns"]["rows"]
    sizes = {row["value"]: row["num_galaxies"] for row in rows if row["column"] == "tile"}
    assert sizes == {name: ((table["tile"] == name) & kept).sum() for name in ("east", "west")}
    bright = next(row for row in rows if row["column"] == "magnitude")
    assert bright["low"] == table["magnitude"][kept].min()
    assert {row["num_galaxies"] for row in found["sky"]["rows"]} == set(sizes.values())
    assert {"columns", "sky", "seeds"} <= set(found["verdicts"])
    gampen_ray.report(evaluation=str(tmp_path / "e"), output=str(tmp_path / "page.html"), num_examples=1, num_angles=0)
    page = (tmp_path / "page.html").read_text()
    assert all(text in page for text in ('<section id="columns">', '<section id="sky">', "seeing &lt; 0.85", "east"))
    # Again, it is read.
    assert evaluated(inputs, tmp_path / "e", bins=("magnitude", "tile"), where=found["where"]) == found


def test_a_catalogue_is_evaluated_by_the_truths_of_a_table(inputs: Path, tmp_path: Path) -> None:
    table = pa.table({name: y for name, y in columns().items() if name != "image"})
    order = np.random.default_rng(1).permutation(COUNT)
    pq.write_table(table.take(order), tmp_path / "truth.parquet")
    own = evaluated(inputs, tmp_path / "own")
    found = evaluated(inputs, tmp_path / "e", truth=str(tmp_path / "truth.parquet"))
    different = {name for name in found if found[name] != own[name]}
    assert different == {"truth"}


def test_galaxies_without_truth_are_left_out(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = pa.table({name: y for name, y in columns().items() if name in ("object_id", "flux", "concentration")})
    table = table.rename_columns(["name", "flux", "concentration"])
    flux = table["flux"].to_numpy().copy()
    flux[:7] = np.nan
    table = table.set_column(1, "flux", pa.array(flux)).slice(0, 280)
    pyarrow.csv.write_csv(table, tmp_path / "truth.csv")
    with caplog.at_level("WARNING", logger="gampen_ray"):
        found = evaluated(inputs, tmp_path / "e", truth=str(tmp_path / "truth.csv"), id_column="name")
    assert (found["num_galaxies"], found["num_without_truth"]) == (273, 27)
    assert "27 of 300 galaxies have no true value, and are left out" in caplog.text


def test_a_dataset_without_truths_needs_a_table(tmp_path: Path) -> None:
    root = predicted(tmp_path)
    assert json.loads((root / "data" / "dataset.json").read_text())["target_units"] == {}
    files = list((root / "data").glob("*.parquet"))
    for path in files:
        pq.write_table(pq.read_table(path).drop_columns(["flux", "concentration"]), path)
    with pytest.raises(UserError, match=r"^catalog: its dataset lacks true values, .* or give truth: "):
        evaluated(root, tmp_path / "e")
    table = pa.table({name: y for name, y in columns().items() if name != "image"})
    pq.write_table(table, tmp_path / "truth.parquet")
    assert evaluated(root, tmp_path / "e", truth=str(tmp_path / "truth.parquet"))["num_galaxies"] == COUNT
    # Nor are its cutouts needed.
    for path in (*files, root / "data" / "dataset.json"):
        path.unlink()
    found = evaluated(root, tmp_path / "f", truth=str(tmp_path / "truth.parquet"), bins=("magnitude",))
    assert found["seeds"] is None and found["columns"]["rows"]
    gampen_ray.report(evaluation=str(tmp_path / "f"), output=str(tmp_path / "page.html"))
    assert "Rotation stability was not tested" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"bins": ("magnitud",)}, r"^bins: no column 'magnitud'; there are: .*flux, .*tile, .*crop_scale"),
        ({"where": "no_such < 3"}, r"^where: no column 'no_such'; there are: "),
        ({"where": "magnitude < 3"}, r"^where: no galaxy of 300 fulfils 'magnitude < 3'; give another condition"),
        ({"where": "magnitude < 'x'"}, r"^where: .*; compare columns with numbers or texts"),
        ({"bins": ("mixture_mean",)}, r"^bins: mixture_mean is fixed_size_list.*, neither numbers nor texts"),
        ({"id_column": "name"}, r"^id_column: name has no effect without truth"),
        ({"truth": "no-such.csv"}, r"^truth: .*no-such.csv does not exist; give one that does"),
    ],
)
def test_mistakes_are_refused_in_one_line(inputs: Path, tmp_path: Path, fields: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error) as caught:
        evaluated(inputs, tmp_path / "e", **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            lambda table: pa.concat_tables([table, table[3:5]]),
            r"truth: .* repeats 2 identifiers, such as 11529\d+; keep",
        ),
        (lambda table: table.drop_columns("flux"), r"truth: catalog .* has no column 'flux'; its columns: "),
        (lambda table: table.drop_columns("object_id"), r"id_column: catalog .* has no column 'object_id'"),
        (
            lambda table: table.set_column(0, "object_id", table["object_id"].cast(pa.float64(), safe=False)),
            r"id_column: the identifiers are floating-point numbers",
        ),
        (
            lambda table: table.set_column(0, "object_id", pa.array(range(COUNT))),
            r"truth: .* has no finite true value of",
        ),
        (lambda table: table.set_column(1, "flux", pa.array(["x"] * COUNT)), r"truth: the column flux is string, not numbers"),
    ],
    ids=["repeated", "no target", "no id", "rounded", "other ids", "text"],
)
def test_tables_that_do_not_fit_are_refused(inputs: Path, tmp_path: Path, change: Any, error: str) -> None:
    table = pa.table({name: columns()[name] for name in ("object_id", "flux", "concentration")})
    pq.write_table(change(table), tmp_path / "truth.parquet")
    with pytest.raises(UserError, match=error) as caught:
        evaluated(inputs, tmp_path / "e", truth=str(tmp_path / "truth.parquet"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "e").exists()


def test_the_command_line_takes_lists_and_expressions(inputs: Path, tmp_path: Path) -> None:
    flags = ["--bins", "seeing,tile", "--where", "magnitude < 21", "--seed-galaxies", "5"]
    assert cli.main(["evaluate", "--catalog", str(inputs / "catalog"), "--output", str(tmp_path / "e"), *flags]) == 0
    found = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert {row["column"] for row in found["columns"]["rows"]} == {"seeing", "tile"}
