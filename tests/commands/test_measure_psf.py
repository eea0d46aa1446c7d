"""The verb `measure-psf`: from images of PSFs to a table of their sizes, alone or joined to a catalogue."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

import gampen_ray
from gampen_ray import cli
from gampen_ray.data.catalogs import column_unit, read_catalog
from gampen_ray.errors import UserError
from gampen_ray.simulation.psf import MoffatPsf, PsfSizes, measure_psf
from tests.networks import bundle
from tests.simulation.simulation_cases import WINGED, star

SCALE = 0.2
ROUND = MoffatPsf(fwhm_arcsec=0.7, beta=2.5)
NAMES = [f"psf_{field.name}" for field in dataclasses.fields(PsfSizes)]
CATALOG = "object_id,file_name,psf,z\n007,a.fits,sub/winged.fits.gz,0.1\n008,b.fits,round.fits,0.2\n009,c.fits,round.fits,0.3\n"


def write_fits(path: Path, image: np.ndarray, scale: float | None = SCALE, **cards: Any) -> Path:
    header = fits.Header(cards.items())
    if scale:
        header["CTYPE1"], header["CTYPE2"], header["CRVAL1"], header["CRVAL2"] = "RA---TAN", "DEC--TAN", 150.0, 2.0
        header["CD1_1"], header["CD2_2"], header["CD1_2"], header["CD2_1"] = -scale / 3600, scale / 3600, 0.0, 0.0
    path.parent.mkdir(exist_ok=True)
    fits.writeto(path, image, header)
    return path


@pytest.fixture
def psfs(tmp_path: Path) -> Path:
    """Two PSFs: of even sides, and off the centre in a subfolder."""
    write_fits(tmp_path / "psfs" / "round.fits", 3 * star(ROUND, 60).astype(np.float32))
    write_fits(tmp_path / "psfs" / "sub" / "winged.fits.gz", star(WINGED, 61, offset=(1.4, -2.2)))
    return tmp_path / "psfs"


def made(tmp_path: Path, psfs: Path, **options: Any) -> pa.Table:
    return gampen_ray.measure_psf(**({"psfs": str(psfs), "output": str(tmp_path / "o.csv")} | options))


def sizes(table: pa.Table, row: int = 0) -> tuple[float, ...]:
    return tuple(table[name][row].as_py() for name in NAMES)


def shown(tmp_path: Path, image: np.ndarray, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> str:
    """The warnings for an image."""
    monkeypatch.setattr(logging.getLogger("gampen_ray"), "propagate", True)
    np.save(tmp_path / "p.npy", image)
    with caplog.at_level(logging.WARNING):
        made(tmp_path, tmp_path / "p.npy", pixel_scale_arcsec=SCALE)
    return caplog.text


def test_a_table_of_a_folder_has_the_sizes_of_the_profiles(tmp_path: Path, psfs: Path) -> None:
    table = made(tmp_path, psfs)
    assert table["psf_file"].to_pylist() == ["round.fits", "sub/winged.fits.gz"]
    for row, psf in enumerate((ROUND, WINGED)):
        assert sizes(table, row) == pytest.approx(dataclasses.astuple(psf.sizes(SCALE)), rel=0.01)
    assert read_catalog(str(tmp_path / "o.csv")).to_pydict() == table.to_pydict()


@pytest.mark.parametrize("suffix", ["ecsv", "fits", "parquet"])
def test_other_formats_keep_units(tmp_path: Path, psfs: Path, suffix: str) -> None:
    output = tmp_path / f"o.{suffix}"
    table = made(tmp_path, psfs, output=str(output))
    found = read_catalog(str(output))
    assert found.to_pydict() == table.to_pydict()
    assert [column_unit(found, name) for name in found.column_names] == ["", *4 * ["arcsec"]]
    # The verb's own output is replaced.
    assert made(tmp_path, psfs, output=str(output)) == table


def test_a_catalogue_keeps_rows_and_columns_and_has_each_galaxys_sizes(tmp_path: Path, psfs: Path) -> None:
    (tmp_path / "c.csv").write_text(CATALOG)
    made(tmp_path, psfs, catalog=str(tmp_path / "c.csv"), psf_column="psf")
    lines = (tmp_path / "o.csv").read_text().splitlines()
    assert lines[0] == ",".join(["object_id,file_name,psf,z", *NAMES])
    assert [line.partition(",0.")[0] for line in lines[1:]] == [line[: line.rindex(",")] for line in CATALOG.splitlines()[1:]]
    alone = made(tmp_path, psfs, output=str(tmp_path / "p.csv"))
    found = read_catalog(str(tmp_path / "o.csv"))
    assert [sizes(found, row) for row in range(3)] == [sizes(alone, 1), sizes(alone), sizes(alone)]


def test_one_psf_is_that_of_all_galaxies(tmp_path: Path, psfs: Path) -> None:
    table = Table({"object_id": [2**60 + 1, 5], "radius": np.array([1.5, 2.5], np.float32)}, units={"radius": "arcsec"})
    table.write(tmp_path / "c.fits")
    options = {"catalog": str(tmp_path / "c.fits"), "output": str(tmp_path / "o.fits")}
    made(tmp_path, psfs / "round.fits", **options)
    found = read_catalog(str(tmp_path / "o.fits"))
    assert found["object_id"].to_pylist() == [2**60 + 1, 5]
    assert (column_unit(found, "radius"), found["radius"].type) == ("arcsec", pa.float32())
    assert sizes(found, 0) == sizes(found, 1) == pytest.approx(dataclasses.astuple(ROUND.sizes(SCALE)), rel=0.01)
    with pytest.raises(UserError, match=r"^psf_column: catalog .*c.fits has no column 'psf_file'; its columns: object_id"):
        made(tmp_path, psfs, **options)


def test_a_bundles_pixels_are_those_of_the_predictor(tmp_path: Path) -> None:
    model = bundle()
    images = dataclasses.replace(model.images, pixel_scale_arcsec=SCALE, zero_point_mag=30.0)
    dataclasses.replace(model, images=images).save(str(tmp_path / "b"))
    fine = star(ROUND, 91, 0.15)
    write_fits(tmp_path / "p.fits", fine, 0.15)
    table = made(tmp_path, tmp_path / "p.fits", bundle=str(tmp_path / "b"))
    # All of the star, of which the network sees less.
    images = dataclasses.replace(images, size=91)
    seen = images.match(torch.from_numpy(fine)[None, None], zero_point_mag=None, pixel_scale_arcsec=0.15).image_NCHW
    assert sizes(table) == pytest.approx(dataclasses.astuple(measure_psf(seen[0, 0].double().numpy(), SCALE)), rel=1e-4)
    # Twenty of the bundle's pixels hold more light.
    assert sizes(table)[3] > 1.03 * ROUND.sizes(0.15).r95_arcsec
    # On its own pixels it is left as it is.
    write_fits(tmp_path / "q.fits", star(ROUND, 61))
    same = made(tmp_path, tmp_path / "q.fits", bundle=str(tmp_path / "b"))
    assert sizes(same) == sizes(made(tmp_path, tmp_path / "q.fits"))


def test_the_pixel_scale_is_the_headers_or_given(tmp_path: Path, psfs: Path) -> None:
    bare = write_fits(tmp_path / "bare.fits", star(ROUND), None)
    with pytest.raises(UserError, match=r"^pixel_scale_arcsec: the header of .*bare.fits does not say it; give --pixel"):
        made(tmp_path, bare)
    by_card = write_fits(tmp_path / "card.fits", star(ROUND), None, PIXSCALE=SCALE)
    assert made(tmp_path, by_card)[NAMES[0]] == made(tmp_path, bare, pixel_scale_arcsec=SCALE)[NAMES[0]]
    with pytest.raises(UserError, match=r"^pixel_scale_arcsec: 0.21 is given, but the header of .*round.fits says 0.2; "):
        made(tmp_path, psfs, pixel_scale_arcsec=0.21)
    made(tmp_path, psfs, pixel_scale_arcsec=0.201)
    ignored = made(tmp_path, psfs, pixel_scale_arcsec=0.4, headers="ignore")
    assert sizes(ignored) == pytest.approx(tuple(2 * size for size in sizes(made(tmp_path, psfs))))


def _with(value: float) -> np.ndarray:
    image = star(ROUND, 43)
    image[3, 4] = value
    return image


BAD = {
    "1 pixels are not finite; fill them": _with(np.nan),
    "10 x 43 pixels are too few; give 11 or more along a side, best 43": star(ROUND, 43)[16:26],
    "no flux, the pixels add up to -": -star(ROUND, 43),
    "the brightest pixel lies 18 pixels from the middle; cut the image about the star": _with(1.0),
    "no star, nothing falls to half of the centre": star(dataclasses.replace(ROUND, fwhm_arcsec=20), 43),
    r"the image has shape (2, 43, 43), not 1 band of height x width": np.stack(2 * [star(ROUND, 43)]),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_image_is_refused(tmp_path: Path, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "p.npy", BAD[reason])
    command = ["measure-psf", str(tmp_path / "p.npy"), "--output", str(tmp_path / "o.csv"), "--pixel-scale-arcsec", "0.2", "-q"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"gampen-ray: error: psfs: {tmp_path / 'p.npy'}: {reason}")
    assert not (tmp_path / "o.csv").exists()


def test_bad_images_among_others_are_left_out_with_a_warning(
    tmp_path: Path, psfs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (psfs / "notes.fits").write_text("thesis")
    write_fits(psfs / "small.fits", star(ROUND, 9))
    command = ["measure-psf", str(psfs), "--output", str(tmp_path / "o.csv")]
    assert cli.main(command) == 0
    error = capsys.readouterr().err
    assert "1 PSF cannot be measured: not a file of a known format" in error
    assert "1 PSF cannot be measured: 9 x 9 pixels are too few; give 11 or more along a side, best 43 (small.fits)" in error
    assert f"wrote {tmp_path / 'o.csv'}: 2 PSFs" in error
    assert f"next: gampen-ray measure-psf --psfs {psfs} --catalog GALAXIES --psf-column COLUMN --output TABLE" in error
    # A catalogue keeps its galaxies.
    (tmp_path / "c.csv").write_text("object_id,psf\n1,small.fits\n2,round.fits\n")
    command += ["--catalog", str(tmp_path / "c.csv"), "--psf-column", "psf"]
    assert cli.main(command) == 0
    error = capsys.readouterr().err
    assert "1 galaxy without sizes, of PSFs that cannot be measured" in error
    assert f"next: gampen-ray infer --bundle BUNDLE --dataset CUTOUTS --catalog {tmp_path / 'o.csv'} --output CATALOG" in error
    assert read_catalog(str(tmp_path / "o.csv"))[NAMES[0]].is_null().to_pylist() == [True, False]
    for name in ("round.fits", "sub/winged.fits.gz"):
        (psfs / name).unlink()
    assert cli.main(["measure-psf", str(psfs), "--output", str(tmp_path / "p.csv"), "-q"]) == 2
    assert "psfs: none of the 2 images can be measured; the most common reason" in capsys.readouterr().err


def test_a_catalogue_that_does_not_fit_is_refused(tmp_path: Path, psfs: Path) -> None:
    (tmp_path / "c.csv").write_text(CATALOG.replace("round", "other"))
    fits_not = r"^psf_column: psf names no file below .*psfs for 2 of 3 rows of .*c.csv, first 'other.fits' in row 2; "
    with pytest.raises(UserError, match=fits_not):
        made(tmp_path, psfs, catalog=str(tmp_path / "c.csv"), psf_column="psf")
    (tmp_path / "d.csv").write_text(f"object_id,{NAMES[0]},{NAMES[2]}\n1,0.7,0.8\n")
    with pytest.raises(UserError, match=rf"^catalog: .*d.csv has {NAMES[0]}, {NAMES[2]} already; rename or remove them"):
        made(tmp_path, psfs / "round.fits", catalog=str(tmp_path / "d.csv"))


def test_the_psf_of_a_file_of_several_images(tmp_path: Path) -> None:
    galaxy, other = np.random.default_rng(0).normal(size=(2, 43, 43))
    hdus = [fits.ImageHDU(image, name=name) for name, image in (("SCI", galaxy), ("PSF", star(ROUND, 43)), ("VAR", other**2))]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "named.fits")
    assert sizes(made(tmp_path, tmp_path / "named.fits", pixel_scale_arcsec=SCALE)) == pytest.approx(
        dataclasses.astuple(ROUND.sizes(SCALE)), rel=0.01
    )
    fits.HDUList([fits.PrimaryHDU(star(ROUND, 43)), fits.ImageHDU(star(WINGED, 43))]).writeto(tmp_path / "two.fits")
    with pytest.raises(UserError, match="2 of the HDUs may be the PSF; give hdu"):
        made(tmp_path, tmp_path / "two.fits", pixel_scale_arcsec=SCALE)
    found = made(tmp_path, tmp_path / "two.fits", pixel_scale_arcsec=SCALE, hdu=1)
    assert sizes(found) == pytest.approx(dataclasses.astuple(WINGED.sizes(SCALE)), rel=0.01)


@pytest.mark.parametrize(
    ("image", "warning"),
    [
        (star(WINGED, 43), ""),
        (star(ROUND, 31), "the image ends 15.5 pixels from the star, and light within 20 counts (of 0.2 arcsec each)"),
        (star(WINGED, 43) + 5e-4 * star(WINGED, 43).max(), "% of the light is left about the star by an estimate"),
        (star(ROUND, 43) - 5e-4 * star(ROUND, 43).max(), "sky of -"),
    ],
)
def test_what_makes_sizes_doubtful_is_told(
    tmp_path: Path, image: np.ndarray, warning: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = shown(tmp_path, image, caplog, monkeypatch)
    assert warning in told
    assert bool(told) == bool(warning)
