"""Images of several bands, an HDU or a file each. Shape legend: C bands, H x W pixels."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gampen_ray.data.cutouts import Cutout, CutoutError
from gampen_ray.data.headers import canonical_band
from gampen_ray.data.kinds import hdu_kind

__all__ = ["band_hdus", "band_names", "named_bands", "plane_names", "stacked"]

_CARDS = ("BAND", "FILTER", "FILTERS", "EXTNAME")


def band_hdus(images: Sequence[Any], bands: Sequence[str]) -> list[int]:
    """Return the image HDU of each band, by its place among the images.

    An HDU belongs to a band if its BAND or FILTER is the band's name, or a part of its EXTNAME is: ``r``, ``SCI_r``,
    ``FLUX_NIR_Y``. Masks, weights, PSFs and the like are left out.

    Raises
    ------
    CutoutError
        If a band has none, or several.
    """
    names = {place: _names(hdu) for place, hdu in enumerate(images) if hdu_kind(hdu) in ("", "science")}
    chosen = []
    for band in bands:
        found = [place for place in names if named_bands(images[place], [band])]
        if len(found) != 1:
            there = ", ".join("/".join(sorted(own)) or "without a name" for own in names.values()) or "none"
            raise CutoutError(
                f"{len(found) or 'no'} HDUs for the band {band} by EXTNAME, BAND or FILTER; the images are: {there}"
            )
        chosen += found
    return chosen


def named_bands(hdu: Any, bands: Sequence[str]) -> list[str]:
    """Return those of some bands that an HDU names; see `band_hdus`."""
    names = _names(hdu)
    return [band for band in bands if band.lower() in names]


def band_names(images: Sequence[Any]) -> list[str]:
    """Return the bands of image HDUs by BAND or FILTER, or the ending of EXTNAME where every image has another that is a band's
    name; else none."""
    images = [hdu for hdu in images if hdu_kind(hdu) in ("", "science")]
    for card in _CARDS:
        names = [str(hdu.header.get(card, "")).strip() for hdu in images]
        if card == "EXTNAME":
            # Without what all begin with: FLUX_VIS, FLUX_NIR_Y.
            first = names[0].rpartition("_")[0] if len(names) > 1 else ""
            while first and not all(name.startswith(f"{first}_") for name in names):
                first = first.rpartition("_")[0]
            names = [name[len(first) + bool(first) :] for name in names] if len(names) > 1 else []
            names = names if all(canonical_band(name) for name in names) else []
        # GALEX has numbers.
        if names and all(re.fullmatch(r"(?!\d+$)[\w.+-]+", name) for name in names) and len(set(names)) == len(names):
            return names
    return []


def plane_names(header: Any, count: int) -> list[str]:
    """Return the bands of the planes of a cube as the Legacy Surveys' cutouts name them, by BAND0, BAND1, ...; else none."""
    names = [str(header.get(f"BAND{plane}", "")).strip() for plane in range(count)]
    return names if all(names) and len(set(names)) == count else []


def stacked(bands: Sequence[str], cutouts: Sequence[Cutout]) -> Cutout:
    """Return the image of several bands in the flux unit of the first, whose position and header it has.

    Raises
    ------
    CutoutError
        If sizes, pixel scales or bands contradict each other, or one zero point is unknown and another known.
    """
    first, planes, numbers, sigmas = cutouts[0], [], {}, []
    if len({cutout.image_CHW.shape for cutout in cutouts}) > 1:
        sizes = ", ".join(
            f"{band} {c.image_CHW.shape[1]} x {c.image_CHW.shape[2]}" for band, c in zip(bands, cutouts, strict=True)
        )
        raise CutoutError(f"the bands' images have different sizes: {sizes}")
    for band, cutout in zip(bands, cutouts, strict=True):
        own, scale = cutout.zero_point_mag, cutout.pixel_scale_arcsec
        if cutout.band and canonical_band(band) not in ("", cutout.band):
            raise CutoutError(
                f"band {band}: the header gives the band {cutout.band}; reader.headers 'ignore' takes it all the same"
            )
        if scale and first.pixel_scale_arcsec and abs(scale / first.pixel_scale_arcsec - 1) > 0.01:
            raise CutoutError(
                f"band {band}: pixel scale {scale:.6g} by the header, but {first.pixel_scale_arcsec:.6g} of {bands[0]}"
            )
        if (own is None) != (first.zero_point_mag is None):
            raise CutoutError(
                f"band {band}: the header gives the zero point {own}, but that of {bands[0]} {first.zero_point_mag}"
            )
        factor = 1.0 if own is None or first.zero_point_mag is None else 10 ** (0.4 * (first.zero_point_mag - own))
        scaled = cutout.scaled(factor)
        planes.append(scaled.image_CHW)
        numbers |= scaled.numbers
        sigmas.append(np.zeros_like(scaled.image_CHW) if scaled.sigma_CHW is None else scaled.sigma_CHW)
    sigma_CHW = None if all(cutout.sigma_CHW is None for cutout in cutouts) else np.concatenate(sigmas)
    return dataclasses.replace(first, image_CHW=np.concatenate(planes), band="", numbers=numbers, sigma_CHW=sigma_CHW)


def _names(hdu: Any) -> set[str]:
    names: set[str] = set()
    for card in _CARDS:
        # Beginning and endings: flux, flux_nir_y, nir_y and y of FLUX_NIR_Y.
        pieces = re.split(r"[-_. ]+", str(hdu.header.get(card, "")).strip().lower())
        names |= {pieces[0], *("_".join(pieces[start:]) for start in range(len(pieces)))}
    return names - {""}
