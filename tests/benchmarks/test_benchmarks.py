"""The benchmarks that measure a bundle run, on a few galaxies and a bundle that has learned nothing."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import population
import profile_fitting
import pytest
import real_cutouts
import real_galaxies
import seeds
import shifts
import tiles
import torch
from astropy.io import fits

from gampen_ray.config import ImagesConfig, NetworkConfig
from gampen_ray.config.parts import default_targets
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.model.images import Condition, ImagePreprocessing
from gampen_ray.model.network import Network
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.calibration import Calibration
from gampen_ray.posterior.prior import Prior
from gampen_ray.simulation.psf import MoffatPsf
from gampen_ray.simulation.render import render
from gampen_ray.simulation.scene import galaxy_of, simulate
from gampen_ray.simulation.surveys import SURVEYS

SIZE = 40
SURVEY = SURVEYS["kids-r"]
SCALE = SURVEY.pixel_scale_arcsec


@pytest.fixture(scope="module")
def bundle_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained bundle of the simulated targets, given the width of the PSF."""
    columns = simulate(SURVEY, cutout_size=SIZE, seed=0, start=0, stop=40)
    configs = default_targets()
    values_ND = np.stack([columns[name] for name in configs], axis=1)
    images = ImagePreprocessing.fit(
        ImagesConfig(),
        ("r",),
        columns["image"],
        zero_point_mag=SURVEY.zero_point_mag,
        pixel_scale_arcsec=SCALE,
        conditions=(Condition.fit("psf_fwhm_arcsec", columns["psf_fwhm_arcsec"]),),
    )
    torch.manual_seed(0)
    uri = str(tmp_path_factory.mktemp("bundle"))
    Bundle(
        network=Network.of(NetworkConfig(), images, 3).eval(),
        config=NetworkConfig(),
        targets=TargetSchema.fit(configs, values_ND, {}),
        images=images,
        calibration=Calibration.constant(np.ones(3)),
        metrics={},
        provenance={"date": "", "train": {}},
    ).save(uri)
    return uri


def test_shifts(bundle_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["none", "a neighbour of similar brightness", "pixels of 0.4 arcsec, resampled", "zero point -0.2 mag"]
    chosen.append("zero point +0.2 mag")
    shifts.main(shifts.parsed(["--bundle", bundle_uri, "--num-galaxies", "4", "--num-passes", "2", "--only", *chosen]))
    rows = {row["shift"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert {row["verdict"] for row in rows.values()} <= {"holds", "flagged", "fails", "not visible"}
    assert rows["zero point +0.2 mag"]["verdict"] == "not visible"
    assert rows["pixels of 0.4 arcsec, resampled"]["flagged"]["COARSE_PIXELS"] == 1
    assert list(rows) == chosen


def test_shifted_galaxies_are_the_same_ones() -> None:
    sky = shifts.the_sky(_Sized(SIZE), shifts.parsed(["--bundle", "none", "--num-galaxies", "3"]))  # type: ignore[arg-type]
    none, faint = sky.draw(), shifts.at_magnitudes(sky, sky.draw(), 23.0, 24.5)
    wide = sky.draw({"psf.fwhm_arcsec": (1.1, 1.8)})
    np.testing.assert_array_equal(wide["flux"], none["flux"])
    np.testing.assert_allclose(wide["psf_core_fwhm_arcsec"], 2 * none["psf_core_fwhm_arcsec"])
    assert (faint["magnitude"] > 22.8).all()


class _Sized:
    def __init__(self, size: int) -> None:
        self.images = self
        self.size = size


def test_real_galaxies_finds_and_fits_what_is_in_a_tile(
    bundle_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, side, psf = np.random.default_rng(0), 500, MoffatPsf(fwhm_arcsec=0.7, beta=3.0)
    tile = rng.normal(5.0, SURVEY.sky_noise, (side, side))
    half = real_cutouts.STAMP // 2
    star = render([shifts.POINT], psf=psf, pixel_scale_arcsec=SCALE, size=real_cutouts.STAMP)
    row = {"bulge_to_total": 0.3, "bulge_radius_arcsec": 0.4, "disk_radius_arcsec": 1.0, "x_offset_pixel": 0.0}
    row |= {"bulge_axis_ratio": 0.8, "disk_axis_ratio": 0.7, "bulge_position_angle_deg": 30.0, "y_offset_pixel": 0.0}
    row |= {"disk_position_angle_deg": 30.0, "bulge_sersic_index": 4.0, "disk_sersic_index": 1.0, "flux": 30000.0}
    galaxy = galaxy_of(row, SCALE)
    image = render([galaxy], psf=psf, pixel_scale_arcsec=SCALE, size=real_cutouts.STAMP)
    for i in range(16):
        y, x = 60 + 120 * (i // 4), 60 + 120 * (i % 4)
        tile[y - half : y + half + 1, x - half : x + half + 1] += image if i in (5, 10) else 20000 * star
    fits.PrimaryHDU(tile.astype(np.float32)).writeto(tmp_path / "tile.fits")
    command = ["--bundle", bundle_uri, "--tile", str(tmp_path / "tile.fits"), "--zero-point", "30", "--pixel-scale", str(SCALE)]
    real_galaxies.main(real_galaxies.parsed([*command, "--num-passes", "2"]))
    rows = json.loads(capsys.readouterr().out)["tile"]["galaxies"]
    assert sorted(row["name"] for row in rows) == ["180,180", "300,300"]
    for row in rows:
        for name, truth in (("flux", galaxy.flux), ("effective_radius_arcsec", galaxy.effective_radius_arcsec)):
            assert row["fit"]["value"][name] == pytest.approx(truth, rel=0.05)
        assert row["psf"]["psf_fwhm_arcsec"] == pytest.approx(psf.sizes(SCALE).fwhm_arcsec, rel=0.03)


def test_seeds(bundle_uri: str) -> None:
    bundle = load_bundle(bundle_uri)
    columns = simulate(SURVEY, cutout_size=SIZE, seed=2, start=0, stop=8)
    conditions = torch.from_numpy(np.stack([columns[name] for name in bundle.images.condition_names], axis=1))
    inputs = bundle.images.inputs(torch.from_numpy(columns["image"]), conditions)
    found = seeds.differences(bundle, inputs, [17, 289])
    # Of the median galaxy and the median pair of seeds.
    assert 0 < found["289"]["std"][0] < found["17"]["std"][0]


def test_tiles_are_cut_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_BRICK", 300)
    monkeypatch.setattr(tiles, "_SOURCES", 50)
    tiles.write_brick(tmp_path)
    found = tiles.rate(tmp_path, 24)
    assert found["cutouts_per_s"] > 0
    assert 0 < found["share_of_decompression"] < 2


def test_population(
    bundle_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"made_by": {"survey": "kids-r", "scene": {}, "cutout_size": SIZE}, "survey": "kids-r"}
    bundle, rng = load_bundle(bundle_uri), np.random.default_rng(0)
    flux = SURVEY.flux(rng.uniform(16, 23, 5_000))
    values_ND = np.stack([rng.beta(0.8, 0.8, 5_000), np.exp(rng.uniform(-1.3, 0.2, 5_000)), flux], axis=1)
    values_ND = values_ND[
        :, [("bulge_to_total", "effective_radius_arcsec", "flux").index(name) for name in bundle.targets.names]
    ]
    bundle = dataclasses.replace(bundle, prior=Prior.fit(values_ND, bundle.targets), provenance={"dataset": made})
    bundle.save(str(tmp_path / "bundle"))
    monkeypatch.setattr(population, "MIN_GALAXIES", 1)
    arguments = [str(tmp_path / "work"), "--bundle", str(tmp_path / "bundle"), "--num-galaxies", "20", "--num-passes", "2"]
    for _ in range(2):
        # The second time from the folder.
        population.main(population.parsed([*arguments, "--limits", "24"]))
        result = json.loads(capsys.readouterr().out)["limits"]["24"]
        assert result["num_galaxies"] == 20
        found = result["bulge_to_total"]
        assert sum(found["hierarchical"]) == pytest.approx(1)
        assert sum(found["truth"]) == pytest.approx(1)
        assert found["degrees_of_freedom"] == 6
        assert len(result["size_luminosity"]["scatter"]["truth"]) == len(result["size_luminosity"]["bins"])
    assert len(list((tmp_path / "work").iterdir())) == 1


def test_deviations_are_in_units_of_the_errors() -> None:
    draws = np.random.default_rng(0).multivariate_normal([1.0, 2.0], [[0.04, 0.03], [0.03, 0.09]], 200_000)
    found = population.compared(np.array([1.2, 2.0]), draws, np.array([1.0, 2.9]))
    assert found["hierarchical_pull"] == pytest.approx([-1, 0], abs=0.02)
    assert found["naive_pull"] == pytest.approx([-1, 3], abs=0.03)
    assert found["hierarchical_chi2"] == pytest.approx(0.04 * 0.09 / (0.04 * 0.09 - 0.03**2), rel=0.02)
    # Shares, of which the last is known from the others.
    share = np.stack([draws[:, 0] / 10, 1 - draws[:, 0] / 10], axis=1)
    assert population.compared(np.array([0.12, 0.88]), share, np.array([0.1, 0.9]))["naive_chi2"] == pytest.approx(1, rel=0.02)


def test_pixels_of_other_sources_are_left_out_of_a_fit() -> None:
    y, x = np.mgrid[:41, :41] - 20
    own, other = (100 * np.exp(-((x - dx) ** 2 + y**2) / 2 / 2.5**2) for dx in (0, 11))
    image = own + other + np.random.default_rng(0).normal(0, 0.5, own.shape)
    masked = real_cutouts.others(image, 0.5)
    assert masked[20, 31]
    assert not masked[20, 22]
    assert not masked[20, :20].any()
    assert not real_cutouts.others(own, 0.5).any()


def test_profile_fits_are_judged_by_their_errors() -> None:
    rng, count = np.random.default_rng(1), 4000
    truth_ND = np.stack([np.full(count, 1e4), np.full(count, 0.8), np.full(count, 0.4)], axis=1)
    error_ND = truth_ND * [0.02, 0.05, 0.1]
    value_ND = truth_ND + 2 * error_ND * rng.standard_normal((count, 3))
    result = (value_ND, np.stack([value_ND - error_ND, value_ND + error_ND], axis=1), error_ND, 0.1)
    rows = profile_fitting.judged(result, truth_ND, error_ND, np.arange(count))
    assert [row["target"] for row in rows] == ["ln flux", "ln effective_radius_arcsec", "bulge_to_total"]
    for row, scatter in zip(rows, (0.04, 0.1, 0.08), strict=True):
        assert row["scatter"] == pytest.approx(scatter, rel=0.06)
        assert row["stated_error"] == pytest.approx(scatter / 2, rel=0.03)
        assert row["pull_scatter"] == pytest.approx(2, rel=0.06)
        assert row["coverage_68"] == pytest.approx(0.383, abs=0.03)
    # A single Sersic profile has no B/T.
    value_ND[:, 2] = np.nan
    assert len(profile_fitting.judged(result, truth_ND, error_ND, np.arange(count))) == 2
    columns = simulate(SURVEY, cutout_size=SIZE, seed=0, start=0, stop=2)
    cutout = profile_fitting.cutout_of({name: column[0] for name, column in columns.items()}, SURVEY)
    assert cutout.image.shape == cutout.sigma.shape == (SIZE, SIZE)
    (value_ND, interval_N2D, _, seconds) = profile_fitting.fits(
        [cutout], lambda one: profile_fitting.fit_model(one, 0.3, single=False)
    )
    assert (interval_N2D[:, 0] <= value_ND).all()
    assert seconds > 0
    assert set(profile_fitting.bins({"neighbour_flux_fraction": np.array([0, 0.5]), "magnitude": np.array([17.0, 17.0])})) == {
        "16-18 isolated",
        "all isolated",
        "16-18 neighbours",
        "all neighbours",
    }
