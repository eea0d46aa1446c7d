"""Celestial coordinates in FITS headers: centre and pixel scale of an image, and the header of a resampled one.

Pixel coordinates are (x, y), zero at the centre of the first pixel; FITS cards count from one.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from astropy import log
from astropy.io import fits
from astropy.wcs import WCS

from gampen_ray.data.offline import offline

__all__ = ["celestial_wcs", "centre_and_scale", "mapped_header"]

_CELESTIAL = re.compile(
    # Axes, matrices, SIP polynomials and alternate systems. PVi_m belong to the projection and stay.
    r"(WCSAXES|CTYPE|CUNIT|CRVAL|CRPIX|CDELT|CROTA|CNAME|CRDER|CSYER)\d*[A-Z]?|(PC|CD)\d{6}"
    r"|(PC|CD)\d+_\d+[A-Z]?|(PV|PS)\d+_\d+[A-Z]|[AB]P?_(ORDER|DMAX|\d+_\d+)"
    r"|LONPOLE[A-Z]?|LATPOLE[A-Z]?|(WCSNAME|RADESYS|EQUINOX)[A-Z]"
    # Lookup tables and other distortions; IRAF's coordinates.
    r"|(CPDIS|CQDIS|D2IMDIS|CPERR|CQERR|D2IMERR|DP|DQ|D2IM)\d[A-Z]?|D2IMEXT|D2IMARR|AXISCORR"
    r"|LTV\d|LTM\d_\d|WAT\d_\d{3}|WCSDIM|WAXMAP\d\d"
)
_STALE = re.compile(r"CHECKSUM|DATASUM|ZHECKSUM|ZDATASUM|DATAMIN|DATAMAX|BLANK|BSCALE|BZERO")
_TABLES = re.compile(r"(CPDIS|CQDIS|D2IMDIS)\d[A-Z]?|D2IMEXT|D2IMARR|AXISCORR")
_OF_TABLES = re.compile(_TABLES.pattern + r"|(DP|DQ|D2IM|CPERR|CQERR|D2IMERR)\d.*")
# Projections with a fourth part in CTYPE: only SIP is understood.
_OTHER_DISTORTION = re.compile(r".{8}-(?!SIP)\w+")
# Numbers by which WCSLIB and astropy allocate memory before they look at anything else; beyond them a process may end.
_LIMITS = {"WCSAXES": 9, "NAXIS": 9, "A_ORDER": 9, "B_ORDER": 9, "AP_ORDER": 9, "BP_ORDER": 9}
# WCSLIB looks an axis up that a distortion names, whether there is one or not.
_AXIS = re.compile(r"D[PQ]\d+[A-Z]?\.(?:AXIS|OFFSET|SCALE)\.(\d+)")
_NUMBERS = re.compile(r"(CRVAL|CRPIX|CDELT|CROTA)\d+[A-Z]?|(PC|CD|PV)\d+_\d+[A-Z]?|[AB]P?_\d+_\d+|(LON|LAT)POLE[A-Z]?")
# Coarser or finer pixels do not show galaxies: the header has default values.
_PLAUSIBLE_ARCSEC = (1e-4, 60.0)


def celestial_wcs(header: fits.Header, **options: Any) -> WCS:
    """Return the WCS of a header whose sizes are safe to allocate.

    Parameters
    ----------
    options
        Of astropy's `WCS`.

    Raises
    ------
    ValueError
        If a size is beyond what the standard has a use for, a number is none, or the coordinates are in a table.
    """
    for name in header:
        # WCSAXESA to WCSAXESZ are those of alternate systems.
        limit = _LIMITS.get("WCSAXES" if name.startswith("WCSAXES") else name)
        if limit is not None and not 0 <= int(str(header[name])) <= limit:
            raise ValueError(f"{name} is {header[name]}: not within 0 to {limit}")
        if (axis := _AXIS.match(name)) and not 1 <= int(axis[1]) <= _LIMITS["NAXIS"]:
            raise ValueError(f"{name}: there is no such axis")
        # WCSLIB would skip the card and take its default.
        if _NUMBERS.fullmatch(name):
            value: Any = header[name]
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}: not a number")
        if name.startswith("CTYPE") and str(header[name])[4:8] == "-TAB":
            raise ValueError(f"{name} is {header[name]}: coordinates in a table are not read")
    level = log.level
    # Remarks on the names of projections, for each file.
    log.setLevel("WARNING")
    try:
        return WCS(header, **options)
    finally:
        log.setLevel(level)


def centre_and_scale(header: fits.Header, shape: tuple[int, ...]) -> tuple[float, float, float | None]:
    """Return the sky position of an image's centre, deg (ICRS), and the side of a pixel there, arcsec.

    The scale is the square root of a pixel's area, from the whole WCS with its distortions (SIP, TPV); lookup tables of
    distortions, as in HST's exposures, are in other HDUs and left out, which moves the centre by up to some pixels.

    Parameters
    ----------
    header
        Of the image.
    shape
        Height and width, pixels.

    Returns
    -------
    tuple
        NaN, NaN and None where the header has no usable coordinates, equatorial or galactic; only the scale None where it is no
        galaxy's.
    """
    nowhere = math.nan, math.nan, None
    if "CTYPE1" not in header:
        return nowhere
    try:
        try:
            celestial: Any = celestial_wcs(header).celestial
        except Exception:
            celestial = celestial_wcs(_readable(header)).celestial
        # astropy would read the coordinates of other systems by RADESYS as equatorial, or those of the Earth by its rotation.
        if celestial.naxis != 2 or celestial.wcs.lngtyp not in ("RA", "GLON"):
            return nowhere
        if celestial.wcs.lngtyp == "GLON":
            celestial.wcs.radesys = ""
        x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
        with offline():
            sky = celestial.pixel_to_world([x, x + 1, x], [y, y, y + 1]).icrs
        origin_3, right_3, up_3 = sky.cartesian.xyz.value.T
        area = np.linalg.norm(np.cross(right_3 - origin_3, up_3 - origin_3))
        scale = math.degrees(math.sqrt(area)) * 3600
        ra, dec = float(sky[0].ra.deg), float(sky[0].dec.deg)
    except Exception:
        # The pixels are usable without a WCS.
        return nowhere
    if not math.isfinite(ra + dec):
        return nowhere
    return ra, dec, scale if _PLAUSIBLE_ARCSEC[0] < scale < _PLAUSIBLE_ARCSEC[1] else None


def _readable(header: fits.Header) -> fits.Header:
    # Without lookup tables, and without damaged cards that do not belong to the coordinates.
    return fits.Header([card for card in header.cards if not _OF_TABLES.fullmatch(str(card.keyword)) and _is_readable(card)])


def _is_readable(card: fits.Card) -> bool:
    if _CELESTIAL.fullmatch(str(card.keyword)):
        return True
    try:
        return card.value is not None
    except Exception:
        return False


def mapped_header(header: fits.Header, matrix_22: np.ndarray, offset_2: np.ndarray) -> fits.Header:
    """Return a header for the image whose pixel p' lies at the pixel p = matrix p' + offset of the header's image.

    The celestial WCS of the first two axes is carried through, exactly: the linear part becomes a CD matrix in degrees, and
    SIP polynomials keep their order. A WCS that is not celestial, is damaged or has distortions other than SIP is dropped, with
    a HISTORY card; alternate systems, and cards of the old pixel values (checksums, extrema, integer scaling), are dropped
    without one. All other cards are kept.

    Parameters
    ----------
    header
        Header of the image, without structural cards.
    matrix_22, offset_2
        Invertible affine map of (x, y) in zero-based pixels.
    """
    mapped = fits.Header(
        [card for card in header.cards if not (_CELESTIAL.fullmatch(card.keyword) or _STALE.fullmatch(card.keyword))]
    )
    if "CTYPE1" not in header:
        return mapped
    try:
        mapped.extend(_mapped_wcs(header, matrix_22, offset_2))
    except Exception as error:
        # The pixels are usable without a WCS.
        mapped.add_history(f"WCS left out: {' '.join(str(error).split())[:200]}")
    return mapped


def _mapped_wcs(header: fits.Header, matrix_22: np.ndarray, offset_2: np.ndarray) -> list[tuple[str, str | float]]:
    if any(_TABLES.fullmatch(name) for name in header) or _OTHER_DISTORTION.fullmatch(str(header["CTYPE1"]).strip()):
        raise ValueError("it has distortions other than SIP")
    wcs = celestial_wcs(header, naxis=2)
    if not wcs.has_celestial:
        raise ValueError("its first two axes are not celestial")
    # Derives units (degrees), the matrix (from PC, CD or CROTA) and the poles.
    wcs.wcs.set()
    crpix_2 = np.linalg.solve(matrix_22, wcs.wcs.crpix - 1 - offset_2) + 1
    cd_22 = wcs.pixel_scale_matrix @ matrix_22
    cards: list[tuple[str, str | float]] = [("WCSAXES", 2)]
    for axis in (0, 1):
        values = {"CTYPE": header[f"CTYPE{axis + 1}"], "CUNIT": str(wcs.wcs.cunit[axis]), "CRVAL": wcs.wcs.crval[axis]}
        cards += [(f"{name}{axis + 1}", value) for name, value in (values | {"CRPIX": crpix_2[axis]}).items()]
    cards += [(f"CD{i + 1}_{j + 1}", cd_22[i, j]) for i in (0, 1) for j in (0, 1)]
    cards += [("LONPOLE", wcs.wcs.lonpole), ("LATPOLE", wcs.wcs.latpole)]
    if wcs.sip is not None:
        for names, polynomials in ((("A", "B"), (wcs.sip.a, wcs.sip.b)), (("AP", "BP"), (wcs.sip.ap, wcs.sip.bp))):
            if polynomials[0] is not None:
                cards += _sip_cards(names, polynomials, matrix_22)
    return cards


def _sip_cards(
    names: tuple[str, str], polynomials: tuple[np.ndarray, np.ndarray], matrix_22: np.ndarray
) -> Iterator[tuple[str, float]]:
    # With u = matrix u', the map u + f(u) of SIP is matrix (u' + matrix^-1 f(matrix u')): SIP again, of the same order.
    order = max(len(polynomial) for polynomial in polynomials) - 1
    substituted = np.zeros((2, order + 1, order + 1))
    for axis, polynomial in enumerate(polynomials):
        substituted[axis, : len(polynomial), : len(polynomial)] = _substituted(polynomial, matrix_22)
    for name, polynomial in zip(names, np.tensordot(np.linalg.inv(matrix_22), substituted, 1), strict=True):
        yield f"{name}_ORDER", order
        for i, j in np.argwhere(polynomial):
            yield f"{name}_{i}_{j}", polynomial[i, j]


def _substituted(polynomial: np.ndarray, matrix_22: np.ndarray) -> np.ndarray:
    # The coefficients of f(matrix u), where polynomial[i, j] is that of u_x^i u_y^j in f(u).
    result = np.zeros_like(polynomial)
    power = np.polynomial.polynomial.polypow
    for i, j in np.argwhere(polynomial):
        # A homogeneous polynomial of degree i + j, by ascending powers of u_y.
        terms = np.polynomial.polynomial.polymul(power(matrix_22[0], i), power(matrix_22[1], j))
        for k, term in enumerate(terms):
            result[i + j - k, k] += polynomial[i, j] * term
    return result
