"""Which HDU and which file shows the galaxy."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from gampen_ray.config import CutoutsConfig, ReaderConfig
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.file_names import matching_files
from gampen_ray.data.ingest_plan import plan
from gampen_ray.data.kinds import kind_of, without_siblings
from gampen_ray.data.packing import read_rows
from gampen_ray.data.readers import read_cutout

RNG = np.random.default_rng(0)
IMAGE, OTHER = RNG.normal(10, 1, (2, 12, 14)).astype(np.float32)


def _read(hdus: list[Any], **fields: object) -> np.ndarray:
    buffer = io.BytesIO()
    fits.HDUList(hdus).writeto(buffer)
    return read_cutout(buffer.getvalue(), "a.fits", ReaderConfig(**fields)).image_CHW


def _hdu(pixels: np.ndarray, name: str = "", **cards: object) -> fits.ImageHDU:
    return fits.ImageHDU(pixels, fits.Header(cards), name=name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SCI", "science"),
        ("FLUX_VIS", "science"),
        ("ERR", "error"),
        ("MERRMS_VIS", "error"),
        ("MERPSF_NIR_Y", "psf"),
        ("MERBKG_VIS", "other"),
        ("VAR_POISSON", "variance"),
        ("DQ", "mask"),
        ("invvar", "weight"),
        ("coverage", "weight"),
        ("WCSDVARR", "other"),
        ("NGC1300", ""),
        ("", ""),
    ],
)
def test_kinds_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    "names", [("ERR", "SCI"), ("MASK", "IMAGE"), ("WHT", "SCI"), ("PREVIEW", ""), ("VARIANCE", ""), ("", "SCI")]
)
def test_the_image_is_found_behind_others(names: tuple[str, str]) -> None:
    hdus = [fits.PrimaryHDU(), _hdu(OTHER, names[0]), _hdu(IMAGE, names[1])]
    np.testing.assert_array_equal(_read(hdus)[0], IMAGE)
    np.testing.assert_array_equal(_read(hdus, hdu=1)[0], OTHER)


def test_the_first_image_where_no_name_helps() -> None:
    np.testing.assert_array_equal(_read([fits.PrimaryHDU(IMAGE), _hdu(OTHER)])[0], IMAGE)


def test_empty_images_and_previews_in_colours_are_passed_over() -> None:
    np.testing.assert_array_equal(_read([fits.PrimaryHDU(np.zeros_like(IMAGE)), _hdu(IMAGE), _hdu(OTHER, "model")])[0], IMAGE)
    preview = np.zeros((3, 20, 20), np.uint8)
    np.testing.assert_array_equal(_read([fits.PrimaryHDU(preview), _hdu(IMAGE)])[0], IMAGE)


def test_the_image_of_the_stated_band() -> None:
    hdus = [fits.PrimaryHDU(), _hdu(OTHER, BAND="g"), _hdu(OTHER, IMAGETYP="invvar"), _hdu(IMAGE, BAND="r")]
    np.testing.assert_array_equal(_read(hdus, bands=("r",))[0], IMAGE)


@pytest.mark.parametrize("names", [("FLUX_VIS", "FLUX_NIR_J"), ("g", "r")])
def test_the_image_of_one_of_the_bands_that_names_give(names: tuple[str, str]) -> None:
    hdus = [fits.PrimaryHDU(), _hdu(OTHER, names[0]), _hdu(IMAGE, names[1])]
    np.testing.assert_array_equal(_read(hdus, bands=(names[1].rpartition("_")[2],))[0], IMAGE)
    with pytest.raises(CutoutError, match="no HDU has the band K; the images are of"):
        _read(hdus, bands=("K",))
    with pytest.raises(CutoutError, match=r"the images have the bands .*, none of them unknown; give reader\.bands, such as"):
        _read(hdus)
    np.testing.assert_array_equal(_read(hdus, headers="ignore")[0], OTHER)


def test_planes_of_a_cube_are_those_of_the_bands_asked_for() -> None:
    hdus = [fits.PrimaryHDU(np.stack([OTHER, IMAGE]), fits.Header({"BANDS": "gr", "BAND0": "g", "BAND1": "r"}))]
    np.testing.assert_array_equal(_read(hdus, bands=("r", "g")), [IMAGE, OTHER])
    np.testing.assert_array_equal(_read(hdus, bands=("r", "g"), headers="ignore"), [OTHER, IMAGE])
    np.testing.assert_array_equal(_read(hdus, bands=("r",)), [IMAGE])
    with pytest.raises(CutoutError, match="the images have the bands g, r, none of them z"):
        _read(hdus, bands=("g", "z"))


def test_two_images_of_one_band_are_not_guessed_between() -> None:
    line = r"the HDUs 1 FIRST, 2 SECOND are all of the band r; reader\.hdu takes one of them"
    for second, bands in (("r", ("unknown",)), ("r.MP9601", ("r",))):
        hdus = [fits.PrimaryHDU(), _hdu(IMAGE, "FIRST", FILTER="r"), _hdu(OTHER, "SECOND", FILTER=second)]
        with pytest.raises(CutoutError, match=line):
            _read(hdus, bands=bands)
    np.testing.assert_array_equal(_read(hdus, hdu=2), [OTHER])
    np.testing.assert_array_equal(_read(hdus, headers="ignore"), [IMAGE])
    hdus[2].header["FILTER"] = "i"
    np.testing.assert_array_equal(_read(hdus, bands=("r",)), [IMAGE])


def test_two_images_of_one_name_are_not_guessed_between() -> None:
    hdus = [fits.PrimaryHDU(), _hdu(IMAGE, "SCI", EXTVER=1), _hdu(OTHER, "SCI", EXTVER=2)]
    with pytest.raises(CutoutError, match=r"the HDUs 1, 2 are all named SCI; reader\.hdu takes one of them"):
        _read(hdus)
    np.testing.assert_array_equal(_read(hdus, hdu=2)[0], OTHER)


def test_many_images_without_a_name_are_not_guessed_between() -> None:
    stamps = [fits.PrimaryHDU(IMAGE), *(_hdu(OTHER) for _ in range(6))]
    with pytest.raises(CutoutError, match=r"7 HDUs hold images, none of which has a name; reader\.hdu takes one of them"):
        _read(stamps)
    np.testing.assert_array_equal(_read(stamps[:6])[0], IMAGE)
    np.testing.assert_array_equal(_read(stamps, hdu=3)[0], OTHER)


def test_a_file_without_a_galaxy_has_a_reason() -> None:
    with pytest.raises(CutoutError, match=r"no HDU holds the image of a galaxy, by their names MASK, VARIANCE; reader\.hdu"):
        _read([fits.PrimaryHDU(), _hdu(IMAGE, "MASK"), _hdu(IMAGE, "VARIANCE")])


@pytest.mark.parametrize(
    ("name", "value"), [("VARIANCE", np.inf), ("VAR", np.nan), ("ERR", np.nan), ("WHT", 0), ("IVAR", 0), ("WEIGHT", np.nan)]
)
def test_pixels_without_exposure_have_no_value(name: str, value: float) -> None:
    noise = np.ones_like(IMAGE)
    noise[2, 3] = value
    hdus = [
        fits.PrimaryHDU(),
        _hdu(IMAGE, "SCI"),
        _hdu(noise, name),
        _hdu(OTHER, "SCI2"),
        _hdu(np.full_like(IMAGE, value), name),
    ]
    assert np.argwhere(np.isnan(_read(hdus)[0])).tolist() == [[2, 3]]


@pytest.mark.parametrize("card", ["EXTNAME", "DES_EXT", "EXTTYPE", "IMAGETYP"])
def test_the_name_of_an_hdu_may_be_another_card(card: str) -> None:
    variance = np.full_like(IMAGE, 4.0)
    variance[0] = np.inf
    hdus = [fits.PrimaryHDU(), _hdu(IMAGE, **{card: "IMAGE"}), _hdu(variance, **{card: "VARIANCE"})]
    assert np.isnan(_read(hdus)[0, 0]).all()


@pytest.mark.parametrize(
    ("name", "value", "noise"),
    [("VARIANCE", 4.0, 2.0), ("ERR", 3.0, 3.0), ("invvar", 0.25, 2.0), ("WHT", 9.0, None), ("VAR_POISSON", 9.0, None)],
)
def test_the_noise_of_a_file_is_a_number_of_its_galaxy(name: str, value: float, noise: float | None, tmp_path: Path) -> None:
    for number, unit in enumerate((31.4, 28.9)):
        hdus = [fits.PrimaryHDU(), _hdu(IMAGE, "SCI", MAGZERO=unit, FILTER="r"), _hdu(np.full_like(IMAGE, value), name)]
        fits.HDUList(hdus).writeto(tmp_path / f"{number}.fits")
    fits.PrimaryHDU(IMAGE, fits.Header({"MAGZERO": 28.9})).writeto(tmp_path / "2.fits")
    config = CutoutsConfig(images=str(tmp_path))
    rows, info = plan(config)
    columns = read_rows(rows, config.reader, info).columns
    if noise is None:
        assert "noise_r" not in columns
    else:
        # In the unit of the dataset, that of 28.9.
        np.testing.assert_allclose(columns["noise_r"], [noise / 10, noise, np.nan], rtol=1e-6)


@pytest.mark.parametrize(("stated", "expected"), [(["7", ""], [7, 2]), (["low", "high"], ["low", "high"])])
def test_the_noise_that_a_catalogue_states_is_kept(tmp_path: Path, stated: list[str], expected: list[Any]) -> None:
    for number in range(2):
        hdus = [fits.PrimaryHDU(), _hdu(IMAGE, "SCI", FILTER="r"), _hdu(np.full_like(IMAGE, 4.0), "VARIANCE")]
        fits.HDUList(hdus).writeto(tmp_path / f"{number}.fits")
    lines = [f"{number},{number}.fits,{text}" for number, text in enumerate(stated)]
    (tmp_path / "a.csv").write_text("\n".join(["object_id,file_name,noise_r", *lines]))
    config = CutoutsConfig(images=str(tmp_path), catalog=str(tmp_path / "a.csv"))
    rows, info = plan(config)
    assert np.asarray(read_rows(rows, config.reader, info).columns["noise_r"]).tolist() == expected


def test_planes_of_a_mask_by_name() -> None:
    flags = np.zeros(IMAGE.shape, np.int32)
    flags[0, 0], flags[1, 1], flags[2, 2] = 1 << 8, 1 << 5, 1 << 8 | 1 << 5
    hsc = _hdu(flags, "MASK", **{"HIERARCH MP_NO_DATA": 8, "HIERARCH MP_DETECTED": 5})
    rubin = _hdu(flags, "MASK", MSKN0008="NO_DATA", MSKN0005="DETECTED")
    for mask in (hsc, rubin):
        hdus = [fits.PrimaryHDU(), _hdu(IMAGE, "IMAGE"), mask]
        assert np.argwhere(np.isnan(_read(hdus)[0])).tolist() == [[0, 0], [2, 2]]
        assert np.argwhere(np.isnan(_read(hdus, mask_planes=("DETECTED",))[0])).tolist() == [[1, 1], [2, 2]]
        assert np.isnan(_read(hdus, mask_planes=("any",))).sum() == 3
        assert np.isfinite(_read(hdus, mask_planes=())).all()


def test_saturated_pixels_have_no_value_in_the_core_alone() -> None:
    pixels = np.random.default_rng(0).normal(0, 1, (30, 30)).astype(np.float32)
    flags = np.zeros(pixels.shape, np.int32)
    flags[3, 4], flags[16, 13] = 2, 2
    hdus = [fits.PrimaryHDU(), _hdu(pixels, "IMAGE"), _hdu(flags, "MASK", **{"HIERARCH MP_SAT": 1})]
    assert np.argwhere(np.isnan(_read(hdus)[0])).tolist() == [[16, 13]]


@pytest.mark.parametrize(
    ("names", "siblings"),
    [
        (["G265911fitim", "G265911mskim", "G265911psfim", "G265911segim", "G265911sigma"], [1, 2, 3, 4]),
        (["G1", "G2", "G1mask"], [2]),
        (["a_sci", "a_wht", "a_err", "b_sci"], [1, 2]),
        (["mask_G1", "G1"], [0]),
        (["ls-0591m305-image-r", "ls-0591m305-invvar-r", "ls-0591m305-psfsize-r"], [1, 2]),
        # NOAO's pipelines; unWISE; GALFIT's users.
        (["ksb_ooi_g.CCD4", "ksb_ood_g.CCD4", "ksb_oow_g.CCD4"], [1, 2]),
        (["unwise-1866p257-w1-img-m", "unwise-1866p257-w1-invvar-m", "unwise-1866p257-w1-std-m"], [1, 2]),
        (["2114_F115Wsci", "2114_F115Wsigma", "mask2114_F115W"], [1, 2]),
        (["f115w", "f115w_err", "f115w_mask"], [1, 2]),
        (["data", "noise_map", "psf"], [1, 2]),
        # No other file is theirs, or the word is part of a name.
        (["G1mask", "G2mask"], []),
        (["exp_0001", "dev_0001"], []),
        (["maskelyne", "unmasked"], []),
    ],
)
def test_siblings_by_their_names(names: list[str], siblings: list[int]) -> None:
    assert without_siblings(names) == ([row for row in range(len(names)) if row not in siblings], siblings)


def test_siblings_in_a_folder_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("G1.fits", "G1_psf.fits", "G1_mask.fits.gz", "G2.fits"):
        (tmp_path / name).touch()
    assert [uri.rpartition("/")[2] for uri in matching_files(str(tmp_path), "*.fits*")] == ["G1.fits", "G2.fits"]
    assert "2 of 4 files are left out" in caplog.text
    assert "such as G1_mask.fits.gz, G1_psf.fits" in caplog.text
    assert len(matching_files(str(tmp_path), "*psf*")) == 1


def test_folders_of_psfs_and_masks_are_left_out(tmp_path: Path) -> None:
    for name in ("1/f115w.fits", "1/PSF/F115W_hybrid.fits", "2/F115W.fits", "masks/G1.fits"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [uri.rpartition("/")[2] for uri in matching_files(str(tmp_path), "*.fits*")] == ["f115w.fits", "F115W.fits"]
    assert len(matching_files(str(tmp_path / "masks"), "*.fits*")) == 1
    assert len(matching_files(str(tmp_path / "1" / "PSF"), "*.fits*")) == 1
