"""The files of a survey's tiles below a folder, by their names alone."""

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence

from gampen_ray.data.headers import canonical_band
from gampen_ray.data.tiles.preset import ROLES, TileSurvey, matched
from gampen_ray.errors import UserError

__all__ = ["Entry", "listed"]

logger = logging.getLogger(__name__)
_SHOWN = 3
_Key = tuple[str, str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A tile in one band.

    Parameters
    ----------
    tile, tract, patch, version
        As the names say; a tile of tract and patch is ``TRACT-PATCH``, and what a name does not say is empty.
    band
        In canonical spelling where it has one; empty: by the header.
    files
        Path below the folder by role (`gampen_ray.data.tiles.preset.ROLES`); empty: the file is missing. Roles without a file
        of their own are left out.
    """

    tile: str
    tract: str = ""
    patch: str = ""
    band: str = ""
    version: str = ""
    files: Mapping[str, str]


def listed(paths: Sequence[str], survey: TileSurvey, bands: Sequence[str] = (), root: str = "") -> list[Entry]:
    """Return the tiles of a survey, sorted by tile and band; of several versions of a file the newest.

    Parameters
    ----------
    paths
        Files below the folder.
    survey
        The preset.
    bands
        Bands that are wanted; none: all.
    root
        The folder, for messages.

    Raises
    ------
    UserError
        If no file is an image of the survey, or a wanted band has none.
    """
    planes = {role: plane.files for role in ROLES if (plane := survey.plane(role)) and plane.files}
    # A mask may have a name that could be an image's.
    others = [template for role, templates in planes.items() if role != "image" for template in templates]
    images = _newest([path for path in paths if not matched(others, path)], planes.pop("image"), of_images=True)
    found = {role: _newest(paths, templates, of_images=False) for role, templates in planes.items()}
    if not images:
        names = [path.rpartition("/")[2] for path in paths[:: max(1, len(paths) // _SHOWN)][:_SHOWN]]
        there = f"there are {', '.join(names)}" if names else "it holds no file"
        raise UserError(
            f"tiles: no file below {root} has a name of the survey {survey.name}, {' or '.join(survey.image.files)}; {there}; "
            "give another survey or folder, or describe the files in a table (survey generic)"
        )
    entries = []
    for (tile, band, _), (path, fields) in images.items():
        siblings = {role: files.get((tile, band, "")) or files.get((tile, "", "")) for role, files in found.items()}
        own = {name: fields.get(name, "") for name in ("tract", "patch", "version")}
        files = {"image": path} | {role: sibling[0] if sibling else "" for role, sibling in siblings.items()}
        entries.append(Entry(tile=tile, band=canonical_band(band) or band, files=files, **own))
    named = {entry.band for entry in entries}
    if missing := [band for band in bands if not named & {"", band}]:
        raise UserError(f"bands: no tile of {missing[0]} below {root}; there are {', '.join(sorted(named))}")
    entries = [entry for entry in entries if not bands or not entry.band or entry.band in bands]
    return sorted(entries, key=lambda entry: (entry.tile, entry.band, entry.files["image"]))


def _newest(paths: Sequence[str], templates: Sequence[str], *, of_images: bool) -> dict[_Key, tuple[str, Mapping[str, str]]]:
    # The path and its fields by tile and band: by the template preferred, then by version. Images that do not name their band,
    # of which a tile may have several, by path too.
    best: dict[_Key, tuple[tuple, str, Mapping[str, str]]] = {}
    old = 0
    for path in paths:
        if (match := matched(templates, path)) is None:
            continue
        place, fields = match
        tile = fields.get("tile") or "-".join(filter(None, (fields.get("tract"), fields.get("patch"))))
        band = fields.get("band", "")
        key = tile, band, path if of_images and not band else ""
        rank = (-place, _natural(fields.get("version", "")), path)
        old += key in best
        if key not in best or rank > best[key][0]:
            best[key] = rank, path, fields
    if old:
        logger.info("%s files are older versions of others, and left out", f"{old:,}")
    return {key: (path, fields) for key, (_, path, fields) in best.items()}


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    # Numbers by their value.
    return tuple((int(word), "") if word.isdecimal() else (-1, word) for word in re.findall(r"\d+|\D+", text))
