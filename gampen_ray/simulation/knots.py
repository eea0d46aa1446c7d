"""Knots: the light of a disk that is no smooth profile, such as that of spiral arms, clumps and lopsided disks.

A share of the disk's light is in Gaussian knots, as in GalSim's ``RandomKnots`` and the sky of DESC's second data challenge
(LSST DESC 2021, ApJS 253, 31). A galaxy's parameters stay those of its smooth profiles:

==============  ========================================================================================================
number          log-uniform, 10 to 200
flux            a power law of index -2 over a factor of 10 (H II regions: Kennicutt, Edgar & Hodge 1989, ApJ 337, 761)
radii           each knot lies where the disk has the knot's share of its own light: radius by radius, knots hold what
                a smooth disk holds, as nearly as their number allows
azimuths        uniform, or along 1 to 4 logarithmic arms of pitch angle 10 to 90 degrees, with a scatter of 0.2 to 1 radian;
                one arm makes a disk lopsided
sizes           standard deviation log-uniform, 0.05 to 0.6 of the half-light radius along the disk's minor axis; positions
                are drawn in, so that the disk's second moments are kept
==============  ========================================================================================================

Shape legend: K knots, H x W wave numbers.
"""

import dataclasses
import math

import numpy as np

from gampen_ray.simulation import sersic
from gampen_ray.simulation.psf import Grid

__all__ = ["Knots", "draw_knots"]

_NUMBER, _FLUX_RANGE, _MAX_ARMS = (10, 200), 10.0, 4
_PITCH_DEG, _SCATTER, _SIZE = (10.0, 90.0), (0.2, 1.0), (0.05, 0.6)


@dataclasses.dataclass(frozen=True)
class Knots:
    """Round Gaussians of total flux one."""

    flux_K: np.ndarray
    x_arcsec_K: np.ndarray
    """From the galaxy's centre."""
    y_arcsec_K: np.ndarray
    sigma_arcsec: float
    """Standard deviation of each along an axis."""

    def transform(self, grid: Grid) -> np.ndarray:
        """Return the transform on a grid (H, W), single precision."""
        # A Gaussian is a product of one of x and one of y: the sum over knots is a product of matrices.
        x_KW, y_HK = (
            np.exp(-1j * k * place - 0.5 * (k * self.sigma_arcsec) ** 2).astype(np.complex64)
            for k, place in ((grid.kx, self.x_arcsec_K[:, None]), (grid.ky, self.y_arcsec_K))
        )
        return (y_HK * self.flux_K.astype(np.float32)) @ x_KW


def draw_knots(seed: int, radius_arcsec: float, index: float, shear: tuple[float, float]) -> Knots:
    """Draw the knots of a disk.

    Parameters
    ----------
    seed
        Source of all randomness.
    radius_arcsec
        Half-light radius of the disk, circularised.
    index
        Its Sersic index.
    shear
        Of its ellipse (`gampen_ray.simulation.psf.shear_of`).
    """
    rng = np.random.default_rng(seed)
    number = round(math.exp(rng.uniform(*np.log(_NUMBER))))
    flux_K = 1 / rng.uniform(1 / _FLUX_RANGE, 1, number)
    flux_K /= flux_K.sum()
    share_K = np.cumsum(flux_K) - flux_K * rng.uniform(0, 1, number)
    radius_K = np.array([sersic.growth_inverse(float(share), index) for share in share_K])

    arms, pitch_deg, scatter = rng.integers(_MAX_ARMS + 1), rng.uniform(*_PITCH_DEG), rng.uniform(*_SCATTER)
    angle_K = rng.uniform(0, 2 * math.pi) + np.log(radius_K) / math.tan(math.radians(pitch_deg))
    if arms:
        angle_K += 2 * math.pi / arms * rng.integers(arms, size=number) + scatter * rng.standard_normal(number)
    else:
        angle_K += rng.uniform(0, 2 * math.pi, number)

    axis_ratio = (1 - math.hypot(*shear)) / (1 + math.hypot(*shear))
    minor = math.sqrt(axis_ratio) * radius_arcsec
    sigma = minor * math.exp(rng.uniform(*np.log(_SIZE)))
    # Half of the mean square radius is the variance along an axis of the round disk.
    variance = 0.5 * float(flux_K @ radius_K**2)
    along, across = (side * math.sqrt(max(1 - (sigma / side) ** 2 / variance, 0.0)) for side in (minor / axis_ratio, minor))
    place_K = (
        radius_K * (along * np.cos(angle_K) + 1j * across * np.sin(angle_K)) * np.exp(0.5j * math.atan2(shear[1], shear[0]))
    )
    return Knots(flux_K, place_K.real, place_K.imag, sigma)
