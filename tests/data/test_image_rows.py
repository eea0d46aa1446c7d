"""Which files a catalogue's rows have: names, templates, a file or an HDU a band, one file alone; and what is refused."""

import bz2
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from gampen_ray.config import CutoutsConfig, ReaderConfig
from gampen_ray.data.ingest_plan import plan
from gampen_ray.data.packing import read_rows
from gampen_ray.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data" / "real"
SIZE = 10
PIXELS = np.random.default_rng(2).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)
BANDS = ("g", "r", "z")


def _read(images: Path, *, catalog: str = "", **changes: Any) -> dict[str, Any]:
    reader = ReaderConfig(**changes.pop("reader", {}))
    if "\n" in catalog:
        (images.parent / "c.csv").write_text(catalog)
        catalog = str(images.parent / "c.csv")
    config = CutoutsConfig(**{"images": str(images), "catalog": catalog, "cutout_size": SIZE, "reader": reader} | changes)
    rows, info = plan(config)
    columns, sources, reasons, *_ = read_rows(rows, reader, info)
    return columns | {"object_id": columns["object_id"].to_pylist(), "reason": reasons.tolist(), "source": sources.tolist()}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def _write(path: Path, image: np.ndarray) -> None:
    fits.PrimaryHDU(image).writeto(path)


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("{}-cutout-HSC-I-{}-pdr2_wide.fits", "{object_id}-cutout-*.fits"),
        ("cutout-{1}-{0}.fits", "*-{object_id}.fits"),
        ("{}.fits", "{object_id}.fits"),
        ("tract[{1}]_{0}.fits", "tract[?]_{object_id}.fits"),
    ],
)
def test_a_template_finds_each_rows_file(images: Path, name: str, template: str) -> None:
    for row, galaxy in enumerate(("1", "10", "100", "a[b]")):
        _write(images / name.format(galaxy, row), PIXELS[row, 0])
    read = _read(images, catalog="object_id,x\n100,1\na[b],2\n10,3\n1,4\n7,5\n", file_template=template)
    assert read["object_id"] == ["100", "a[b]", "10", "1", "7"]
    np.testing.assert_array_equal(read["image"][:4, 0], PIXELS[[2, 3, 1, 0], 0])
    assert read["reason"][:4] == [""] * 4
    assert read["reason"][4].startswith("no file matches" if "*" in template or "?" in template else "there is no such file")


def test_several_matches_are_no_match(images: Path) -> None:
    for name in ("1-a.fits", "1-b.fits", "2-a.fits"):
        _write(images / name, PIXELS[0, 0])
    read = _read(images, catalog="object_id\n1\n2\n", file_template="{object_id}-*.fits")
    assert read["reason"] == ["several files match 1-*.fits: 1-a.fits, 1-b.fits; narrow file_template", ""]
    with pytest.raises(UserError, match=r"file_template: '\*\{object_id\}\*' has a wildcard both before and after"):
        _read(images, catalog="object_id\n1\n", file_template="*{object_id}*")
    with pytest.raises(UserError, match=r"file_template: catalog .* has no column 'tract'"):
        _read(images, catalog="object_id\n1\n", file_template="{tract}-*.fits")
    with pytest.raises(
        UserError, match=r"file_column: catalog .* has no column 'file_name'; give file_column, or file_template"
    ):
        _read(images, catalog="object_id\n1\n")


@pytest.mark.parametrize("catalog", ["", "object_id\nA\nB_r\nC\n"])
def test_a_file_a_band_by_template(images: Path, catalog: str) -> None:
    for row, galaxy in enumerate(("A", "B_r", "C")):
        for index, band in enumerate(BANDS):
            if (galaxy, band) != ("C", "r"):
                _write(images / f"{galaxy}_{band}.fits", PIXELS[row, index])
    (images / "notes.txt").write_text("x")
    template = "{object_id}_{band}.fits"
    read = _read(images, catalog=catalog, file_template=template, reader={"bands": ("z", "g", "r")})
    assert read["object_id"] == ["A", "B_r", "C"]
    np.testing.assert_array_equal(read["image"][:2], PIXELS[:2][:, [2, 0, 1]])
    assert read["reason"][:2] == ["", ""]
    assert read["reason"][2] == ("band r: there is no such file" if catalog else "no file of the band r: C_{band}.fits")


def test_a_file_a_band_by_columns(images: Path) -> None:
    for index, band in enumerate(BANDS):
        (images / band).mkdir()
        for row in range(2):
            _write(images / band / f"{row}.fits", PIXELS[row, index][: SIZE - (row == 1 and band == "z")])
    rows = [
        "0,g/0.fits,r/0.fits,z/0.fits",
        "1,g/1.fits,r/1.fits,z/1.fits",
        "2,g/1.fits,,z/1.fits",
        "3,../c.csv,r/0.fits,z/0.fits",
    ]
    read = _read(images, catalog="\n".join(["object_id,file_g,file_r,file_z", *rows]), reader={"bands": BANDS})
    np.testing.assert_array_equal(read["image"][0], PIXELS[0])
    assert read["reason"] == [
        "",
        "the bands' images have different sizes: g 10 x 10, r 10 x 10, z 9 x 10",
        "file_r is missing",
        f"file_g is '../c.csv': no file below {images}",
    ]


def test_an_hdu_a_band_by_extname_band_or_filter(images: Path) -> None:
    noise = np.ones((SIZE, SIZE), np.float32)

    def hdus(*named: tuple[str, str, np.ndarray]) -> fits.HDUList:
        made = [fits.ImageHDU(pixels, fits.Header({card: name})) for card, name, pixels in named]
        return fits.HDUList([fits.PrimaryHDU(), *made])

    g, r, z = PIXELS[0]
    euclid = [("EXTNAME", f"MERRMS_{band}", noise) for band in "GR"] + [
        ("EXTNAME", "MERPSF_Z", noise),
        ("EXTNAME", "BKG_R", noise),
    ]
    hdus(*euclid, *[("EXTNAME", f"FLUX_{b}", p) for b, p in (("Z", z), ("G", g), ("R", r))]).writeto(images / "a.fits")
    hdus(("FILTER", "DES-G", g), ("FILTER", "DES-R", r), ("BAND", "z", z)).writeto(images / "b.fits")
    hdus(("EXTNAME", "g", g), ("EXTNAME", "r", r)).writeto(images / "c.fits")
    hdus(("EXTNAME", "g", g), ("EXTNAME", "r", r), ("EXTNAME", "z", z[1:])).writeto(images / "d.fits")
    read = _read(images, reader={"bands": BANDS})
    assert read["image"][:2].tobytes() == PIXELS[[0, 0]].tobytes()
    assert read["reason"][2:] == [
        "no HDUs for the band z by EXTNAME, BAND or FILTER; the images are: g, r",
        "the bands' images have different sizes: g 10 x 10, r 10 x 10, z 9 x 10",
    ]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_compressed_files(images: Path, pack: Any) -> None:
    buffer = io.BytesIO()
    fits.PrimaryHDU(PIXELS[0, 0]).writeto(buffer)
    ending = "gz" if pack is gzip.compress else "bz2"
    (images / f"a.fits.{ending}").write_bytes(pack(buffer.getvalue()))
    (images / f"b.fits.{ending}").write_bytes(pack(buffer.getvalue())[:-20])
    read = _read(images)
    assert read["object_id"] == ["a", "b"]
    assert read["image"][0].tobytes() == PIXELS[0, 0].tobytes()
    kind = "gzip" if ending == "gz" else "bzip2"
    assert read["reason"] == ["", f"the {kind} file is truncated"]


def test_one_file_as_input(images: Path) -> None:
    _write(images / "a.fits", PIXELS[0, 0])
    assert _read(images / "a.fits")["object_id"] == ["a"]
    assert _read(images / "a.fits", catalog="object_id\n7\n")["object_id"] == [7]
    with pytest.raises(UserError, match=r"a.fits is one image, but catalog .* has 2 rows; give the folder of their cutouts"):
        _read(images / "a.fits", catalog="object_id\n7\n8\n")


def test_a_half_float_type_of_pixels_has_a_reason(images: Path) -> None:
    header = "".join(f"{card:<80}" for card in ("SIMPLE  =                    T", "BITPIX  =                  -16"))
    header += "".join(f"{card:<80}" for card in ("NAXIS   =                    2", "NAXIS1  =                   10"))
    header += "".join(f"{card:<80}" for card in ("NAXIS2  =                   10", "END"))
    (images / "a.fits").write_bytes(f"{header:<2880}".encode() + bytes(2880))
    assert _read(images)["reason"] == ["BITPIX is -16: FITS has no such pixel type; write the pixels as float32 (BITPIX -32)"]


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_pictures_are_refused_unless_allowed(images: Path, ending: str) -> None:
    picture = np.random.default_rng(1).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(picture).save(images / f"a.{ending}")
    assert "not linear in flux, so that no flux or radius can be measured" in _read(images)["reason"][0]
    read = _read(images, reader={"allow_nonlinear": True, "bands": BANDS})
    assert read["reason"] == [""]
    if ending == "png":
        np.testing.assert_array_equal(read["image"][0], np.moveaxis(picture, 2, 0))


@pytest.mark.skipif(not REAL.exists(), reason="needs the real files")
def test_surveys_files_as_they_are() -> None:
    hsc = {"catalog": str(REAL / "hyrax_star_cat.csv"), "file_template": "hyrax_{object_id}-cutout-HSC-I-*.fits"}
    # The files are numbered by the catalogue's row, not by its identifier: none is taken for another.
    assert all(text.startswith("no file matches") for text in _read(REAL, **hsc)["reason"])
    read = _read(REAL, pattern="legacy_grz*.fits", cutout_size=256, reader={"bands": BANDS})
    with fits.open(REAL / "legacy_grz_invvar.fits") as hdus:
        np.testing.assert_array_equal(read["image"][0], [hdus[index].data for index in (1, 3, 5)])
    read = _read(REAL / "tractor_frame-r-001000-1-0100.fits.bz2", cutout_size=100)
    assert read["reason"] == [""]
    assert read["object_id"] == ["tractor_frame-r-001000-1-0100"]
