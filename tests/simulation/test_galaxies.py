import dataclasses
import math

import galsim
import numpy as np
import pytest

from gampen_ray.config.scene import GalaxiesConfig
from gampen_ray.errors import UserError
from gampen_ray.simulation.galaxies import Galaxy, draw_galaxy, radius_range
from gampen_ray.simulation.surveys import SURVEYS
from tests.simulation.simulation_cases import make_galaxy

KIDS = SURVEYS["kids-r"]


def draw_many(count: int, side_arcsec: float = 19.2, **settings: object) -> list[Galaxy]:
    config = GalaxiesConfig(**settings)
    return [draw_galaxy(np.random.default_rng(seed), KIDS, config, side_arcsec) for seed in range(count)]


@pytest.mark.parametrize(("bulge_to_total", "radius"), [(0.0, 0.8), (1.0, 0.4)])
@pytest.mark.parametrize("indices", [(4.0, 1.0), (2.0, 0.7)])
def test_a_single_component_has_its_own_half_light_radius(
    bulge_to_total: float, radius: float, indices: tuple[float, float]
) -> None:
    galaxy = make_galaxy(bulge_to_total=bulge_to_total, bulge_sersic_index=indices[0], disk_sersic_index=indices[1])
    assert galaxy.effective_radius_arcsec == pytest.approx(radius, rel=1e-6)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_light_radius_matches_galsims_profiles(fraction: float) -> None:
    galaxy = make_galaxy(bulge_to_total=0.35)
    bulge = galsim.DeVaucouleurs(half_light_radius=0.4)
    disk = galsim.Exponential(half_light_radius=0.8)
    radius, step = np.linspace(0, galaxy.light_radius(fraction), 20_001, retstep=True)
    middle = radius[1:] - step / 2
    light = [0.35 * bulge.xValue(r, 0) + 0.65 * disk.xValue(r, 0) for r in middle]
    assert (2 * math.pi * middle * light).sum() * step == pytest.approx(fraction, abs=1e-4)


def test_concentration_of_pure_disk_and_pure_bulge() -> None:
    # The disk's curve of growth is 1 - (1 + x) exp(-x): 0.2 at x = 0.8244, 0.8 at x = 2.9943.
    assert make_galaxy(bulge_to_total=0.0).concentration == pytest.approx(5 * math.log10(2.9943 / 0.8244), abs=1e-3)
    assert make_galaxy(bulge_to_total=1.0).concentration == pytest.approx(5.27, abs=0.01)


def test_priors_fill_their_ranges_and_no_more() -> None:
    galaxies = draw_many(400)
    radius = np.array([galaxy.effective_radius_arcsec for galaxy in galaxies])
    low, high = radius_range(KIDS, GalaxiesConfig(), 19.2)
    assert high / low > 10
    assert low * 0.999 < radius.min() < 1.05 * low
    assert 0.95 * high < radius.max() < high * 1.001
    magnitude = np.array([KIDS.magnitude(galaxy.flux) for galaxy in galaxies])
    assert np.histogram(magnitude, bins=7, range=KIDS.magnitude_range)[0].min() > 30
    assert np.histogram([galaxy.bulge_to_total for galaxy in galaxies], bins=5, range=(0, 1))[0].min() > 50
    assert abs(np.corrcoef(np.log(radius), magnitude)[0, 1]) < 0.15
    assert min(galaxy.disk_axis_ratio for galaxy in galaxies) >= 0.2


@pytest.mark.parametrize("slope", [-0.15, 0.4])
def test_counts_by_magnitude_have_the_slope_that_is_given(slope: float) -> None:
    magnitude = np.array([KIDS.magnitude(galaxy.flux) for galaxy in draw_many(2000, magnitude_slope=slope)])
    counts, edges = np.histogram(magnitude, bins=7, range=KIDS.magnitude_range)
    expected = np.diff(10 ** (slope * (edges - edges[0])))
    expected *= 2000 / expected.sum()
    assert counts.sum() == 2000
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected) + 1).all()


def test_the_radius_is_the_surveys_where_the_cutout_is_large_enough() -> None:
    config = GalaxiesConfig()
    assert radius_range(KIDS, config, 100.0) == radius_range(KIDS, config, 50.0) == KIDS.radius_range_arcsec
    assert radius_range(KIDS, config, 10.0) == (0.25, 1.5)
    with pytest.raises(
        UserError, match=r"cutout_size: 1.6 arcsec hold radii to 0.24 arcsec .* begins at 0.25; give more pixels"
    ):
        radius_range(KIDS, config, 1.6)


def test_sersic_indices_are_fixed_or_free() -> None:
    assert {(galaxy.bulge_sersic_index, galaxy.disk_sersic_index) for galaxy in draw_many(20)} == {(4.0, 1.0)}
    free = draw_many(300, sersic_indices="free")
    bulges, disks = ([getattr(galaxy, f"{part}_sersic_index") for galaxy in free] for part in ("bulge", "disk"))
    assert 1.5 <= min(bulges) < 1.7
    assert 5.7 < max(bulges) <= 6
    assert 0.7 <= min(disks) < 0.75
    assert 1.45 < max(disks) <= 1.5
    # All else is as with fixed ones, but for the scale that keeps the effective radius.
    for fixed, other in zip(draw_many(20), free, strict=False):
        assert other.effective_radius_arcsec == pytest.approx(fixed.effective_radius_arcsec, rel=1e-6)
        radii = {"bulge_radius_arcsec": 1.0, "disk_radius_arcsec": 1.0}
        indices = {"bulge_sersic_index": 4.0, "disk_sersic_index": 1.0}
        assert dataclasses.replace(fixed, **radii) == dataclasses.replace(other, **radii, **indices)
