"""Files by their names, and what is wrong with some: one line each."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.tiles import surveys
from gampen_ray.data.tiles.describing import describe
from gampen_ray.data.tiles.fits_files import chosen_hdu
from gampen_ray.data.tiles.listing import Entry, listed
from gampen_ray.data.tiles.preset import Plane, TileSurvey, register_tiles
from gampen_ray.data.tiles.surveys.generic import read_survey
from gampen_ray.errors import UserError
from tests.data.tiles.layouts import tile_cards

CARDS = tile_cards(0, 10.0, 0.0, 0.2)
PLAIN = TileSurvey(name="plain", image=Plane(files=("{tile}_{band}.fits*",)), zero_point_mag=27.0)


def image(folder: Path, name: str, shape: tuple[int, int] = (40, 30), cards: fits.Header = CARDS, **more: Any) -> Path:
    header = cards.copy()
    header.update(more)
    fits.PrimaryHDU(np.ones(shape, np.float32), header).writeto(folder / name)
    return folder / name


def described(folder: Path, survey: TileSurvey = PLAIN, **options: Any) -> Any:
    (entry,) = listed(sorted(path.name for path in folder.iterdir()), survey)
    return describe(entry, survey, str(folder), **options)


def test_of_several_versions_the_newest_counts_and_numbers_are_numbers() -> None:
    names = [f"DES0000-0207_r{version}_{band}.fits.fz" for version in ("999p01", "2587p01", "2587p02") for band in "gr"]
    entries = listed([*names, "DES0000-0207_r9999p09_g_nobkg.fits.fz"], surveys.TILE_SURVEYS["des"])
    assert [entry.files for entry in entries] == [{"image": f"DES0000-0207_r2587p02_{band}.fits.fz"} for band in "gr"]
    assert {entry.version for entry in entries} == {"2587p02"}
    # Where there is no other image.
    (only,) = listed(["DES0000-0207_r9999p09_g_nobkg.fits.fz"], surveys.TILE_SURVEYS["des"])
    assert only.files["image"].endswith("_nobkg.fits.fz")


def test_siblings_belong_to_their_tile_and_band_or_to_all_bands() -> None:
    stem = "coadd/059/0591m305/legacysurvey-0591m305"
    kinds = ("image-g", "image-z", "invvar-g", "invvar-z", "maskbits", "psfsize-g", "model-g", "chi2-z")
    entries = listed([f"{stem}-{kind}.fits.fz" for kind in kinds], surveys.TILE_SURVEYS["legacy"])
    assert [(entry.tile, entry.band) for entry in entries] == [("0591m305", "g"), ("0591m305", "z")]
    assert entries[0].files["mask"] == entries[1].files["mask"] == f"{stem}-maskbits.fits.fz"
    assert entries[0].files["psf"].endswith("psfsize-g.fits.fz")
    assert entries[1].files["psf"] == ""
    with pytest.raises(CutoutError, match=r"there is no file legacysurvey-\{tile\}-image-\{band\}.fits\* of the image"):
        describe(Entry(tile="t", band="z", files={"image": ""}), surveys.TILE_SURVEYS["legacy"], "/nowhere")


def test_a_preset_that_finds_no_file_shows_its_pattern_and_names_that_are_there() -> None:
    names = [f"a/calexp-{number}.fits" for number in range(9)]
    message = (
        r"no file below /t has a name of the survey kids, KiDS_DR.*; there are calexp-0.fits, calexp-3.fits, calexp-6.fits;"
    )
    with pytest.raises(UserError, match=message):
        listed(names, surveys.TILE_SURVEYS["kids"], root="/t")
    with pytest.raises(UserError, match="it holds no file"):
        listed([], surveys.TILE_SURVEYS["kids"])
    with pytest.raises(UserError, match="bands: no tile of z below /t; there are g, r"):
        listed(["a_g.fits", "a_r.fits"], PLAIN, ["g", "z"], "/t")


def test_a_preset_of_the_user_is_known_by_its_name() -> None:
    try:
        made = register_tiles(TileSurvey(name="mine", image=Plane(files=("{tract}/{patch}/{band}.fits",)), zero_point_mag=27.0))
        assert surveys.TILE_SURVEYS["mine"] is made
        (entry,) = listed(["deep/12/3,4/r.fits", "deep/12/3,4/r_old.fits"], made)
        assert (entry.tile, entry.tract, entry.patch, entry.band) == ("12-3,4", "12", "3,4", "r")
        with pytest.raises(ValueError, match=r"is no field of a file's name"):
            register_tiles(TileSurvey(name="wrong", image=Plane(files=("{tile}{colour}.fits",))))
    finally:
        surveys.TILE_SURVEYS.pop("mine", None)
    assert "wrong" not in surveys.TILE_SURVEYS


def test_every_preset_says_what_it_expects() -> None:
    for name in ("hsc", "legacy", "des", "kids", "ps1", "sdss", "euclid", "rubin", "roman", "jwst", "hst"):
        text = surveys.TILE_SURVEYS[name].expectations()
        assert text.startswith(f"{name}: ")
        assert all(word in text for word in ("image", "zero point", "overlaps"))


def test_a_table_of_the_user_describes_any_tiles(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'zero_point_mag = 25.0\nplanes = { HOT = 2 }\nbad_planes = ["HOT"]\npsf_keyword = "SEEING"\n'
        'image = { files = ["{tile:[0-9]+}-{band}.fits"] }\nmask = { files = ["{tile}-{band}-flags.fits"] }\n'
    )
    survey = read_survey(str(tmp_path / "mine.toml"))
    folder = tmp_path / "tiles"
    folder.mkdir()
    image(folder, "17-r.fits", SEEING=0.8)
    image(folder, "17-r-flags.fits")
    row = described(folder, survey)
    assert (row.tile, row.band, row.zero_point_mag, row.mask_bits, row.psf_fwhm_arcsec) == ("17", "r", 25.0, 4, 0.8)
    assert row.pixel_scale_arcsec == pytest.approx(0.2)


def test_the_table_in_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "footprints.md").read_text()
    (tmp_path / "mine.toml").write_text(text.partition("```toml\n")[2].partition("```")[0])
    survey = read_survey(str(tmp_path / "mine.toml"))
    assert (survey.image.hdus, survey.mask) == (("SCI", "PRIMARY"), Plane(hdus=("MASK",)))
    assert survey.planes == {"SAT": 1, "NO_DATA": 8}


def test_the_first_hdu_is_named_primary(tmp_path: Path) -> None:
    path = image(tmp_path, "t_r.fits")
    with path.open("rb") as file:
        assert chosen_hdu(file, ("primary",))[0].index == 0
        with pytest.raises(CutoutError, match=r"no two-dimensional image named SCI among the HDUs PRIMARY$"):
            chosen_hdu(file, ("SCI",))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('image = "{tile}"', r"^table: .*mine\.toml: image: '{tile}' is not allowed: give a table of its fields, files, hdus$"),
        ('image = { files = ["{tile}.fits"], hdu = 1 }', "hdu"),
        ('image = { files = ["{tyle}.fits"] }', r"\{tyle\} is no field of a file's name; there are tile, tract"),
        ('image = { files = ["image.fits"] }', r"image.fits: names no \{tile\}"),
        ('image = { files = ["{tile:(}.fits"] }', "unterminated"),
        ("image = {}", "image.files is empty"),
        ("zero_point_mag = 1.0", "image"),
    ],
)
def test_a_mistake_in_the_table_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(line)
    with pytest.raises(UserError, match=message):
        read_survey(str(tmp_path / "mine.toml"))


def test_a_file_of_gzip_is_read_through(tmp_path: Path) -> None:
    path = image(tmp_path, "t_r.fits")
    (tmp_path / "t_r.fits.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert described(tmp_path).grid.height == 40
    content = (tmp_path / "t_r.fits.gz").read_bytes()
    (tmp_path / "t_r.fits.gz").write_bytes(content[:100])
    with pytest.raises(CutoutError, match=r"t_r.fits.gz: the compressed file is truncated or damaged"):
        described(tmp_path)


@pytest.mark.parametrize(
    ("cut", "message"),
    [(4000, "the file is truncated: .* bytes by its headers, 4,000 found"), (1000, "no end"), (0, "not a FITS file")],
)
def test_a_truncated_tile_is_refused(cut: int, message: str, tmp_path: Path) -> None:
    path = image(tmp_path, "t_r.fits")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CutoutError, match=message):
        described(tmp_path)


def test_a_tile_without_coordinates_or_zero_point_or_band_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path, "t_r.fits", cards=fits.Header())
    with pytest.raises(CutoutError, match="the header has no WCS"):
        described(tmp_path)
    path.unlink()
    path = image(tmp_path, "t_r.fits", CTYPE1="SOLX")
    with pytest.raises(CutoutError, match="the WCS cannot be used"):
        described(tmp_path)
    path.unlink()
    image(tmp_path, "t_r.fits")
    by_header = TileSurvey(name="p", image=Plane(files=("{tile}_*.fits",)))
    with pytest.raises(CutoutError, match="no zero point; state zero_point_mag"):
        described(tmp_path, TileSurvey(name="p", image=PLAIN.image))
    with pytest.raises(CutoutError, match="neither its name nor its header gives the band"):
        described(tmp_path, by_header, zero_point_mag=27.0)


def test_a_zero_point_that_contradicts_the_survey_is_refused_unless_it_is_stated(tmp_path: Path) -> None:
    image(tmp_path, "t_r.fits", MAGZERO=30.0)
    with pytest.raises(CutoutError, match="gives the zero point 30, the survey plain has 27; state zero_point_mag"):
        described(tmp_path)
    assert described(tmp_path, zero_point_mag=30.0).zero_point_mag == 30.0


def test_a_mask_of_another_shape_or_without_the_planes_is_refused(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"image": Plane(files=("{tile}_{band}.fits",)), "zero_point_mag": 27.0}
    survey = TileSurvey(name="m", mask=Plane(files=("{tile}_mask.fits",)), planes={"SAT": 1}, **fields)
    image(tmp_path, "t_r.fits")
    path = image(tmp_path, "t_mask.fits", (30, 40))
    with pytest.raises(CutoutError, match=r"t_mask.fits: the mask has 40 x 30 pixels, the image 30 x 40"):
        described(tmp_path, survey)
    path.unlink()
    image(tmp_path, "t_mask.fits")
    assert described(tmp_path, survey).mask_bits == -1
    assert described(tmp_path, survey, mask_planes=("SAT",)).mask_bits == 2
    with pytest.raises(CutoutError, match="the mask has no plane HOT; it has SAT"):
        described(tmp_path, survey, mask_planes=("HOT",))


def test_no_hdu_of_the_name_is_refused(tmp_path: Path) -> None:
    image(tmp_path, "t_r.fits", EXTNAME="OTHER")
    survey = TileSurvey(name="p", image=Plane(files=("{tile}_{band}.fits",), hdus=("SCI",)), zero_point_mag=27.0)
    with pytest.raises(CutoutError, match=r"t_r.fits: no two-dimensional image named SCI among the HDUs OTHER"):
        described(tmp_path, survey)
