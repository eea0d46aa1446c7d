"""Sizes of the PSFs in many files, with warnings of those that cannot be measured or are doubtful.

Shape legend: F files, S sizes.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.data.agreement import contradict
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.image_files import read_image
from gampen_ray.data.quarantine import nothing_usable, reason_examples
from gampen_ray.errors import UserError
from gampen_ray.inference.psf_sizes import Measured, measured
from gampen_ray.messages import counted
from gampen_ray.progress import Progress
from gampen_ray.simulation.psf import PsfSizes

if TYPE_CHECKING:
    from gampen_ray.model.images import ImagePreprocessing

__all__ = ["measure_files"]

logger = logging.getLogger(__name__)


def measure_files(uris: Sequence[str], reader: ReaderConfig, images: "ImagePreprocessing | None") -> np.ndarray:
    """Return the sizes of the PSF in each file, arcsec, F x S in the order of `PsfSizes`; NaN where it cannot be measured.

    Parameters
    ----------
    uris
        Files, a PSF each.
    reader
        How they are read: HDU and pixel scale, and whether headers are compared with the latter.
    images
        Of the bundle on whose pixels they are measured; None: on their own.

    Raises
    ------
    UserError
        If none can be measured, or a pixel scale is unknown or contradicts the header.
    """
    sizes_FS = np.full((len(uris), len(dataclasses.fields(PsfSizes))), np.nan)
    bad, doubtful = list[tuple[str, str]](), list[tuple[str, str]]()
    with Progress("measure-psf", len(uris), "PSFs") as progress:
        for place, found in enumerate(_each(uris, reader, images)):
            progress.advance(1)
            if isinstance(found, str):
                bad.append((uris[place], found))
                continue
            sizes_FS[place] = dataclasses.astuple(found.sizes)
            doubtful += [(uris[place], remark) for remark in found.remarks]
    if len(bad) == len(uris) == 1:
        raise UserError(f"psfs: {uris[0]}: {bad[0][1]}")
    if len(bad) == len(uris):
        raise nothing_usable(f"psfs: none of the {len(bad):,} images can be measured", bad, "images")
    for verdict, rows in (("cannot be measured", bad), ("may be measured wrongly", doubtful)):
        for reason, count in reason_examples(rows).items():
            logger.warning("%s %s: %s", counted(count, "PSF"), verdict, reason)
    return sizes_FS


def _each(uris: Sequence[str], reader: ReaderConfig, images: "ImagePreprocessing | None") -> Iterator[Measured | str]:
    """Yield what is measured in each file, or why nothing is."""
    for uri, data in zip(uris, storage.read_each(storage.read_bytes, uris), strict=True):
        try:
            found = read_image(uri, data, reader, psf=True)
            scale = _pixel_scale(uri, reader.pixel_scale_arcsec, found.pixel_scale_arcsec)
            yield measured(found.image_HW, scale, images)
        except CutoutError as error:
            # The fields of the reader are the verb's own.
            yield str(error).replace("reader.", "")


def _pixel_scale(uri: str, given: float | None, by_header: float | None) -> float:
    if given is None:
        if by_header is None:
            raise UserError(f"pixel_scale_arcsec: the header of {uri} does not say it; give --pixel-scale-arcsec")
        return by_header
    if by_header is not None and contradict("pixel_scale_arcsec", by_header, given):
        raise UserError(
            f"pixel_scale_arcsec: {given:g} is given, but the header of {uri} says {by_header:.6g}; leave it out to take the "
            "header's, or correct it; headers 'ignore' takes what is given"
        )
    return given
