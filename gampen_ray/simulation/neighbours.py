"""What lies beside the galaxy of a simulated cutout: see `gampen_ray.simulation.scene`."""

import dataclasses
import math

import numpy as np

from gampen_ray.config.scene import NeighboursConfig, SceneConfig
from gampen_ray.simulation.galaxies import Galaxy, draw_galaxy, random_disk_axis_ratio
from gampen_ray.simulation.render import Sources
from gampen_ray.simulation.surveys import COUNTS_MAG, STAR_COUNTS_MAG, Survey

__all__ = ["draw_companion", "draw_galaxies", "draw_stars"]

GALAXY_SLOPE, STAR_SLOPE = 0.38, 0.2
_MARGIN_ARCSEC = 3.0


def draw_galaxies(
    rng: np.random.Generator,
    survey: Survey,
    config: NeighboursConfig,
    side_arcsec: float,
    target: Galaxy,
    exclusion_arcsec: float,
) -> Sources:
    """Draw the other galaxies of a cutout, by their counts."""
    faintest = survey.magnitude_range[1] + config.depth_mag
    density = config.galaxies * survey.galaxies_per_arcmin2 * 10 ** (GALAXY_SLOPE * (faintest - COUNTS_MAG))
    magnitude, x, y = _draw_positions(rng, density, GALAXY_SLOPE, survey.magnitude_range[0], faintest, side_arcsec)
    count = len(x)
    disk = (0.45 * 10 ** (-0.1 * (magnitude - 22) + 0.2 * rng.standard_normal(count))).clip(0.05, 0.5 * side_arcsec)
    angle = rng.uniform(0, 180, count)
    return _not_dominant(
        Sources(
            flux=survey.flux(magnitude),
            bulge_to_total=rng.beta(0.8, 0.8, count),
            bulge_radius_arcsec=disk * np.exp(rng.uniform(math.log(0.1), 0, count)),
            disk_radius_arcsec=disk,
            bulge_shear=_shears(rng.uniform(0.5, 1, count), angle + rng.normal(0, 15, count)),
            disk_shear=_shears(random_disk_axis_ratio(rng.uniform(0, 1, count)), angle),
            x_arcsec=x,
            y_arcsec=y,
            knot_fraction=np.zeros(count),
            knot_seed=np.zeros(count),
        ),
        target,
        exclusion_arcsec,
    )


def draw_stars(
    rng: np.random.Generator,
    survey: Survey,
    config: NeighboursConfig,
    side_arcsec: float,
    target: Galaxy,
    exclusion_arcsec: float,
) -> Sources:
    """Draw the stars of a cutout, by their counts."""
    faintest = survey.magnitude_range[1] + config.depth_mag
    density = config.stars * survey.stars_per_arcmin2 * 10 ** (STAR_SLOPE * (faintest - STAR_COUNTS_MAG))
    magnitude, x, y = _draw_positions(rng, density, STAR_SLOPE, survey.magnitude_range[0], faintest, side_arcsec)
    zero, round_ = np.zeros(len(x)), np.zeros((2, len(x)))
    stars = Sources(
        flux=survey.flux(magnitude),
        bulge_to_total=zero,
        bulge_radius_arcsec=zero,
        disk_radius_arcsec=zero,
        bulge_shear=round_,
        disk_shear=round_,
        x_arcsec=x,
        y_arcsec=y,
        knot_fraction=zero,
        knot_seed=zero,
    )
    return _not_dominant(stars, target, exclusion_arcsec)


def draw_companion(
    rng: np.random.Generator, survey: Survey, scene: SceneConfig, side_arcsec: float, target: Galaxy, exclusion_arcsec: float
) -> Sources:
    """Draw a galaxy within a magnitude of the target beside it."""
    flux = min(target.flux * 10 ** rng.uniform(-0.4, 0.4), survey.flux(survey.magnitude_range[0]))
    nearest = exclusion_arcsec * (1 + max(0.0, math.log10(flux / target.flux)))
    distance, angle = rng.uniform(nearest, max(nearest, 0.5 * side_arcsec)), rng.uniform(0, 2 * math.pi)
    companion = dataclasses.replace(
        draw_galaxy(rng, survey, dataclasses.replace(scene.galaxies, sersic_indices="fixed"), side_arcsec),
        flux=flux,
        x_offset_arcsec=target.x_offset_arcsec + distance * math.cos(angle),
        y_offset_arcsec=target.y_offset_arcsec + distance * math.sin(angle),
    )
    return Sources.of(companion)


def _draw_positions(
    rng: np.random.Generator, density: float, slope: float, brightest: float, faintest: float, side_arcsec: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return magnitudes and positions of sources whose counts grow as 10^(slope m) to ``density`` per arcmin^2."""
    reach = 0.5 * side_arcsec + _MARGIN_ARCSEC
    least = 10 ** (slope * (brightest - faintest))
    count = rng.poisson(density * (1 - least) * (2 * reach / 60) ** 2)
    magnitude = faintest + np.log10(rng.uniform(least, 1, count)) / slope
    return magnitude, rng.uniform(-reach, reach, count), rng.uniform(-reach, reach, count)


def _not_dominant(sources: Sources, target: Galaxy, exclusion_arcsec: float) -> Sources:
    distance = np.hypot(sources.x_arcsec - target.x_offset_arcsec, sources.y_arcsec - target.y_offset_arcsec)
    ratio = np.maximum(sources.flux / target.flux, 1)
    return sources[np.flatnonzero((distance > exclusion_arcsec * (1 + np.log10(ratio))) | (ratio == 1))]


def _shears(axis_ratio: np.ndarray, position_angle_deg: np.ndarray) -> np.ndarray:
    shear, angle = (1 - axis_ratio) / (1 + axis_ratio), 2 * np.radians(position_angle_deg)
    return np.stack([shear * np.cos(angle), shear * np.sin(angle)])
