"""What a survey's tiles look like, by name and open to a user's own: files, HDUs, units, masks.

>>> register_tiles(TileSurvey(name="mine", image=Plane(files=("coadd-{tile}-{band}.fits",)), zero_point_mag=27.0))

in a module of yours (`gampen_ray.plugins`) makes ``survey = "mine"`` valid; `surveys/` has the built-in ones, a file each.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import pydantic

from gampen_ray.config.base import config_class
from gampen_ray.plugins import Registry

__all__ = ["ROLES", "TILE_SURVEYS", "NoiseKind", "Plane", "TileSurvey", "checked", "matched", "register_tiles"]

NoiseKind = Literal["variance", "inverse_variance", "error", "relative"]
ROLES = ("image", "noise", "mask", "psf")
"""The planes of a tile in one band."""
_FIELD = re.compile(r"\{(?P<name>[a-z]+)(?::(?P<pattern>[^{}]+))?\}|(?P<any>\*)")
_KNOWN = ("tile", "tract", "patch", "band", "version")
_BAND = r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)?"
_Template = Annotated[str, pydantic.StringConstraints(min_length=1)]


@config_class
class Plane:
    """Where one image of a tile is."""

    files: tuple[_Template, ...] = ()
    """Templates of the file's name, those preferred first: ``{tile}`` or ``{tract}`` and ``{patch}``, ``{band}`` (left out: by
    the header), ``{version}`` (the newest is taken) and ``*``; ``{tile:[0-9]+}`` states what may stand there. A template with
    ``/`` fits the end of the path. Empty: the plane is in the image's file."""
    hdus: tuple[str, ...] = ()
    """Names of its HDU (EXTNAME, or PRIMARY), those preferred first, or a number, counted from 0; empty: the first that holds
    an image. In an ASDF file keys below ``roman``; empty: data."""


@config_class
class TileSurvey:
    """Tiles of a survey: their files, HDUs, units and masks."""

    name: str
    """Name of the preset."""
    about: str = ""
    """Releases that the preset is for."""
    image: Plane
    """The coadded image, in one unit of flux per pixel."""
    noise: Plane | None = None
    """The map of its noise; None: the survey has none."""
    noise_kind: NoiseKind = "variance"
    """What the map holds. relative: weights of no stated unit, which say no more than where nothing was exposed (0)."""
    mask: Plane | None = None
    """The mask, of integers, or of weights if ``bad_planes`` is empty; None: the survey has none."""
    planes: dict[str, int] = pydantic.Field(default_factory=dict)
    """Bit of each plane of the mask, counted from 0, where its header does not name them (MP_NAME, or MSKN0001)."""
    bad_planes: tuple[str, ...] = ("any",)
    """Planes whose pixels have no value; any: all planes; none: pixels whose weight is not positive have none."""
    psf: Plane | None = None
    """Map of the PSF's full width at half maximum, arcsec; None: the survey has none."""
    psf_keyword: str = ""
    """Card of the image's header with the PSF's full width at half maximum, arcsec."""
    zero_point_mag: float | None = None
    """AB magnitude of one unit of flux, of all tiles; None: by each header."""
    primary_columns: tuple[str, ...] = ()
    """Catalogue columns, the first that is there counts, that are false for repeated or blended detections."""
    overlap: str = "the tile in which the source is farthest from an edge"
    """Which of several tiles a source is taken from, in words."""
    unverified: tuple[str, ...] = ()
    """Facts above that could not be checked against a public description or a real file."""

    def plane(self, role: str) -> Plane | None:
        """Return the plane of a role of `ROLES`."""
        return getattr(self, role)

    def expectations(self) -> str:
        """Return what is expected of the files, in lines."""
        lines = [f"{self.name}: {self.about}"]
        for role in ROLES:
            if (plane := self.plane(role)) is not None:
                files = " or ".join(plane.files) or "in the image's file"
                hdus = f", HDU {' or '.join(plane.hdus)}" if plane.hdus else ""
                lines.append(f"  {role:<8}{files}{hdus}" + (f", {self.noise_kind}" if role == "noise" else ""))
        zero_point = "by each header" if self.zero_point_mag is None else f"{self.zero_point_mag:g} mag (AB)"
        lines.append(f"  zero point {zero_point}")
        if self.mask is not None:
            planes = ", ".join(self.planes) or "in the header"
            bad = f"{', '.join(self.bad_planes)}, of the planes {planes}" if self.bad_planes else "where the mask's weight is 0"
            lines.append(f"  no value   {bad}")
        lines.append(f"  overlaps   {self.overlap}" + "".join(f"; primary by {name}" for name in self.primary_columns[:1]))
        return "\n".join([*lines, *(f"  unverified: {fact}" for fact in self.unverified)])


TILE_SURVEYS: Registry[TileSurvey] = Registry("survey")
"""The presets by name."""


def register_tiles(survey: TileSurvey) -> TileSurvey:
    """Make a survey's tiles known by its name, and return it; a ValueError for a template that cannot be used."""
    return TILE_SURVEYS.register(survey.name)(checked(survey))


def checked(survey: TileSurvey) -> TileSurvey:
    """Return a survey whose templates can be used.

    Raises
    ------
    ValueError
        If a template has an unknown field or names no tile, or the image has none.
    """
    if not survey.image.files:
        raise ValueError("image.files is empty; give a template of the images' names")
    for role in ROLES:
        for template in plane.files if (plane := survey.plane(role)) else ():
            _pattern(template)
    return survey


def matched(templates: Sequence[str], path: str) -> tuple[int, Mapping[str, str]] | None:
    """Return the place of the first template that fits the end of a path, and its fields; None: no template does.

    Raises
    ------
    ValueError
        If a template has an unknown field, or no tile.
    """
    for place, template in enumerate(templates):
        parts = template.count("/") + 1
        if match := _pattern(template).fullmatch("/".join(path.split("/")[-parts:])):
            return place, {name: value for name, value in match.groupdict().items() if value is not None}
    return None


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    seen: set[str] = set()

    def field(match: re.Match[str]) -> str:
        name = match["name"]
        if match["any"]:
            return "[^/]*"
        if name not in _KNOWN:
            raise ValueError(f"{template}: {{{name}}} is no field of a file's name; there are {', '.join(_KNOWN)}")
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{match['pattern'] or (_BAND if name == 'band' else '[^/]+?')})"

    places = list(_FIELD.finditer(template))
    ends = [0, *(match.end() for match in places)]
    starts = [*(match.start() for match in places), len(template)]
    fixed = [re.escape(template[a:b]) for a, b in zip(ends, starts, strict=True)]
    fields = [field(match) for match in places] + [""]
    if not seen & {"tile", "tract"}:
        raise ValueError(f"{template}: names no {{tile}}")
    try:
        return re.compile("".join(a + b for a, b in zip(fixed, fields, strict=True)))
    except re.error as error:
        raise ValueError(f"{template}: {error}") from None
