"""Noise, residual sky and missing pixels, added to noiseless images.

Resampling makes the noise of a coadd's neighbouring pixels correlated. Averaged over dithered exposures, the autocorrelation of
unit noise is that of the interpolation kernel (Fruchter & Hook 2002, PASP 114, 144, for drizzling): along an axis, linear
interpolation and drizzling onto pixels of the same side give 0.25 at a lag of one pixel and 0 beyond, Lanczos-3 0.11, -0.08,
0.03. `noise_spectrum` has a correlation rho at a lag of one pixel along either axis and rho^2 along the diagonal.
"""

import math

import numpy as np

__all__ = ["correlated_noise", "draw_mask", "filled", "measure_autocorrelation", "noise_spectrum", "sky_residual"]

_MAX_LAG = 8
_OUTLIER_SHARE, _OUTLIER_FACTOR = 0.05, 5.0


def noise_spectrum(correlation: float, size: int) -> np.ndarray:
    """Return the power spectrum of unit noise by `rfft2` on a square of ``size`` pixels: (1 + 2 rho cos k) along each axis."""
    rows, columns = (1 + 2 * correlation * np.cos(2 * math.pi * f(size)) for f in (np.fft.fftfreq, np.fft.rfftfreq))
    return np.maximum(rows[:, None] * columns, 0)


def measure_autocorrelation(blank_NHW: list[np.ndarray]) -> np.ndarray:
    """Return the autocorrelation of the noise in cutouts without sources, at lags of -8 to 8 pixels along y and x, 1 at zero.

    Each cutout's median is subtracted and values beyond 4 robust standard deviations are left out, as are non-finite pixels.
    """
    lags = 2 * _MAX_LAG + 1
    products, pairs = np.zeros((lags, lags)), np.zeros((lags, lags))
    for image in blank_NHW:
        height, width = (side + _MAX_LAG for side in image.shape)
        values = image - np.nanmedian(image)
        used = np.isfinite(values) & (np.abs(values) < 4 * 1.4826 * np.nanmedian(np.abs(values)))
        for total, field in ((products, np.where(used, values, 0.0)), (pairs, used.astype(float))):
            power = np.abs(np.fft.rfft2(field, s=(height, width))) ** 2
            correlation = np.roll(np.fft.irfft2(power, s=(height, width)), (_MAX_LAG, _MAX_LAG), axis=(0, 1))
            total += correlation[:lags, :lags]
    covariance = products / np.maximum(pairs, 1)
    return covariance / covariance[_MAX_LAG, _MAX_LAG]


def measured_spectrum(autocorrelation: np.ndarray, size: int) -> np.ndarray:
    """Return the power spectrum of unit noise, as `noise_spectrum`, of a measured autocorrelation (cut at half the size)."""
    reach = min(_MAX_LAG, (size - 1) // 2)
    inner = slice(_MAX_LAG - reach, _MAX_LAG + reach + 1)
    padded = np.zeros((size, size))
    padded[: 2 * reach + 1, : 2 * reach + 1] = autocorrelation[inner, inner]
    spectrum = np.maximum(np.fft.rfft2(np.roll(padded, (-reach, -reach), axis=(0, 1))).real, 0)
    return spectrum / (np.fft.irfft2(spectrum, s=(size, size))[0, 0])


def correlated_noise(rng: np.random.Generator, spectrum: np.ndarray | None, size: int) -> np.ndarray:
    """Return unit noise (H, W) with a power spectrum, periodic at the edges; None: white."""
    white = rng.standard_normal((size, size))
    if spectrum is None:
        return white
    return np.fft.irfft2(np.fft.rfft2(white) * np.sqrt(spectrum), s=(size, size))


def sky_residual(rng: np.random.Generator, level: float, gradient: float, size: int) -> tuple[np.ndarray, dict[str, float]]:
    """Return what sky subtraction left (H, W), and its parameters.

    Parameters
    ----------
    rng
        Source of all randomness.
    level
        Standard deviation of the constant, flux per pixel; one in twenty cutouts has five times as much, as near bright stars
        and at the edges of detectors.
    gradient
        Standard deviation of the rise from centre to edge along each axis.
    size
        Side of the cutout.
    """
    factor = _OUTLIER_FACTOR if rng.random() < _OUTLIER_SHARE else 1.0
    constant, along_x, along_y = (rng.standard_normal(3) * (factor * level, gradient, gradient)).tolist()
    ramp = np.linspace(-1, 1, size)
    image = constant + along_x * ramp + along_y * ramp[:, None]
    return image, {"sky_level": constant, "sky_gradient_x": along_x, "sky_gradient_y": along_y}


def draw_mask(rng: np.random.Generator, size: int) -> tuple[np.ndarray, int]:
    """Return pixels without data (H, W), bool, and the axis along which they are best interpolated.

    A third each are a satellite's trail of 3 to 8 pixels at any angle, one or two bad columns or rows, and cosmic rays: one to
    four tracks of 2 to 12 pixels.
    """
    y, x = np.indices((size, size))
    kind = rng.integers(3)
    if kind == 0:
        angle, offset, width = rng.uniform(0, math.pi), rng.uniform(-0.5, 0.5) * size, rng.uniform(3, 8)
        distance = (x - 0.5 * size) * math.sin(angle) - (y - 0.5 * size) * math.cos(angle) - offset
        return np.abs(distance) < 0.5 * width, 1 if abs(math.sin(angle)) > 0.7 else 0
    if kind == 1:
        vertical, first, width = rng.random() < 0.5, rng.integers(size), rng.integers(1, 3)
        position = x if vertical else y
        return (position >= first) & (position < first + width), 1 if vertical else 0
    mask = np.zeros((size, size), bool)
    for _ in range(rng.integers(1, 5)):
        (x0, y0), angle, length = rng.uniform(0, size, 2), rng.uniform(0, math.pi), rng.uniform(2, 12)
        along = (x - x0) * math.cos(angle) + (y - y0) * math.sin(angle)
        across = (x - x0) * math.sin(angle) - (y - y0) * math.cos(angle)
        mask |= (np.abs(along) < 0.5 * length) & (np.abs(across) < 1)
    return mask, 1


def filled(image: np.ndarray, mask: np.ndarray, axis: int, *, interpolate: bool) -> np.ndarray:
    """Return an image whose masked pixels are zero, or linear between the nearest good ones along an axis."""
    result = np.where(mask, 0.0, image)
    if interpolate:
        lines, values, masked = (result, image, mask) if axis == 1 else (result.T, image.T, mask.T)
        place = np.arange(len(image))
        for row in np.flatnonzero(masked.any(axis=1) & ~masked.all(axis=1)):
            bad = masked[row]
            lines[row, bad] = np.interp(place[bad], place[~bad], values[row, ~bad])
    return result
