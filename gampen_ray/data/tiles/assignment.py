"""Which tile each source is taken from: that in which it is farthest from an edge, over RA 0 and at the poles.

Shape legend: N sources, T tiles.
"""

from collections.abc import Collection
from typing import NamedTuple, Protocol

import numpy as np
from scipy.spatial import KDTree

from gampen_ray.data.tiles.cutting import first_pixels
from gampen_ray.data.tiles.grid import Grid, unit_vectors

__all__ = ["Assigned", "Tiles", "assign"]

# Clearances that differ by less are equal, and the first tile by name counts, arcsec.
_EQUAL = 1e-6


class Tiles(Protocol):
    """Tiles by number, sorted by name, such as `gampen_ray.data.tiles.footprint.Selection`."""

    @property
    def names(self) -> np.ndarray:
        """Their names (T)."""
        ...

    @property
    def centre_T3(self) -> np.ndarray:
        """Directions of their centres, unit vectors."""
        ...

    @property
    def radius_deg_T(self) -> np.ndarray:
        """Radii about the centres within which all of a tile lies, deg."""
        ...

    def grid(self, tile: int) -> Grid:
        """Return the pixels of a tile."""
        ...

    def fault(self, tile: int) -> str:
        """Return why a tile cannot be used; empty: it can."""
        ...


class Assigned(NamedTuple):
    """The tile of each source, and where in it the source is.

    Parameters
    ----------
    tile_N
        Number of the tile; -1: none.
    x_N, y_N
        Pixels; NaN without a tile.
    reason_N
        Why there is none, empty text otherwise.
    """

    tile_N: np.ndarray
    x_N: np.ndarray
    y_N: np.ndarray
    reason_N: np.ndarray


def assign(
    ra_N: np.ndarray, dec_N: np.ndarray, tiles: Tiles, *, size: int, max_beyond: int = 0, without: Collection[int] = ()
) -> Assigned:
    """Assign each source to a tile, or say why there is none.

    Parameters
    ----------
    ra_N, dec_N
        Positions, deg (ICRS); NaN where unknown.
    tiles
        The tiles.
    size
        Side of the cutouts, pixels.
    max_beyond
        Pixels by which a cutout may reach over the edge of its tile.
    without
        Tiles that are not considered.
    """
    count = len(ra_N)
    known = np.flatnonzero(np.isfinite(ra_N) & np.isfinite(dec_N))
    reason_N = np.full(count, "the position is missing", dtype=object)
    reason_N[known] = "in no tile of the footprint"
    usable, faulty, outside = (_Best(count) for _ in range(3))
    if len(known):
        tree = KDTree(unit_vectors(ra_N[known], dec_N[known]))
        chord_T = 2 * np.sin(np.radians(np.minimum(tiles.radius_deg_T, 180.0)) / 2)
        near_T = tree.query_ball_point(tiles.centre_T3, chord_T, return_sorted=True)
        for tile in np.setdiff1d(np.flatnonzero([len(near) > 0 for near in near_T]), list(without)).tolist():
            rows = known[near_T[tile]]
            grid = tiles.grid(tile)
            x, y = grid.pixels(ra_N[rows], dec_N[rows])
            clearance = np.nan_to_num(grid.clearance(x, y), nan=-np.inf) * grid.pixel_scale_arcsec
            inside = clearance > 0
            outside.update(rows[~inside], tile, x[~inside], y[~inside], clearance[~inside])
            if inside.any():
                best = faulty if tiles.fault(tile) else usable
                best.update(rows[inside], tile, x[inside], y[inside], clearance[inside])
    for row in np.flatnonzero(outside.tile_N >= 0):
        tile = int(outside.tile_N[row])
        pixels = -outside.clearance_N[row] / tiles.grid(tile).pixel_scale_arcsec
        if np.isfinite(pixels):
            reason_N[row] = f"in no tile: {pixels:.1f} pixels beyond the edge of {tiles.names[tile]}"
    for tile in np.unique(faulty.tile_N[faulty.tile_N >= 0]).tolist():
        reason_N[faulty.tile_N == tile] = tiles.fault(tile)
    inside = usable.tile_N >= 0
    reason_N[inside] = ""
    for tile in np.unique(usable.tile_N[inside]).tolist():
        rows, grid = np.flatnonzero(usable.tile_N == tile), tiles.grid(tile)
        left, first = first_pixels(usable.x_N[rows], size), first_pixels(usable.y_N[rows], size)
        beyond = np.maximum.reduce([-left, -first, left + size - grid.width, first + size - grid.height])
        for row, pixels in zip(rows[beyond > max_beyond], beyond[beyond > max_beyond], strict=True):
            reason_N[row] = f"beyond the edge: the cutout reaches {pixels} pixels over the edge of {tiles.names[tile]}"
    good = reason_N == ""
    x_N, y_N = (np.where(good, values, np.nan) for values in (usable.x_N, usable.y_N))
    return Assigned(np.where(good, usable.tile_N, -1), x_N, y_N, reason_N)


class _Best:
    """The tile of greatest clearance so far, by source."""

    def __init__(self, count: int) -> None:
        self.tile_N = np.full(count, -1)
        self.clearance_N = np.full(count, -np.inf)
        self.x_N, self.y_N = np.full(count, np.nan), np.full(count, np.nan)

    def update(self, rows: np.ndarray, tile: int, x: np.ndarray, y: np.ndarray, clearance: np.ndarray) -> None:
        better = clearance > self.clearance_N[rows] + _EQUAL
        rows = rows[better]
        self.tile_N[rows], self.clearance_N[rows] = tile, clearance[better]
        self.x_N[rows], self.y_N[rows] = x[better], y[better]
