"""Cutouts of one tile: at its edges, in strips, over masks; files that changed or are damaged; a survey's real file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from gampen_ray import storage
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.tiles import surveys
from gampen_ray.data.tiles.cutting import Cuts, Tile
from gampen_ray.data.tiles.describing import describe
from gampen_ray.data.tiles.listing import listed
from gampen_ray.data.tiles.preset import Plane, TileSurvey
from gampen_ray.errors import UserError
from tests.data.tiles.layouts import tile_cards

HEIGHT, WIDTH = 90, 70
SURVEY = TileSurvey(
    name="t",
    image=Plane(files=("{tile}_{band}.fits*",), hdus=("SCI",)),
    noise=Plane(hdus=("VAR",)),
    mask=Plane(hdus=("MASK",)),
    zero_point_mag=27.0,
)
DES = Path(__file__).parents[4] / "shared" / "data" / "real" / "des_r.fits"


@pytest.fixture(params=["plain", "packed", "gzip"])
def tile_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tile whose pixels count up from 1, with a variance of twice that."""
    image_HW = np.arange(1, HEIGHT * WIDTH + 1, dtype=np.float32).reshape(HEIGHT, WIDTH)
    mask_HW = np.zeros((HEIGHT, WIDTH), np.int16)
    mask_HW[40, 30] = 4
    kind: Any = fits.CompImageHDU if request.param == "packed" else fits.ImageHDU
    how: dict[str, Any] = {"compression_type": "GZIP_1", "quantize_level": 0} if request.param == "packed" else {}
    planes = {"SCI": image_HW, "VAR": 2 * image_HW, "MASK": mask_HW}
    hdus = [kind(pixels_HW, tile_cards(0, 10.0, 0.0, 0.2), name=name, **how) for name, pixels_HW in planes.items()]
    path = tmp_path / ("t_r.fits.gz" if request.param == "gzip" else "t_r.fits")
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return path


def opened(path: Path, survey: TileSurvey = SURVEY, zero_point_mag: float = 27.0) -> Tile:
    (entry,) = listed([path.name], survey)
    return Tile([describe(entry, survey, str(path.parent))], str(path.parent), zero_point_mag)


def cut(path: Path, x: Any, y: Any, size: int, **options: Any) -> list[Cuts]:
    with opened(path) as tile:
        return list(tile.cut(np.asarray(x, float), np.asarray(y, float), size, **options))


def test_cutouts_do_not_depend_on_strips_or_batches(tile_file: Path) -> None:
    rng = np.random.default_rng(0)
    x_N, y_N = rng.uniform(-3, WIDTH + 3, 60), rng.uniform(-3, HEIGHT + 3, 60)
    whole = cut(tile_file, x_N, y_N, 9)
    assert len(whole) == 1
    for options in ({"num_rows": 7}, {"strip_bytes": 1}, {"strip_bytes": 24 * WIDTH * 20, "num_rows": 3}):
        parts = cut(tile_file, x_N, y_N, 9, **options)
        assert len(parts) > 3
        for name in ("image_NCHW", "masked_share_N", "off_tile_share_N", "sky_noise_NC", "dx_N", "reason_N"):
            found = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(found, getattr(whole[0], name), err_msg=f"{options} {name}")


def test_off_tile_pixels_are_nan_and_the_galaxy_stays_at_the_centre(tile_file: Path) -> None:
    (cuts,) = cut(tile_file, [1.0, 30.0, 35.0, 100.0], [0.0, 40.0, 60.4, 5.0], 5)
    order = np.argsort(cuts.rows_N)
    image_NHW = cuts.image_NCHW[order, 0]
    # Pixel (0, 0) is one column left of the centre of the first, and in its row.
    assert image_NHW[0, 2, 1] == 1
    assert image_NHW[0, 2, 2] == 2
    assert np.isnan(image_NHW[0, :2]).all()
    assert np.isnan(image_NHW[0, :, 0]).all()
    np.testing.assert_allclose(cuts.off_tile_share_N[order], [1 - 12 / 25, 0, 0, 1])
    np.testing.assert_allclose(cuts.masked_share_N[order], [0, 1 / 25, 0, 0], atol=1e-12)
    np.testing.assert_allclose(cuts.dy_N[order], [0, 0, 0.4, 0])
    assert list(cuts.reason_N[order]) == ["", "masked centre: its pixel has no value", "", "the centre is off the tile"]
    # The variance is twice the pixel; its median is that of the middle row.
    assert cuts.sky_noise_NC[order][2, 0] == pytest.approx(np.sqrt(2 * image_NHW[2, 2, 2]), rel=1e-6)


def test_pixels_and_noise_are_converted_to_the_zero_point_that_is_asked_for(tile_file: Path) -> None:
    (plain,) = cut(tile_file, [20.0], [20.0], 4)
    with opened(tile_file, zero_point_mag=29.5) as tile:
        (cuts,) = tile.cut(np.array([20.0]), np.array([20.0]), 4)
    np.testing.assert_allclose(cuts.image_NCHW, 10 * plain.image_NCHW, rtol=1e-6)
    np.testing.assert_allclose(cuts.sky_noise_NC, 10 * plain.sky_noise_NC, rtol=1e-6)
    # Even sizes: the source is between the middle pixels' centres.
    assert (abs(cuts.dx_N[0]), abs(cuts.dy_N[0])) == (0.5, 0.5)


def test_a_mask_may_hold_weights(tmp_path: Path) -> None:
    image_HW = np.ones((HEIGHT, WIDTH), np.float32)
    weight_HW = np.full((HEIGHT, WIDTH), 0.25, np.float32)
    weight_HW[20, 15] = 0
    planes = fits.ImageHDU(image_HW, tile_cards(0, 10.0, 0.0, 0.2)), fits.ImageHDU(weight_HW, name="WHT")
    fits.HDUList([fits.PrimaryHDU(), *planes]).writeto(tmp_path / "t_r.fits")
    fields: dict[str, Any] = {"image": Plane(files=("{tile}_{band}.fits",)), "zero_point_mag": 27.0}
    survey = TileSurvey(name="w", mask=Plane(hdus=("WHT",)), bad_planes=(), **fields)
    assert "no value   where the mask's weight is 0" in survey.expectations()
    (entry,) = listed(["t_r.fits"], survey)
    with Tile([describe(entry, survey, str(tmp_path))], str(tmp_path), 27.0) as tile:
        (cuts,) = tile.cut(np.array([14.5]), np.array([19.5]), 4)
    assert np.argwhere(np.isnan(cuts.image_NCHW[0, 0])).tolist() == [[2, 2]]


def test_rows_that_are_not_needed_are_not_read(tile_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gampen_ray.data.tiles.fits_files import Rows

    read, ranges = Rows.read, []
    monkeypatch.setattr(Rows, "read", lambda self, a, b: ranges.append((a, b)) or read(self, a, b))
    cut(tile_file, [10.0, 10.0], [3.0, 85.0], 3)
    assert set(ranges) == {(2, 5), (84, 87)}


def test_a_file_that_has_changed_is_refused(tile_file: Path) -> None:
    (entry,) = listed([tile_file.name], SURVEY)
    row = describe(entry, SURVEY, str(tile_file.parent))
    tile_file.write_bytes(tile_file.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"t_r.fits.* has changed since the footprint was made"):
        Tile([row], str(tile_file.parent), 27.0)


def test_damaged_pixels_are_the_reason_of_their_sources(tile_file: Path) -> None:
    (entry,) = listed([tile_file.name], SURVEY)
    row = describe(entry, SURVEY, str(tile_file.parent))
    with Tile([row], str(tile_file.parent), 27.0) as tile:
        content = tile_file.read_bytes()
        tile_file.write_bytes(content[: len(content) // 3])
        (cuts,) = tile.cut(np.array([20.0]), np.array([80.0]), 4)
    assert "truncated" in cuts.reason_N[0] or "damaged" in cuts.reason_N[0]
    assert cuts.reason_N[0].startswith("t_r.fits")
    assert np.isnan(cuts.image_NCHW).all()


@pytest.mark.filterwarnings("ignore:'datfix'")
@pytest.mark.skipif(not DES.exists(), reason="needs the shared data")
def test_a_real_image_of_des_is_cut_where_astropy_says(tmp_path: Path) -> None:
    from astropy.nddata import Cutout2D
    from astropy.wcs import WCS

    name = "DES2143-4040_r2597p01_r.fits"
    with fits.open(DES) as hdus:
        image_HW, header = hdus[0].data, hdus[0].header
    fits.PrimaryHDU(image_HW, header).writeto(tmp_path / name)
    survey = TileSurvey(name="des-plain", image=surveys.TILE_SURVEYS["des"].image, zero_point_mag=30.0)
    (entry,) = listed([name], survey)
    row = describe(entry, survey, str(tmp_path))
    assert row.pixel_scale_arcsec == pytest.approx(0.263, abs=1e-4)
    x_N, y_N = np.array([100.2, 300.7]), np.array([200.4, 50.1])
    np.testing.assert_allclose(row.grid.pixels(*WCS(header).all_pix2world(x_N, y_N, 0)), [x_N, y_N], atol=1e-6)
    with Tile([row], str(tmp_path), 30.0) as tile:
        parts = list(tile.cut(x_N, y_N, 31))
    assert [part.rows_N.tolist() for part in parts] == [[1], [0]]
    for part in parts:
        source = part.rows_N[0]
        expected_HW = Cutout2D(image_HW, (x_N[source], y_N[source]), 31).data
        np.testing.assert_array_equal(part.image_NCHW[0, 0], expected_HW)


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t_r.fits").write_bytes(b"<html>" * 1000)
    with pytest.raises(CutoutError, match="not a FITS file: HDU 0 begins with b'<html>"):
        opened(tmp_path / "t_r.fits")


@pytest.mark.s3
def test_tiles_in_object_storage_are_cut_as_local_ones(tile_file: Path, s3_folder: str) -> None:
    storage.copy(str(tile_file.parent), s3_folder)
    paths = [uri.removeprefix(s3_folder).strip("/") for uri in storage.list_files(s3_folder)]
    (entry,) = listed(paths, SURVEY)
    row = describe(entry, SURVEY, s3_folder)
    x_N, y_N = np.array([20.0, 50.0]), np.array([20.0, 70.0])
    with Tile([row], s3_folder, 27.0) as tile:
        found = [cuts.image_NCHW for cuts in tile.cut(x_N, y_N, 8)]
    np.testing.assert_array_equal(found, [cuts.image_NCHW for cuts in cut(tile_file, x_N, y_N, 8)])
    storage.write_bytes_atomic(storage.join(s3_folder, tile_file.name), tile_file.read_bytes() + b"\0" * 2880)
    with pytest.raises(UserError, match="has changed since the footprint was made"):
        Tile([row], s3_folder, 27.0)
