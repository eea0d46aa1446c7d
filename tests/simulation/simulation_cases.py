"""A galaxy and a star that several test files draw."""

from typing import Any

import galsim
import numpy as np
import scipy.integrate

from gampen_ray.simulation.galaxies import Galaxy
from gampen_ray.simulation.psf import APERTURE_PIXELS, MoffatPsf

WINGED = MoffatPsf(fwhm_arcsec=0.6, beta=3.1, e1=0.05, e2=-0.03, wing_fraction=0.06, wing_fwhm_arcsec=3.0)


def make_galaxy(**changes: float) -> Galaxy:
    values = {
        "flux": 1000.0,
        "bulge_to_total": 0.5,
        "bulge_radius_arcsec": 0.4,
        "disk_radius_arcsec": 0.8,
        "bulge_axis_ratio": 1.0,
        "disk_axis_ratio": 1.0,
        "bulge_position_angle_deg": 0.0,
        "disk_position_angle_deg": 0.0,
    }
    return Galaxy(**(values | changes))


def galsims(psf: MoffatPsf, scale: float = 0.2, gsparams: galsim.GSParams | None = None) -> galsim.GSObject:
    """GalSim's profile of a PSF, an independent oracle, with unit light within the aperture."""
    parts = [(psf.fwhm_arcsec, psf.beta, 1 - psf.wing_fraction), (psf.wing_fwhm_arcsec, 2.0, psf.wing_fraction)]
    profiles = [galsim.Moffat(beta=beta, fwhm=fwhm, flux=flux, gsparams=gsparams) for fwhm, beta, flux in parts if flux]
    whole = galsim.Sum(profiles)
    within, _ = scipy.integrate.quad(
        lambda radius: 2 * np.pi * radius * whole.xValue(radius, 0.0), 0, APERTURE_PIXELS * scale, epsabs=1e-7, limit=200
    )
    return whole.shear(g1=psf.e1, g2=psf.e2) / within


def star(psf: MoffatPsf, size: int = 61, scale: float = 0.2, **kwargs: Any) -> np.ndarray:
    """GalSim's image of a star."""
    return (
        galsims(psf, kwargs.pop("aperture_scale", scale)).drawImage(nx=size, ny=size, scale=scale, dtype=float, **kwargs).array
    )
