"""One FITS file to one cutout. Files are taken as hostile: whatever is wrong becomes a reason that a person understands.

Shape legend: C bands, H x W pixels.
"""

import dataclasses
import io
import math
import re
import warnings
import zlib
from typing import Any, Literal

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from gampen_ray.errors import UserError

__all__ = ["MAX_FILE_BYTES", "Cutout", "CutoutError", "fit_to_size", "read_cutout", "stem"]

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
        Sky position of the image's centre, deg; NaN where the header has no celestial coordinates.
    header
        Cards of the image's HDU, without those that its pixels' layout needs.
    """

    image_CHW: np.ndarray
    ra: float
    dec: float
    header: fits.Header


def stem(name: str) -> str:
    """Return a file's name without folder and without ``.fits``, ``.fits.gz``, ``.fits.fz`` and the like."""
    return re.sub(r"(\.(fits?|fts))?(\.(gz|fz))?$", "", name.rpartition("/")[2], flags=re.IGNORECASE)


def read_cutout(data: bytes, *, hdu: int | None = None, num_bands: int = 1) -> Cutout:
    """Read the image of a FITS file, plain, gzipped or tile-compressed.

    Parameters
    ----------
    data
        Content of the file.
    hdu
        Index of the HDU; None: the first one that holds an image.
    num_bands
        1: the image is two-dimensional. More: it is a cube with the bands on its first axis. Leading axes of length one are
        dropped.

    Raises
    ------
    CutoutError
        If there is no such image, or it is truncated, damaged or too large.
    """
    if not data:
        raise CutoutError("the file is empty (0 bytes)")
    if data[:2] == b"\x1f\x8b":
        data = _gunzip(data)
    if data[:6] != b"SIMPLE":
        raise CutoutError(f"not a FITS file: it begins with {data[:20]!r}")
    try:
        # Headers that break the standard's letter are common and harmless; a truncated file is only a warning to astropy, too.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with fits.open(io.BytesIO(data), memmap=False, lazy_load_hdus=True) as hdus:
                chosen = _choose(hdus, hdu)
                _check_size(chosen, len(data), any("truncated" in str(warning.message) for warning in caught))
                image_CHW = _to_bands(chosen.data, num_bands)
                ra, dec = _centre(chosen.header, image_CHW.shape[1:])
                header = chosen.header.copy(strip=True)
    except CutoutError:
        raise
    except Exception as error:
        # Any exception may come out of a damaged file, and each concerns that file alone.
        raise CutoutError(f"damaged FITS file: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    return Cutout(image_CHW, ra, dec, header)


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


# --- details -------------------------------------------------------------------------------------------------------------


def _gunzip(data: bytes) -> bytes:
    decompressor = zlib.decompressobj(wbits=31)
    try:
        content = decompressor.decompress(data, MAX_FILE_BYTES)
    except zlib.error as error:
        raise CutoutError(f"damaged gzip file: {error}") from None
    if decompressor.unconsumed_tail:
        raise CutoutError(f"decompresses to more than {MAX_FILE_BYTES >> 20} MiB: no cutout")
    if not decompressor.eof:
        raise CutoutError("the gzip file is truncated")
    return content


def _choose(hdus: Any, index: int | None) -> Any:
    if index is None:
        for candidate in hdus:
            if candidate.is_image and candidate.header.get("NAXIS", 0):
                return candidate
        raise CutoutError("no HDU holds an image")
    if not 0 <= index < len(hdus):
        raise CutoutError(f"no HDU {index}: the file has {len(hdus)}, counted from 0")
    if not hdus[index].is_image or not hdus[index].header.get("NAXIS", 0):
        raise CutoutError(f"HDU {index} holds no image")
    return hdus[index]


def _check_size(hdu: Any, file_bytes: int, truncated: bool) -> None:
    # Before any pixel is read: the array is allocated as large as the header says.
    shape = tuple(int(hdu.header[f"NAXIS{axis}"]) for axis in range(hdu.header["NAXIS"], 0, -1))
    pixels = math.prod(shape)
    if min(shape) < 1:
        raise CutoutError(f"the image has no pixels: its shape is {shape}")
    if pixels * 4 > MAX_FILE_BYTES:
        raise CutoutError(f"the header promises an image of shape {shape}: no cutout")
    if isinstance(hdu, fits.CompImageHDU):
        if truncated:
            raise CutoutError("the FITS file is truncated: it is shorter than its header says")
        return
    # Missing padding behind the last pixel does no harm.
    promised = pixels * abs(int(hdu.header["BITPIX"])) // 8
    there = file_bytes - hdu.fileinfo()["datLoc"]
    if there < promised:
        raise CutoutError(f"the FITS file is truncated: {promised:,} bytes of pixels promised, {max(there, 0):,} there")


def _to_bands(pixels: np.ndarray, num_bands: int) -> np.ndarray:
    shape = pixels.shape
    while pixels.ndim > 2 and len(pixels) == 1:
        pixels = pixels[0]
    if num_bands == 1 and pixels.ndim == 2:
        pixels = pixels[np.newaxis]
    elif num_bands == 1 or pixels.ndim != 3 or len(pixels) != num_bands:
        wanted = "a two-dimensional image" if num_bands == 1 else f"a cube of {num_bands} bands"
        raise CutoutError(f"the image is {len(shape)}-dimensional with shape {shape}, not {wanted}")
    with np.errstate(over="ignore", invalid="ignore"):
        # Values beyond float32 become infinite, and the image is judged by that. FITS is big-endian, the result is native.
        return np.ascontiguousarray(pixels, dtype=np.float32)


def _centre(header: fits.Header, shape: tuple[int, ...]) -> tuple[float, float]:
    if "CTYPE1" not in header:
        return math.nan, math.nan
    try:
        celestial: Any = WCS(header).celestial
        if celestial.naxis != 2:
            return math.nan, math.nan
        height, width = shape
        sky = celestial.pixel_to_world((width - 1) / 2, (height - 1) / 2).icrs
        return float(sky.ra.deg), float(sky.dec.deg)
    except Exception:
        # A damaged coordinate system does not make the pixels unusable.
        return math.nan, math.nan
