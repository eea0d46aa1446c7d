"""What the headers of a tile's files say: a row of the index, or why the tile cannot be used."""

import math
from collections import ChainMap
from collections.abc import Sequence
from typing import Any

from gampen_ray import storage
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.headers import header_band, header_facts
from gampen_ray.data.mask_planes import header_planes, plane_bits
from gampen_ray.data.tiles.fits_files import Hdu, opened
from gampen_ray.data.tiles.footprint import BandFile, Place
from gampen_ray.data.tiles.formats import format_of
from gampen_ray.data.tiles.grid import Grid, wcs_text
from gampen_ray.data.tiles.listing import Entry
from gampen_ray.data.tiles.preset import ROLES, TileSurvey

__all__ = ["describe"]

_SAME_MAG = 0.01


def describe(
    entry: Entry, survey: TileSurvey, root: str, *, zero_point_mag: float | None = None, mask_planes: Sequence[str] = ()
) -> BandFile:
    """Return what the headers of a tile's files say.

    Parameters
    ----------
    entry
        Its files.
    survey
        Its preset.
    root
        Folder of the tiles.
    zero_point_mag
        Counts alone, instead of headers and preset; None: those.
    mask_planes
        Planes whose pixels have no value; none: the preset's.

    Raises
    ------
    CutoutError
        If the tile cannot be used, with the reason.
    """
    found = {role: _found(entry, survey, role, root) for role in ROLES if survey.plane(role) is not None}
    _, image, primary = found["image"]
    height, width = image.shape
    grid = Grid(wcs_text(image.header), height, width)
    grid.corners  # noqa: B018 - raises where the WCS is of no use
    for role, (place, hdu, _) in found.items():
        if hdu.shape != image.shape:
            raise CutoutError(
                f"{place.path}: the {role} has {hdu.shape[1]} x {hdu.shape[0]} pixels, the image {width} x {height}"
            )
    facts = header_facts(image.header, primary, image.shape) if zero_point_mag is None else {}
    header: Any = image.header
    psf = header.get(survey.psf_keyword, primary.get(survey.psf_keyword, math.nan)) if survey.psf_keyword else math.nan
    names: dict[str, Any] = {name: getattr(entry, name) for name in ("tile", "tract", "patch", "version")}
    places: dict[str, Any] = {role: place for role, (place, _, _) in found.items()}
    return BandFile(
        **names | places,
        band=entry.band or _band(image, primary),
        noise_kind=survey.noise_kind,
        mask_bits=_mask_bits(found["mask"][1], survey, mask_planes) if "mask" in found else 0,
        zero_point_mag=_zero_point(facts.get("zero_point_mag"), survey) if zero_point_mag is None else zero_point_mag,
        pixel_scale_arcsec=grid.pixel_scale_arcsec,
        psf_fwhm_arcsec=float(psf),
        grid=grid,
    )


def _found(entry: Entry, survey: TileSurvey, role: str, root: str) -> tuple[Place, Hdu, Any]:
    plane = survey.plane(role)
    assert plane is not None
    path = entry.files.get(role, "") if plane.files else entry.files["image"]
    if not path:
        raise CutoutError(f"there is no file {' or '.join(plane.files)} of the {role}")
    uri = storage.join(root, path)
    stamp = storage.stamps([uri])[uri]
    try:
        with opened(uri) as file:
            hdu, primary = format_of(path).chosen_hdu(file, plane.hdus)
    except CutoutError as error:
        raise CutoutError(f"{path}: {error}") from None
    # That of a compressed file is not the size of what it holds.
    size = int(stamp.split(" ")[0]) if stamp and not path.lower().endswith((".gz", ".bz2")) else hdu.stop
    if size < hdu.stop:
        raise CutoutError(f"{path}: the file is truncated: {hdu.stop:,} bytes by its headers, {size:,} found")
    return Place(path, hdu.index, stamp), hdu, primary


def _band(image: Hdu, primary: Any) -> str:
    band = header_band(ChainMap(image.header, primary))  # pyright: ignore[reportArgumentType]
    if not band:
        raise CutoutError("neither its name nor its header gives the band")
    return band


def _zero_point(told: float | None, survey: TileSurvey) -> float:
    stated = survey.zero_point_mag
    if told is None and stated is None:
        raise CutoutError("the header gives no zero point; state zero_point_mag")
    if told is not None and stated is not None and abs(told - stated) > _SAME_MAG:
        raise CutoutError(
            f"the header gives the zero point {told:.6g}, the survey {survey.name} has {stated:.6g}; state zero_point_mag"
        )
    zero_point = stated if told is None else told
    assert zero_point is not None
    return zero_point


def _mask_bits(mask: Hdu, survey: TileSurvey, chosen: Sequence[str]) -> int:
    planes = header_planes(mask.header) or survey.planes
    if not (chosen or survey.bad_planes):
        return 0
    unknown = [name for name in chosen if name not in planes and name != "any"]
    bits = plane_bits(planes, chosen or survey.bad_planes)
    if unknown or not bits:
        wanted = ", ".join(unknown or survey.bad_planes)
        raise CutoutError(f"the mask has no plane {wanted}; it has {', '.join(planes) or 'none with a name'}")
    return bits
