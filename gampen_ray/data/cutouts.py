"""Cutouts as arrays: crop, padding and non-finite pixels. Files are read by `gampen_ray.data.readers`.

Shape legend: C bands, H x W pixels.
"""

import dataclasses
import math
import re
from typing import Literal

import numpy as np
from astropy.io import fits

from gampen_ray.errors import UserError

__all__ = ["MAX_FILE_BYTES", "Cutout", "CutoutError", "central", "fit_to_size", "overlap", "stem"]

MAX_FILE_BYTES = 1 << 30
"""Larger files, and larger images after decompression, are no cutouts; this bounds the memory a file can take."""

NanPolicy = Literal["quarantine", "zero", "median"]


class CutoutError(UserError):
    """A cutout that cannot be used; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Cutout:
    """An image as its file has it.

    Parameters
    ----------
    image_CHW
        Pixels, float32 (C x H x W).
    ra, dec
        Sky position of the image's centre, deg; NaN where the file has no celestial coordinates.
    header
        Cards of the image's HDU, without those that its pixels' layout needs; empty where a format has none.
    """

    image_CHW: np.ndarray
    ra: float = math.nan
    dec: float = math.nan
    header: fits.Header = dataclasses.field(default_factory=fits.Header)


def stem(name: str) -> str:
    """Return a file's name without folder and without a suffix that begins with a letter: ``.fits``, ``.fits.gz``, ``.npy``."""
    return re.sub(r"(\.[a-z]\w*)?(\.(gz|fz))?$", "", name.rpartition("/")[2], flags=re.IGNORECASE)


def central(image_CHW: np.ndarray, size: int) -> np.ndarray:
    """Return the part of an image (C x H x W) that `fit_to_size` keeps, a view."""
    _, height, width = image_CHW.shape
    return image_CHW[:, overlap(height, size)[0], overlap(width, size)[0]]


def fit_to_size(image_CHW: np.ndarray, size: int, nan_policy: NanPolicy = "quarantine") -> np.ndarray:
    """Crop or zero-pad an image about its centre, having dealt with non-finite pixels.

    Between sizes of the same parity the geometric centre stays; between an even and an odd one the pixel too many, cropped or
    padded, is on the high side (the rule of `gampen_ray.model.images.resize`). Only pixels inside the crop are judged.

    Parameters
    ----------
    image_CHW
        Image (C x H x W).
    size
        Side of the result, pixels.
    nan_policy
        Non-finite pixels make the image unusable, become zero, or become the median of the finite ones.

    Returns
    -------
    np.ndarray
        Image (C x size x size), float32, finite.

    Raises
    ------
    CutoutError
        For an image with non-finite pixels where the policy is ``"quarantine"``, without finite pixels, or of one value.
    """
    _, height, width = image_CHW.shape
    (_, target_rows), (_, target_columns) = overlap(height, size), overlap(width, size)
    inside_CHW = central(image_CHW, size)
    finite = np.isfinite(inside_CHW)
    num_bad = finite.size - int(finite.sum())
    if num_bad == finite.size:
        raise CutoutError("all pixels are NaN or infinite")
    if num_bad and nan_policy == "quarantine":
        raise CutoutError(
            f"{num_bad:,} of {finite.size:,} pixels are NaN or infinite; nan_policy zero or median would fill them"
        )
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
