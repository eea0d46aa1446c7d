"""Positions from columns of any name and unit."""

import numpy as np
import pyarrow as pa
import pytest

from gampen_ray.data.positions import Positions, sky_positions
from gampen_ray.errors import UserError


def _table(units: tuple[str, str] = ("", ""), **columns: list) -> pa.Table:
    fields = [
        pa.field(name, pa.array(values).type, metadata={"unit": unit} if unit else None)
        for (name, values), unit in zip(columns.items(), (*units, *[""] * len(columns)), strict=False)
    ]
    return pa.table([pa.array(values) for values in columns.values()], schema=pa.schema(fields))


def _check(found: Positions, ra: list[float], dec: list[float]) -> None:
    assert not found.reason_N.any(), found.reason_N
    np.testing.assert_allclose(found.ra_N, ra, atol=1e-9)
    np.testing.assert_allclose(found.dec_N, dec, atol=1e-9)


@pytest.mark.parametrize(
    ("units", "ra"),
    [(("", ""), 186.75), (("deg", "deg"), 186.75), (("h", "deg"), 12.45), (("hourangle", ""), 12.45), (("rad", "rad"), 3.2594)],
)
def test_units_of_columns(units: tuple[str, str], ra: float) -> None:
    dec = -0.5 if units[1] != "rad" else np.radians(-0.5)
    ra = ra if units[0] != "rad" else np.radians(186.75)
    _check(sky_positions(_table(units, RA=[ra], Dec=[dec])), [186.75], [-0.5])


@pytest.mark.parametrize(
    ("ra", "dec"),
    [
        ("12:27:00", "-00:30:00"),
        ("12 27 00.0", "-00 30 00"),
        ("12h27m00s", "-0d30m"),
        ("186d45m", "-0.5"),
        ("186.75", "-0.5"),
        (" 12:27:00 ", "-0:30"),
    ],
)
def test_sexagesimal_text(ra: str, dec: str) -> None:
    table = _table(("", ""), ra=[ra, None, ""], dec=[dec, None, ""])
    _check(sky_positions(table), [186.75, np.nan, np.nan], [-0.5, np.nan, np.nan])


@pytest.mark.parametrize(
    "names",
    [
        ("RAJ2000", "DEJ2000"),
        ("_RAJ2000", "_DEJ2000"),
        ("ALPHA_J2000", "DELTA_J2000"),
        ("alphawin_j2000", "deltawin_j2000"),
        ("ra_deg", "dec_deg"),
        ("ira", "idec"),
    ],
)
def test_usual_names(names: tuple[str, str]) -> None:
    found = sky_positions(_table(("", ""), **{names[0]: [10.0], names[1]: [20.0]}))
    _check(found, [10.0], [20.0])
    assert found.remarks == (f"positions are taken from the columns {names[0]} and {names[1]}",)


def test_coord_ra_is_in_radians_if_it_can_be() -> None:
    found = sky_positions(_table(coord_ra=[np.radians(186.75)], coord_dec=[np.radians(-0.5)]))
    _check(found, [186.75], [-0.5])
    assert "have no unit; taken to be in rad" in found.remarks[1]
    _check(sky_positions(_table(coord_ra=[186.75], coord_dec=[-0.5])), [186.75], [-0.5])
    _check(sky_positions(_table(("deg", "deg"), coord_ra=[3.0], coord_dec=[-0.5])), [3.0], [-0.5])


def test_the_config_decides() -> None:
    table = _table(ra=[1.0], dec=[2.0], x=[12.45], y=[-0.5])
    _check(sky_positions(table, ra_column="x", dec_column="y", unit="hour"), [186.75], [-0.5])
    with pytest.raises(UserError, match="dec_column: the catalogue has no column 'z'; give both columns"):
        sky_positions(table, ra_column="x", dec_column="z")
    with pytest.raises(UserError, match="the column ra has the unit 'pix', not one of an angle; give position_unit"):
        sky_positions(_table(("pix", "pix"), ra=[1.0], dec=[2.0]))


def test_values_out_of_range_or_unreadable_have_reasons() -> None:
    found = sky_positions(_table(("", ""), ra=["400", "-10", "10", "abc", "360"], dec=["0", "1", "91", "0", "0"]))
    assert found.reason_N.tolist() == [
        "ra is 400 deg: not within -180 to 360",
        "",
        "dec is 91 deg: not within -90 to 90",
        "ra is 'abc': neither degrees nor sexagesimal",
        "",
    ]
    np.testing.assert_allclose(found.ra_N[[1, 4]], [350, 0])


def test_a_catalogue_without_positions() -> None:
    found = sky_positions(_table(ra=[1.0], flux=[2.0]))
    assert np.isnan(found.ra_N).all()
    assert found.columns == ()
