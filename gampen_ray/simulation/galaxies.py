"""Bulge + disk galaxies with known parameters, and the priors from which they are drawn.

The priors are wide and, but for the link of radius to cutout, independent, so that a network learns to read the image rather
than the population:

=========================  =============================================================================================
magnitude                  over `Survey.magnitude_range`, from saturation to where detection ends, uniform or with counts of a
                           given slope
effective radius           log-uniform over `Survey.radius_range_arcsec`, at most ``largest_radius`` sides of the cutout
bulge-to-total             Beta(0.8, 0.8): all of [0, 1], with somewhat more galaxies near both ends
bulge over disk radius     log-uniform, 0.1 to 1 (the middle 68 % of COSMOS bulge + disk fits, Leauthaud et al. 2007)
disk axis ratio            an oblate spheroid of intrinsic flattening 0.2 seen from a random direction
bulge axis ratio           uniform, 0.5 to 1
position angles            disk uniform; bulge aligned with it within 15 degrees (1 sigma)
Sersic indices             bulge 4, disk 1; or free: bulge 1.5 to 6 log-uniform, disk 0.7 to 1.5 uniform, in steps of a tenth
                           and of a twentieth
=========================  =============================================================================================

With a catalogue of fits, magnitude, radius, B/T, the ratio of radii and the axis ratios are those of one of its galaxies, with
radius and magnitude smoothed by 10 % (1 sigma).
"""

import dataclasses
import math
import typing
from collections.abc import Mapping

import numpy as np
import scipy.optimize

from gampen_ray.config.scene import GalaxiesConfig
from gampen_ray.errors import UserError
from gampen_ray.simulation import sersic
from gampen_ray.simulation.surveys import Survey

__all__ = ["TARGETS", "Galaxy", "draw_galaxy", "radius_range"]

TARGETS = ("bulge_to_total", "effective_radius_arcsec", "flux")
"""The columns of a simulation that a network is trained on by default."""
DISK_FLATTENING = 0.2
_SMOOTHING = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Galaxy:
    """A bulge and a disk with Sersic profiles and a common centre.

    Radii are half-light radii of the components, circularised: the geometric mean of the semi-axes of the ellipse that holds
    half of the component's light.
    """

    flux: float
    """Total flux out to infinity, flux units."""
    bulge_to_total: float
    """Bulge flux over total flux."""
    bulge_radius_arcsec: float
    disk_radius_arcsec: float
    bulge_axis_ratio: float
    disk_axis_ratio: float
    bulge_position_angle_deg: float
    """Counter-clockwise from the x axis."""
    disk_position_angle_deg: float
    x_offset_arcsec: float = 0.0
    """Of the galaxy's centre from that of the cutout."""
    y_offset_arcsec: float = 0.0
    bulge_sersic_index: float = 4.0
    disk_sersic_index: float = 1.0
    knot_fraction: float = 0.0
    """Share of the disk's light that is in knots (`gampen_ray.simulation.knots`)."""
    knot_seed: float = 0.0
    """A whole number, from which the knots are drawn."""

    def light_within(self, radius_arcsec: float) -> float:
        """Return the share of the total flux within a circularised radius."""
        bulge = sersic.growth(radius_arcsec / self.bulge_radius_arcsec, self.bulge_sersic_index)
        disk = sersic.growth(radius_arcsec / self.disk_radius_arcsec, self.disk_sersic_index)
        return self.bulge_to_total * bulge + (1 - self.bulge_to_total) * disk

    def light_radius(self, fraction: float) -> float:
        """Return the circularised radius that encloses a fraction of the total flux, arcsec.

        It is the radius at which the sum of the components' curves of growth, each against its own circularised radius, reaches
        the fraction (Graham & Driver 2005, PASA 22, 118, eq. 2): the exact radius of the galaxy with round isophotes, and of
        the galaxy whose components share one ellipse. At 0.5 it is the effective radius.

        Parameters
        ----------
        fraction
            Of the flux out to infinity, in (0, 1).
        """

        def excess(log_radius: float) -> float:
            return self.light_within(math.exp(log_radius)) - fraction

        # Each component alone reaches the fraction within the bracket, hence so does their sum.
        radii = [
            self.bulge_radius_arcsec * sersic.growth_inverse(fraction, self.bulge_sersic_index),
            self.disk_radius_arcsec * sersic.growth_inverse(fraction, self.disk_sersic_index),
        ]
        low, high = math.log(min(radii)) - 1e-6, math.log(max(radii)) + 1e-6
        return math.exp(typing.cast(float, scipy.optimize.brentq(excess, low, high, xtol=1e-10)))

    @property
    def effective_radius_arcsec(self) -> float:
        """Circularised half-light radius of the whole galaxy before the PSF, arcsec."""
        return self.light_radius(0.5)

    @property
    def concentration(self) -> float:
        """Concentration 5 log10(r80 / r20) (Conselice 2003, ApJS 147, 1) before the PSF: 2.8 for a disk, 5.3 for a bulge."""
        return 5 * math.log10(self.light_radius(0.8) / self.light_radius(0.2))


def radius_range(survey: Survey, config: GalaxiesConfig, side_arcsec: float) -> tuple[float, float]:
    """Return the smallest and largest effective radius, arcsec.

    Raises
    ------
    UserError
        If the cutout is too small for the survey's smallest galaxy.
    """
    smallest, largest = survey.radius_range_arcsec
    largest = min(largest, config.largest_radius * side_arcsec)
    if largest <= smallest:
        raise UserError(
            f"cutout_size: {side_arcsec:.3g} arcsec hold radii to {largest:.3g} arcsec (scene.galaxies.largest_radius "
            f"{config.largest_radius:g}), but {survey.name} begins at {smallest:g}; give more pixels"
        )
    return smallest, largest


def draw_galaxy(
    rng: np.random.Generator,
    survey: Survey,
    config: GalaxiesConfig,
    side_arcsec: float,
    catalog: Mapping[str, np.ndarray] | None = None,
) -> Galaxy:
    """Draw a galaxy at the origin from the priors of this module.

    Parameters
    ----------
    rng
        Source of all randomness.
    survey
        Its ranges of magnitude and radius.
    config
        Slope of the counts, Sersic indices and the largest radius.
    side_arcsec
        Side of the cutout.
    catalog
        Columns of `gampen_ray.simulation.inputs.read_galaxies`, for joint draws.
    """
    smallest, largest = radius_range(survey, config, side_arcsec)
    magnitude = _sloped(rng.uniform(*survey.magnitude_range), *survey.magnitude_range, config.magnitude_slope)
    log_radius = rng.uniform(math.log(smallest), math.log(largest))
    bulge_to_total = rng.beta(0.8, 0.8)
    bulge_over_disk = math.exp(rng.uniform(math.log(0.1), 0))
    disk_axis_ratio = random_disk_axis_ratio(rng.uniform(0, 1))
    bulge_axis_ratio = rng.uniform(0.5, 1)
    disk_angle, misalignment = rng.uniform(0, 180), rng.normal(0, 15)
    bulge_index, disk_index = 4.0, 1.0
    if config.sersic_indices == "free":
        bulge_index = round(math.exp(rng.uniform(math.log(1.5), math.log(6.0))), 1)
        disk_index = round(20 * rng.uniform(0.7, 1.5)) / 20
    if catalog is not None:
        row = _random_row(rng, survey, catalog, smallest, largest)
        magnitude, log_radius = row["magnitude"], math.log(row["effective_radius_arcsec"])
        bulge_to_total, bulge_over_disk = row["bulge_to_total"], row["bulge_over_disk"]
        disk_axis_ratio, bulge_axis_ratio = row["disk_axis_ratio"], row["bulge_axis_ratio"]
    unscaled = Galaxy(
        flux=survey.flux(magnitude),
        bulge_to_total=bulge_to_total,
        bulge_radius_arcsec=bulge_over_disk,
        disk_radius_arcsec=1.0,
        bulge_axis_ratio=bulge_axis_ratio,
        disk_axis_ratio=disk_axis_ratio,
        disk_position_angle_deg=disk_angle,
        bulge_position_angle_deg=(disk_angle + misalignment) % 180,
        bulge_sersic_index=bulge_index,
        disk_sersic_index=disk_index,
    )
    scale = math.exp(log_radius) / unscaled.effective_radius_arcsec
    return dataclasses.replace(unscaled, bulge_radius_arcsec=scale * bulge_over_disk, disk_radius_arcsec=scale)


def random_disk_axis_ratio(cos_inclination: typing.Any) -> typing.Any:
    """Return the apparent axis ratio of an oblate spheroid of flattening `DISK_FLATTENING`, for one or many inclinations."""
    return (DISK_FLATTENING**2 + (1 - DISK_FLATTENING**2) * cos_inclination**2) ** 0.5


def _sloped(uniform: float, brightest: float, faintest: float, slope: float) -> float:
    """Return a magnitude of counts that go as 10^(slope m), from one that is uniform over the range."""
    if not slope:
        return uniform
    width = faintest - brightest
    return brightest + math.log10(1 + (uniform - brightest) / width * (10 ** (slope * width) - 1)) / slope


def _random_row(
    rng: np.random.Generator, survey: Survey, catalog: Mapping[str, np.ndarray], smallest: float, largest: float
) -> dict[str, float]:
    radius, magnitude = catalog["effective_radius_arcsec"], catalog["magnitude"]
    brightest, faintest = survey.magnitude_range
    fits = np.flatnonzero((radius > smallest) & (radius < largest) & (magnitude > brightest) & (magnitude < faintest))
    if not len(fits):
        raise UserError(
            f"scene.galaxies.catalog: no galaxy has a radius within {smallest:.3g} to {largest:.3g} arcsec and a magnitude "
            f"within {brightest:g} to {faintest:g}; give a larger cutout_size or another table"
        )
    chosen = fits[rng.integers(len(fits))]
    row = {name: float(values[chosen]) for name, values in catalog.items()}
    row["effective_radius_arcsec"] *= math.exp(rng.normal(0, _SMOOTHING))
    row["effective_radius_arcsec"] = min(max(row["effective_radius_arcsec"], smallest), largest)
    row["magnitude"] = min(max(row["magnitude"] + rng.normal(0, _SMOOTHING), brightest), faintest)
    return row
