import dataclasses
import io

import astropy.units as u
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import votable
from astropy.io.votable.ucd import check_ucd
from astropy.table import Table

from gampen_ray.catalog import parquet
from gampen_ray.catalog.parquet import catalog_schema, catalog_table, mixture_from_catalog, part_content
from gampen_ray.errors import UserError
from gampen_ray.inference.flags import Flag
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.summary import summarise
from tests.posterior.posterior_cases import mixture, schema


def write_part(path, table):
    path.write_bytes(part_content(table))


def build(m, store_mixture=True, **objects):
    n = len(m)
    ids = {"object_id": np.arange(n), "ra": np.linspace(0, 359, n), "dec": np.linspace(-90, 90, n), **objects}
    ids = {name: values for name, values in ids.items() if values is not None}
    return catalog_table(pa.table(ids), m, np.full(n, 0.6), np.zeros(n, dtype=int), store_mixture=store_mixture)


def test_columns_in_order():
    m = mixture("logit", "log")
    table = build(m)
    assert table.column_names == [
        *("object_id", "ra", "dec"),
        *summarise(m),
        *("crop_scale", "centre_offset", "flags", "mixture_mean", "mixture_scale_tril"),
    ]
    assert table.schema.field("mixture_mean").type == pa.list_(pa.float32(), 32 * 2)
    assert table.schema.field("mixture_scale_tril").type == pa.list_(pa.float32(), 32 * 3)
    assert build(m, store_mixture=False).column_names == table.column_names[:-2]


def test_schema_does_not_depend_on_the_batch():
    m = mixture("logit", "log")
    assert build(m).schema.equals(catalog_schema(m.targets, pa.int64(), 32), check_metadata=True)
    assert build(m[:3], store_mixture=False).schema.equals(catalog_schema(m.targets, pa.int64()), check_metadata=True)


def test_mixture_round_trip_through_parquet(tmp_path):
    m = mixture("logit", "log", "identity", num_galaxies=9, num_passes=5)
    write_part(tmp_path / "part.parquet", build(m))
    back = mixture_from_catalog(pq.read_table(tmp_path / "part.parquet").slice(2, 4), m.targets)
    assert np.array_equal(back.mean_NKD.numpy(), m.mean_NKD[2:6].numpy().astype(np.float32))
    assert np.array_equal(back.scale_tril_NKDD.numpy(), m.scale_tril_NKDD[2:6].numpy().astype(np.float32))


def test_summaries_are_those_before_rounding():
    m = mixture("logit", "log")
    table = build(m)
    for name, values in summarise(m).items():
        assert np.array_equal(table[name].to_numpy(), values)


@pytest.mark.parametrize("form", ["parquet", "parquet.votable"])
@pytest.mark.parametrize("kind", ["int64", "string"])
def test_astropy_reads_units_ucds_and_descriptions(tmp_path, kind, form):
    m = mixture("logit", "log", num_galaxies=6)
    ids = np.arange(6) if kind == "int64" else pa.array([f"J{i:04d}" for i in range(6)])
    write_part(tmp_path / "part.parquet", build(m, object_id=ids))
    table = Table.read(tmp_path / "part.parquet", format=form)
    assert (table["ra"].meta["ucd"], table["log_1_std"].meta["ucd"]) == ("pos.eq.ra;meta.main", "stat.error;phys.angSize")
    assert str(table["ra"].unit) == "deg"
    assert str(table["log_1_median"].unit) == "arcsec"
    assert table["logit_0_mean"].unit is None
    assert table["log_1_lo95"].description == "lower end of the equal-tailed 95.45 % credible interval of log_1"
    assert table["mixture_mean"].shape == (6, 64)
    assert table["object_id"][3] == (3 if kind == "int64" else "J0003")
    assert np.array_equal(table["log_1_mode"], m.mode()[:, 1])


def test_metadata_hold_a_valid_votable_of_all_columns_and_what_made_them():
    m, made = mixture("logit", "log", num_galaxies=6), (("version", "1.2"), ("bundle", "ab & <cd>"))
    objects = pa.table({"object_id": [f"J{i}" for i in range(6)]})
    table = catalog_table(objects, m, np.ones(6), np.zeros(6), store_mixture=True, provenance=made)
    content = part_content(table)
    metadata = pq.read_metadata(pa.BufferReader(content)).metadata
    assert metadata[b"IVOA.VOTable-Parquet.version"] == b"1.0"
    assert {name: metadata[f"gampen_ray.{name}".encode()].decode() for name, _ in made} == dict(made)
    head = votable.parse(io.BytesIO(metadata[b"IVOA.VOTable-Parquet.content"]), verify="exception").get_first_table()
    assert [(info.name, info.value) for info in head.infos] == list(made)
    assert [field.name for field in head.fields] == table.column_names
    assert {field.name: (field.datatype, field.arraysize) for field in head.fields if field.name in _KINDS} == _KINDS
    assert all(check_ucd(field.ucd, check_controlled_vocabulary=True) for field in head.fields)


_KINDS = {
    "object_id": ("char", "2*"),
    "flags": ("long", None),
    "log_1_mean": ("double", None),
    "mixture_mean": ("float", "64"),
}


def test_maggies_become_a_unit_that_others_know():
    targets = TargetSchema((dataclasses.replace(schema("log").targets[0], name="flux", unit="1e-12 mgy"),))
    fields = catalog_schema(targets, pa.int64())
    assert (fields.field("flux_mean").metadata[b"unit"], fields.field("flux_skew").metadata[b"unit"]) == (b"3.631 nJy", b"")
    assert fields.field("flux_mean").metadata[b"ucd"] == b"phot.flux.density;stat.mean"


def test_magnitudes_of_fluxes():
    m = mixture("log", "identity", num_galaxies=6)
    flux, other = m.targets.targets
    m = Mixture(m.mean_NKD, m.scale_tril_NKDD, TargetSchema((other, dataclasses.replace(flux, name="flux", unit="1e-12 mgy"))))
    extra = ("flux_mag", "flux_mag_lo68", "flux_mag_hi68")
    objects = pa.table({"object_id": range(6)})
    table = catalog_table(objects, m, np.ones(6), np.zeros(6), store_mixture=False, extra=extra)
    for magnitude, name in zip(extra, ("flux_median", "flux_hi68", "flux_lo68"), strict=True):
        expected = (table[name].to_numpy() * 3.631 * u.nJy).to_value(u.ABmag)
        # AB has its zero point at 3630.8 Jy, and the maggy at 3631 Jy.
        np.testing.assert_allclose(table[magnitude].to_numpy(), expected, atol=1e-4)
    assert table.schema.field("flux_mag").metadata[b"unit"] == b"mag"
    with pytest.raises(UserError, match="columns: 'identity_1_mag' is unknown"):
        catalog_schema(m.targets, pa.int64(), extra=("identity_1_mag",))


def test_magnitude_of_a_flux_that_may_be_negative_is_null():
    target = dataclasses.replace(schema("identity").targets[0], name="flux", unit="nJy", location=-10.0)
    m = mixture("identity", num_galaxies=6)
    m = Mixture(m.mean_NKD, m.scale_tril_NKDD, TargetSchema((target,)))
    table = catalog_table(
        pa.table({"object_id": range(6)}), m, np.ones(6), np.zeros(6), store_mixture=False, extra=("flux_mag",)
    )
    assert table["flux_mag"].null_count == 6


def test_unknown_positions_are_null():
    table = build(mixture("log"), ra=None, dec=None)
    assert table["ra"].null_count == table["dec"].null_count == 20


def test_narrow_integers_and_large_strings_become_the_two_id_types():
    m = mixture("log")
    assert build(m, object_id=np.arange(20, dtype=np.int32)).schema.field("object_id").type == pa.int64()
    ids = pa.array([str(i) for i in range(20)], pa.large_string())
    assert build(m, object_id=ids).schema.field("object_id").type == pa.string()


def test_no_galaxies():
    table = build(mixture("log")[:0])
    assert table.num_rows == 0
    assert len(mixture_from_catalog(table, schema("log"))) == 0


def test_flags_are_documented_in_the_file():
    description = catalog_schema(schema("log"), pa.int64()).field("flags").metadata[b"description"].decode()
    assert description == (
        "bit mask: 1 INPUT_PADDED, 2 PIXELS_FILLED, 4 CROP_AT_BOUND, 8 NEAR_TRAINING_EDGE, 16 EPISTEMIC_DOMINATES, "
        "32 UNUSUAL_IMAGE, 64 COARSE_PIXELS, 128 CONDITION_MISSING, 256 CONDITION_OUT_OF_RANGE, 512 SKY_OUT_OF_RANGE, "
        "1024 NOISE_OUT_OF_RANGE, 2048 BRIGHTNESS_OUT_OF_RANGE, 4096 SIZE_OUT_OF_RANGE, 8192 PIXELS_CONSTANT, "
        "16384 NOISE_CORRELATION_OUT_OF_RANGE, 32768 STRAY_LIGHT_OUT_OF_RANGE, 65536 OFF_CENTRE, 131072 PIXELS_ZERO, "
        "262144 CORE_SATURATED, 524288 RESAMPLED, 2097152 BLENDED"
    )
    assert Flag.INPUT_PADDED | Flag.PIXELS_FILLED == 3


def test_every_field_has_a_description():
    fields = catalog_schema(schema("log", "logit"), pa.string(), 4)
    assert all(field.metadata[b"description"] for field in fields)


def test_lengths_differ():
    m = mixture("log")
    with pytest.raises(ValueError, match="need one row per galaxy"):
        catalog_table(pa.table({"object_id": [1]}), m, np.ones(20), np.zeros(20), store_mixture=False)


READERS = {
    "pyarrow": pq.read_table,
    "pandas": pd.read_parquet,
    "pandas with Arrow types": lambda path: pd.read_parquet(path, dtype_backend="pyarrow"),
    "astropy": Table.read,
    "DuckDB to Arrow": lambda path: duckdb.sql(f"FROM '{path}'").to_arrow_table(),
    "DuckDB to pandas": lambda path: duckdb.sql(f"FROM '{path}'").df(),
    "DuckDB to NumPy": lambda path: duckdb.sql(f"FROM '{path}'").fetchnumpy(),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("num_galaxies", [0, 12])
def test_any_program_reads_the_mixture_back(tmp_path, reader, num_galaxies):
    m = mixture("logit", "log", "identity", num_galaxies=12)[:num_galaxies]
    write_part(tmp_path / "part.parquet", build(m))
    back = mixture_from_catalog(READERS[reader](tmp_path / "part.parquet"), m.targets)
    assert len(back) == num_galaxies
    if num_galaxies:
        assert np.array_equal(back.mean_NKD.numpy(), m.mean_NKD.numpy().astype(np.float32))
        np.testing.assert_allclose(back.quantile([0.1, 0.9]), m.quantile([0.1, 0.9]), rtol=1e-5)
        np.testing.assert_allclose(back.sample(5, seed=1), m.sample(5, seed=1), rtol=1e-5)
        np.testing.assert_allclose(back.log_prob(m.mean()), m.log_prob(m.mean()), rtol=1e-4)


def test_duckdb_sees_plain_types(tmp_path):
    m = mixture("log", num_galaxies=6)
    write_part(tmp_path / "part.parquet", build(m))
    types = dict(duckdb.sql(f"SELECT column_name, column_type FROM (DESCRIBE FROM '{tmp_path}/part.parquet')").fetchall())
    assert (types.pop("object_id"), types.pop("flags")) == ("BIGINT", "BIGINT")
    assert {types.pop("mixture_mean"), types.pop("mixture_scale_tril")} == {"FLOAT[]"}
    assert set(types.values()) == {"DOUBLE"}
    ((count, median),) = duckdb.sql(f"SELECT count(*), max(log_0_median) FROM '{tmp_path}/part.parquet'").fetchall()
    assert (count, median) == (6, m.quantile(0.5).max())


def test_size_of_a_galaxy_on_disk(tmp_path):
    m = mixture("logit", "log", "identity", num_galaxies=1000)
    write_part(tmp_path / "part.parquet", build(m))
    numbers = 4 * 32 * (3 + 6) + 8 * 52
    assert (tmp_path / "part.parquet").stat().st_size < 1000 * numbers


def test_rows_without_a_mixture():
    table = build(mixture("log")).to_pandas()
    table.loc[3, "mixture_mean"] = None
    with pytest.raises(ValueError, match="mixture_mean: 1 of 20 rows hold no mixture; leave these rows out"):
        mixture_from_catalog(table, schema("log"))


@pytest.mark.parametrize("kind", [lambda table: table, pa.Table.to_pandas, pa.Table.to_pydict])
def test_no_mixture_stored(kind):
    with pytest.raises(ValueError, match="the table has no column mixture_mean: run infer with --posterior mixture"):
        mixture_from_catalog(kind(build(mixture("log"), store_mixture=False)), schema("log"))


def test_mixture_of_another_number_of_targets():
    with pytest.raises(ValueError, match="not mixtures of 3 targets"):
        mixture_from_catalog(build(mixture("log", "logit")), schema("log", "logit", "identity"))


def test_columns_are_joined_by_name(monkeypatch):
    m = mixture("logit", "log")
    expected = build(m)
    order = expected.column_names[::-1]
    schema_ = pa.schema([expected.schema.field(name) for name in order])
    monkeypatch.setattr(parquet, "catalog_schema", lambda *_, **__: schema_)
    assert build(m).equals(expected.select(order))


def test_sizes_of_the_psf_are_told_apart_and_have_their_unit():
    names = ("psf_fwhm_arcsec", "psf_r50_arcsec", "psf_r80_arcsec", "psf_r95_arcsec", "airmass")
    found = catalog_schema(schema("log"), pa.int64(), conditions=names)
    told = [[found.field(name).metadata[key].decode() for key in (b"unit", b"description")] for name in names]
    assert [unit for unit, _ in told] == ["arcsec"] * 4 + [""]
    words = ("full width at half maximum", "half of the PSF's light", "80 % of", "95 % of", "condition")
    assert all(word in text and "given to the network" in text for word, (_, text) in zip(words, told, strict=True))
