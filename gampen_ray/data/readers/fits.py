"""FITS files, plain or tile-compressed. Files are untrusted: any fault becomes a `CutoutError` in plain words.

Shape legend: C bands, H x W pixels.
"""

import io
import math
import warnings
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import MAX_FILE_BYTES, Cutout, CutoutError
from gampen_ray.data.readers.fits_bands import band_hdus, stacked

__all__ = ["FitsReader"]

_BITPIX = (8, 16, 32, 64, -32, -64)


class FitsReader:
    """The image of one HDU: two-dimensional, or for several bands a cube with these on its first axis, or an HDU a band.

    Leading axes of length one are dropped.
    """

    def reads(self, name: str, head: bytes) -> bool:
        return head.startswith(b"SIMPLE")

    def read(self, data: bytes, config: ReaderConfig) -> Cutout:
        # Headers that break the standard's letter are common and harmless; a truncated file, too, is only a warning.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with fits.open(io.BytesIO(data), memmap=False, lazy_load_hdus=True) as hdus:
                chosen = _choose(hdus, config.hdu)
                truncated = any("truncated" in str(warning.message) for warning in caught)
                _check_size(chosen, len(data), truncated)
                if several := band_hdus(hdus, config):
                    for hdu in several:
                        _check_size(hdu, len(data), truncated)
                    image_CHW = stacked(config.bands, [_to_bands(hdu.data, 1) for hdu in several])
                    chosen = several[0]
                else:
                    image_CHW = _to_bands(chosen.data, len(config.bands))
                ra, dec = _centre(chosen.header, image_CHW.shape[1:])
                header = chosen.header.copy(strip=True)
        return Cutout(image_CHW, ra, dec, header)


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
    # Called before pixels are read, because reading allocates the size in the header.
    if (bitpix := hdu.header["BITPIX"]) not in _BITPIX:
        raise CutoutError(f"BITPIX is {bitpix}: FITS has no such pixel type; write the pixels as float32 (BITPIX -32)")
    shape = tuple(int(hdu.header[f"NAXIS{axis}"]) for axis in range(hdu.header["NAXIS"], 0, -1))
    pixels = math.prod(shape)
    if min(shape) < 1:
        raise CutoutError(f"the image has no pixels: its shape is {shape}")
    if pixels * 4 > MAX_FILE_BYTES:
        raise CutoutError(f"the header declares an image of shape {shape}: too large for a cutout")
    if isinstance(hdu, fits.CompImageHDU):
        if truncated:
            raise CutoutError("the FITS file is truncated: it is shorter than its header says")
        return
    # Missing padding after the last pixel is harmless.
    declared = pixels * abs(int(hdu.header["BITPIX"])) // 8
    found = file_bytes - hdu.fileinfo()["datLoc"]
    if found < declared:
        raise CutoutError(f"the FITS file is truncated: {declared:,} bytes of pixels declared, {max(found, 0):,} found")


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
        # Values beyond float32 become infinite. FITS is big-endian; the result is native.
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
        # The pixels are usable without a WCS.
        return math.nan, math.nan
