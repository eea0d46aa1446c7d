"""Columns of the input in the catalogue, and catalogues under another prior."""

import logging
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from gampen_ray.catalog.other_prior import exchange, prior_digest, read_prior
from gampen_ray.catalog.parquet import mixture_from_catalog, provenance_of
from gampen_ray.commands.infer import infer
from gampen_ray.config import ActorResources
from gampen_ray.data import shards
from gampen_ray.errors import UserError
from gampen_ray.inference.flags import Flag
from gampen_ray.viewer.galaxies import Galaxies
from tests.commands.infer_cases import catalog, config
from tests.networks import bundle, dataset, galaxies, with_prior


def test_a_catalogue_under_another_prior_says_so_and_each_galaxy_depends_on_itself_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = with_prior()
    model.save(str(tmp_path / "model"))
    dataset(str(tmp_path / "data"), {shards.ALL: 20})
    assert model.prior
    drawn_ND = model.prior.sample(3000, 1)
    # Faint galaxies are five times as frequent.
    often_N = np.where(drawn_ND[:, 0] < np.median(drawn_ND[:, 0]), 5, 1)
    Table(np.repeat(drawn_ND, often_N, axis=0), names=model.targets.names).write(tmp_path / "faint.csv")
    local = {"posterior": "summary", "resources": ActorResources(num_workers=1, engine="local")}
    named = local | {"prior": str(tmp_path / "faint.csv")}
    with caplog.at_level(logging.WARNING, "gampen_ray"):
        manifest = infer(config(tmp_path, tmp_path / "o", **named, batch_size=7, galaxies_per_file=5))
    whole = catalog(tmp_path / "o")
    digest = prior_digest(read_prior(str(tmp_path / "faint.csv"), model))
    assert manifest["inputs"]["prior"] == digest == provenance_of(whole.schema)["prior"]
    conflicts = int(((whole["flags"].to_numpy() & Flag.PRIOR_CONFLICT.value) != 0).sum())
    assert manifest["flags"].get("PRIOR_CONFLICT", 0) == conflicts == (whole["effective_share"].to_numpy() < 0.05).sum()
    assert (f"PRIOR_CONFLICT ({conflicts:,})" in caplog.text) == (conflicts > 0)
    other = infer(config(tmp_path, tmp_path / "p", **named | {"posterior": "mixture"}, batch_size=20))
    assert other["num_galaxies"] + other["num_quarantined"] == 20
    again = catalog(tmp_path / "p")
    for name in ("flux_median", "concentration_hi95", "effective_share"):
        # The network itself rounds differently in batches of another size.
        np.testing.assert_allclose(again[name].to_numpy(), whole[name].to_numpy(), rtol=1e-3)
    stored = mixture_from_catalog(again, model.targets)
    np.testing.assert_allclose(stored.quantile(0.5)[:, 0], again["flux_median"].to_numpy(), rtol=1e-5)
    # ... and is what weighted draws give, and the viewer.
    predict = model.predict(galaxies(20)["image"], num_passes=4)
    change = exchange(model, read_prior(str(tmp_path / "faint.csv"), model))
    assert change
    expected, share_N = change(predict)
    kept = again["object_id"].to_numpy()
    np.testing.assert_allclose(again["flux_mean"].to_numpy(), expected.mean()[kept, 0], rtol=1e-3)
    assert (share_N[kept] > 0).all()
    row = int(np.argmax(whole["effective_share"].to_numpy()))
    shown = Galaxies(str(tmp_path / "o")).galaxy(row)
    assert shown.posterior
    assert shown.posterior.mean()[0, 0] == pytest.approx(shown.values["flux_mean"], rel=1e-3)
    # Another prior is another run, and the same one elsewhere is the same.
    with pytest.raises(UserError, match="holds a run on another prior"):
        infer(config(tmp_path, tmp_path / "p", **local | {"posterior": "mixture"}))
    (tmp_path / "faint.csv").rename(tmp_path / "moved.csv")
    moved = named | {"prior": str(tmp_path / "moved.csv"), "posterior": "mixture"}
    assert infer(config(tmp_path, tmp_path / "p", **moved))["inputs"] == other["inputs"]
    with (tmp_path / "moved.csv").open("a") as file:
        file.write("20,0.5\n")
    with pytest.raises(UserError, match="holds a run on another prior"):
        infer(config(tmp_path, tmp_path / "p", **moved))


def test_columns_of_shards_are_carried(tmp_path: Path) -> None:
    bundle().save(str(tmp_path / "model"))
    dataset(str(tmp_path / "data"), {"test": 20}, rows_per_shard=8)
    local = {"posterior": "summary", "resources": ActorResources(num_workers=1, engine="local")}
    # The true values, in this dataset.
    wanted = config(tmp_path, tmp_path / "o", **local, columns=("flux", "concentration"), catalog_format="fits")
    infer(wanted)
    found = catalog(tmp_path / "o")
    assert found.column_names[-2:] == ["flux", "concentration"]
    for name in ("flux", "concentration"):
        np.testing.assert_array_equal(found[name].to_numpy(), galaxies(20)[name])
    unit = shards.read_dataset_info(str(tmp_path / "data")).target_units["flux"]
    assert found.schema.field("flux").metadata[b"unit"].decode() == unit != ""
    table = Table.read(tmp_path / "o" / "catalog.fits")
    table.sort("object_id")
    np.testing.assert_array_equal(table["concentration"], galaxies(20)["concentration"])
    before = config(tmp_path, tmp_path / "p", **local)
    infer(before)
    assert catalog(tmp_path / "p").equals(found.drop_columns(["flux", "concentration"]))
    with pytest.raises(UserError, match=r"columns: .*/data has no column 'z_phot'; its columns: object_id, .*; also "):
        infer(config(tmp_path, tmp_path / "q", **local, columns=("z_phot",)))


def test_columns_of_a_folders_catalogue_are_carried_with_unit_and_description(tmp_path: Path) -> None:
    bundle().save(str(tmp_path / "model"))
    (tmp_path / "cutouts").mkdir()
    for i, image in enumerate(galaxies(9)["image"]):
        np.save(tmp_path / "cutouts" / f"g{i}.npy", image[0])
    names = np.array([f"g{i}" for i in range(9)] + ["lost"])
    table = Table({"object_id": names, "file_name": [f"{name}.npy" for name in names], "MAG_AUTO": 20 + np.arange(10) / 8})
    table["MAG_AUTO"].unit, table["MAG_AUTO"].description = "mag(AB)", "Kron magnitude, 2.5 \u00c5\nof it"
    table["spec"] = np.ma.array(np.arange(10) + 2**60, mask=np.arange(10) % 2 == 0)
    table["star"], table["class"] = np.arange(10) < 3, ["E", "", "\u00e9", *"abcdefg"]
    table["w\u00e4rme"] = 1.0
    table.write(tmp_path / "table.ecsv")
    fields = {"dataset": str(tmp_path / "cutouts"), "catalog": str(tmp_path / "table.ecsv"), "posterior": "summary"}
    fields |= {"resources": ActorResources(num_workers=1, engine="local"), "catalog_format": "votable"}
    manifest = infer(config(tmp_path, tmp_path / "o", **fields, columns=("MAG_AUTO", "spec", "star", "class")))
    assert (manifest["num_galaxies"], manifest["num_quarantined"]) == (9, 1)
    found = catalog(tmp_path / "o")
    assert found["MAG_AUTO"].to_pylist() == table["MAG_AUTO"][:9].tolist()
    assert found["spec"].to_pylist() == table["spec"][:9].tolist()
    assert found["star"].to_pylist() == table["star"][:9].tolist()
    assert found["class"].to_pylist()[2:] == table["class"][2:9].tolist()
    metadata = found.schema.field("MAG_AUTO").metadata
    assert (metadata[b"unit"], metadata[b"description"]) == (b"mag(AB)", b"Kron magnitude, 2.5 \\xc5 of it")
    back = Table.read(tmp_path / "o" / "catalog.vot")
    assert back["spec"].tolist() == found["spec"].to_pylist()
    assert back["MAG_AUTO"].description == "Kron magnitude, 2.5 \\xc5 of it"
    for name, message in (
        ("mag_auto", r"columns: .*/table.ecsv has no column 'mag_auto'; its columns: object_id, file_name, MAG_AUTO, spec"),
        ("object_id", "columns: 'object_id' is a column of the catalogue already; leave it out"),
        ("w\u00e4rme", "columns: 'w\u00e4rme' has other letters than those of FITS, ASCII; rename the column"),
    ):
        with pytest.raises(UserError, match=message):
            infer(config(tmp_path, tmp_path / "p", **fields, columns=(name,)))


def test_hats_without_positions_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    bundle().save(str(tmp_path / "model"))
    dataset(str(tmp_path / "data"), {shards.ALL: 20})
    with pytest.raises(UserError, match=r"catalog_format: hats needs positions, but .*/data lacks the columns ra, dec"):
        infer(config(tmp_path, tmp_path / "output", catalog_format="hats"))
    assert not (tmp_path / "output").exists()
