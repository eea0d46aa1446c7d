import dataclasses
import math

import galsim
import numpy as np
import pytest

from gampen_ray.errors import UserError
from gampen_ray.simulation.surveys import SURVEYS, moffat_noise_area, register_survey


def test_sky_noise_of_the_surveys() -> None:
    # KiDS DR4: 25.02 mag is 98.2e-12 maggies at 5 sigma, over 78.5 pixels.
    assert SURVEYS["kids-r"].sky_noise == pytest.approx(98.17 / 5 / math.sqrt(78.54), rel=1e-3)
    assert SURVEYS["hsc-g"].sky_noise < SURVEYS["hsc-r"].sky_noise < SURVEYS["hsc-i"].sky_noise


def test_noise_area_of_a_moffat_profile_matches_its_image() -> None:
    psf = galsim.Moffat(beta=3.5, fwhm=0.7).drawImage(nx=301, ny=301, scale=0.05, method="no_pixel").array
    area = psf.sum(dtype=np.float64) ** 2 / (psf.astype(np.float64) ** 2).sum() * 0.05**2
    assert moffat_noise_area(0.7, 3.5) == pytest.approx(area, rel=1e-3)


def test_flux_units_are_the_zero_points() -> None:
    units = pytest.importorskip("astropy.units")
    for survey in SURVEYS.values():
        unit_flux = units.Unit(survey.flux_unit)
        jansky = unit_flux.to("Jy") if unit_flux.is_equivalent("Jy") else unit_flux.to("mgy") * 3631
        assert -2.5 * math.log10(jansky / 3631) == pytest.approx(survey.zero_point_mag, abs=1e-3)


def test_a_survey_of_ones_own_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = dataclasses.replace(SURVEYS["kids-r"], name="mine-r", pixel_scale_arcsec=0.1)
    monkeypatch.setitem(SURVEYS, "mine-r", mine)  # taken back after the test
    assert register_survey(mine) is mine
    assert SURVEYS["mine-r"].pixel_scale_arcsec == 0.1
    with pytest.raises(UserError, match="survey: 'mine-r' is registered already"):
        register_survey(dataclasses.replace(mine, band="i"))
    with pytest.raises(UserError, match=r"survey: 'kid-r' is unknown; did you mean 'kids-r'\? give one of hsc-g, hsc-r, hsc-i"):
        SURVEYS["kid-r"]
