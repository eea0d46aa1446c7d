"""Headers of resampled images, against astropy's own reading of both headers."""

import contextlib
import io
import socket

import numpy as np
import pytest
from astropy.coordinates import angular_separation
from astropy.io import fits
from astropy.table import Table
from astropy.time import Time
from astropy.time import core as time_core
from astropy.utils import iers
from astropy.wcs import WCS

from gampen_ray.data.catalog_formats import read_format
from gampen_ray.data.wcs import centre_and_scale, mapped_header

MAPS = {
    "scale": ([[0.7, 0.0], [0.0, 0.7]], [4.3, -2.1]),
    "shear and shift": ([[0.6, 0.25], [-0.1, 1.3]], [11.0, 3.5]),
    "flip": ([[-0.8, 0.0], [0.0, 1.4]], [30.2, 0.4]),
}
TAN = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 21.37, "CRPIX2": -8.25}
SKY = {"CRVAL1": 150.1234567890123, "CRVAL2": 2.2345678901234}
CD = {"CD1_1": -3.1e-5, "CD1_2": 2.2e-5, "CD2_1": 2.1e-5, "CD2_2": 3.3e-5}
CDELT = {"CDELT1": -4.7e-5, "CDELT2": 4.6e-5}
SIP = {
    "CTYPE1": "RA---TAN-SIP",
    "CTYPE2": "DEC--TAN-SIP",
    **{"A_ORDER": 3, "A_0_2": 2e-5, "A_1_1": -3e-5, "A_2_0": 4e-5, "A_3_0": 1e-7, "A_1_2": -2e-7},
    **{"B_ORDER": 2, "B_0_2": -3e-5, "B_1_1": 1e-5, "B_2_0": 2e-5},
    **{"AP_ORDER": 2, "AP_1_0": 1e-4, "AP_0_2": -2e-5, "AP_1_1": 3e-5, "BP_ORDER": 2, "BP_2_0": -2e-5, "BP_0_1": -1e-4},
}
HEADERS = {
    "CD": TAN | SKY | CD,
    "PC and CDELT": TAN | SKY | CDELT | {"PC1_1": 0.8, "PC1_2": -0.6, "PC2_1": 0.6, "PC2_2": 0.8},
    "CDELT alone": TAN | SKY | CDELT,
    "CROTA2": TAN | SKY | CDELT | {"CROTA2": 33.0},
    "arcsec": TAN | {"CRVAL1": 5e5, "CRVAL2": 8e3, "CDELT1": -0.2, "CDELT2": 0.2, "CUNIT1": "arcsec", "CUNIT2": "arcsec"},
    "swapped axes": SKY | CD | {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": 2.2, "CRVAL2": 150.1, "CRPIX1": 9.0},
    "galactic CAR": TAN | CDELT | {"CTYPE1": "GLON-CAR", "CTYPE2": "GLAT-CAR", "CRVAL1": 12.0, "CRVAL2": 0.0},
    "native pole": TAN | SKY | CD | {"LONPOLE": 150.0, "RADESYS": "FK5", "EQUINOX": 2000.0},
    "ZPN": TAN | SKY | CD | {"CTYPE1": "RA---ZPN", "CTYPE2": "DEC--ZPN", "PV2_1": 1.0, "PV2_3": 42.0},
    "TPV": TAN
    | SKY
    | CD
    | {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.001, "PV1_4": 0.05, "PV2_1": 0.999, "PV2_5": 0.03},
    "TAN with PV": TAN | SKY | CD | {"PV1_1": 1.001, "PV1_4": 0.05, "PV2_1": 0.999, "PV2_5": 0.03},
    "SIP": TAN | SKY | CD | SIP,
    "SIP with PV": TAN | SKY | CD | SIP | {"PV1_1": 1.001, "PV1_4": 0.05, "PV2_1": 0.999, "PV2_5": 0.03},
    "three axes": TAN
    | SKY
    | CD
    | {"WCSAXES": 3, "CTYPE3": "WAVE", "CRVAL3": 6e-7, "CRPIX3": 1.0, "CD3_3": 1e-9, "CUNIT3": "m"},
}


def _header(cards: dict[str, object]) -> fits.Header:
    return fits.Header(list(cards.items()))


def _through_a_file(header: fits.Header) -> fits.Header:
    # As cards of 80 characters.
    return fits.Header.fromstring(header.tostring())


def _separation_arcsec(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(angular_separation(*np.radians([a[:, 0], a[:, 1], b[:, 0], b[:, 1]]))) * 3600


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning")
@pytest.mark.parametrize("case", HEADERS)
def test_a_pixel_keeps_its_place_in_the_sky(case: str, name: str) -> None:
    matrix, offset = (np.array(values) for values in MAPS[name])
    header = _header(HEADERS[case])
    old = WCS(header, naxis=2)
    new = WCS(_through_a_file(mapped_header(header, matrix, offset)), naxis=2)
    crop = np.random.default_rng(0).uniform(-5, 60, size=(50, 2))
    sky, expected = new.all_pix2world(crop, 0), old.all_pix2world(crop @ matrix.T + offset, 0)
    if case == "swapped axes":
        sky, expected = sky[:, ::-1], expected[:, ::-1]
    assert _separation_arcsec(sky, expected).max() < 1e-6
    assert new.wcs.radesys == old.wcs.radesys
    # The old header is wrong for these pixels: without the map, positions differ.
    assert _separation_arcsec(expected, old.all_pix2world(crop, 0)).max() > 0.1 or case == "swapped axes"


@pytest.mark.parametrize("name", MAPS)
def test_the_inverse_polynomials_follow_too(name: str) -> None:
    matrix, offset = (np.array(values) for values in MAPS[name])
    header = _header(HEADERS["SIP"])
    old, new = WCS(header), WCS(mapped_header(header, matrix, offset))
    sky = old.all_pix2world(np.random.default_rng(0).uniform(0, 40, size=(20, 2)), 0)
    # astropy's sip_foc2pix takes coordinates relative to CRPIX.
    pixel, crop = (wcs.sip_foc2pix(wcs.wcs_world2pix(sky, 1) - wcs.wcs.crpix, 1) - 1 for wcs in (old, new))
    np.testing.assert_allclose(crop @ matrix.T + offset, pixel, atol=1e-7)


def test_a_distortion_that_matters_is_tested() -> None:
    cards = HEADERS["SIP"]
    linear = {key: value for key, value in cards.items() if key[0] not in "AB"} | {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}
    corner = np.array([[60.0, 60.0]])
    sky = [WCS(_header(values)).all_pix2world(corner, 0) for values in (cards, linear)]
    assert _separation_arcsec(*sky)[0] > 0.01


def test_other_cards_stay_and_stale_ones_go() -> None:
    header = _header(HEADERS["CD"] | {"BUNIT": "nJy", "EXPTIME": 30.0, "OBJECT": "G1", "PVALUE": 0.5, "A_RATIO": 2.0})
    header["DATE-OBS"] = ("2020-01-01", "start")
    header["COMMENT"] = "one"
    header["HISTORY"] = "two"
    stale = {
        "CHECKSUM": "x",
        "DATASUM": "1",
        "DATAMAX": 9.0,
        "BZERO": 2.0,
        "LTV1": 3.0,
        "LTM1_1": 1.0,
        "CTYPE1A": "X",
        "CD1_1A": 2,
    }
    header.update(stale)
    mapped = mapped_header(header, np.eye(2) / 2, np.zeros(2))
    assert not set(stale) & set(mapped)
    for key in ("BUNIT", "EXPTIME", "OBJECT", "PVALUE", "A_RATIO", "DATE-OBS"):
        assert mapped[key] == header[key]
    assert mapped.comments["DATE-OBS"] == "start"
    assert (list(mapped["COMMENT"]), list(mapped["HISTORY"])) == (["one"], ["two"])
    assert len(header) == len(_header(HEADERS["CD"])) + 8 + len(stale)


def test_without_a_wcs_none_is_written() -> None:
    mapped = mapped_header(_header({"BUNIT": "Jy", "CRPIX1": 3.0, "CDELT1": 1.0}), np.eye(2), np.zeros(2))
    assert list(mapped) == ["BUNIT"]


@pytest.mark.parametrize(
    ("cards", "reason"),
    [
        (TAN | SKY | CD | {"CPDIS1": "LOOKUP"}, "it has distortions other than SIP"),
        (TAN | SKY | CD | {"CTYPE1": "RA---TAN-TPD", "CTYPE2": "DEC--TAN-TPD"}, "it has distortions other than SIP"),
        ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, "its first two axes are not celestial"),
        (TAN | SKY | {"CD1_1": 0.0, "CD2_2": 0.0}, "singular"),
        (TAN | SKY | CD | {"CTYPE2": "GLAT-SIN"}, ""),
    ],
)
def test_an_unsupported_wcs_is_dropped_with_a_history_card(cards: dict[str, object], reason: str) -> None:
    mapped = mapped_header(_header(cards), np.eye(2), np.zeros(2))
    assert set(mapped) == {"HISTORY"}
    assert str(mapped["HISTORY"]).replace("\n", "").startswith("WCS left out: ")
    assert reason in str(mapped["HISTORY"]).replace("\n", "")


@pytest.mark.filterwarnings("ignore")
def test_no_header_and_no_table_opens_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_: asked.append(host))
    # The first time of a process, on a day when all tables have expired.
    monkeypatch.setattr(time_core, "_LEAP_SECONDS_CHECK", time_core._LeapSecondsCheck.NOT_STARTED)
    monkeypatch.setattr(iers.LeapSeconds, "_today", classmethod(lambda cls: Time("2060-01-01", scale="tai", format="iso")))
    dated = {"DATE-OBS": "2060-01-01T00:00:00", "MJD-OBS": 73459.0}
    fk4 = {"RADESYS": "FK4", "EQUINOX": 2060.0}
    for kind, system in (("TLON", {}), ("RA--", {}), ("RA--", fk4), ("ELON", {}), ("GLON", {})):
        axes = {"CTYPE1": f"{kind}-TAN", "CTYPE2": f"{kind.replace('LON', 'LAT').replace('RA--', 'DEC-')}-TAN"}
        centre_and_scale(_header(axes | SKY | CDELT | dated | system), (32, 32))
    table = Table({"object_id": [1, 2], "t": Time(["2060-01-01", "2060-01-02"], scale="tai")})
    lines = io.StringIO()
    table.write(lines, format="ascii.ecsv")
    monkeypatch.setattr(time_core, "_LEAP_SECONDS_CHECK", time_core._LeapSecondsCheck.NOT_STARTED)
    assert read_format("ecsv", lines.getvalue().encode(), ())["object_id"].to_pylist() == [1, 2]
    assert asked == []
    assert iers.conf.auto_download
    # The same does ask without this package.
    monkeypatch.setattr(time_core, "_LEAP_SECONDS_CHECK", time_core._LeapSecondsCheck.NOT_STARTED)
    with contextlib.suppress(Exception):
        str(Time("2060-01-01", scale="utc").tai)
    assert asked


def test_only_equatorial_and_galactic_coordinates_are_positions() -> None:
    galactic = HEADERS["galactic CAR"]
    plain = centre_and_scale(_header(galactic), (32, 32))
    assert plain[2] == pytest.approx(4.65e-5 * 3600, rel=0.01)
    # astropy alone takes these for right ascension and declination.
    assert centre_and_scale(_header(galactic | {"RADESYS": "ICRS"}), (32, 32)) == plain
    for system in ("ELON", "TLON", "HPLN"):
        axes = {"CTYPE1": f"{system}-TAN", "CTYPE2": f"{system.replace('LON', 'LAT').replace('LN', 'LT')}-TAN"}
        assert np.isnan(centre_and_scale(_header(TAN | SKY | CD | axes | {"RADESYS": "ICRS"}), (32, 32))[0])
