"""What simulated cutouts hold: one section per ingredient, each of which can be turned off."""

from typing import Annotated, Any, Literal

import pydantic

from gampen_ray.config.base import Needs, config_class, default

__all__ = ["GalaxiesConfig", "KnotsConfig", "MasksConfig", "NeighboursConfig", "NoiseConfig", "PsfConfig", "SceneConfig"]

Range = tuple[float, float]
_IfMoffat, _IfPriors = Needs("stamps", ""), Needs("catalog", "")


def _check_ranges(config: Any, **limits: Range) -> None:
    """Raise a ValueError if a range of a section is not ordered or beyond its limits."""
    for name, (lowest, highest) in limits.items():
        low, high = getattr(config, name)
        if not lowest <= low <= high <= highest:
            raise ValueError(f"{name} is [{low:g}, {high:g}]; give two values in order within [{lowest:g}, {highest:g}]")


@config_class
class GalaxiesConfig:
    """The galaxy at the centre, whose parameters are the truth."""

    sersic_indices: Literal["fixed", "free"] = "fixed"
    """fixed: bulges have Sersic index 4 and disks 1; free: bulges 1.5 to 6 and disks 0.7 to 1.5."""
    catalog: str = ""
    """FITS table of the COSMOS bulge + disk fits that GalSim distributes (Leauthaud et al. 2007), from which magnitude, radius
    and structure are drawn together; empty: wide independent priors."""
    magnitude_slope: Annotated[float, _IfPriors] = pydantic.Field(default=0.0, ge=-1, le=1)
    """Slope of the galaxy counts, dex/mag; 0: equally many in each. The narrow posteriors of bright galaxies take the most of
    them: a slope of -0.15 over 7 mag has 2.7 times as many of the brightest, and a quarter of the faintest."""
    largest_radius: float = pydantic.Field(default=0.15, gt=0, le=0.5)
    """Largest effective radius over the cutout's side, where the survey's range exceeds it: at 0.15 the cutout holds 98 % of a
    disk; GaMPEN has 0.1."""
    offset_pixel: float = pydantic.Field(default=0.7, ge=0)
    """Standard deviation of the centre's offset from that of the cutout along each axis, pixels, cut at three times this; 0:
    no offset."""


@config_class
class KnotsConfig:
    """Knots in the disk of the galaxy at the centre: the light of arms, clumps and lopsided disks, which is not symmetric."""

    probability: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Share of galaxies with knots. At 0.5, networks learn that light on one side of a galaxy may be its own."""
    fraction: Range = (0.02, 0.35)
    """Smallest and largest share of the disk's light that is in knots; the asymmetry of a disk is 0.75 times as large, and that
    of nearby spirals 0.03 to 0.2 (Conselice 2003)."""

    def __post_init__(self) -> None:
        _check_ranges(self, fraction=(0.0, 1.0))


@config_class
class PsfConfig:
    """The point-spread function: an elliptical Moffat profile with an aureole, of its own in each cutout, or given stamps."""

    stamps: str = ""
    """Folder or s3:// prefix of PSF stamps (FITS or .npy, odd sides, on the survey's pixels, the star on the central one), of
    which each cutout takes one; empty: Moffat profiles."""
    fwhm_arcsec: Annotated[Range | None, _IfMoffat] = None
    """Smallest and largest FWHM of the profile without aureole and pixel, arcsec; left out: the survey's."""
    beta: Annotated[Range, _IfMoffat] = (1.5, 20.0)
    """Smallest and largest Moffat index, whose inverse is uniform; 20 is nearly a Gaussian."""
    ellipticity: Annotated[float, _IfMoffat] = pydantic.Field(default=0.03, ge=0, le=0.2)
    """Standard deviation of each component of the ellipticity (1 - q) / (1 + q); 0: round."""
    wing_fraction: Annotated[Range, _IfMoffat] = (0.0, 0.5)
    """Smallest and largest share of the light that is in the aureole; [0, 0]: no aureole."""

    def __post_init__(self) -> None:
        _check_ranges(self, beta=(1.5, 20.0), wing_fraction=(0.0, 0.9))
        if self.fwhm_arcsec is not None:
            _check_ranges(self, fwhm_arcsec=(1e-3, 1e3))


@config_class
class NoiseConfig:
    """Noise and the residual of the subtracted sky."""

    sky: Range = (0.6, 1.6)
    """Smallest and largest sky noise of a pixel over the survey's typical one, the spread of depth; [0, 0]: no sky noise."""
    photons: bool = True
    """Whether sources have photon noise."""
    correlation: Annotated[Range, Needs("blank_cutouts", "")] = (0.0, 0.25)
    """Smallest and largest correlation of the noise of adjacent pixels: 0 as in one exposure, 0.25 as in a coadd by linear
    interpolation or drizzling."""
    blank_cutouts: str = ""
    """Folder or s3:// prefix of cutouts without sources (FITS or .npy), in which the noise's correlation is measured; empty: by
    `correlation`."""
    sky_level: float = pydantic.Field(default=0.1, ge=0)
    """Standard deviation of the residual sky, a constant over a cutout, over the sky noise of a pixel; one in twenty cutouts
    has five times as much; 0: none."""
    sky_gradient: float = pydantic.Field(default=0.03, ge=0)
    """Standard deviation of the residual sky's rise from centre to edge along each axis, over the sky noise; 0: none."""

    def __post_init__(self) -> None:
        _check_ranges(self, sky=(0.0, 100.0), correlation=(0.0, 0.5))
        if self.sky[0] == 0 < self.sky[1]:
            raise ValueError(f"sky is [0, {self.sky[1]:g}]; give a smallest value above 0, or [0, 0] for no sky noise")


@config_class
class NeighboursConfig:
    """Other galaxies and stars in the cutout, by the counts of the sky."""

    galaxies: float = pydantic.Field(default=1.0, ge=0)
    """Density of galaxies over the survey's counts; 0: none."""
    stars: float = pydantic.Field(default=1.0, ge=0)
    """Density of stars over the survey's counts; 0: none."""
    companions: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Share of galaxies with a companion beyond the counts, within a magnitude of their own: galaxies cluster. At 0.2, networks
    learn what a close pair is like."""
    depth_mag: float = pydantic.Field(default=2.0, ge=0)
    """Faintest neighbour, magnitudes below the faintest simulated galaxy."""


@config_class
class MasksConfig:
    """Pixels without data: satellite trails, bad columns and cosmic rays."""

    probability: float = pydantic.Field(default=0.05, ge=0, le=1)
    """Share of cutouts with such pixels."""
    fill: Literal["interpolate", "zero"] = "interpolate"
    """Their values: interpolated linearly along rows or columns, as coadds are, or zero."""


@config_class
class SceneConfig:
    """What the simulated cutouts hold."""

    galaxies: GalaxiesConfig = default(GalaxiesConfig)
    """The galaxy at the centre."""
    knots: KnotsConfig = default(KnotsConfig)
    """Knots in its disk."""
    psf: PsfConfig = default(PsfConfig)
    """The point-spread function."""
    noise: NoiseConfig = default(NoiseConfig)
    """Noise and residual sky."""
    neighbours: NeighboursConfig = default(NeighboursConfig)
    """Other galaxies and stars."""
    masks: MasksConfig = default(MasksConfig)
    """Pixels without data."""
