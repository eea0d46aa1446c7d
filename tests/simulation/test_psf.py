import math

import numpy as np
import pytest

from gampen_ray.simulation.psf import APERTURE_PIXELS, MoffatPsf, StampPsf, grid_of, measure_psf
from tests.simulation.simulation_cases import WINGED, star

SCALE = 0.2
ROUND = MoffatPsf(fwhm_arcsec=0.7, beta=2.5)


def test_fwhm_without_pixel_is_the_moffats_own() -> None:
    # Pixels of a hundredth of an arcsecond change a width of 0.7 by less than 1e-3.
    assert ROUND.sizes(0.02).fwhm_arcsec == pytest.approx(0.7, rel=2e-3)


def test_encircled_energy_is_the_closed_form() -> None:
    scale_radius = 0.7 / (2 * math.sqrt(2 ** (1 / 2.5) - 1))

    def radius(share: float) -> float:
        return scale_radius * math.sqrt((1 - share) ** (1 / (1 - 2.5)) - 1)

    within = 1 - (1 + (0.05 * APERTURE_PIXELS / scale_radius) ** 2) ** (1 - 2.5)
    sizes = ROUND.sizes(0.05)
    assert sizes.r50_arcsec == pytest.approx(radius(0.5 * within), rel=5e-3)
    assert sizes.r80_arcsec == pytest.approx(radius(0.8 * within), rel=5e-3)
    assert sizes.r95_arcsec == pytest.approx(radius(0.95 * within), rel=2e-3)


@pytest.mark.parametrize("psf", [ROUND, WINGED])
def test_sizes_are_those_of_galsims_star(psf: MoffatPsf) -> None:
    fine = star(psf, 15 * 121, SCALE / 15, aperture_scale=SCALE, method="no_pixel")
    # The pixel: a moving mean over its side.
    kernel = np.ones(15) / 15
    fine = np.apply_along_axis(np.convolve, 0, np.apply_along_axis(np.convolve, 1, fine, kernel, "same"), kernel, "same")
    y, x = (np.indices(fine.shape) - len(fine) // 2) * SCALE / 15
    order = np.argsort(np.hypot(x, y), axis=None)
    radius, light = np.hypot(x, y).ravel()[order], np.cumsum(fine.ravel()[order])
    total = np.interp(APERTURE_PIXELS * SCALE, radius, light)
    sizes = psf.sizes(SCALE)
    assert sizes.r50_arcsec == pytest.approx(np.interp(0.5 * total, light, radius), rel=5e-3)
    assert sizes.r80_arcsec == pytest.approx(np.interp(0.8 * total, light, radius), rel=5e-3)
    assert sizes.r95_arcsec == pytest.approx(np.interp(0.95 * total, light, radius), rel=5e-3)
    area = (fine >= fine.max() / 2).sum() * (SCALE / 15) ** 2
    assert sizes.fwhm_arcsec == pytest.approx(2 * math.sqrt(area / math.pi), rel=0.01)


@pytest.mark.parametrize("psf", [ROUND, WINGED])
def test_a_star_measures_as_the_profile_does(psf: MoffatPsf) -> None:
    measured, expected = measure_psf(100 * star(psf), SCALE), psf.sizes(SCALE)
    assert measured.fwhm_arcsec == pytest.approx(expected.fwhm_arcsec, rel=5e-3)
    assert measured.r50_arcsec == pytest.approx(expected.r50_arcsec, rel=5e-3)
    assert measured.r80_arcsec == pytest.approx(expected.r80_arcsec, rel=0.01)
    assert measured.r95_arcsec == pytest.approx(expected.r95_arcsec, rel=0.01)
    assert StampPsf(stamp=star(psf)).sizes(SCALE) == measure_psf(star(psf), SCALE)


def test_a_star_need_not_be_centred() -> None:
    centred = measure_psf(star(WINGED), SCALE)
    moved = measure_psf(star(WINGED, offset=(0.37, -1.2)), SCALE)
    assert moved.fwhm_arcsec == pytest.approx(centred.fwhm_arcsec, rel=2e-3)
    assert moved.r80_arcsec == pytest.approx(centred.r80_arcsec, rel=5e-3)


def test_wings_widen_r80_more_than_the_fwhm() -> None:
    bare, winged = (MoffatPsf(fwhm_arcsec=0.7, beta=3.5, wing_fraction=w, wing_fwhm_arcsec=3.5).sizes(SCALE) for w in (0, 0.1))
    assert winged.fwhm_arcsec / bare.fwhm_arcsec < 1.02
    assert winged.r80_arcsec / bare.r80_arcsec > 1.1


@pytest.mark.parametrize("psf", [ROUND, WINGED, MoffatPsf(fwhm_arcsec=0.8, beta=1.6, wing_fraction=0.3, wing_fwhm_arcsec=5)])
def test_the_aperture_holds_unit_light(psf: MoffatPsf) -> None:
    # Of a wide image, as light beyond its edges returns on the other side.
    size = 601
    image = np.fft.fftshift(np.fft.irfft2(psf.transform(grid_of(size, SCALE), SCALE), s=(size, size)))
    y, x = np.indices(image.shape) - size // 2
    # Pixels at the circle's edge hold a few 1e-4 of the light.
    assert image[np.hypot(x, y) <= APERTURE_PIXELS].sum() == pytest.approx(1, abs=2e-3)
    assert image.sum() == pytest.approx(1 / (1 - psf.light_beyond(APERTURE_PIXELS * SCALE)), rel=1e-6)
    stamp = StampPsf.of(5 * image[250:351, 250:351])
    np.testing.assert_allclose(stamp.stamp, image[250:351, 250:351], rtol=2e-3)


def test_undersampled_pixels_are_divided() -> None:
    assert MoffatPsf(fwhm_arcsec=0.7, beta=3.5).oversampling(SCALE) == 1
    assert MoffatPsf(fwhm_arcsec=0.3, beta=3.5).oversampling(SCALE) == 2
    assert MoffatPsf(fwhm_arcsec=0.15, beta=3.5).oversampling(SCALE) == 4
