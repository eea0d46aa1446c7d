import dataclasses
import math

import galsim
import numpy as np
import pytest

from gampen_ray.config.scene import GalaxiesConfig
from gampen_ray.simulation.galaxies import Galaxy, draw_galaxy
from gampen_ray.simulation.psf import MoffatPsf, StampPsf
from gampen_ray.simulation.render import STAMP, Sources, render, render_faint, render_sources
from gampen_ray.simulation.surveys import SURVEYS
from tests.simulation.simulation_cases import galsims, make_galaxy

KIDS = SURVEYS["kids-r"]
PSF = MoffatPsf(fwhm_arcsec=0.6, beta=3.5)
GEOMETRY = {"psf": PSF, "pixel_scale_arcsec": 0.2, "size": 64}


def by_galsim(galaxy: Galaxy, psf: MoffatPsf, scale: float, size: int) -> np.ndarray:
    accuracy = galsim.GSParams(folding_threshold=1e-3, maxk_threshold=1e-4, stepk_minimum_hlr=10, maximum_fft_size=8192)
    parts = []
    for part, share in (("bulge", galaxy.bulge_to_total), ("disk", 1 - galaxy.bulge_to_total)):
        index, radius = getattr(galaxy, f"{part}_sersic_index"), getattr(galaxy, f"{part}_radius_arcsec")
        profile = galsim.Sersic(index, half_light_radius=radius, flux=share * galaxy.flux, gsparams=accuracy)
        angle = getattr(galaxy, f"{part}_position_angle_deg") * galsim.degrees
        parts.append(profile.shear(q=getattr(galaxy, f"{part}_axis_ratio"), beta=angle))
    scene = galsim.Sum(parts).shift(galaxy.x_offset_arcsec, galaxy.y_offset_arcsec)
    whole = galsim.Convolve(scene, galsims(psf, scale, accuracy), gsparams=accuracy)
    return whole.drawImage(nx=size, ny=size, scale=scale, dtype=float).array


@pytest.mark.parametrize(
    ("psf", "indices"),
    [
        (PSF, "fixed"),
        (MoffatPsf(fwhm_arcsec=0.55, beta=2.0, e1=0.06, e2=-0.04), "fixed"),
        (MoffatPsf(fwhm_arcsec=0.4, beta=3.0, e1=-0.03), "fixed"),
        (MoffatPsf(fwhm_arcsec=0.7, beta=2.5, wing_fraction=0.08, wing_fwhm_arcsec=3.0), "free"),
        (MoffatPsf(fwhm_arcsec=0.9, beta=1.8, wing_fraction=0.15, wing_fwhm_arcsec=7.0), "fixed"),
        (MoffatPsf(fwhm_arcsec=0.5, beta=18.0, wing_fraction=0.45, wing_fwhm_arcsec=0.8), "fixed"),
    ],
)
def test_images_are_galsims(psf: MoffatPsf, indices: str) -> None:
    for seed in range(3):
        galaxy = draw_galaxy(np.random.default_rng(seed), KIDS, GalaxiesConfig(sersic_indices=indices), 12.8)
        galaxy = dataclasses.replace(galaxy, flux=1.0, x_offset_arcsec=0.13, y_offset_arcsec=-0.31)
        ours = render([galaxy], psf=psf, pixel_scale_arcsec=0.2, size=64)
        exact = by_galsim(galaxy, psf, 0.2, 64)
        assert ours.sum() == pytest.approx(exact.sum(), abs=2e-3)
        np.testing.assert_allclose(ours, exact, atol=2e-3 * exact.max())


def test_half_the_light_lies_within_the_effective_radius() -> None:
    galaxy = make_galaxy(
        bulge_to_total=0.3, bulge_axis_ratio=0.5, disk_axis_ratio=0.5, bulge_radius_arcsec=8, disk_radius_arcsec=16
    )
    image = render([galaxy], psf=PSF, pixel_scale_arcsec=0.4, size=301)
    y, x = (np.indices(image.shape) - 150) * 0.4
    # The ellipse through (x, y) has semi-axes a and q a; its circularised radius is sqrt(q) a.
    radius = np.hypot(x * math.sqrt(0.5), y / math.sqrt(0.5))
    assert image[radius < galaxy.effective_radius_arcsec].sum() == pytest.approx(0.5 * galaxy.flux, rel=0.01)


@pytest.mark.parametrize("size", [32, 61, 64])
def test_a_compact_disk_has_all_its_flux_in_the_cutout(size: int) -> None:
    galaxy = make_galaxy(bulge_to_total=0.0, disk_radius_arcsec=0.3)
    # A Moffat profile with index 3.5 keeps 2e-5 of its light beyond 6.4 arcsec, 7e-4 beyond 3.2.
    assert render([galaxy], **GEOMETRY | {"size": size}).sum() == pytest.approx(galaxy.flux, rel=2e-3)


def test_components_add() -> None:
    parts = [render([make_galaxy(bulge_to_total=ratio)], **GEOMETRY) for ratio in (0.0, 0.3, 1.0)]
    np.testing.assert_allclose(parts[1], 0.7 * parts[0] + 0.3 * parts[2], atol=2e-3 * parts[1].max())
    both = render([make_galaxy(bulge_to_total=ratio) for ratio in (0.0, 1.0)], **GEOMETRY)
    np.testing.assert_allclose(both, parts[0] + parts[2], atol=2e-3 * parts[1].max())


def test_position_angle_turns_counter_clockwise_from_the_x_axis() -> None:
    galaxy = make_galaxy(bulge_to_total=0.0, disk_radius_arcsec=2.0, disk_axis_ratio=0.3, disk_position_angle_deg=30.0)
    image = render([galaxy], psf=PSF, pixel_scale_arcsec=0.2, size=101)
    y, x = np.indices(image.shape) - 50
    angle = 0.5 * math.atan2(2 * (image * x * y).sum(), (image * (x**2 - y**2)).sum())
    assert math.degrees(angle) == pytest.approx(30, abs=0.5)


def test_offsets_move_the_centroid() -> None:
    galaxy = make_galaxy(bulge_to_total=0.0, disk_radius_arcsec=0.4, x_offset_arcsec=0.3, y_offset_arcsec=-0.2)
    image = render([galaxy], **GEOMETRY)
    y, x = np.indices(image.shape) - 31.5
    assert (image * x).sum() / image.sum() == pytest.approx(1.5, abs=0.01)
    assert (image * y).sum() / image.sum() == pytest.approx(-1.0, abs=0.01)


def test_a_stamp_of_the_psf_gives_the_same_image() -> None:
    point = make_galaxy(bulge_to_total=0.0, disk_radius_arcsec=1e-4, flux=1.0)
    stamp = render([point], psf=PSF, pixel_scale_arcsec=0.2, size=61)
    galaxy = make_galaxy(x_offset_arcsec=0.07)
    expected = render([galaxy], **GEOMETRY)
    found = render([galaxy], **GEOMETRY | {"psf": StampPsf.of(7 * stamp)})
    np.testing.assert_allclose(found, expected, atol=5e-3 * expected.max())


def test_faint_sources_on_stamps_are_as_on_the_whole_box() -> None:
    count, rng = 12, np.random.default_rng(0)
    sources = Sources(
        flux=rng.uniform(1, 2, count),
        bulge_to_total=rng.uniform(0, 1, count),
        bulge_radius_arcsec=np.full(count, 0.2),
        disk_radius_arcsec=np.where(np.arange(count) % 3, 0.4, 0.0),
        bulge_shear=rng.uniform(-0.2, 0.2, (2, count)),
        disk_shear=rng.uniform(-0.2, 0.2, (2, count)),
        x_arcsec=rng.uniform(-12, 12, count),
        y_arcsec=rng.uniform(-12, 12, count),
        knot_fraction=np.where(np.arange(count) % 3 == 1, 0.5, 0.0),
        knot_seed=np.arange(count),
    )
    sources = dataclasses.replace(sources, bulge_to_total=np.where(sources.disk_radius_arcsec > 0, sources.bulge_to_total, 0.0))
    whole = render_sources(sources, PSF, 0.2, 96, 256)
    stamps = render_faint(sources, PSF, 0.2, 96)
    np.testing.assert_allclose(stamps, whole, atol=2e-3 * whole.max())
    far = dataclasses.replace(sources, x_arcsec=sources.x_arcsec + 0.2 * (STAMP + 120))
    assert (render_faint(far, PSF, 0.2, 96) == 0).all()
