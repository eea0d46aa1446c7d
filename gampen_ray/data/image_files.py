"""Files of one two-dimensional image each that is no cutout of a galaxy, such as a PSF or blank sky.

Shape legend: H x W pixels.
"""

from typing import NamedTuple

import numpy as np

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.config.base import replace
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.reader_process import list_hdus, read_file
from gampen_ray.data.readers.fits_listing import FitsListing
from gampen_ray.errors import UserError

__all__ = ["ImageFile", "image_uris", "read_image"]

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


def read_image(uri: str, data: bytes, config: ReaderConfig, *, psf: bool = False) -> ImageFile:
    """Return the image of a .npy or FITS file, which is decoded where it can be ended.

    Parameters
    ----------
    uri
        Of the file.
    data
        Its content.
    config
        How it is read.
    psf
        Whether the image is a PSF: of several images in a file it is the one of that name.

    Raises
    ------
    CutoutError
        If the file holds no such image, or is damaged; the message is the reason.
    """
    if psf and config.hdu is None:
        config = replace(config, hdu=_only_psf(list_hdus(data, config)))
    cutout = read_file(data, uri, config)
    scale = cutout.pixel_scale_arcsec if config.headers != "ignore" else None
    return ImageFile(cutout.image_CHW[0].astype(float), scale)


def _only_psf(listed: FitsListing) -> int | None:
    """Return the index of the HDU that is named as a PSF, or holds the only image; None: it is no FITS file, or damaged.

    Raises
    ------
    CutoutError
        If several are, or none.
    """
    if listed.images is None:
        return None
    images = [index for index, image in enumerate(listed.images) if image]
    found = [index for index in images if listed.kinds[index] == "psf"] or images
    if len(found) != 1:
        raise CutoutError(f"{len(found) or 'none'} of the HDUs may be the PSF; give hdu, the index of the one that is")
    return found[0]
