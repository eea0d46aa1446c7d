"""The grid of a tile's pixels on the sky. Pixel coordinates are (x, y), zero at the centre of the first pixel.

Shape legend: N positions.
"""

import dataclasses
import functools
import math
import re
import warnings
from typing import Any

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import wcs_to_celestial_frame

from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.offline import offline
from gampen_ray.data.wcs import celestial_wcs

__all__ = ["Grid", "unit_vectors", "wcs_text"]

_CARDS = re.compile(
    r"WCSAXES|(CTYPE|CUNIT|CRVAL|CRPIX|CDELT|CROTA)[12]|(PC|CD)00[12]00[12]|(PC|CD)[12]_[12]|PV[12]_\d+"
    r"|[AB]P?_(ORDER|\d+_\d+)|LONPOLE|LATPOLE|RADESYS|RADECSYS|EQUINOX"
)
_TABLES = re.compile(r"(CPDIS|CQDIS|D2IMDIS)\d|D2IMEXT|D2IMARR")
# Grids that differ by less are one: headers round.
_SAME_PIXELS = 0.05


def wcs_text(header: fits.Header) -> str:
    """Return the cards of a header's celestial coordinates, a line each.

    Raises
    ------
    CutoutError
        If there are none, or they have distortions in tables.
    """
    if any(_TABLES.fullmatch(name) for name in header):
        raise CutoutError("the WCS has distortions in tables, which are not read")
    if "CTYPE1" not in header:
        raise CutoutError("the header has no WCS")
    cards = [fits.Card(name, header[name]) for name in header if _CARDS.fullmatch(name)]
    return "\n".join(str(card).rstrip() for card in cards)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Pixels on the sky.

    Parameters
    ----------
    wcs
        Cards of its coordinates (`wcs_text`).
    height, width
        Pixels.
    """

    wcs: str
    height: int
    width: int

    @functools.cached_property
    def _wcs(self) -> WCS:
        try:
            with warnings.catch_warnings(), offline():
                warnings.simplefilter("ignore")
                header = fits.Header.fromstring(self.wcs, sep="\n")
                wcs = celestial_wcs(header, naxis=2)
                if wcs.wcs.lngtyp not in ("RA", "GLON"):
                    raise ValueError(f"its axes are {wcs.wcs.lngtyp or 'not celestial'}")
                wcs.wcs.set()
        except Exception as error:
            raise CutoutError(f"the WCS cannot be used: {' '.join(str(error).split())[:200]}") from None
        return wcs

    @functools.cached_property
    def _frame(self) -> Any:
        # None: ICRS, the catalogue's.
        if self._wcs.wcs.lngtyp == "RA" and self._wcs.wcs.radesys in ("", "ICRS"):
            return None
        return wcs_to_celestial_frame(self._wcs)

    def sky(self, x_N: Any, y_N: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return right ascensions and declinations, deg (ICRS)."""
        ra_N, dec_N = (np.asarray(values, np.float64) for values in self._wcs.all_pix2world(x_N, y_N, 0))
        if self._frame is None:
            return ra_N % 360, dec_N
        with offline():
            sky: Any = SkyCoord(ra_N * u.deg, dec_N * u.deg, frame=self._frame).icrs
        return sky.ra.deg, sky.dec.deg

    def pixels(self, ra_N: np.ndarray, dec_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of positions (deg, ICRS) within a few degrees of the tile; NaN where the projection has none."""
        if self._frame is not None:
            with offline():
                sky: Any = SkyCoord(ra_N * u.deg, dec_N * u.deg).transform_to(self._frame)
            ra_N, dec_N = sky.spherical.lon.deg, sky.spherical.lat.deg
        # Far outside, the polynomials of SIP may have no inverse.
        x_N, y_N = self._wcs.all_world2pix(ra_N, dec_N, 0, quiet=True)
        return np.asarray(x_N, np.float64), np.asarray(y_N, np.float64)

    def clearance(self, x_N: np.ndarray, y_N: np.ndarray) -> np.ndarray:
        """Return how far positions are from the nearest edge, pixels; negative outside, NaN where x or y is."""
        return np.minimum.reduce([x_N + 0.5, self.width - 0.5 - x_N, y_N + 0.5, self.height - 0.5 - y_N])

    @functools.cached_property
    def corners(self) -> tuple[np.ndarray, np.ndarray]:
        """Right ascensions and declinations of the outer corners of the four corner pixels, deg (ICRS), around the tile."""
        right, top = self.width - 0.5, self.height - 0.5
        ra_4, dec_4 = self.sky([-0.5, right, right, -0.5], [-0.5, -0.5, top, top])
        if not np.isfinite(ra_4 + dec_4).all():
            raise CutoutError("the WCS gives no position of the tile's corners")
        return ra_4, dec_4

    @functools.cached_property
    def centre(self) -> np.ndarray:
        """Direction of the centre, a unit vector (3)."""
        return unit_vectors(*self.sky([(self.width - 1) / 2], [(self.height - 1) / 2]))[0]

    @functools.cached_property
    def radius_deg(self) -> float:
        """Radius about the centre within which all of the tile lies, deg."""
        chords = np.linalg.norm(unit_vectors(*self.corners) - self.centre, axis=1)
        # Sides may bulge in some projections.
        return 1.02 * math.degrees(2 * math.asin(min(1.0, chords.max() / 2)))

    @functools.cached_property
    def pixel_scale_arcsec(self) -> float:
        """Side of a pixel at the centre, arcsec: the square root of its area."""
        x, y = (self.width - 1) / 2, (self.height - 1) / 2
        origin_3, right_3, up_3 = unit_vectors(*self.sky([x, x + 1, x], [y, y, y + 1]))
        return math.degrees(math.sqrt(np.linalg.norm(np.cross(right_3 - origin_3, up_3 - origin_3)))) * 3600

    def same_as(self, other: "Grid") -> bool:
        """Return whether another grid has the same pixels, to a twentieth."""
        if (self.height, self.width) != (other.height, other.width):
            return False
        if self.wcs == other.wcs:
            return True
        x_4, y_4 = other.pixels(*self.corners)
        right, top = self.width - 0.5, self.height - 0.5
        return bool(np.hypot(x_4 - [-0.5, right, right, -0.5], y_4 - [-0.5, -0.5, top, top]).max() < _SAME_PIXELS)

    def overlaps(self, other: "Grid") -> bool:
        """Return whether the rectangle about another grid's pixels, along the sides of this one, overlaps it."""
        x_4, y_4 = self.pixels(*other.corners)
        inside = ((at_4.min(), at_4.max(), side) for at_4, side in ((x_4, self.width), (y_4, self.height)))
        # False where the projection has no such position: NaN.
        return all(low < side - 0.5 and high > -0.5 for low, high, side in inside)

    def __str__(self) -> str:
        x, y = (self.width - 1) / 2, (self.height - 1) / 2
        (ra, above_ra), (dec, above_dec) = self.sky([x, x], [y, y + 1])
        east = ((above_ra - ra + 180) % 360 - 180) * math.cos(math.radians(dec))
        angle = math.degrees(math.atan2(east, above_dec - dec))
        size = f"{self.width} x {self.height} pixels of {self.pixel_scale_arcsec:.4g} arcsec"
        return f"{size} about {ra:.6f} {dec:.6f} deg, up at {angle:.1f} deg east of north"


def unit_vectors(ra_N: np.ndarray, dec_N: np.ndarray) -> np.ndarray:
    """Return directions (N x 3) from degrees."""
    ra_N, dec_N = np.radians(ra_N), np.radians(dec_N)
    return np.stack([np.cos(dec_N) * np.cos(ra_N), np.cos(dec_N) * np.sin(ra_N), np.sin(dec_N)], axis=-1)
