"""One file of the whole catalogue, read back by astropy."""

import dataclasses
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits, votable
from astropy.table import Table

from gampen_ray import storage
from gampen_ray.catalog import single_file
from gampen_ray.catalog.parquet import catalog_parts, catalog_schema, catalog_table, described, part_content
from gampen_ray.catalog.single_file import FILES, check_single_file, write_single_file
from gampen_ray.errors import UserError
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.mixture import Mixture
from tests.posterior.posterior_cases import mixture, schema

PARTS, PART = 3, 7
MADE = (("version", "1.2"), ("bundle", "ab" * 32), ("num_passes", "4"), ("seed", "7"))
FLUX = dataclasses.replace(schema("log").targets[0], name="flux", unit="1e-12 mgy")


def write_catalog(root: Path, ids: Any = None) -> str:
    """Write a catalogue of three files with texts, arrays and nulls, and an empty file as of a unit in quarantine."""
    for part in range(PARTS):
        m = mixture("log", "logit", num_galaxies=PART, num_passes=4, seed=part)
        m = Mixture(m.mean_NKD, m.scale_tril_NKDD, TargetSchema((FLUX, m.targets.targets[1])))
        names = [f"J{part}-{i}" for i in range(PART)] if ids is None else ids[part * PART : (part + 1) * PART]
        ra = np.where(np.arange(PART) == 3, np.nan, 10.0 * np.arange(PART))
        objects = pa.table({"object_id": names, "ra": ra, "dec": np.full(PART, -3.0)})
        options: dict[str, Any] = {"store_mixture": True, "extra": ("flux_mag", "tile"), "provenance": MADE}
        table = catalog_table(objects, m, np.ones(PART), np.zeros(PART), **options)
        storage.write_bytes_atomic(f"{root}/catalog/part-{part}.parquet", part_content(table))
    storage.write_bytes_atomic(f"{root}/catalog/part-9.parquet", part_content(table[:0]))
    return str(root)


@pytest.mark.parametrize("format", FILES)
def test_astropy_reads_all_rows_with_units_ucds_and_descriptions(tmp_path: Path, format: str) -> None:
    output = write_catalog(tmp_path)
    write_single_file(output, format, PARTS * PART)
    table, expected = Table.read(tmp_path / FILES[format]), pa.concat_tables(catalog_parts(output))
    assert table.colnames == expected.column_names
    assert list(table["object_id"]) == expected["object_id"].to_pylist()
    for name in ("flux_median", "flux_lo95", "flux_mag", "logit_1_std", "dec"):
        column, parquet_unit = table[name], expected.schema.field(name).metadata[b"unit"].decode()
        # FITS holds nJy by a factor that readers apply.
        factor = (1 * (column.unit or u.one)).to_value(parquet_unit or u.one)
        np.testing.assert_allclose(np.asarray(column) * factor, expected[name].to_numpy(), rtol=1e-14)
        assert column.description == expected.schema.field(name).metadata[b"description"].decode()
        assert column.meta["ucd"] == expected.schema.field(name).metadata[b"ucd"].decode()
    assert table["flux_median"].unit == ("nJy" if format == "fits" else u.Unit("3.631 nJy"))
    assert np.isnan(np.ma.filled(table["ra"], np.nan)).tolist() == [i % PART == 3 for i in range(PARTS * PART)]
    np.testing.assert_array_equal(table["mixture_mean"], np.stack(expected["mixture_mean"].to_numpy()))
    np.testing.assert_array_equal(table["flags"], expected["flags"].to_numpy())
    assert set(np.ma.filled(table["tile"], "")) == {""}


def test_fits_follows_the_standard_and_says_what_made_it(tmp_path: Path) -> None:
    write_single_file(write_catalog(tmp_path), "fits", PARTS * PART)
    with fits.open(tmp_path / "catalog.fits") as hdus:
        hdus.verify("exception")
        header = hdus[1].header
        assert (header["VERSION"], header["BUNDLE"], header["NUM_PASS"], header["SEED"]) == tuple(dict(MADE).values())
        number = hdus[1].columns.names.index("flux_median") + 1
        words = [header[f"{key}{number}"] for key in ("TUNIT", "TSCAL", "TCOMM", "TUCD")]
        assert words == ["nJy", 3.631, "posterior median of flux", "phot.flux.density;stat.median"]
    assert (tmp_path / "catalog.fits").stat().st_size % 2880 == 0


def test_votable_is_valid_and_says_what_made_it(tmp_path: Path) -> None:
    write_single_file(write_catalog(tmp_path), "votable", PARTS * PART)
    table = votable.parse(tmp_path / "catalog.vot", verify="exception").get_first_table()
    assert [(info.name, info.value) for info in table.infos] == list(MADE)
    assert np.asarray(table.array["ra"].mask).nonzero()[0].tolist() == [3, 10, 17]


@pytest.mark.parametrize("format", FILES)
def test_identifiers_of_other_letters_are_escaped_and_integers_kept(tmp_path: Path, format: str) -> None:
    many = PARTS * PART
    write_single_file(write_catalog(tmp_path / "a", ids=[f"\xe9{i}" for i in range(many)]), format, many)
    assert list(Table.read(tmp_path / "a" / FILES[format])["object_id"]) == [f"\\xe9{i}" for i in range(many)]
    ids = np.arange(many) + 2**60
    write_single_file(write_catalog(tmp_path / "b", ids=ids), format, many)
    np.testing.assert_array_equal(Table.read(tmp_path / "b" / FILES[format])["object_id"], ids)


@pytest.mark.parametrize("format", FILES)
def test_every_type_of_number_and_its_nulls(tmp_path: Path, format: str) -> None:
    kinds = [pa.bool_(), pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.float16(), pa.float32()]
    fields = [pa.field(str(kind), kind, metadata={"unit": "", "description": "d", "ucd": ""}) for kind in kinds]
    values = {str(kind): pa.array([1, None, 0], pa.float64()).cast(pa.int8()).cast(kind) for kind in kinds}
    table = pa.table(values, schema=described(fields, {}))
    storage.write_bytes_atomic(f"{tmp_path}/catalog/part.parquet", part_content(table))
    check_single_file(format, table.schema, 3)
    write_single_file(str(tmp_path), format, 3)
    back = Table.read(tmp_path / FILES[format])
    for name in back.colnames:
        assert back[name].tolist() == [1, None, 0], name


def test_what_no_file_can_hold_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = catalog_schema(schema("log"), pa.int64())
    with pytest.raises(
        UserError, match=r"700,000,000 rows of 160 bytes are 112 GB, and catalog.fits may have 100 GB; take hats"
    ):
        check_single_file("fits", columns, 700_000_000)
    with pytest.raises(UserError, match=r"are 2 GB, and catalog.vot may have 2 GB"):
        check_single_file("votable", columns, 13_000_000)
    nested = pa.schema([pa.field("parts", pa.list_(pa.float64()))])
    with pytest.raises(UserError, match=r"columns: 'parts' is of type list<.*>, which FITS and VOTable lack; register it as"):
        check_single_file("votable", nested, 1)
    monkeypatch.setattr(single_file, "_MOST_COLUMNS", 19)
    with pytest.raises(UserError, match=r"fits allows 19 columns, and the catalogue has 20; take votable"):
        check_single_file("fits", columns, 1)


@pytest.mark.parametrize("format", FILES)
def test_no_galaxies(tmp_path: Path, format: str) -> None:
    table = pa.table({"a": pa.array([], pa.float64())}, schema=described([_A], {}))
    storage.write_bytes_atomic(f"{tmp_path}/catalog/part.parquet", part_content(table))
    write_single_file(str(tmp_path), format, 0)
    assert len(Table.read(tmp_path / FILES[format])) == 0


_A = pa.field("a", pa.float64(), metadata={"unit": "deg", "description": "d", "ucd": ""})
