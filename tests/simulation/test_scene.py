import dataclasses
from pathlib import Path

import numpy as np
import pytest

from gampen_ray.config.scene import (
    GalaxiesConfig,
    MasksConfig,
    NeighboursConfig,
    NoiseConfig,
    PsfConfig,
    SceneConfig,
)
from gampen_ray.errors import UserError
from gampen_ray.simulation import neighbours
from gampen_ray.simulation.galaxies import TARGETS
from gampen_ray.simulation.inputs import read_inputs
from gampen_ray.simulation.render import Sources
from gampen_ray.simulation.scene import render_row, simulate
from gampen_ray.simulation.surveys import SURVEYS
from tests.simulation.simulation_cases import WINGED, make_galaxy, star

KIDS = SURVEYS["kids-r"]
ALONE = NeighboursConfig(galaxies=0, stars=0)
BARE = SceneConfig(
    neighbours=ALONE,
    noise=NoiseConfig(sky=(0, 0), photons=False, correlation=(0, 0), sky_level=0, sky_gradient=0),
    masks=MasksConfig(probability=0),
    galaxies=GalaxiesConfig(offset_pixel=0),
    psf=PsfConfig(ellipticity=0, wing_fraction=(0, 0)),
)
COSMOS = Path(__file__).parents[3] / "shared" / "data" / "cosmos" / "real_galaxy_catalog_23.5_example_fits.fits"


def make(count: int, scene: SceneConfig | None = None, *, start: int = 0, size: int = 32, **changes: object) -> dict:
    return simulate(KIDS, scene, **{"cutout_size": size, "seed": 0, "start": start, "stop": start + count} | changes)


def row(columns: dict[str, np.ndarray], place: int) -> dict[str, float]:
    return {name: values[place] for name, values in columns.items() if values.ndim == 1}


@pytest.fixture(scope="module")
def galaxies() -> dict[str, np.ndarray]:
    return make(200, size=48)


# --- columns -------------------------------------------------------------------------------------------------------------


def test_columns_shapes_and_types(galaxies: dict[str, np.ndarray]) -> None:
    assert galaxies["image"].shape == (200, 1, 48, 48)
    assert galaxies["image"].dtype == np.float32
    assert galaxies["object_id"].dtype == np.int64
    assert set(TARGETS) <= set(galaxies)
    scalars = {name: values for name, values in galaxies.items() if name not in ("image", "object_id")}
    assert all(values.shape == (200,) and values.dtype == np.float64 for values in scalars.values())
    assert all(np.isfinite(values).all() for values in galaxies.values())


def test_magnitude_is_the_flux_at_the_zero_point(galaxies: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(galaxies["magnitude"], 30 - 2.5 * np.log10(galaxies["flux"]), rtol=1e-12)


@pytest.mark.parametrize("name", SURVEYS)
def test_every_preset_simulates_galaxies_to_where_detection_ends(name: str) -> None:
    columns = simulate(SURVEYS[name], BARE, cutout_size=64, seed=0, start=0, stop=60)
    low, high = SURVEYS[name].magnitude_range
    assert ((columns["magnitude"] >= low) & (columns["magnitude"] <= high)).all()
    # Signal to noise of the best linear filter in white sky noise.
    significance = np.sqrt((columns["image"] ** 2).sum(axis=(1, 2, 3))) / SURVEYS[name].sky_noise
    assert significance.min() > 5
    assert significance.min() < 60


def test_a_bare_scene_is_the_galaxy_of_its_columns() -> None:
    columns = make(6, BARE, size=64)
    for place in range(6):
        expected = render_row(row(columns, place), pixel_scale_arcsec=0.2, size=64)
        np.testing.assert_allclose(columns["image"][place, 0], expected, atol=1e-6 * expected.max())
    absent = ["psf_e1", "psf_e2", "psf_wing_fraction", "x_offset_pixel", "y_offset_pixel", "sky_noise", "noise_correlation"]
    absent += ["sky_level", "sky_gradient_x", "sky_gradient_y", "num_neighbours", "num_stars", "neighbour_flux_fraction"]
    for name in (*absent, "masked_fraction"):
        assert (columns[name] == 0).all(), name


def test_the_model_of_a_full_scene_leaves_noise_alone() -> None:
    scene = SceneConfig(neighbours=ALONE, masks=MasksConfig(probability=0), noise=NoiseConfig(photons=False, sky_gradient=0))
    columns = make(30, scene, size=48)
    for place in range(30):
        one = row(columns, place)
        rest = columns["image"][place, 0] - render_row(one, pixel_scale_arcsec=0.2, size=48) - one["sky_level"]
        assert rest.std() == pytest.approx(one["sky_noise"], rel=0.1)
        lag = 0.5 * ((rest[1:] * rest[:-1]).mean() + (rest[:, 1:] * rest[:, :-1]).mean()) / rest.var()
        assert lag == pytest.approx(one["noise_correlation"], abs=0.06)


def test_photon_noise_grows_with_the_flux() -> None:
    scene = SceneConfig(neighbours=ALONE, masks=MasksConfig(probability=0), noise=NoiseConfig(correlation=(0, 0), sky_level=0))
    columns = make(150, scene)
    pulls = []
    for place in range(150):
        model = render_row(row(columns, place), pixel_scale_arcsec=0.2, size=32)
        bright = model > 100 * KIDS.sky_noise
        sigma = np.sqrt(columns["sky_noise"][place] ** 2 + model / KIDS.electrons_per_flux)
        pulls.append(((columns["image"][place, 0] - model) / sigma)[bright])
    assert np.concatenate(pulls).std() == pytest.approx(1, abs=0.03)
    assert len(np.concatenate(pulls)) > 1000


# --- ingredients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"neighbours": ALONE}, {"num_neighbours", "num_stars", "neighbour_flux_fraction"}),
        ({"neighbours": NeighboursConfig(companions=1.0)}, {"num_neighbours", "neighbour_flux_fraction"}),
        ({"masks": MasksConfig(probability=1.0)}, {"masked_fraction"}),
        ({"noise": NoiseConfig(photons=False)}, set()),
        ({"noise": NoiseConfig(sky_level=0, sky_gradient=0)}, {"sky_level", "sky_gradient_x", "sky_gradient_y"}),
        ({"noise": NoiseConfig(correlation=(0, 0))}, {"noise_correlation"}),
        ({"galaxies": GalaxiesConfig(offset_pixel=0)}, {"x_offset_pixel", "y_offset_pixel", "neighbour_flux_fraction"}),
    ],
    ids=["neighbours", "companions", "masks", "photons", "sky", "correlation", "offset"],
)
def test_turning_one_ingredient_off_leaves_the_others(change: dict, touched: set[str]) -> None:
    before, after = make(40, size=64), make(40, SceneConfig(**change), size=64)
    differing = {name for name in before if name != "image" and not np.array_equal(before[name], after[name])}
    assert differing == touched
    assert not np.array_equal(before["image"], after["image"])


def test_counts_have_their_slope_and_density() -> None:
    rng = np.random.default_rng(0)
    side = 60 * np.sqrt(400) - 6  # 400 arcmin^2 with the margin
    magnitude, x, y = neighbours._draw_positions(rng, 10.0, 0.38, 16.0, 25.0, side)
    assert len(x) == pytest.approx(4000, abs=4 * 63)
    assert magnitude.min() > 16
    assert magnitude.max() < 25
    counts = [(magnitude < limit).sum() for limit in (23, 25)]
    assert np.log10(counts[1] / counts[0]) / 2 == pytest.approx(0.38, abs=0.03)
    assert np.histogram2d(x, y, bins=2)[0].min() > 900


def test_neighbours_come_at_the_surveys_density() -> None:
    columns = make(300, size=64)
    area = (64 * 0.2 / 60) ** 2
    expected = {"num_neighbours": 12 * 10**0.38 * area, "num_stars": 0.8 * 10 ** (0.2 * 4) * area}
    for name, mean in expected.items():
        assert columns[name].mean() == pytest.approx(mean, abs=4 * np.sqrt(mean / 300)), name
    alone = (columns["num_neighbours"] == 0) & (columns["num_stars"] == 0)
    assert columns["neighbour_flux_fraction"][alone].mean() < columns["neighbour_flux_fraction"][~alone].mean()


def test_companions_are_as_bright_as_their_galaxies_and_not_on_top_of_them() -> None:
    paired = dataclasses.replace(BARE, neighbours=dataclasses.replace(ALONE, companions=1.0))
    alone, columns = make(60, BARE, size=96), make(60, paired, size=96)
    assert (columns["num_neighbours"] <= 1).all()
    assert columns["num_neighbours"].mean() > 0.7
    light_NHW = (columns["image"] - alone["image"])[:, 0].astype(np.float64)
    ratio_N = light_NHW.sum((1, 2)) / columns["flux"]
    # Wings beyond the cutout are lost; none is brighter than galaxies of the survey.
    assert (ratio_N < 10**0.401).all()
    assert (ratio_N * columns["flux"] < KIDS.flux(KIDS.magnitude_range[0]) * 1.001).all()
    assert 0.4 < np.median(ratio_N) < 1.3
    place = (np.arange(96) - 47.5) * KIDS.pixel_scale_arcsec
    distances_HW = np.hypot(place, place[:, None])
    brightest_N = light_NHW.reshape(60, -1).argmax(1)
    exclusion_N = np.maximum(columns["effective_radius_arcsec"], 1.5 * columns["psf_fwhm_arcsec"])
    assert (distances_HW.ravel()[brightest_N] > exclusion_N - 2 * KIDS.pixel_scale_arcsec).all()


def test_a_brighter_source_keeps_its_distance_and_a_fainter_one_need_not() -> None:
    count = 5
    zero, round_ = np.zeros(count), np.zeros((2, count))
    sources = Sources(
        flux=np.array([2.0, 2.0, 0.5, 100.0, 100.0]),
        bulge_to_total=zero,
        bulge_radius_arcsec=zero,
        disk_radius_arcsec=zero,
        bulge_shear=round_,
        disk_shear=round_,
        x_arcsec=np.array([0.5, 1.5, 0.1, 2.9, 3.1]),
        y_arcsec=zero,
        knot_fraction=zero,
        knot_seed=zero,
    )
    kept = neighbours._not_dominant(sources, make_galaxy(flux=1.0), 1.0)
    assert kept.x_arcsec.tolist() == [1.5, 0.1, 3.1]


def test_masked_pixels_are_zero_if_asked() -> None:
    scene = SceneConfig(masks=MasksConfig(probability=1.0, fill="zero"))
    columns = make(20, scene)
    zero = (columns["image"] == 0).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(zero, columns["masked_fraction"])
    assert zero.max() > 0.01


# --- files of the user ---------------------------------------------------------------------------------------------------


def test_psf_stamps_of_the_user(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", 3 * star(WINGED, 41))
    np.save(tmp_path / "b.npy", star(WINGED, 41).T)
    scene = SceneConfig(psf=PsfConfig(stamps=str(tmp_path)), neighbours=ALONE, noise=NoiseConfig(sky=(0, 0), photons=False))
    inputs = read_inputs(scene)
    columns = make(20, scene, inputs=inputs)
    assert set(columns["psf_stamp"]) == {0.0, 1.0}
    assert "psf_beta" not in columns
    assert columns["psf_fwhm_arcsec"][0] == pytest.approx(WINGED.sizes(0.2).fwhm_arcsec, rel=5e-3)
    for place in range(3):
        expected = render_row(row(columns, place), pixel_scale_arcsec=0.2, size=32, inputs=inputs)
        if columns["masked_fraction"][place] == 0:
            np.testing.assert_allclose(columns["image"][place, 0], expected, atol=1e-6 * expected.max())
    np.save(tmp_path / "b.npy", star(WINGED, 43))
    assert read_inputs(scene).fingerprints.keys() == inputs.fingerprints.keys() == {"scene.psf.stamps"}
    assert read_inputs(scene).fingerprints != inputs.fingerprints


@pytest.mark.parametrize(
    ("images", "match"),
    [
        ([], "holds no .npy or FITS file; give a folder of images"),
        ([np.ones((4, 5))], r"has even sides \(4, 5\)"),
        ([np.ones((1, 3, 5, 5))], "not 1 band of height x width"),
        ([-np.ones((5, 5))], "no flux"),
    ],
)
def test_stamps_that_cannot_be_used_are_refused(tmp_path: Path, images: list, match: str) -> None:
    for place, image in enumerate(images):
        np.save(tmp_path / f"{place}.npy", image)
    with pytest.raises(UserError, match=f"scene.psf.stamps: .*{match}"):
        read_inputs(SceneConfig(psf=PsfConfig(stamps=str(tmp_path))))


def test_noise_correlation_of_blank_cutouts(tmp_path: Path) -> None:
    # Galaxies of 30 mag leave the noise alone.
    blank = SceneConfig(neighbours=ALONE, noise=NoiseConfig(correlation=(0.2, 0.2)), masks=MasksConfig(probability=0))
    survey = dataclasses.replace(KIDS, magnitude_range=(30, 31))
    for place, image in enumerate(simulate(survey, blank, cutout_size=64, seed=0, start=0, stop=40)["image"]):
        np.save(tmp_path / f"{place}.npy", image)
    scene = SceneConfig(noise=NoiseConfig(blank_cutouts=str(tmp_path)))
    found = make(3, scene, inputs=read_inputs(scene))["noise_correlation"]
    assert found == pytest.approx(0.2, abs=0.02)
    np.save(tmp_path / "0.npy", np.zeros((64, 64)))
    with pytest.raises(UserError, match=r"scene.noise.blank_cutouts: .*0.npy holds no noise"):
        read_inputs(scene)


@pytest.mark.skipif(not COSMOS.exists(), reason="the COSMOS table (../shared/data/cosmos) is not here")
def test_galaxies_of_a_catalogue_are_drawn_jointly() -> None:
    scene = SceneConfig(galaxies=GalaxiesConfig(catalog=str(COSMOS)))
    inputs = read_inputs(scene)
    assert inputs.galaxies is not None
    columns = make(300, scene, size=96, inputs=inputs)
    ratio = np.unique(columns["bulge_to_total"])
    assert 10 < len(ratio) <= 100
    assert set(ratio) <= set(inputs.galaxies["bulge_to_total"])
    assert columns["magnitude"].max() <= 23
    # Faint galaxies are small.
    assert np.corrcoef(columns["magnitude"], np.log(columns["effective_radius_arcsec"]))[0, 1] < -0.3


def test_a_file_that_is_no_table_of_fits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.fits").write_text("thesis")
    with pytest.raises(UserError, match=r"scene.galaxies.catalog: .*notes.fits is no table of COSMOS fits"):
        read_inputs(SceneConfig(galaxies=GalaxiesConfig(catalog=str(tmp_path / "notes.fits"))))


@pytest.mark.parametrize(
    ("section", "values", "match"),
    [
        (NoiseConfig, {"correlation": (0.3, 0.1)}, r"correlation is \[0.3, 0.1\]; give two values in order within \[0, 0.5\]"),
        (NoiseConfig, {"sky": (0.0, 1.0)}, r"sky is \[0, 1\]; give a smallest value above 0"),
        (PsfConfig, {"beta": (1.0, 3.0)}, r"beta is \[1, 3\]"),
        (PsfConfig, {"fwhm_arcsec": (0.0, 1.0)}, r"fwhm_arcsec is \[0, 1\]"),
    ],
)
def test_ranges_are_checked(section: type, values: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        section(**values)


# --- reproducibility -----------------------------------------------------------------------------------------------------


def test_galaxies_do_not_depend_on_how_the_indices_are_divided() -> None:
    whole = make(20)
    pieces = [make(stop - start, start=start) for start, stop in ((0, 7), (7, 7), (7, 20))]
    for name, values in whole.items():
        parts = [piece[name] for piece in pieces if name in piece]
        np.testing.assert_array_equal(values, np.concatenate(parts), err_msg=name)


def test_another_seed_gives_other_galaxies() -> None:
    first, second = (make(5, seed=seed) for seed in (0, 1))
    assert not np.isclose(first["flux"], second["flux"]).any()
