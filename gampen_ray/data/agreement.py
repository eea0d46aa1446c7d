"""What files say of themselves (`gampen_ray.data.headers`) held against what the config states, for all files and for each.

With ``reader.headers = "ignore"`` files say nothing, and nothing here has an effect.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from gampen_ray.config import ReaderConfig
from gampen_ray.config.base import replace
from gampen_ray.data.cutouts import Cutout, CutoutError
from gampen_ray.data.headers import canonical_band, unit_zero_point
from gampen_ray.data.shards import DatasetInfo
from gampen_ray.data.units import is_flux
from gampen_ray.errors import UserError

__all__ = ["agreed", "check_flux_unit", "contradict", "settle"]

_UNKNOWN_BAND = ReaderConfig().bands
_IGNORE = "reader.headers 'ignore' takes what is stated"
# Larger images show a field, not a galaxy.
_MAX_SIDE = 2000
_Field = Literal["zero_point_mag", "pixel_scale_arcsec"]
_NAMES: dict[_Field, str] = {"zero_point_mag": "zero point", "pixel_scale_arcsec": "pixel scale"}


def settle(reader: ReaderConfig, cutouts: Mapping[str, Cutout], *, origin: str = "given") -> ReaderConfig:
    """Return the config with zero point, pixel scale and band taken from the files where it leaves them out.

    Parameters
    ----------
    reader
        As given.
    cutouts
        Some of the files by name; their pixels are not used.
    origin
        Where the config's bands come from, for the message.

    Raises
    ------
    UserError
        If most files contradict what the config states.
    """
    changes = {}
    for field in _NAMES:
        said = sorted((value, name) for name, cutout in cutouts.items() if (value := getattr(cutout, field)) is not None)
        if not said:
            continue
        value, name = said[len(said) // 2]
        stated = getattr(reader, field)
        if stated is None:
            changes[field] = value
        elif contradict(field, value, stated):
            raise UserError(
                f"reader.{field}: {stated:g} is given, but the header of {name} says {value:.6g}; leave it out to take the "
                f"headers' value, or correct it; {_IGNORE}"
            )
    bands = Counter(cutout.band for cutout in cutouts.values() if cutout.band)
    if len(reader.bands) == 1 and bands:
        band = bands.most_common(1)[0][0]
        if reader.bands == _UNKNOWN_BAND:
            changes["bands"] = (band,)
        elif canonical_band(reader.bands[0]) not in ("", band):
            name = next(name for name, cutout in cutouts.items() if cutout.band == band)
            raise UserError(
                f"reader.bands: {reader.bands[0]} is {origin}, but the header of {name} says {band}; take the images of one "
                f"band, or correct it; {_IGNORE}"
            )
    return replace(reader, **changes)


def agreed(cutout: Cutout, reader: ReaderConfig, info: DatasetInfo, *, origin: str = "other files") -> Cutout:
    """Return a cutout in the flux unit of the dataset.

    Parameters
    ----------
    cutout
        As read.
    reader
        As given: zero points that differ are converted where it leaves the zero point out.
    info
        With what was settled for all files.
    origin
        Where that comes from, for the message.

    Raises
    ------
    CutoutError
        If the file contradicts what is stated or settled, does not say what others say, or is no cutout of a galaxy.
    """
    _, height, width = cutout.image_CHW.shape
    if max(height, width) > _MAX_SIDE:
        raise CutoutError(
            f"the image has {height:,} x {width:,} pixels: a field of many galaxies, where cutouts have at most {_MAX_SIDE:,}"
        )
    for field, what in _NAMES.items():
        value, settled, stated = getattr(cutout, field), getattr(info, field), getattr(reader, field)
        if reader.headers == "ignore" or (value is None and (settled is None or stated is not None)):
            continue
        if value is None:
            raise CutoutError(f"the header gives no {what}, unlike those of other files; state reader.{field}")
        if settled is None:
            raise CutoutError(f"the header gives a {what}, {value:.6g}, unlike those of other files; state reader.{field}")
        if contradict(field, value, settled) and (stated is not None or field == "pixel_scale_arcsec"):
            by = f"reader.{field}" if stated is not None else origin
            raise CutoutError(f"the header gives the {what} {value:.6g}, but {by} {settled:.6g}; {_IGNORE}")
    if cutout.band and len(info.bands) == 1 and canonical_band(info.bands[0]) not in ("", cutout.band):
        raise CutoutError(f"the header gives the band {cutout.band}, not {info.bands[0]}; {_IGNORE}")
    if reader.zero_point_mag is not None or cutout.zero_point_mag is None or info.zero_point_mag is None:
        return cutout
    difference = info.zero_point_mag - cutout.zero_point_mag
    return cutout if math.isclose(difference, 0, abs_tol=1e-9) else cutout.scaled(10 ** (0.4 * difference))


def check_flux_unit(unit: str, info: DatasetInfo) -> None:
    """Raise a UserError if pixels cannot have a unit, or not with the zero point of their dataset."""
    if not is_flux(unit):
        raise UserError(f"flux_unit: {unit} is no unit of a flux; give that of the pixels, such as nJy, or leave it out")
    of_unit = unit_zero_point(unit, scale=info.pixel_scale_arcsec)
    if of_unit is not None and info.zero_point_mag is not None and contradict("zero_point_mag", of_unit, info.zero_point_mag):
        raise UserError(
            f"flux_unit: {unit} has the zero point {of_unit:.3f}, but that of the images is {info.zero_point_mag:g}; leave it "
            "out, or correct one of them"
        )


def contradict(field: _Field, value: float, stated: float) -> bool:
    """Return whether zero points (by 0.01 mag) or pixel scales (by 1 %) differ."""
    return abs(value - stated) > (0.01 if field == "zero_point_mag" else 0.01 * stated)
