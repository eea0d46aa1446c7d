"""Sky positions of a catalogue in degrees, whatever its columns are called and measured in; held against the images' WCS.

Shape legend: N rows.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from astropy import units as u
from astropy.coordinates import Angle, angular_separation

from gampen_ray.data import catalogs
from gampen_ray.data.cutouts import Cutout
from gampen_ray.errors import UserError

__all__ = ["USUAL_NAMES", "PositionUnit", "Positions", "misplaced", "offset_arcsec", "sky_positions"]

PositionUnit = Literal["auto", "deg", "hour", "rad"]
USUAL_NAMES = (
    ("ra", "dec"),
    ("ra", "de"),
    ("raj2000", "dej2000"),  # VizieR
    ("raj2000", "decj2000"),
    ("_raj2000", "_dej2000"),
    ("ra_icrs", "de_icrs"),
    ("ra_j2000", "dec_j2000"),
    ("alpha_j2000", "delta_j2000"),  # SExtractor
    ("alphawin_j2000", "deltawin_j2000"),
    ("alphapeak_j2000", "deltapeak_j2000"),
    ("coord_ra", "coord_dec"),  # LSST, HSC
    ("ra_deg", "dec_deg"),
    ("radeg", "decdeg"),
    ("right_ascension", "declination"),
    ("ira", "idec"),  # HSC, by band
    ("i_ra", "i_dec"),
)
"""Pairs of columns, in lower case, of the formats and surveys that have them."""
_HOURS = ("h", "hr", "hour", "hours", "hourangle", "hms")
_DEGREES = ("", "d", "deg", "degree", "degrees", "dms")
_UNITS: dict[str, Any] = {"deg": u.deg, "hour": u.hourangle, "rad": u.rad}
# A cutout's galaxy is within this distance of its centre: pixels, and arcsec for surveys with small pixels.
_MAX_PIXELS, _MAX_ARCSEC = 5.0, 1.0


@dataclasses.dataclass(frozen=True)
class Positions:
    """Positions of N rows.

    Parameters
    ----------
    ra_N, dec_N
        Degrees, right ascensions in [0, 360); NaN where unknown.
    reason_N
        Why a row's position cannot be used, empty for a good or missing one.
    columns
        Names of the columns; none: the catalogue has no positions.
    remarks
        What was guessed, a line each.
    """

    ra_N: np.ndarray
    dec_N: np.ndarray
    reason_N: np.ndarray
    columns: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def sky_positions(table: pa.Table, *, ra_column: str = "", dec_column: str = "", unit: PositionUnit = "auto") -> Positions:
    """Return the positions in a catalogue.

    Numbers are in the unit of the config, of the column, or in degrees; text is sexagesimal (hours and degrees) or has its own
    units (``12h27m``), unless it is a number.

    Parameters
    ----------
    table
        With units as `gampen_ray.data.catalogs.column_unit` gives them.
    ra_column, dec_column
        Names of the columns; empty: the first pair of usual names, in any case of letters.
    unit
        Of numbers; hour: right ascensions in hours, declinations in degrees.

    Raises
    ------
    UserError
        If a column is missing or its unit is none of an angle.
    """
    count = len(table)
    columns, remarks = _columns(table, ra_column, dec_column)
    if not columns:
        return Positions(np.full(count, np.nan), np.full(count, np.nan), np.full(count, "", dtype=object))
    given = [catalogs.column_unit(table, name) for name in columns]
    if unit == "auto" and columns[0].lower() == "coord_ra" and not any(given):
        unit = "rad" if _fits_radians(table, columns) else "deg"
        remarks.append(f"{columns[0]} and {columns[1]} have no unit; taken to be in {unit}, by their range")
    reason_N = np.full(count, "", dtype=object)
    degrees = []
    for name, own, hours in zip(columns, given, (True, False), strict=True):
        value_N, fault_N = _degrees(table[name], _unit(name, own, unit, hours=hours), hours=hours)
        low, high = (-180, 360) if hours else (-90, 90)
        with np.errstate(invalid="ignore"):
            outside_N = (fault_N == "") & ((value_N < low) | (value_N > high))
        for row in np.flatnonzero(outside_N):
            fault_N[row] = f"is {value_N[row]:g} deg: not within {low} to {high}"
        bad_N = (fault_N != "") & (reason_N == "")
        reason_N[bad_N] = [f"{name} {fault}" for fault in fault_N[bad_N]]
        degrees.append(np.where(fault_N == "", value_N, np.nan))
    return Positions(degrees[0] % 360, degrees[1], reason_N, columns, tuple(remarks))


def offset_arcsec(ra: float, dec: float, cutout: Cutout) -> float:
    """Return how far a position (deg) is from the centre of an image, arcsec; NaN if either is unknown."""
    return float(np.degrees(angular_separation(*np.radians([ra, dec, cutout.ra, cutout.dec]))) * 3600)


def misplaced(offset: float, cutout: Cutout) -> bool:
    """Return whether a position so far from the centre of an image (arcsec) is not that of its galaxy; not if unknown."""
    return offset > max(_MAX_ARCSEC, _MAX_PIXELS * (cutout.pixel_scale_arcsec or 0))


def _columns(table: pa.Table, ra_column: str, dec_column: str) -> tuple[tuple[str, ...], list[str]]:
    if ra_column or dec_column:
        for field, name in (("ra_column", ra_column), ("dec_column", dec_column)):
            if name not in table.column_names:
                raise UserError(
                    f"{field}: the catalogue has no column {name!r}; give both columns of the positions, of "
                    f"{', '.join(table.column_names)}"
                )
        return (ra_column, dec_column), []
    spelled = {name.lower(): name for name in reversed(table.column_names)}
    for names in USUAL_NAMES:
        if all(name in spelled for name in names):
            columns = tuple(spelled[name] for name in names)
            return columns, [] if names == ("ra", "dec") else [f"positions are taken from the columns {' and '.join(columns)}"]
    return (), []


def _fits_radians(table: pa.Table, columns: tuple[str, ...]) -> bool:
    ra_N, dec_N = (catalogs.numbers(table[name])[0] for name in columns)
    return not ((ra_N < 0) | (ra_N > 2 * np.pi) | (np.abs(dec_N) > np.pi / 2)).any()


def _unit(name: str, own: str, unit: PositionUnit, *, hours: bool) -> Any:
    # Declinations are never in hours.
    if unit != "auto":
        return u.deg if unit == "hour" and not hours else _UNITS[unit]
    text = own.strip('" ').lower()
    if text in _HOURS:
        return u.hourangle if hours else u.deg
    if text in _DEGREES or ":" in text:
        # VizieR's "h:m:s" is text.
        return u.deg
    parsed: Any = u.Unit(text, parse_strict="silent")  # pyright: ignore[reportCallIssue]
    if not isinstance(parsed, u.UnrecognizedUnit) and parsed.is_equivalent(u.deg):
        return parsed
    raise UserError(f"catalog: the column {name} has the unit {own!r}, not one of an angle; give position_unit")


def _degrees(column: pa.ChunkedArray, unit: Any, *, hours: bool) -> tuple[np.ndarray, np.ndarray]:
    # Values in degrees, and faults; missing values are NaN without a fault.
    value_N, why_N = catalogs.numbers(column)
    value_N = (value_N * unit).to_value(u.deg)
    fault_N = np.full(len(column), "", dtype=object)
    rows = np.flatnonzero((why_N != "") & (why_N != "is missing"))
    for row, text in zip(rows, column.take(pa.array(rows)).to_pylist(), strict=True):
        if not isinstance(text, str):
            continue
        try:
            value_N[row] = Angle(text.strip(), unit=u.hourangle if hours else u.deg).to_value(u.deg)
        except Exception:
            # astropy's parsers raise what they please.
            fault_N[row] = f"is {text[:40]!r}: neither degrees nor sexagesimal"
    return value_N, fault_N
