"""Cutouts as arrays: crop, padding and non-finite pixels. Files are read by `gampen_ray.data.readers`.

Shape legend: C bands, H x W pixels.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Literal

import numpy as np
from astropy.io import fits

from gampen_ray.errors import UserError

__all__ = ["MAX_FILE_BYTES", "Cutout", "CutoutError", "central", "fit_to_size", "overlap", "stem"]

MAX_FILE_BYTES = 1 << 30
"""Largest file, and largest decompressed image, read as a cutout; bounds the memory that a file can take."""

NanPolicy = Literal["quarantine", "zero", "median"]


class CutoutError(UserError):
    """A cutout that cannot be used; the message is the reason."""


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
    numbers
        Values of the galaxy that come with its image, by the name of their column: ``psf_fwhm_r``, ``noise_r``.
    """

    image_CHW: np.ndarray
    ra: float = math.nan
    dec: float = math.nan
    header: fits.Header = dataclasses.field(default_factory=fits.Header)
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)


def stem(name: str) -> str:
    """Return a file's name without folder and without a suffix that begins with a letter: ``.fits``, ``.fits.gz``, ``.npy``."""
    return re.sub(r"(\.[a-z]\w*)?(\.(gz|fz|bz2))?$", "", name.rpartition("/")[2], flags=re.IGNORECASE)


def central(image_CHW: np.ndarray, size: int) -> np.ndarray:
    """Return a view of the part of an image (C x H x W) that `fit_to_size` keeps."""
    _, height, width = image_CHW.shape
    return image_CHW[:, overlap(height, size)[0], overlap(width, size)[0]]


def fit_to_size(image_CHW: np.ndarray, size: int, nan_policy: NanPolicy = "quarantine") -> np.ndarray:
    """Crop or zero-pad an image about its centre, and fill non-finite pixels.

    Sizes of equal parity share the geometric centre; otherwise the odd pixel is cropped or padded on the high side, as in
    `gampen_ray.model.images.resize`. Pixels outside the crop are ignored.

    Parameters
    ----------
    image_CHW
        Image (C x H x W).
    size
        Side of the result, pixels.
    nan_policy
        Whether non-finite pixels make the image unusable, become zero, or become the median of the finite ones.

    Returns
    -------
    np.ndarray
        Image (C x size x size), float32, finite.

    Raises
    ------
    CutoutError
        If a pixel is not finite and the policy is ``"quarantine"``, no pixel is finite, or all have the same value.
    """
    _, height, width = image_CHW.shape
    (_, target_rows), (_, target_columns) = overlap(height, size), overlap(width, size)
    inside_CHW = central(image_CHW, size)
    finite = np.isfinite(inside_CHW)
    num_bad = finite.size - int(finite.sum())
    if num_bad == finite.size:
        raise CutoutError("all pixels are NaN or infinite")
    if num_bad and nan_policy == "quarantine":
        raise CutoutError(f"{num_bad:,} of {finite.size:,} pixels are NaN or infinite; nan_policy zero or median fills them")
    if num_bad:
        fill = 0.0 if nan_policy == "zero" else np.median(inside_CHW[finite])
        inside_CHW = np.where(finite, inside_CHW, np.float32(fill))
    if inside_CHW.min() == inside_CHW.max():
        raise CutoutError(f"all pixels have the same value {inside_CHW.flat[0]:g}")
    result = np.zeros((len(image_CHW), size, size), dtype=np.float32)
    result[:, target_rows, target_columns] = inside_CHW
    return result


def overlap(length: int, size: int) -> tuple[slice, slice]:
    """Return where an image and the result of `fit_to_size` overlap along one axis, in pixels of each."""
    common = min(length, size)
    crop, pad = (length - common) // 2, (size - common) // 2
    return slice(crop, crop + common), slice(pad, pad + common)
