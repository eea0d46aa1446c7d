"""Point-spread functions: elliptical Moffat profiles with an aureole, or stamps; their transforms and measured sizes.

Stars of real coadds have wider wings than the Moffat profile that fits their core, from the atmosphere and from scattered light
(Trujillo et al. 2001, MNRAS 328, 977; King 1971, PASP 83, 199): a second, wider profile holds some per cent of the light.
A PSF has unit light within `APERTURE_PIXELS`: what lies beyond is sky to those who calibrate zero points and make PSF images.
"""

import dataclasses
import functools
import math

import numpy as np
import scipy.special

from gampen_ray.simulation.sersic import lookup

__all__ = ["Grid", "MoffatPsf", "PsfSizes", "StampPsf", "grid_of", "measure_psf", "shear_of"]

WING_BETA = 2.0
"""Index of the aureole: surface brightness falls as the fourth power of radius."""
APERTURE_PIXELS = 20.0
"""Radius of the circle that holds the light of a PSF, pixels: its unit, and what the radii of `PsfSizes` refer to."""
_TABLE = 768
# Of the transform at the Nyquist wave number, before the pixel's: images are then exact to 0.2 % of their peak.
_UNRESOLVED = 8e-3


@dataclasses.dataclass(frozen=True)
class Grid:
    """Wave numbers (1/arcsec) of the real FFT of a square image; the last axis is x and holds half of them."""

    size: int
    """Side of the image, pixels."""
    scale: float
    """Side of its pixels, arcsec."""
    kx: np.ndarray
    """(1, size // 2 + 1)."""
    ky: np.ndarray
    """(size, 1)."""

    def sheared_k2(self, g1: np.ndarray | float, g2: np.ndarray | float, factor: np.ndarray | float = 1.0) -> np.ndarray:
        """Return the square of the wave number at which a profile sheared at constant area has its round transform.

        It is multiplied by ``factor``. Single precision: images are exact to 1e-6 of their peak, in half the time.
        """
        norm = factor / (1 - g1 * g1 - g2 * g2)
        xx, yy, xy = norm * ((1 + g1) ** 2 + g2 * g2), norm * ((1 - g1) ** 2 + g2 * g2), norm * 4 * g2
        result = _single(xy * self.kx) * _single(self.ky)
        result += _single(xx * self.kx**2)
        result += _single(yy * self.ky**2)
        return result

    def shift(self, x_arcsec: np.ndarray | float, y_arcsec: np.ndarray | float) -> np.ndarray:
        """Return the transform of a point source at a place, single precision."""
        return _single(np.exp(-1j * self.ky * y_arcsec)) * _single(np.exp(-1j * self.kx * x_arcsec))


@functools.lru_cache(maxsize=32)
def grid_of(size: int, scale: float) -> Grid:
    """Return the wave numbers of an image of ``size`` pixels of ``scale`` arcsec."""
    kx = 2 * math.pi / scale * np.fft.rfftfreq(size)[None, :]
    ky = 2 * math.pi / scale * np.fft.fftfreq(size)[:, None]
    return Grid(size, scale, kx, ky)


def shear_of(axis_ratio: float, position_angle_deg: float) -> tuple[float, float]:
    """Return the reduced shear of an ellipse: (1 - q) / (1 + q) towards its position angle, counter-clockwise from x."""
    size, angle = (1 - axis_ratio) / (1 + axis_ratio), 2 * math.radians(position_angle_deg)
    return size * math.cos(angle), size * math.sin(angle)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PsfSizes:
    """Sizes of a star's image, its pixels included, circularised: what anyone can measure from stars."""

    fwhm_arcsec: float
    """Full width at half maximum."""
    r50_arcsec: float
    """Radius that holds half of the light within `APERTURE_PIXELS`."""
    r80_arcsec: float
    """Radius that holds 80 % of the light within `APERTURE_PIXELS`."""
    r95_arcsec: float
    """Radius that holds 95 % of the light within `APERTURE_PIXELS`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoffatPsf:
    """An elliptical Moffat profile with an aureole of the same ellipticity, before the pixel."""

    fwhm_arcsec: float
    """Of the core, geometric mean of its axes."""
    beta: float
    """Index of the core."""
    e1: float = 0.0
    """Ellipticity (1 - q) / (1 + q) along x."""
    e2: float = 0.0
    """Ellipticity along the diagonal."""
    wing_fraction: float = 0.0
    """Share of the light to infinity that is in the aureole."""
    wing_fwhm_arcsec: float = 1.0
    """Of the aureole, whose index is `WING_BETA`."""

    def oversampling(self, scale: float) -> int:
        """Return into how many pixels each is divided, along an axis, so that what no pixel resolves is below 0.2 %."""
        return _oversampling(self, scale)

    def min_size(self) -> int:
        """Return the smallest side of an image on which the PSF can be drawn, pixels."""
        return 1

    def light_beyond(self, radius_arcsec: float) -> float:
        """Return the share of the light to infinity that lies beyond a radius."""

        def beyond(fwhm: float, beta: float) -> float:
            return (1 + (radius_arcsec / _scale_radius(fwhm, beta)) ** 2) ** (1 - beta)

        wings = self.wing_fraction
        return (1 - wings) * beyond(self.fwhm_arcsec, self.beta) + wings * beyond(self.wing_fwhm_arcsec, WING_BETA)

    def transform(self, grid: Grid, pixel_scale_arcsec: float) -> np.ndarray:
        """Return the transform of PSF and pixel on a grid; the PSF's ellipticity does not change what its aperture holds."""
        table = _moffat_table(self, grid.scale)
        optics = lookup(table, np.sqrt(grid.sheared_k2(self.e1, self.e2, _table_step(grid.scale) ** -2)))
        optics *= np.float32(1 / (1 - self.light_beyond(APERTURE_PIXELS * pixel_scale_arcsec)))
        optics *= _pixel_transform(grid.size, grid.scale, pixel_scale_arcsec)
        return optics

    def sizes(self, pixel_scale_arcsec: float) -> PsfSizes:
        """Return the sizes of a star's image."""
        scale = pixel_scale_arcsec / self.oversampling(pixel_scale_arcsec)
        values, step = _moffat_table(self, scale)[0], _table_step(scale)
        return _sizes(values * _radial_pixel(len(values), step, pixel_scale_arcsec), step, pixel_scale_arcsec)

    def radial_transform(self, k: np.ndarray) -> np.ndarray:
        """Return the transform of the round profile at wave numbers ``k``, 1/arcsec."""
        core = _moffat(k, self.fwhm_arcsec, self.beta)
        if not self.wing_fraction:
            return core
        return (1 - self.wing_fraction) * core + self.wing_fraction * _moffat(k, self.wing_fwhm_arcsec, WING_BETA)


@dataclasses.dataclass(frozen=True, eq=False)
class StampPsf:
    """A star's image on the survey's pixels, centred on its central pixel; `of` makes one of unit light."""

    stamp: np.ndarray
    """(h, w), odd sides."""

    @classmethod
    def of(cls, stamp_HW: np.ndarray, aperture_pixels: float = APERTURE_PIXELS) -> "StampPsf":
        """Return the PSF of a star of any flux, with unit light within a radius."""
        y, x = np.ogrid[: stamp_HW.shape[0], : stamp_HW.shape[1]]
        radius_HW = np.hypot(x - stamp_HW.shape[1] // 2, y - stamp_HW.shape[0] // 2)
        return cls(stamp=stamp_HW / stamp_HW[radius_HW <= aperture_pixels].sum())

    def oversampling(self, scale: float) -> int:
        """Return 1: a stamp resolves no more than its pixels."""
        return 1

    def min_size(self) -> int:
        """Return the smallest side of an image on which the PSF can be drawn, pixels."""
        return max(self.stamp.shape)

    def light_beyond(self, radius_arcsec: float) -> float:
        """Return 0: a stamp ends inside the image."""
        return 0.0

    def transform(self, grid: Grid, pixel_scale_arcsec: float) -> np.ndarray:
        """Return the transform of the stamp on a grid of its pixels."""
        height, width = self.stamp.shape
        padded = np.zeros((grid.size, grid.size))
        padded[:height, :width] = self.stamp
        return _single(np.fft.rfft2(np.roll(padded, (-(height // 2), -(width // 2)), axis=(0, 1))))

    def sizes(self, pixel_scale_arcsec: float) -> PsfSizes:
        """Return the sizes of the stamp."""
        return _stamp_sizes(self, pixel_scale_arcsec)


@functools.lru_cache(maxsize=4096)
def _stamp_sizes(psf: StampPsf, pixel_scale_arcsec: float) -> PsfSizes:
    return measure_psf(psf.stamp, pixel_scale_arcsec)


def measure_psf(stamp_HW: np.ndarray, pixel_scale_arcsec: float) -> PsfSizes:
    """Measure the sizes of a star's image, on which a network trained on simulated PSFs can be conditioned.

    Parameters
    ----------
    stamp_HW
        The sky-subtracted star or PSF, within a pixel or two of the centre; 41 pixels or more along a side, so that it holds
        `APERTURE_PIXELS`.
    pixel_scale_arcsec
        Side of a pixel.
    """
    height, width = stamp_HW.shape
    # The centre is where the phase is zero at a wave number that weighs the core, half a radian per pixel.
    y, x = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    centre_x = np.angle(stamp_HW.sum(axis=0) @ np.exp(0.5j * x)) / 0.5
    centre_y = np.angle(stamp_HW.sum(axis=1) @ np.exp(0.5j * y)) / 0.5
    kx, ky, ring = _polar_grid()
    rows = _waves("y", height) @ stamp_HW
    transform = np.einsum("kx,kx->k", rows, _waves("x", width)) * np.exp(1j * (kx * centre_x + ky * centre_y))
    radial = np.bincount(ring, transform.real, minlength=_RADII) / (_ANGLES * stamp_HW.sum())
    return _sizes(radial, _POLAR_STEP / pixel_scale_arcsec, pixel_scale_arcsec)


# Wave numbers, to the corner of what pixels hold, and directions at which a stamp's transform is taken.
_RADII, _ANGLES = 384, 32
_POLAR_STEP = math.sqrt(2) * math.pi / _RADII  # per pixel


@functools.cache
def _polar_grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return wave numbers along x and along y, per pixel, and the index of their modulus.

    Beyond the Nyquist wave number along an axis, a stamp's transform repeats itself: these are left out.
    """
    k, angle = np.arange(_RADII) * _POLAR_STEP, (np.arange(_ANGLES) + 0.5) * (math.pi / _ANGLES)
    kx, ky = (k[:, None] * np.cos(angle)).ravel(), (k[:, None] * np.sin(angle)).ravel()
    inside = np.maximum(np.abs(kx), np.abs(ky)) <= math.pi
    return kx[inside], ky[inside], np.repeat(np.arange(_RADII), _ANGLES)[inside]


@functools.lru_cache(maxsize=4)
def _waves(axis: str, size: int) -> np.ndarray:
    """Return plane waves at the wave numbers of the polar grid, on pixels along an axis about their middle."""
    kx, ky, _ = _polar_grid()
    return np.exp(-1j * np.outer(kx if axis == "x" else ky, np.arange(size) - (size - 1) / 2))


# --- transforms and sizes ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _oversampling(psf: MoffatPsf, scale: float) -> int:
    factor = 1
    while psf.radial_transform(np.array([math.pi * factor / scale]))[0] > _UNRESOLVED and factor < 8:
        factor *= 2
    return factor


def _table_step(scale: float) -> float:
    """Return the step of the table of a PSF's radial transform: to a quarter beyond the corner of the grid, for the shear."""
    return 1.25 * math.sqrt(2) * math.pi / scale / (_TABLE - 1)


@functools.lru_cache(maxsize=8)
def _moffat_table(psf: MoffatPsf, scale: float) -> tuple[np.ndarray, np.ndarray]:
    values = psf.radial_transform(_table_step(scale) * np.arange(_TABLE))
    return _single(values), _single(np.diff(values))


def _single(x: np.ndarray) -> np.ndarray:
    """Return numbers in single precision."""
    return x.astype(np.complex64 if np.iscomplexobj(x) else np.float32)


def _scale_radius(fwhm: float, beta: float) -> float:
    return fwhm / (2 * math.sqrt(2 ** (1 / beta) - 1))


def _moffat(k: np.ndarray, fwhm: float, beta: float) -> np.ndarray:
    """Return the transform of a round Moffat profile: 2 (x / 2)^(beta - 1) K_(beta - 1)(x) / Gamma(beta - 1), x = k r_d."""
    x = np.maximum(k * _scale_radius(fwhm, beta), 1e-8)
    order = beta - 1
    bessel = scipy.special.k1(x) if order == 1 else scipy.special.kv(order, x)
    return 2 / math.gamma(order) * (0.5 * x) ** order * bessel


@functools.lru_cache(maxsize=32)
def _pixel_transform(size: int, scale: float, pixel_scale_arcsec: float) -> np.ndarray:
    grid = grid_of(size, scale)
    x, y = (_single(np.sinc(k * pixel_scale_arcsec / (2 * math.pi))) for k in (grid.kx, grid.ky))
    return x * y


@functools.lru_cache(maxsize=8)
def _radial_pixel(count: int, step: float, pixel_scale_arcsec: float) -> np.ndarray:
    angle = (np.arange(32) + 0.5) * (math.pi / 64)
    x = np.arange(count)[:, None] * step * pixel_scale_arcsec / (2 * math.pi)
    return (np.sinc(x * np.cos(angle)) * np.sinc(x * np.sin(angle))).mean(axis=1)


@functools.lru_cache(maxsize=8)
def _bessel(count: int, step: float, pixel_scale_arcsec: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    radius = np.geomspace(0.25, APERTURE_PIXELS, 96) * pixel_scale_arcsec
    k = np.arange(count) * step
    x = radius[:, None] * k
    return radius, scipy.special.j0(x) * k * step, scipy.special.j1(x) * radius[:, None] * step


def _sizes(radial: np.ndarray, step: float, pixel_scale_arcsec: float) -> PsfSizes:
    """Return sizes from the azimuthal mean of a star's transform at wave numbers 0, step, ... (1/arcsec).

    Surface brightness at r is the integral of k J0(k r) T(k) / 2 pi, the light within r that of r J1(k r) T(k), over k.
    """
    radius, j0, j1 = _bessel(len(radial), step, pixel_scale_arcsec)
    profile, light = j0 @ radial, j1 @ radial
    half = 0.5 * float((np.arange(len(radial)) * step * step) @ radial)
    below = int(np.argmax(profile < half))
    log_radius = np.log(radius)
    if below:
        share = (profile[below - 1] - half) / (profile[below - 1] - profile[below])
        half_width = math.exp(log_radius[below - 1] + share * (log_radius[below] - log_radius[below - 1]))
    else:
        half_width = float(radius[0])
    # A sum over steps lacks a twelfth of their square times the slope at zero, r^2 T(0) / 2 (Euler and Maclaurin).
    light = np.maximum.accumulate(light + radial[0] * (radius * step) ** 2 / 24)
    r50, r80, r95 = np.exp(np.interp(np.array([0.5, 0.8, 0.95]) * light[-1], light, log_radius)).tolist()
    return PsfSizes(fwhm_arcsec=2 * half_width, r50_arcsec=r50, r80_arcsec=r80, r95_arcsec=r95)
