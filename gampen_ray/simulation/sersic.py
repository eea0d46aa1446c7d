"""Sersic profiles (Sersic 1963): curves of growth and Fourier transforms, in units of the half-light radius."""

import functools

import galsim
import numpy as np
import scipy.special

__all__ = ["growth", "growth_inverse", "transform"]

# Table of the transform in ln k: constant below (to 1e-5 of the flux), and a point source's bulge never reaches its end.
_LOG_K = np.linspace(-7.0, 8.0, 1024)


@functools.cache
def _b(index: float) -> float:
    return float(scipy.special.gammaincinv(2 * index, 0.5))


def growth(radius: float, index: float) -> float:
    """Return the share of a Sersic profile's flux within ``radius``, in units of its half-light radius."""
    return float(scipy.special.gammainc(2 * index, _b(index) * radius ** (1 / index)))


def growth_inverse(fraction: float, index: float) -> float:
    """Return the radius, in half-light radii, that holds a share of a Sersic profile's flux."""
    return float((scipy.special.gammaincinv(2 * index, fraction) / _b(index)) ** index)


def transform(k2: np.ndarray, index: float) -> np.ndarray:
    """Return the Fourier transform of a round profile of unit flux and half-light radius.

    Parameters
    ----------
    k2
        Square of the wave number, over that of one per half-light radius, any shape.
    index
        Sersic index: 1 in closed form, (1 + k^2 h^2)^(-3/2) with h = R / 1.678; any other from a table of GalSim's
        (Rowe et al. 2015), to 1e-4 of the flux.
    """
    if index == 1.0:
        x = k2 * (_b(1.0) ** -2)
        x += 1
        x *= np.sqrt(x)
        return np.reciprocal(x, out=x)
    steps = (len(_LOG_K) - 1) / (_LOG_K[-1] - _LOG_K[0])
    position = np.log(np.maximum(k2, k2.dtype.type(1e-30)))
    position *= 0.5 * steps
    position -= _LOG_K[0] * steps
    return lookup(_table(index), position)


def lookup(table: tuple[np.ndarray, np.ndarray], position: np.ndarray) -> np.ndarray:
    """Return linearly interpolated values of a table (values, their differences) at positions counted in entries."""
    values, steps = table
    # The last entry is never reached: single precision has six digits.
    rest = np.clip(position, 0, len(steps) - 1e-3)
    whole = rest.astype(np.intp)
    rest -= whole
    rest *= steps[whole]
    rest += values[whole]
    return rest


@functools.cache
def _table(index: float) -> tuple[np.ndarray, np.ndarray]:
    profile = galsim.Sersic(index, half_light_radius=1.0)
    values = np.array([profile.kValue(k, 0.0).real for k in np.exp(_LOG_K)])
    return values.astype(np.float32), np.diff(values).astype(np.float32)
