"""Pixels as users have them in Python: of any byte order, masked, or with a unit."""

import math
from typing import Any

import numpy as np

from gampen_ray.data.headers import unit_zero_point
from gampen_ray.errors import UserError

__all__ = ["plain_pixels"]


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
    if hasattr(images_NCHW, "mask"):
        # NumPy's masked arrays, or astropy's, which are none of NumPy's.
        images_NCHW = images_NCHW.astype(np.float32).filled(np.nan)
    return np.ascontiguousarray(images_NCHW, dtype=np.float32), zero_point_mag
