"""Arrays as cutouts: axes, pixel types, bands by name, masks and inverse variances; and the reader of single NumPy files.

Shape legend: C bands, H x W pixels.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import Cutout, CutoutError

__all__ = ["NOT_LINEAR", "NumpyReader", "band_order", "from_planes", "npy_header", "standard_deviation", "to_bands"]

NOT_LINEAR = (
    "8-bit pixels of a picture are stretched for display, not linear in flux, so that no flux or radius can be measured; take "
    "the FITS images, or set reader.allow_nonlinear for a model that was trained on such pictures"
)


class NumpyReader:
    """One image in a ``.npy`` file: height x width, or with several bands these on the first or the last axis."""

    def reads(self, name: str, head: bytes) -> bool:
        return head.startswith(b"\x93NUMPY")

    def read(self, data: bytes, config: ReaderConfig) -> Cutout:
        shape, _, dtype = npy_header(file := io.BytesIO(data))
        # NumPy allocates what the header says.
        declared, found = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
        if declared > found:
            raise CutoutError(f"the file is truncated: {declared:,} bytes of pixels declared, {found:,} found")
        file.seek(0)
        return Cutout(to_bands(np.load(file, allow_pickle=False), config))


def npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether in Fortran's order, and type of the array in a ``.npy`` file, which is read up to the pixels."""
    version = np.lib.format.read_magic(file)
    return (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)


def to_bands(pixels: np.ndarray, config: ReaderConfig) -> np.ndarray:
    """Return pixels of two or three axes as native float32 (C x H x W).

    Raises
    ------
    CutoutError
        If the axes do not fit the bands, which axis holds them is ambiguous, or 8-bit pixels are not allowed.
    """
    shape, count = pixels.shape, len(config.bands)
    if pixels.dtype == np.uint8 and not config.allow_nonlinear:
        raise CutoutError(NOT_LINEAR)
    if pixels.ndim == 2 and count == 1:
        pixels = pixels[np.newaxis]
    elif pixels.ndim != 3 or count not in (shape[0], shape[2]):
        raise CutoutError(f"the image has shape {shape}, not {count} {'band' if count == 1 else 'bands'} of height x width")
    elif config.axes == "auto" and shape[0] == shape[2] == count and count > 1:
        raise CutoutError(f"the image has shape {shape}: its first or its last axis may hold the bands; set reader.axes")
    elif config.axes == "hwc" or (config.axes == "auto" and shape[0] != count):
        pixels = np.moveaxis(pixels, 2, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        # Values beyond float32 become infinite.
        image_CHW = np.ascontiguousarray(pixels, dtype=np.float32)
    if len(image_CHW) != count:
        raise CutoutError(f"the image has shape {shape}: {len(image_CHW)} bands by reader.axes {config.axes}, not {count}")
    return image_CHW


def band_order(there: Sequence[str], config: ReaderConfig) -> list[int]:
    """Return where the configured bands are among those of a file: ``r`` stands for ``des-r`` and ``DES-R`` too.

    Raises
    ------
    CutoutError
        If one is missing, or its name stands for several.
    """
    names = [name.lower() for name in there]
    if config.bands == ReaderConfig().bands and len(names) == 1:
        return [0]
    order = []
    for band in config.bands:
        found = [index for index, name in enumerate(names) if name == band.lower()]
        found = found or [index for index, name in enumerate(names) if re.split(r"[-_. ]", name)[-1] == band.lower()]
        if len(found) != 1:
            have = f"the images have the bands {', '.join(there)}"
            example = f"reader.bands, such as {','.join(there)}"
            raise CutoutError(f"{have}, {'none' if not found else 'several'} of them {band}; give {example}")
        order += found
    return order


def standard_deviation(planes: np.ndarray, power: float) -> np.ndarray:
    """Return a power of noise planes as float32: 1 of errors, 0.5 of variances, -0.5 of inverse variances.

    It is zero where there is no noise, no exposure or no value.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        sigma = (planes.astype(np.float64) ** power).astype(np.float32)
    return np.where(np.isfinite(sigma) & (sigma > 0), sigma, np.float32(0))


def from_planes(
    image_CHW: np.ndarray, config: ReaderConfig, *, good: np.ndarray | None = None, ivar: np.ndarray | None = None
) -> Cutout:
    """Return an image with what accompanies it.

    Parameters
    ----------
    image_CHW
        Pixels (C x H x W).
    config
        Names of the bands, and whether the noise of each pixel is kept.
    good
        Whether a pixel can be used (H x W or C x H x W): the others become NaN, and the NaN policy decides.
    ivar
        Inverse variances (C x H x W), zero where there is no exposure: such pixels become NaN, and `Cutout.numbers` has the
        median noise of each band.
    """
    numbers: dict[str, float] = {}
    bad = np.zeros(image_CHW.shape, bool) if good is None else np.broadcast_to(~good.astype(bool), image_CHW.shape)
    if ivar is not None:
        bad = bad | ~(ivar > 0)
        for band, plane_HW in zip(config.bands, ivar, strict=True):
            positive = plane_HW[plane_HW > 0]
            numbers[f"noise_{band}"] = float(np.median(positive) ** -0.5) if positive.size else float("nan")
    sigma_CHW = standard_deviation(ivar, -0.5) if config.noise_planes and ivar is not None else None
    image_CHW = np.where(bad, np.float32(np.nan), image_CHW) if bad.any() else image_CHW
    return Cutout(image_CHW, numbers=numbers, sigma_CHW=sigma_CHW)
