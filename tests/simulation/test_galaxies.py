import math

import galsim
import numpy as np
import pytest

from gampen_ray.simulation import galaxies as sim
from gampen_ray.simulation.galaxies import Galaxy, draw_galaxy, render
from gampen_ray.simulation.surveys import SURVEYS, Survey

KIDS = SURVEYS["kids-r"]


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


def simulate(start: int, stop: int, survey: Survey = KIDS, **changes: float) -> dict[str, np.ndarray]:
    settings = {"cutout_size": 32, "neighbour_fraction": 0.2, "seed": 0} | changes
    return sim.simulate(survey, **settings, start=start, stop=stop)


@pytest.fixture(scope="module")
def galaxies() -> dict[str, np.ndarray]:
    return simulate(0, 400, cutout_size=64, neighbour_fraction=0.0)


# --- radii and fluxes against independent oracles ------------------------------------------------------------------------


@pytest.mark.parametrize(("bulge_to_total", "radius"), [(0.0, 0.8), (1.0, 0.4)])
def test_a_single_component_has_its_own_half_light_radius(bulge_to_total: float, radius: float) -> None:
    galaxy = make_galaxy(bulge_to_total=bulge_to_total)
    assert galaxy.effective_radius_arcsec == pytest.approx(radius, rel=1e-6)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_light_radius_matches_galsims_profiles(fraction: float) -> None:
    galaxy = make_galaxy(bulge_to_total=0.35)
    bulge = galsim.DeVaucouleurs(half_light_radius=0.4)
    disk = galsim.Exponential(half_light_radius=0.8)
    radius, step = np.linspace(0, galaxy.light_radius(fraction), 50_001, retstep=True)
    middle = radius[1:] - step / 2
    light = [0.35 * bulge.xValue(r, 0) + 0.65 * disk.xValue(r, 0) for r in middle]
    assert (2 * math.pi * middle * light).sum() * step == pytest.approx(fraction, abs=1e-4)


@pytest.mark.parametrize("axis_ratio", [1.0, 0.5])
def test_half_the_light_of_a_rendered_galaxy_lies_within_the_effective_radius(axis_ratio: float) -> None:
    galaxy = make_galaxy(bulge_to_total=0.3, bulge_axis_ratio=axis_ratio, disk_axis_ratio=axis_ratio)
    scale, size = 0.02, 1001
    image = render([galaxy], psf_fwhm_arcsec=0, pixel_scale_arcsec=scale, size=size).astype(np.float64)
    y, x = (np.indices(image.shape) - size // 2) * scale
    # The ellipse through (x, y) has semi-axes a and q a; its circularised radius is sqrt(q) a.
    radius = np.hypot(x * math.sqrt(axis_ratio), y / math.sqrt(axis_ratio))
    assert image[radius < galaxy.effective_radius_arcsec].sum() == pytest.approx(0.5 * galaxy.flux, rel=0.01)


def test_concentration_of_pure_disk_and_pure_bulge() -> None:
    # The disk's curve of growth is 1 - (1 + x) exp(-x): 0.2 at x = 0.8244, 0.8 at x = 2.9943.
    assert make_galaxy(bulge_to_total=0.0).concentration == pytest.approx(5 * math.log10(2.9943 / 0.8244), abs=1e-3)
    assert make_galaxy(bulge_to_total=1.0).concentration == pytest.approx(5.27, abs=0.01)


def test_a_compact_disk_has_all_its_flux_in_the_cutout() -> None:
    galaxy = make_galaxy(bulge_to_total=0.0, disk_radius_arcsec=0.3)
    image = render([galaxy], psf_fwhm_arcsec=0.6, pixel_scale_arcsec=0.2, size=64)
    # A Moffat profile with index 3.5 keeps 2e-5 of its light beyond 6.4 arcsec.
    assert image.sum() == pytest.approx(galaxy.flux, rel=2e-3)


def test_bulge_and_disk_are_where_bulge_to_total_puts_them() -> None:
    parts = [
        render([make_galaxy(bulge_to_total=ratio)], psf_fwhm_arcsec=0.7, pixel_scale_arcsec=0.2, size=48)
        for ratio in (0.0, 0.3, 1.0)
    ]
    np.testing.assert_allclose(parts[1], 0.7 * parts[0] + 0.3 * parts[2], atol=2e-3 * parts[1].max())
    assert parts[2].max() > 2 * parts[0].max()


def test_position_angle_turns_counter_clockwise_from_the_x_axis() -> None:
    galaxy = make_galaxy(bulge_to_total=0.0, disk_axis_ratio=0.3, disk_position_angle_deg=30.0)
    image = render([galaxy], psf_fwhm_arcsec=0, pixel_scale_arcsec=0.1, size=101)
    y, x = np.indices(image.shape) - 50
    angle = 0.5 * math.atan2(2 * (image * x * y).sum(), (image * (x**2 - y**2)).sum())
    assert math.degrees(angle) == pytest.approx(30, abs=0.5)


def test_offsets_move_the_centroid() -> None:
    galaxy = make_galaxy(bulge_to_total=0.0, disk_radius_arcsec=0.4, x_offset_arcsec=0.3, y_offset_arcsec=-0.2)
    image = render([galaxy], psf_fwhm_arcsec=0.6, pixel_scale_arcsec=0.2, size=64)
    y, x = np.indices(image.shape) - 31.5
    assert (image * x).sum() / image.sum() == pytest.approx(1.5, abs=0.01)
    assert (image * y).sum() / image.sum() == pytest.approx(-1.0, abs=0.01)


def test_rendering_is_as_exact_as_with_galsims_own_accuracy() -> None:
    side_arcsec = 64 * KIDS.pixel_scale_arcsec
    for seed in range(20):
        galaxy = draw_galaxy(np.random.default_rng(seed), 1e4, side_arcsec)
        geometry = {"psf_fwhm_arcsec": 0.7, "pixel_scale_arcsec": KIDS.pixel_scale_arcsec, "size": 64}
        ours = render([galaxy], **geometry)
        exact = render([galaxy], **geometry, gsparams=galsim.GSParams(folding_threshold=1e-3, maxk_threshold=1e-4))
        assert ours.sum() == pytest.approx(exact.sum(), rel=2e-3)
        np.testing.assert_allclose(ours, exact, atol=1e-3 * exact.max())


@pytest.mark.parametrize("name", SURVEYS)
def test_every_preset_simulates_detected_galaxies(name: str) -> None:
    columns = simulate(0, 20, SURVEYS[name], neighbour_fraction=0.0)
    low, high = SURVEYS[name].magnitude_range
    assert ((columns["magnitude"] >= low) & (columns["magnitude"] <= high)).all()
    peaks = columns["image"].max(axis=(1, 2, 3))
    assert (peaks > 5 * columns["sky_noise"]).all()


# --- columns -------------------------------------------------------------------------------------------------------------


def test_columns_shapes_and_types(galaxies: dict[str, np.ndarray]) -> None:
    assert galaxies["image"].shape == (400, 1, 64, 64)
    assert galaxies["image"].dtype == np.float32
    assert galaxies["object_id"].dtype == np.int64
    assert set(sim.TARGETS) <= set(galaxies)
    scalars = {name: values for name, values in galaxies.items() if name not in ("image", "object_id")}
    assert all(values.shape == (400,) and values.dtype == np.float64 for values in scalars.values())
    assert all(np.isfinite(values).all() for values in galaxies.values())


def test_priors(galaxies: dict[str, np.ndarray]) -> None:
    radius, side = galaxies["effective_radius_arcsec"], 64 * KIDS.pixel_scale_arcsec
    assert 0.02 * side * 0.999 < radius.min() < 0.022 * side
    assert 0.09 * side < radius.max() < 0.1 * side * 1.001
    ratio = galaxies["bulge_to_total"]
    assert ratio.min() < 0.01
    assert ratio.max() > 0.99
    assert np.histogram(ratio, bins=5, range=(0, 1))[0].min() > 50
    assert np.hypot(galaxies["x_offset_pixel"], galaxies["y_offset_pixel"]).max() < 2.9
    assert galaxies["disk_axis_ratio"].min() >= 0.2


def test_magnitude_is_the_flux_at_the_zero_point(galaxies: dict[str, np.ndarray]) -> None:
    expected = KIDS.zero_point_mag - 2.5 * np.log10(galaxies["flux"])
    np.testing.assert_allclose(galaxies["magnitude"], expected, rtol=1e-12)


def test_flux_of_the_cutouts_is_the_true_flux_less_the_wings(galaxies: dict[str, np.ndarray]) -> None:
    share = galaxies["image"].sum(axis=(1, 2, 3)) / galaxies["flux"]
    assert np.median(share) == pytest.approx(0.99, abs=0.01)
    # The noise of 64 x 64 pixels, and the wings of the largest bulges.
    noise = 64 * galaxies["sky_noise"] / galaxies["flux"]
    assert (share < 1 + 5 * noise).all()
    assert (share > 0.85 - 5 * noise).all()


def test_noise_in_the_corners_is_the_sky_noise() -> None:
    columns = simulate(0, 60, cutout_size=64, neighbour_fraction=0.0)
    disks = columns["effective_radius_arcsec"] < 0.4
    corner = columns["image"][disks, 0, :10, :10] / columns["sky_noise"][disks, None, None]
    assert corner.std() == pytest.approx(1, abs=0.05)


def test_photon_noise_grows_with_the_flux() -> None:
    galaxy = make_galaxy(flux=1e5)
    model = render([galaxy], psf_fwhm_arcsec=0.7, pixel_scale_arcsec=0.2, size=32)
    expected = math.sqrt(KIDS.sky_noise**2 + model.max() / KIDS.electrons_per_flux)
    noise = [sim.add_noise(model, KIDS.sky_noise, KIDS, np.random.default_rng(seed)) - model for seed in range(300)]
    peak = np.unravel_index(model.argmax(), model.shape)
    assert np.std([image[peak] for image in noise]) == pytest.approx(expected, rel=0.15)


# --- reproducibility -----------------------------------------------------------------------------------------------------


def test_galaxies_do_not_depend_on_how_the_indices_are_divided() -> None:
    whole = simulate(0, 20, neighbour_fraction=0.5)
    pieces = [simulate(*bounds, neighbour_fraction=0.5) for bounds in ((0, 7), (7, 7), (7, 20))]
    for name, values in whole.items():
        parts = [piece[name] for piece in pieces if name in piece]
        np.testing.assert_array_equal(values, np.concatenate(parts), err_msg=name)


def test_another_seed_gives_other_galaxies() -> None:
    first, second = (simulate(0, 5, seed=seed) for seed in (0, 1))
    assert not np.isclose(first["flux"], second["flux"]).any()


def test_neighbours_come_at_the_asked_rate_and_leave_the_galaxy_as_it_is() -> None:
    without, some, always = (simulate(0, 100, neighbour_fraction=share) for share in (0.0, 0.3, 1.0))
    assert without["num_neighbours"].sum() == 0
    assert 15 < some["num_neighbours"].sum() < 45
    assert (always["num_neighbours"] == 1).all()
    np.testing.assert_array_equal(without["flux"], always["flux"])
    same = some["num_neighbours"] == 0
    np.testing.assert_array_equal(without["image"][same], some["image"][same])
    assert always["image"].sum() > without["image"].sum()
