"""A galaxy and a star that several test files draw."""

from typing import Any

import galsim
import numpy as np

from gampen_ray.simulation.galaxies import Galaxy
from gampen_ray.simulation.psf import MoffatPsf

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


def star(psf: MoffatPsf, size: int = 61, scale: float = 0.2, **kwargs: Any) -> np.ndarray:
    """GalSim's image of a star, an independent oracle."""
    core = galsim.Moffat(beta=psf.beta, fwhm=psf.fwhm_arcsec, flux=1 - psf.wing_fraction)
    if psf.wing_fraction:
        core += galsim.Moffat(beta=2.0, fwhm=psf.wing_fwhm_arcsec, flux=psf.wing_fraction)
    return core.shear(g1=psf.e1, g2=psf.e2).drawImage(nx=size, ny=size, scale=scale, dtype=float, **kwargs).array
