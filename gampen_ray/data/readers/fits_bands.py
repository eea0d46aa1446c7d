"""FITS files with an HDU a band, found by EXTNAME, BAND or FILTER. Shape legend: C bands, H x W pixels."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import CutoutError

__all__ = ["band_hdus", "band_names", "stacked"]

_CARDS = ("BAND", "FILTER", "FILTERS", "EXTNAME")
# What accompanies an image, in EXTNAME or IMAGETYP.
_NOT_IMAGES = re.compile(
    r"(^|[^a-z])(err|error|rms|\w*rms|sigma|std|var|variance|i(n)?v(ar|var)|invvar|we?i(ght)?|wht|wgt|m(a)?sk|mask\w*|dq|flags?|"
    r"\w*psf|bkg|\w*bkg|bgmod|background|sky|model|chi2|depth|nexp|con|ctx|segm?\w*)([^a-z]|$)"
)


def band_hdus(hdus: Any, config: ReaderConfig) -> list[Any]:
    """Return the image HDU of each band, or none if there is one band, an index is given, or the first image is a cube.

    An HDU belongs to a band if its BAND or FILTER is the band's name, or a part of its EXTNAME is: ``r``, ``SCI_r``,
    ``FLUX_NIR_Y``. Masks, weights, PSFs and the like are left out.

    Raises
    ------
    CutoutError
        If two-dimensional images are there but a band has none, or several.
    """
    if len(config.bands) == 1 or config.hdu is not None:
        return []
    images = [hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS", 0) >= 2]
    if len(images) < 2 or images[0].header["NAXIS"] > 2:
        return []
    images = [hdu for hdu in images if not _NOT_IMAGES.search(f"{hdu.name} {hdu.header.get('IMAGETYP', '')}".lower())]
    chosen = []
    for band in config.bands:
        found = [hdu for hdu in images if band.lower() in _names(hdu)]
        if len(found) != 1:
            raise CutoutError(
                f"{len(found) or 'no'} HDUs for the band {band} by EXTNAME, BAND or FILTER; the images are: "
                f"{', '.join('/'.join(sorted(_names(hdu))) or 'without a name' for hdu in images) or 'none'}"
            )
        chosen += found
    return chosen


def band_names(hdus: Sequence[Any]) -> list[str]:
    """Return the bands of images by BAND or FILTER, or the ending of EXTNAME where every image has another; else none."""
    images = [hdu for hdu in hdus if not _NOT_IMAGES.search(f"{hdu.name} {hdu.header.get('IMAGETYP', '')}".lower())]
    for card in _CARDS:
        names = [str(hdu.header.get(card, "")).strip() for hdu in images]
        if card == "EXTNAME":
            # Without what all begin with: FLUX_VIS, FLUX_NIR_Y.
            first = names[0].rpartition("_")[0] if len(names) > 1 else ""
            while first and not all(name.startswith(f"{first}_") for name in names):
                first = first.rpartition("_")[0]
            names = [name[len(first) + bool(first) :] for name in names] if len(names) > 1 else []
        if names and all(re.fullmatch(r"[\w.+-]+", name) for name in names) and len(set(names)) == len(names):
            return names
    return []


def stacked(bands: Sequence[str], planes: Sequence[np.ndarray]) -> np.ndarray:
    """Return one image (C x H x W) of one (1 x H x W) a band; a `CutoutError` if their shapes differ."""
    if len({plane.shape for plane in planes}) > 1:
        sizes = ", ".join(f"{band} {p.shape[1]} x {p.shape[2]}" for band, p in zip(bands, planes, strict=True))
        raise CutoutError(f"the bands' images have different sizes: {sizes}")
    return np.concatenate(planes)


def _names(hdu: Any) -> set[str]:
    names: set[str] = set()
    for card in _CARDS:
        # Beginning and endings: flux, flux_nir_y, nir_y and y of FLUX_NIR_Y.
        pieces = re.split(r"[-_. ]+", str(hdu.header.get(card, "")).strip().lower())
        names |= {pieces[0], *("_".join(pieces[start:]) for start in range(len(pieces)))}
    return names - {""}
