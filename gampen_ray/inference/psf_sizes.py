"""Sizes of PSFs as a network sees them: on the pixels of its training cutouts, to which the predictor resamples others.

Shape legend: H x W pixels.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from gampen_ray.data.cutouts import CutoutError
from gampen_ray.model.pixel_grids import resample
from gampen_ray.simulation.psf import APERTURE_PIXELS, PsfSizes, measure_psf

if TYPE_CHECKING:
    from gampen_ray.model.images import ImagePreprocessing

__all__ = ["PSF_COLUMNS", "Measured", "measured", "seen_sizes", "seen_star"]

PSF_COLUMNS = {
    "psf_fwhm_arcsec": "full width at half maximum of the PSF",
    "psf_r50_arcsec": "radius that holds half of the PSF's light within 20 pixels",
    "psf_r80_arcsec": "radius that holds 80 % of the PSF's light within 20 pixels",
    "psf_r95_arcsec": "radius that holds 95 % of the PSF's light within 20 pixels",
}
"""Descriptions of the columns of sizes, those of `PsfSizes` in order, by name; arcsec."""
_LEAST_SIDE = 11
# The centre is found by a phase, which repeats every 12 pixels.
_MOST_OFFSET = 5
# Half a pixel is the smallest FWHM that `measure_psf` gives: that of an image without a peak. A star in one pixel has 1.2.
_LEAST_FWHM = 0.75
# Farther out than this, pixels: a star of 41 pixels a side may lie beside its central one.
_LEAST_REACH = APERTURE_PIXELS - 1
# Of the light: r95 grows by 3 to 5 %.
_MOST_SKY = 0.01
# Wings fall at least so fast with radius, by this power.
_WING_SLOPE = 3.0


@dataclasses.dataclass(frozen=True)
class Measured:
    """Sizes of a PSF, and what makes them doubtful."""

    sizes: PsfSizes
    remarks: tuple[str, ...] = ()


def seen_star(star_HW: np.ndarray, pixel_scale_arcsec: float, images: "ImagePreprocessing | None") -> tuple[np.ndarray, float]:
    """Return a star's image on the pixels on which a network sees it, and their side, arcsec.

    Parameters
    ----------
    star_HW
        The star on the pixels of the cutouts to predict.
    pixel_scale_arcsec
        Their side.
    images
        Of the network's bundle; None: the star as it is.
    """
    zoom = images.zoom(pixel_scale_arcsec) if images else 1.0
    if zoom == 1.0:
        return star_HW, pixel_scale_arcsec
    star_11HW = torch.from_numpy(np.ascontiguousarray(star_HW, dtype=np.float64))[None, None]
    return resample(star_11HW, zoom)[0, 0].numpy(), pixel_scale_arcsec / zoom


def seen_sizes(star_HW: np.ndarray, pixel_scale_arcsec: float, images: "ImagePreprocessing | None" = None) -> PsfSizes:
    """Return the sizes of a star's image as a network sees it; see `seen_star`."""
    return measure_psf(*seen_star(star_HW, pixel_scale_arcsec, images))


def measured(image_HW: np.ndarray, pixel_scale_arcsec: float, images: "ImagePreprocessing | None" = None) -> Measured:
    """Measure an image that someone else made of a PSF; parameters are those of `seen_star`.

    Raises
    ------
    CutoutError
        If it shows no star, with the reason.
    """
    if bad := np.count_nonzero(~np.isfinite(image_HW)):
        raise CutoutError(f"{bad:,} pixels are not finite; fill them, or give another image")
    star_HW, scale = seen_star(image_HW, pixel_scale_arcsec, images)
    height, width = star_HW.shape
    if min(*image_HW.shape, height, width) < _LEAST_SIDE:
        shape, seen = (" x ".join(map(str, image.shape)) for image in (image_HW, star_HW))
        resampled = f", {seen} of the bundle's," if seen != shape else ""
        best = 2 * APERTURE_PIXELS + 3
        raise CutoutError(f"{shape} pixels{resampled} are too few; give {_LEAST_SIDE} or more along a side, best {best:.0f}")
    if star_HW.sum() <= 0:
        raise CutoutError(f"no flux, the pixels add up to {star_HW.sum():.3g}; give the image of a star")
    y, x = np.unravel_index(int(np.argmax(star_HW)), star_HW.shape)
    offset = max(abs(y - (height - 1) / 2), abs(x - (width - 1) / 2))
    if offset > _MOST_OFFSET:
        raise CutoutError(f"the brightest pixel lies {offset:.0f} pixels from the middle; cut the image about the star")
    sizes = measure_psf(star_HW, scale)
    if not all(map(math.isfinite, dataclasses.astuple(sizes))) or sizes.fwhm_arcsec < _LEAST_FWHM * scale:
        raise CutoutError("no star, nothing falls to half of the centre; give the image of a star")
    remarks = []
    reach = min(y, x, height - 1 - y, width - 1 - x) + 0.5
    if reach < _LEAST_REACH:
        remarks.append(
            f"the image ends {reach:.3g} pixels from the star, and light within {APERTURE_PIXELS:.0f} counts (of {scale:.4g} "
            "arcsec each); r80 and r95 are too small by what is missing"
        )
    if abs(sky := _sky_share(star_HW)) > _MOST_SKY:
        remarks.append(
            f"sky of {100 * sky:+.1f} % of the light is left about the star by an estimate; unless its wings are as wide as "
            "the image, correct it, or r80 and r95 are wrong"
        )
    return Measured(sizes, tuple(remarks))


def _sky_share(star_HW: np.ndarray) -> float:
    """Return the light of a constant sky over that within the aperture, from the border and a ring inside it.

    Wings that fall with radius by `_WING_SLOPE` or more count as none; where too much sky was subtracted, it is negative.
    """
    side = min(star_HW.shape)
    inset = round(0.15 * side)
    border, inside = (float(np.median(_ring(star_HW, place))) for place in (0, inset))
    contrast = ((side - 1 - 2 * inset) / (side - 1)) ** -_WING_SLOPE
    sky = (border + inside) / 2 if min(border, inside) < 0 else max(0.0, (contrast * border - inside) / (contrast - 1))
    return sky * min(math.pi * APERTURE_PIXELS**2, star_HW.size) / float(star_HW.sum())


def _ring(image_HW: np.ndarray, inset: int) -> np.ndarray:
    """Return the pixels at a distance from the border."""
    inner_HW = image_HW[inset : image_HW.shape[0] - inset, inset : image_HW.shape[1] - inset]
    return np.concatenate([inner_HW[0], inner_HW[-1], inner_HW[1:-1, 0], inner_HW[1:-1, -1]])
