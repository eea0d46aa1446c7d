"""Units of table columns in the words of the standards that other tools read, and the UCDs that go with them."""

import contextlib
import functools
import re
import warnings
from collections.abc import Iterator

import numpy as np
from astropy import units as u

from gampen_ray.data.headers import unit_zero_point

__all__ = ["fits_unit", "is_flux", "quantity_ucd", "shown_unit", "standard_unit", "vo_unit"]

_FLUX_DENSITY = "spectral flux density"
# Physical types of astropy; those of counts and maggies are unknown.
_FLUXES = {"unknown", "dimensionless", "energy flux", "yank", _FLUX_DENSITY, f"{_FLUX_DENSITY} wav", "surface brightness"}
_FLUXES |= {"surface brightness wav", "photon flux", "photon flux density", "photon flux density wav"}
# By astropy's physical type.
_UCDS = {_FLUX_DENSITY: "phot.flux.density", "angle": "phys.angSize", "length": "phys.size", "mass": "phys.mass"}


@functools.cache
def standard_unit(text: str) -> str:
    """Return a unit, in astropy's notation, with maggies as nJy; any other is returned as it is.

    No standard knows the maggy, and astropy converts it to no other unit. A maggy is 3631 Jy: ``1e-12 mgy`` is ``3.631 nJy``.
    """
    factor = _in_nanojansky(text)
    unit = _parsed(text)
    return text if factor is None or (unit is not None and unit.physical_type == _FLUX_DENSITY) else f"{factor:.8g} nJy"


@functools.cache
def shown_unit(text: str) -> tuple[float, str]:
    """Return the factor to the unit in which people read values, and it: nJy for maggies and multiples such as 3.631 nJy.

    Any other unit is returned as it is.
    """
    factor = _in_nanojansky(text)
    unit = _parsed(text)
    plain = unit is not None and unit.physical_type == _FLUX_DENSITY and unit.scale == 1
    return (1.0, text) if factor is None or plain else (factor, "nJy")


@functools.cache
def is_flux(text: str) -> bool:
    """Return whether a unit may be that of pixels linear in flux: no length, time or magnitude, say; unknown words may be."""
    if re.search("mag(?!g)", text, re.IGNORECASE):
        return False
    unit = _parsed(text)
    return unit is None or not _FLUXES.isdisjoint(unit.physical_type)


@functools.cache
def vo_unit(text: str) -> str:
    """Return a unit in VOUnit's notation (IVOA, Units in the VO): a word that it does not know in quotes, other text empty."""
    written = _written(_parsed(text), "vounit")
    if written is not None:
        return written
    return f"'{text}'" if re.fullmatch("[A-Za-z]+", text) else ""


@functools.cache
def fits_unit(text: str) -> tuple[float, str]:
    """Return the factor (TSCAL) and the unit (TUNIT) of a FITS column, which allows no factor but powers of ten in its unit.

    A unit that FITS does not know is returned as it is.
    """
    unit = _parsed(text)
    if (written := _written(unit, "fits")) is not None:
        return 1.0, written
    if isinstance(unit, u.CompositeUnit):
        rest = u.CompositeUnit(1, unit.bases, unit.powers)
        if (written := _written(rest, "fits")) is not None:
            return float(np.real(unit.scale)), written
    return 1.0, text


@functools.cache
def quantity_ucd(unit: str) -> str:
    """Return the UCD1+ word (IVOA, The UCD1+ controlled vocabulary) of a property of a galaxy by its unit."""
    parsed = _parsed(standard_unit(unit))
    if parsed is None:
        return "src.morph.param"
    return "phot.mag" if parsed == u.mag else _UCDS.get(str(parsed.physical_type), "src.morph.param")


def _in_nanojansky(text: str) -> float | None:
    """Return what a unit of flux is in nJy; None for other units."""
    zero_point, nanojansky = unit_zero_point(text), unit_zero_point("nJy")
    return None if zero_point is None or nanojansky is None else 10 ** (0.4 * (nanojansky - zero_point))


def _parsed(text: str) -> u.UnitBase | None:
    """Return a unit of astropy; None for other text, and for logarithmic units, which are functions in no standard."""
    with _quiet():
        try:
            unit = u.Unit(text)
        except ValueError:
            return None
    return unit if isinstance(unit, u.UnitBase) else None


def _written(unit: u.UnitBase | None, standard: str) -> str | None:
    """Return a unit as a standard writes it; None if it cannot."""
    if unit is None:
        return None
    with _quiet():
        try:
            return unit.to_string(standard)
        except ValueError:
            return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of units that a standard discourages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", u.UnitsWarning)
        yield
