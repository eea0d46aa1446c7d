"""Files of one two-dimensional image each that is no cutout of a galaxy, such as a PSF or blank sky.

Shape legend: H x W pixels.
"""

import io
import itertools
import warnings
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.config.base import replace
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.decompression import decompressed
from gampen_ray.data.kinds import hdu_kind
from gampen_ray.data.readers import read_cutout
from gampen_ray.data.readers.fits_limits import MAX_HDUS, check_headers
from gampen_ray.errors import UserError

__all__ = ["ImageFile", "image_uris", "only_psf", "read_image"]

_SUFFIXES = (".npy", ".fits", ".fits.gz", ".fit")


class ImageFile(NamedTuple):
    """An image with what its file says of it."""

    image_HW: np.ndarray
    """Pixels, float64."""
    pixel_scale_arcsec: float | None
    """Side of a pixel by the header; None: unknown, or headers are ignored."""


def image_uris(field: str, folder: str, *, without: str = "") -> list[str]:
    """Return the .npy and FITS files below a folder, in the order of their names.

    Parameters
    ----------
    field
        Config field that names the folder.
    folder
        Local or s3:// URI.
    without
        A file that is left out.

    Raises
    ------
    UserError
        If there are none.
    """
    uris = [uri for uri in storage.list_files(folder) if uri.endswith(_SUFFIXES) and uri != without]
    if not uris:
        raise UserError(f"{field}: {folder} holds no .npy or FITS file; give a folder of images")
    return uris


def read_image(uri: str, config: ReaderConfig, *, psf: bool = False) -> ImageFile:
    """Read the image of a .npy or FITS file.

    Parameters
    ----------
    uri
        Of the file.
    config
        How it is read.
    psf
        Whether the image is a PSF: of several images in a file it is the one of that name, see `only_psf`.

    Raises
    ------
    CutoutError
        If the file holds no such image, or is damaged; the message is the reason.
    """
    data = storage.read_bytes(uri)
    try:
        if uri.endswith(".npy"):
            image_HW, scale = np.squeeze(np.asarray(np.load(io.BytesIO(data)), float)), None
        else:
            data = decompressed(data, config.max_mebibytes << 20, "reader.max_mebibytes")
            if psf and config.hdu is None:
                config = replace(config, hdu=only_psf(data))
            cutout = read_cutout(data, uri.removesuffix(".gz"), config)
            image_HW, scale = cutout.image_CHW[0].astype(float), cutout.pixel_scale_arcsec
    except (CutoutError, MemoryError):
        raise
    except Exception as error:
        # A damaged file can raise any exception.
        raise CutoutError(f"damaged file: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    if image_HW.ndim != 2:
        raise CutoutError(f"the image has the shape {image_HW.shape}; give two-dimensional images")
    return ImageFile(image_HW, scale if config.headers != "ignore" else None)


def only_psf(data: bytes) -> int | None:
    """Return the index of the HDU of a FITS file that is named as a PSF, or holds the only image; None: it is no FITS file.

    Raises
    ------
    CutoutError
        If several are, or none.
    """
    if not data.startswith(b"SIMPLE"):
        return None
    check_headers(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hdus: Any
        with fits.open(io.BytesIO(data), memmap=False) as hdus:
            opened = enumerate(itertools.islice(hdus, MAX_HDUS))
            images = [(index, hdu_kind(hdu)) for index, hdu in opened if hdu.is_image and hdu.header.get("NAXIS", 0)]
    found = [index for index, kind in images if kind == "psf"] or [index for index, _ in images]
    if len(found) != 1:
        raise CutoutError(f"{len(found) or 'none'} of the HDUs may be the PSF; give hdu, the index of the one that is")
    return found[0]
