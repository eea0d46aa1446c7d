import math

import galsim
import numpy as np
import pytest

from gampen_ray.config.scene import KnotsConfig, SceneConfig
from gampen_ray.simulation import sersic
from gampen_ray.simulation.knots import draw_knots
from gampen_ray.simulation.psf import grid_of, shear_of
from gampen_ray.simulation.render import render
from gampen_ray.simulation.scene import galaxy_of, render_row, simulate
from gampen_ray.simulation.surveys import SURVEYS
from tests.simulation.simulation_cases import WINGED, galsims, make_galaxy

SCALE = 0.2
KIDS = SURVEYS["kids-r"]


def make(scene: SceneConfig, count: int = 20) -> dict[str, np.ndarray]:
    return simulate(KIDS, scene, cutout_size=48, seed=4, start=0, stop=count)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_image_with_knots_is_galsims(seed: int) -> None:
    galaxy = make_galaxy(
        bulge_to_total=0.3,
        disk_axis_ratio=0.5,
        disk_position_angle_deg=30,
        x_offset_arcsec=0.3,
        knot_fraction=0.4,
        knot_seed=seed,
    )
    knots = draw_knots(seed, galaxy.disk_radius_arcsec, 1.0, shear_of(0.5, 30))
    spots = [
        galsim.Gaussian(sigma=knots.sigma_arcsec, flux=flux).shift(x, y)
        for flux, x, y in zip(knots.flux_K, knots.x_arcsec_K, knots.y_arcsec_K, strict=True)
    ]
    bulge = galsim.Sersic(4.0, half_light_radius=galaxy.bulge_radius_arcsec)
    disk = galsim.Exponential(half_light_radius=galaxy.disk_radius_arcsec).shear(q=0.5, beta=30 * galsim.degrees)
    light = 0.3 * bulge + 0.7 * (0.6 * disk + 0.4 * galsim.Sum(spots))
    expected = (1000 * galsim.Convolve(light.shift(0.3, 0), galsims(WINGED))).drawImage(nx=64, ny=64, scale=SCALE, dtype=float)
    image = render([galaxy], psf=WINGED, pixel_scale_arcsec=SCALE, size=64)
    assert np.abs(image - expected.array).max() < 3e-3 * expected.array.max()
    assert image.sum() == pytest.approx(expected.array.sum(), rel=3e-3)


@pytest.mark.parametrize("index", [1.0, 1.4])
def test_knots_hold_what_a_smooth_disk_holds_within_each_radius(index: float) -> None:
    radii = np.array([0.3, 0.7, 1.0, 1.5, 2.5])
    held = []
    for seed in range(400):
        knots = draw_knots(seed, 1.0, index, (0.0, 0.0))
        radius_K = np.hypot(knots.x_arcsec_K, knots.y_arcsec_K)
        # They are drawn in by what their own size adds.
        variance = 0.5 * knots.flux_K @ radius_K**2
        radius_K *= math.sqrt(1 + knots.sigma_arcsec**2 / variance)
        held.append([knots.flux_K[radius_K < radius].sum() for radius in radii])
    expected = [sersic.growth(radius, index) for radius in radii]
    np.testing.assert_allclose(np.mean(held, axis=0), expected, atol=0.01)
    # Each galaxy, and not the mean alone.
    assert np.abs(np.subtract(held, expected)).mean() < 0.02


def test_knots_keep_flux_and_second_moments_of_an_inclined_disk() -> None:
    moments = []
    for seed in range(600):
        knots = draw_knots(seed, 1.0, 1.0, shear_of(0.4, 90.0))
        assert knots.flux_K.sum() == pytest.approx(1)
        assert knots.transform(grid_of(32, SCALE))[0, 0] == pytest.approx(1, abs=1e-5)
        moments.append(
            [
                knots.flux_K @ knots.x_arcsec_K**2 + knots.sigma_arcsec**2,
                knots.flux_K @ knots.y_arcsec_K**2 + knots.sigma_arcsec**2,
            ]
        )
    # An exponential disk has 3 h^2 along an axis, h = R / 1.678, and the ellipse's axes are R / sqrt(q) and R sqrt(q).
    minor, major = np.mean(moments, axis=0)
    assert minor == pytest.approx(3 * 0.4 / 1.678**2, rel=0.06)
    assert major == pytest.approx(3 / 0.4 / 1.678**2, rel=0.06)


def test_knots_are_asymmetric() -> None:
    def asymmetry(galaxy_seed: int, fraction: float) -> float:
        galaxy = make_galaxy(bulge_to_total=0.2, knot_fraction=fraction, knot_seed=galaxy_seed)
        image = render([galaxy], psf=WINGED, pixel_scale_arcsec=SCALE, size=64)
        return np.abs(image - image[::-1, ::-1]).sum() / image.sum()

    assert asymmetry(0, 0.0) < 1e-3
    assert np.mean([asymmetry(seed, 0.5) for seed in range(20)]) > 0.1


def test_a_share_of_galaxies_has_knots_and_the_rest_stays_as_it_is() -> None:
    without, some = make(SceneConfig()), make(SceneConfig(knots=KnotsConfig(probability=0.5)))
    fraction = some["knot_fraction"]
    chosen = fraction > 0
    assert 4 <= chosen.sum() <= 16
    assert (fraction[chosen] >= 0.02).all()
    assert (fraction <= 0.35).all()
    assert not without["knot_fraction"].any()
    np.testing.assert_array_equal(some["image"][~chosen], without["image"][~chosen])
    for name in set(without) - {"image", "knot_fraction", "knot_seed"}:
        np.testing.assert_array_equal(some[name], without[name], err_msg=name)


def test_knots_are_drawn_again_from_the_columns() -> None:
    columns = make(SceneConfig(knots=KnotsConfig(probability=1.0)))
    row = {name: values[0] for name, values in columns.items() if values.ndim == 1}
    again = render_row(row, pixel_scale_arcsec=KIDS.pixel_scale_arcsec, size=48)
    smooth = render_row(row | {"knot_fraction": 0.0}, pixel_scale_arcsec=KIDS.pixel_scale_arcsec, size=48)
    assert np.abs(again - smooth).max() > 0
    assert galaxy_of(row, SCALE).knot_seed == row["knot_seed"]
    # Simulations of earlier versions have no such columns.
    del row["knot_fraction"], row["knot_seed"]
    np.testing.assert_array_equal(render_row(row, pixel_scale_arcsec=KIDS.pixel_scale_arcsec, size=48), smooth)


def test_shares_are_checked() -> None:
    with pytest.raises(ValueError, match=r"fraction is \[0.5, 0.2\]; give two values in order within \[0, 1\]"):
        KnotsConfig(fraction=(0.5, 0.2))
