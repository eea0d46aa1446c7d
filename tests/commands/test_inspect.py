"""`inspect` on folders and files of many layouts: the command that it prints ingests them as printed."""

import io
import json
import re
import shlex
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table

from gampen_ray import cli
from gampen_ray.data.ingest_plan import plan
from gampen_ray.data.packing import read_rows

COUNT, SIZE = 8, 16
REAL = Path(__file__).parents[3] / "shared" / "data"
IDS = [587722984439545906 + number for number in range(COUNT)]
PIXELS = np.random.default_rng(5).normal(size=(COUNT, 3, SIZE, SIZE)).astype(np.float32)
_WCS = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -0.2 / 3600, "CDELT2": 0.2 / 3600, "CRVAL1": 10.0, "CRVAL2": 5.0}
HEADER = fits.Header({"MAGZERO": 30.0, "FILTER": "r", "BUNIT": "adu"} | _WCS)


def _cutout(path: Path, image: np.ndarray, header: fits.Header | None = HEADER) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.PrimaryHDU(image, header).writeto(path)


def _table() -> Table:
    return Table({"objID": IDS, "ra": np.linspace(10, 11, COUNT), "mag": np.linspace(18, 19, COUNT)})


def files_alone(root: Path) -> None:
    for name, image in zip(IDS, PIXELS, strict=True):
        _cutout(root / f"{name}.fits.gz", image[0])


def gampens_folder(root: Path) -> None:
    for name, image in zip(IDS, PIXELS, strict=True):
        _cutout(root / "cutouts" / f"{name}.fits", image[0])
    (root / "info.csv").write_text("file_name,flux\n" + "".join(f"{name}.fits,1\n" for name in IDS))


def a_catalogue_of_names(root: Path) -> None:
    for name, image in zip(IDS, PIXELS, strict=True):
        _cutout(root / "sub" / f"x{name}.fits", image[0])
    table = _table()
    table["image_path"] = [f"sub/x{name}.fits" for name in IDS]
    table.write(root / "table.ecsv", format="ascii.ecsv")


def a_template(root: Path) -> None:
    for number, (name, image) in enumerate(zip(IDS, PIXELS, strict=True)):
        _cutout(root / f"{name}-cutout-HSC-I-{number}-pdr2.fits", image[0])
    _table().write(root / "table.vot", format="votable")


def a_file_a_band(root: Path) -> None:
    for name, image in zip(IDS, PIXELS, strict=True):
        for band, plane in zip("gri", image, strict=True):
            _cutout(root / f"{name}_{band}.fits", plane, None)


def hdus_a_band(root: Path) -> None:
    root.mkdir(exist_ok=True)
    for name, image in zip(IDS, PIXELS, strict=True):
        named = [
            fits.ImageHDU(plane, name=f"FLUX_{band}") for band, plane in zip(("VIS", "NIR_Y", "NIR_J"), image, strict=True)
        ]
        weights = [fits.ImageHDU(np.ones_like(image[0]), name="MERRMS_VIS")]
        fits.HDUList([fits.PrimaryHDU(), *named, *weights]).writeto(root / f"{name}.fits")


def cubes(root: Path) -> None:
    for name, image in zip(IDS, PIXELS, strict=True):
        _cutout(root / f"{name}.fits", image, None)


def compressed(root: Path) -> None:
    root.mkdir(exist_ok=True)
    for name, image in zip(IDS, PIXELS, strict=True):
        hdus = [fits.PrimaryHDU(), fits.CompImageHDU(image[0], HEADER, compression_type="GZIP_2", quantize_level=0)]
        fits.HDUList(hdus).writeto(root / f"{name}.fits.fz")


def numpy_files(root: Path) -> None:
    root.mkdir(exist_ok=True)
    for name, image in zip(IDS, PIXELS, strict=True):
        np.save(root / f"{name}.npy", np.moveaxis(image, 0, 2))


def a_numpy_stack(root: Path) -> None:
    root.mkdir(exist_ok=True)
    np.savez(root / "stack.npz", images=PIXELS, object_id=IDS)


def hdf5(root: Path) -> None:
    h5py = pytest.importorskip("h5py")
    root.mkdir(exist_ok=True)
    with h5py.File(root / "a.hdf5", "w") as file:
        file["image_array"], file["object_id"], file["image_scale"] = PIXELS, IDS, np.full((COUNT, 3), 0.262)
        file["image_band"] = [[b"des-g", b"des-r", b"des-z"]] * COUNT


def cutanas_zarr(root: Path) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.open_group(str(root / "images.zarr"), mode="w").create_array("images", data=np.moveaxis(PIXELS, 1, 3))
    pq.write_table(pa.table({"source_id": IDS, "idx_in_zarr": range(COUNT)}), root / "images_metadata.parquet")


def tensors(root: Path) -> None:
    root.mkdir(exist_ok=True)
    image = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(PIXELS))
    pq.write_table(pa.table({"object_id": IDS, "image": image}), root / "part-0.parquet")


def webdataset(root: Path) -> None:
    root.mkdir(exist_ok=True)
    with tarfile.open(root / "a.tar", "w") as tar:
        for name, image in zip(IDS, PIXELS, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, image[0])
            info = tarfile.TarInfo(f"{name}.npy")
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))


ONE_BAND = [files_alone, gampens_folder, a_catalogue_of_names, a_template, compressed, webdataset]
SEVERAL = [a_file_a_band, hdus_a_band, cubes, numpy_files, a_numpy_stack, hdf5, cutanas_zarr, tensors]


@pytest.mark.parametrize("layout", [*ONE_BAND, *SEVERAL])
def test_the_printed_command_ingests_every_pixel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: Callable[[Path], None]
) -> None:
    layout(tmp_path / "data")
    assert cli.main(["inspect", str(tmp_path / "data")]) == 0
    printed = capsys.readouterr().out
    assert f"{COUNT} images read; no galaxy would be quarantined" in printed
    _, config = cli.parse(shlex.split(printed.splitlines()[-1])[1:])
    rows, info = plan(config)
    columns, _, reasons, *_ = read_rows(rows, config.reader, info)
    assert set(reasons) == {""}
    order = np.argsort(np.asarray(columns["object_id"]).astype(str))
    assert np.asarray(columns["object_id"]).astype(str)[order].tolist() == [str(name) for name in IDS]
    expected = PIXELS[:, :1] if layout in ONE_BAND else PIXELS
    assert columns["image"][order].tobytes() == np.ascontiguousarray(expected).tobytes()


def test_facts_of_headers_and_what_would_be_quarantined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files_alone(tmp_path)
    _cutout(tmp_path / "nan.fits", np.full((SIZE, SIZE), np.nan, np.float32))
    (tmp_path / "html.fits").write_text("<html>404")
    assert cli.main(["inspect", str(tmp_path), "--format", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    facts = found["facts"]
    assert (facts["pixel scale"], facts["zero point"], facts["FILTER"], facts["BUNIT"]) == ("0.2 arcsec", "30 mag", "r", "adu")
    assert facts["size"] == "16 x 16 (9)"
    assert found["command"].endswith("--reader.bands r --output data/")
    first, second = found["reasons"]
    assert first == "not a file of a known format (fits, numpy, picture): it begins with b'<html>404' (html.fits)"
    assert second.startswith("all pixels are without a value: NaN, ") and second.endswith("(nan.fits)")
    assert set(found["reasons"].values()) == {1}


def test_no_command_where_nothing_can_be_ingested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _cutout(tmp_path / "tile.fits", np.zeros((2001, 40), np.float32) + PIXELS[0, 0, 0, 0])
    assert cli.main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "1 image read; 1 galaxy would be quarantined\n  1  the image has 2,001 x 40 pixels: a field of" in printed
    assert "gampen-ray ingest" not in printed


def test_what_is_remarked_is_a_part_of_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, side in enumerate((SIZE, SIZE, SIZE - 2)):
        _cutout(tmp_path / f"{number}.fits", PIXELS[number, 0, :side])
    assert cli.main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    text = "cutout_size: 16 pixels, the median of the files' shorter sides, which have 14 to 16"
    assert re.search(f"(?m)^remarks +{text}", printed.out)
    assert printed.err == ""


def test_what_holds_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _table().write(tmp_path / "c.fits")
    assert cli.main(["inspect", str(tmp_path / "c.fits")]) == 0
    assert "a catalogue, without images" in capsys.readouterr().out
    assert cli.main(["inspect", str(tmp_path / "absent")]) == 2
    assert "path: there is no file or folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["inspect", str(tmp_path / "empty")]) == 2


def test_a_table_that_names_no_file_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files_alone(tmp_path)
    (tmp_path / "notes.csv").write_text("object_id,seeing\n1,0.7\n")
    assert cli.main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "notes.csv is left out: no column names the files" in printed
    assert "--catalog" not in printed


def test_catalogues_with_bands_and_in_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(root: Path) -> Any:
        assert cli.main(["inspect", str(root)]) == 0
        _, config = cli.parse(shlex.split(capsys.readouterr().out.splitlines()[-1])[1:])
        rows, info = plan(config)
        columns, _, reasons, *_ = read_rows(rows, config.reader, info)
        assert set(reasons) == {""}
        np.testing.assert_array_equal(columns["image"], PIXELS[:, : len(info.bands)])
        assert rows["object_id"].to_pylist() == [f"{number:03d}" for number in range(COUNT)]
        assert rows["mag"].to_pylist() == list(range(COUNT))
        return config

    for name, columns in (("template", ""), ("columns", ",file_g,file_r"), ("a folder", "")):
        lines = [f"objectId,mag{columns}"]
        for number, image in enumerate(PIXELS):
            files = [f"{number:03d}_{band}.fits" for band in "gr"]
            for file, plane in zip(files, image, strict=False):
                _cutout(tmp_path / name / file, plane, None)
            lines.append(f"{number:03d},{number}" + (f",{','.join(files)}" if columns else ""))
        (tmp_path / name / "t.csv").write_text("\n".join(lines))
        config = command(tmp_path / name)
        assert config.reader.bands == ("g", "r")
        assert config.file_template == ("" if columns else "{objectId}_{band}.fits")
    for number, image in enumerate(PIXELS):
        _cutout(tmp_path / "fits" / f"{number:03d}.fits", image[0], None)
    Table({"ID": [f"{number:03d}" for number in range(COUNT)], "mag": np.arange(COUNT)}).write(tmp_path / "fits" / "t.fits")
    assert command(tmp_path / "fits").id_column == "ID"


def test_a_few_hundred_of_many_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        _cutout(tmp_path / f"{number}.fits", PIXELS[0, 0] + number, None)
    from gampen_ray.data import image_reading

    read: list[str] = []
    content = image_reading.file_content
    monkeypatch.setattr(image_reading, "file_content", lambda uri, reader: read.append(uri) or content(uri, reader))
    assert cli.main(["inspect", str(tmp_path), "--num-images", "5"]) == 0
    assert len(set(read)) < 45


@pytest.mark.skipif(not REAL.exists(), reason="needs the real files")
def test_real_files(capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (
        ("real/des_r.fits", "0.262997 arcsec"),
        ("real/legacy_grz_invvar.fits", "--reader.bands g,r,z"),
        ("real/hsc_cosmos_35.npz", "--reader.bands g,r,i,z,y"),
        ("real/tractor_frame-r-001000-1-0100.fits.bz2", "0.395"),
        ("real/hyrax_star_cat.csv", "a catalogue, without images"),
        ("sdss_cutouts", "167 x 167 (2)"),
    ):
        assert cli.main(["inspect", str(REAL / name)]) == 0
        assert text in capsys.readouterr().out
