"""Cutouts of a tile whose bands lie on grids of their own: on the pixels of the first band, to which the others are resampled.

Within a cutout the map from one grid to another is taken as affine. Shape legend: N sources, C bands, S the side of a cutout.
Pixel coordinates are (x, y), zero at the centre of the first pixel.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gampen_ray.data.resampling import reach, resampled
from gampen_ray.data.tiles.cutting import MASKED, OFF_TILE, STRIP_BYTES, Cuts, Tile, first_pixels, masked_centres
from gampen_ray.data.tiles.footprint import BandFile
from gampen_ray.data.tiles.grid import Grid

__all__ = ["AlignedTile"]


class AlignedTile:
    """A tile in some bands, on one grid or several; a context manager, as `gampen_ray.data.tiles.cutting.Tile`.

    Parameters
    ----------
    files, root, zero_point_mag
        See there. The grids of all bands overlap.
    """

    def __init__(self, files: Sequence[BandFile], root: str, zero_point_mag: float) -> None:
        same = [band for band, file in enumerate(files) if files[0].grid.same_as(file.grid)]
        others = [band for band in range(len(files)) if band not in same]
        groups = [same, *([band] for band in others)]
        self._first, *self._others = (Tile([files[band] for band in group], root, zero_point_mag) for group in groups)
        self._order = np.argsort([*same, *others])
        self._stack = contextlib.ExitStack()
        self.num_bytes = self._first.num_bytes + sum(tile.num_bytes for tile in self._others)
        """Size of its files."""
        self.resamples = bool(others)
        """Whether a band lies on another grid than the first."""

    def __enter__(self) -> "AlignedTile":
        for tile in (self._first, *self._others):
            self._stack.enter_context(tile)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cut(self, x_N: np.ndarray, y_N: np.ndarray, size: int, num_rows: int = 256) -> Iterator[Cuts]:
        """Yield the cutouts of sources, each exactly once; see `gampen_ray.data.tiles.cutting.Tile.cut`.

        Parameters
        ----------
        x_N, y_N
            Positions, pixels of the first band.
        size
            Side of the cutouts, pixels of the first band.
        num_rows
            Most sources at a time.
        """
        if not self._others:
            yield from self._first.cut(x_N, y_N, size, num_rows)
            return
        maps = [_Map.between(self._first.files[0].grid, tile.files[0].grid, x_N, y_N, size) for tile in self._others]
        # Those that are kept at once: their pixels in all bands as they are, and as they become.
        pixels = size**2 * len(self._order) + sum(one.side**2 for one in maps)
        for cuts in self._first.cut(x_N, y_N, size, max(1, STRIP_BYTES // (8 * pixels))):
            aligned = self._aligned(cuts, maps, size)
            for start in range(0, len(cuts.rows_N), num_rows):
                yield aligned.take(slice(start, start + num_rows))

    def _aligned(self, cuts: Cuts, maps: "list[_Map]", size: int) -> Cuts:
        images, psf, noise = [cuts.image_NCHW], [cuts.psf_fwhm_arcsec_NC], [cuts.sky_noise_NC]
        off_N = cuts.off_tile_share_N * images[0].shape[1]
        reason_N = cuts.reason_N.copy()
        for tile, one in zip(self._others, maps, strict=True):
            here = one.take(cuts.rows_N)
            theirs = Cuts.joined(list(tile.cut(here.x_N, here.y_N, one.side)))
            image_NSS, off_NSS = here.resampled(theirs, tile.files[0].grid, size)
            images.append(image_NSS[:, None])
            off_N += off_NSS.mean(axis=(1, 2))
            psf.append(theirs.psf_fwhm_arcsec_NC)
            # Of independent pixels of the new size.
            noise.append(theirs.sky_noise_NC * np.sqrt(here.area_N)[:, None])
            # Where there is no value, the source's own pixel says so.
            fault_N = ~np.isin(theirs.reason_N, ("", MASKED, OFF_TILE))
            reason_N = np.where(fault_N & (reason_N == ""), theirs.reason_N, reason_N)
        image_NCHW, psf_NC, noise_NC = (np.concatenate(parts, axis=1)[:, self._order] for parts in (images, psf, noise))
        reason_N[(reason_N == "") & masked_centres(image_NCHW, cuts.dx_N, cuts.dy_N)] = MASKED
        share_N = off_N / len(self._order)
        return dataclasses.replace(
            cuts,
            image_NCHW=image_NCHW,
            masked_share_N=np.maximum(np.isnan(image_NCHW).mean(axis=(1, 2, 3)) - share_N, 0.0),
            off_tile_share_N=share_N,
            psf_fwhm_arcsec_NC=psf_NC,
            sky_noise_NC=noise_NC,
            reason_N=reason_N,
        )


class _Map(NamedTuple):
    """Where the centres of cutouts of one grid lie on another, and the affine maps about them.

    Parameters
    ----------
    x_N, y_N
        Centres, pixels of the other grid.
    matrix_N22
        From offsets on the one grid to those on the other.
    side
        Of the cutouts of the other grid that hold all that contributes, pixels.
    """

    x_N: np.ndarray
    y_N: np.ndarray
    matrix_N22: np.ndarray
    side: int

    @classmethod
    def between(cls, grid: Grid, other: Grid, x_N: np.ndarray, y_N: np.ndarray, size: int) -> "_Map":
        """Return the maps for cutouts of some ``size`` about sources at some pixels of the one grid."""
        # From the centre of the cutout, which is one of a pixel or between pixels, half a cutout to each side.
        half = size / 2
        centre = [first_pixels(at_N, size) + (size - 1) / 2 for at_N in (x_N, y_N)]
        steps_52 = half * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
        x_5N, y_5N = (at_N + steps_52[:, axis, None] for axis, at_N in enumerate(centre))
        there_25N = np.stack(other.pixels(*grid.sky(x_5N.ravel(), y_5N.ravel()))).reshape(2, *x_5N.shape)
        matrix_22N = np.stack([there_25N[:, 1] - there_25N[:, 2], there_25N[:, 3] - there_25N[:, 4]], axis=1) / (2 * half)
        matrix_N22 = np.moveaxis(matrix_22N, 2, 0)
        extent = np.abs(matrix_N22).sum(axis=2).max() * half
        most = reach(matrix_N22[np.abs(np.linalg.det(matrix_N22)).argmax()])
        return cls(there_25N[0, 0], there_25N[1, 0], matrix_N22, 2 * math.ceil(extent + most + 1) + 1)

    def take(self, rows_N: np.ndarray) -> "_Map":
        """Return those of some sources."""
        return _Map(self.x_N[rows_N], self.y_N[rows_N], self.matrix_N22[rows_N], self.side)

    @property
    def area_N(self) -> np.ndarray:
        """Area of a pixel of the one grid, pixels of the other."""
        return np.abs(np.linalg.det(self.matrix_N22))

    def resampled(self, cuts: Cuts, grid: Grid, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the pixels of the one grid (N x S x S) from cutouts of the other, of one band, and which are off its tile."""
        middle_N2 = (self.side - 1) / 2 + np.stack([cuts.dx_N, cuts.dy_N], axis=1)
        image_NSS = np.empty((len(self.x_N), size, size), np.float32)
        for row, image_HW in enumerate(cuts.image_NCHW[:, 0]):
            image_NSS[row] = resampled(image_HW, self.matrix_N22[row], middle_N2[row], size)
        offset_S = np.arange(size) - (size - 1) / 2
        x_NSS, y_NSS = (
            at_N[:, None, None]
            + self.matrix_N22[:, axis, :1, None] * offset_S
            + self.matrix_N22[:, axis, 1:, None] * offset_S[:, None]
            for axis, at_N in enumerate((self.x_N, self.y_N))
        )
        return image_NSS, grid.clearance(x_NSS, y_NSS) < 0
