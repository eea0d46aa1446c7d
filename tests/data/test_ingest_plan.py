"""The plan of an ingest and the work on one part of it, without Ray."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from gampen_ray import storage
from gampen_ray.commands.ingest import IngestConfig
from gampen_ray.config import ReaderConfig, SplitConfig
from gampen_ray.data import shards
from gampen_ray.data.ingest_plan import plan
from gampen_ray.data.packing import read_rows, write_rows
from gampen_ray.data.readers import READERS
from gampen_ray.errors import UserError
from tests.data.test_readers import NpyReader

SIZE = 8
NO_VALUE = "NaN, infinite, 1e20 or more, masked, a sentinel such as -999, or a border of one value"


def _cutout(path: Path, seed: int = 0, shape: tuple[int, ...] = (SIZE, SIZE)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.PrimaryHDU(np.random.default_rng(seed).normal(size=shape).astype(np.float32)).writeto(path)
    return path


def _config(tmp_path: Path, **changes: object) -> IngestConfig:
    values = {"images": str(tmp_path / "images"), "output": str(tmp_path / "out"), "cutout_size": SIZE}
    return IngestConfig(**values | {"reader": ReaderConfig(bands=("r",))} | changes)


def _ingested(config: IngestConfig, per_part: int = 1000) -> tuple[dict[str, int], dict[object, dict], list[tuple[str, str]]]:
    """Return counts, the shards' rows by id, and the quarantine's (id, reason)."""
    rows, info = plan(config)
    counts: dict[str, int] = {}
    for part, start in enumerate(range(0, len(rows), per_part)):
        read = read_rows(rows.slice(start, per_part), config.reader, info)
        for key, count in write_rows(read, part, output=config.output, info=info).items():
            counts[key] = counts.get(key, 0) + count
    good, bad = {}, []
    for uri in storage.list_files(config.output, ".parquet"):
        if "/quarantine/" in uri:
            bad += [(row["object_id"], row["reason"]) for row in pq.read_table(uri).to_pylist()]
        else:
            table = shards.read_shard(uri)
            pixels = shards.images(table)
            for index, row in enumerate(table.drop_columns("image").to_pylist()):
                folder = uri.removeprefix(config.output).split("/")[1]
                good[row["object_id"]] = row | {"image": pixels[index], "folder": folder}
    assert counts.get("quarantine", 0) == len(bad)
    assert sum(counts.values()) == len(rows) == len(good) + len(bad)
    return counts, good, bad


def test_files_alone(tmp_path: Path) -> None:
    pixels = fits.getdata(_cutout(tmp_path / "images" / "G1.fits", 1))
    _cutout(tmp_path / "images" / "sub" / "G2.fits.gz", 2, (5, 11))
    _cutout(tmp_path / "images" / "G1mask.fits", 3)
    (tmp_path / "images" / "notes.txt").write_text("not a cutout")
    counts, good, _ = _ingested(_config(tmp_path))
    assert counts == {"all": 2, "quarantine": 0}
    assert sorted(good) == ["G1", "G2"]
    np.testing.assert_array_equal(good["G1"]["image"][0], pixels)
    assert np.isnan(good["G1"]["ra"])
    assert _ingested(_config(tmp_path, pattern="G?.fits*", output=str(tmp_path / "b")))[0]["all"] == 2
    assert _ingested(_config(tmp_path, pattern="sub/*", output=str(tmp_path / "c")))[0]["all"] == 1


def test_each_broken_file_lands_in_quarantine_with_its_reason(tmp_path: Path) -> None:
    images = tmp_path / "images"
    _cutout(images / "good.fits")
    _cutout(images / "sub" / "good.fits", 1)
    _cutout(images / "cube.fits", shape=(3, SIZE, SIZE))
    truncated = _cutout(images / "truncated.fits", shape=(60, 60))
    truncated.write_bytes(truncated.read_bytes()[:6000])
    (images / "text.fits").write_text("This is no FITS file.\n")
    (images / "empty.fits").touch()
    fits.PrimaryHDU(np.full((SIZE, SIZE), np.nan)).writeto(images / "nan.fits")
    fits.PrimaryHDU(np.zeros((SIZE, SIZE))).writeto(images / "zero.fits")
    _, good, bad = _ingested(_config(tmp_path))
    assert list(good) == ["good"]
    assert dict(bad) == {
        "cube": "the image is 3-dimensional with shape (3, 8, 8), not a two-dimensional image",
        "empty": "the file is empty (0 bytes)",
        "good": "duplicate object_id: an earlier row has it",
        "nan": f"all pixels are without a value: {NO_VALUE}",
        "text": "not a file of a known format (fits, numpy, picture): it begins with b'This is no FITS file'",
        "truncated": "the FITS file is truncated: 14,400 bytes of pixels declared, 3,120 found",
        "zero": "all pixels have the same value 0",
    }


def test_the_reason_is_given_where_no_file_can_be_read(tmp_path: Path) -> None:
    _cutout(tmp_path / "images" / "cube.fits", shape=(3, SIZE, SIZE))
    with pytest.raises(UserError, match=r"none of the files looked at can be read; .*/cube\.fits: the image is 3-dimensional"):
        plan(_config(tmp_path, cutout_size=0))


def _catalog(tmp_path: Path, header: str, rows: list[str], num_files: int = 6) -> str:
    for index in range(num_files):
        _cutout(tmp_path / "images" / f"f{index}.fits", index)
    (tmp_path / "c.csv").write_text("\n".join([header, *rows]) + "\n")
    return str(tmp_path / "c.csv")


def test_catalogue_with_targets(tmp_path: Path) -> None:
    first = 587722984439545906
    rows = [f"{first + index},f{index}.fits,{150 + index},{2 + index},{index + 1}.5,note{index}" for index in range(6)]
    catalog = _catalog(tmp_path, "objID,file_name,RA,Dec,flux,note", rows)
    split = SplitConfig(train=0.4, val=0.3)
    config = _config(
        tmp_path,
        catalog=catalog,
        id_column="objID",
        targets=("flux",),
        reader=ReaderConfig(zero_point_mag=22.5),
        flux_unit="nanomaggy",
        split=split,
    )
    counts, good, bad = _ingested(config)
    assert not bad
    assert set(counts) == {"train", "val", "test", "quarantine"}
    assert {row["folder"] for row in good.values()} <= {"split=train", "split=val", "split=test"}
    row = good[first + 2]
    assert (row["ra"], row["dec"], row["flux"], row["note"], row["file_name"]) == (152.0, 4.0, 3.5, "note2", "f2.fits")
    assert row["magnitude"] == pytest.approx(22.5 - 2.5 * np.log10(3.5))
    assert plan(config)[1].target_units == {"flux": "nanomaggy"}
    asked = dataclasses.replace(config, targets=("flux", "magnitude"))
    assert plan(asked)[1].target_units == {"flux": "nanomaggy", "magnitude": "mag"}


def test_every_catalogue_fault_has_its_reason(tmp_path: Path) -> None:
    rows = [
        "a,f0.fits,1.0,0.5",
        "a,f1.fits,1.0,0.5",
        ",f2.fits,1.0,0.5",
        "c,,1.0,0.5",
        "d,absent.fits,1.0,0.5",
        "e,f3.fits,,0.5",
        "f,f4.fits,-1.0,0.5",
        "g,f5.fits,1.0,abc",
        "h,folder.fits,1.0,0.5",
    ]
    (tmp_path / "images" / "folder.fits").mkdir(parents=True)
    config = _config(
        tmp_path,
        catalog=_catalog(tmp_path, "object_id,file_name,flux,bulge_to_total", rows),
        targets=("flux", "bulge_to_total", "magnitude"),
        reader=ReaderConfig(zero_point_mag=25.0),
    )
    _, good, bad = _ingested(config, per_part=4)
    assert list(good) == ["a"]
    assert sorted(bad) == [
        ("", "object_id is missing"),
        ("a", "duplicate object_id: an earlier row has it"),
        ("c", "file_name is missing"),
        ("d", "there is no such file"),
        ("e", "target flux is missing"),
        ("f", "target flux is -1: it has no magnitude"),
        ("g", "target bulge_to_total is 'abc', not a finite number"),
        ("h", "it is a folder"),
    ]


def test_a_zero_point_quarantines_no_galaxy_without_a_magnitude(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path, "object_id,file_name,flux", ["1,f0.fits,-1.0", "2,f1.fits,0.0", "3,f2.fits,100.0"])
    config = _config(tmp_path, catalog=catalog, targets=("flux",), reader=ReaderConfig(zero_point_mag=25.0))
    _, good, bad = _ingested(config)
    assert not bad
    assert [good[key]["flux"] for key in (1, 2, 3)] == [-1, 0, 100]
    assert [good[key]["magnitude"] for key in (1, 2, 3)] == pytest.approx([np.nan, np.nan, 20], nan_ok=True)


@pytest.mark.parametrize(("column", "expected"), [("object_id", [7, 8]), ("name", ["f0", "f1"])])
def test_gampen_folder_is_found(tmp_path: Path, column: str, expected: list) -> None:
    for index in range(2):
        _cutout(tmp_path / "images" / "cutouts" / f"f{index}.fits", index)
    (tmp_path / "images" / "info.csv").write_text(f"{column},file_name,bt\n7,f0.fits,0.1\n8,f1.fits,0.2\n")
    _, good, _ = _ingested(_config(tmp_path, targets=("bt",)))
    assert sorted(good) == expected
    assert [good[key]["bt"] for key in expected] == [0.1, 0.2]


def test_position_comes_from_the_header_where_the_catalogue_gives_none(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path, "object_id,file_name,ra,dec", ["1,w.fits,,", "2,f0.fits,3.0,4.0"], 1)
    header = fits.Header(
        {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0, "CRPIX1": 4.5, "CRPIX2": 4.5}
    )
    header.update({"CDELT1": -1e-4, "CDELT2": 1e-4})
    fits.PrimaryHDU(np.diag(np.arange(SIZE, dtype=np.float32)), header).writeto(tmp_path / "images" / "w.fits")
    _, good, _ = _ingested(_config(tmp_path, catalog=catalog, reader=ReaderConfig(pixel_scale_arcsec=0.36)))
    assert (good[1]["ra"], good[1]["dec"]) == (pytest.approx(150.0), pytest.approx(2.0))
    assert (good[2]["ra"], good[2]["dec"]) == (3.0, 4.0)


def test_galaxies_do_not_depend_on_the_parts(tmp_path: Path) -> None:
    rows = [f"{index},f{index}.fits,{index + 1}.5" for index in range(6)]
    config = _config(tmp_path, catalog=_catalog(tmp_path, "object_id,file_name,flux", rows), targets=("flux",))
    other = dataclasses.replace(config, output=str(tmp_path / "other"), galaxies_per_shard=2)
    _, good, _ = _ingested(config)
    _, again, _ = _ingested(other, per_part=2)
    assert plan(config)[1].fingerprint == plan(other)[1].fingerprint
    assert plan(config)[1].fingerprint != plan(dataclasses.replace(config, cutout_size=9))[1].fingerprint
    assert good.keys() == again.keys()
    for key, row in good.items():
        np.testing.assert_array_equal(row.pop("image"), again[key].pop("image"))
        assert str(row) == str(again[key])


def test_files_of_a_users_format_are_ingested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "npy", NpyReader)
    # The process that reads files imports it by its name.
    imports = "from gampen_ray.data.readers import READERS\nfrom tests.data.test_ingest_plan import NpyReader\n"
    (tmp_path / "npy_plugin.py").write_text(f"{imports}READERS['npy'] = NpyReader")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GAMPEN_RAY_PLUGINS", "npy_plugin")
    pixels = np.random.default_rng(0).normal(size=(2, 1, SIZE, SIZE)).astype(np.float32)
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "a.npy", pixels[0])
    _cutout(tmp_path / "images" / "b.fits")
    (tmp_path / "c.csv").write_text("object_id,file_name\na,a.npy\nb,b.fits\n")
    config = _config(tmp_path, catalog=str(tmp_path / "c.csv"))
    _, good, _ = _ingested(config)
    assert sorted(good) == ["a", "b"]
    np.testing.assert_array_equal(good["a"]["image"], pixels[0])
    npy = dataclasses.replace(config, reader=ReaderConfig(format="npy"), output=str(tmp_path / "npy"))
    _, good, bad = _ingested(npy)
    assert list(good) == ["a"]
    assert bad == [("b", "not a NPY file: it begins with b'SIMPLE  =           '")]


def test_replaced_pixels_make_another_dataset_and_a_moved_folder_does_not(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path, "object_id,file_name", ["0,f0.fits", "1,f1.fits", "2,absent.fits", "3,f1.fits/x"])
    for config in (_config(tmp_path, catalog=catalog), _config(tmp_path)):
        before = plan(config)[1].fingerprint
        assert plan(config)[1].fingerprint == before
        (tmp_path / "images").rename(tmp_path / "moved")
        moved = dataclasses.replace(config, images=str(tmp_path / "moved"))
        assert plan(moved)[1].fingerprint == before
        (tmp_path / "moved").rename(tmp_path / "images")
        (tmp_path / "images" / "f1.fits").unlink()
        _cutout(tmp_path / "images" / "f1.fits", 7)
        assert plan(config)[1].fingerprint != before


def test_files_of_one_name_in_two_folders_are_distinguished(tmp_path: Path) -> None:
    for index in range(2):
        _cutout(tmp_path / "images" / str(index) / "f.fits", index)
    rows = ["a,0/f.fits", "b,1/f.fits"]
    before = plan(_config(tmp_path, catalog=_catalog(tmp_path, "object_id,file_name", rows, 0)))[1].fingerprint
    rows = ["a,1/f.fits", "b,0/f.fits"]
    assert plan(_config(tmp_path, catalog=_catalog(tmp_path, "object_id,file_name", rows, 0)))[1].fingerprint != before


def test_hidden_folders_are_not_ingested(tmp_path: Path) -> None:
    _cutout(tmp_path / "images" / "a.fits")
    _cutout(tmp_path / "images" / ".ipynb_checkpoints" / "a-checkpoint.fits")
    assert list(_ingested(_config(tmp_path))[1]) == ["a"]


def test_a_catalogue_cannot_name_files_outside_the_folder(tmp_path: Path) -> None:
    outside, images = _cutout(tmp_path / "outside.fits"), tmp_path / "images"
    names = ["../outside.fits", str(outside), "s3://bucket/f0.fits", "x/../../outside.fits", "..", "f" * 300, "f\0.fits"]
    rows = [f"{index},{name}" for index, name in enumerate(names)]
    allowed = ["x/../f0.fits", "../images/f1.fits", str(images / "f2.fits"), "./f3.fits", "s3://bucket/../../f4.fits"]
    (images / "s3:" / "bucket").mkdir(parents=True)
    rows += [f"{len(names) + index},{name}" for index, name in enumerate(allowed)]
    _, good, bad = _ingested(_config(tmp_path, catalog=_catalog(tmp_path, "object_id,file_name", rows)))
    reasons = {int(key): reason for key, reason in bad}
    assert sorted(good) == [7, 8, 9, 10]
    assert reasons.keys() == {0, 1, 2, 3, 4, 5, 6, 11}
    for index, name in enumerate(names):
        assert reasons[index] == f"file_name is {name[:100]!r}: no file below {images}"


def test_packing_again_leaves_nothing_behind(tmp_path: Path) -> None:
    rows = [f"{index},f{index}.fits,1.5" for index in range(6)]
    config = _config(tmp_path, catalog=_catalog(tmp_path, "object_id,file_name,flux", rows), targets=("flux",))
    _ingested(config)
    for index in range(6):
        (tmp_path / "images" / f"f{index}.fits").write_bytes(b"")
    counts, good, _ = _ingested(config)
    assert counts["quarantine"] == 6
    assert not good


def test_splits_of_the_tables(tmp_path: Path) -> None:
    for index in range(5):
        _cutout(tmp_path / "images" / "cutouts" / f"f{index}.fits", index)

    def table(name: str, stems: str) -> None:
        rows = [f"f{stem}.fits,0.{stem}" for stem in stems]
        (tmp_path / "images" / name).write_text("\n".join(["file_name,bt", *rows, ""]))

    def tables(train: str, devel: str, test: str) -> None:
        for part, stems in (("train", train), ("devel", devel), ("test", test)):
            table(f"splits/mine-{part}.csv", stems)

    table("info.csv", "01234")
    (tmp_path / "images" / "splits").mkdir()
    tables("31", "0", "4")
    config = _config(tmp_path, targets=("bt",), split_slug="mine")
    counts, good, bad = _ingested(config)
    assert counts == {"train": 2, "val": 1, "test": 1, "quarantine": 1}
    assert {key: row["folder"] for key, row in good.items()} == {
        "f0": "split=val",
        "f1": "split=train",
        "f3": "split=train",
        "f4": "split=test",
    }
    assert bad == [("f2", "in no table of the split: mine")]
    before = plan(config)[1].fingerprint
    tables("13", "0", "4")
    assert plan(config)[1].fingerprint == before
    tables("30", "1", "4")
    assert plan(config)[1].fingerprint != before


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path, "object_id,file_name,bt", ["1,f0.fits,0.5"])
    with pytest.raises(UserError, match=r"split_slug: mine: .*splits has no such split; there is none"):
        plan(_config(tmp_path, catalog=catalog, targets=("bt",), split_slug="mine"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("mass",)}, r"targets: catalog .*c.csv has no column 'mass'; its columns: object_id, file_name, flux"),
        ({"id_column": "name"}, "id_column: catalog .* has no column 'name'"),
        ({"file_column": "path"}, "file_column: catalog .* has no column 'path'"),
        ({"id_column": "flux"}, "column 'object_id' is reserved in shards"),
        ({"catalog": ""}, "images: none of the 6 files below .* matches the pattern 'G"),
        ({"catalog": "", "targets": ("flux",)}, "targets: flux: there is no catalogue"),
        ({"catalog": "", "images": "absent"}, "images: no folder absent"),
        ({"images": "absent"}, "images: no folder absent"),
        ({"targets": ("object_id",)}, "targets: object_id: give each target once, and no id, file or image column"),
        ({"targets": ("flux", "flux")}, "targets: flux, flux: give each target once, and no id, file or image column"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    catalog = _catalog(tmp_path, "object_id,file_name,flux", ["1,f0.fits,1.0"])
    with pytest.raises(UserError, match=message):
        plan(_config(tmp_path, **{"catalog": catalog, "pattern": "G*.fits"} | changes))


def test_ids_that_a_spreadsheet_rounded_are_refused(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path, "object_id,file_name", ["3.90E+16,f0.fits", "3.90E+16,f1.fits"])
    with pytest.raises(UserError, match=r"id_column: the identifier '3\.90E\+16' has been rounded by a spreadsheet"):
        plan(_config(tmp_path, catalog=catalog))


def test_files_of_several_bands_are_not_a_galaxy_each(tmp_path: Path) -> None:
    for index, name in enumerate(("G1_g", "G1_r", "G2_g", "G2_r")):
        _cutout(tmp_path / "images" / f"{name}.fits", index)
    with pytest.raises(
        UserError, match=r"^file_template: .* are one a band by their names, of g, r; give '{object_id}_{band}\.fits'"
    ):
        plan(_config(tmp_path))
    assert len(plan(_config(tmp_path, pattern="*_r.fits"))[0]) == 2
    rows, info = plan(_config(tmp_path, file_template="{object_id}_{band}.fits"))
    assert (rows.column("object_id").to_pylist(), info.bands) == (["G1", "G2"], ("r",))
