"""Simulated galaxies on the pixels of tiles."""

import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from gampen_ray.commands.simulate import SimulateConfig, simulate
from gampen_ray.config import TaskResources
from gampen_ray.config.base import replace
from gampen_ray.config.scene import MasksConfig, NeighboursConfig, NoiseConfig, PsfConfig, SceneConfig
from gampen_ray.data import shards
from gampen_ray.data.quarantine import read_quarantine
from gampen_ray.data.tiles import surveys
from gampen_ray.errors import UserError
from gampen_ray.simulation.scene import render_row
from tests.data.tiles.layouts import LAYOUTS, SIDE, TileContent, tile_cards
from tests.data.tiles.test_surveys import made_footprint

SIGMA, STAR = 0.01, 500.0
SIZE, SCALE = 32, 0.262
QUIET = SceneConfig(noise=NoiseConfig(photons=False))
LOCAL = TaskResources(engine="local")


def write_tiles(root: Path, layout: str = "legacy", *, bad: str = "") -> dict[str, np.ndarray]:
    """Write four tiles of noise with a bright star each, and a footprint of them; return the pixels, nanomaggies."""
    how, pixels = LAYOUTS[layout], {}
    rng = np.random.default_rng(5)
    grid = np.arange(SIDE)
    for number, tile in enumerate(how.tiles):
        star_HW = np.exp(-((grid - 30) ** 2 + (grid[:, None] - 70) ** 2) / (2 * 2.0**2)) / (2 * np.pi * 2.0**2)
        pixels[tile] = (rng.normal(0, SIGMA, (SIDE, SIDE)) + STAR * star_HW).astype(np.float32)
        bad_HW = np.zeros((SIDE, SIDE), bool)
        bad_HW[20:24, 50:60] = True
        bad_HW |= tile == bad
        noise_HW = np.full((SIDE, SIDE), SIGMA, np.float32)
        cards = tile_cards(number, 10.0, -1.2, how.scale_arcsec)
        for band in how.bands:
            how.write(TileContent(root / "tiles", tile, band, pixels[tile], noise_HW, bad_HW, cards))
    made_footprint(root / "tiles", root / "footprint", surveys.TILE_SURVEYS[layout])
    return pixels


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    root = tmp_path_factory.mktemp("sky")
    return root, write_tiles(root)


def made(root: Path, output: Path, **fields: object) -> dict[str, np.ndarray]:
    """Simulate on the sky, and return the columns in the order of the galaxies."""
    usual = {"num_galaxies": 40, "cutout_size": SIZE, "seed": 3, "scene": QUIET, "resources": LOCAL}
    simulate(SimulateConfig(output=str(output), background=str(root / "footprint"), **{**usual, **fields}))
    tables = [shards.read_shard(uri) for uri in shards.shard_uris(str(output))]
    columns = {
        name: np.concatenate([shards.images(table) if name == "image" else table[name].to_numpy() for table in tables])
        for name in tables[0].column_names
    }
    order = np.argsort(columns["object_id"])
    return {name: values[order] for name, values in columns.items()}


@pytest.fixture(scope="module")
def galaxies(sky: tuple[Path, dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return made(sky[0], tmp_path_factory.mktemp("made") / "data")


def test_an_image_is_the_tiles_pixels_and_the_galaxy(
    sky: tuple[Path, dict[str, np.ndarray]], galaxies: dict[str, np.ndarray]
) -> None:
    assert galaxies["object_id"].tolist() == list(range(40))
    assert len(set(galaxies["tile"])) == 4
    compared = 0
    for place in range(40):
        row = {name: values[place] for name, values in galaxies.items() if name not in ("image", "tile")}
        left, top = (round(row[axis] - row[f"{axis}_offset_pixel"] - 0.5 * (SIZE - 1)) for axis in "xy")
        assert min(left, top) >= 0
        assert max(left, top) + SIZE <= SIDE
        # From nanomaggies to the unit of kids-r.
        tile_HW = 1e3 * sky[1][galaxies["tile"][place]][top : top + SIZE, left : left + SIZE]
        light_HW = galaxies["image"][place, 0] - tile_HW
        truth_HW = render_row(row, pixel_scale_arcsec=SCALE, size=SIZE)
        good_HW = np.ones((SIZE, SIZE), bool)
        good_HW[max(0, 20 - top) : max(0, 24 - top), max(0, 50 - left) : max(0, 60 - left)] = False
        np.testing.assert_allclose(light_HW[good_HW], truth_HW[good_HW], atol=1e-6 * np.abs(tile_HW).max() + 1e-3, rtol=1e-5)
        compared += good_HW.all()
    assert compared > 20


def test_its_position_psf_and_noise_are_the_tiles(galaxies: dict[str, np.ndarray], sky: tuple[Path, dict]) -> None:
    np.testing.assert_allclose(galaxies["psf_fwhm_arcsec"], 1.25, rtol=1e-3)
    np.testing.assert_allclose(galaxies["sky_noise"], 1e3 * SIGMA, rtol=1e-5)
    names = list(LAYOUTS["legacy"].tiles)
    for tile, ra, dec, x, y in zip(*(galaxies[name] for name in ("tile", "ra", "dec", "x", "y")), strict=True):
        wcs = WCS(tile_cards(names.index(tile), 10.0, -1.2, SCALE))
        np.testing.assert_allclose(wcs.all_world2pix(ra, dec, 0), (x, y), atol=1e-6)


def test_galaxies_do_not_depend_on_shards_or_neighbours(
    sky: tuple[Path, dict], galaxies: dict[str, np.ndarray], tmp_path: Path
) -> None:
    again = made(sky[0], tmp_path / "small", num_galaxies=25, galaxies_per_shard=3)
    for name, values in again.items():
        np.testing.assert_array_equal(values, galaxies[name][:25], err_msg=name)
    other = made(sky[0], tmp_path / "other", seed=4)
    assert not np.array_equal(other["x"], galaxies["x"])
    # A finished one is left as it is.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "small").rglob("*.parquet")}
    made(sky[0], tmp_path / "small", num_galaxies=25, galaxies_per_shard=3)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "small").rglob("*.parquet")} == before


def test_no_galaxy_is_hidden_by_the_star_and_companions_are_near_it(
    sky: tuple[Path, dict], galaxies: dict[str, np.ndarray], tmp_path: Path
) -> None:
    beside = made(sky[0], tmp_path / "beside", scene=replace(QUIET, **{"neighbours.companions": 1.0}))

    def distances(columns: dict[str, np.ndarray]) -> np.ndarray:
        return np.hypot(columns["x"] - 30, columns["y"] - 70) * SCALE

    exclusion = np.maximum(galaxies["effective_radius_arcsec"], 1.5 * galaxies["psf_fwhm_arcsec"])
    fainter = galaxies["flux"] < 1e3 * STAR
    assert (distances(galaxies) > 0.9 * exclusion)[fainter].all()
    near = [np.count_nonzero(distances(columns) < SIZE / 2 * SCALE) for columns in (galaxies, beside)]
    assert near[1] > 2 * near[0]


def test_a_galaxy_without_a_place_goes_to_quarantine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiles(tmp_path, bad="0593m302")
    with caplog.at_level(logging.WARNING):
        columns = made(tmp_path, tmp_path / "data")
    assert set(columns["tile"]) == {"0591m305", "0593m305", "0591m302"}
    info = shards.read_dataset_info(str(tmp_path / "data"))
    assert info.num_quarantined == 40 - len(columns["object_id"]) > 0
    assert sum(info.num_rows.values()) == len(columns["object_id"])
    for split, count in info.num_rows.items():
        files = list((tmp_path / "data").glob(f"split={split}/*.parquet"))
        assert sum(pq.ParquetFile(path).metadata.num_rows for path in files) == count
    assert {reason for _, reason in read_quarantine(str(tmp_path / "data"))} == {"masked centre: its pixel has no value"}
    assert f"{info.num_quarantined} of 40 galaxies found no place" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"band": "z"}, "band: no tile of .* has z; there are g, r"),
        ({"cutout_size": 113}, "cutout_size: 113 pixels, but no tile of .* is as large"),
        ({"survey": "hsc-i"}, "band: no tile of .* has i"),
        ({"background": "nowhere"}, "background: .*nowhere holds no finished footprint"),
    ],
)
def test_mistakes_are_named(fields: dict, message: str, sky: tuple[Path, dict], tmp_path: Path) -> None:
    usual = {"output": str(tmp_path / "data"), "background": str(sky[0] / "footprint"), "cutout_size": SIZE, "resources": LOCAL}
    with pytest.raises(UserError, match=message):
        simulate(SimulateConfig(**{**usual, **fields}))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "section",
    [{"noise": NoiseConfig(sky_level=0)}, {"neighbours": NeighboursConfig(stars=0)}, {"masks": MasksConfig(probability=0)}],
)
def test_what_the_background_brings_cannot_be_set(section: dict) -> None:
    with pytest.raises((UserError, ValueError), match=f"scene.{next(iter(section))}: the background brings"):
        SimulateConfig(output="x", background="y", scene=SceneConfig(**section))


def test_a_psf_narrower_than_its_pixels_is_refused(tmp_path: Path) -> None:
    write_tiles(tmp_path)
    for path in (tmp_path / "tiles").rglob("*-psfsize-r.fits.fz"):
        with fits.open(path, mode="update") as file:
            file[1].data[:] = 0.1
    made_footprint(tmp_path / "tiles", tmp_path / "footprint", surveys.TILE_SURVEYS["legacy"])
    with pytest.raises(UserError, match=r"background: no galaxy found a place; .* is 0\.1 arcsec: a star on"):
        made(tmp_path, tmp_path / "data")


def test_tiles_that_state_no_psf_need_one(tmp_path: Path) -> None:
    write_tiles(tmp_path, "kids")
    with pytest.raises(UserError, match=r"background: the tile .* states no width of the PSF; give scene.psf.stamps"):
        made(tmp_path, tmp_path / "given")
    scene = replace(QUIET, psf=PsfConfig(fwhm_arcsec=(0.6, 0.7)))
    columns = made(tmp_path, tmp_path / "given", scene=scene)
    assert (columns["psf_core_fwhm_arcsec"] >= 0.6).all()
    assert (columns["psf_core_fwhm_arcsec"] <= 0.7).all()
