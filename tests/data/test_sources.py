import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from gampen_ray.config import CatalogConfig, ReaderConfig
from gampen_ray.data import shards
from gampen_ray.data.sources import layout_identity, open_source, shard_units
from gampen_ray.errors import UserError
from tests.networks import SIZE, dataset, galaxies


@pytest.mark.parametrize("unit_rows", [1, 256, 300, 512, 10**9])
def test_units_cover_every_row_group_once(unit_rows: int) -> None:
    groups = [256, 256, 88]
    units = shard_units("part.parquet", 7, groups, unit_rows)
    assert [group for unit in units for group in range(unit.start, unit.stop)] == list(range(3))
    assert [unit.num_rows for unit in units] == [sum(groups[unit.start : unit.stop]) for unit in units]
    assert len({unit.name for unit in units}) == len(units)
    assert all(unit.num_rows <= unit_rows or unit.stop - unit.start == 1 for unit in units)


@pytest.mark.parametrize("piece", [1, 100, 256, 1000])
def test_shards_are_read_in_pieces_of_any_size(piece: int, tmp_path: Path) -> None:
    columns = galaxies(600)
    columns["image"][300] = np.nan
    info = shards.DatasetInfo(bands=("r",), cutout_size=SIZE, num_rows={shards.ALL: 600})
    shards.write_shard(shards.part_uri(str(tmp_path), shards.ALL, 0), columns | {"side_pixels": np.arange(600) % SIZE}, info)
    shards.write_dataset_info(str(tmp_path), info)
    source, units = open_source(str(tmp_path), split="", bands=("r",), size=SIZE)
    assert [unit.num_rows for unit in units] == [256, 256, 88]
    pieces = [rows for unit in units for rows, _ in source.read(unit, piece)]
    assert max(len(rows["object_id"]) for rows in pieces) == min(piece, 256)
    read = {name: np.concatenate([rows[name] for rows in pieces]) for name in pieces[0]}
    assert np.array_equal(read["object_id"], columns["object_id"])
    assert np.array_equal(read["side_pixels"], np.arange(600) % SIZE)
    assert not read["pixels_filled"].any()
    assert np.flatnonzero(read["reason"] != "").tolist() == [300]
    columns["image"][300] = 0
    assert np.array_equal(read["image"], columns["image"])
    assert sum(count for unit in units for _, count in source.read(unit, piece)) > 600 * SIZE**2 * 2


def test_bytes_are_those_of_the_columns_that_are_read(tmp_path: Path) -> None:
    read = []
    for name, extra in (
        ("plain", {}),
        ("wide", {"noise": np.random.default_rng(0).normal(size=600), "text": ["x" * 99] * 600}),
    ):
        info = shards.DatasetInfo(bands=("r",), cutout_size=SIZE, num_rows={shards.ALL: 600})
        uri = shards.part_uri(str(tmp_path / name), shards.ALL, 0)
        shards.write_shard(uri, galaxies(600) | extra, info)
        shards.write_dataset_info(str(tmp_path / name), info)
        source, units = open_source(str(tmp_path / name), split="", bands=("r",), size=SIZE)
        read.append(sum(count for unit in units for _, count in source.read(unit, 100)))
    assert read[0] == pytest.approx(read[1], rel=1e-3)
    metadata = pq.read_metadata(uri)
    stored = sum(
        metadata.row_group(group).column(i).total_compressed_size
        for group in range(metadata.num_row_groups)
        for i in range(metadata.num_columns)
        if metadata.row_group(group).column(i).path_in_schema in ("object_id", "image.list.element")
    )
    assert read[1] == pytest.approx(stored, rel=1e-3)


def test_a_refused_unit_has_the_same_rows_without_images(tmp_path: Path) -> None:
    dataset(str(tmp_path / "data"), {shards.ALL: 130}, rows_per_shard=70)
    _folder(tmp_path / "cutouts")
    for folder in ("data", "cutouts"):
        source, units = open_source(str(tmp_path / folder), split="", bands=("r",), size=SIZE)
        for unit in units:
            refusing = dataclasses.replace(unit, refused=dict.fromkeys(range(unit.num_rows), "it kills"))
            for (rows, _), (refused, _) in zip(source.read(unit, 50), source.read(refusing, 50), strict=True):
                assert refused.keys() == rows.keys()
                assert refused["object_id"].tolist() == rows["object_id"].tolist()
                assert refused["source"].tolist() == rows["source"].tolist()
                assert set(refused["reason"].tolist()) == {"it kills"}
                assert refused["image"].shape == rows["image"].shape
                assert not refused["image"].any()
            (whole, _), (partly, _) = (
                next(source.read(one, 70)) for one in (unit, dataclasses.replace(unit, refused={1: "it kills"}))
            )
            assert np.flatnonzero(partly["reason"] == "it kills").tolist() == [1]
            others = np.arange(len(whole["reason"])) != 1
            np.testing.assert_array_equal(partly["image"][others], whole["image"][others])
            assert not partly["image"][1].any()


def test_layout_is_that_of_rows_in_files(tmp_path: Path) -> None:
    layouts = []
    for name, per_shard in (("a", 60), ("b", 50), ("c", 60)):
        data = dataset(str(tmp_path / name), {shards.ALL: 150}, rows_per_shard=per_shard)
        source, units = open_source(data, split="", bands=("r",), size=SIZE)
        assert source.info.fingerprint == "f"
        layouts.append(layout_identity(data, units))
    assert layouts[0] == layouts[2] != layouts[1]


def test_ids_of_two_kinds_are_refused(tmp_path: Path) -> None:
    data = dataset(str(tmp_path), {shards.ALL: 20}, rows_per_shard=10)
    columns = galaxies(10) | {"object_id": np.array([f"J{i}" for i in range(10)])}
    shards.write_shard(shards.part_uri(data, shards.ALL, 1), columns, shards.read_dataset_info(data))
    with pytest.raises(UserError, match=r"part-000001.parquet: column object_id is string, but int64 in .*part-000000.parquet"):
        open_source(data, split="", bands=("r",), size=SIZE)


def _folder(root: Path, count: int = 5) -> np.ndarray:
    """Write cutouts one pixel larger than a network's input, a broken one among them; return their pixels."""
    pixels = np.random.default_rng(0).normal(size=(count, SIZE + 1, SIZE + 1)).astype(np.float32)
    root.mkdir(parents=True)
    for i, image in enumerate(pixels):
        fits.PrimaryHDU(image).writeto(root / f"g{i}.fits")
    (root / "broken.fits").write_bytes(b"SIMPLE")
    return pixels


def test_fits_files_are_read_with_the_bands_and_size_of_the_model(tmp_path: Path) -> None:
    pixels = _folder(tmp_path / "cutouts")
    source, units = open_source(str(tmp_path / "cutouts"), split="", bands=("r",), size=SIZE)
    assert [(unit.name, unit.num_rows) for unit in units] == [("part-000000000.parquet", 6)]
    ((rows, num_bytes),) = source.read(units[0], 100)
    assert num_bytes == sum(path.stat().st_size for path in (tmp_path / "cutouts").iterdir())
    assert rows["object_id"].tolist() == ["broken", "g0", "g1", "g2", "g3", "g4"]
    assert [reason != "" for reason in rows["reason"]] == [True] + [False] * 5
    assert np.array_equal(rows["image"][1:, 0], pixels[:, :SIZE, :SIZE])
    assert not rows["image"][0].any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cutouts"]


def test_a_gampen_folder_is_read_by_its_table(tmp_path: Path) -> None:
    _folder(tmp_path / "cutouts")
    rows = ["object_id,file_name,ra,dec", "7,g1.fits,10.5,0", ",g2.fits,11,0", "9,gone.fits,12,0"]
    (tmp_path / "info.csv").write_text("\n".join(rows) + "\n")
    source, units = open_source(str(tmp_path), split="", bands=("r",), size=SIZE)
    ((read, _),) = source.read(units[0], 100)
    assert read["object_id"].tolist() == [7, 0, 9]
    assert [text[:22] for text in read["reason"]] == ["", "object_id is missing", "there is no such file"]
    assert read["ra"].tolist() == [10.5, 11, 12]


@pytest.mark.parametrize(
    ("files", "split", "match"),
    [
        (["g.fits"], "test", "split: test, but .* holds cutouts without splits"),
        (
            ["part-0.parquet", "run.json"],
            "",
            r"holds neither a finished dataset \(dataset\.json\) nor files that match the pattern '\*\.fits\*'",
        ),
        ([], "", r"holds neither a finished dataset \(dataset\.json\) nor files that match the pattern '\*\.fits\*'"),
    ],
)
def test_an_invalid_source_is_refused(tmp_path: Path, files: list[str], split: str, match: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=match):
        open_source(str(tmp_path), split=split, bands=("r",), size=SIZE)


def test_the_reader_applies_to_folders_of_fits_files_only(tmp_path: Path) -> None:
    _folder(tmp_path / "cutouts")
    reader = ReaderConfig(zero_point_mag=27.0, pixel_scale_arcsec=0.2, nan_policy="zero")
    source, _ = open_source(str(tmp_path / "cutouts"), split="", catalog=CatalogConfig(reader=reader), bands=("r",), size=SIZE)
    assert (source.info.zero_point_mag, source.info.pixel_scale_arcsec, source.info.bands) == (27.0, 0.2, ("r",))
    with pytest.raises(UserError, match=r"reader\.format: 'tiff' is unknown; give one of auto, picture, numpy, fits, hdf5"):
        open_source(
            str(tmp_path / "cutouts"),
            split="",
            catalog=CatalogConfig(reader=ReaderConfig(format="tiff")),
            bands=("r",),
            size=SIZE,
        )
    shards.write_dataset_info(str(tmp_path), shards.DatasetInfo(bands=("r",), cutout_size=SIZE))
    with pytest.raises(
        UserError, match=r"reader: .* holds shards, whose images are read as `ingest` stored them; leave reader"
    ):
        open_source(str(tmp_path), split="", catalog=CatalogConfig(reader=reader), bands=("r",), size=SIZE)
    with pytest.raises(UserError, match=r"pattern: .* holds shards, .* leave pattern out"):
        open_source(str(tmp_path), split="", bands=("r",), size=SIZE, catalog=CatalogConfig(pattern="*.npy"))


def test_a_folder_with_a_replaced_file_is_another_input(tmp_path: Path) -> None:
    _folder(tmp_path / "cutouts")
    shared = {"split": "", "bands": ("r",), "size": SIZE}
    before = open_source(str(tmp_path / "cutouts"), **shared)[0].info.fingerprint
    assert open_source(str(tmp_path / "cutouts"), **shared)[0].info.fingerprint == before
    (tmp_path / "cutouts" / "g1.fits").write_bytes((tmp_path / "cutouts" / "g2.fits").read_bytes())
    assert open_source(str(tmp_path / "cutouts"), **shared)[0].info.fingerprint != before


def test_a_catalogue_gives_files_identifiers_positions_and_conditions(tmp_path: Path) -> None:
    pixels = _folder(tmp_path / "cutouts")
    catalog = CatalogConfig(
        catalog=str(tmp_path / "c.csv"),
        id_column="name",
        file_template="cutouts/g{file}.fits",
        ra_column="RAJ2000",
        dec_column="d",
    )
    lines = ["name,file,RAJ2000,d,psf_fwhm_arcsec", *(f"{i:03d},{i},{i}:00:00,-{i}:30:00,{0.6 + i / 10}" for i in (2, 0, 4))]
    (tmp_path / "c.csv").write_text("\n".join(lines))
    opened = {"split": "", "bands": ("r",), "size": SIZE, "conditions": ("psf_fwhm_arcsec",)}
    source, (unit,) = open_source(str(tmp_path), catalog=catalog, **opened)
    ((read, _),) = source.read(unit, 100)
    assert read["object_id"].tolist() == ["002", "000", "004"]
    assert read["ra"].tolist() == pytest.approx([30, 0, 60])
    assert read["dec"].tolist() == [-2.5, -0.5, -4.5]
    assert read["psf_fwhm_arcsec"].tolist() == [0.8, 0.6, 1.0]
    assert np.array_equal(read["image"][:, 0], pixels[[2, 0, 4], :SIZE, :SIZE])
    # Another width of the PSF makes another job.
    (tmp_path / "c.csv").write_text("\n".join(lines).replace("0.8", "0.9"))
    assert open_source(str(tmp_path), catalog=catalog, **opened)[0].info.fingerprint != source.info.fingerprint
    with pytest.raises(UserError, match=r"catalog: .* holds shards, .* leave catalog out"):
        open_source(dataset(str(tmp_path / "d"), {shards.ALL: 5}, rows_per_shard=5), catalog=catalog, **opened)
