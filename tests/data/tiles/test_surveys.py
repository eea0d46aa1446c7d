"""Every survey's tiles, from files to cutouts: each source once, its pixels, place, magnitude, masks, noise and PSF."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from gampen_ray import storage
from gampen_ray.data.tiles import surveys
from gampen_ray.data.tiles.assignment import assign
from gampen_ray.data.tiles.cutting import Cuts, Tile, first_pixels
from gampen_ray.data.tiles.describing import describe
from gampen_ray.data.tiles.footprint import Footprint, Selection, finish, write_part
from gampen_ray.data.tiles.listing import listed
from gampen_ray.data.tiles.preset import TileSurvey
from tests.data.tiles.layouts import LAYOUTS, write_sky

SIZE = 16
KINDS = {"des": "TPV", "jwst": "TAN-SIP"}


def made_footprint(tiles: Path, output: Path, survey: TileSurvey) -> Footprint:
    paths = [uri.removeprefix(str(tiles)).strip("/") for uri in storage.list_files(str(tiles))]
    entries = listed(paths, survey, root=str(tiles))
    write_part(str(output), 0, [describe(entry, survey, str(tiles)) for entry in entries], [])
    finish(str(output), survey, str(tiles), 0)
    return Footprint(str(output))


def cut_all(selection: Selection, tile: int, x_N: np.ndarray, y_N: np.ndarray, **options: int) -> Cuts:
    """Return the cutouts of a tile in the order of the sources."""
    footprint = selection.footprint
    with Tile(selection.files(tile), footprint.root, footprint.info.zero_point_mag) as opened:
        parts = list(opened.cut(x_N, y_N, SIZE, **options))
    names = [field.name for field in dataclasses.fields(Cuts)]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    order = np.argsort(columns["rows_N"])
    np.testing.assert_array_equal(columns["rows_N"][order], np.arange(len(x_N)))
    return Cuts(**{name: values[order] for name, values in columns.items()})


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_source_is_cut_once_with_its_pixels_and_its_magnitude(name: str, tmp_path: Path) -> None:
    layout, survey = LAYOUTS[name], surveys.TILE_SURVEYS[name.partition("-")[0]]
    sky = write_sky(tmp_path / "tiles", layout, kind=KINDS.get(name, "TAN"))
    footprint = made_footprint(tmp_path / "tiles", tmp_path / "footprint", survey)
    info = footprint.info
    assert (info.num_tiles, set(info.bands)) == (4, set(layout.bands))
    assert info.zero_point_mag == pytest.approx(layout.zero_point_mag, abs=0.03)
    assert info.pixel_scale_arcsec == pytest.approx(layout.scale_arcsec, rel=0.02)
    selection = footprint.select(layout.bands)
    found = assign(sky.ra_N, sky.dec_N, selection, size=SIZE)
    # All lie inside the four tiles, most of them in two.
    assert set(found.reason_N) == {""}
    num_masked = 0
    for tile in range(4):
        rows = np.flatnonzero(found.tile_N == tile)
        assert len(rows) > 15
        label = str(footprint.names[tile])
        x_N, y_N = sky.wcs[label].all_world2pix(sky.ra_N[rows], sky.dec_N[rows], 0)
        np.testing.assert_allclose(np.stack([found.x_N[rows], found.y_N[rows]]), [x_N, y_N], atol=1e-6)
        cuts = cut_all(selection, tile, found.x_N[rows], found.y_N[rows])
        assert np.abs([cuts.dx_N, cuts.dy_N]).max() <= 0.5 + 1e-9
        assert not cuts.off_tile_share_N.any()
        left_N, first_N = first_pixels(x_N, SIZE), first_pixels(y_N, SIZE)
        np.testing.assert_allclose(left_N + (SIZE - 1) / 2 + cuts.dx_N, x_N, atol=1e-6)
        for row, (left, first) in enumerate(zip(left_N, first_N, strict=True)):
            window = slice(first, first + SIZE), slice(left, left + SIZE)
            for band, plane in enumerate(layout.bands):
                image_HW, bad_HW = sky.pixels[label, plane]
                expected_HW = np.where(bad_HW[window], np.nan, image_HW[window])
                # Compressed to asinh magnitudes and back, in floating point.
                np.testing.assert_allclose(
                    cuts.image_NCHW[row, band], expected_HW, rtol=2e-6, atol=1e-6 * np.nanmax(expected_HW)
                )
        bad_N = np.isnan(cuts.image_NCHW).any(axis=(1, 2, 3))
        np.testing.assert_array_equal(cuts.masked_share_N > 0, bad_N)
        num_masked += bad_N.sum()
        magnitude_NC = info.zero_point_mag - 2.5 * np.log10(cuts.image_NCHW[~bad_N].sum(axis=(2, 3)))
        np.testing.assert_allclose(magnitude_NC, sky.mag_NC[rows][~bad_N], atol=0.05)
        if layout.noise:
            sigma = 1e-3 * 10 ** (0.4 * (layout.zero_point_mag - sky.mag_NC.max(axis=0)))
            np.testing.assert_allclose(cuts.sky_noise_NC, np.broadcast_to(sigma, cuts.sky_noise_NC.shape), rtol=1e-3)
        np.testing.assert_array_equal(cuts.psf_fwhm_arcsec_NC, np.full_like(cuts.psf_fwhm_arcsec_NC, layout.psf_fwhm_arcsec))
    assert num_masked > 0 or not layout.masks
