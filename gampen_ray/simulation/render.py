"""From galaxies, stars and a PSF to noiseless pixels: profiles are multiplied with PSF and pixel in Fourier space.

The transforms are GalSim's (Rowe et al. 2015) or closed forms, summed on one grid, so that a cutout takes one inverse FFT; what
is faint takes small stamps. The image is periodic, on a box so large that the light of a galaxy that comes back from its
far side is below 0.15 % of its flux.

Shape legend: S sources, H x W pixels.
"""

import dataclasses
import math
import typing
from collections.abc import Sequence

import numpy as np
import scipy.fft

from gampen_ray.simulation import sersic
from gampen_ray.simulation.galaxies import Galaxy
from gampen_ray.simulation.knots import draw_knots
from gampen_ray.simulation.psf import Grid, MoffatPsf, StampPsf, grid_of, shear_of

__all__ = ["Psf", "Sources", "render", "render_sources"]

Psf = MoffatPsf | StampPsf
STAMP = 64
"""Side of the stamps of faint sources, pixels."""
_MAX_ALIAS, _BOXES = 1.5e-3, (2.0, 2.5, 3.0, 4.0, 6.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    """Bulge + disk galaxies and stars as columns (S,); a star has radii of zero. One pair of Sersic indices for all."""

    flux: np.ndarray
    bulge_to_total: np.ndarray
    bulge_radius_arcsec: np.ndarray
    disk_radius_arcsec: np.ndarray
    bulge_shear: np.ndarray
    """(2, S), see `shear_of`."""
    disk_shear: np.ndarray
    """(2, S)."""
    x_arcsec: np.ndarray
    """Offset from the cutout's centre."""
    y_arcsec: np.ndarray
    knot_fraction: np.ndarray
    """Share of the disk's light that is in knots."""
    knot_seed: np.ndarray
    bulge_sersic_index: float = 4.0
    disk_sersic_index: float = 1.0

    def __len__(self) -> int:
        return len(self.flux)

    def __getitem__(self, rows: np.ndarray) -> "Sources":
        """Return some of the sources."""
        return dataclasses.replace(self, **{name: getattr(self, name)[..., rows] for name in _COLUMNS})

    @classmethod
    def joined(cls, sources: "Sequence[Sources]") -> "Sources":
        """Return galaxies and stars of the same Sersic indices as one."""
        columns = {name: np.concatenate([getattr(one, name) for one in sources], axis=-1) for name in _COLUMNS}
        return dataclasses.replace(sources[0], **columns)

    @classmethod
    def of(cls, galaxy: Galaxy) -> "Sources":
        """Return one galaxy as a source."""
        bulge = shear_of(galaxy.bulge_axis_ratio, galaxy.bulge_position_angle_deg)
        disk = shear_of(galaxy.disk_axis_ratio, galaxy.disk_position_angle_deg)
        return cls(
            flux=np.array([galaxy.flux]),
            bulge_to_total=np.array([galaxy.bulge_to_total]),
            bulge_radius_arcsec=np.array([galaxy.bulge_radius_arcsec]),
            disk_radius_arcsec=np.array([galaxy.disk_radius_arcsec]),
            bulge_shear=np.array(bulge)[:, None],
            disk_shear=np.array(disk)[:, None],
            x_arcsec=np.array([galaxy.x_offset_arcsec]),
            y_arcsec=np.array([galaxy.y_offset_arcsec]),
            knot_fraction=np.array([galaxy.knot_fraction]),
            knot_seed=np.array([galaxy.knot_seed]),
            bulge_sersic_index=galaxy.bulge_sersic_index,
            disk_sersic_index=galaxy.disk_sersic_index,
        )


_COLUMNS = [field.name for field in dataclasses.fields(Sources) if not field.name.endswith("sersic_index")]


def render(galaxies: Sequence[Galaxy], *, psf: Psf, pixel_scale_arcsec: float, size: int) -> np.ndarray:
    """Draw galaxies through PSF and pixel, without noise.

    Parameters
    ----------
    galaxies
        Those in the cutout; positions are offsets from its centre.
    psf
        A Moffat profile, or a stamp on the same pixels.
    pixel_scale_arcsec
        Side of a pixel.
    size
        Side of the cutout in pixels.

    Returns
    -------
    array (H, W), float64
        Flux per pixel.
    """
    box = max((box_of(galaxy, psf, pixel_scale_arcsec, size) for galaxy in galaxies), default=_box(2.0 * size, psf))
    image = np.zeros((size, size))
    for galaxy in galaxies:
        image += render_sources(Sources.of(galaxy), psf, pixel_scale_arcsec, size, box)
    return image


def box_of(galaxy: Galaxy, psf: Psf, pixel_scale_arcsec: float, size: int) -> int:
    """Return the side of the periodic box on which to draw a galaxy, pixels: the less of its light beyond, the smaller."""
    for factor in _BOXES:
        half = 0.5 * factor * size * pixel_scale_arcsec
        if (1 - galaxy.light_within(half) + psf.light_beyond(half)) / factor**2 < _MAX_ALIAS:
            break
    return _box(factor * size, psf)


def _box(side: float, psf: Psf) -> int:
    least = max(STAMP, psf.min_size(), math.ceil(side))
    return typing.cast(int, scipy.fft.next_fast_len(least + least % 2, real=True))


def render_sources(sources: Sources, psf: Psf, pixel_scale_arcsec: float, size: int, box: int) -> np.ndarray:
    """Draw sources on a periodic box of ``box`` pixels and return its (H, W) cutout of ``size``, flux per pixel."""
    division = psf.oversampling(pixel_scale_arcsec)
    grid = grid_of(box * division, pixel_scale_arcsec / division)
    total = np.zeros((grid.size, grid.size // 2 + 1), np.complex64)
    centre = 0.5 * (size - 1) * pixel_scale_arcsec
    for i in range(len(sources)):
        one = sources[np.array([i])]
        light = grid.shift(centre + one.x_arcsec[0], centre + one.y_arcsec[0])
        light *= np.float32(one.flux[0])
        if one.disk_radius_arcsec[0] > 0:
            light *= _transforms(one, grid)[0]
        total += light
    total *= psf.transform(grid, pixel_scale_arcsec)
    # Along x, of the cutout's rows alone.
    rows = np.fft.ifft(total, axis=0)[: size * division : division]
    return np.fft.irfft(rows, n=grid.size, axis=1)[:, : size * division : division] * float(division**2)


def render_faint(sources: Sources, psf: Psf, pixel_scale_arcsec: float, size: int) -> np.ndarray:
    """Draw sources on stamps of `STAMP` pixels about themselves and return their sum (H, W), flux per pixel.

    What a source has beyond its stamp comes back on the stamp's other side.
    """
    image = np.zeros((size, size))
    # Pixel of each centre, and the rest.
    x, y = (0.5 * (size - 1) + position / pixel_scale_arcsec for position in (sources.x_arcsec, sources.y_arcsec))
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    half = STAMP // 2
    near = np.flatnonzero((np.abs(column - size // 2) < half + size // 2) & (np.abs(row - size // 2) < half + size // 2))
    if not len(near):
        return image
    division = psf.oversampling(pixel_scale_arcsec)
    grid = grid_of(STAMP * division, pixel_scale_arcsec / division)
    dx, dy = ((half + (v - w)[near]) * pixel_scale_arcsec for v, w in ((x, column), (y, row)))
    light_SHW = grid.shift(dx[:, None, None], dy[:, None, None])
    light_SHW *= _transforms(sources[near], grid)
    light_SHW *= np.float32(sources.flux[near, None, None]) * psf.transform(grid, pixel_scale_arcsec)
    stamps = np.fft.irfft2(light_SHW, s=(grid.size, grid.size))[:, ::division, ::division] * division**2
    for stamp, left, bottom in zip(stamps, column[near] - half, row[near] - half, strict=True):
        rows, columns = slice(max(bottom, 0), max(bottom + STAMP, 0)), slice(max(left, 0), max(left + STAMP, 0))
        part = image[rows, columns]
        part += stamp[rows.start - bottom :, columns.start - left :][: part.shape[0], : part.shape[1]]
    return image


def _transforms(sources: Sources, grid: Grid) -> np.ndarray:
    """Return the transforms of sources of unit flux at the origin (S, H, W), before PSF and pixel."""
    parts = []
    for name, index in (("bulge", sources.bulge_sersic_index), ("disk", sources.disk_sersic_index)):
        g1, g2 = getattr(sources, f"{name}_shear")[:, :, None, None]
        radius = getattr(sources, f"{name}_radius_arcsec")[:, None, None]
        parts.append(sersic.transform(grid.sheared_k2(g1, g2, radius**2), index))
    bulge, disk = parts
    if sources.knot_fraction.any():
        disk = _with_knots(disk, sources, grid)
    share = np.float32(sources.bulge_to_total[:, None, None])
    bulge *= share
    disk *= 1 - share
    disk += bulge
    return disk


def _with_knots(disk_SHW: np.ndarray, sources: Sources, grid: Grid) -> np.ndarray:
    """Return transforms of disks a share of whose light is in knots."""
    result_SHW = disk_SHW.astype(np.complex64)
    for i in np.flatnonzero(sources.knot_fraction):
        g1, g2 = sources.disk_shear[:, i].tolist()
        knots = draw_knots(int(sources.knot_seed[i]), sources.disk_radius_arcsec[i], sources.disk_sersic_index, (g1, g2))
        share = np.float32(sources.knot_fraction[i])
        result_SHW[i] *= 1 - share
        result_SHW[i] += share * knots.transform(grid)
    return result_SHW
