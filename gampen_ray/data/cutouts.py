"""Cutouts as arrays: crop, padding and non-finite pixels. Files are read by `gampen_ray.data.readers`.

Shape legend: C bands, H x W pixels.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.config.inputs import NanPolicy
from gampen_ray.errors import UserError

__all__ = [
    "CORE",
    "Cutout",
    "CutoutError",
    "by_side",
    "central",
    "fit_to_size",
    "noise_to_size",
    "overlap",
    "sentinels",
    "side_at_scale",
    "stem",
    "too_large",
    "without_blanks",
]

CORE = 12
"""Side of the square about the middle of an image in which a galaxy's core is, pixels."""
# Fills of masked pixels by IRAF, SExtractor, HSC and others; 1e20 is stored as a slightly smaller or larger float32.
_SENTINELS, _HUGE = (99.0, 999.0, 9999.0, 99999.0), 9.9e19
_COMMON = 0.1
_NO_VALUE = "NaN, infinite, 1e20 or more, masked, a sentinel such as -999, or a border of one value"

# A Gaussian of this standard deviation, pixels, weighs the neighbours of a pixel that is interpolated.
_KERNEL_PIXELS = 1.0


class CutoutError(UserError):
    """A cutout that cannot be used; the message is the reason."""


def too_large(what: str, num_bytes: int, config: ReaderConfig) -> CutoutError:
    """Return the error for what has more than `ReaderConfig.max_mebibytes`."""
    return CutoutError(f"{what} has {num_bytes / 2**20:,.1f} MiB, more than {config.max_mebibytes:,} (reader.max_mebibytes)")


@dataclasses.dataclass(frozen=True)
class Cutout:
    """An image read from a file.

    Parameters
    ----------
    image_CHW
        Pixels, float32 (C x H x W).
    ra, dec
        Sky position of the image's centre, deg; NaN where the file has no celestial coordinates.
    header
        Cards of the image's HDU without the structural ones; empty for formats without a header.
    zero_point_mag, pixel_scale_arcsec
        AB magnitude of one unit of flux and side of a pixel, arcsec, as the file says; None where it does not.
    band
        Name of the band as the file says, of an image of one band; empty where it does not.
    numbers
        Values of the galaxy that come with its image, by the name of their column: ``psf_fwhm_r``, ``noise_r``.
    sigma_CHW
        Standard deviation of each pixel, flux units, float32 (C x H x W), zero where it is unknown; None: not asked for, or
        unknown.
    """

    image_CHW: np.ndarray
    ra: float = math.nan
    dec: float = math.nan
    header: fits.Header = dataclasses.field(default_factory=fits.Header)
    zero_point_mag: float | None = None
    pixel_scale_arcsec: float | None = None
    band: str = ""
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    sigma_CHW: np.ndarray | None = None

    def scaled(self, factor: float) -> "Cutout":
        """Return the cutout with its pixels and its noise multiplied by a factor, as in another unit of flux."""
        if factor == 1:
            return self
        numbers = {name: value * factor if name.startswith("noise_") else value for name, value in self.numbers.items()}
        sigma_CHW = None if self.sigma_CHW is None else self.sigma_CHW * np.float32(factor)
        return dataclasses.replace(self, image_CHW=self.image_CHW * np.float32(factor), numbers=numbers, sigma_CHW=sigma_CHW)


def stem(name: str) -> str:
    """Return a file's name without folder and without a suffix that begins with a letter: ``.fits``, ``.fits.gz``, ``.npy``."""
    return re.sub(r"(\.[a-z]\w*)?(\.(gz|fz|bz2))?$", "", name.rpartition("/")[2], flags=re.IGNORECASE)


def side_at_scale(size: int, scale_arcsec: float | None, own_scale_arcsec: float | None) -> int:
    """Return the side of images with pixels of their own that cover as much of the sky as ``size`` pixels of another scale."""
    return math.ceil(size * scale_arcsec / own_scale_arcsec - 1e-6) if own_scale_arcsec and scale_arcsec else size


def central(image_CHW: np.ndarray, size: int) -> np.ndarray:
    """Return a view of the part of an image (C x H x W) that `fit_to_size` keeps."""
    _, height, width = image_CHW.shape
    return image_CHW[:, overlap(height, size)[0], overlap(width, size)[0]]


def by_side(side_N: np.ndarray, size: int) -> Iterator[tuple[np.ndarray | slice, slice]]:
    """Yield the rows of zero-padded images of each side, and the pixels of either axis that are not padding.

    Parameters
    ----------
    side_N
        Sides before they were padded, pixels; see `fit_to_size`.
    size
        Side of the images.
    """
    if (side_N >= size).all():
        yield slice(None), slice(None)
        return
    for side in np.unique(side_N):
        yield np.flatnonzero(side_N == side), overlap(size, int(side))[0]


def sentinels(values: np.ndarray) -> np.ndarray:
    """Return which numbers stand for "no value": 1e20 and beyond, and +-99, 999, ... where they stand apart from the rest.

    They do if they are more than half of what lies within a tenth of them. A single number must be negative, among numbers that
    are not all integers; among integers, counts of photons perhaps, they must be the largest or smallest.
    """
    if values.size and -_SENTINELS[0] < values.min() and values.max() < _SENTINELS[0]:
        return np.zeros(values.shape, bool)
    with np.errstate(invalid="ignore"):
        found = np.isfinite(values) & (np.abs(values) >= _HUGE)
    rest = values[np.isfinite(values) & ~found]
    if not rest.size or (rest.max() < _SENTINELS[0] and rest.min() > -_SENTINELS[0]):
        return found
    fractional = bool((rest != np.round(rest)).any())
    for size in _SENTINELS:
        for value in (size, -size):
            count = np.count_nonzero(rest == value)
            enough = count > 1 or (count == 1 and value < 0 and fractional)
            enough = enough and (fractional or value in (rest.min(), rest.max()))
            if enough and count < rest.size and 2 * count > np.count_nonzero(np.abs(rest - value) <= size / 10):
                found |= values == value
    return found


def without_blanks(image_CHW: np.ndarray) -> np.ndarray:
    """Return an image with NaN in place of `sentinels` and of rows and columns of one value at its edges, band by band.

    An image in which the value of the edge is common elsewhere, such as a noiseless one, keeps its edges.
    """
    result_CHW = image_CHW.copy()
    for band_HW in result_CHW:
        band_HW[sentinels(band_HW)] = np.nan
        if not any((line == line[0]).all() for line in (band_HW[0], band_HW[-1], band_HW[:, 0], band_HW[:, -1])):
            continue
        border_HW = np.zeros(band_HW.shape, bool)
        for lines, marked in ((band_HW, border_HW), (band_HW.T, border_HW.T)):
            constant = lines.min(axis=1) == lines.max(axis=1)
            if not constant.all():
                first, last = np.argmin(constant), len(constant) - np.argmin(constant[::-1])
                marked[:first] = marked[last:] = True
        values = np.unique(band_HW[border_HW])
        if border_HW.any() and np.isin(band_HW[~border_HW], values).mean() < _COMMON:
            band_HW[border_HW] = np.nan
    return result_CHW


def fit_to_size(
    image_CHW: np.ndarray, size: int, policies: Sequence[NanPolicy] = ("quarantine",), bands: Sequence[str] = ()
) -> np.ndarray:
    """Crop or zero-pad an image about its centre, and fill non-finite pixels.

    Sizes of equal parity share the geometric centre; otherwise the odd pixel is cropped or padded on the high side, as in
    `gampen_ray.model.images.resize`. Pixels outside the crop are ignored.

    Parameters
    ----------
    image_CHW
        Image (C x H x W).
    size
        Side of the result, pixels.
    policies
        For each band or for all: whether non-finite pixels make the image unusable, become zero, become the median of their
        band's finite ones, or the mean of the finite ones around them, weighted by a Gaussian of 1 pixel (astropy's
        ``interpolate_replace_nans``).
    bands
        Names of the bands, for the reasons.

    Returns
    -------
    np.ndarray
        Image (C x size x size), float32, finite.

    Raises
    ------
    CutoutError
        If a pixel is not finite and its band's policy is ``"quarantine"``, or ``"interpolate"`` and it is in a hole wider than
        the Gaussian; or if in a band no pixel is finite, or all have the same value or one of two.
    """
    inside_CHW = central(image_CHW, size)
    finite = np.isfinite(inside_CHW)
    which = [f" of band {band}" for band in bands] if len(bands) > 1 else [""] * len(image_CHW)
    for finite_HW, name in zip(finite, which, strict=True):
        if not finite_HW.any():
            raise CutoutError(f"all pixels{name} are without a value: {_NO_VALUE}")
    policy_C = (*policies,) if len(policies) > 1 else (*policies,) * len(image_CHW)
    bad_C = (finite.shape[1] * finite.shape[2]) - finite.sum(axis=(1, 2))
    if kept := [band for band, policy in enumerate(policy_C) if policy == "quarantine" and bad_C[band]]:
        raise CutoutError(
            f"{sum(bad_C[kept]):,} of {finite.size:,} pixels{' and'.join(which[band] for band in kept)} are without a value: "
            f"{_NO_VALUE}; nan_policy zero, median or interpolate fills them"
        )
    if bad_C.any():
        inside_CHW = inside_CHW.copy()
        for band_HW, finite_HW, policy, name in zip(inside_CHW, finite, policy_C, which, strict=True):
            if policy != "interpolate":
                band_HW[~finite_HW] = 0.0 if policy == "zero" else np.median(band_HW[finite_HW])
            elif not finite_HW.all():
                band_HW[:] = _interpolated(band_HW, finite_HW, name)
    for band_HW, name in zip(inside_CHW, which, strict=True):
        low, high = band_HW.min(), band_HW.max()
        if low == high:
            raise CutoutError(f"all pixels{name} have the same value {low:g}")
        if ((band_HW == low) | (band_HW == high)).all():
            raise CutoutError(f"all pixels{name} have one of two values, {low:g} and {high:g}, as in a mask")
    return _padded(inside_CHW, size)


def noise_to_size(cutout: Cutout, inside_CHW: np.ndarray, size: int, bands: Sequence[str]) -> np.ndarray:
    """Return the noise of a cutout's pixels, cropped and padded as its image is by `fit_to_size`.

    Parameters
    ----------
    cutout
        As read.
    inside_CHW
        The part of its image inside the crop, before pixels without a value are filled.
    size
        Side of the result, pixels.
    bands
        Names of the bands, for the reasons.

    Returns
    -------
    np.ndarray
        Standard deviations (C x size x size), float32, finite; zero where the image or its noise has no value.

    Raises
    ------
    CutoutError
        If a band has no noise at all.
    """
    sigma_CHW = np.zeros_like(inside_CHW) if cutout.sigma_CHW is None else central(cutout.sigma_CHW, size)
    sigma_CHW = np.where(np.isfinite(inside_CHW), sigma_CHW, np.float32(0))
    for band, sigma_HW in zip(bands, sigma_CHW, strict=True):
        if not sigma_HW.any():
            raise CutoutError(
                f"no noise plane of band {band}: the file has no variance (VAR, VARIANCE), inverse variance (IVAR) or error "
                "(ERR, RMS) image of the band's size with values, which reader.noise_planes or the bundle asks for"
            )
    return _padded(sigma_CHW, size)


def _padded(inside_CHW: np.ndarray, size: int) -> np.ndarray:
    _, height, width = inside_CHW.shape
    result = np.zeros((len(inside_CHW), size, size), dtype=np.float32)
    result[:, overlap(height, size)[1], overlap(width, size)[1]] = inside_CHW
    return result


def _interpolated(band_HW: np.ndarray, finite_HW: np.ndarray, name: str) -> np.ndarray:
    # Its import takes half a second.
    from astropy.convolution import Gaussian2DKernel, interpolate_replace_nans

    with warnings.catch_warnings():
        # What is left is counted here.
        warnings.simplefilter("ignore")
        known_HW, kernel = np.where(finite_HW, band_HW, np.nan), Gaussian2DKernel(_KERNEL_PIXELS)
        # By default, zeros outside the image would count.
        filled_HW = interpolate_replace_nans(known_HW, kernel, boundary="extend")
    if left := np.count_nonzero(np.isnan(filled_HW)):
        raise CutoutError(f"{left:,} pixels{name} without a value are too far from others to be interpolated")
    return filled_HW


def overlap(length: int, size: int) -> tuple[slice, slice]:
    """Return where an image and the result of `fit_to_size` overlap along one axis, in pixels of each."""
    common = min(length, size)
    crop, pad = (length - common) // 2, (size - common) // 2
    return slice(crop, crop + common), slice(pad, pad + common)
