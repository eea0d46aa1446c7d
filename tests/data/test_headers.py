"""What FITS headers say of an image, against numbers of the surveys' documentation."""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import Cutout, CutoutError
from gampen_ray.data.headers import canonical_band, header_facts
from gampen_ray.data.readers import read_cutout
from gampen_ray.data.wcs import centre_and_scale

REAL = Path(__file__).parents[3] / "shared" / "data"
SHAPE = (40, 50)
IMAGE = np.random.default_rng(0).normal(100, 10, size=SHAPE).astype(np.float32)


def _facts(cards: Mapping[str, Any], primary: Mapping[str, Any] | None = None) -> dict[str, Any]:
    header = fits.Header([(name, *(value if isinstance(value, tuple) else (value,))) for name, value in cards.items()])
    return header_facts(header, fits.Header(primary or {}), SHAPE)


def _read(hdus: list[Any], **fields: object) -> Cutout:
    buffer = io.BytesIO()
    fits.HDUList(hdus).writeto(buffer)
    return read_cutout(buffer.getvalue(), "a.fits", ReaderConfig(**fields))


def _wcs(scale_arcsec: float = 0.2, **cards: object) -> dict[str, Any]:
    axes = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0, "CRPIX1": 25.5, "CRPIX2": 20.5}
    return axes | {"CDELT1": -scale_arcsec / 3600, "CDELT2": scale_arcsec / 3600} | cards


@pytest.mark.parametrize(
    ("cards", "zero_point"),
    [
        ({"BUNIT": "nJy"}, 31.4),
        ({"BUNIT": "nJy", "MAGZERO": 31.4}, 31.4),
        ({"BUNIT": "uJy"}, 23.9),
        ({"BUNIT": "10.0*nanoJansky"}, 28.9),
        ({"BUNIT": "mJy"}, 16.4),
        ({"BUNIT": "nanomaggy"}, 22.5),
        ({"BUNIT": "nanomaggies"}, 22.5),
        ({"BUNIT": "1e-12 mgy"}, 30.0),
        ({"BUNIT": "nmgy"}, 22.5),
        # JWST: AB = -6.10 - 2.5 log10(PIXAR_SR).
        ({"BUNIT": "MJy/sr", "PIXAR_SR": 2.29e-14}, -6.10 - 2.5 * math.log10(2.29e-14)),
        ({"BUNIT": "MJy/sr"} | _wcs(0.031), -6.10 - 2.5 * math.log10((0.031 / 206264.806) ** 2)),
        ({"MAGZERO": 30.0, "BUNIT": "electrons"}, 30.0),
        ({"MAGZPT": "26.5"}, 26.5),
        ({"PHOTZP": 30.0}, 30.0),
        # HSC: 27.0.
        ({"FLUXMAG0": 63095734448.0194}, 27.0),
        # ACS F814W: 25.94 for electrons per second.
        ({"PHOTFLAM": 7.0332e-20, "PHOTPLAM": 8045.0, "BUNIT": "ELECTRONS/S"}, 25.946),
        ({"PHOTFLAM": 7.0332e-20, "PHOTPLAM": 8045.0, "BUNIT": "ELECTRONS", "EXPTIME": 100}, 30.946),
        ({"PHOTFLAM": 7.0332e-20, "PHOTPLAM": 8045.0, "BUNIT": "electron s-1"}, 25.946),
        # COSMOS: MultiDrizzle wrote counts per second, and kept the unit of the exposures.
        ({"PHOTFLAM": 7.0332e-20, "PHOTPLAM": 8045.0, "BUNIT": "ELECTRONS", "EXPTIME": 4056.0, "D001OUUN": "cps"}, 25.946),
        ({"PHOTFLAM": 7.0332e-20, "PHOTPLAM": 8045.0, "EXPTIME": 100.0, "D001OUUN": "counts"}, 30.946),
        ({"BUNIT": "uJy", "D001OUUN": "cps"}, 23.9),
        # NOAO's pipeline for DECam: MAGZERO is that of the whole exposure.
        ({"MAGZERO": 30.27, "MAGZPT": (24.713, "[mag] Magnitude zero point per sec"), "EXPTIME": 167.0, "BUNIT": "adu"}, 30.27),
        ({"MAGZPT": (24.713, "[mag] Magnitude zero point per sec"), "EXPTIME": 167.0, "BUNIT": "adu"}, 30.27),
        ({"MAGZPT": (24.713, "[mag] Magnitude zero point per sec"), "EXPTIME": 167.0, "BUNIT": "adu/s"}, 24.713),
        ({"BSOFTEN": 12.0, "BOFFSET": 1.0, "EXPTIME": 1000.0}, 32.5),
        # Pan-STARRS's cutouts are not compressed.
        ({"HIERARCH FPA.ZP": 25.0, "EXPTIME": 1000.0}, 32.5),
        ({"NMGY": 0.0048, "EXPTIME": "53.9"}, 22.5),
        ({"SURVEY": "LegacySurvey"} | _wcs(0.262), 22.5),
        # A cutout of Galaxy Zoo DECaLS: at 0.1 arcsec the sums are (0.262 / 0.1)^2 times those at 0.262 arcsec.
        ({"SURVEY": "DECaLS"} | _wcs(0.1), 22.5 + 2.5 * math.log10(2.62**2)),
        ({"BUNIT": "uJy/arcsec2"} | _wcs(0.2), 23.9 - 2.5 * math.log10(0.2**2)),
    ],
)
def test_zero_points(cards: dict[str, Any], zero_point: float) -> None:
    assert _facts(cards)["zero_point_mag"] == pytest.approx(zero_point, abs=3e-3)


@pytest.mark.parametrize(
    "cards",
    [
        {},
        {"BUNIT": "adu"},
        {"BUNIT": "counts", "EXPTIME": 10.0},
        {"BUNIT": "MJy/sr"},
        {"BUNIT": "Jy/beam"},
        {"MAGZERO": 0.0},
        {"MAGZERO": "unknown"},
        {"MAGZP": 20.5, "TELESCOP": "WISE"},
        {"MAGZPT": 23.9, "MAGZRR": 0.02},
        {"MAGZPT": 23.9, "MAGSYS": "Vega"},
        {"SURVEY": "LegacySurvey", "BUNIT": "electrons"},
        # The sum of its pixels depends on their scale.
        {"SURVEY": "LegacySurvey"},
        {"PHOTFLAM": 7e-20, "PHOTPLAM": 8045.0, "BUNIT": "ELECTRONS"},
        # WFPC2: counts of the whole exposure, without a unit.
        {"PHOTFLAM": 3.48e-18, "PHOTPLAM": 5442.9, "EXPTIME": 1600.0, "PHOTMODE": "WFPC2,1,A2D7,F555W,,CAL"},
        {"PHOTFLAM": 7e-20, "PHOTPLAM": 8045.0, "BUNIT": "UNKNOWN", "EXPTIME": 100.0},
        {"MAGZPT": (24.713, "[mag] Magnitude zero point per sec"), "EXPTIME": 167.0},
    ],
)
def test_headers_without_a_zero_point_in_ab_magnitudes(cards: dict[str, Any]) -> None:
    assert _facts(cards)["zero_point_mag"] is None


def test_a_zero_point_whose_comment_says_vega() -> None:
    card = fits.Header([("MAGZPT", 23.9, "[mag] zero point, Vega"), ("EXPTIME", 10.0)])
    assert header_facts(card, fits.Header(), SHAPE)["zero_point_mag"] is None
    assert header_facts(fits.Header(), card, SHAPE)["zero_point_mag"] is None


def test_a_header_that_contradicts_itself_has_a_reason() -> None:
    with pytest.raises(CutoutError, match=r"the zero point is 31\.400 by BUNIT nJy but 27\.000 by MAGZERO"):
        _facts({"BUNIT": "nJy", "MAGZERO": 27.0})
    hdu = fits.PrimaryHDU(IMAGE, fits.Header({"BUNIT": "nJy", "MAGZERO": 27.0}))
    assert _read([hdu], headers="ignore").zero_point_mag is None


def test_pixels_in_magnitudes_are_refused() -> None:
    with pytest.raises(CutoutError, match="the pixels are magnitudes by BUNIT mag/arcsec2, not linear in flux"):
        _facts({"BUNIT": "mag/arcsec2"})


def test_cards_of_the_first_hdu_count_where_the_image_has_none() -> None:
    facts = _facts({"FILTER": "g"} | _wcs(), {"FLUXMAG0": 10**10.8, "FILTER": "i", "CRVAL1": 10.0})
    assert (facts["band"], facts["ra"]) == ("g", pytest.approx(150.0))
    assert facts["zero_point_mag"] == pytest.approx(27.0)


@pytest.mark.parametrize(
    ("cards", "scale"),
    [
        (_wcs(0.262), 0.262),
        ({**_wcs(1.0), "CD1_1": -5e-5, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 5e-5}, 0.18),
        # CD and rotation: GALFIT's PC with CDELT = 1.
        ({**_wcs(), "CDELT1": 1.0, "CDELT2": 1.0, "PC1_1": -4e-5, "PC1_2": -3e-5, "PC2_1": -3e-5, "PC2_2": 4e-5}, 0.18),
        # SIP makes a pixel four times as wide as high.
        ({**_wcs(0.2), "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2, "A_1_0": 3.0}, 0.4),
        # TPV with a linear factor of 1.5 on both axes.
        ({**_wcs(0.2), "CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.5, "PV2_1": 1.5}, 0.3),
        ({"PIXSCALE": 0.2}, 0.2),
        ({}, None),
        # A WCS of default values.
        ({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}, None),
    ],
)
def test_pixel_scales(cards: dict[str, Any], scale: float | None) -> None:
    assert _facts(cards)["pixel_scale_arcsec"] == (scale and pytest.approx(scale, rel=2e-4))


@pytest.mark.parametrize("pole", [-90.0, 0.0, 89.9999])
def test_the_scale_does_not_depend_on_the_declination(pole: float) -> None:
    assert _facts(_wcs(CRVAL2=pole))["pixel_scale_arcsec"] == pytest.approx(0.2, rel=1e-4)


@pytest.mark.parametrize(
    "cards",
    [
        {"WCSAXES": 65536},
        {"WCSAXESA": 65536},
        {"WCSAXES": -3},
        {"WCSAXES": "two"},
        {"A_ORDER": 10**9, "B_ORDER": 10**9},
        {"AP_ORDER": 10**6},
        {"CTYPE1": "RA---TAB", "CTYPE2": "DEC--TAB"},
    ],
)
def test_hostile_coordinates_are_left_out_before_they_take_memory(cards: dict[str, Any]) -> None:
    ra, dec, scale = centre_and_scale(fits.Header(_wcs() | {"WCSAXES": 2} | cards), SHAPE)
    assert (math.isnan(ra), math.isnan(dec), scale) == (True, True, None)


@pytest.mark.parametrize(
    ("name", "band"),
    [
        ("r", "r"),
        ("HSC-I2", "i"),
        ("r DECam SDSS c0002 6415.0 1480.0", "r"),
        ("i.MP9702", "i"),
        ("sdssg", "g"),
        ("DES-G", "g"),
        ("F814W", "F814W"),
        ("f200w", "F200W"),
        ("f158", "F158"),
        ("F814", ""),
        ("NIR_Y", "y"),
        ("Ks", "K"),
        ("VIS", "VIS"),
        ("B", "B"),
        ("V Harris", "V"),
        ("bokr", "r"),
        ("CLEAR1L", ""),
        ("unknown", ""),
        ("", ""),
    ],
)
def test_names_of_bands(name: str, band: str) -> None:
    assert canonical_band(name) == band


def test_the_wheel_that_is_not_clear_has_the_band() -> None:
    assert _facts({"FILTER1": "CLEAR1L", "FILTER2": "F814W"})["band"] == "F814W"
    assert _facts({"FILTER": "F150W2", "PUPIL": "F162M"})["band"] == "F162M"
    assert _facts({"FILTER": "F200W", "PUPIL": "CLEAR"})["band"] == "F200W"
    assert _facts({"FILTER1": 25, "FILTNAM1": "F555W"})["band"] == "F555W"
    assert _facts({"PHOTMODE": "ACS WFC1 F814W MJD#56000.0"})["band"] == "F814W"
    assert _facts({"HIERARCH FPA.FILTERID": "r.00000"})["band"] == "r"


def test_asinh_compressed_pixels_are_made_linear() -> None:
    flux = np.concatenate([np.linspace(-40, 40, 1000), np.linspace(40, 5000, 1000)]).reshape(SHAPE)
    softening, offset, a = 12.5, 3.25, 1.0857362047581296
    compressed = a * np.arcsinh((flux - offset) / (2 * softening))
    hdu = fits.PrimaryHDU(compressed, fits.Header({"BSOFTEN": softening, "BOFFSET": offset, "EXPTIME": 100.0}))
    cutout = _read([hdu])
    np.testing.assert_allclose(cutout.image_CHW[0], flux, rtol=1e-6, atol=1e-5)
    assert cutout.zero_point_mag == pytest.approx(30.0)
    assert "BSOFTEN" not in cutout.header
    # As stacks are stored: scaled integers.
    hdu.scale("int32", bscale=1e-8)
    np.testing.assert_allclose(_read([hdu], headers="ignore").image_CHW[0], flux, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("compressed", [False, True])
def test_blank_pixels_of_unsigned_integers_have_no_value(compressed: bool) -> None:
    pixels = np.arange(2000, dtype=np.uint16).reshape(SHAPE) + 100
    pixels[3, 4:7] = 65535
    hdu = fits.CompImageHDU(pixels) if compressed else fits.ImageHDU(pixels)
    hdu.header["BLANK"] = 32767
    image_HW = _read([fits.PrimaryHDU(), hdu]).image_CHW[0]
    assert np.argwhere(np.isnan(image_HW)).tolist() == [[3, 4], [3, 5], [3, 6]]
    assert image_HW[3, 3] == 253


needs_data = pytest.mark.skipif(not REAL.exists(), reason="the real files (../shared/data) are not here")


@needs_data
@pytest.mark.parametrize(
    ("name", "zero_point", "scale", "band", "side"),
    [
        ("des_r.fits", 30.0, 0.263, "r", 456),
        ("hyrax_2-cutout-HSC-I-8279-pdr2_wide.fits", 27.0, 0.168, "i", 25),
        ("legacy_grz_invvar.fits", 22.5, 0.262, "r", 256),
        ("tractor_frame-r-001000-1-0100.fits.bz2", 22.5, 0.396, "r", 100),
        ("galfit_output.fits", None, 0.0642, "", 46),
        ("../sdss_cutouts/587722984439545906-g.fits", None, None, "", 167),
    ],
)
def test_real_files(name: str, zero_point: float | None, scale: float | None, band: str, side: int) -> None:
    path = REAL / "real" / name
    cutout = read_cutout(path.read_bytes(), path.name, ReaderConfig(bands=(band or "unknown",)))
    assert cutout.zero_point_mag == (zero_point and pytest.approx(zero_point, abs=1e-4))
    assert cutout.pixel_scale_arcsec == (scale and pytest.approx(scale, rel=2e-3))
    assert (cutout.band, cutout.image_CHW.shape[1]) == (band, side)
    assert cutout.image_CHW.std() > 0


def test_coordinates_without_their_lookup_tables_and_damaged_cards() -> None:
    tables = {"CPDIS1": "LOOKUP", "DP1.EXTVER": 1.0, "D2IMDIS1": "Lookup", "D2IMEXT": "ref.fits"}
    header = fits.Header(_wcs(0.05, **{name: value for name, value in tables.items() if "." not in name}))
    header.append(fits.Card("SKEW", "0"))
    ra, dec, scale = centre_and_scale(header, SHAPE)
    assert (ra, dec, scale) == (pytest.approx(150, abs=1e-3), pytest.approx(2, abs=1e-3), pytest.approx(0.05))
    # A scanned plate's header, in which a number has lost its place.
    damaged = fits.Header.fromstring(header.tostring().replace("SKEW    = '0       '", "SKEW    = -1.3, 0.2 "))
    assert centre_and_scale(damaged, SHAPE)[2] == pytest.approx(0.05)
    damaged["CRPIX1"] = "none"
    assert centre_and_scale(damaged, SHAPE)[2] is None
