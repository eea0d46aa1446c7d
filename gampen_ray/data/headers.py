"""What a FITS header states of an image: zero point, pixel scale, band and position; asinh-compressed pixels made linear.

Headers are untrusted: a card that cannot be read counts as missing.
"""

import math
import re
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import numpy as np
from astropy.io import fits

from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.wcs import centre_and_scale

__all__ = ["canonical_band", "header_band", "header_facts", "linear_pixels", "unit_zero_point"]

# 3631 Jy: the zero point of AB magnitudes in units of Jy (Oke & Gunn 1983).
_AB_JANSKY = 2.5 * math.log10(3631)
_ARCSEC2_PER_SR = math.degrees(1) ** 2 * 3600**2
# Zero points in AB magnitudes of a unit of the pixels, as SWarp, SCAMP, GALFIT, Euclid, DES and MegaPipe write them.
_ZERO_POINTS = ("MAGZERO", "MAGZPT", "MAGZP", "MAGZEROP", "MAG_ZP", "MAG0", "ABMAGZP", "ZPAB", "PHOTZP", "ZP", "ZPT", "ZEROPNT")
# Missions whose zero points of that name are Vega magnitudes, and what headers say of such.
_VEGA = re.compile(r"WISE|2MASS|UKIRT|VISTA", re.IGNORECASE)
_SYSTEMS = ("MAGSYS", "MAGSYST", "PHOTSYS", "ZPSYS")
# JWST has narrow filters in the wheel of the pupil, beside a wide one of the other wheel or CLEAR.
_BANDS = ("PUPIL", "FILTER", "FILTER1", "FILTER2", "FILTNAM", "FILTNAM1", "BAND", "FPA.FILTERID", "BANDS", "PHOTMODE")
_LEGACY_SURVEYS = re.compile(r"LegacySurvey|DECaLS|BASS|MzLS", re.IGNORECASE)
_SCALES = ("PIXSCALE", "PIXELSCL", "SECPIX")
_PREFIX = {"": 1.0, "n": 1e-9, "nano": 1e-9, "u": 1e-6, "micro": 1e-6, "m": 1e-3, "milli": 1e-3, "M": 1e6, "mega": 1e6}
_SURVEY = r"(?:sdss|hsc|des|decam|ps1?|lsst|kids|omegacam|megacam|subaru|cfht|vst|bok)?"
_SAME_MAG = 0.01
# Units of pixels that count, in total or per second.
_COUNTS = re.compile(r"(?:electrons?|e-?|counts?|dns?|adu)(/s(?:ec(?:ond)?)?|s-1|s\^-1)?|(cps)", re.IGNORECASE)
# Nanomaggies, the unit of SDSS and the Legacy Surveys.
_NANOMAGGY = 22.5
_LEGACY_ARCSEC = 0.262
# Pan-STARRS: 2.5 log10(e), and the zero point of a count per second.
_ASINH = 2.5 * math.log10(math.e)
_PS1_ZERO_POINT = 25.0

Header = Mapping[str, Any] | fits.Header


def header_facts(
    hdu: fits.Header, primary: fits.Header, shape: tuple[int, ...], *, position_only: bool = False
) -> dict[str, Any]:
    """Return what the headers say of an image, as fields of `gampen_ray.data.cutouts.Cutout`.

    Parameters
    ----------
    hdu, primary
        Headers of the image's HDU and of the first HDU, whose cards count where the former has none, except those of the WCS.
    shape
        Height and width of the image, pixels.
    position_only
        Whether all but the position is left out.

    Raises
    ------
    CutoutError
        If unit and zero point contradict each other.
    """
    header: Any = ChainMap(hdu, primary)  # pyright: ignore[reportArgumentType]
    ra, dec, scale = centre_and_scale(hdu, shape)
    if position_only:
        return {"ra": ra, "dec": dec}
    if scale is None:
        scale = next((value for name in _SCALES if (value := _number(header, name)) and value > 0), None)
    return {
        "ra": ra,
        "dec": dec,
        "pixel_scale_arcsec": scale,
        "zero_point_mag": _zero_point(header, scale),
        "band": header_band(header),
    }


def canonical_band(name: str) -> str:
    """Return the name of a band in one spelling: ``r``, ``J``, ``F814W``, ``VIS``; empty if it cannot be told.

    Understands names such as ``HSC-I2``, ``r DECam SDSS c0002 6415.0 1480.0``, ``i.MP9702``, ``sdssr`` and ``NIR_Y``.
    """
    for word in re.findall("[a-z0-9]+", name.lower()):
        if word in ("b", "v", "nuv", "fuv"):
            return word.upper()
        # Hubble's and Webb's, and Roman's, which are bare numbers.
        if re.fullmatch(r"f\d{3,4}(w|m|n|lp|x|w2)|f(062|087|106|129|146|158|184|213)", word):
            return word.upper()
        if match := re.fullmatch(_SURVEY + r"([ugrizyjhk])[2s]?", word):
            return match[1].upper() if match[1] in "jhk" else match[1]
        if word == "vis":
            return "VIS"
    return ""


def header_band(header: Header) -> str:
    """Return the canonical name of the band of an image by its header; empty if unknown."""
    # ACS has two wheels, one of them at CLEAR.
    names = (_text(header, name) for name in _BANDS)
    return next((band for name in names if (band := canonical_band(name))), "")


def linear_pixels(pixels: np.ndarray, header: fits.Header) -> np.ndarray:
    """Return the fluxes of an image that Pan-STARRS's pipeline compressed to asinh magnitudes; other images unchanged.

    Such a file has the cards BSOFTEN and BOFFSET, which are removed: flux = BOFFSET + BSOFTEN (e^(C / a) - e^(-C / a)) with
    a = 2.5 log10(e) (IPP, "asinh compression"). Pixels beyond float64 become infinite.
    """
    softening, offset = _number(header, "BSOFTEN"), _number(header, "BOFFSET")
    if softening is None or offset is None:
        return pixels
    del header["BSOFTEN"], header["BOFFSET"]
    with np.errstate(over="ignore", invalid="ignore"):
        return offset + 2 * softening * np.sinh(pixels.astype(np.float64) / _ASINH)


def unit_zero_point(unit: str, pixel_sr: float | None = None, scale: float | None = None) -> float | None:
    """Return the AB zero point of pixels in a unit: jansky or maggies, with prefix and factor; None for other units.

    Parameters
    ----------
    unit
        As in BUNIT: ``nJy``, ``1e-12 mgy``, ``MJy/sr``.
    pixel_sr, scale
        Area of a pixel, sr, or its side, arcsec: one of them is needed for units per steradian or square arcsecond.
    """
    text = re.sub(r"[\s*]|(/|\.?)pix(el)?(-1|\^-1)?$", "", unit)
    area = re.search(r"(/sr|\.?sr\^?-1|/arcsec\^?2|\.?arcsec\^?-2)$", text, re.IGNORECASE)
    text = text[: area.start()] if area else text
    pattern = r"(\d+(?:\.\d*)?(?:e[-+]?\d+)?)?((?-i:[mM])|n|u|nano|micro|milli|mega)?(janskys?|jy|magg(?:y|ies)|mgys?)"
    match = re.fullmatch(pattern, text, re.IGNORECASE)
    if not match:
        return None
    factor = float(match[1] or 1) * _PREFIX[match[2] if match[2] in ("M", "m") else (match[2] or "").lower()]
    if area:
        steradians = pixel_sr or (scale and scale**2 / _ARCSEC2_PER_SR)
        if not steradians or steradians <= 0:
            return None
        factor *= steradians * (1 if "sr" in area[0].lower() else _ARCSEC2_PER_SR)
    if not 0 < factor < math.inf:
        return None
    return (_AB_JANSKY if match[3].lower().startswith("j") else 0.0) - 2.5 * math.log10(factor)


def _zero_point(header: Header, scale: float | None) -> float | None:
    unit = _unit(header)
    if re.match(r"mag(nitudes?|$|[^a-z])", unit, re.IGNORECASE):
        raise CutoutError(f"the pixels are magnitudes by BUNIT {unit}, not linear in flux; take the image of fluxes")
    found = {f"BUNIT {unit}": unit_zero_point(unit, _number(header, "PIXAR_SR"), scale)}
    vega = any("vega" in _text(header, name).lower() for name in _SYSTEMS)
    if not vega and not _VEGA.search(_text(header, "TELESCOP") + _text(header, "INSTRUME")):
        for name in _ZERO_POINTS:
            value = _number(header, name)
            # 0 is what programs write where there is none. CASU's MAGZPT, beside MAGZRR, is one of Vega and of a second.
            second = name == "MAGZPT" and "MAGZRR" in header
            if value is None or not 5 < value < 60 or second or "vega" in (comment := _comment(header, name)):
                continue
            # NOAO's pipelines write MAGZPT beside MAGZERO.
            total = _of_exposure(header, unit, value) if "per sec" in comment else value
            if total is not None:
                found[name] = total
    if (counts := _number(header, "FLUXMAG0")) and counts > 0:
        found["FLUXMAG0"] = 2.5 * math.log10(counts)
    known = {name: value for name, value in found.items() if value is not None}
    if known and max(known.values()) - min(known.values()) > _SAME_MAG:
        told = " but ".join(f"{value:.3f} by {name}" for name, value in known.items())
        raise CutoutError(f"the header contradicts itself: the zero point is {told}; state it, with reader.headers 'ignore'")
    return next(iter(known.values()), None) if known else _of_survey(header, unit, scale)


def _of_survey(header: Header, unit: str, scale: float | None) -> float | None:
    # SDSS's frames (data model, "frame") and the Legacy Surveys' cutouts (their cutout service) need not have a unit.
    if not unit and "NMGY" in header:
        return _NANOMAGGY
    if not unit and scale and _LEGACY_SURVEYS.match(_text(header, "SURVEY")):
        # The service interpolates at other scales: the sum over a galaxy grows with the number of pixels.
        return _NANOMAGGY - 5 * math.log10(scale / _LEGACY_ARCSEC)
    # Pan-STARRS's stacks (STScI, PS1 stack images); HST's PHOTFLAM and PHOTPLAM (ACS data handbook, sec. 5.1).
    per_second = _number(header, "FPA.ZP")
    if per_second is not None or _number(header, "BSOFTEN") is not None:
        return _of_exposure(header, "counts", _PS1_ZERO_POINT if per_second is None else per_second)
    photflam, photplam = _number(header, "PHOTFLAM"), _number(header, "PHOTPLAM")
    if not (photflam and photplam and photflam > 0 and photplam > 0):
        return None
    return _of_exposure(header, unit, -2.5 * math.log10(photflam) - 5 * math.log10(photplam) - 2.408)


def _of_exposure(header: Header, unit: str, per_second: float) -> float | None:
    """Return the zero point of pixels in a unit from that of a count per second; None for other units and without the time."""
    match = _COUNTS.fullmatch(_bare(unit))
    if not match or match[1] or match[2]:
        return per_second if match else None
    seconds = _number(header, "EXPTIME")
    return per_second + 2.5 * math.log10(seconds) if seconds and seconds > 0 else None


def _unit(header: Header) -> str:
    unit = _text(header, "BUNIT")
    # MultiDrizzle left the counts of the exposures in BUNIT; drizzle records what it wrote, counts or cps.
    return (_text(header, "D001OUUN") if not unit or _COUNTS.fullmatch(_bare(unit)) else "") or unit


def _bare(unit: str) -> str:
    return re.sub(r"[\s*.]", "", unit)


def _comment(header: Any, name: str) -> str:
    # Of the first of the headers that has the card; in lower case.
    owner = next((one for one in getattr(header, "maps", [header]) if name in one), None)
    try:
        return str(owner.comments[name]).lower() if isinstance(owner, fits.Header) else ""
    except Exception:
        return ""


def _text(header: Header, name: str) -> str:
    try:
        value = header.get(name, "")
    except Exception:
        return ""
    return value.strip() if isinstance(value, str) else ""


def _number(header: Any, name: str) -> float | None:
    try:
        # SDSS writes EXPTIME as text.
        value = float(header.get(name, math.nan))
    except Exception:
        return None
    return value if math.isfinite(value) else None
