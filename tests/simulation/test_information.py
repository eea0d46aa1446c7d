"""The bound against closed forms, GalSim, and the scatter of maximum-likelihood fits."""

import math

import galsim
import numpy as np
import pytest
import scipy.optimize

from gampen_ray.config.scene import MasksConfig, NeighboursConfig, NoiseConfig, PsfConfig, SceneConfig
from gampen_ray.simulation.galaxies import Galaxy
from gampen_ray.simulation.information import PSF_PARAMETERS, Limit, fisher_matrix, psf_at, psf_size_derivatives
from gampen_ray.simulation.profiles import PARAMETERS, image_and_derivatives, parameters
from gampen_ray.simulation.scene import simulate
from gampen_ray.simulation.surveys import SURVEYS
from tests.simulation.simulation_cases import galsims

KIDS = SURVEYS["kids-r"]
SCALE = KIDS.pixel_scale_arcsec
EXACT = galsim.GSParams(folding_threshold=2e-3)
SCENE = SceneConfig(
    psf=PsfConfig(beta=(3.5, 3.5), ellipticity=0.0, wing_fraction=(0.0, 0.0)),
    noise=NoiseConfig(correlation=(0.0, 0.0), sky_level=0.0, sky_gradient=0.0),
    neighbours=NeighboursConfig(galaxies=0.0, stars=0.0),
    masks=MasksConfig(probability=0.0),
)
"""As plain as the closed forms."""
AT = {name: place for place, name in enumerate(PARAMETERS)}


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    return simulate(KIDS, SCENE, cutout_size=64, seed=3, start=0, stop=400)


def changed(theta_P: np.ndarray, **changes: float) -> np.ndarray:
    theta_P = theta_P.copy()
    for name, value in changes.items():
        theta_P[AT[name]] = value
    return theta_P


def drawn(theta_P: np.ndarray, size: int) -> np.ndarray:
    """Return GalSim's image."""
    at = dict(zip(PARAMETERS, theta_P, strict=True))
    parts = [
        galsim.Sersic(
            at[f"{part}_sersic_index"], half_light_radius=math.exp(at[f"ln_{part}_radius"]), flux=weight, gsparams=EXACT
        ).shear(q=at[f"{part}_axis_ratio"], beta=at[f"{part}_position_angle"] * galsim.radians)
        for part, weight in (("bulge", at["bulge_to_total"]), ("disk", 1 - at["bulge_to_total"]))
    ]
    psf = galsims(psf_at(theta_P), SCALE, EXACT)
    galaxy = math.exp(at["ln_flux"]) * galsim.Sum(parts).shift(at["x_offset"], at["y_offset"])
    image = galsim.ImageD(size, size, scale=SCALE)
    galsim.Convolve(galaxy, psf, gsparams=EXACT).drawImage(image)
    return image.array + at["sky"]


@pytest.mark.parametrize("row", range(5))
def test_image_and_derivatives_match_galsim(row: int, columns: dict[str, np.ndarray]) -> None:
    theta_P = changed(parameters(columns, SCALE)[row], psf_e1=0.03, psf_e2=-0.05, psf_wing_fraction=0.06, psf_wing_fwhm=1.8)
    fixed = ["bulge_sersic_index", "disk_sersic_index"]
    if row == 0:  # GalSim takes a second for a new index
        theta_P, fixed = changed(theta_P, bulge_sersic_index=3.3, disk_sersic_index=1.2), []
    image, derivatives = image_and_derivatives(theta_P, SCALE, 64)
    # The box is twice the cutout: light of a large bulge comes back from beyond.
    assert np.linalg.norm(image - drawn(theta_P, 64)) < 2e-3 * np.linalg.norm(image)
    for name, derivative in zip(PARAMETERS, derivatives, strict=True):
        if name not in fixed:
            step = 1e-3 * np.eye(len(PARAMETERS))[AT[name]]
            expected = (drawn(theta_P + step, 64) - drawn(theta_P - step, 64)) / 2e-3
            assert np.linalg.norm(derivative - expected) < 0.02 * np.linalg.norm(expected), name


@pytest.mark.parametrize("correlation", [0.0, 0.2])
def test_flux_of_a_point_source_is_known_as_a_matched_filter_knows_it(correlation: float) -> None:
    theta_P = np.zeros(len(PARAMETERS))
    theta_P = changed(theta_P, ln_bulge_radius=-9, ln_disk_radius=-9, bulge_sersic_index=4, disk_sersic_index=1)
    theta_P = changed(theta_P, bulge_axis_ratio=1, disk_axis_ratio=1, psf_fwhm=0.7, psf_beta=3.5, psf_wing_fwhm=1)
    fisher_PP = fisher_matrix(
        theta_P,
        sky_noise=0.01,
        electrons_per_flux=math.inf,
        pixel_scale_arcsec=SCALE,
        size=32,
        noise_correlation=correlation,
    )
    image = galsim.ImageD(32, 32, scale=SCALE)
    psf_X = galsim.Moffat(beta=3.5, fwhm=0.7).drawImage(image).array.ravel()
    lag_HH = np.abs(np.subtract.outer(np.arange(32), np.arange(32)))
    line_HH = (lag_HH == 0) + correlation * ((lag_HH == 1) | (lag_HH == 31))
    variance_XX = 0.01**2 * np.kron(line_HH, line_HH)
    # The flux is one, and 1 / sqrt(sum of psf^2 / sigma^2) for white noise.
    assert fisher_PP[0, 0] == pytest.approx(psf_X @ np.linalg.solve(variance_XX, psf_X), rel=2e-3)


def test_maximum_likelihood_fits_scatter_as_the_bound_says() -> None:
    size = 32
    galaxy = {"bulge_to_total": 0.4, "bulge_axis_ratio": 0.8, "disk_axis_ratio": 0.5}
    theta_P = np.zeros(len(PARAMETERS))
    theta_P = changed(theta_P, ln_flux=math.log(KIDS.flux(17.5)), ln_bulge_radius=-1.0, ln_disk_radius=-0.2, **galaxy)
    theta_P = changed(theta_P, bulge_sersic_index=4, disk_sersic_index=1, bulge_position_angle=0.5, disk_position_angle=0.7)
    theta_P = changed(theta_P, psf_fwhm=0.7, psf_beta=3.5, psf_wing_fwhm=1)
    free = np.array([AT[name] for name in PARAMETERS if not name.endswith("sersic_index")])
    free = free[~np.isin(free, [AT[name] for name in (*PSF_PARAMETERS, "sky")])]
    image, _ = image_and_derivatives(theta_P, SCALE, size)
    sigma_HW = np.sqrt(KIDS.sky_noise**2 + image / KIDS.electrons_per_flux)
    rng = np.random.default_rng(0)

    def theta(free_F: np.ndarray) -> np.ndarray:
        full_P = theta_P.copy()
        full_P[free] = free_F
        return full_P

    fits = []
    for _ in range(120):
        noisy_HW = image + sigma_HW * rng.standard_normal(image.shape)
        fit = scipy.optimize.least_squares(
            lambda x, y=noisy_HW: ((image_and_derivatives(theta(x), SCALE, size)[0] - y) / sigma_HW).ravel(),
            theta_P[free],
            lambda x: (image_and_derivatives(theta(x), SCALE, size)[1][free] / sigma_HW).reshape(len(free), -1).T,
            xtol=1e-6,
            ftol=1e-6,
        )
        fits.append(fit.x)
    fisher_PP = fisher_matrix(
        theta_P, sky_noise=KIDS.sky_noise, electrons_per_flux=KIDS.electrons_per_flux, pixel_scale_arcsec=SCALE, size=size
    )
    bound = np.sqrt(np.diag(np.linalg.inv(fisher_PP[np.ix_(free, free)])))
    np.testing.assert_allclose(np.std(fits, axis=0) / bound, 1, atol=0.2)
    assert np.median(np.std(fits, axis=0) / bound) == pytest.approx(1, abs=0.1)


def test_effective_radius_follows_the_components(columns: dict[str, np.ndarray]) -> None:
    names = ("flux", "bulge_to_total", "bulge_radius_arcsec", "disk_radius_arcsec", "bulge_axis_ratio", "disk_axis_ratio")
    names += ("bulge_position_angle_deg", "disk_position_angle_deg")
    few = {name: values[:3] for name, values in columns.items()}
    limit = Limit.of(few, KIDS, 32, population=columns)
    for row in range(3):
        galaxy = {name: float(few[name][row]) for name in names}
        for column, parameter, log in (
            ("bulge_to_total", "bulge_to_total", False),
            ("bulge_radius_arcsec", "ln_bulge_radius", True),
            ("disk_radius_arcsec", "ln_disk_radius", True),
        ):
            both = [galaxy[column] * math.exp(s) if log else galaxy[column] + s for s in (1e-4, -1e-4)]
            high, low = (math.log(Galaxy(**(galaxy | {column: value})).effective_radius_arcsec) for value in both)
            assert limit.jacobian_NPP[row, AT["ln_disk_radius"], AT[parameter]] == pytest.approx((high - low) / 2e-4, abs=1e-4)


def test_limits_of_the_limit(columns: dict[str, np.ndarray]) -> None:
    few = {name: values[:40] for name, values in columns.items()}
    known, unknown, sky = (
        Limit.of(few, KIDS, 64, population=columns).std(**settings)
        for settings in ({"known": PSF_PARAMETERS}, {}, {"sky_sigma": 0.3})
    )
    assert (unknown >= known * (1 - 1e-9)).all()
    assert (sky >= unknown * (1 - 1e-9)).all()
    # Widths alone differ among these PSFs: who is told sizes knows the PSF.
    told = Limit.of(few, KIDS, 64, population=columns).std(told_NSP=psf_size_derivatives(parameters(few, SCALE), SCALE))
    np.testing.assert_allclose(told, known, rtol=0.01)
    assert np.median(unknown[:, 1] / told[:, 1]) > 1.1
    # Without any light there is the prior alone.
    dark = Limit.of(few | {"sky_noise": np.full(40, 1e9)}, KIDS, 64, population=columns).std()
    spread = [columns["bulge_to_total"], np.log(columns["effective_radius_arcsec"]), np.log(columns["flux"])]
    np.testing.assert_allclose(dark, np.broadcast_to([np.std(x, ddof=1) for x in spread], dark.shape), rtol=1e-4)
