import astropy.units as u
import numpy as np
import pytest

from gampen_ray.data.units import fits_unit, is_flux, quantity_ucd, shown_unit, standard_unit, vo_unit


@pytest.mark.parametrize(
    ("unit", "standard", "vo", "fits", "ucd"),
    [
        ("1e-12 mgy", "3.631 nJy", "3.631nJy", (3.631, "nJy"), "phot.flux.density"),
        ("nanomaggy", "3631 nJy", "3631nJy", (3631.0, "nJy"), "phot.flux.density"),
        ("57.544 nJy", "57.544 nJy", "57.544nJy", (57.544, "nJy"), "phot.flux.density"),
        ("Jy", "Jy", "Jy", (1.0, "Jy"), "phot.flux.density"),
        ("mag", "mag", "mag", (1.0, "mag"), "phot.mag"),
        ("arcsec", "arcsec", "arcsec", (1.0, "arcsec"), "phys.angSize"),
        ("kpc", "kpc", "kpc", (1.0, "kpc"), "phys.size"),
        ("1e-17 erg/s/cm2", "1e-17 erg/s/cm2", "1e-17erg.s**-1.cm**-2", (1.0, "10**-17 erg s-1 cm-2"), "src.morph.param"),
        ("", "", "", (1.0, ""), "src.morph.param"),
        ("DN", "DN", "'DN'", (1.0, "DN"), "src.morph.param"),
        ("log(solMass)", "log(solMass)", "", (1.0, "log(solMass)"), "src.morph.param"),
        ("mag(AB)", "mag(AB)", "", (1.0, "mag(AB)"), "src.morph.param"),
    ],
)
def test_units_in_the_words_of_each_standard(unit: str, standard: str, vo: str, fits: tuple[float, str], ucd: str) -> None:
    assert standard_unit(unit) == standard_unit(standard) == standard
    assert (vo_unit(standard), fits_unit(standard), quantity_ucd(unit)) == (vo, fits, ucd)


@pytest.mark.parametrize("unit", ["57.544 nJy", "3.631 nJy", "arcsec", "MJy/sr", "mag/arcsec2"])
def test_astropy_reads_the_same_unit_back(unit: str) -> None:
    factor, text = fits_unit(unit)
    assert u.Unit(vo_unit(unit), format="vounit") == u.Unit(unit)
    np.testing.assert_allclose((factor * u.Unit(text, format="fits")).to(u.Unit(unit)).value, 1)


def test_what_may_be_the_unit_of_pixels() -> None:
    fluxes = ("", "nJy", "1e-12 mgy", "nanomaggies", "MJy/sr", "adu", "ADU", "counts", "electron / s", "DN/s", "erg/(s cm2 AA)")
    assert all(map(is_flux, fluxes))
    assert not any(map(is_flux, ("parsec", "arcsec", "K", "s", "kg", "mag", "ABmag", "mag(AB)", "magnitudes")))


@pytest.mark.parametrize(
    ("unit", "factor", "shown"),
    [
        ("1e-12 mgy", 3.631, "nJy"),
        ("3.631 nJy", 3.631, "nJy"),
        ("nanomaggies", 3631.0, "nJy"),
        ("uJy", 1.0, "uJy"),
        ("adu", 1.0, "adu"),
        ("MJy/sr", 1.0, "MJy/sr"),
        ("arcsec", 1.0, "arcsec"),
        ("", 1.0, ""),
    ],
)
def test_people_read_maggies_and_multiples_in_nanojansky(unit: str, factor: float, shown: str) -> None:
    assert shown_unit(unit) == (pytest.approx(factor, rel=1e-6), shown)
