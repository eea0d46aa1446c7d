"""Cutouts like those of a coadd, with everything that is in them as columns.

=================  =====================================================================================================
galaxy             priors of `gampen_ray.simulation.galaxies`; its centre is normal about that of the cutout
knots              light of the galaxy's disk without symmetry (`gampen_ray.simulation.knots`)
PSF                Moffat, FWHM, inverse index and share of the aureole uniform, the aureole's FWHM 1.2 to 8 times the core's
                   (log-uniform): from near Gaussians to the PSFs of HSC, KiDS and the Legacy Surveys; or a stamp
depth              sky noise times a factor, log-uniform; photon noise by `Survey.electrons_per_flux`; see `noise`
other galaxies     Poisson numbers, uniform positions also up to 3 arcsec outside; cumulative counts with a slope of 0.38
                   dex/mag, which joins 0.29 per arcmin^2 at r < 19.8 (GAMA: Driver et al. 2011, MNRAS 413, 971) and 12 at
                   r < 24 (KiDS); B/T, ratio of radii and shapes as the galaxy's; disk radii log-normal, median 0.45 arcsec at
                   22 mag, 0.1 dex/mag less for fainter ones, 0.2 dex (COSMOS fits, Leauthaud et al. 2007); not clustered
companions         a galaxy of the same priors, within a magnitude of the target, at a distance that is uniform to the edge:
                   pairs by angle grow with its power of 0.2 (w proportional to angle^-0.8: Connolly et al. 2002, ApJ 579, 42)
stars              Poisson numbers, uniform positions; counts with a slope of 0.2 dex/mag (Bahcall & Soneira 1980, ApJS 44, 73)
blends             neighbours are fainter than `Survey.magnitude_range` begins, as surveys mask what saturates; one brighter
                   than the galaxy is left out within its effective radius or 1.5 FWHM of its centre, times 1 + log10 of the
                   ratio of fluxes, as there the galaxy would have no entry in a catalogue
missing pixels     trails, columns, cosmic rays (`noise.draw_mask`), filled as the survey does
=================  =====================================================================================================

Each ingredient has random numbers of its own: turning one off leaves the others as they are.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from gampen_ray.config.scene import PsfConfig, SceneConfig
from gampen_ray.simulation import noise
from gampen_ray.simulation.galaxies import Galaxy, draw_galaxy
from gampen_ray.simulation.inputs import Inputs
from gampen_ray.simulation.neighbours import draw_companion, draw_galaxies, draw_stars
from gampen_ray.simulation.psf import MoffatPsf, PsfSizes
from gampen_ray.simulation.render import Psf, Sources, box_of, render, render_faint, render_sources
from gampen_ray.simulation.surveys import Survey

__all__ = [
    "draw_psf",
    "draw_target",
    "exclusion_arcsec",
    "galaxy_of",
    "near",
    "psf_of",
    "render_row",
    "simulate",
    "stream",
    "streams",
]

_RA_RANGE_DEG, _DEC_RANGE_DEG = (129.0, 225.0), (-2.0, 3.0)  # equatorial sky that HSC-Wide and KiDS-North share
_STREAMS = (
    "position",
    "galaxy",
    "offset",
    "psf",
    "depth",
    "galaxies",
    "stars",
    "noise",
    "sky",
    "mask",
    "companion",
    "place",
    "knots",
)
# To scale a PSF to the width of its stars; the pixel alone may be wider than that.
_FWHM_STEPS, _LEAST_FACTOR, _SAME_FWHM = 8, 0.2, 1e-3
# A source whose light beyond a stamp is below a few sigma of one pixel.
_FAINT_SIGMA = 300.0


def simulate(
    survey: Survey,
    scene: SceneConfig | None = None,
    *,
    cutout_size: int,
    seed: int,
    start: int,
    stop: int,
    inputs: Inputs | None = None,
) -> dict[str, np.ndarray]:
    """Simulate the galaxies with indices ``start`` to ``stop - 1``.

    Each galaxy depends on the other arguments and its index alone, so that any partition of the indices gives the same
    galaxies, bit by bit.

    Parameters
    ----------
    survey
        Instrument and depth.
    scene
        What the cutouts hold; left out: the defaults.
    cutout_size
        Side of the cutouts, pixels.
    seed
        Another seed gives other galaxies.
    start, stop
        Range of indices.
    inputs
        Content of the files that the scene names (`gampen_ray.simulation.inputs.read_inputs`).

    Returns
    -------
    dict of array
        ``object_id`` (N,) int64, the index; ``image`` (N, 1, H, W) float32, flux units; and float64 columns (N,): ``ra``,
        ``dec`` (deg), the targets ``bulge_to_total``, ``effective_radius_arcsec``, ``flux`` (total, also beyond the cutout),
        ``magnitude``, ``concentration``, the components' radii (circularised), axis ratios, position angles and Sersic indices,
        ``knot_fraction`` (share of the disk's light) and ``knot_seed``, the offsets of the centre in pixels;
        ``psf_fwhm_arcsec``, ``psf_r50_arcsec``, ``psf_r80_arcsec``, ``psf_r95_arcsec`` as measured from a star
        (`gampen_ray.simulation.psf.PsfSizes`), the PSF's parameters (`psf_of`); ``sky_noise`` (standard deviation of a pixel,
        flux), ``noise_correlation`` (of pixels adjacent along an axis), ``sky_level``, ``sky_gradient_x``, ``sky_gradient_y``
        (flux per pixel); ``num_neighbours``, ``num_stars`` (with their centre in the cutout), ``neighbour_flux_fraction``
        (noiseless light of all other sources within two effective radii or one FWHM, whichever is larger, of the galaxy's
        centre, over the galaxy's flux); ``masked_fraction`` (pixels without data over all).
    """
    scene, inputs = scene or SceneConfig(), inputs or Inputs()
    rows = [_simulate_one(survey, scene, inputs, cutout_size, seed, index) for index in range(start, stop)]
    images = np.stack([image for image, _ in rows]) if rows else np.empty((0, cutout_size, cutout_size), np.float32)
    columns: dict[str, np.ndarray] = {"object_id": np.arange(start, stop, dtype=np.int64)}
    columns |= {name: np.array([row[name] for _, row in rows]) for name in (rows[0][1] if rows else {})}
    columns["image"] = images[:, None]  # (N, H, W) -> (N, C, H, W)
    return columns


def galaxy_of(row: Mapping[str, float], pixel_scale_arcsec: float) -> Galaxy:
    """Return the galaxy at the centre of a simulated cutout from its columns."""
    names = {field.name for field in dataclasses.fields(Galaxy)} - {"x_offset_arcsec", "y_offset_arcsec"}
    return Galaxy(
        # Simulations of earlier versions have no knots.
        **{name: float(row[name]) for name in names if name in row or not name.startswith("knot")},
        x_offset_arcsec=float(row["x_offset_pixel"]) * pixel_scale_arcsec,
        y_offset_arcsec=float(row["y_offset_pixel"]) * pixel_scale_arcsec,
    )


def psf_of(row: Mapping[str, float], inputs: Inputs | None = None) -> Psf:
    """Return the PSF of a simulated cutout from its columns.

    They are ``psf_core_fwhm_arcsec`` (before aureole and pixel), ``psf_beta``, ``psf_e1``, ``psf_e2``, ``psf_wing_fraction``
    and ``psf_wing_fwhm_arcsec`` of `MoffatPsf`; or ``psf_stamp``, the stamp's place in the order of the files' names.
    """
    if inputs is not None and inputs.psfs is not None:
        return inputs.psfs[int(row["psf_stamp"])]
    return MoffatPsf(**{name: float(row[column]) for name, column in _PSF_COLUMNS.items()})


def render_row(row: Mapping[str, float], *, pixel_scale_arcsec: float, size: int, inputs: Inputs | None = None) -> np.ndarray:
    """Draw the galaxy of a simulated cutout again from its columns: no noise, no neighbours, no sky (H, W), flux per pixel."""
    psf = psf_of(row, inputs)
    return render([galaxy_of(row, pixel_scale_arcsec)], psf=psf, pixel_scale_arcsec=pixel_scale_arcsec, size=size)


def streams(seed: int, index: int) -> dict[str, np.random.Generator]:
    """Return the sources of randomness of a galaxy, by ingredient."""
    return {name: stream(seed, index, name) for name in _STREAMS}


def stream(seed: int, index: int, name: str) -> np.random.Generator:
    """Return the source of randomness of one ingredient of a galaxy."""
    return np.random.default_rng([seed, index, _STREAMS.index(name)])


def draw_target(
    rng: Mapping[str, np.random.Generator], survey: Survey, scene: SceneConfig, inputs: Inputs, size: int
) -> tuple[Galaxy, dict[str, float]]:
    """Draw the galaxy of a cutout, with its columns."""
    scale = survey.pixel_scale_arcsec
    sigma = scene.galaxies.offset_pixel
    x_pixel, y_pixel = (sigma * rng["offset"].standard_normal(2).clip(-3, 3)).tolist()
    galaxy = dataclasses.replace(
        draw_galaxy(rng["galaxy"], survey, scene.galaxies, size * scale, inputs.galaxies),
        x_offset_arcsec=x_pixel * scale,
        y_offset_arcsec=y_pixel * scale,
    )
    if rng["knots"].random() < scene.knots.probability:
        share, seed = rng["knots"].uniform(*scene.knots.fraction), rng["knots"].integers(2**32)
        galaxy = dataclasses.replace(galaxy, knot_fraction=share, knot_seed=float(seed))
    return galaxy, _galaxy_columns(galaxy, survey, x_pixel, y_pixel)


def draw_psf(
    rng: np.random.Generator, survey: Survey, config: PsfConfig, inputs: Inputs, fwhm_arcsec: float | None = None
) -> tuple[Psf, dict[str, float]]:
    """Draw the PSF of a cutout, with its columns.

    ``fwhm_arcsec`` is that of its stars, pixel and aureole included, where it is known: a drawn profile is scaled to it, as far
    as the pixels allow.
    """
    scale = survey.pixel_scale_arcsec
    if inputs.psfs is not None:
        place = int(rng.integers(len(inputs.psfs)))
        psf, columns = inputs.psfs[place], {"psf_stamp": float(place)}
        sizes = psf.sizes(scale)
    else:
        psf = _draw_moffat(rng, survey, config)
        sizes = psf.sizes(scale)
        if fwhm_arcsec is not None:
            psf, sizes = _scaled(psf, sizes, fwhm_arcsec, scale)
        columns = {column: getattr(psf, name) for name, column in _PSF_COLUMNS.items()}
    return psf, columns | {f"psf_{name}": value for name, value in dataclasses.asdict(sizes).items()}


def exclusion_arcsec(row: Mapping[str, float]) -> float:
    """Return the distance from a galaxy within which a brighter source would take its place in a catalogue."""
    return max(row["effective_radius_arcsec"], 1.5 * row["psf_fwhm_arcsec"])


def near(size: int, row: Mapping[str, float], pixel_scale_arcsec: float) -> np.ndarray:
    """Return which pixels (H, W) lie within two effective radii or one FWHM of the galaxy, whichever is larger."""
    radius_arcsec = max(2 * row["effective_radius_arcsec"], row["psf_fwhm_arcsec"])
    place = np.arange(size) - 0.5 * (size - 1)
    squared_HW = (place - row["x_offset_pixel"]) ** 2 + (place[:, None] - row["y_offset_pixel"]) ** 2
    return squared_HW <= (radius_arcsec / pixel_scale_arcsec) ** 2


# --- one cutout ----------------------------------------------------------------------------------------------------------

_PSF_COLUMNS = {
    "fwhm_arcsec": "psf_core_fwhm_arcsec",
    "beta": "psf_beta",
    "e1": "psf_e1",
    "e2": "psf_e2",
    "wing_fraction": "psf_wing_fraction",
    "wing_fwhm_arcsec": "psf_wing_fwhm_arcsec",
}


def _simulate_one(
    survey: Survey, scene: SceneConfig, inputs: Inputs, size: int, seed: int, index: int
) -> tuple[np.ndarray, dict[str, float]]:
    rng, scale = streams(seed, index), survey.pixel_scale_arcsec
    row = dict(zip(("ra", "dec"), _random_position(rng["position"]), strict=True))
    galaxy, columns = draw_target(rng, survey, scene, inputs, size)
    psf, psf_columns = draw_psf(rng["psf"], survey, scene.psf, inputs)
    row |= columns | psf_columns
    sky = survey.sky_noise * _log_uniform(rng["depth"], *scene.noise.sky)
    row["sky_noise"] = sky

    box = box_of(galaxy, psf, scale, size)
    target = render_sources(Sources.of(galaxy), psf, scale, size, box)
    exclusion = exclusion_arcsec(row)
    others = [
        draw(rng[kind], survey, scene.neighbours, size * scale, galaxy, exclusion)
        for kind, draw in (("galaxies", draw_galaxies), ("stars", draw_stars))
    ]
    if rng["companion"].random() < scene.neighbours.companions:
        others[0] = Sources.joined(
            [others[0], draw_companion(rng["companion"], survey, scene, size * scale, galaxy, exclusion)]
        )
    surroundings = _render_all(Sources.joined(others), psf, scale, size, box, survey.sky_noise)
    for name, sources in zip(("num_neighbours", "num_stars"), others, strict=True):
        inside = np.maximum(np.abs(sources.x_arcsec), np.abs(sources.y_arcsec)) < 0.5 * size * scale
        row[name] = float(inside.sum())
    row["neighbour_flux_fraction"] = float((surroundings * near(size, row, scale)).sum() / galaxy.flux)

    model = target + surroundings
    image, noise_columns = _with_noise(model, sky, survey, scene, inputs, rng)
    row |= noise_columns
    row["masked_fraction"] = 0.0
    if rng["mask"].random() < scene.masks.probability:
        mask, axis = noise.draw_mask(rng["mask"], size)
        image = noise.filled(image, mask, axis, interpolate=scene.masks.fill == "interpolate")
        row["masked_fraction"] = float(mask.mean())
    return image.astype(np.float32), row


def _galaxy_columns(galaxy: Galaxy, survey: Survey, x_pixel: float, y_pixel: float) -> dict[str, float]:
    columns = {
        "bulge_to_total": galaxy.bulge_to_total,
        "effective_radius_arcsec": galaxy.effective_radius_arcsec,
        "flux": galaxy.flux,
        "magnitude": survey.magnitude(galaxy.flux),
        "concentration": galaxy.concentration,
    }
    structure = ("radius_arcsec", "axis_ratio", "position_angle_deg", "sersic_index")
    names = (f"{part}_{name}" for name in structure for part in ("bulge", "disk"))
    columns |= {name: getattr(galaxy, name) for name in (*names, "knot_fraction", "knot_seed")}
    return columns | {"x_offset_pixel": x_pixel, "y_offset_pixel": y_pixel}


def _draw_moffat(rng: np.random.Generator, survey: Survey, config: PsfConfig) -> MoffatPsf:
    fwhm = rng.uniform(*(config.fwhm_arcsec or survey.psf_fwhm_arcsec))
    e1, e2 = (config.ellipticity * rng.standard_normal(2).clip(-4, 4)).tolist()
    return MoffatPsf(
        fwhm_arcsec=fwhm,
        # In the inverse index, from 0 of a Gaussian, shapes change evenly.
        beta=1 / rng.uniform(1 / config.beta[1], 1 / config.beta[0]),
        e1=e1,
        e2=e2,
        wing_fraction=rng.uniform(*config.wing_fraction),
        wing_fwhm_arcsec=fwhm * _log_uniform(rng, 1.2, 8),
    )


def _scaled(psf: MoffatPsf, sizes: PsfSizes, fwhm_arcsec: float, scale: float) -> tuple[MoffatPsf, PsfSizes]:
    """Return a PSF whose stars have a given width, as far as the pixels allow, and its sizes."""
    for _ in range(_FWHM_STEPS):
        factor = max(fwhm_arcsec / sizes.fwhm_arcsec, _LEAST_FACTOR)
        if abs(factor - 1) < _SAME_FWHM:
            break
        psf = dataclasses.replace(psf, fwhm_arcsec=factor * psf.fwhm_arcsec, wing_fwhm_arcsec=factor * psf.wing_fwhm_arcsec)
        sizes = psf.sizes(scale)
    return psf, sizes


def _with_noise(
    model: np.ndarray, sky: float, survey: Survey, scene: SceneConfig, inputs: Inputs, rng: Mapping[str, np.random.Generator]
) -> tuple[np.ndarray, dict[str, float]]:
    size, config = len(model), scene.noise
    # The strength comes from its own draw, so that images differ in nothing else.
    correlation = rng["depth"].uniform(*config.correlation)
    if inputs.noise_autocorrelation is not None:
        middle = len(inputs.noise_autocorrelation) // 2
        correlation = 0.5 * float(
            inputs.noise_autocorrelation[middle, middle + 1] + inputs.noise_autocorrelation[middle + 1, middle]
        )
        spectrum = noise.measured_spectrum(inputs.noise_autocorrelation, size)
    else:
        spectrum = noise.noise_spectrum(correlation, size) if correlation else None
    photons = np.maximum(model, 0) / survey.electrons_per_flux if config.photons else 0.0
    residual, columns = noise.sky_residual(rng["sky"], config.sky_level * sky, config.sky_gradient * sky, size)
    image = model + residual + np.sqrt(sky**2 + photons) * noise.correlated_noise(rng["noise"], spectrum, size)
    return image, {"noise_correlation": correlation} | columns


def _render_all(sources: Sources, psf: Psf, scale: float, size: int, box: int, sky_noise: float) -> np.ndarray:
    faint = sources.flux < _FAINT_SIGMA * sky_noise
    image = render_faint(sources[np.flatnonzero(faint)], psf, scale, size)
    if not faint.all():
        image += render_sources(sources[np.flatnonzero(~faint)], psf, scale, size, box)
    return image


# --- small things --------------------------------------------------------------------------------------------------------


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    draw = rng.uniform()
    return low if low == high else low * (high / low) ** draw


def _random_position(rng: np.random.Generator) -> tuple[float, float]:
    """Return RA and Dec (deg), uniform over the solid angle."""
    sin_low, sin_high = (math.sin(math.radians(dec)) for dec in _DEC_RANGE_DEG)
    return rng.uniform(*_RA_RANGE_DEG), math.degrees(math.asin(rng.uniform(sin_low, sin_high)))
