"""Survey presets for simulations: pixel scale, zero point, PSF and noise by name, open to a user's own.

>>> register_survey(Survey(name="mine-g", band="g", ...))

in a module of yours (`gampen_ray.plugins`) makes ``survey = "mine-g"`` valid.
"""

import dataclasses
import math
from typing import TypeVar

import numpy as np

from gampen_ray.plugins import Registry

__all__ = ["COUNTS_MAG", "PSF_BETA", "STAR_COUNTS_MAG", "SURVEYS", "Survey", "register_survey"]

PSF_BETA = 3.5
"""Index of the Moffat profile that turns a survey's depth into noise: between 2.5, often used for stars, and turbulence's 4.765
(Trujillo et al. 2001, MNRAS 328, 977)."""
COUNTS_MAG, STAR_COUNTS_MAG = 24.0, 21.0
"""Magnitudes down to which `Survey` counts galaxies and stars."""
T = TypeVar("T", float, np.ndarray)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """Instrument and depth of a survey in one band."""

    name: str
    """Name of the preset."""
    band: str
    """Filter."""
    pixel_scale_arcsec: float
    """Side of a pixel, arcsec."""
    zero_point_mag: float
    """AB magnitude of one unit of flux."""
    flux_unit: str
    """One unit of flux, in astropy's notation."""
    psf_fwhm_arcsec: tuple[float, float]
    """Smallest and largest full width at half maximum of the PSF, arcsec."""
    sky_noise: float
    """Typical standard deviation of the sky noise of one pixel, flux units."""
    electrons_per_flux: float
    """Detected electrons per unit of flux: the variance of a source's photon noise is its flux over this number."""
    magnitude_range: tuple[float, float]
    """Brightest and faintest simulated AB magnitude."""
    radius_range_arcsec: tuple[float, float] = (0.25, 3.0)
    """Smallest and largest simulated effective radius, arcsec, where the cutout is large enough."""
    galaxies_per_arcmin2: float = 12.0
    """Galaxies brighter than `COUNTS_MAG` per arcmin^2."""
    stars_per_arcmin2: float = 0.8
    """Stars brighter than `STAR_COUNTS_MAG` per arcmin^2, at high galactic latitude."""

    def flux(self, magnitude: T) -> T:
        """Return the flux of an AB magnitude, or of many."""
        return 10 ** (0.4 * (self.zero_point_mag - magnitude))

    def magnitude(self, flux: float) -> float:
        """Return the AB magnitude of a flux."""
        return self.zero_point_mag - 2.5 * math.log10(flux)


def moffat_noise_area(fwhm_arcsec: float, beta: float) -> float:
    """Return the noise-equivalent area 1 / integral(PSF^2) of a Moffat profile, arcsec^2 (its closed form)."""
    scale_radius = fwhm_arcsec / (2 * math.sqrt(2 ** (1 / beta) - 1))
    return math.pi * scale_radius**2 * (2 * beta - 1) / (beta - 1) ** 2


def sky_noise(depth_mag: float, zero_point_mag: float, area_arcsec2: float, pixel_scale_arcsec: float) -> float:
    """Return the noise of a pixel (flux units) where the 5 sigma limit over ``area_arcsec2`` is ``depth_mag``."""
    limit_flux = 10 ** (0.4 * (zero_point_mag - depth_mag))
    return limit_flux / 5 / math.sqrt(area_arcsec2 / pixel_scale_arcsec**2)


def _hsc(
    band: str, depth_mag: float, seeing_arcsec: float, fwhm: tuple[float, float], electrons: float, galaxies: float
) -> Survey:
    # HSC-SSP Wide PDR2 (Aihara et al. 2019, PASJ 71, 114): 5 sigma depth for point sources and median seeing.
    # Galaxy counts: 28 per arcmin^2 to i = 24.5 (24.6 in the shape catalogue, Mandelbaum et al. 2018, PASJ 70, S25), and
    # colours r - i = 0.45, g - r = 0.6 of typical faint galaxies with the slope of `gampen_ray.simulation.scene`.
    # Electrons per flux: those that make sky_noise the photon noise of a dark sky of 22.2 (g), 21.2 (r), 20.4 (i) mag/arcsec^2.
    return Survey(
        name=f"hsc-{band}",
        band=band,
        pixel_scale_arcsec=0.168,
        zero_point_mag=27.0,
        flux_unit="57.544 nJy",
        psf_fwhm_arcsec=fwhm,
        sky_noise=sky_noise(depth_mag, 27.0, moffat_noise_area(seeing_arcsec, PSF_BETA), 0.168),
        electrons_per_flux=electrons,
        magnitude_range=(17.5, 24.5),
        radius_range_arcsec=(0.2, 2.5),
        galaxies_per_arcmin2=galaxies,
    )


SURVEYS: Registry[Survey] = Registry("survey")
"""The presets by name."""


def register_survey(survey: Survey) -> Survey:
    """Make a survey known by its name, and return it."""
    return SURVEYS.register(survey.name)(survey)


register_survey(_hsc("g", 26.6, 0.77, (0.6, 1.0), 2000.0, 7.0))
register_survey(_hsc("r", 26.2, 0.76, (0.6, 1.0), 2400.0, 12.0))
register_survey(_hsc("i", 26.2, 0.58, (0.45, 0.75), 2900.0, 18.0))
# KiDS DR4 (Kuijken et al. 2019, A&A 625, A2): 25.02 mag at 5 sigma in a 2 arcsec aperture, mean seeing 0.70 arcsec.
# Electrons per flux: slope of variance over flux in the error maps of GAMA cutouts (Robotham et al. 2017).
# Those cutouts are in maggies (zero point 0); 1e-12 maggies keep the numbers near one, and the zero point is 30.
register_survey(
    Survey(
        name="kids-r",
        band="r",
        pixel_scale_arcsec=0.2,
        zero_point_mag=30.0,
        flux_unit="1e-12 mgy",
        psf_fwhm_arcsec=(0.55, 0.9),
        sky_noise=sky_noise(25.02, 30.0, math.pi, 0.2),
        electrons_per_flux=18.0,
        magnitude_range=(16.0, 23.0),
    )
)
