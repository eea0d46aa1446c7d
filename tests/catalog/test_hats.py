import importlib.util
import logging
import shutil
from pathlib import Path
from typing import Any

import astropy.units as u
import hats
import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table

from gampen_ray import storage
from gampen_ray.catalog import hats as hats_catalog
from gampen_ray.catalog.hats import check_hats, write_hats
from gampen_ray.catalog.parquet import catalog_parts, catalog_table, mixture_from_catalog, part_content, provenance_of
from gampen_ray.data import shards
from gampen_ray.data.sources import open_source
from gampen_ray.errors import UserError
from tests.networks import dataset
from tests.posterior.posterior_cases import mixture

PARTS, PART = 4, 500
NO_POSITION = 3


@pytest.fixture(scope="module", autouse=True)
def small_partitions():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hats_catalog, "_BYTES", 2**18)
        patch.setattr(hats_catalog, "_HIGHEST_ORDER", 6)
        yield


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> str:
    """A catalogue on both sides of RA = 0, denser in its middle, and its HATS collection."""
    root = str(tmp_path_factory.mktemp("output"))
    rng = np.random.default_rng(0)
    for part in range(PARTS):
        dec = 60 + rng.standard_t(2, PART).clip(-12, 12)
        ra = (rng.standard_t(2, PART).clip(-12, 12) / np.cos(np.radians(dec))) % 360
        if part == 1:
            ra[3], dec[8], dec[11] = np.nan, np.nan, -99.0
        ids = np.arange(PART) + part * PART
        m = mixture("logit", "log", num_galaxies=PART, num_passes=4, seed=part)
        objects = pa.table({"object_id": ids, "ra": ra, "dec": dec})
        made: dict[str, Any] = {"store_mixture": True, "provenance": (("seed", "7"),)}
        table = catalog_table(objects, m, np.ones(PART), np.zeros(PART), **made)
        storage.write_bytes_atomic(f"{root}/catalog/part-{part}.parquet", part_content(table))
    # The file of a unit whose rows are all in quarantine.
    storage.write_bytes_atomic(f"{root}/catalog/part-.parquet", part_content(table[:0]))
    assert write_hats(root, PARTS * PART) == PARTS * PART - NO_POSITION
    return root


@pytest.fixture(scope="module")
def galaxies(output: str) -> pa.Table:
    table = pa.concat_tables(catalog_parts(output))
    usable = table.to_pandas()[["ra", "dec"]].notna().all(axis=1) & (table["dec"].to_numpy() > -91)
    return table.filter(pa.array(usable))


def test_every_galaxy_with_a_position_is_there_once_with_its_values(output: str, galaxies: pa.Table) -> None:
    catalog = lsdb.open_catalog(f"{output}/hats")
    assert len(catalog.get_healpix_pixels()) >= 10
    assert len({pixel.order for pixel in catalog.get_healpix_pixels()}) > 1
    rows = catalog.compute().sort_values("object_id")
    assert rows["object_id"].tolist() == galaxies["object_id"].to_pylist()
    np.testing.assert_array_equal(rows["log_1_median"], galaxies["log_1_median"].to_numpy())
    targets = mixture("logit", "log").targets
    back, there = mixture_from_catalog(rows, targets), mixture_from_catalog(galaxies, targets)
    np.testing.assert_array_equal(back.mean_NKD.numpy(), there.mean_NKD.numpy())


def test_collection_names_its_maker_and_no_path_of_this_machine(output: str) -> None:
    files = list(Path(output, "hats").rglob("*properties"))
    assert len(files) >= 3
    for text in map(Path.read_text, files):
        assert "obs_title=Posteriors of galaxies, by gampen_ray\nhats_creator=gampen_ray\ngampen_ray_seed=7" in text
        assert output not in text
    assert lsdb.open_catalog(f"{output}/hats").margin is not None


def test_cone_search_returns_the_rows_that_astropy_says(output: str, galaxies: pa.Table) -> None:
    found = lsdb.open_catalog(f"{output}/hats", columns=["object_id"]).cone_search(359.5, 60.5, 1 * 3600).compute()
    sky = SkyCoord(galaxies["ra"].to_numpy() * u.deg, galaxies["dec"].to_numpy() * u.deg)
    inside = sky.separation(SkyCoord(359.5 * u.deg, 60.5 * u.deg)) < 1 * u.deg
    assert 200 < inside.sum() < len(galaxies) / 2
    assert set(found["object_id"]) == set(galaxies["object_id"].to_numpy()[inside])


def test_crossmatch_finds_the_partners_also_across_partitions(output: str, galaxies: pa.Table) -> None:
    sky = SkyCoord(galaxies["ra"].to_numpy() * u.deg, galaxies["dec"].to_numpy() * u.deg)
    rng = np.random.default_rng(1)
    moved = sky.directional_offset_by(rng.uniform(0, 360, len(sky)) * u.deg, rng.uniform(0, 5, len(sky)) * u.arcsec)
    index, _, _ = moved.match_to_catalog_sky(sky)
    frame = galaxies.select(["object_id"]).to_pandas().assign(ra=moved.ra.deg, dec=moved.dec.deg)
    left = lsdb.from_dataframe(frame, ra_column="ra", dec_column="dec", margin_threshold=None, should_generate_moc=False)
    right = lsdb.open_catalog(f"{output}/hats", columns=["object_id", "ra", "dec"])
    pairs = left.crossmatch(right, radius_arcsec=10, suffixes=("_moved", ""), suffix_method="all_columns").compute()
    pairs = pairs.sort_values("object_id_moved")
    assert pairs["object_id_moved"].tolist() == galaxies["object_id"].to_pylist()
    assert pairs["object_id"].tolist() == galaxies["object_id"].to_numpy()[index].tolist()


@pytest.mark.filterwarnings("ignore:No table..len..object_id found")
def test_units_and_descriptions_survive(output: str) -> None:
    schema = hats.read_hats(f"{output}/hats").main_catalog.schema
    metadata = {"unit": "arcsec", "description": "posterior mean of log_1", "ucd": "phys.angSize;stat.mean"}
    assert schema.field("log_1_mean").metadata == {key.encode(): value.encode() for key, value in metadata.items()}
    part = next(Path(output).glob("hats/galaxies/dataset/Norder=*/*/*.parquet"))
    assert provenance_of(pq.read_schema(part)) == {"seed": "7"}
    assert Table.read(part, format="parquet.votable")["log_1_mean"].meta == {"ucd": "phys.angSize;stat.mean"}
    table = Table.read(part)
    assert (str(table["dec"].unit), str(table["log_1_hi68"].unit)) == ("deg", "arcsec")
    assert table["_healpix_29"].description.startswith("HEALPix cell of order 29")


def test_finished_collection_is_left_as_it_is_and_an_unfinished_one_made_again(output: str, tmp_path: Path, caplog) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    file = next(copy.glob("hats/galaxies/dataset/Norder=*/*/*.parquet"))
    content, time = file.read_bytes(), file.stat().st_mtime_ns
    with caplog.at_level(logging.WARNING):
        assert write_hats(str(copy), PARTS * PART) == PARTS * PART - NO_POSITION
    assert file.stat().st_mtime_ns == time
    assert "3 of 2000 galaxies have no position: they are in catalog/ only" in caplog.text
    # The state after a kill half-way: half-written partitions, scratch, no properties of the collection.
    (copy / "hats" / "collection.properties").unlink()
    file.write_bytes(content[:100])
    (copy / "hats" / "galaxies" / "dataset" / "Norder=0").mkdir()
    (copy / "hats-scratch").mkdir()
    (copy / "hats-scratch" / "mapping_done").touch()
    assert write_hats(str(copy), PARTS * PART) == PARTS * PART - NO_POSITION
    assert file.read_bytes() == content
    assert not (copy / "hats-scratch").exists()


def test_no_galaxy_has_a_position(tmp_path: Path, caplog) -> None:
    m = mixture("log", num_galaxies=5)
    table = catalog_table(pa.table({"object_id": range(5)}), m, np.ones(5), np.zeros(5), store_mixture=False)
    storage.write_bytes_atomic(f"{tmp_path}/catalog/part.parquet", part_content(table))
    assert write_hats(str(tmp_path), 5) == 0
    assert "5 of 5 galaxies have no position" in caplog.text
    assert write_hats(str(tmp_path / "empty"), 0) == 0


def test_dataset_without_positions_is_refused(tmp_path: Path) -> None:
    root = dataset(str(tmp_path / "data"), {shards.ALL: 5})
    _, units = open_source(root, split="", bands=("r",), size=20)
    with pytest.raises(
        UserError, match=r"catalog_format: hats needs positions, but .*/data lacks the columns ra, dec; add them"
    ):
        check_hats(root, units)


def test_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'hats needs the package hats-import; install it: pip install "gampen_ray\[hats\]"'):
        check_hats("data", [])
