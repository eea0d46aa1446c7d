"""Pixels and conditions as users have them in Python: of any byte order, masked, or with a unit."""

import math
from typing import Any

import numpy as np

from gampen_ray.data.headers import unit_zero_point
from gampen_ray.errors import UserError

__all__ = ["plain_condition", "plain_pixels", "refuse_flat"]


def plain_pixels(
    images_NCHW: Any, zero_point_mag: float | None, pixel_scale_arcsec: float | None
) -> tuple[np.ndarray, float | None]:
    """Return native float32 pixels, masked ones NaN, and the zero point, that of the unit if they have one.

    Raises
    ------
    UserError
        If the unit, the zero point or the pixel scale makes no sense.
    """
    if pixel_scale_arcsec is not None and not 0 < pixel_scale_arcsec < math.inf:
        raise UserError(f"pixel_scale_arcsec: {pixel_scale_arcsec:g} is no size of a pixel; give a positive number of arcsec")
    if zero_point_mag is not None and not math.isfinite(zero_point_mag):
        raise UserError(f"zero_point_mag: {zero_point_mag:g} is no magnitude; give the AB magnitude of one unit of flux")
    unit = str(getattr(images_NCHW, "unit", "") or "")
    if unit:
        of_unit = unit_zero_point(unit, scale=pixel_scale_arcsec)
        if of_unit is None and zero_point_mag is None:
            raise UserError(f"images: their unit is {unit}, whose zero point is unknown; give zero_point_mag, or pixels in nJy")
        if of_unit is not None and zero_point_mag is not None and abs(of_unit - zero_point_mag) > 0.01:
            raise UserError(
                f"zero_point_mag: {zero_point_mag:g} is given, but the images are in {unit}, of {of_unit:.3f}; leave it out"
            )
        zero_point_mag = of_unit if zero_point_mag is None else zero_point_mag
        images_NCHW = images_NCHW.value
    if np.asarray(images_NCHW).dtype.kind not in "buif":
        raise UserError(f"images: hold {np.asarray(images_NCHW).dtype}, not real numbers; give pixels")
    if hasattr(images_NCHW, "mask"):
        # NumPy's masked arrays, or astropy's, which are none of NumPy's.
        images_NCHW = images_NCHW.astype(np.float32).filled(np.nan)
    return np.ascontiguousarray(images_NCHW, dtype=np.float32), zero_point_mag


def refuse_flat(images_NCHW: np.ndarray) -> None:
    """Raise a UserError if an image has the same value in all pixels; there is one image or more."""
    flat_N = np.ptp(images_NCHW.reshape(len(images_NCHW), -1), axis=1) == 0
    if flat_N.any():
        first = f"the first is number {np.argmax(flat_N)}"
        raise UserError(f"images: {flat_N.sum()} have the same value in all pixels, {first}; remove them")


def plain_condition(name: str, values: Any) -> np.ndarray:
    """Return the values of a condition in the unit with which its name ends, such as ``_arcsec``; masked ones are NaN.

    Raises
    ------
    UserError
        If they have a unit that cannot be converted to it, or are no numbers.
    """
    unit, ending = getattr(values, "unit", None), name.rpartition("_")[2]
    try:
        if unit and hasattr(values, "to_value"):
            values = values.to_value(ending)
        elif unit and str(unit) != ending:
            # A column of a table, not a quantity.
            values = values.quantity.to_value(ending)
    except (ValueError, TypeError):
        raise UserError(f"conditions: {name} is in {unit}, which is no {ending}; give it in the unit of the training") from None
    try:
        return np.ma.filled(np.ma.asarray(values, np.float64), np.nan)
    except (ValueError, TypeError):
        raise UserError(f"conditions: {name} holds no numbers; give a number, or one a galaxy") from None
