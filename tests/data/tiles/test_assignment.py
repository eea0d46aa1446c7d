import dataclasses

import numpy as np
import pytest
from astropy.io import fits

from gampen_ray.data.tiles.assignment import assign
from gampen_ray.data.tiles.grid import Grid, wcs_text


def grid(ra: float, dec: float, *, side: int = 200, scale_deg: float = 0.001, frame: str = "") -> Grid:
    names = ("GLON-TAN", "GLAT-TAN") if frame == "galactic" else ("RA---TAN", "DEC--TAN")
    pairs = {"CTYPE": names, "CRVAL": (ra, dec), "CRPIX": ((side + 1) / 2,) * 2, "CDELT": (-scale_deg, scale_deg)}
    header = fits.Header({f"{name}{axis + 1}": value for name, values in pairs.items() for axis, value in enumerate(values)})
    if frame == "fk5":
        header["RADESYS"], header["EQUINOX"] = "FK5", 2000.0
    return Grid(wcs_text(header), side, side)


@dataclasses.dataclass
class Tiles:
    """Tiles by name."""

    grids: dict[str, Grid]
    faults: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> np.ndarray:
        return np.array(sorted(self.grids), dtype=object)

    @property
    def centre_T3(self) -> np.ndarray:
        return np.stack([self.grids[name].centre for name in self.names])

    @property
    def radius_deg_T(self) -> np.ndarray:
        return np.array([self.grids[name].radius_deg for name in self.names])

    def grid(self, tile: int) -> Grid:
        return self.grids[self.names[tile]]

    def fault(self, tile: int) -> str:
        return self.faults.get(self.names[tile], "")


# Neighbours overlap by a fifth.
PAIR = Tiles({"a": grid(359.92, 10.0), "b": grid(0.08, 10.0)})


def test_a_source_goes_to_the_tile_in_which_it_is_farthest_from_an_edge_across_ra_0() -> None:
    rng = np.random.default_rng(0)
    ra_N, dec_N = rng.uniform(-0.17, 0.17, 500), rng.uniform(9.94, 10.06, 500)
    found = assign(ra_N % 360, dec_N, PAIR, size=1)
    assert set(found.reason_N) == {""}
    # In the middle between the centres, to a pixel.
    far = np.abs(ra_N) > 0.001
    np.testing.assert_array_equal(found.tile_N[far], (ra_N[far] > 0).astype(int))
    for tile in (0, 1):
        rows = found.tile_N == tile
        ra, dec = PAIR.grid(tile).sky(found.x_N[rows], found.y_N[rows])
        np.testing.assert_allclose((ra + 180) % 360, (ra_N[rows] + 180) % 360, atol=1e-10)
        np.testing.assert_allclose(dec, dec_N[rows], atol=1e-10)


@pytest.mark.parametrize("pole", [90.0, -90.0])
def test_a_tile_at_a_pole_has_all_right_ascensions(pole: float) -> None:
    tiles = Tiles({"pole": grid(0.0, pole), "side": grid(120.0, pole - np.sign(pole) * 0.15)})
    ra_N = np.linspace(0, 359, 60)
    found = assign(ra_N, np.full(60, pole - np.sign(pole) * 0.02), tiles, size=16)
    assert set(found.reason_N) == {""}
    np.testing.assert_array_equal(tiles.names[found.tile_N], "pole")
    # The gnomonic projection about the pole (Calabretta & Greisen 2002, sec. 5.1.3).
    radius = np.tan(np.radians(0.02)) / np.radians(0.001)
    np.testing.assert_allclose(np.hypot(found.x_N - 99.5, found.y_N - 99.5), radius, rtol=1e-9)
    angle = np.radians(ra_N)
    np.testing.assert_allclose(found.x_N - 99.5, np.sign(pole) * radius * np.sin(angle), atol=1e-6)


def test_reasons_say_how_far_a_source_is_from_the_tiles() -> None:
    ra_N = np.array([np.nan, 180.0, 359.815, 359.825, 0.0])
    found = assign(ra_N, np.array([10.0, 10.0, 10.0, 10.0, 10.099]), PAIR, size=64)
    assert list(found.tile_N) == [-1] * 5
    assert found.reason_N[0] == "the position is missing"
    assert found.reason_N[1] == "in no tile of the footprint"
    assert found.reason_N[2].startswith("in no tile: 3.4 pixels beyond the edge of a")
    assert found.reason_N[3] == "beyond the edge: the cutout reaches 26 pixels over the edge of a"
    assert found.reason_N[4].startswith("beyond the edge: the cutout reaches 3")
    assert np.isnan(found.x_N).all()
    reaching = assign(ra_N, np.array([10.0, 10.0, 10.0, 10.0, 10.099]), PAIR, size=64, max_beyond=26)
    assert list(reaching.tile_N) == [-1, -1, -1, 0, -1]


def test_a_tile_that_cannot_be_used_gives_way_to_another_or_its_fault_is_the_reason() -> None:
    tiles = Tiles(PAIR.grids, {"a": "band missing: tile a has no r"})
    found = assign(np.array([359.99, 359.9]), np.array([10.0, 10.0]), tiles, size=1)
    assert list(found.tile_N) == [1, -1]
    assert list(found.reason_N) == ["", "band missing: tile a has no r"]


def test_equal_tiles_are_told_apart_by_name_whatever_the_order_of_sources() -> None:
    twins = Tiles({"x": grid(10.0, 0.0), "w": grid(10.0, 0.0)})
    found = assign(np.linspace(9.95, 10.05, 9), np.zeros(9), twins, size=1)
    np.testing.assert_array_equal(twins.names[found.tile_N], "w")


@pytest.mark.parametrize("frame", ["fk5", "galactic"])
def test_positions_are_converted_to_the_frame_of_the_tile(frame: str) -> None:
    tile = grid(120.0, 20.0, frame=frame)
    ra, dec = tile.sky([40.0], [70.0])
    if frame == "fk5":
        # The frames differ by some mas.
        assert 0 < abs(ra[0] - 120.06) * 3600 < 60
    found = assign(ra, dec, Tiles({"t": tile}), size=1)
    np.testing.assert_allclose([found.x_N[0], found.y_N[0]], [40.0, 70.0], atol=1e-6)
