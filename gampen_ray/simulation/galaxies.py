"""Simulated bulge + disk galaxies with known parameters, drawn with GalSim (Rowe et al. 2015).

Priors. They are wide and, but for the link of radius to pixel scale, independent, so that a network learns to read the image
rather than the population:

=========================  =============================================================================================
magnitude                  uniform over `Survey.magnitude_range`, where galaxies are resolved and well detected
effective radius           log-uniform, 2 % to 10 % of the cutout's side (the rule 10 R_e < side of Ghosh et al. 2023)
bulge-to-total             Beta(0.8, 0.8): all of [0, 1], with somewhat more galaxies near both ends
bulge over disk radius     log-uniform, 0.1 to 1 (the middle 68 % of COSMOS bulge + disk fits, Leauthaud et al. 2007)
disk axis ratio            an oblate spheroid of intrinsic flattening 0.2 seen from a random direction
bulge axis ratio           uniform, 0.5 to 1
position angles            disk uniform; bulge aligned with it within 15 degrees (1 sigma)
centre                     normal, 0.7 pixels (1 sigma) along each axis, at most 2; bulge and disk share it
PSF                        Moffat of index `PSF_BETA`, FWHM uniform over `Survey.psf_fwhm_arcsec`
sky noise                  `Survey.sky_noise` times a factor uniform in 0.9 to 1.25, the spread of depth over a survey
neighbour, if any          a galaxy with the same shape priors, from 0.5 mag brighter to 3 mag fainter, its centre at 0.2 to
                           0.6 sides from that of the cutout
=========================  =============================================================================================
"""

import dataclasses
import math
import typing
from typing import Any

import galsim
import numpy as np
import scipy.optimize
import scipy.special

from gampen_ray.simulation.surveys import PSF_BETA, Survey

__all__ = ["TARGETS", "Galaxy", "add_noise", "draw_galaxy", "render", "simulate"]

BULGE_SERSIC_INDEX = 4.0
DISK_SERSIC_INDEX = 1.0
TARGETS = ("bulge_to_total", "effective_radius_arcsec", "flux")
"""The columns of `simulate` that a network is trained on by default."""
_RA_RANGE_DEG, _DEC_RANGE_DEG = (129.0, 225.0), (-2.0, 3.0)  # equatorial sky that HSC-Wide and KiDS-North share

# Smaller Fourier transforms than GalSim's defaults, at half the cost; flux within a cutout is still exact to 0.2 %.
_GSPARAMS = galsim.GSParams(folding_threshold=0.02, stepk_minimum_hlr=3)


# --- one galaxy ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Galaxy:
    """A de Vaucouleurs bulge and an exponential disk with a common centre.

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
            radius = math.exp(log_radius)
            bulge = sersic_growth(radius / self.bulge_radius_arcsec, BULGE_SERSIC_INDEX)
            disk = sersic_growth(radius / self.disk_radius_arcsec, DISK_SERSIC_INDEX)
            return self.bulge_to_total * bulge + (1 - self.bulge_to_total) * disk - fraction

        # Each component alone reaches the fraction within the bracket, hence so does their sum.
        radii = [
            r * sersic_growth_inverse(fraction, n)
            for r, n in ((self.bulge_radius_arcsec, BULGE_SERSIC_INDEX), (self.disk_radius_arcsec, DISK_SERSIC_INDEX))
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


def _sersic_b(index: float) -> float:
    return float(scipy.special.gammaincinv(2 * index, 0.5))


_B = {index: _sersic_b(index) for index in (BULGE_SERSIC_INDEX, DISK_SERSIC_INDEX)}


def sersic_growth(radius: float, index: float) -> float:
    """Return the share of a Sersic profile's flux within ``radius``, in units of its half-light radius."""
    return float(scipy.special.gammainc(2 * index, _B[index] * radius ** (1 / index)))


def sersic_growth_inverse(fraction: float, index: float) -> float:
    """Return the radius, in half-light radii, that holds a share of a Sersic profile's flux."""
    return float((scipy.special.gammaincinv(2 * index, fraction) / _B[index]) ** index)


def draw_galaxy(rng: np.random.Generator, flux: float, side_arcsec: float) -> Galaxy:
    """Draw a galaxy at the origin from the priors of this module.

    Parameters
    ----------
    rng
        Source of all randomness.
    flux
        Total flux.
    side_arcsec
        Side of the cutout, which sets the range of the effective radius.
    """
    effective_radius = side_arcsec * math.exp(rng.uniform(math.log(0.02), math.log(0.1)))
    disk_angle = rng.uniform(0, 180)
    cos_inclination = rng.uniform(0, 1)
    unscaled = Galaxy(
        flux=flux,
        bulge_to_total=rng.beta(0.8, 0.8),
        bulge_radius_arcsec=math.exp(rng.uniform(math.log(0.1), 0)),
        disk_radius_arcsec=1.0,
        bulge_axis_ratio=rng.uniform(0.5, 1),
        disk_axis_ratio=math.sqrt(0.2**2 + (1 - 0.2**2) * cos_inclination**2),
        disk_position_angle_deg=disk_angle,
        bulge_position_angle_deg=(disk_angle + rng.normal(0, 15)) % 180,
    )
    scale = effective_radius / unscaled.effective_radius_arcsec
    return dataclasses.replace(unscaled, bulge_radius_arcsec=scale * unscaled.bulge_radius_arcsec, disk_radius_arcsec=scale)


def render(
    galaxies: list[Galaxy],
    *,
    psf_fwhm_arcsec: float,
    pixel_scale_arcsec: float,
    size: int,
    gsparams: galsim.GSParams = _GSPARAMS,
) -> np.ndarray:
    """Draw galaxies through PSF and pixel, without noise.

    Parameters
    ----------
    galaxies
        Those in the cutout; positions are offsets from its centre.
    psf_fwhm_arcsec
        Full width at half maximum of the Moffat PSF; 0: no PSF.
    pixel_scale_arcsec
        Side of a pixel.
    size
        Side of the cutout in pixels.
    gsparams
        GalSim's accuracy.

    Returns
    -------
    array (H, W), float32
        Flux per pixel.
    """
    components: list[Any] = []
    for galaxy in galaxies:
        bulge = galsim.DeVaucouleurs(
            half_light_radius=galaxy.bulge_radius_arcsec, flux=galaxy.bulge_to_total * galaxy.flux, gsparams=gsparams
        ).shear(q=galaxy.bulge_axis_ratio, beta=galaxy.bulge_position_angle_deg * galsim.degrees)
        disk = galsim.Exponential(
            half_light_radius=galaxy.disk_radius_arcsec, flux=(1 - galaxy.bulge_to_total) * galaxy.flux, gsparams=gsparams
        ).shear(q=galaxy.disk_axis_ratio, beta=galaxy.disk_position_angle_deg * galsim.degrees)
        components += [part.shift(galaxy.x_offset_arcsec, galaxy.y_offset_arcsec) for part in (bulge, disk)]
    scene = galsim.Sum(components, gsparams=gsparams)
    if psf_fwhm_arcsec > 0:
        scene = galsim.Convolve(scene, galsim.Moffat(beta=PSF_BETA, fwhm=psf_fwhm_arcsec, gsparams=gsparams), gsparams=gsparams)
    image = galsim.ImageF(size, size, scale=pixel_scale_arcsec)
    scene.drawImage(image)
    return image.array


def add_noise(model: np.ndarray, sky: float, survey: Survey, rng: np.random.Generator) -> np.ndarray:
    """Add sky and photon noise to a noiseless image.

    The photons are so many that their noise is Gaussian. Unlike that of real coadds, it is not correlated between pixels.

    Parameters
    ----------
    model
        Flux per pixel (H, W).
    sky
        Standard deviation of the sky noise per pixel, flux units.
    survey
        Its ``electrons_per_flux`` sets the photon noise of the source.
    rng
        Source of all randomness.

    Returns
    -------
    array (H, W), float32
        Flux per pixel.
    """
    sigma = np.sqrt(sky**2 + np.maximum(model, 0) / survey.electrons_per_flux)
    return (model + sigma * rng.standard_normal(model.shape)).astype(np.float32)


# --- datasets ------------------------------------------------------------------------------------------------------------


def simulate(
    survey: Survey, *, cutout_size: int, neighbour_fraction: float, seed: int, start: int, stop: int
) -> dict[str, np.ndarray]:
    """Simulate the galaxies with indices ``start`` to ``stop - 1``.

    Each galaxy depends on the other arguments and its index alone, so that any partition of the indices gives the same
    galaxies, bit by bit.

    Parameters
    ----------
    survey
        Instrument and depth.
    cutout_size
        Side of the cutouts, pixels.
    neighbour_fraction
        Share of cutouts that contain a second, unrelated galaxy.
    seed
        Another seed gives other galaxies.
    start, stop
        Range of indices.

    Returns
    -------
    dict of array
        ``object_id`` (N,) int64, the index; ``image`` (N, 1, H, W) float32, flux units; and float64 columns (N,): ``ra``,
        ``dec`` (deg), the targets ``bulge_to_total``, ``effective_radius_arcsec``, ``flux`` (total, also beyond the cutout),
        ``magnitude``, ``concentration``, the components' radii (circularised), axis ratios and position angles, the offsets of
        the centre in pixels, ``psf_fwhm_arcsec``, ``sky_noise`` (flux per pixel) and ``num_neighbours``.
    """
    rows = [_simulate_one(survey, cutout_size, neighbour_fraction, seed, index) for index in range(start, stop)]
    images = np.stack([image for image, _ in rows]) if rows else np.empty((0, cutout_size, cutout_size), np.float32)
    columns: dict[str, np.ndarray] = {"object_id": np.arange(start, stop, dtype=np.int64)}
    columns |= {name: np.array([row[name] for _, row in rows]) for name in (rows[0][1] if rows else {})}
    columns["image"] = images[:, None]  # (N, H, W) -> (N, C, H, W)
    return columns


def _simulate_one(
    survey: Survey, cutout_size: int, neighbour_fraction: float, seed: int, index: int
) -> tuple[np.ndarray, dict[str, float]]:
    rng = np.random.default_rng([seed, index])
    scale, side_arcsec = survey.pixel_scale_arcsec, cutout_size * survey.pixel_scale_arcsec
    ra, dec = _random_position(rng)
    magnitude = rng.uniform(*survey.magnitude_range)
    x_pixel, y_pixel = rng.normal(0, 0.7, size=2).clip(-2, 2).tolist()
    galaxy = dataclasses.replace(
        draw_galaxy(rng, survey.flux(magnitude), side_arcsec), x_offset_arcsec=x_pixel * scale, y_offset_arcsec=y_pixel * scale
    )
    psf_fwhm = rng.uniform(*survey.psf_fwhm_arcsec)
    sky = survey.sky_noise * rng.uniform(0.9, 1.25)
    scene = [galaxy]
    if rng.random() < neighbour_fraction:
        scene.append(_draw_neighbour(rng, survey.flux(magnitude + rng.uniform(-0.5, 3)), side_arcsec))
    model = render(scene, psf_fwhm_arcsec=psf_fwhm, pixel_scale_arcsec=scale, size=cutout_size)
    return add_noise(model, sky, survey, rng), {
        "ra": ra,
        "dec": dec,
        "bulge_to_total": galaxy.bulge_to_total,
        "effective_radius_arcsec": galaxy.effective_radius_arcsec,
        "flux": galaxy.flux,
        "magnitude": magnitude,
        "concentration": galaxy.concentration,
        "bulge_radius_arcsec": galaxy.bulge_radius_arcsec,
        "disk_radius_arcsec": galaxy.disk_radius_arcsec,
        "bulge_axis_ratio": galaxy.bulge_axis_ratio,
        "disk_axis_ratio": galaxy.disk_axis_ratio,
        "bulge_position_angle_deg": galaxy.bulge_position_angle_deg,
        "disk_position_angle_deg": galaxy.disk_position_angle_deg,
        "x_offset_pixel": x_pixel,
        "y_offset_pixel": y_pixel,
        "psf_fwhm_arcsec": psf_fwhm,
        "sky_noise": sky,
        "num_neighbours": float(len(scene) - 1),
    }


def _random_position(rng: np.random.Generator) -> tuple[float, float]:
    """Return RA and Dec (deg), uniform over the solid angle."""
    sin_low, sin_high = (math.sin(math.radians(dec)) for dec in _DEC_RANGE_DEG)
    return rng.uniform(*_RA_RANGE_DEG), math.degrees(math.asin(rng.uniform(sin_low, sin_high)))


def _draw_neighbour(rng: np.random.Generator, flux: float, side_arcsec: float) -> Galaxy:
    galaxy = draw_galaxy(rng, flux, side_arcsec)
    distance, angle = side_arcsec * rng.uniform(0.2, 0.6), rng.uniform(0, 2 * math.pi)
    return dataclasses.replace(galaxy, x_offset_arcsec=distance * math.cos(angle), y_offset_arcsec=distance * math.sin(angle))
